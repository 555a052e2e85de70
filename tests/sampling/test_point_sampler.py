from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

import streamwsi as sw
from tests.sampling.helpers import downsamples, scene, seeds, shared, sizes


@given(seeds, sizes, sizes, downsamples)
def test_windows_are_centred_on_the_points_in_their_order(seed, kernel_x, kernel_y, downsample):
    where = scene(300, 200, (kernel_x, kernel_y), downsample)
    points = np.random.default_rng(seed).uniform(60, 140, (9, 2))
    places = sw.PointSampler(points, outside="drop").places(where)
    centres = (places.start + np.array(where.kernel) / 2) * downsample
    rows = [int(np.argmin(np.abs(points - centre).max(axis=1))) for centre in centres]
    assert rows == sorted(set(rows))  # one may be the same window as one before it
    assert np.abs(points[rows] - centres).max() <= downsample / 2 + 1e-9


def test_points_and_labels_are_given_for_each_slide():
    points = {("p", "s"): [(20, 20), (50, 30)], "s": [(9, 9)], "t": np.empty((0, 2))}
    labels = {("p", "s"): ["b", None], "s": ["a"], "t": []}
    sampler = sw.PointSampler(points, labels)
    places = sampler.places(scene(100, 100))
    assert sampler.carries_labels
    assert (places.start.tolist(), places.label.tolist(), places.names) == ([[16, 16], [46, 26]], [0, -1], ("b",))
    other = sampler.places(scene(100, 100, patient="q"))
    assert (other.start.tolist(), other.label.tolist(), other.names) == ([[5, 5]], [0], ("a",))
    assert len(sampler.places(scene(100, 100, slide="t"))) == 0
    with pytest.raises(sw.SamplingError, match=r"points= has neither 'u' nor \('p', 'u'\), but"):
        sampler.places(scene(100, 100, slide="u"))
    function = sw.PointSampler(lambda slide: [(slide.dimensions[0] / 2, 50)], lambda slide: [slide.id])
    assert function.places(scene(100, 100)).start.tolist() == [[46, 46]]
    assert function.places(scene(100, 100)).names == ("s",)


def test_as_many_labels_as_points_are_needed():
    with pytest.raises(sw.ConfigError, match="3 points and 2 labels"):
        sw.PointSampler([(1, 1), (2, 2), (3, 3)], ["a", "b"])
    with pytest.raises(sw.SamplingError, match="slide 's' of patient 'p': there are 3 points and 1 labels"):
        sw.PointSampler(lambda slide: [(9, 9), (20, 20), (30, 30)], ["a"]).places(scene(99, 99))


def test_what_cannot_be_taken_is_an_error_or_left_out():
    where = scene(100, 100)
    region = [sw.Region(shapely.box(0, 0, 50, 100), "left")]
    points = [(10, 10), (3, 50), (10.2, 10.2), (49, 20), (52, 50), (13, 10)]
    with pytest.raises(sw.SamplingError) as error:
        sw.PointSampler(points, region=region, max_overlap=0.5).places(where)
    for words in (
        "4 of 6 windows cannot be taken",
        "that of point 1 at (3, 50) reaches beyond the slide",
        "that of point 2 at (10.2, 10.2) is the same as one before it",
        "that of point 4 at (52, 50) has 0.25 of it inside the region",
        "and 1 more",
        "outside='drop'",
    ):
        assert words in str(error.value)
    with pytest.raises(sw.SamplingError, match="overlaps one before it too much"):
        sw.PointSampler([points[0], points[5]], max_overlap=0.5).places(where)
    kept = sw.PointSampler(points, region=region, max_overlap=0.5, outside="drop").places(where)
    assert (kept.start.tolist(), kept.label.tolist(), kept.names) == ([[6, 6], [45, 16]], [0, 0], ("left",))


@given(seeds, st.sampled_from([0.0, 0.4, 1.0]))
def test_dropping_keeps_the_earlier_of_two(seed, most):
    points = np.random.default_rng(seed).integers(0, 60, (40, 2)).astype(float)
    start = np.floor(points - 4 + 0.5).astype(int)
    kept: list[int] = []
    for row in np.flatnonzero(((start >= 0) & (start <= 52)).all(axis=1)).tolist():
        overlaps = shared((8, 8), start[row : row + 1], start[kept])[0]
        if not (overlaps > most + 1e-9).any() and not (overlaps == 1).any():
            kept.append(row)
    assert (
        sw.PointSampler(points, max_overlap=most, outside="drop").places(scene(60, 60)).start.tolist() == start[kept].tolist()
    )


def test_labels_of_points_choose_them():
    points, labels = [(20, 20), (40, 40), (60, 60), (80, 80)], np.array(["a", "b", "a", "c"])
    where = scene(100, 100)
    only = sw.PointSampler(points, labels, include=["a"]).places(where)
    assert (only.start[:, 0].tolist(), only.names, only.label.tolist()) == ([16, 56], ("a",), [0, 0])
    rest = sw.PointSampler(points, labels, exclude=["a"]).places(where)
    assert (rest.start[:, 0].tolist(), rest.names, rest.label.tolist()) == ([36, 76], ("b", "c"), [0, 1])
    with pytest.raises(sw.SamplingError, match="no label 'z': it has 'a', 'b', 'c'"):
        sw.PointSampler(points, labels, include=["z"]).places(where)
    with pytest.raises(sw.ConfigError, match="not both"):
        sw.PointSampler(points, labels, include=["a"], exclude=["b"])
    # the points' own labels are carried, and not the region's
    inside = sw.PointSampler(points, labels, region=[sw.Region(shapely.box(0, 0, 50, 50), "left")], outside="drop").places(
        where
    )
    assert (inside.names, inside.label.tolist()) == (("a", "b", "c"), [0, 1])


def test_points_and_labels_that_are_none_are_refused():
    for points, labels, message in (
        ([(1, 2, 3)], None, r"points must be \(n, 2\).*got \(1, 3\)"),
        ([(1, 2), (np.nan, 3)], None, "point 1 is not"),
        ([("a", "b")], None, "points must be numbers"),
        ([(1, 2)], "a", "labels must be one for each point"),
        ([(1, 2)], [3], "labels must be strings.*got 3"),
    ):
        with pytest.raises(sw.ConfigError, match=message):
            sw.PointSampler(points, labels)
