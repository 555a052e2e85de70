"""Random and Poisson-disk samplers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

import streamwsi as sw
from tests.sampling.helpers import counted_coverage, downsamples, every_place, random_mask, scene, seeds, shared, sizes

LEFT, RIGHT = sw.Region(shapely.box(0, 0, 50, 80), "left"), sw.Region(shapely.box(50, 0, 100, 80), "right")


def places_that_fulfil(mask: sw.Mask | None, where: sw.Scene, least: float) -> np.ndarray:
    """All places of windows that cover enough, or nearly enough, of a mask."""
    places = every_place(where)
    if mask is None:
        return places
    return places[counted_coverage(mask, where, places) >= max(least - 1e-6, 1e-9)]


@settings(max_examples=60)
@given(seeds, sizes, sizes, downsamples, st.sampled_from([0.05, 0.5, 1.0]), st.sampled_from([0.0, 0.3, 1.0]), st.booleans())
def test_random_windows_fulfil_all_conditions(seed, kernel_x, kernel_y, downsample, least, most, on_mask):
    where = scene(60, 50, (kernel_x, kernel_y), downsample)
    mask = random_mask(seed, 60, 50) if on_mask else None
    options = {"region": mask, "min_coverage": least} if on_mask else {}
    try:
        start = sw.RandomSampler(12, max_overlap=most, seed=seed, **options).places(where).start
    except sw.SamplingError:
        return  # how many fit is another test
    assert start.shape == (12, 2)
    assert set(map(tuple, start.tolist())) <= set(map(tuple, places_that_fulfil(mask, where, least).tolist()))
    if most < 1:
        assert (shared(where.kernel, start, start) <= most + 1e-9).sum() == 12 * 11


@settings(max_examples=40)
@given(seeds, st.sampled_from([0.2, 0.7, 1.0]), downsamples)
def test_as_many_as_there_are_places_can_be_drawn_and_not_one_more(seed, least, downsample):
    where, mask = scene(40, 40, (9, 7), downsample), random_mask(seed, 40, 40)
    shares = counted_coverage(mask, where, every_place(where))
    there = int(((shares > 1e-9) & (shares >= least - 1e-9)).sum())
    if there:
        drawn = sw.RandomSampler(there, region=mask, min_coverage=least, seed=seed).places(where)
        assert len(np.unique(drawn.start, axis=0)) == there
    with pytest.raises(
        sw.SamplingError, match=rf"slide 's' of patient 'p' has {there} places for windows, and {there + 1} were"
    ):
        sw.RandomSampler(there + 1, region=mask, min_coverage=least, seed=seed).places(where)


def test_all_places_are_drawn_alike():
    """2000 draws of 3 of 24 places: each 250 times, give or take."""
    where = scene(11, 13)
    counts = Counter(
        place for seed in range(2000) for place in map(tuple, sw.RandomSampler(3, seed=seed).places(where).start.tolist())
    )
    assert len(counts) == 24 and max(abs(count - 250) for count in counts.values()) < 60  # 4 standard deviations


def test_what_does_not_fit_is_said_with_how_many_were_placed():
    with pytest.raises(
        sw.SamplingError, match=r"no room for 100 windows: (1[0-6]|[89]) were placed at random, then no whole-pixel"
    ):
        sw.RandomSampler(100, max_overlap=0).places(scene(32, 32))
    with pytest.raises(sw.SamplingError, match="no room for 50 windows of label 'right'"):
        sw.RandomSampler(per_label={"left": 3, "right": 50}, region=[LEFT, RIGHT], max_overlap=0).places(scene(100, 80))


@settings(max_examples=50)
@given(
    seeds,
    sizes,
    sizes,
    downsamples,
    st.floats(4.1, 25),
    st.sampled_from(["px", "um"]),
    st.booleans(),
    st.sampled_from([0.2, 1.0]),
)
def test_poisson_windows_are_apart_and_no_further_one_fits(seed, kernel_x, kernel_y, downsample, spacing, unit, on_mask, most):
    where = scene(70, 60, (kernel_x, kernel_y), downsample, mpp=(0.5, 0.8))
    mask = random_mask(seed, 70, 60) if on_mask else None
    options = {"region": mask, "min_coverage": 0.6} if on_mask else {}
    start = sw.PoissonDiskSampler(spacing, unit, seed=seed, max_overlap=most, **options).places(where).start
    pixel = np.array([downsample, downsample]) * ((0.5, 0.8) if unit == "um" else 1)

    def near(one, other, slack):
        apart = np.linalg.norm((one[:, None] - other[None]) * pixel, axis=2)
        return (apart < spacing - slack) | (shared(where.kernel, one, other) > most + slack)

    assert near(start, start, 1e-9).sum() == (len(start) if most < 1 or len(start) else 0)  # each is near itself alone
    allowed = places_that_fulfil(mask, where, 0.6 + 2e-6)
    assert near(allowed, start, -1e-9).any(axis=1).all() if len(allowed) else len(start) == 0


def test_spacing_is_of_the_centres_and_in_its_unit():
    coarse = sw.PoissonDiskSampler(40).places(scene(800, 800, (8, 8), 4.0)).start * 4.0
    distances = np.linalg.norm(coarse[:, None] - coarse[None], axis=2)[~np.eye(len(coarse), dtype=bool)]
    assert 40 <= distances.min() < 42
    um = sw.PoissonDiskSampler(20, "um").places(scene(800, 800, (8, 8), 4.0)).start
    assert um.tolist() == sw.PoissonDiskSampler(40).places(scene(800, 800, (8, 8), 4.0)).start.tolist()
    with pytest.raises(sw.SamplingError, match="unit='px'"):
        sw.PoissonDiskSampler(20, "um").places(scene(800, 800, mpp=None))
    with pytest.raises(sw.SamplingError, match="a spacing of 3 px is less than a pixel of what is read, 4 px"):
        sw.PoissonDiskSampler(3).places(scene(800, 800, (8, 8), 4.0))


def test_poisson_takes_no_more_than_asked_for_and_begins_alike():
    where = scene(300, 300)
    some, most = sw.PoissonDiskSampler(20, n=10).places(where), sw.PoissonDiskSampler(20, n=10**6).places(where)
    assert len(some) == 10 and 100 < len(most) < 300
    assert len(sw.PoissonDiskSampler(20, per_label={"left": 4}, region=[LEFT, RIGHT]).places(scene(100, 80))) == 4


@settings(max_examples=30)
@given(seeds, st.integers(0, 6), st.integers(0, 6), st.sampled_from([0.3, 0.7, 1.0]))
def test_numbers_by_label_are_exact_and_labels_are_true(seed, left, right, least):
    sampler = sw.RandomSampler(per_label={"right": right, "left": left}, region=[RIGHT, LEFT], min_coverage=least, seed=seed)
    places = sampler.places(scene(100, 80, (10, 6)))
    assert sampler.carries_labels and places.names == ("left", "right")
    assert np.bincount(places.label, minlength=2).tolist() == [left, right]
    inside = np.clip(50 - places.start[:, 0], 0, 10) / 10
    own = np.where(places.label == 0, inside, 1 - inside)
    assert (own >= max(least, 0.5) - 1e-9).all()  # the one that covers most of it, and enough


def test_labels_there_are_not_are_errors_that_name_those_there_are():
    where = scene(100, 80)
    for sampler in (
        sw.RandomSampler(per_label={"tumour": 3}, region=[LEFT, RIGHT]),
        sw.RandomSampler(3, include=["tumour"], region=[LEFT, RIGHT]),
        sw.RandomSampler(3, exclude=["tumour"], region=[LEFT, RIGHT]),
    ):
        with pytest.raises(sw.SamplingError, match="no label 'tumour': it has 'left', 'right'; absent='ignore'"):
            sampler.places(where)
    with pytest.raises(sw.SamplingError, match="it has none"):
        sw.GridSampler(include=["tumour"], region=sw.Mask(np.ones((2, 2), bool), scale=9, offset=(0, 0))).places(where)
    both = sw.RandomSampler(per_label={"tumour": 3, "left": 2}, region=[LEFT, RIGHT], absent="ignore").places(where)
    assert [both.names[code] for code in both.label] == ["left", "left"]
    assert len(sw.GridSampler(include=["tumour"], region=[LEFT], absent="ignore").places(where)) == 0


def test_only_regions_of_the_labels_asked_for_count():
    where = scene(100, 80, (10, 10))
    only = sw.GridSampler(region=[LEFT, RIGHT], include=["left"]).places(where)
    rest = sw.GridSampler(region=[LEFT, RIGHT], exclude=["left"]).places(where)
    assert only.names == ("left",) and (only.start[:, 0] < 50).all() and len(only) == 40
    assert rest.names == ("right",) and (rest.start[:, 0] >= 50).all() and len(rest) == 40


def test_options_that_cannot_be_are_refused():
    region = [LEFT, RIGHT]
    for make, message in (
        (lambda: sw.RandomSampler(), "n= or per_label="),
        (lambda: sw.RandomSampler(3, per_label={"a": 1}, region=region), "n= or per_label="),
        (lambda: sw.RandomSampler(0), "n must be at least 1, got 0"),
        (lambda: sw.RandomSampler(2.5), "n must be a whole number, got 2.5"),
        (lambda: sw.RandomSampler(2, seed=-1), "seed must be at least 0, got -1"),
        (lambda: sw.RandomSampler(2, epoch=True), "epoch"),
        (lambda: sw.RandomSampler(per_label={"a": 1}), "per_label= goes with region="),
        (lambda: sw.RandomSampler(per_label={"a": -1}, region=region), r"per_label\['a'\] must be at least 0, got -1"),
        (lambda: sw.RandomSampler(per_label={}, region=region), "per_label must map"),
        (lambda: sw.RandomSampler(per_label={"a": 1}, include=["a"], region=region), "leave include= out"),
        (lambda: sw.PoissonDiskSampler(0), "spacing must be above 0"),
        (lambda: sw.PoissonDiskSampler(float("inf")), "spacing must be finite"),
        (lambda: sw.PoissonDiskSampler(9, "mm"), "unit must be one of 'um', 'px', got 'mm'"),
        (lambda: sw.PoissonDiskSampler(9, n=3, per_label={"a": 1}, region=region), "leave n= out"),
        (lambda: sw.RandomSampler(3).at_epoch(-1), "epoch must be at least 0"),
    ):
        with pytest.raises(sw.ConfigError, match=message):
            make()


def test_seed_0_is_a_seed():
    where = scene(500, 500)
    zero, one = (sw.RandomSampler(5, seed=seed).places(where).start.tolist() for seed in (0, 1))
    assert zero == sw.RandomSampler(5, seed=0).places(where).start.tolist() != one
