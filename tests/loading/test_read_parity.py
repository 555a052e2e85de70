"""Windows read through the loader's own code against the same windows cut from the level read whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from streamwsi.chunks import BigChunk
from streamwsi.config import OnBadRegion
from streamwsi.dataset import Slide
from streamwsi.errors import RegionError
from streamwsi.geometry import BORDERS, Border
from streamwsi.loading.read import read_chunk
from streamwsi.loading.resolution import Wanted
from streamwsi.loading.resolve import Choices, ReadingOptions, resolve_slide
from streamwsi.resolved import ResolvedSlide
from streamwsi.sampling.sampler import Sampler
from streamwsi.slides import SlideReader, open_slide
from tests.helpers import (
    BAD_TILE,
    BUNDLED,
    UNDAMAGED,
    WHITE,
    UInt8Array,
    grid_windows,
    level_image,
    noise_levels,
    slide_file,
    write_tiff,
)

KERNELS_AND_STRIDES = [(256, 256), (256, 128), (300, 200), (512, 700), (64, 64)]
BATCH_SIZE = 16

LEVELS: list[tuple[str | None, int]] = [
    (None, 0),  # the bundled slide, which aperio/CMU-1-Small-Region.svs is too
    *((name, level) for name in UNDAMAGED if name != "aperio/CMU-1-Small-Region.svs" for level in range(UNDAMAGED[name])),
]
LARGE: list[tuple[str | None, int]] = [
    ("dicom/cmu1_small_region", 0),
    ("tiff/CMU-1-Small-Region-rgb.ome.tiff", 0),
    ("tiff/yb10kx5k.zstd.tiff", 0),
    ("tiff/yb10kx5k.zstd.tiff", 1),
]
"""Those that take long to read: where windows lie does not depend on what is read, and others of their kind are read."""


def called(level: tuple[str | None, int]) -> str:
    return f"{level[0] or 'bundled'}-{level[1]}"


class OpenLevel(NamedTuple):
    """A level of an open slide, and what it holds."""

    reader: SlideReader
    path: Path
    level: int
    image: UInt8Array
    """(height + 512, width + 512, 3): the level read whole, with background to its right and below."""


@contextmanager
def opened(request: pytest.FixtureRequest) -> Iterator[OpenLevel]:
    name, level = request.param
    path = BUNDLED if name is None else slide_file(request.getfixturevalue("shared_slides"), name)
    with open_slide(path) as reader:
        yield OpenLevel(reader, path, level, level_image(path, level, margin=512)[512:, 512:])


@pytest.fixture(scope="module", params=[level for level in LEVELS if level not in LARGE], ids=called)
def open_level(request: pytest.FixtureRequest) -> Iterator[OpenLevel]:
    with opened(request) as level:
        yield level


@pytest.fixture(scope="module", params=LARGE, ids=called)
def large_level(request: pytest.FixtureRequest) -> Iterator[OpenLevel]:
    with opened(request) as level:
        yield level


@pytest.fixture(scope="module")
def bundled_image(bundled: Path) -> UInt8Array:
    """The bundled slide read whole, with background to its right and below."""
    return level_image(bundled, 0, margin=512)[512:, 512:]


def resolve(
    reader: SlideReader,
    path: Path,
    level: int = 0,
    kernel: int = 256,
    stride: int = 256,
    border: Border = "pad",
    chunk_px: int = 1 << 21,
    sampler: Sampler | None = None,
) -> ResolvedSlide:
    options = ReadingOptions(
        kernel=(kernel, kernel),
        stride=(stride, stride),
        border=border,
        background=WHITE,
        reader="auto",
        on_bad_region="fail",
        batch_size=BATCH_SIZE,
        chunk_px=chunk_px,
        threads=1,
        min_chunk_interval_s=0.0,
    )
    return resolve_slide(reader, (0, 0), "p1", Slide(path, "H&E"), Choices(Wanted(level), sampler), options)


def read_chunks(reader: SlideReader, resolved: ResolvedSlide, on_bad_region: OnBadRegion = "fail") -> Iterator[BigChunk]:
    """All chunks of a slide, read by two threads, as a loader does."""
    with ThreadPoolExecutor(2) as threads:
        read = partial(read_chunk, reader, resolved, on_bad_region=on_bad_region)
        yield from threads.map(read, range(len(resolved.chunks())))


def check_windows(
    chunks: Iterator[BigChunk], resolved: ResolvedSlide, image: UInt8Array, skipped: Collection[int] = ()
) -> None:
    """Each window but the skipped ones comes once, where it belongs, with its pixels."""
    expected = grid_windows(resolved.extent, resolved.kernel, resolved.stride, resolved.border)
    seen = np.zeros(len(expected), np.int64)
    for chunk in chunks:
        for rows in chunk.batch_rows(BATCH_SIZE):
            windows = chunk.windows.take(rows)
            for window, pixels in zip(windows, chunk.stack(rows), strict=True):
                x, y, width, height = expected[window.index]
                assert (window.start_x, window.start_y, window.width, window.height) == (x, y, width, height)
                assert pixels.shape == (height, width, 3)
                if not np.array_equal(pixels, image[y : y + height, x : x + width]):
                    pytest.fail(f"the pixels of {window} are not the level's own")
                seen[window.index] += 1
    assert np.flatnonzero(seen == 0).tolist() == sorted(skipped)
    assert seen.max(initial=1) == 1


@pytest.mark.parametrize(("kernel", "stride"), KERNELS_AND_STRIDES)
@pytest.mark.parametrize("border", BORDERS)
def test_windows_are_those_of_the_level_read_whole(open_level, border, kernel, stride):
    check_level(open_level, border, kernel, stride)


@pytest.mark.parametrize(
    ("border", "kernel", "stride"),  # each once
    [(border, *window) for border, window in zip(BORDERS, KERNELS_AND_STRIDES, strict=True)],
)
def test_windows_of_large_levels_are_those_of_the_level_read_whole(large_level, border, kernel, stride):
    check_level(large_level, border, kernel, stride)


def check_level(open_level: OpenLevel, border: Border, kernel: int, stride: int) -> None:
    reader, path, level, image = open_level
    resolved = resolve(reader, path, level, kernel, stride, border)
    assert resolved.resampled_px == 0
    check_windows(read_chunks(reader, resolved), resolved, image)


@pytest.mark.parametrize("chunk_px", [1, 1 << 17, 1 << 19, 1 << 30])
@pytest.mark.parametrize("border", BORDERS)
def test_windows_and_pixels_do_not_depend_on_the_size_of_chunks(bundled, bundled_image, border, chunk_px):
    with open_slide(bundled) as reader:
        resolved = resolve(reader, bundled, kernel=300, stride=200, border=border, chunk_px=chunk_px)
        check_windows(read_chunks(reader, resolved), resolved, bundled_image)


def test_windows_at_fractional_downsamples_are_the_levels_own_pixels(tmp_path):
    levels = noise_levels([(1001, 757), (250, 189)])
    path = write_tiff(tmp_path / "noise.tiff", levels)
    image = np.pad(levels[1], ((0, 512), (0, 512), (0, 0)), constant_values=255)
    with open_slide(path) as reader:
        for border in BORDERS:
            resolved = resolve(reader, path, level=1, kernel=50, stride=37, border=border, chunk_px=1 << 14)
            assert resolved.downsample % 1 != 0
            check_windows(read_chunks(reader, resolved), resolved, image)


def test_windows_that_overlap_come_as_one_region_and_scattered_ones_packed(bundled):
    with open_slide(bundled) as reader:
        dense = read_chunk(reader, resolve(reader, bundled, kernel=256, stride=128), 0)
        scattered = read_chunk(reader, resolve(reader, bundled, kernel=64, stride=640), 0)
    assert dense.origin == (0, 0) and dense.pixels.ndim == 3
    assert scattered.origin is None and scattered.pixels.shape[1:] == (64, 64, 3)


# what cannot be read


def touching(resolved: ResolvedSlide, region: tuple[int, int, int, int]) -> list[int]:
    """The windows that overlap `region`, (x, y, width, height)."""
    left, top, width, height = region
    windows = grid_windows(resolved.extent, resolved.kernel, resolved.stride, resolved.border)
    return [
        index
        for index, (x, y, w, h) in enumerate(windows)
        if x < left + width and left < x + w and y < top + height and top < y + h
    ]


@pytest.mark.parametrize(("kernel", "stride"), [(256, 256), (240, 240), (300, 200), (64, 640), (256, 64)])
@pytest.mark.parametrize("border", ["pad", "adaptive"])
def test_a_bad_tile_costs_the_windows_that_touch_it(shared_slides, bundled_image, border, kernel, stride):
    name, tile = BAD_TILE
    path = shared_slides / name
    with open_slide(path) as reader:
        resolved = resolve(reader, path, kernel=kernel, stride=stride, border=border)
        lost = touching(resolved, tile)
        check_windows(read_chunks(reader, resolved, on_bad_region="skip"), resolved, bundled_image, skipped=lost)
    assert lost or stride > kernel
    assert kernel != 240 or len(lost) == 1


@pytest.mark.parametrize(("kernel", "stride"), [(256, 256), (64, 80)], ids=["as one region", "packed"])
def test_a_bad_tile_fails_the_slide_unless_it_may_be_skipped(shared_slides, kernel, stride):
    name, _ = BAD_TILE
    path = shared_slides / name
    with open_slide(path) as reader:
        resolved = resolve(reader, path, kernel=kernel, stride=stride)
        with pytest.raises(RegionError, match=r"CMU-1-badtile67\.svs: level 0 cannot be read"):
            list(read_chunks(reader, resolved))


def test_a_bad_tile_does_not_make_a_chunk_larger(shared_slides):
    name, (x, y, _, _) = BAD_TILE
    path = shared_slides / name
    with open_slide(path) as reader:
        resolved = resolve(reader, path, kernel=256, stride=64, chunk_px=1 << 19)
        grid = resolved.grid()
        window = int(np.searchsorted(grid.ys, y) * grid.shape[1] + np.searchsorted(grid.xs, x))
        chunk = read_chunk(reader, resolved, int(resolved.chunks().chunk_of(np.array([window]))[0]), "skip")
    assert chunk.skipped.any()
    assert chunk.pixels.nbytes <= 3 << 19


def test_a_truncated_dicom_file_costs_the_windows_in_what_is_missing(shared_slides):
    whole, broken = (slide_file(shared_slides, name) for name in ("dicom/cmu1_small_region", "damaged/dicom_truncated_60pct"))
    image = level_image(whole, 0, margin=512)[512:, 512:]
    with open_slide(broken) as reader:
        resolved = resolve(reader, broken)
        chunks = list(read_chunks(reader, resolved, on_bad_region="skip"))
        skipped = sorted(index for chunk in chunks for index in chunk.windows.index[chunk.skipped].tolist())
        check_windows(iter(chunks), resolved, image, skipped)
        first = resolved.grid().windows(np.array(skipped[:1]))[0]
    assert len(resolved.grid()) == 108 and len(skipped) == 40
    assert (first.x, first.y) == (1280, 1792)


def test_a_chunk_of_which_nothing_can_be_read_is_skipped_whole(shared_slides):
    path = shared_slides / "damaged" / "osp-unreadable.svs"
    with open_slide(path) as reader:
        resolved = resolve(reader, path, kernel=8, stride=8)
        (chunk,) = read_chunks(reader, resolved, on_bad_region="skip")
    assert chunk.skipped.tolist() == [True] * 4
    assert list(chunk.batch_rows(BATCH_SIZE)) == []
