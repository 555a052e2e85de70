"""Heatmaps of windows that are blended with weights, against pixel by pixel, and against an Aggregator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import streamwsi as sw
from streamwsi.arrays.weights import Weights
from streamwsi.cli import cli
from streamwsi.maps.raster import coarser_for, read_map
from streamwsi.maps.weighted import WeightedSums
from tests.writing.fabricate import resolved_slide, write_patient

OWN = np.arange(16 * 16).reshape(16, 16) % 5
WEIGHTS: dict[str, Any] = {
    "mean": "mean",
    "gaussian": "gaussian",
    "distance": "distance",
    "with zeros": lambda size: np.indices(size).sum(axis=0) % 3,
}


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.lists(st.tuples(st.integers(-6, 28), st.integers(-6, 28)), max_size=8, unique=True),
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.sampled_from(sorted(WEIGHTS)),
)
def test_a_cell_is_the_mean_of_its_pixels_windows(
    extent: tuple[int, int], cell: tuple[int, int], starts: list[tuple[int, int]], size: tuple[int, int], name: str
) -> None:
    weights = Weights(WEIGHTS[name], size[::-1])
    starts = [(x, y) for x, y in starts if x < extent[0] and y < extent[1] and x + size[0] > 0 and y + size[1] > 0]
    values = np.random.default_rng(0).normal(size=(len(starts), 2))
    sums = WeightedSums(extent, cell, 2, weights)
    for some in np.array_split(np.arange(len(starts)), 2):  # in parts
        sums.add(np.array(starts, np.int64).reshape(-1, 2)[some], np.tile(np.array(size), (len(some), 1)), values[some])
    width, height = extent
    canvas, total = np.zeros((height + 60, width + 60, 2)), np.zeros((height + 60, width + 60, 1))
    for (x, y), value in zip(starts, values, strict=True):
        window = slice(y + 20, y + 20 + size[1]), slice(x + 20, x + 20 + size[0])
        own = weights.of(size[::-1])[..., None]
        canvas[window] += own * value
        total[window] += own
    canvas, total = canvas[20 : 20 + height, 20 : 20 + width], total[20 : 20 + height, 20 : 20 + width]
    found = sums.means()
    assert found.shape == (-(-height // cell[1]), -(-width // cell[0]), 2)
    for row, column in np.ndindex(found.shape[:2]):
        pixels = slice(row * cell[1], (row + 1) * cell[1]), slice(column * cell[0], (column + 1) * cell[0])
        weight = total[pixels].sum()
        expected = canvas[pixels].sum(axis=(0, 1)) / weight if weight > 1e-12 else np.full(2, np.nan)
        np.testing.assert_allclose(found[row, column], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weights", ["mean", "gaussian", "distance", "own"])
def test_a_heatmap_equals_that_of_an_aggregator_of_constant_patches(tmp_path: Path, weights: str) -> None:
    slide = resolved_slide((61, 50), (16, 16), (4, 4), "adaptive")
    values = np.random.default_rng(0).random(len(slide.grid()))
    own: Any = OWN if weights == "own" else weights
    found = read_map(write_patient(tmp_path, [slide], [values]), weights=own)
    sampler = sw.ArraySampler(np.zeros((50, 61)), (16, 16), 4, border="adaptive")
    into = sw.Aggregator(sampler, weights=own, fill_value=np.nan)
    for value, (patch, box) in zip(values, sampler, strict=True):
        into.append(np.full(patch.shape, value), box)
    np.testing.assert_allclose(found.values[..., 0], into.get_output(), rtol=1e-9)
    np.testing.assert_array_equal(found.x_edges, np.arange(62.0))


def test_weights_make_no_difference_where_windows_do_not_overlap(tmp_path: Path) -> None:
    values = np.arange(35.0)
    path = write_patient(tmp_path, [resolved_slide()], [values])
    plain, found = read_map(path), read_map(path, weights="gaussian")
    assert plain.values.shape == (5, 7, 1) and found.values.shape == (20, 25, 1)
    np.testing.assert_allclose(found.values, np.kron(plain.values, np.ones((4, 4, 1)))[:20, :25], rtol=1e-12)


def test_a_nan_makes_the_cells_nan_that_its_window_weighs_on(tmp_path: Path) -> None:
    slide = resolved_slide((48, 16), (16, 16), (8, 8), "crop")
    values = np.array([1.0, 1.0, np.nan, 1.0, 1.0])
    found = read_map(write_patient(tmp_path, [slide], [values]), weights="gaussian")
    np.testing.assert_array_equal(np.isnan(found.values[0, :, 0]), np.arange(24) // 8 == 1)


def test_a_picture_is_drawn_with_weights_and_has_no_more_cells_than_pixels(tmp_path: Path) -> None:
    slide = resolved_slide((400, 320), (64, 64), (32, 32), "pad")
    path = write_patient(tmp_path, [slide], [np.random.default_rng(0).random(len(slide.grid()))])
    arguments = ["render", str(path), "--view", "map", "--width", "300", "--out"]
    pictures = []
    for options in ([], ["--weights", "distance"]):
        picture = tmp_path / f"{len(options)}.png"
        done = CliRunner().invoke(cli, [*arguments, str(picture), *options], standalone_mode=False)
        assert done.exception is None, done.exception
        pictures.append(picture.read_bytes())
    assert pictures[0] != pictures[1]
    plan = read_map(path).plan
    assert [coarser_for(plan, size, "mean") for size in ((100, 80), (50, 40), (25, 20))] == [1, 1, 2]


def test_weights_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = write_patient(tmp_path, [resolved_slide()], [np.arange(35.0)])
    with pytest.raises(sw.ConfigError, match="weights must be 'mean', 'gaussian', 'distance'"):
        read_map(path, weights="median")
    with pytest.raises(sw.ConfigError, match=r"spatial size \(16, 16\), got \(3, 3\)"):
        read_map(path, weights=np.ones((3, 3)))
