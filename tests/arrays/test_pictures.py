"""Pictures written as OME-Zarr and OME-TIFF, read back by others."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openslide
import pytest
import tifffile
from defusedxml import ElementTree
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import streamwsi as sw
from streamwsi.arrays.picture import halved, level_sizes

zarr = pytest.importorskip("zarr", minversion="3")  # older ones, of Python 3.10, write no NGFF 0.5
BLOCK = 32
SIZES = [(101, 150), (51, 75), (26, 38), (13, 19)]
"""(height, width) of levels; the finest is larger than two blocks, and odd."""
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def picture(channels: int, dtype: str, seed: int = 0) -> np.ndarray:
    """(height, width, channels) of noise; of floats some are NaN."""
    random = np.random.default_rng(seed)
    if dtype == "float32":
        values = random.normal(size=(*SIZES[0], channels)).astype(dtype)
        values[:40, :50] = np.nan
        return values
    return random.integers(0, np.iinfo(dtype).max, (*SIZES[0], channels), dtype, endpoint=True)


def by_definition(values: np.ndarray) -> np.ndarray:
    """The next level, pixel by pixel."""
    height, width, channels = values.shape
    out = np.empty((-(-height // 2), -(-width // 2), channels), values.dtype)
    for row, column in np.ndindex(out.shape[:2]):
        for channel in range(channels):
            there = [float(it) for it in values[2 * row : 2 * row + 2, 2 * column : 2 * column + 2, channel].ravel()]
            there = [it for it in there if not np.isnan(it)]
            mean = sum(there) / len(there) if there else np.nan
            out[row, column, channel] = mean if values.dtype.kind == "f" else int(mean + 0.5)
    return out


def levels_of(values: np.ndarray) -> list[np.ndarray]:
    found = [values]
    while len(found) < len(SIZES):
        found.append(by_definition(found[-1]))
    return found


KINDS = [(3, "uint8"), (1, "uint8"), (5, "uint8"), (3, "uint16"), (2, "float32"), (1, "float32")]


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_a_tiff_holds_each_level_as_tifffile_reads_it(tmp_path, channels, dtype):
    values = picture(channels, dtype)
    names = [f"kind {number}" for number in range(channels)]
    path = sw.write_ome_tiff(tmp_path / "a.ome.tiff", values, mpp=(0.25, 0.5), channels=names, block_px=BLOCK)
    is_rgb = (channels, dtype) == (3, "uint8")
    with tifffile.TiffFile(path) as file:
        (series,) = file.series
        assert file.is_ome and series.axes == ("YXS" if is_rgb else "CYX" if channels > 1 else "YX")
        for number, (level, expected) in enumerate(zip(series.levels, levels_of(values), strict=True)):
            found = level.asarray().reshape((*expected.shape[:2], channels) if is_rgb else (channels, *expected.shape[:2]))
            np.testing.assert_allclose(found if is_rgb else np.moveaxis(found, 0, -1), expected, rtol=1e-6, atol=1e-7)
            for each in level.pages:
                page = each.keyframe
                assert page.is_tiled and (page.tilewidth, page.tilelength) == (BLOCK, BLOCK)
                assert bool(page.is_reduced) == bool(number)
                assert page.resolution == pytest.approx((40_000 / 2**number, 20_000 / 2**number))
        assert len(file.pages) == len(series.levels[0].pages)  # smaller levels are SubIFDs
        pixels = ElementTree.fromstring(file.ome_metadata).find(f".//{OME}Pixels")
    assert {name: pixels.get(name) for name in ("SizeX", "SizeY", "SizeC", "PhysicalSizeX", "PhysicalSizeY")} == {
        "SizeX": "150",
        "SizeY": "101",
        "SizeC": str(channels),
        "PhysicalSizeX": "0.25",
        "PhysicalSizeY": "0.5",
    }
    assert pixels.get("PhysicalSizeXUnit") == pixels.get("PhysicalSizeYUnit") == "µm"
    if not is_rgb:
        assert [channel.get("Name") for channel in pixels.findall(f"{OME}Channel")] == names
    assert sorted(tmp_path.iterdir()) == [path]


def test_openslide_opens_a_tiff_in_colour_with_its_resolution(tmp_path):
    values = picture(3, "uint8")
    path = sw.write_ome_tiff(tmp_path / "a.ome.tiff", values, mpp=(0.25, 0.5), block_px=BLOCK)
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (150, 101)
        assert float(slide.properties["openslide.mpp-x"]) == 0.25 and float(slide.properties["openslide.mpp-y"]) == 0.5
        np.testing.assert_array_equal(np.asarray(slide.read_region((0, 0), 0, (150, 101)))[..., :3], values)
    with sw.open_slide(path) as slide:
        assert slide.info.reader == "tiff" and slide.info.mpp == (0.25, 0.5)
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 150, 101), values)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_a_zarr_holds_each_level_and_says_what_the_specification_asks_for(tmp_path, channels, dtype, version):
    values = picture(channels, dtype)
    names = [f"kind {number}" for number in range(channels)]
    path = sw.write_ome_zarr(tmp_path / "a.zarr", values, mpp=(0.25, 0.5), channels=names, block_px=BLOCK, version=version)
    group = zarr.open_group(str(path), mode="r")
    assert group.metadata.zarr_format == (2 if version == "0.4" else 3)
    said = dict(group.attrs) if version == "0.4" else dict(group.attrs)["ome"]
    (image,) = said["multiscales"]
    assert (image if version == "0.4" else said)["version"] == version
    assert image["axes"] == [
        {"name": "c", "type": "channel"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]
    for number, (dataset, expected) in enumerate(zip(image["datasets"], levels_of(values), strict=True)):
        array = group[dataset["path"]]
        np.testing.assert_allclose(np.moveaxis(array[...], 0, -1), expected, rtol=1e-6, atol=1e-7)
        assert array.dtype == dtype and array.chunks[1:] == tuple(min(BLOCK, side) for side in expected.shape[:2])
        if version == "0.5":
            assert array.metadata.dimension_names == ("c", "y", "x")
        else:
            assert json.loads((path / dataset["path"] / ".zarray").read_text())["dimension_separator"] == "/"
        scale, *others = dataset["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [1.0, 0.5 * 2**number, 0.25 * 2**number]}
        # the centre of the first pixel, which is the mean of those of the finest level that it is made of
        shift = (2**number - 1) / 2
        assert others == ([{"type": "translation", "translation": [0.0, 0.5 * shift, 0.25 * shift]}] if number else [])
    shown = said["omero"]["channels"]
    assert [channel["label"] for channel in shown] == names
    for number, channel in enumerate(shown):
        window, own = channel["window"], values[..., number]
        assert window["min"] <= window["start"] < window["end"] <= window["max"]
        if (channels, dtype) != (3, "uint8"):
            assert (window["start"], window["end"]) == (np.nanmin(own), np.nanmax(own))
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_zarr_in_colour_is_a_slide(tmp_path):
    values = picture(3, "uint8")
    path = sw.write_ome_zarr(tmp_path / "a.zarr", values, mpp=0.25, block_px=BLOCK)
    with sw.open_slide(path) as slide:
        assert slide.info.level_downsamples == (1.0, 2.0, 4.0, 8.0) and slide.info.mpp == (0.25, 0.25)
        for level, expected in enumerate(levels_of(values)):
            np.testing.assert_array_equal(slide.read_region(level, 0, 0, *expected.shape[1::-1]), expected)


def test_a_map_without_channels_has_two_axes_and_without_a_resolution_no_unit(tmp_path):
    values = picture(1, "float32")[..., 0]
    path = sw.write_ome_zarr(tmp_path / "a.zarr", values, block_px=BLOCK)
    group = zarr.open_group(str(path), mode="r")
    assert group["0"].shape == values.shape and np.isnan(group["0"].fill_value)
    assert dict(group.attrs)["multiscales"][0]["axes"] == [{"name": name, "type": "space"} for name in "yx"]
    assert not (path / "0" / "0" / "0").exists()  # all NaN
    with tifffile.TiffFile(sw.write_ome_tiff(tmp_path / "a.tif", values, block_px=BLOCK)) as file:
        assert "PhysicalSize" not in file.ome_metadata and file.series[0].axes == "YX"


# where pictures come from


def written(folder: Path, name: str, source: Any, **options: Any) -> list[np.ndarray]:
    """All levels, from each kind of file, (height, width, channels)."""
    zarr_path = sw.write_ome_zarr(folder / f"{name}.zarr", source() if callable(source) else source, block_px=BLOCK, **options)
    group = zarr.open_group(str(zarr_path), mode="r")
    found = [np.moveaxis(group[str(number)][...], 0, -1) for number in range(len(SIZES))]
    tiff_path = sw.write_ome_tiff(folder / f"{name}.tiff", source() if callable(source) else source, block_px=BLOCK, **options)
    with tifffile.TiffFile(tiff_path) as file:
        for level, expected in zip(file.series[0].levels, found, strict=True):
            there = level.asarray() if level.axes == "YXS" else np.moveaxis(level.asarray(), 0, -1)
            np.testing.assert_array_equal(there, expected)
    return found


def cut(values: np.ndarray) -> Iterator[np.ndarray]:
    for top in range(0, values.shape[0], BLOCK):
        for left in range(0, values.shape[1], BLOCK):
            yield values[top : top + BLOCK, left : left + BLOCK]


@pytest.mark.parametrize(("channels", "dtype"), [(3, "uint8"), (2, "float32")])
def test_arrays_functions_and_iterators_are_written_alike(tmp_path, channels, dtype):
    values = picture(channels, dtype)
    expected = written(tmp_path, "array", values)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["values"] = np.moveaxis(values, -1, 0)
        planes = written(tmp_path, "planes", file["values"], axes="CYX")
    size = {"shape": values.shape, "dtype": dtype}
    function = written(tmp_path, "function", lambda: lambda rows, columns: values[rows, columns], **size)
    iterator = written(tmp_path, "iterator", lambda: cut(values), **size)
    for found in (planes, function, iterator):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other, strict=True)


def test_each_block_is_asked_for_once_in_row_major_order(tmp_path):
    asked: list[tuple[int, int]] = []

    def block(rows: slice, columns: slice) -> np.ndarray:
        asked.append((rows.start, columns.start))
        return np.zeros((rows.stop - rows.start, columns.stop - columns.start, 2), np.uint16)

    for write, name in ((sw.write_ome_zarr, "a.zarr"), (sw.write_ome_tiff, "a.tif")):
        asked.clear()
        write(tmp_path / name, block, shape=(100, 70, 2), dtype="uint16", block_px=BLOCK)
        assert asked == [(top, left) for top in (0, 32, 64, 96) for left in (0, 32, 64)]


@pytest.mark.parametrize("write", [sw.write_ome_zarr, sw.write_ome_tiff], ids=["zarr", "tiff"])
def test_memory_does_not_grow_with_the_picture(tmp_path, write: Callable[..., Path]):
    def block(rows: slice, columns: slice) -> np.ndarray:
        return np.full((rows.stop - rows.start, columns.stop - columns.start), rows.start + columns.start, np.uint16)

    name = "a.zarr" if write is sw.write_ome_zarr else "a.tif"
    write(tmp_path / f"warm {name}", block, shape=(300, 300), dtype="uint16", block_px=256)
    tracemalloc.start()
    try:
        write(tmp_path / name, block, shape=(5000, 4000), dtype="uint16", block_px=256)  # 40 MB
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


# levels


@given(arrays.arrays("uint8", st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 2))))
def test_pixels_of_a_level_are_means_of_what_is_there(values):
    np.testing.assert_array_equal(halved(values), by_definition(values), strict=True)


@given(
    arrays.arrays("float32", st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(1)), elements=st.floats(-9, 9, width=16))
)
def test_nan_is_left_out_of_means(values):
    values[values > 8] = np.nan
    np.testing.assert_allclose(halved(values), by_definition(values), rtol=1e-6)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(16, 512))
def test_levels_follow_until_one_is_small(height, width, smallest):
    sizes = level_sizes(height, width, smallest)
    assert sizes[0] == (height, width) and max(sizes[-1]) <= smallest
    for number, size in enumerate(sizes):
        assert size == (-(-height // 2**number), -(-width // 2**number))
        assert number + 1 == len(sizes) or max(size) > smallest


# what is refused


@pytest.mark.parametrize("write", [sw.write_ome_zarr, sw.write_ome_tiff], ids=["zarr", "tiff"])
def test_what_cannot_be_written_is_refused_and_nothing_is_left(tmp_path, write):
    name = "a.zarr" if write is sw.write_ome_zarr else "a.tiff"
    grey, size = np.zeros((50, 40), np.uint8), {"shape": (50, 40), "dtype": "uint8"}

    def refused(error: type[Exception], message: str, source: Any, path: str = name, **options: Any) -> None:
        with pytest.raises(error, match=message):
            write(tmp_path / path, source, **{"block_px": BLOCK, **options})

    refused(sw.ConfigError, "pixels must be uint8, uint16, float32, got float64", grey.astype(float))
    refused(sw.ConfigError, "block_px must be a multiple of 16, got 100", grey, block_px=100)
    refused(sw.ConfigError, "axes must be one of YX, YXC, CYX, one letter for each of", grey, axes="CYX")
    refused(sw.ConfigError, "2000 channels .* say axes='CYX'", np.zeros((3, 2, 2000), np.uint8))
    refused(sw.ConfigError, "nothing to write", np.zeros((0, 9), np.uint8))
    refused(sw.ConfigError, "leave them out", grey, dtype="uint8")
    refused(sw.ConfigError, "need dtype, and shape", iter([grey]))
    refused(sw.ConfigError, "axes must be YX or YXC, got 'CYX'", iter([grey]), axes="CYX", **size)
    refused(sw.ConfigError, "mpp must be micrometres per pixel, above 0", grey, mpp=(0.5, 0))
    refused(sw.ConfigError, "channels must be 1 names", grey, channels=["a", "b"])
    refused(sw.ConfigError, "channels must be 1 names", grey, channels="a")
    refused(sw.ConfigError, "the name must end in", grey, "a.png")
    refused(sw.OutputError, "there is no folder", grey, f"nowhere/{name}")
    assert list(tmp_path.iterdir()) == []
    refused(sw.ArrayError, "the blocks end after 3 of 4", list(cut(grey))[:3], **size)
    refused(sw.ArrayError, "more than the 4 blocks", [*cut(grey), grey], **size)
    refused(sw.ArrayError, r"row 0, column 32 must be \(32, 8, 1\) uint8, got \(32, 32, 1\)", [grey[:32, :32]] * 4, **size)
    refused(sw.ArrayError, "got .* uint16", lambda rows, columns: grey[rows, columns].astype("uint16"), **size)
    assert not (tmp_path / name).exists()
    write(tmp_path / name, grey, block_px=BLOCK)
    refused(sw.OutputError, "exists; give another name", grey)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_unknown_version_is_refused(tmp_path):
    with pytest.raises(sw.ConfigError, match=r"version must be one of '0\.4', '0\.5', got '0\.6'"):
        sw.write_ome_zarr(tmp_path / "a.zarr", np.zeros((4, 4), np.uint8), version="0.6")
