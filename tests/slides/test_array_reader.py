"""Arrays as slides: the same pixels as the slide that they are copies of; what says nothing is not guessed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import openslide
import pytest
import zarr

from streamwsi.errors import RegionError, SlideError
from streamwsi.slides import SlideReader, open_slide
from streamwsi.slides.array import ArrayReader
from tests.helpers import BAD_TILE, BUNDLED, RGB, UNDAMAGED, WHITE, noise_levels
from tests.slides.reader_contract import MAUVE, ReaderContract, cut, some_regions
from tests.slides.zarr_files import multiscales, planes, write_array, write_group, write_image

TILE = 240


@pytest.fixture(scope="session")
def zarr_copies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, RGB], Path]:
    """Makes a slide's copy as OME-Zarr, once; of the damaged slide one that is damaged in the same place."""
    folder = tmp_path_factory.mktemp("copies")
    made: dict[tuple[Path, int, RGB], Path] = {}

    def copy(path: Path, background: RGB) -> Path:
        background = background if path.name == "sparse.tiff" else WHITE  # the others have data everywhere
        key = path, path.stat().st_mtime_ns, background
        if key not in made:
            damaged = path.name == Path(BAD_TILE[0]).name
            made[key] = folder / str(len(made)) / f"{path.name}.zarr"
            source = BUNDLED if damaged else path
            with open_slide(source, background=background) as slide:  # another reader: exact where it decodes tiles
                levels = [
                    planes(slide.read_region(level, 0, 0, *extent)) for level, extent in enumerate(slide.info.level_dimensions)
                ]
            write_image(made[key], levels, "CYX", (3, TILE, TILE))
            if damaged:
                x, y, _, _ = BAD_TILE[1]
                (made[key] / "0" / "c" / "0" / str(y // TILE) / str(x // TILE)).write_bytes(b"not what zstd makes")
        return made[key]

    return copy


class TestArrayReader(ReaderContract):
    slides = tuple(name for name in UNDAMAGED if "yb10kx5k" not in name)  # half of all pixels, which tell nothing new

    @pytest.fixture(autouse=True)
    def _copies(self, zarr_copies: Callable[[Path, RGB], Path]) -> None:
        self.copy = zarr_copies

    def open_reader(self, path: Path, background: RGB = WHITE) -> SlideReader:
        is_slide = os.path.isfile(path) and openslide.OpenSlide.detect_format(path) is not None
        return open_slide(self.copy(path, background) if is_slide else path, "array", background)

    def test_it_says_what_the_file_says(self, tmp_path):
        levels = noise_levels([(301, 203), (151, 102)])
        path = write_image(tmp_path / "a.zarr", list(map(planes, levels)), "CYX", (3, 128, 256), [(1, 0.5, 0.25), (1, 1, 0.5)])
        with open_slide(path) as reader:
            info = reader.info
        assert info.level_dimensions == ((301, 203), (151, 102))
        assert info.level_downsamples == (1.0, 2.0)
        assert info.mpp == (0.25, 0.5)
        assert info.tile_sizes == ((256, 128), (256, 128))
        assert (info.power, info.vendor, info.associated_images, info.reader) == (None, "ome-zarr", (), "array")

    def test_a_slide_of_which_nothing_can_be_read_opens_and_fails_each_read(self, tmp_path):
        path = write_image(tmp_path / "bad.zarr", [planes(noise_levels([(60, 40)])[0])], "CYX", (3, 64, 64))
        (path / "0" / "c" / "0" / "0" / "0").write_bytes(b"")
        with self.open_reader(path) as reader:
            for _ in range(2):
                with pytest.raises(RegionError, match=r"bad\.zarr: level 0 cannot be read at \(0, 0\)"):
                    reader.read_region(0, 0, 0, 8, 8)
            with pytest.raises(RegionError, match=r"bad\.zarr"):
                reader.thumbnail(16)

    @pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
    @pytest.mark.parametrize("content", [b"", b"{", b'{"zarr_format": 3, "node_type": "array"}'], ids=["empty", "cut", "wrong"])
    def test_a_damaged_slide_does_not_open(self, tmp_path, name, content):
        path = write_image(tmp_path / "bad.zarr", [planes(noise_levels([(60, 40)])[0])], "CYX", (3, 64, 64))
        (path / name).write_bytes(content)
        with pytest.raises(SlideError, match=r"bad\.zarr"):
            self.open_reader(path)


# one picture in every kind of file


def in_every_kind(folder: Path, pixels: np.ndarray) -> dict[str, Path]:
    """The same picture, (height, width, 3), in files of every kind."""
    np.save(folder / "c.npy", pixels)
    np.save(folder / "f.npy", np.asfortranarray(planes(pixels)))
    with h5py.File(folder / "h.h5", "w") as file:
        file.create_dataset("deep/chunked", data=pixels, chunks=(50, 64, 3), compression="gzip")
        file.create_dataset("whole", data=planes(pixels))
    write_array(folder / "two.zarr", pixels, (100, 64, 3), version=2)
    write_array(folder / "three.zarr", planes(pixels), (1, 100, 64))
    write_array(folder / "sharded.zarr", planes(pixels), (3, 32, 32), shards=(3, 128, 128))
    write_image(folder / "four.zarr", [planes(pixels)], "CYX", (3, 77, 33), version="0.4")
    volume = np.stack([255 - pixels, pixels, 255 - pixels])
    write_array(folder / "volume.zarr", volume, (2, 50, 50, 3))
    many = np.moveaxis(volume, -1, 0)[None]
    write_image(folder / "many.zarr", [many], "TCZYX", (1, 3, 2, 64, 64))
    write_group(folder / "series.zarr", {"bioformats2raw.layout": 3}, "0.4")
    write_image(folder / "series.zarr" / "0", [planes(pixels)], "CYX", (3, 64, 64), version="0.4")
    return {
        "npy": folder / "c.npy",
        "npy, planes": folder / "f.npy",
        "hdf5": Path(f"{folder}/h.h5::deep/chunked"),
        "hdf5, not chunked": Path(f"{folder}/h.h5::whole"),
        "zarr 2": folder / "two.zarr",
        "zarr 3": folder / "three.zarr",
        "zarr in shards": folder / "sharded.zarr",
        "ome-zarr 0.4": folder / "four.zarr",
        "a level of ome-zarr": folder / "four.zarr" / "0",
        "bioformats2raw": folder / "series.zarr",
        "a plane": Path(f"{folder}/volume.zarr::axes=ZYXC::z=1"),
        "a plane of ome-zarr": Path(f"{folder}/many.zarr::z=1"),
    }


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], np.ndarray]:
    pixels = noise_levels([(233, 175)], seed=3)[0]
    return in_every_kind(tmp_path_factory.mktemp("kinds"), pixels), pixels


KINDS = [
    *("npy", "npy, planes", "hdf5", "hdf5, not chunked", "zarr 2", "zarr 3", "zarr in shards", "ome-zarr 0.4"),
    *("a level of ome-zarr", "bioformats2raw", "a plane", "a plane of ome-zarr"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_the_arrays_in_every_kind_of_file(kinds, kind):
    paths, pixels = kinds
    with open_slide(paths[kind], background=MAUVE) as reader:
        assert reader.info.reader == "array" and reader.info.dimensions == (233, 175)
        for region in some_regions((233, 175), 20, seed=0):
            np.testing.assert_array_equal(reader.read_region(0, *region), cut(pixels, region, MAUVE), strict=True)


def test_every_kind_is_tested(kinds):
    assert sorted(kinds[0]) == sorted(KINDS)


def test_tiles_are_the_chunks_of_the_storage_several_where_they_are_small(kinds):
    paths, _ = kinds
    found = {}
    for kind in KINDS:
        with open_slide(paths[kind]) as reader:
            found[kind] = reader.info.tile_sizes[0]
    assert found["npy"] is None and found["hdf5, not chunked"] is None
    assert found["zarr 2"] == (128, 200)
    assert found["zarr 3"] == (128, 200)
    assert found["zarr in shards"] == (128, 128)
    assert found["ome-zarr 0.4"] == (132, 154)


def test_grey_is_the_same_in_all_three_channels(tmp_path):
    grey = noise_levels([(90, 70)])[0][..., 0]
    np.save(tmp_path / "grey.npy", grey)
    np.save(tmp_path / "one.npy", grey[None])
    np.save(tmp_path / "four.npy", np.stack([255 - grey, grey, grey // 2, grey]))
    for name in ("grey.npy", "one.npy", "four.npy::axes=CYX::c=1"):
        with open_slide(tmp_path / name) as reader:
            np.testing.assert_array_equal(
                reader.read_region(0, 0, 0, 90, 70), np.repeat(grey[..., None], 3, axis=2), strict=True
            )


def test_what_was_never_written_holds_the_fill_value(tmp_path):
    array = zarr.create_array(
        store=str(tmp_path / "sparse.zarr"), shape=(100, 100, 3), chunks=(50, 50, 3), dtype="u1", fill_value=7
    )
    array[:50, :50] = 9
    with open_slide(tmp_path / "sparse.zarr", background=MAUVE) as reader:
        pixels = reader.read_region(0, 0, 0, 101, 100)
    assert np.all(pixels[:50, :50] == 9) and np.all(pixels[50:, :100] == 7) and np.all(pixels[:, 100] == MAUVE)


def test_chunks_are_read_once_for_all_windows_and_kept_where_others_need_them(tmp_path):
    path = write_image(tmp_path / "a.zarr", [planes(noise_levels([(512, 512)])[0])], "CYX", (3, 128, 128))
    with open_slide(path) as reader:
        parts = [(x, y, np.empty((128, 128, 3), np.uint8)) for y in range(0, 385, 64) for x in range(0, 385, 64)]
        reader.read_parts(0, parts, own=(0, 0, 600, 600))
        assert reader.tiles_read().decoded == 16
        for y, own in ((128, (0, 0, 600, 256)), (256, (0, 384, 600, 600))):  # the row in the middle is of both
            reader.read_parts(0, [(0, y, np.empty((256, 512, 3), np.uint8))], own)
        assert reader.tiles_read().decoded == 16 + 4 + 4 + 4
        assert np.unpackbits(np.frombuffer(reader.tiles_read().seen, np.uint8)).sum() == 16
    with open_slide(tmp_path / "a.zarr" / "0") as reader:
        assert reader.tiles_read().decoded == 0


def test_an_array_without_chunks_does_not_count_them(kinds):
    with open_slide(kinds[0]["npy"]) as reader:
        assert reader.tiles_read() is None


# what the file says of itself


@pytest.mark.parametrize(
    ("unit", "scale", "mpp"),
    [
        ("micrometer", 0.5, 0.5),
        ("nanometer", 250, 0.25),
        ("millimeter", 0.001, 1.0),
        ("um", 0.3, 0.3),
        ("second", 0.5, None),
        (None, 0.5, None),
        ("micrometer", 0, None),
    ],
)
def test_the_resolution_is_in_micrometres_where_the_unit_is_a_length(tmp_path, unit, scale, mpp):
    path = write_image(tmp_path / "a.zarr", [noise_levels([(8, 8)])[0][..., 0]], "YX", (8, 8), [(scale, scale)], unit)
    with open_slide(path) as reader:
        assert reader.info.mpp == (None if mpp is None else pytest.approx((mpp, mpp)))


def test_a_scale_of_the_whole_image_counts_too(tmp_path):
    levels = [each[..., 0] for each in noise_levels([(64, 64), (32, 32)])]
    path = write_image(tmp_path / "a.zarr", levels, "YX", (64, 64))
    said = multiscales("YX", [(1, 1), (2, 2)])
    said["ome"]["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [0.5, 0.25]}]
    with open_slide(write_group(path, said)) as reader:
        assert reader.info.mpp == (0.25, 0.5) and reader.info.level_downsamples == (1.0, 2.0)


@pytest.mark.parametrize("scales", [[(1, 1), (1, 1)], [(1, 1), (8, 8)]], ids=["all alike", "wrong"])
def test_where_the_scales_do_not_fit_the_sizes_the_sizes_count(tmp_path, scales):
    levels = [each[..., 0] for each in noise_levels([(100, 80), (25, 20)])]
    with open_slide(write_image(tmp_path / "a.zarr", levels, "YX", (64, 64), scales)) as reader:
        assert reader.info.level_downsamples == (1.0, 4.0) and reader.info.mpp == (1.0, 1.0)


def test_a_level_with_fewer_planes_shows_the_one_that_lies_there(tmp_path):
    levels = [np.arange(8, dtype=np.uint8)[:, None, None] * np.ones((1, 32, 32), np.uint8), np.zeros((4, 16, 16), np.uint8)]
    levels[1] += np.arange(0, 80, 20, dtype=np.uint8)[:, None, None]
    path = write_image(tmp_path / "a.zarr", levels, "ZYX", (2, 16, 16))
    with open_slide(f"{path}::z=5") as reader:
        assert reader.read_region(0, 0, 0, 1, 1)[0, 0, 0] == 5 and reader.read_region(1, 0, 0, 1, 1)[0, 0, 0] == 40


def test_axes_that_zarr_names_are_taken(tmp_path):
    pixels = noise_levels([(3, 40)])[0]
    write_array(tmp_path / "a.zarr", pixels, (40, 3, 3), dimension_names=["y", "x", "c"])
    with open_slide(tmp_path / "a.zarr") as reader:
        np.testing.assert_array_equal(reader.read_region(0, 0, 0, 3, 40), pixels)


# what is refused, and the way out


def refused(path: Path | str) -> str:
    with pytest.raises(SlideError) as caught:
        open_slide(path).close()
    return str(caught.value)


def test_what_is_no_picture_is_refused_with_the_way_out(tmp_path):
    for name, shape, dtype in [
        ("volume", (9, 20, 20), "u1"),
        ("thin", (3, 20, 3), "u1"),
        ("line", (9,), "u1"),
        ("four", (20, 20, 4), "u1"),
        ("deep", (20, 20), "u2"),
        ("mask", (20, 20), "?"),
        ("empty", (0, 20), "u1"),
    ]:
        np.save(tmp_path / f"{name}.npy", np.zeros(shape, dtype))
    for name in ("volume", "thin", "line", "four"):
        assert "say it, as by ::axes=YXC" in refused(tmp_path / f"{name}.npy")
    assert "has 4 channels; a slide has 3 (RGB) or 1 (grey): choose one" in refused(f"{tmp_path}/four.npy::axes=YXC")
    assert "holds uint16; a slide's pixels are uint8: write a copy" in refused(tmp_path / "deep.npy")
    assert "holds bool" in refused(tmp_path / "mask.npy")
    assert "is empty" in refused(tmp_path / "empty.npy")
    assert "has 9 places along 'z': say which is meant, as by ::z=0" in refused(f"{tmp_path}/volume.npy::axes=ZYX")
    assert "has no z=9: it has 9 along that axis" in refused(f"{tmp_path}/volume.npy::axes=ZYX::z=9")
    assert "there is no choosing along 't'; its axes are ZYX" in refused(f"{tmp_path}/volume.npy::axes=ZYX::z=1::t=0")
    assert "axes YX are 2, but the array has 3" in refused(f"{tmp_path}/volume.npy::axes=YX")
    assert "axes must be letters of TCZYX, each once, Y and X among them, got 'ZY'" in refused(
        f"{tmp_path}/volume.npy::axes=ZY"
    )
    assert "z is given twice" in refused(f"{tmp_path}/volume.npy::z=1::z=2")
    assert "does not say what of volume.npy is meant" in refused(f"{tmp_path}/volume.npy::plane 3")
    assert "does not exist" in refused(f"{tmp_path}/nothing.npy::z=1")


def test_one_of_several_arrays_must_be_named(tmp_path, kinds):
    paths, _ = kinds
    folder = paths["npy"].parent
    assert "could be meant; name one: h.h5::deep/chunked, h.h5::whole" in refused(folder / "h.h5")
    assert "has no dataset 'half'" in refused(f"{folder}/h.h5::half")
    group = write_group(tmp_path / "group.zarr", {})
    assert "holds no array" in refused(group)
    for name in ("a", "b"):
        write_array(group / name, np.zeros((5, 5), np.uint8), (5, 5))
    assert f"holds 2 that could be meant; name one: {group}/a, {group}/b" in refused(group)
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["deep/only"] = np.zeros((5, 7), np.uint8)
        file["number"] = 3
    with open_slide(tmp_path / "one.h5") as reader:
        assert reader.info.dimensions == (7, 5)
    shutil.copytree(folder / "series.zarr", tmp_path / "series.zarr")
    shutil.copytree(folder / "series.zarr" / "0", tmp_path / "series.zarr" / "1")
    assert "series.zarr/0" in refused(tmp_path / "series.zarr")


def test_levels_that_are_not_one_picture_are_refused(tmp_path):
    grey = [each[..., 0] for each in noise_levels([(100, 80), (50, 40), (50, 20), (100, 90)])]
    assert "do not become smaller" in refused(write_image(tmp_path / "a.zarr", grey[1::-1], "YX", (64, 64)))
    assert "2 times smaller across, and 4 times down" in refused(write_image(tmp_path / "b.zarr", grey[::2], "YX", (64, 64)))
    path = write_image(tmp_path / "c.zarr", grey[:2], "YX", (64, 64))
    said = multiscales("YX", [(1, 1), (2, 2)])
    steps = said["ome"]["multiscales"][0]["datasets"][1]["coordinateTransformations"]
    steps.append({"type": "translation", "translation": [0.5, 0.5]})
    open_slide(write_group(path, said)).close()
    steps[1]["translation"] = [0.5, 30]
    assert "level 1 begins 30 pixels of level 0 beside it" in refused(write_group(path, said))
    shutil.rmtree(path / "1")
    assert "c.zarr/1 is missing, which is a level of the image" in refused(path)
    said["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] = [1]
    assert "is not as OME-Zarr must be: a scale has 1 numbers, but there are 2 axes" in refused(write_group(path, said))
    said["ome"]["multiscales"][0]["datasets"] = [{"name": "0"}]
    assert "is not as OME-Zarr must be" in refused(write_group(path, said))


def test_a_plain_folder_and_a_slide_are_no_arrays(tmp_path, bundled):
    with pytest.raises(SlideError, match="is no array"):
        ArrayReader(bundled)
    (tmp_path / "empty.zarr").mkdir()
    assert "holds none of .zarray, .zgroup, zarr.json" in refused(tmp_path / "empty.zarr")
    (tmp_path / "no.npy").write_bytes(b"\x93NUMPY")
    assert "no.npy cannot be opened" in refused(tmp_path / "no.npy")
    (tmp_path / "no.h5").write_bytes(b"\x89HDF")
    assert "no.h5 cannot be opened" in refused(tmp_path / "no.h5")


def test_metadata_is_not_written_to(tmp_path):
    path = write_image(tmp_path / "a.zarr", [noise_levels([(8, 8)])[0][..., 0]], "YX", (8, 8))
    before = json.loads((path / "zarr.json").read_text()), sorted(path.rglob("*"))
    open_slide(path).close()
    assert (json.loads((path / "zarr.json").read_text()), sorted(path.rglob("*"))) == before
