from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import openslide
import pytest
import tifffile

from streamwsi.chunks import Status
from streamwsi.maps.pyramid import TILE_PX, level_sizes
from streamwsi.maps.render import render
from tests.writing.fabricate import resolved_slide, write_patient

EXTENT = (3000, 1700)


def colour(value: float, low: float, high: float) -> list[int]:
    rgb = matplotlib.colormaps["viridis"]((value - low) / (high - low))[:3]
    return [round(255 * part) for part in rgb]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Windows of 100 px, whose values are their numbers; the slide itself does not exist."""
    slide = resolved_slide(extent=EXTENT, kernel=(100, 100), stride=(100, 100), mpp=(0.5, 0.4))
    status = np.zeros(len(slide.grid()), np.uint8)
    status[40] = Status.SKIPPED
    return write_patient(tmp_path, [slide], [np.arange(510.0)], [status], columns=("größe",))


@pytest.mark.parametrize("width", [None, 1000, 777])
def test_a_pyramid_has_the_slide_s_extent_and_colours_in_every_level(file: Path, tmp_path: Path, width: int | None) -> None:
    picture = render(file, tmp_path / "map.tiff", width_px=width)
    sizes = level_sizes(EXTENT, width or 9999)
    assert sizes[0][0] == (width or EXTENT[0])
    with tifffile.TiffFile(picture) as tiff:
        pages: Any = tiff.pages
        assert [page.shape for page in pages] == [(h, w, 3) for w, h in sizes]
        assert all(page.is_tiled and page.tile == (TILE_PX, TILE_PX) and page.compression == 8 for page in pages)
        assert [bool(page.is_reduced) for page in pages] == [False] + [True] * (len(pages) - 1)
        arrays = [page.asarray() for page in pages]
    with openslide.OpenSlide(picture) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert list(slide.level_dimensions) == sizes
        # the same extent in micrometres, along each axis
        for axis, (name, mpp) in enumerate((("openslide.mpp-x", 0.5), ("openslide.mpp-y", 0.4))):
            assert float(slide.properties[name]) * sizes[0][axis] == pytest.approx(mpp * EXTENT[axis], rel=1e-5)
        read = [np.asarray(slide.read_region((0, 0), number, size).convert("RGB")) for number, size in enumerate(sizes)]
    for array, through in zip(arrays, read, strict=True):
        np.testing.assert_array_equal(array, through)
        height, width_px = array.shape[:2]
        for window in (0, 29, 40, 77, 254, 480, 509):
            row, column = divmod(window, 30)
            x, y = int((column + 0.5) * 100 * width_px / EXTENT[0]), int((row + 0.5) * 100 * height / EXTENT[1])
            assert array[y, x].tolist() == ([255] * 3 if window == 40 else colour(window, 0, 509))


def test_cells_end_where_they_do_on_the_slide(file: Path, tmp_path: Path) -> None:
    array = tifffile.imread(render(file, tmp_path / "map.tif"), key=0)
    assert array.shape == (*EXTENT[::-1], 3)
    changes = np.flatnonzero((np.diff(array[50].astype(int), axis=0) != 0).any(axis=1)) + 1
    assert set(changes) <= set(range(100, 3000, 100))
    assert len(changes) > 10  # neighbours may share one of the 256 colours


def test_what_is_below_the_threshold_is_white(file: Path, tmp_path: Path) -> None:
    array = tifffile.imread(render(file, tmp_path / "map.tif", threshold=300.0, vmin=0.0, width_px=600), key=0)
    assert (array[: 10 * 20] == 255).all()  # rows 0 to 9: windows 0 to 299
    assert array[10 * 20 + 10, 10].tolist() == colour(300, 0, 509)


def test_the_description_says_what_the_colours_mean(file: Path, tmp_path: Path) -> None:
    with tifffile.TiffFile(render(file, tmp_path / "map.tif", threshold=3.0)) as tiff:
        (page, *_) = tiff.pages
        assert "viridis from 3 to 509, white below 3" in page.description  # type: ignore[union-attr]


def test_a_slide_without_resolution_has_a_pyramid_without(tmp_path: Path) -> None:
    file = write_patient(tmp_path, [resolved_slide(mpp=None)], [np.zeros(35)])
    with openslide.OpenSlide(render(file, tmp_path / "map.tif")) as slide:
        assert "openslide.mpp-x" not in slide.properties
        assert slide.dimensions == (100, 80)


def test_levels_of_more_pixels_than_cells_are_means_of_cells(tmp_path: Path) -> None:
    slide = resolved_slide(extent=(2048, 512), kernel=(1, 1), stride=(1, 1), block=(64, 2048))
    values = np.tile([0.0, 1.0], 1024 * 512)  # columns of 0 and 1
    file = write_patient(tmp_path, [slide], [values.astype(np.float32)])
    with tifffile.TiffFile(render(file, tmp_path / "map.tif")) as tiff:
        first, second = (page.asarray() for page in list(tiff.pages)[:2])
    assert first[7, 5].tolist() == colour(1, 0, 1)
    assert (second == colour(0.5, 0, 1)).all()


def test_memory_does_not_follow_the_file(tmp_path: Path) -> None:
    slide = resolved_slide(extent=(40_000, 40_000), kernel=(400, 400), stride=(400, 400), block=(50, 100))
    file = write_patient(tmp_path, [slide], [np.arange(10_000.0)])
    render(file, tmp_path / "small.tif", width_px=600)  # what is imported stays in memory
    tracemalloc.start()
    try:
        picture = render(file, tmp_path / "map.tif", width_px=8192)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    with tifffile.TiffFile(picture) as tiff:
        assert tiff.pages[0].shape == (8192, 8192, 3)
    assert peak_bytes < 8192 * 8192 * 3 / 4
