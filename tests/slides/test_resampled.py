"""Virtual levels: their pixels against a level resampled whole, and their places against a pattern that tells them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamwsi.errors import RegionError, SlideError
from streamwsi.resolution import MOST_ZOOM, Resolution
from streamwsi.slides import resampled
from streamwsi.slides.reader import Part, Rectangle, SlideReader, open_slide
from streamwsi.slides.resampled import read_region_resampled, read_resampled
from streamwsi.slides.tile_cache import TileCache
from tests.helpers import BAD_TILE, RGB, WHITE, UInt8Array, level_image, noise_levels, slide_file, write_tiff

MAUVE: RGB = (180, 60, 200)
SIZES = [(2003, 1301), (1000, 650), (500, 324)]
"""Downsamples 2.0023 and 4.0107."""
PERIODS_L0 = (90.0, 70.0)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlideReader]:
    """What shows any resampling: a pixel has nothing to do with its neighbours."""
    path = write_tiff(tmp_path_factory.mktemp("noise") / "noise.tiff", noise_levels(SIZES))
    with open_slide(path, background=MAUVE) as reader:
        yield reader


def wave_levels() -> list[UInt8Array]:
    """Waves across (red) and down (green), of one phase at a place of the slide whatever the level."""
    levels = []
    for width, height in SIZES:
        down = (SIZES[0][0] / width + SIZES[0][1] / height) / 2
        x, y = (np.arange(width) + 0.5) * down, (np.arange(height) + 0.5) * down
        image = np.full((height, width, 3), 128, np.uint8)
        image[..., 0] = np.rint(128 + 100 * np.sin(2 * np.pi * x / PERIODS_L0[0]))
        image[..., 1] = np.rint(128 + 100 * np.sin(2 * np.pi * y / PERIODS_L0[1]))[:, None]
        levels.append(image)
    return levels


def shift_px(pixels: UInt8Array, start: tuple[float, float], downsample: float) -> tuple[float, float]:
    """How far (right, down) of where they are said to be pixels of the waves lie, in their own size, read off the phases."""
    shifts = []
    for axis, period in enumerate(PERIODS_L0):
        signal = pixels[:, :, axis].astype(float).mean(axis=axis)
        angle = 2 * np.pi * (start[axis] + np.arange(len(signal)) + 0.5) * downsample / period
        waves = np.column_stack([np.sin(angle), np.cos(angle), np.ones(len(signal))])
        sine, cosine, _ = np.linalg.lstsq(waves, signal, rcond=None)[0]
        assert math.hypot(sine, cosine) > 50
        shifts.append(math.atan2(-cosine, sine) * period / (2 * np.pi) / downsample)
    return shifts[0], shifts[1]


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlideReader]:
    with open_slide(write_tiff(tmp_path_factory.mktemp("waves") / "waves.tiff", wave_levels())) as reader:
        yield reader


def whole(reader: SlideReader, resolution: Resolution) -> UInt8Array:
    """The virtual level, resampled at once by Pillow."""
    width, height = reader.info.level_dimensions[resolution.level]
    pad = math.ceil(3 * max(resolution.zoom, 1)) + 2
    image = np.pad(reader.read_region(resolution.level, 0, 0, width, height), ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    out_w, out_h = resolution.extent(reader.info)
    box = (pad, pad, pad + out_w * resolution.zoom, pad + out_h * resolution.zoom)
    return pillow(image, (out_w, out_h), box)


def pillow(image: UInt8Array, size: tuple[int, int], box: tuple[float, float, float, float]) -> UInt8Array:
    """Rows, then columns: which of them Pillow takes first, and so what is rounded in between, depends on its version."""
    across = Image.fromarray(image).resize((size[0], len(image)), Image.Resampling.BICUBIC, box=(box[0], 0, box[2], len(image)))
    return np.asarray(across.resize(size, Image.Resampling.BICUBIC, box=(0, box[1], size[0], box[3])))


def by_formula(image: UInt8Array, zoom: float, x: float, y: float, width: int, height: int) -> np.ndarray:
    """A region by Keys' cubic (a = -0.5), stretched by the zoom; `image` is the level, its edges are repeated."""

    def weights(start: float, size: int, extent: int) -> np.ndarray:
        centres = (start + np.arange(size) + 0.5) * zoom
        scale = max(zoom, 1.0)
        taps = np.arange(math.floor(centres[0] - 2 * scale) - 1, math.ceil(centres[-1] + 2 * scale) + 2)
        t = np.abs((taps + 0.5 - centres[:, None]) / scale)
        kernel = np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))
        table = np.zeros((size, extent))
        for number, tap in enumerate(np.clip(taps, 0, extent - 1)):
            table[:, tap] += kernel[:, number]
        return table / kernel.sum(axis=1, keepdims=True)

    down, across = weights(y, height, image.shape[0]), weights(x, width, image.shape[1])
    rows = np.clip(np.rint(np.einsum("jx,yxc->yjc", across, image.astype(float), optimize=True)), 0, 255)
    return np.clip(np.einsum("iy,yjc->ijc", down, rows, optimize=True), 0, 255)


# pixels


@pytest.mark.parametrize("zoom", [1.07, 2.0, 2.004, 3.7, 17.3, MOST_ZOOM])
@pytest.mark.parametrize("level", [0, 2])
def test_regions_are_cut_from_the_level_resampled_whole(noise: SlideReader, level: int, zoom: float) -> None:
    resolution = Resolution.of(level, zoom)
    image = whole(noise, resolution)
    height, width = image.shape[:2]
    random = np.random.default_rng(0)
    for _ in range(12):
        w, h = random.integers(1, [min(width, 200) + 1, min(height, 200) + 1]).tolist()
        x, y = random.integers([-w + 1, -h + 1], [width, height]).tolist()
        expected = np.empty((h, w, 3), np.uint8)
        expected[...] = MAUVE
        inside = image[max(y, 0) : y + h, max(x, 0) : x + w]
        expected[max(-y, 0) : max(-y, 0) + inside.shape[0], max(-x, 0) : max(-x, 0) + inside.shape[1]] = inside
        np.testing.assert_array_equal(read_region_resampled(noise, resolution, x, y, w, h), expected, err_msg=f"{x, y, w, h}")


@pytest.mark.parametrize(
    ("zoom", "x", "y"), [(2.004, 10, 20), (2.004, 10.25, 20.75), (1.0, 7.5, 9.3), (5.3, -0.4, 100), (1.5, 500, 380)]
)
def test_values_are_those_of_the_filters_formula(noise: SlideReader, zoom: float, x: float, y: float) -> None:
    resolution = Resolution.of(1, zoom)
    width, height = resolution.extent(noise.info)
    w, h = min(60, width - math.ceil(x)), min(50, height - math.ceil(y))
    found = read_region_resampled(noise, resolution, x, y, w, h).astype(float)
    expected = by_formula(noise.read_region(1, 0, 0, *noise.info.level_dimensions[1]), resolution.zoom, x, y, w, h)
    assert np.abs(found - expected).max() <= 1.8  # halves are rounded twice
    assert np.abs(found - expected).mean() < 0.3


@given(
    zoom=st.floats(1.0, 9.0),
    x=st.floats(-40, 500),
    y=st.floats(-40, 500),
    dx=st.integers(0, 40),
    dy=st.integers(0, 40),
)
def test_a_pixel_does_not_depend_on_what_is_read_with_it(
    noise: SlideReader, zoom: float, x: float, y: float, dx: int, dy: int
) -> None:
    resolution = Resolution.of(0, zoom)
    # what a fraction of a virtual pixel is in the level is exact for neither: the same place for both
    x, y = (
        round(x * resolution.zoom * 4096) / 4096 / resolution.zoom,
        round(y * resolution.zoom * 4096) / 4096 / resolution.zoom,
    )
    large = read_region_resampled(noise, resolution, x, y, 70, 60)
    small = read_region_resampled(noise, resolution, x + dx, y + dy, 30, 20)
    np.testing.assert_array_equal(small, large[dy : dy + 20, dx : dx + 30])


def test_regions_read_together_are_as_read_alone(noise: SlideReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into many blocks and groups too, as very large regions are."""
    resolution = Resolution.of(0, 2.004)
    places = [(0, 0, 128, 128), (128, 0, 128, 128), (900, 600, 200, 100), (-30, 5, 64, 64), (3, 300, 640, 340)]
    alone = [read_region_resampled(noise, resolution, *place) for place in places]
    monkeypatch.setattr(resampled, "_SIDE_PX", 130)
    monkeypatch.setattr(resampled, "_GROUP_PX", 50_000)
    together = [(x, y, np.zeros((h, w, 3), np.uint8)) for x, y, w, h in places]
    read_resampled(noise, resolution, together, (0, 0, 1000, 650))
    for expected, (_, _, found) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_flat_colours_stay_as_they_are_up_to_the_edges(tmp_path: Path) -> None:
    """Neither background nor black bleeds into the slide's own pixels."""
    flat = np.empty((301, 403, 3), np.uint8)
    flat[...] = (10, 250, 128)
    with open_slide(write_tiff(tmp_path / "flat.tiff", [flat]), background=MAUVE) as reader:
        for zoom in (1.3, 2.0, 7.7, 50.0, 500.0, MOST_ZOOM):
            resolution = Resolution.of(0, zoom)
            width, height = resolution.extent(reader.info)
            pixels = read_region_resampled(reader, resolution, -2, -2, width + 4, height + 4)
            assert (pixels[2:-2, 2:-2] == (10, 250, 128)).all(), zoom
            pixels[2:-2, 2:-2] = MAUVE
            assert (pixels == MAUVE).all(), zoom


def test_edges_between_colours_stay_within_the_range(tmp_path: Path) -> None:
    """Where the filter would go beyond black or white it is cut, and does not wrap round."""
    stripes = np.zeros((200, 400, 3), np.uint8)
    stripes[:, (np.arange(400) // 20) % 2 == 1] = 255
    with open_slide(write_tiff(tmp_path / "stripes.tiff", [stripes])) as reader:
        row = read_region_resampled(reader, Resolution.of(0, 1.3), 20, 20, 250, 1)[0, :, 0].astype(int)
    level = stripes[0, np.minimum(((np.arange(20, 270) + 0.5) * 1.3).astype(int), 399), 0].astype(int)
    far = np.array([len(set(level[max(i - 3, 0) : i + 4])) == 1 for i in range(len(level))])
    assert (row[far] == level[far]).all()


def test_at_zoom_1_whole_places_are_the_levels_own_pixels_read_straight(noise: SlideReader) -> None:
    spy = Spy(noise)
    out = np.empty((40, 50, 3), np.uint8)
    read_resampled(spy, Resolution(1), [(7, 9.0, out)], (0, 0, 5, 5))
    assert [(level, [(x, y) for x, y, _ in parts], own) for level, parts, own in spy.reads] == [(1, [(7, 9)], (0, 0, 5, 5))]
    assert spy.reads[0][1][0][2] is out
    np.testing.assert_array_equal(out, noise.read_region(1, 7, 9, 50, 40))


@pytest.mark.parametrize(
    ("name", "level", "zoom"),
    [
        ("aperio/CMU-1-Small-Region.svs", 0, 1 / 0.499),
        ("tiff/wsipack_example.tif", 0, 1.5),
        ("tiff/wsipack_example.tif", 2, 1.25),
        ("dicom/cmu1_small_region", 0, 4.01),
    ],
)
@pytest.mark.parametrize("kind", ["auto", "openslide"])
def test_real_slides(shared_slides: Path, name: str, level: int, zoom: float, kind: str) -> None:
    path = slide_file(shared_slides, name)
    resolution = Resolution.of(level, zoom)
    with open_slide(path, kind) as reader:
        image = np.pad(level_image(path, level, WHITE), ((20, 20), (20, 20), (0, 0)), mode="edge")
        width, height = resolution.extent(reader.info)
        box = (20, 20, 20 + width * resolution.zoom, 20 + height * resolution.zoom)
        expected = pillow(image, (width, height), box)
        for x, y, w, h in ((0, 0, 100, 90), (width - 60, height - 50, 60, 50), (width // 3, height // 4, 150, 31)):
            np.testing.assert_array_equal(read_region_resampled(reader, resolution, x, y, w, h), expected[y : y + h, x : x + w])


# places


@pytest.mark.parametrize(("level", "zoom"), [(0, 1.7), (0, 4.0), (1, 1.0), (1, 1.31), (2, 1.0), (2, 2.003)])
@pytest.mark.parametrize(("x", "y"), [(3.0, 5.0), (70.0, 40.0), (20.5, 11.25)])
def test_places_are_kept_at_fractional_downsamples(waves: SlideReader, level: int, zoom: float, x: float, y: float) -> None:
    """Read off the waves' phases: by less than a tenth of a pixel, where half a one is allowed."""
    resolution = Resolution.of(level, zoom)
    pixels = read_region_resampled(waves, resolution, x, y, 120, 100)
    assert max(map(abs, shift_px(pixels, (x, y), resolution.downsample(waves.info)))) < 0.1


@given(st.floats(1, 300), st.integers(1, 200_000), st.integers(1, 200_000))
def test_the_extent_is_that_of_the_level_within_half_a_pixel(zoom: float, width: int, height: int) -> None:
    resolution = Resolution.of(0, zoom)
    assert abs(resolution.zoom - zoom) <= 0.5 / 4096
    info: Any = type("Info", (), {"level_dimensions": ((width, height),), "level_downsamples": (1.0,)})
    for virtual, level in zip(resolution.extent(info), (width, height), strict=True):
        assert virtual >= 1
        assert abs(virtual * resolution.zoom - level) <= resolution.zoom / 2 + 1e-6 or virtual == 1


# what is read


class Spy:
    """A reader that remembers what it was asked."""

    def __init__(self, reader: SlideReader) -> None:
        self._reader = reader
        self.reads: list[tuple[int, list[Part], Rectangle | None]] = []

    def read_parts(self, level: int, parts: Sequence[Part], own: Rectangle | None = None) -> None:
        self.reads.append((level, list(parts), own))
        self._reader.read_parts(level, parts, own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


def test_windows_are_read_at_once_and_memory_does_not_grow_with_the_zoom(
    noise: SlideReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(noise)
    read_resampled(spy, Resolution(0, 2.0), [(x, 0, np.empty((64, 64, 3), np.uint8)) for x in range(0, 640, 64)])
    assert len(spy.reads) == 1
    monkeypatch.setattr(resampled, "_GROUP_PX", 200_000)
    monkeypatch.setattr(resampled, "_SIDE_PX", 300)
    spy = Spy(noise)
    read_resampled(spy, Resolution(0, 8.0), [(0, 0, np.empty((162, 250, 3), np.uint8))])
    held = [sum(out.shape[0] * out.shape[1] for _, _, out in parts) for _, parts, _ in spy.reads]
    assert len(held) > 5 and max(held) <= 200_000


@pytest.mark.parametrize("group_px", [1 << 24, 150_000])
def test_each_tile_is_decoded_once_for_windows_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_px: int
) -> None:
    """Two chunks, and groups within one: what the filter reaches beyond is kept for whoever reads next to it."""
    monkeypatch.setattr(resampled, "_GROUP_PX", group_px)
    path = write_tiff(tmp_path / "slide.tiff", noise_levels([(1024, 1024)]))
    with open_slide(path, "tiff", cache=TileCache(1 << 24)) as reader:
        before = reader.tiles_read()
        assert before is not None
        resolution = Resolution(0, 2.0)
        for left in (0, 256):
            parts = [(x, y, np.empty((64, 64, 3), np.uint8)) for y in range(0, 512, 64) for x in range(left, left + 256, 64)]
            read_resampled(reader, resolution, parts, (left, 0, left + 256 if left == 0 else 10_000, 10_000))
        after = reader.tiles_read()
    assert after is not None
    assert after.decoded - before.decoded <= 16 * 16


def test_a_region_that_cannot_be_read_is_an_error_and_others_are_not(shared_slides: Path) -> None:
    name, (x, y, width, _) = BAD_TILE
    with open_slide(slide_file(shared_slides, name)) as reader:
        resolution = Resolution(0, 2.0)
        with pytest.raises(RegionError):
            read_region_resampled(reader, resolution, x // 2 + 20, y // 2 + 20, 20, 20)
        with pytest.raises(RegionError):  # two pixels beside it: the filter reaches into it
            read_region_resampled(reader, resolution, (x + width) // 2 + 1, y // 2, 20, 20)
        clear = read_region_resampled(reader, resolution, (x + width) // 2 + 4, y // 2, 20, 20)
        assert clear.std() > 0


def test_a_level_that_is_not_there_is_refused(noise: SlideReader) -> None:
    with pytest.raises(SlideError, match="has no level 3: it has levels 0 to 2"):
        read_region_resampled(noise, Resolution(3, 2.0), 0, 0, 5, 5)
