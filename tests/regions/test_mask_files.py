from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import streamwsi as sw
from streamwsi.errors import ConfigError, MaskError, OutputError

TABLE = np.random.default_rng(0).random((30, 20)) < 0.4
SLIDE = (200, 300)


def write_zarr(path: Path) -> Path:
    zarr.save_array(str(path), TABLE)
    return path


def write_picture(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def write_npy(path: Path, pixels: np.ndarray) -> Path:
    np.save(path, pixels)
    return path


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def write_tiff(path: Path, *levels: np.ndarray) -> Path:
    with tifffile.TiffWriter(path) as file:
        file.write(levels[0], subifds=len(levels) - 1)
        for level in levels[1:]:
            file.write(level, subfiletype=1)
    return path


WRITERS = {
    "png of 255": lambda folder: write_picture(folder / "m.png", TABLE.astype(np.uint8) * 255),
    "png of 1": lambda folder: write_picture(folder / "m.png", TABLE.astype(np.uint8)),
    "png of bits": lambda folder: write_picture(folder / "m.png", TABLE),
    "png of RGB": lambda folder: write_picture(folder / "m.png", np.dstack([TABLE.astype(np.uint8) * 255] * 3)),
    "npy": lambda folder: write_npy(folder / "m.npy", TABLE),
    "npz": lambda folder: write_npz(folder / "m.npz", mask=TABLE.astype(np.uint8)),
    "tiff": lambda folder: write_tiff(folder / "m.tif", TABLE.astype(np.uint8)),
    "tiff pyramid": lambda folder: write_tiff(folder / "m.tif", TABLE.astype(np.uint8), TABLE[::2, ::2].astype(np.uint8)),
    "zarr": lambda folder: write_zarr(folder / "m.zarr"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_mask(kind: str, tmp_path: Path):
    mask = sw.read_mask(WRITERS[kind](tmp_path), slide=SLIDE)
    assert (mask.array == TABLE).all()
    assert (mask.scale, mask.offset) == ((10, 10), (0, 0))


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6)),
    st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)),
)
def test_a_mask_that_is_saved_comes_back(tmp_path_factory, seed, scale, offset):
    path = tmp_path_factory.mktemp("masks") / "m.npz"
    mask = sw.Mask(np.random.default_rng(seed).random((7, 5)) < 0.5, scale=scale, offset=offset)
    mask.save(path)
    back = sw.read_mask(path)
    assert (back.array == mask.array).all()
    assert (back.scale, back.offset) == (mask.scale, mask.offset)
    assert [each.name for each in path.parent.iterdir()] == ["m.npz"]


def test_a_saved_mask_is_checked_against_the_slide(tmp_path: Path):
    path = sw.Mask(TABLE, scale=10, offset=(0, 0)).save(tmp_path / "m.npz")
    sw.read_mask(path, slide=SLIDE)
    with pytest.raises(MaskError, match=r"m\.npz: the mask reaches beyond the slide"):
        sw.read_mask(path, slide=(100, 150))
    with pytest.raises(ConfigError, match="says itself where it lies"):
        sw.read_mask(path, scale=10, offset=(0, 0))


def test_a_mask_of_several_values_says_which_are_inside(tmp_path: Path):
    labels = np.array([[0, 1], [2, 1]], np.uint8)
    path = write_picture(tmp_path / "m.png", labels)
    with pytest.raises(MaskError, match="holds the values 0, 1, 2: say which are inside"):
        sw.read_mask(path, slide=(2, 2))
    assert sw.read_mask(path, slide=(2, 2), inside=[1]).array.tolist() == [[False, True], [False, True]]
    assert sw.read_mask(path, slide=(2, 2), inside=range(1, 3)).array.tolist() == [[False, True], [True, True]]


def test_two_values_without_zero_say_which_is_inside(tmp_path: Path):
    with pytest.raises(MaskError, match="values 1, 2"):
        sw.read_mask(write_npy(tmp_path / "m.npy", TABLE + np.uint8(1)), slide=SLIDE)


def test_levels_of_a_pyramid_lie_on_the_same_place(tmp_path: Path):
    path = write_tiff(tmp_path / "m.tif", TABLE.astype(np.uint8), TABLE[::2, ::2].astype(np.uint8))
    coarse = sw.read_mask(path, scale=10, offset=(5, 7), level=1)
    assert (coarse.scale, coarse.offset, coarse.shape) == ((20, 20), (5, 7), (15, 10))
    assert coarse.bounds_l0 == sw.read_mask(path, scale=10, offset=(5, 7)).bounds_l0
    with pytest.raises(MaskError, match="no level 2"):
        sw.read_mask(path, slide=SLIDE, level=2)


def test_a_real_mask_pyramid(shared_slides: Path):
    """0 is outside, 1 is inside; its second level is the first, every other pixel."""
    path = shared_slides / "annotations" / "hs2p_test-mask.tif"
    fine, coarse = (sw.read_mask(path, scale=32, offset=(0, 0), level=level) for level in (0, 1))
    with tifffile.TiffFile(path) as file:
        raw = file.pages[0].asarray()
    assert fine.shape == (800, 864)
    assert (fine.array == (raw == 1)).all()
    assert (coarse.shape, coarse.scale) == ((400, 432), (64, 64))
    assert fine.share == pytest.approx(0.4586, abs=1e-3) == coarse.share
    boxes = np.random.default_rng(1).integers(0, 20_000, (200, 2))
    assert np.abs(fine.coverage(boxes, 2048) - coarse.coverage(boxes, 2048)).max() < 0.02


def test_an_array_in_a_group(tmp_path: Path):
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    group["tissue"] = TABLE
    with pytest.raises(MaskError, match="group of arrays, tissue"):
        sw.read_mask(tmp_path / "g.zarr", slide=SLIDE)
    assert (sw.read_mask(tmp_path / "g.zarr", slide=SLIDE, key="tissue").array == TABLE).all()
    with pytest.raises(MaskError, match="holds no array 'mask', but other"):
        sw.read_mask(write_npz(tmp_path / "m.npz", other=TABLE), slide=SLIDE)


@pytest.mark.parametrize("name", ["m.png", "m.npz", "m.npy", "m.tif", "m"])
def test_what_is_no_mask_is_refused_by_name(name: str, tmp_path: Path):
    path = tmp_path / name
    with pytest.raises(MaskError, match="does not exist"):
        sw.read_mask(path, slide=SLIDE)
    for content in (b"", b"no mask at all", b"\x89PNG\r\n\x1a\nbroken", b"II*\0broken", b"PK\x03\x04broken"):
        path.write_bytes(content)
        with pytest.raises(MaskError, match=name):
            sw.read_mask(path, slide=SLIDE)


def test_pictures_with_colours_are_no_masks(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 2, (30, 20, 3), np.uint8)
    with pytest.raises(MaskError, match="has colours"):
        sw.read_mask(write_picture(tmp_path / "m.png", pixels), slide=SLIDE)
    with pytest.raises(MaskError, match="one channel"):
        sw.read_mask(write_tiff(tmp_path / "m.tif", pixels), slide=SLIDE)


def test_objects_in_files_are_not_made(tmp_path: Path):
    path = tmp_path / "m.npy"
    np.save(path, np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(MaskError, match="cannot be read as a mask"):
        sw.read_mask(path, slide=(1, 1))


def test_masks_are_saved_by_name(tmp_path: Path):
    mask = sw.Mask(TABLE, scale=1, offset=(0, 0))
    with pytest.raises(ConfigError, match=r"ends in \.npz"):
        mask.save(tmp_path / "m.png")
    with pytest.raises(OutputError, match="cannot be written"):
        mask.save(tmp_path / "missing" / "m.npz")
