"""The collectors that need no model: against the formulas they name, and on real slides."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

import streamwsi as sw
from streamwsi.chunks import Batch
from streamwsi.collecting.ready_made import READY_MADE
from streamwsi.collecting.ready_made.blocks import BLOCK_PX, blocks
from streamwsi.collecting.spec import find_collector
from streamwsi.errors import ConfigError
from streamwsi.geometry import Grid
from tests.helpers import BUNDLED, level_image


def batch_of(pixels: np.ndarray) -> Batch:
    n, *_, height, width, _ = pixels.shape
    windows = Grid((width * n, height), (width, height), (width, height), "crop", 1.0).windows(np.arange(n))
    return Batch(pixels, windows, sw.Slide(BUNDLED, "s"), sw.Patient("p", {"s": BUNDLED}))


OF_NUMBERS = [name for name in READY_MADE if name != "patches"]


def values(name: str, pixels: Any, **arguments: Any) -> np.ndarray:
    """(n, m): what the collector called `name` makes of (n, height, width, 3)."""
    collector = READY_MADE[name](**arguments)
    collector.setup()
    found = np.asarray(collector.process(batch_of(np.ascontiguousarray(pixels, np.uint8))))
    collector.teardown()
    return found


def of_one_colour(*colour: int) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (1, 9, 8, 3))


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    """Glass, and tissue; each larger than a block of pixels, and not a multiple of one."""
    level = level_image(BUNDLED, 0)
    return np.stack([level[y : y + 310, x : x + 300] for y, x in ((0, 0), (1000, 1000), (1500, 900), (2600, 700))])


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_every_ready_made_collector_keeps_the_contract(name: str, tiles: np.ndarray) -> None:
    found = values(name, tiles)
    assert found.dtype.kind in "biuf" and found.shape == (len(tiles), len(READY_MADE[name]().columns or ()))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_of_several_resolutions_the_finest_counts(name: str, tiles: np.ndarray) -> None:
    np.testing.assert_array_equal(values(name, np.stack([tiles, 255 - tiles], axis=1)), values(name, tiles))


@pytest.mark.parametrize("name", OF_NUMBERS)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_a_windows_value_depends_on_that_window_alone(name: str, height: int, width: int, n: int, seed: int) -> None:
    """To the last bit: files are the same however windows were cut into chunks."""
    pixels = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), np.uint8)
    together = values(name, pixels)
    for row in {0, n // 2, n - 1}:
        assert together[row].tobytes() == values(name, pixels[row : row + 1])[0].tobytes()
    assert (
        together.tobytes() == np.concatenate([values(name, part) for part in np.array_split(pixels, 3) if len(part)]).tobytes()
    )


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_memory_does_not_grow_with_the_batch(name: str) -> None:
    pixels = np.zeros((6, 1024, 1024, 3), np.uint8)
    collector, batch = READY_MADE[name](), batch_of(pixels)
    tracemalloc.start()
    try:
        collector.process(batch)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * BLOCK_PX < pixels.nbytes


@given(st.integers(1, 9), st.integers(3, 300), st.integers(1, 400), st.integers(0, 2))
def test_blocks_hold_every_row_of_every_window(n: int, height: int, width: int, overlap: int) -> None:
    pixels = np.zeros((n, height, width, 3), np.uint8)
    rows = [0] * n
    for which, block in blocks(pixels, overlap):
        assert block.flags.c_contiguous and block.shape[2] == width
        assert len(block) == len(range(n)[which]) and block.shape[:3] <= (BLOCK_PX, height, width)
        assert block[..., 0].size <= BLOCK_PX + (overlap + 1) * width
        block[:, : block.shape[1] - overlap] += 1
        for window in range(n)[which]:
            rows[window] += block.shape[1] - overlap
    assert rows == [height - overlap] * n
    assert (pixels[:, : height - overlap] == 1).all()


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_arguments_that_it_does_not_have_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"collector '{name}' cannot be made with arguments .*'colour': 'red'"):
        find_collector(name, {"colour": "red"})


# mean


def test_mean_is_exact(tiles: np.ndarray) -> None:
    assert np.array_equal(values("mean", tiles), tiles.mean(axis=(1, 2), dtype=np.float64))
    white = np.full((1, 3000, 3, 3), 255, np.uint8)
    assert values("mean", white).tolist() == [[255.0] * 3]


# stain, hematoxylin

VECTORS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])


def test_densities_are_the_colour_deconvolution_of_ruifrok_and_johnston(tiles: np.ndarray) -> None:
    stains = VECTORS / np.sqrt((VECTORS**2).sum(axis=1, keepdims=True))
    optical_density = -np.log10((tiles.astype(np.float64) + 1) / 256)
    densities = np.linalg.solve(stains.T, optical_density.reshape(-1, 3).T).T.reshape(tiles.shape)
    expected = np.maximum(densities, 0).mean(axis=(1, 2))
    found = values("stain", tiles)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    assert found[0, 0] < 0.05 < found[1:, 0].max()  # glass, tissue
    assert found[0, 1] < 0.05 < found[1:, 1].max()
    assert np.array_equal(values("hematoxylin", tiles), found[:, :1])


def test_densities_are_those_of_rgb2hed_on_another_scale(tiles: np.ndarray) -> None:
    """The formula and the vectors of scikit-image's rgb2hed; of what is not so dark that its 0 and ours lie apart."""
    tiles = np.maximum(tiles, 25)
    theirs = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    grey = np.maximum(tiles / 255, 1e-6)
    expected = np.maximum(np.log(grey) / np.log(1e-6) @ np.linalg.inv(theirs), 0).mean(axis=(1, 2))
    found = values("stain", tiles)
    np.testing.assert_allclose(found[1:, :2], 6 * expected[1:, :2], rtol=0.1)


@pytest.mark.parametrize("stain", range(3))
def test_a_pure_stain_has_the_density_it_was_made_with(stain: int) -> None:
    vector = VECTORS[stain] / np.linalg.norm(VECTORS[stain])
    colour = np.round(256 * 10 ** (-0.8 * vector) - 1).astype(np.uint8)
    expected = np.zeros(3)
    expected[stain] = 0.8
    np.testing.assert_allclose(values("stain", of_one_colour(*colour))[0], expected, atol=0.015)


def test_glass_and_black_have_densities_too() -> None:
    assert np.abs(values("stain", of_one_colour(255, 255, 255))).max() < 1e-6
    assert np.isfinite(values("stain", of_one_colour(0, 0, 0))).all()


# tissue


@pytest.mark.parametrize(
    ("colour", "tissue"),
    [
        ((255, 255, 255), False),
        ((240, 236, 240), False),  # tinted glass
        ((128, 128, 128), False),  # dust
        ((0, 0, 0), False),  # a border
        ((3, 0, 9), False),  # black pen, with noise
        ((224, 160, 200), True),  # eosin
        ((110, 70, 140), True),  # haematoxylin
        ((150, 110, 70), True),  # DAB
    ],
)
def test_colour_is_tissue(colour: tuple[int, int, int], tissue: bool) -> None:
    assert values("tissue", of_one_colour(*colour)).tolist() == [[float(tissue)]]


def test_tissue_is_the_share_of_pixels_whose_chroma_reaches_the_threshold(tiles: np.ndarray) -> None:
    chroma = tiles.max(axis=-1).astype(int) - tiles.min(axis=-1)
    for threshold in (1, 15, 40, 255):
        expected = (chroma >= threshold).mean(axis=(1, 2)).astype(np.float32)
        assert values("tissue", tiles, threshold=threshold)[:, 0].tolist() == expected.tolist()


def test_tissue_agrees_with_a_real_mask(shared_slides: Path) -> None:
    """The mask closes the gaps between fibres, which are no tissue here: it is compared by windows, not by pixels."""
    mask = np.load(shared_slides / "annotations" / "CMU-1-Small-Region.tissue-mask.npy")
    level = level_image(BUNDLED, 0)
    scale = level.shape[0] // len(mask)  # pixels of the slide per pixel of the mask
    cells = 20
    places = [(y, x) for y in range(0, 280, cells) for x in range(0, 200, cells)]
    windows = [level[y * scale : (y + cells) * scale, x * scale : (x + cells) * scale] for y, x in places]
    in_mask = np.array([mask[y : y + cells, x : x + cells].mean() for y, x in places])
    share = values("tissue", np.stack(windows))[:, 0]
    glass, solid = share[in_mask == 0], share[in_mask == 1]
    assert len(glass) > 30 and glass.max() < 0.06 and glass.mean() < 0.005
    assert len(solid) > 30 and solid.mean() > 0.8
    assert np.corrcoef(share, in_mask)[0, 1] > 0.92
    assert ((share > 0.3) == (in_mask > 0.5)).mean() > 0.92


@pytest.mark.parametrize("threshold", [0, 256, -1, 1.5, "15", None, True])
def test_a_threshold_that_cannot_work_is_refused(threshold: Any) -> None:
    with pytest.raises(ConfigError, match="threshold must be a whole number of grey levels from 1 to 255, got"):
        sw.TissueCollector(threshold)


def test_the_threshold_decides_the_results() -> None:
    from streamwsi.collecting.spec import collector_arguments

    assert collector_arguments(sw.TissueCollector(20)) == {"threshold": 20}


# focus


def test_focus_is_the_variance_of_the_laplacian(tiles: np.ndarray) -> None:
    grey = np.floor(
        (77 * tiles[..., 0].astype(int) + 150 * tiles[..., 1].astype(int) + 29 * tiles[..., 2].astype(int) + 128) / 256
    )
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    height, width = grey.shape[1:]
    edges = sum(kernel[dy, dx] * grey[:, dy : height - 2 + dy, dx : width - 2 + dx] for dy in range(3) for dx in range(3))
    np.testing.assert_allclose(values("focus", tiles)[:, 0], np.var(edges, axis=(1, 2)), rtol=1e-6)


def test_the_grey_of_focus_is_that_of_pillow(tiles: np.ndarray) -> None:
    from streamwsi.collecting.ready_made.focus import luma

    expected = np.stack([np.asarray(Image.fromarray(tile).convert("L")) for tile in tiles])
    assert np.abs(luma(tiles) - expected.astype(int)).max() <= 1


def test_what_is_blurred_is_less_sharp(tiles: np.ndarray) -> None:
    images = [Image.fromarray(tiles[1]).filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 0.5, 1, 2, 4)]
    found = values("focus", np.stack([np.asarray(image) for image in images]))[:, 0]
    assert (np.diff(found) < -0.3 * found[:-1]).all()
    assert values("focus", of_one_colour(240, 240, 240)).tolist() == [[0.0]]


def test_the_sharpest_there_can_be_does_not_overflow() -> None:
    """Black and white by turns, in a window so narrow that a block has very many rows."""
    board = (np.indices((5000, 5)).sum(axis=0) % 2 * 255).astype(np.uint8)
    found = values("focus", np.repeat(board[None, ..., None], 3, axis=-1))
    assert found[0, 0] == pytest.approx(1020**2, rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 90), (90, 2)])
def test_a_window_without_an_inside_has_no_focus(shape: tuple[int, int]) -> None:
    assert np.isnan(values("focus", np.zeros((3, *shape, 3)))).all()


def test_patches_are_the_pixels(tiles: np.ndarray) -> None:
    np.testing.assert_array_equal(values("patches", tiles), tiles)
