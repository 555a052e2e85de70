"""Chunks of windows blended to tiles, and tiles to blocks, against sums over whole arrays."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamwsi.arrays.weights import Weights
from streamwsi.blending.blend import Blend, sum_dtype_of
from streamwsi.blending.block import finished_block
from streamwsi.blending.chunk import ChunkSums, Tile
from streamwsi.blending.frame import MapFrame, map_extent, most_overlaps
from streamwsi.chunks import Status
from streamwsi.geometry import BORDERS
from streamwsi.map_options import MapOptions
from streamwsi.resolved import ResolvedSlide
from tests.writing.fabricate import resolved_slide

WEIGHTS: dict[str, Any] = {
    "mean": "mean",
    "gaussian": "gaussian",
    "distance": "distance",
    "own": lambda size: 1.0 + np.arange(size[0] * size[1]).reshape(size) % 5,
}


@st.composite
def slides(draw: st.DrawFn) -> tuple[ResolvedSlide, int]:
    """A slide with any overlap, border and cut into chunks; and how much smaller its map is."""
    reduction = draw(st.sampled_from([1, 1, 2, 3]))
    sides = st.integers(1, 6).map(lambda n: n * reduction)
    # starts of these borders are multiples of the stride
    border = draw(st.sampled_from(BORDERS if reduction == 1 else ("pad", "adaptive", "crop")))
    slide = resolved_slide(
        extent=(draw(st.integers(1, 40)), draw(st.integers(1, 40))),
        kernel=(draw(sides), draw(sides)),
        stride=(draw(sides), draw(sides)),
        border=border,
        block=(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
    )
    return slide, reduction


def images_of(slide: ResolvedSlide, frame: MapFrame, dtype: str, channels: int, seed: int) -> list[np.ndarray]:
    """An image for each window of the plan, (height, width, channels)."""
    random = np.random.default_rng(seed)
    boxes = frame.boxes(slide.plan().windows(np.arange(len(slide.plan()), dtype=np.int64)))
    shapes = [(bottom - top, right - left, channels) for top, left, bottom, right in boxes.tolist()]
    if dtype.startswith("float"):
        return [random.normal(size=shape).astype(dtype) for shape in shapes]
    return [random.integers(0, 200, shape).astype(dtype) for shape in shapes]


def blended(
    slide: ResolvedSlide, frame: MapFrame, blend: Blend, images: list[np.ndarray], status: np.ndarray, dtype: str, fill: float
) -> np.ndarray:
    """The map as the pipeline makes it: chunk by chunk, then block by block."""
    tiles: dict[tuple[int, int], list[tuple[Tile, np.ndarray]]] = {}
    for chunk in range(len(slide.chunks())):
        index = slide.chunks().indices(chunk)
        boxes = frame.boxes(slide.plan().windows(index))
        written = status[index] == Status.WRITTEN
        sums = ChunkSums(frame, blend, boxes)
        for row in np.flatnonzero(written):
            sums.add(boxes[row : row + 1], images[index[row]][None])
        for tile in sums.tiles():
            tiles.setdefault(tile.place, []).append((tile, boxes[written]))
    width, height = frame.extent
    out = np.full((height, width, blend.channels), fill, dtype)
    for place, own in tiles.items():
        top, left, bottom, right = frame.block(place)
        block = finished_block(frame, blend, place, own, np.dtype(dtype), fill)
        assert block is not None
        out[top:bottom, left:right] = block
    return out


def by_definition(
    slide: ResolvedSlide, frame: MapFrame, weights: Any, images: list[np.ndarray], status: np.ndarray, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """(sums, sums of weights) in float64, pixel by pixel of a canvas with room for what lies beyond the slide."""
    width, height = frame.extent
    room = 40
    sums = np.zeros((height + room, width + room, channels))
    total = np.zeros((height + room, width + room, 1))
    boxes = frame.boxes(slide.plan().windows(np.arange(len(images), dtype=np.int64)))
    whole = Weights(weights, (slide.kernel[1] // frame.reduction, slide.kernel[0] // frame.reduction))
    for (top, left, bottom, right), image, state in zip(boxes.tolist(), images, status, strict=True):
        if state == Status.WRITTEN:
            own = whole.of((bottom - top, right - left))[..., None]
            sums[top:bottom, left:right] += own * image
            total[top:bottom, left:right] += own
    return sums[:height, :width], total[:height, :width]


@given(
    slides(),
    st.sampled_from(sorted(WEIGHTS)),
    st.sampled_from(["uint8", "int16", "bool", "float32", "float64"]),
    st.integers(1, 3),
    st.integers(0, 1 << 16),
    st.floats(0, 1),
)
def test_blocks_are_the_weighted_means_of_the_windows(
    drawn: tuple[ResolvedSlide, int], weights: str, dtype: str, channels: int, seed: int, holes: float
) -> None:
    slide, reduction = drawn
    frame = MapFrame(map_extent(slide, reduction), reduction, 8)
    images = images_of(slide, frame, dtype, channels, seed)
    status = np.where(np.random.default_rng(seed).random(len(images)) < holes, Status.NONE, Status.WRITTEN).astype(np.uint8)
    size = (slide.kernel[1] // reduction, slide.kernel[0] // reduction)
    blend = Blend(np.dtype(dtype), channels, Weights(WEIGHTS[weights], size), most_overlaps(slide))
    sums, total = by_definition(slide, frame, WEIGHTS[weights], images, status, channels)
    with np.errstate(invalid="ignore"):
        expected = np.where(total > 0, sums / total, np.nan)
    np.testing.assert_allclose(blended(slide, frame, blend, images, status, "float32", np.nan), expected, rtol=2e-6, atol=2e-6)
    if weights == "mean" and dtype in ("uint8", "bool"):
        exact = np.where(total > 0, np.rint(np.nan_to_num(expected)), 7)
        np.testing.assert_array_equal(blended(slide, frame, blend, images, status, "uint8", 7), exact)


@given(slides(), st.integers(1, 5), st.integers(1, 5), st.integers(0, 1 << 16))
def test_sums_of_integers_do_not_depend_on_the_chunks(
    drawn: tuple[ResolvedSlide, int], down: int, across: int, seed: int
) -> None:
    slide, reduction = drawn
    other = msgspec.structs.replace(slide, block=(down, across))
    frame = MapFrame(map_extent(slide, reduction), reduction, 16)
    images = images_of(slide, frame, "uint8", 2, seed)
    status = np.zeros(len(images), np.uint8)
    size = (slide.kernel[1] // reduction, slide.kernel[0] // reduction)
    blend = Blend(np.dtype("uint8"), 2, Weights("mean", size), most_overlaps(slide))
    np.testing.assert_array_equal(
        blended(slide, frame, blend, images, status, "float32", np.nan),
        blended(other, frame, blend, images, status, "float32", np.nan),
    )


@given(slides())
def test_no_place_is_held_by_more_windows_than_are_reckoned_with(drawn: tuple[ResolvedSlide, int]) -> None:
    slide, _ = drawn
    windows = slide.plan().windows(np.arange(len(slide.plan()), dtype=np.int64))
    held = np.zeros((80, 80), int)
    for (x, y), (width, height) in zip(windows.start.tolist(), windows.size.tolist(), strict=True):
        held[y : y + height, x : x + width] += 1
    assert held.max(initial=0) <= most_overlaps(slide)


def test_a_constant_comes_back_as_it_is_however_many_windows_overlap() -> None:
    slide = resolved_slide((40, 40), (32, 32), (1, 1), "edge", (9, 9))
    frame = MapFrame(map_extent(slide, 1), 1, 16)
    images = [np.full((32, 32, 1), 255, np.uint8)] * len(slide.plan())
    blend = Blend(np.dtype("uint8"), 1, Weights("mean", (32, 32)), most_overlaps(slide))
    found = blended(slide, frame, blend, images, np.zeros(len(images), np.uint8), "uint8", 0)
    assert (found == 255).all() and most_overlaps(slide) == 81


def test_a_tile_is_no_larger_than_what_its_chunk_touches() -> None:
    slide = resolved_slide((100, 80), (16, 16), (8, 8), "pad", (2, 2))
    frame = MapFrame.of(slide, MapOptions(output="hdf5", weights="mean", block_px=64))
    blend = Blend(np.dtype("float32"), 1, Weights("mean", (16, 16)), most_overlaps(slide))
    boxes = frame.boxes(slide.plan().windows(slide.chunks().indices(len(slide.chunks()) - 1)))
    sums = ChunkSums(frame, blend, boxes)
    sums.add(boxes[:1], np.zeros((1, 16, 16, 1), np.float32))
    (tile,) = sums.tiles()
    assert tile.place == (1, 1) and tile.box == (64, 80, 80, 100) and tile.sums is None


@pytest.mark.parametrize(
    ("dtype", "alike", "overlaps", "expected"),
    [
        ("uint8", True, 4, "int32"),
        ("uint16", True, 1 << 20, "int64"),
        ("uint8", False, 4, "float32"),
        ("float32", True, 8, "float32"),
        ("float32", True, 9, "float64"),
        ("float64", False, 1, "float64"),
    ],
)
def test_sums_have_a_type_in_which_they_are_right(dtype: str, alike: bool, overlaps: int, expected: str) -> None:
    assert sum_dtype_of(np.dtype(dtype), alike, overlaps) == np.dtype(expected)
