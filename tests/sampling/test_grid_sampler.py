from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

import streamwsi as sw
from streamwsi.geometry import BORDERS, axis_starts
from tests.sampling.helpers import counted_coverage, downsamples, random_mask, scene, seeds, shared, sizes


@given(st.integers(1, 60), st.integers(1, 60), sizes, sizes, sizes, st.sampled_from(BORDERS))
def test_without_a_region_it_is_the_sliding_window(width, height, kernel_x, kernel_y, stride, border):
    places = sw.GridSampler(stride, border).places(scene(width, height, (kernel_x, kernel_y)))
    xs, ys = axis_starts(width, kernel_x, stride, border), axis_starts(height, kernel_y, stride, border)
    assert places.start.tolist() == [[x, y] for y in ys.tolist() for x in xs.tolist()]
    assert places.label is None and places.names == () and places.stride == (stride, stride)


@settings(max_examples=60)
@given(seeds, sizes, sizes, sizes, downsamples, st.sampled_from(["pad", "edge", "squeeze", "crop"]), st.floats(0.01, 1))
def test_coverage_is_that_of_the_windows_own_footprint(seed, kernel_x, kernel_y, stride, downsample, border, least):
    where = scene(90, 70, (kernel_x, kernel_y), downsample)
    mask = random_mask(seed, 90, 70)
    every = sw.GridSampler(stride, border).places(where).start
    taken = set(map(tuple, sw.GridSampler(stride, border, region=mask, min_coverage=least).places(where).start.tolist()))
    shares = counted_coverage(mask, where, every)
    sure = np.abs(shares - least) > 1e-6  # to the last bit, shares are tested with masks
    enough = (shares > 1e-9) & (shares >= least)
    assert [start in taken for start in map(tuple, every[sure].tolist())] == enough[sure].tolist()
    assert taken <= set(map(tuple, every.tolist()))


def test_a_window_that_is_half_inside_has_half():
    """Numbers are rounded: 0.49999999999999994 is half."""
    mask = sw.Mask(np.tile([[True, False]], (10, 50)), scale=0.1 + 0.2, offset=(0, 0))
    places = sw.GridSampler(2, "crop", region=mask).places(scene(30, 3, (2, 2), 0.3))
    assert places.start.tolist() == [[x, y] for y in range(0, 9, 2) for x in range(0, 99, 2)]


@given(st.floats(1.01, 6), st.integers(40, 120), st.sampled_from(["edge", "squeeze", "crop"]))
def test_a_mask_that_covers_the_slide_loses_no_window_at_its_end(downsample, width, border):
    """Levels are rounded to whole pixels, up too: their last one ends a fraction beyond level 0."""
    rough = scene(width, width, (5, 5), downsample)
    where = sw.Scene(rough.slide, "p", (rough.extent[0] + 1, rough.extent[1] + 1), downsample, (5, 5))
    mask = sw.Mask(np.ones((1, 1), bool), scale=width, offset=(0, 0))
    whole = sw.GridSampler(4, border).places(where).start.tolist()
    assert sw.GridSampler(4, border, region=mask, min_coverage=1).places(where).start.tolist() == whole


def test_the_grid_begins_at_the_regions_box():
    region = [sw.Region(shapely.box(33.5, 41.2, 70, 60), "a"), sw.Region(shapely.box(0, 0, 5, 5), "b")]
    sampler = sw.GridSampler(8, "edge", origin="region", region=region, include=["a"], min_coverage=0.05)
    assert sampler.places(scene(100, 100, (10, 8))).start.tolist() == [
        [x, y] for y in (41, 49, 52) for x in (33, 41, 49, 57, 60)
    ]
    slide = sw.GridSampler(8, region=region, include=["a"], min_coverage=0.05).places(scene(100, 100, (10, 8)))
    assert (slide.start % 8 == 0).all() and len(slide) > 0


def test_no_region_inside_gives_no_window():
    nothing = sw.Mask(np.zeros((5, 5), bool), scale=10, offset=(0, 0))
    for origin in ("slide", "region"):
        assert len(sw.GridSampler(region=nothing, origin=origin).places(scene(50, 50))) == 0


@settings(max_examples=40)
@given(seeds, st.integers(1, 9), st.sampled_from([0.0, 0.25, 0.5, 0.8]))
def test_windows_that_overlap_too_much_are_left_out_in_their_order(seed, stride, most):
    where = scene(50, 40, (9, 6))
    mask = random_mask(seed, 50, 40)
    start = sw.GridSampler(stride, region=mask).places(where).start
    kept: list[int] = []
    for row in range(len(start)):
        if not kept or (shared((9, 6), start[row : row + 1], start[kept]) <= most + 1e-9).all():
            kept.append(row)
    assert sw.GridSampler(stride, region=mask, max_overlap=most).places(where).start.tolist() == start[kept].tolist()


def test_options_that_do_not_go_together_are_refused():
    mask = sw.Mask(np.ones((2, 2), bool), scale=4, offset=(0, 0))
    for options, message in (
        ({"border": "adaptive", "region": mask}, "adaptive.*goes with the whole slide"),
        ({"origin": "region"}, "origin='region' goes with region="),
        ({"min_coverage": 0.5}, "min_coverage= goes with region="),
        ({"include": ["a"]}, "include= goes with region="),
        ({"include": ["a"], "exclude": ["b"], "region": mask}, r"include= or exclude=, not both: got \['a'\] and \['b'\]"),
        ({"include": "tumour", "region": mask}, "include must hold labels.*got 'tumour'"),
        ({"region": mask, "min_coverage": 0}, "min_coverage must be a share above 0 and at most 1, got 0"),
        ({"region": mask, "min_coverage": 1.5}, "got 1.5"),
        ({"max_overlap": 1.5}, "max_overlap must be a share from 0 to 1, got 1.5"),
        ({"max_overlap": float("nan")}, "max_overlap"),
        ({"margin": -1}, "margin must be at least 0, got -1"),
        ({"margin": 1.5}, "margin must be a whole number, got 1.5"),
        ({"stride": 0}, "stride"),
        ({"border": "wrap"}, "border"),
        ({"region": 7}, "region= must be a mask.*got int 7"),
        ({"region": "no/such/file.geojson"}, "does not exist"),
        ({"region": "tissue"}, r"does not exist: .* Tissue\(\) \(in the shell: tissue\)"),
        ({"region": []}, "holds no region"),
        ({"region": {}}, "holds no slide"),
        ({"absent": "maybe", "region": mask}, "absent"),
    ):
        with pytest.raises(sw.ConfigError, match=message):
            sw.GridSampler(**options)


def test_a_grid_too_fine_to_be_held_is_refused():
    with pytest.raises(sw.SamplingError, match="has 99993 × 99993 windows"):
        sw.GridSampler(1).places(scene(100_000, 100_000))
