from __future__ import annotations

import numpy as np
import openslide
import pytest
from openslide import lowlevel
from PIL import Image

from streamwsi.slides import argb
from streamwsi.slides.argb import read_argb, store_rgb
from streamwsi.slides.openslide import OpenSlideReader
from tests.helpers import RGB, UInt8Array, noise_levels, write_tiff
from tests.slides.reader_contract import MAUVE, ReaderContract


def words(alphas: list[int], shape: tuple[int, int] = (40, 30)) -> np.ndarray:
    """Premultiplied ARGB words with alphas drawn from `alphas`."""
    random = np.random.default_rng(len(alphas))
    alpha = random.choice(alphas, shape).astype(np.uint32)
    colours = [(random.integers(0, 256, shape, dtype=np.uint32) * alpha) // 255 for _ in range(3)]
    return (alpha << 24) | (colours[0] << 16) | (colours[1] << 8) | colours[2]


def composed(pixels: np.ndarray, background: RGB) -> UInt8Array:
    """What openslide-python and Pillow make of them."""
    height, width = pixels.shape
    picture = lowlevel._load_image(pixels.copy(), (width, height))
    canvas = Image.new("RGB", picture.size, background)
    canvas.paste(picture, mask=picture)
    return np.asarray(canvas)


@pytest.mark.parametrize("alphas", [[255], [0], [0, 255]], ids=str)
def test_opaque_and_transparent_pixels_become_what_pillow_makes_of_them(alphas):
    pixels = words(alphas)
    out = np.empty((40, 30, 3), np.uint8)
    assert store_rgb(pixels, out, MAUVE)
    np.testing.assert_array_equal(out, composed(pixels, MAUVE))


def test_a_part_of_a_region_is_stored_alone():
    pixels = words([0, 255])
    out = np.empty((33, 19, 3), np.uint8)
    assert store_rgb(pixels[7:, 11:], out, MAUVE)
    np.testing.assert_array_equal(out, composed(pixels, MAUVE)[7:, 11:])


@pytest.mark.parametrize("alpha", [1, 128, 254])
def test_partly_transparent_pixels_are_left_to_others(alpha):
    out = np.full((40, 30, 3), 5, np.uint8)
    assert not store_rgb(words([0, alpha, 255]), out, MAUVE)
    assert np.all(out == 5)


def test_the_buffer_holds_what_the_picture_shows(bundled):
    with openslide.OpenSlide(bundled) as handle:
        found = read_argb(handle, (1000, 900), 0, (300, 200))
        assert found is not None, "this openslide-python gives no buffer: regions are read the slow way"
        picture = handle.read_region((1000, 900), 0, (300, 200))
    np.testing.assert_array_equal(composed(found, MAUVE), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("change", ["gone", "other arguments", "no errors"])
def test_another_function_than_the_known_one_is_not_called(monkeypatch, change):
    class Other:
        argtypes = lowlevel._read_region.argtypes
        errcheck = lowlevel._read_region.errcheck

    if change == "other arguments":
        Other.argtypes = Other.argtypes[:-1]
    elif change == "no errors":
        Other.errcheck = None
    monkeypatch.setattr(lowlevel, "_read_region", None if change == "gone" else Other())
    assert argb._find_raw_read() is None


class TestOpenSlideReaderWithoutTheBuffer(ReaderContract):
    """Every promise holds with an openslide-python that does not give the buffer, too."""

    slides = tuple(name for name in ReaderContract.slides if name != "tiff/yb10kx5k.zstd.tiff")
    """Not the largest, which takes long this way: other pyramids are read."""

    @pytest.fixture(autouse=True)
    def no_buffer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(argb, "_raw_read", None)

    def open_reader(self, path, background=(255, 255, 255)) -> OpenSlideReader:
        return OpenSlideReader(path, background)


def test_regions_that_are_partly_transparent_are_the_same_both_ways(tmp_path, monkeypatch):
    levels = noise_levels([(4001, 600), (2000, 300)])  # no exact place is near: seams of tiles are drawn by halves
    path = write_tiff(tmp_path / "seams.tiff", levels, missing={(1, 2, 2), (1, 4, 20)})
    regions = [(x, y, 400, 150) for x in range(0, 2000, 390) for y in (0, 70, 200)]
    with OpenSlideReader(path, MAUVE) as reader:
        buffers = [read_argb(reader._handle, (round(x * 2.00025), 2 * y), 1, (w, h)) for x, y, w, h in regions]
        assert any(np.any((it >> 24 > 0) & (it >> 24 < 255)) for it in buffers), "nothing here is partly transparent"
        fast = [reader.read_region(1, *region) for region in regions]
        monkeypatch.setattr(argb, "_raw_read", None)
        slow = [reader.read_region(1, *region) for region in regions]
    for region, one, other in zip(regions, fast, slow, strict=True):
        np.testing.assert_array_equal(one, other, strict=True, err_msg=str(region))
