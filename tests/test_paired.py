"""Where windows lie in images that are paired with their slides, by the definition in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamwsi.chunks import Batch
from streamwsi.errors import NotPairedError
from streamwsi.memory import empty_pixels
from streamwsi.paired import PairedImage, PairedLayout, blank_pixels, n_bytes_together

SCALES = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.7, 16.0, 33.125])


def image(resolution: str = "own", scale: float = 4.0, axes: str = "YX", rest: int = 2, **options: object) -> PairedImage:
    sizes = {"Y": 90, "X": 70}
    return PairedImage(
        name="labels",
        dtype="<u2",
        axes=axes,
        shape=tuple(sizes.get(axis, rest) for axis in axes),
        scale=(scale, scale),
        level=0,
        resolution=resolution,
        fingerprint="0",
        **{"offset": (0.0, 0.0), **options},
    )


def layout(
    of: PairedImage, corners: Sequence[tuple[int, int]], size: tuple[int, int], downsample: float = 1.0, packed: bool = True
) -> PairedLayout:
    return PairedLayout.of(of, np.array(corners), np.array([size] * len(corners)), downsample, packed)


@given(
    corner=st.tuples(st.integers(-300, 3000), st.integers(-300, 3000)),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    downsample=st.sampled_from([1.0, 2.0, 2.00034, 4.0107]),
    scale=SCALES,
    offset=st.sampled_from([0.0, 10.0, -7.25]),
)
def test_at_its_own_scale_the_centre_is_within_half_a_pixel(
    corner: tuple[int, int], size: tuple[int, int], downsample: float, scale: float, offset: float
) -> None:
    found = layout(image(scale=scale, offset=(offset, offset)), [corner], size, downsample)
    for axis in (0, 1):
        centre = (corner[axis] + Fraction(size[axis], 2)) * Fraction(downsample)
        own = (int(found.starts[0, axis]) + Fraction(int(found.sizes[0, axis]), 2)) * Fraction(scale) + Fraction(offset)
        assert abs(own - centre) <= Fraction(scale) * Fraction(500001, 1000000)
        covered = size[axis] * downsample / scale
        assert abs(int(found.sizes[0, axis]) - max(covered, 1)) <= 0.5000001


@given(
    corner=st.tuples(st.integers(-300, 3000), st.integers(-300, 3000)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    downsample=st.sampled_from([1.0, 2.00034, 4.0107]),
    scale=SCALES,
)
def test_at_the_windows_scale_each_pixel_is_the_one_that_holds_its_centre(
    corner: tuple[int, int], size: tuple[int, int], downsample: float, scale: float
) -> None:
    found = layout(image("window", scale), [corner], size, downsample)
    assert found.sizes.tolist() == [list(size)] and found.starts.tolist() == [list(corner)]
    for along, first in zip(found.columns_and_rows(*corner, *size), corner, strict=True):
        for number, place in enumerate(along.tolist()):
            centre = (first + number + 0.5) * downsample
            assert place * scale - 1e-6 <= centre <= (place + 1) * scale + 1e-6


def test_whole_ratios_tile_the_image_without_gap_or_overlap() -> None:
    corners = [(x, y) for y in range(0, 90, 16) for x in range(0, 70, 16)]
    found = layout(image(scale=4.0), corners, (16, 16))
    covered = np.zeros((24, 20), int)
    for (x, y), (width, height) in zip(found.starts.tolist(), found.sizes.tolist(), strict=True):
        covered[y : y + height, x : x + width] += 1
    assert (covered == 1).all()


@given(
    axes=st.sampled_from(["YX", "YXC", "CYX", "ZYXC", "XY", "YCX"]),
    resolution=st.sampled_from(["own", "window"]),
    packed=st.booleans(),
    data=st.data(),
)
def test_what_goes_with_a_window_is_cut_where_it_lies(axes: str, resolution: str, packed: bool, data: st.DataObject) -> None:
    """A region and windows packed one by one hold the same; in memory of a chunk's as in their own."""
    corners = data.draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=5, unique=True))
    found = layout(image(resolution, 2.0, axes), corners, (9, 7), packed=packed)
    size = n_bytes_together(13, {"labels": found})
    memory = np.zeros(size, np.uint8)
    pixels = blank_pixels({"labels": found}, 13, memory)["labels"]
    assert pixels.values.shape == found.shape and found.n_bytes == pixels.values.nbytes
    assert np.shares_memory(pixels.values, memory) and not memory[:13].any()
    for row in range(len(corners)):
        width, height = found.sizes[row].tolist()
        target = np.moveaxis(pixels.of(row), (axes.index("Y"), axes.index("X")), (0, 1))
        columns, rows = found.columns_and_rows(*found.starts[row].tolist(), width, height)
        target[...] = (1000 * rows[:, None] + columns).reshape(height, width, *[1] * (len(axes) - 2)).astype(np.uint16)
    rows_of = np.arange(len(corners))
    stacked = pixels.stack(rows_of)
    assert stacked.flags.c_contiguous and stacked.shape == (len(corners), *found.image.shape_of(*found.sizes[0].tolist()))
    for row in range(len(corners)):
        np.testing.assert_array_equal(stacked[row], pixels.of(row))
        width, height = found.sizes[row].tolist()
        columns, rows = found.columns_and_rows(*found.starts[row].tolist(), width, height)
        plane = np.moveaxis(stacked[row], (axes.index("Y"), axes.index("X")), (0, 1))
        expected = (1000 * rows[:, None] + columns).reshape(height, width, *[1] * (len(axes) - 2))
        np.testing.assert_array_equal(plane, np.broadcast_to(expected, plane.shape))


def test_several_images_share_a_block_of_memory_and_none_lies_askew() -> None:
    layouts = {name: layout(image(axes="YXC", rest=3), [(0, 0), (8, 8)], (8, 8)) for name in ("labels", "mask")}
    memory = empty_pixels((n_bytes_together(7, layouts),))  # a slot begins like this
    pixels = blank_pixels(layouts, 7, memory)
    for number, each in enumerate(pixels.values()):
        each.values[...] = number
        assert each.values.ctypes.data % 2 == 0 and each.values.ctypes.data % 64 == 0 and np.shares_memory(each.values, memory)
    assert [int(each.values.max()) for each in pixels.values()] == [0, 1]


def test_a_batch_says_what_it_was_not_asked_for() -> None:
    batch = Batch(np.zeros((1, 2, 2, 3), np.uint8), None, None, None, paired={"labels": np.ones((1, 2, 2))})  # type: ignore[arg-type]
    assert batch.labels.sum() == 4
    with pytest.raises(NotPairedError, match=r"no image called 'mask' is read with the slides: give the loader paired="):
        _ = batch.mask
    assert not hasattr(batch, "mask") and hasattr(batch, "labels")
