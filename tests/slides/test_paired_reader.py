"""Images that are paired with slides, from every kind of file: the values that are in it, and nothing read twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import psutil
import pytest
import tifffile
from PIL import Image

from streamwsi.errors import RegionError, SlideError
from streamwsi.paired import PairedImage, PairedLayout, PairedPixels, blank_pixels
from streamwsi.slides.paired import PairedReader
from streamwsi.slides.tile_cache import TileCache
from streamwsi.slides.value_level import WantedAxes
from tests.slides.zarr_files import write_array, write_image

Values = npt.NDArray[Any]


def values(*shape: int, dtype: Any = np.uint16) -> Values:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)


def opened(source: Any, axes: str | None = None, cache: TileCache | None = None, **options: Any) -> PairedReader:
    source_axes = options.pop("source_axes", None)
    outside = options.pop("outside", 0)
    return PairedReader(source, source_axes, WantedAxes(axes, options), outside, cache or TileCache(1 << 24))


def pixels_at(
    reader: PairedReader, corners: list[tuple[int, int]], size: tuple[int, int], packed: bool = True, level: int = 0, **how: Any
) -> PairedPixels:
    """What is read of windows of the image itself, or of a slide that it is paired with, `how`."""
    here = reader.levels[level]
    image = PairedImage(
        name="labels",
        dtype=here.dtype.str,
        axes=here.axes,
        shape=here.shape,
        offset=(0.0, 0.0),
        level=level,
        fingerprint="0",
        **{"scale": (1.0, 1.0), "resolution": "own", **how},
    )
    layout = PairedLayout.of(image, np.array(corners), np.array([size] * len(corners)), 1.0, packed)
    pixels = blank_pixels({"labels": layout})["labels"]
    reader.read(pixels)
    return pixels


def _npy(path: Path, array: Values) -> str:
    np.save(path / "a.npy", array)
    return str(path / "a.npy")


def _hdf5(chunks: Any) -> Callable[[Path, Values], str]:
    def write(path: Path, array: Values) -> str:
        with h5py.File(path / "a.h5", "w") as file:
            file.create_dataset("x", data=array, chunks=chunks)
            file.create_dataset("y", data=array[:1])
        return f"{path / 'a.h5'}::x"

    return write


def _zarr(version: int) -> Callable[[Path, Values], str]:
    def write(path: Path, array: Values) -> str:
        write_array(path / "a.zarr", array, (32, 48), version)
        return str(path / "a.zarr")

    return write


def _png(path: Path, array: Values) -> str:
    Image.fromarray(array).save(path / "a.png")
    return str(path / "a.png")


def _tiff(path: Path, array: Values) -> str:
    tifffile.imwrite(path / "a.tif", array, tile=(64, 32), compression="zlib")
    return str(path / "a.tif")


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "region"])
@pytest.mark.parametrize(
    "write",
    [_npy, _hdf5(None), _hdf5((20, 30)), _zarr(2), _zarr(3), _png, _tiff],
    ids=["npy", "hdf5", "hdf5 chunks", "zarr 2", "zarr 3", "png", "tiff"],
)
def test_the_values_of_a_file_come_as_they_are(tmp_path: Path, write: Callable[[Path, Values], str], packed: bool) -> None:
    array = values(150, 130)
    canvas = np.full((250, 230), 7, np.uint16)
    canvas[50:200, 50:180] = array
    corners = [(-13, -50), (0, 0), (31, 47), (100, 120), (129, 149)]
    pixels = pixels_at(opened(write(tmp_path, array), outside=7), corners, (40, 50), packed)
    for row, (x, y) in enumerate(corners):
        found = pixels.of(row)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, canvas[50 + y : 100 + y, 50 + x : 90 + x])


@pytest.mark.parametrize(
    ("source_axes", "axes", "at", "expected"),
    [
        ("TCZYX", "YXC", {"T": 1, "Z": 2}, lambda a: a[1, :, 2].transpose(1, 2, 0)),
        ("TCZYX", "CYX", {"T": 1, "Z": 2}, lambda a: a[1, :, 2]),
        ("TCZYX", None, {"T": 0}, lambda a: a[0]),
        ("TCZYX", "XYCZ", {"T": 0}, lambda a: a[0].transpose(3, 2, 0, 1)),
        ("TCZYX", "ZYX", {"T": 1, "C": 0}, lambda a: a[1, 0]),
        ("TCZYX", "YXC", {"T": 0, "Z": 3, "C": slice(1, 3)}, lambda a: a[0, 1:3, 3].transpose(1, 2, 0)),
        ("ZTCYX", "YXT", {"Z": 0, "C": 0}, lambda a: a[0, :, 0].transpose(1, 2, 0)),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
@pytest.mark.parametrize("stored", ["numpy", "zarr"])
def test_axes_are_named_chosen_and_put_in_order(
    tmp_path: Path, source_axes: str, axes: str | None, at: dict[str, Any], expected: Callable[[Values], Values], stored: str
) -> None:
    array = values(2, 3, 4, 40, 50)
    source: Any = array
    if stored == "zarr":
        write_array(tmp_path / "a.zarr", array, (1, 2, 3, 16, 16))
        source = tmp_path / "a.zarr"
    reader = opened(source, axes, source_axes=source_axes, **at)
    pixels = pixels_at(reader, [(3, 5), (20, 11)], (17, 19))
    whole = expected(array)
    y, x = (reader.levels[0].axes.index(axis) for axis in "YX")
    for row, (left, top) in enumerate([(3, 5), (20, 11)]):
        where = [slice(None)] * whole.ndim
        where[y], where[x] = slice(top, top + 19), slice(left, left + 17)
        np.testing.assert_array_equal(pixels.of(row), whole[tuple(where)])


def test_values_have_the_byte_order_of_the_machine(tmp_path: Path) -> None:
    array = values(40, 50).astype(">u2")
    for source in (array, write_array(tmp_path / "a.zarr", array, (16, 16))):
        for packed in (True, False):
            found = pixels_at(opened(source), [(3, 5), (9, 9)], (17, 19), packed)
            assert found.of(0).dtype == np.dtype(np.uint16).newbyteorder("=") and found.of(0).dtype.isnative
            np.testing.assert_array_equal(found.of(1), array[9:28, 9:26])


def test_files_are_closed_with_the_reader(tmp_path: Path) -> None:
    path = _tiff(tmp_path, values(150, 130))
    before = psutil.Process().num_fds()
    for _ in range(20):
        reader = opened(path)
        pixels_at(reader, [(0, 0)], (16, 16))
        reader.close()
    assert psutil.Process().num_fds() <= before + 1
    with pytest.raises(SlideError, match="choosing along 'T'"):
        opened(path, T=0)
    assert psutil.Process().num_fds() <= before + 1


def test_an_axis_that_is_not_there_has_one_place_and_a_part_of_the_plane_is_an_image() -> None:
    array = values(30, 40)
    reader = opened(array, "YXC", X=slice(5, 25), Y=slice(10, 30), outside=3)
    assert reader.levels[0].shape == (20, 20, 1)
    found = pixels_at(reader, [(18, 0)], (4, 4)).of(0)
    np.testing.assert_array_equal(found[:, :2, 0], array[10:14, 23:25])
    assert (found[:, 2:] == 3).all()


def test_each_chunk_is_read_once_for_all_windows_and_kept_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_array(tmp_path / "a.zarr", values(512, 512), (128, 128))
    reader = opened(tmp_path / "a.zarr", cache=TileCache(1 << 24))
    read: list[Any] = []
    plain = type(reader.levels[0]).read
    monkeypatch.setattr(type(reader.levels[0]), "read", lambda self, place: read.append(place) or plain(self, place))
    for packed in (True, False):
        pixels_at(reader, [(x, y) for y in range(0, 256, 32) for x in range(0, 512, 32)], (64, 64), packed)
    assert len(read) == len(set(read)) == 3 * 4


def test_a_pyramid_has_levels(tmp_path: Path) -> None:
    fine, coarse = values(200, 160), values(100, 80)
    write_image(tmp_path / "p.zarr", [fine, coarse], "YX", (64, 64), [(1.0, 1.0), (2.0, 2.0)])
    tifffile.imwrite(tmp_path / "p.tif", fine, tile=(64, 64))  # and a pyramid in SubIFDs
    with tifffile.TiffWriter(tmp_path / "p.ome.tif", ome=True) as file:
        file.write(fine, tile=(64, 64), subifds=1)
        file.write(coarse, tile=(64, 64), subfiletype=1)
    for name in ("p.zarr", "p.ome.tif"):
        reader = opened(tmp_path / name)
        assert reader.downsamples == (1.0, 2.0)
        np.testing.assert_array_equal(pixels_at(reader, [(7, 9)], (20, 20), level=1).of(0), coarse[9:29, 7:27])


@pytest.mark.parametrize("scale", [0.5, 1.7, 3.0, 20.0])
def test_at_a_windows_scale_labels_stay_labels(tmp_path: Path, scale: float) -> None:
    """Nearest neighbour, over storage that is cut into chunks; finer, coarser and far coarser than the windows."""
    array = values(150, 130)
    write_array(tmp_path / "a.zarr", array, (32, 48))
    pixels = pixels_at(opened(tmp_path / "a.zarr"), [(3, 4), (40, 30)], (50, 45), scale=(scale, scale), resolution="window")
    for row, (x, y) in enumerate([(3, 4), (40, 30)]):
        rows, columns = (np.floor((np.arange(size) + first + 0.5) / scale).astype(int) for first, size in ((y, 45), (x, 50)))
        inside = (rows[:, None] < 150) & (columns < 130)
        expected = np.where(inside, array[np.minimum(rows, 149)[:, None], np.minimum(columns, 129)], 0)
        np.testing.assert_array_equal(pixels.of(row), expected)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 4, 40, 50), {}, "which axis is which is not known"),
        (
            (4, 40, 50),
            {"source_axes": "ZYX", "axes": "YX"},
            r"has 4 places along 'Z': choose one, as by at=\{'Z': 0\}",
        ),
        ((4, 40, 50), {"source_axes": "ZYX", "Z": 4}, "has no Z=4: it has 4"),
        ((4, 40, 50), {"source_axes": "ZYX", "axes": "ZYX", "Z": 1}, "one place was chosen, 1, and axes=ZYX wants it whole"),
        ((40, 50), {"T": 0}, "there is no choosing along 'T'; its axes are YX"),
        ((40, 50), {"X": slice(50, 60)}, "is nothing, or not one piece, of the 50 along 'X'"),
        ((40, 50), {"source_axes": "ZYX"}, r"axes ZYX are 3, but the array has 2"),
        ((0, 50), {}, "is empty"),
    ],
)
def test_what_is_not_clear_is_refused(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(SlideError, match=message):
        opened(np.zeros(shape, np.uint8), **options)


def test_files_that_are_missing_or_damaged_say_so(tmp_path: Path) -> None:
    for name in ("a.npy", "a.png", "a.zarr", "a.tif"):
        with pytest.raises(SlideError, match=rf"{name} does not exist"):
            opened(tmp_path / name)
        (tmp_path / name).write_bytes(b"no picture at all")
        with pytest.raises(SlideError, match=rf"{name} cannot be opened"):
            opened(tmp_path / name)
    write_array(tmp_path / "b.zarr", values(256, 256), (128, 128))
    (tmp_path / "b.zarr" / "c" / "1" / "1").write_bytes(b"damaged")
    reader = opened(tmp_path / "b.zarr")
    assert pixels_at(reader, [(100, 100)], (16, 16)).of(0).shape == (16, 16)
    with pytest.raises(RegionError, match=r"b.zarr cannot be read at \(128, 128\) \(its own pixels\), 128 x 128 px"):
        pixels_at(reader, [(120, 120)], (16, 16))
