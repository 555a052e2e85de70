"""The collectors that need no model: against the formulas they name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import streamwsi as sw
from streamwsi.chunks import Batch
from streamwsi.collecting.ready_made import READY_MADE, ready_made
from streamwsi.geometry import Grid
from tests.helpers import level_image


def batch_of(pixels: np.ndarray, bundled: Path) -> Batch:
    n, height, width, _ = pixels.shape
    windows = Grid((width * n, height), (width, height), (width, height), "crop", 1.0).windows(np.arange(n))
    return Batch(pixels, windows, sw.Slide(bundled, "s"), sw.Patient("p", {"s": bundled}))


@pytest.fixture
def tiles(bundled: Path) -> np.ndarray:
    level = level_image(bundled, 0)
    return np.stack([level[y : y + 200, x : x + 300] for y, x in ((0, 0), (1000, 1000), (1500, 900), (2700, 700))])


def test_mean_is_exact(tiles: np.ndarray, bundled: Path) -> None:
    means = ready_made("mean").process(batch_of(tiles, bundled))
    assert np.array_equal(means, tiles.mean(axis=(1, 2), dtype=np.float64))
    white = np.full((1, 3000, 3, 3), 255, np.uint8)
    assert ready_made("mean").process(batch_of(white, bundled)).tolist() == [[255.0] * 3]


def test_hematoxylin_is_the_colour_deconvolution_of_ruifrok_and_johnston(tiles: np.ndarray, bundled: Path) -> None:
    collector = ready_made("hematoxylin")
    collector.setup()
    found = collector.process(batch_of(tiles, bundled))
    stains = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
    stains /= np.sqrt((stains**2).sum(axis=1, keepdims=True))
    optical_density = -np.log10((tiles.astype(np.float64) + 1) / 256)
    densities = np.linalg.solve(stains.T, optical_density.reshape(-1, 3).T).T.reshape(tiles.shape)
    expected = np.maximum(densities[..., 0], 0).mean(axis=(1, 2))
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)
    assert found[0, 0] < 0.05 < found[1:, 0].max()  # glass, tissue


def test_pure_haematoxylin_has_the_density_it_was_made_with(bundled: Path) -> None:
    collector = ready_made("hematoxylin")
    collector.setup()
    vector = np.array([0.650, 0.704, 0.286]) / np.linalg.norm([0.650, 0.704, 0.286])
    colour = np.round(256 * 10 ** (-0.8 * vector) - 1).astype(np.uint8)
    pixels = np.broadcast_to(colour, (1, 8, 8, 3)).copy()
    assert collector.process(batch_of(pixels, bundled))[0, 0] == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("name", READY_MADE)
def test_every_ready_made_collector_keeps_the_contract(name: str, tiles: np.ndarray, bundled: Path) -> None:
    collector = ready_made(name)
    collector.setup()
    values = np.asarray(collector.process(batch_of(tiles, bundled)))
    assert values.dtype.kind in "biuf" and values.shape == (len(tiles), len(collector.columns or ()))
    collector.teardown()
