"""What a collector may give to an image writer, and what becomes of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from streamwsi.chunks import BigChunk, ProcessedPiece, Status
from streamwsi.collecting.image_rows import ImageRows
from streamwsi.collecting.rows import ChunkRows
from streamwsi.errors import PieceError
from streamwsi.geometry import Grid
from streamwsi.images.encoding import ImageEncoding
from streamwsi.values import ValueSpec

N = 6
WINDOWS = Grid((8 * N, 8), (8, 8), (8, 8), "crop", 1.0).windows(np.arange(N, dtype=np.int64))
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), np.uint8)
ALL = np.arange(N, dtype=np.intp)


@pytest.fixture(params=[1, 3])
def maker(request: pytest.FixtureRequest) -> Iterator[ImageRows]:
    made = ImageRows(ImageEncoding("png"), request.param)
    yield made
    made.close()


def chunk(maker: ImageRows | None, spec: ValueSpec | None = None) -> ChunkRows:
    return ChunkRows(BigChunk(WINDOWS, PIXELS, None, np.zeros(N, bool)), spec, None, maker)


def decoded(data: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


class Tensor:
    """As much of PyTorch's as is asked of it."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray:
        return self._array


@pytest.mark.parametrize(
    "result",
    [PIXELS, list(PIXELS), tuple(PIXELS), PIXELS[..., 0], Tensor(PIXELS)],
    ids=["array", "list", "tuple", "grey", "tensor"],
)
def test_an_image_of_each_window_is_encoded(maker: ImageRows, result: Any) -> None:
    rows = chunk(maker)
    rows.add(ALL, result)
    assert rows.spec == ValueSpec("bytes", ()) and not rows.status.any()
    for row, image in zip(rows.values(), getattr(result, "_array", result), strict=True):
        np.testing.assert_array_equal(decoded(row), image)


@pytest.mark.parametrize("in_a_list", [False, True])
def test_several_images_of_each_window_are_encoded_each(maker: ImageRows, in_a_list: bool) -> None:
    both = np.stack([PIXELS, 255 - PIXELS], axis=1)
    rows = chunk(maker)
    rows.add(ALL, [[one[0], one[1][:4]] for one in both] if in_a_list else both)
    assert rows.spec == ValueSpec("bytes", (2,)) and rows.values().shape == (N, 2)
    np.testing.assert_array_equal(decoded(rows.values()[3, 0]), PIXELS[3])
    np.testing.assert_array_equal(decoded(rows.values()[3, 1]), (255 - PIXELS[3])[: 4 if in_a_list else 8])


def test_bytes_of_the_format_are_kept_as_they_are(maker: ImageRows) -> None:
    files = [ImageEncoding("png").encoded(image) for image in PIXELS]
    rows = chunk(maker)
    rows.add(ALL, [files[0], bytearray(files[1]), memoryview(files[2]), *files[3:]])
    assert rows.values().tolist() == files
    with pytest.raises(PieceError, match=r"window 2: 5 bytes that are not those of a png file"):
        chunk(maker).add(ALL, [*files[:2], b"hello", *files[3:]])


def test_pieces_may_leave_windows_out(maker: ImageRows) -> None:
    rows = chunk(maker)
    rows.add(ALL, [ProcessedPiece(WINDOWS[row], PIXELS[row]) for row in (4, 1)])
    assert np.flatnonzero(rows.status == Status.WRITTEN).tolist() == [1, 4]
    for row, image in zip(rows.values(), PIXELS[[1, 4]], strict=True):
        np.testing.assert_array_equal(decoded(row), image)
    empty = chunk(maker, ValueSpec("bytes", ()))
    empty.add(ALL, [])
    assert empty.values().shape == (0,) and empty.values().dtype == object


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (PIXELS[:2], "returned 2 values, expected one for each of 6 windows"),
        (PIXELS.astype(np.float32), r"window 0: got float32 of shape \(8, 8, 3\); an image writer takes uint8 images"),
        (PIXELS.mean(axis=(1, 2)), r"window 0: got float64 of shape \(3,\)"),
        (np.zeros((N, 8, 8, 4), np.uint8), r"window 0: got uint8 of shape \(8, 8, 4\)"),
        (np.float32(1), "returned float32"),
        (np.uint8(1), "returned uint8"),
        ("pictures", "returned str"),
        ([*PIXELS[:5], None], "window 5: got NoneType"),
        ([*PIXELS[:5], [PIXELS[5], 3]], "window 5: got a list of 2"),
        ([*PIXELS[:5], []], "window 5: got a list of 0"),
        ([*PIXELS[:5], [PIXELS[5], PIXELS[5]]], "window 5: 2 images in a list, those before it had one image"),
        (np.zeros((N, 0, 8, 3), np.uint8), "window 0: an image of 8x0 px"),
    ],
)
def test_what_is_no_image_is_refused_naming_the_window(maker: ImageRows, result: Any, said: str) -> None:
    with pytest.raises(PieceError, match=said):
        chunk(maker).add(ALL, result)


def test_another_number_of_images_than_before_is_refused(maker: ImageRows) -> None:
    rows = chunk(maker, ValueSpec("bytes", (2,)))
    with pytest.raises(PieceError, match=r"a value is bytes of shape \(\), those before it were bytes of shape \(2,\)"):
        rows.add(ALL, PIXELS)


def test_bytes_for_a_writer_of_numbers_are_refused_with_the_way_out() -> None:
    for result in ([b"abc"] * N, [b"a", b"bcd", *[b"e"] * 4], [ProcessedPiece(WINDOWS[0], b"abc")]):
        with pytest.raises(PieceError, match="bytes go to an ImageStreamWriter"):
            chunk(None).add(ALL, result)
