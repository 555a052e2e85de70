"""What may be given as a region, and how much of a window it covers."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

import streamwsi as sw
from streamwsi.sampling.area import Polygons
from tests.sampling.helpers import every_place, scene, seeds

SQUARE = sw.Region(shapely.box(20, 20, 80, 80), "square")
GRID = {"stride": 10, "min_coverage": 1}


def star(seed: int, corners: int) -> shapely.Polygon:
    """A polygon with many corners and small holes, in 200 × 200."""
    random = np.random.default_rng(seed)
    angle = np.sort(random.uniform(0, 2 * np.pi, corners))
    radius = random.uniform(40, 95, corners)
    outer = shapely.Polygon(np.column_stack([100 + radius * np.cos(angle), 100 + radius * np.sin(angle)]))
    holes = [shapely.Point(*random.uniform(30, 170, 2)).buffer(random.uniform(0.01, 9), quad_segs=8) for _ in range(12)]
    return outer.buffer(0).difference(shapely.union_all(holes))


@settings(max_examples=25)
@given(seeds, st.sampled_from([5, 60, 900]), st.floats(1, 60))
def test_coverage_by_polygons_is_exact(seed, corners, side):
    shape = star(seed, corners)
    xy = np.random.default_rng(seed).uniform(-20, 200, (60, 2))
    shares = Polygons([shape], (200, 200)).coverage(xy, np.full_like(xy, side))
    boxes = shapely.box(*xy.T, *(xy + side).T)
    assert shares == pytest.approx(shapely.area(shapely.intersection(boxes, shape)) / side**2, abs=1e-9)
    assert ((shares == 1) == shapely.covers(shape, boxes)).all()


def test_corners_that_lie_upon_one_another_do_no_harm():
    many = [(0, 0), *[(50.0, 0.0)] * 300, (50, 50), *[(0.0, 50.0)] * 300]
    shares = Polygons([shapely.Polygon(many)], (100, 100)).coverage(np.array([[40.0, 40.0], [10, 10]]), np.full((2, 2), 20.0))
    assert shares.tolist() == [0.25, 1.0]


@settings(max_examples=10)
@given(seeds, st.sampled_from([1.3, 2.0, 3.3]))
def test_no_window_that_must_be_inside_touches_a_hole(seed, downsample):
    """However small: the smallest here are a hundredth of a pixel across."""
    shape, where = star(seed, 40), scene(200, 200, (7, 7), downsample)
    places = every_place(where)
    inside = places[shapely.covers(shape, shapely.box(*(places * downsample).T, *((places + 7) * downsample).T))]
    region = [sw.Region(shape)]
    assert sw.GridSampler(1, region=region, min_coverage=1).places(where).start.tolist() == inside.tolist()
    if len(inside):
        drawn = sw.RandomSampler(len(inside), region=region, min_coverage=1, seed=seed).places(where)
        assert sorted(drawn.start.tolist()) == sorted(inside.tolist())


def test_of_labels_that_cover_a_window_alike_it_has_the_smaller_ones():
    regions = [sw.Region(shapely.box(0, 0, 100, 100), "tissue"), SQUARE, sw.Region(shapely.box(0, 0, 10, 100))]
    places = sw.GridSampler(10, region=regions).places(scene(100, 100, (10, 10)))
    assert places.names == ("square", "tissue")
    in_square = ((places.start >= 20) & (places.start < 80)).all(axis=1)
    assert (places.label == np.where(places.start[:, 0] == 0, -1, np.where(in_square, 0, 1))).all()
    plain = sw.GridSampler(10, region=regions, labelled=False)
    assert not plain.carries_labels and len(plain.places(scene(100, 100, (10, 10)))) == 100


def starts(region, where: sw.Scene | None = None, **options) -> list[list[int]]:
    return sw.GridSampler(region=region, **(options or GRID)).places(where or scene(100, 100, (10, 10))).start.tolist()


def test_the_same_region_may_be_given_in_many_ways(tmp_path: Path):
    array = np.zeros((100, 100), bool)
    array[20:80, 20:80] = True
    mask = sw.Mask(array, scale=1, offset=(0, 0))
    expected = starts(mask)
    assert expected == [[x, y] for y in range(20, 80, 10) for x in range(20, 80, 10)]
    drawn = sw.write_geojson([SQUARE], tmp_path / "drawn.geojson")
    folder = tmp_path / "folder"
    folder.mkdir()
    sw.write_geojson([SQUARE], folder / "s.geojson.gz")
    mask.save(folder / "t.npz")
    np.save(tmp_path / "mask.npy", array)
    for region in (
        [SQUARE],
        [SQUARE.polygon],
        sw.PolygonMask([SQUARE], (100, 100), scale=9),
        drawn,
        str(mask.save(tmp_path / "mask.npz")),
        tmp_path / "mask.npy",
        folder,
        {"s": [SQUARE]},
        {("p", "s"): drawn, "s": [sw.Region(shapely.box(0, 0, 5, 5))]},
        lambda slide: [SQUARE] if slide.dimensions == (100, 100) else None,
        lambda slide: {slide.id: folder},
        sw.Annotated(folder),
        sw.Annotated(sw.Annotated([SQUARE], inverse=True), inverse=True),
        sw.Annotated(mask.inverse(), inverse=True),
        sw.Annotated([sw.Region(shapely.box(17, 17, 83, 83))], buffer=-3, unit="px"),
    ):
        assert starts(region) == expected, region
    assert starts(folder, scene(100, 100, (10, 10), slide="t")) == expected


def test_a_region_of_which_a_negative_buffer_leaves_nothing_is_left_out(caplog: pytest.LogCaptureFixture):
    speck = sw.Region(shapely.box(2, 2, 5, 5), "speck")
    core = sw.Region(shapely.box(20, 20, 80, 80), "core")
    where = scene(100, 100, (10, 10))
    assert starts(sw.Annotated([speck, core], buffer=-5, unit="px"), where) == starts(
        [sw.Region(shapely.box(25, 25, 75, 75))], where
    )
    assert "nothing is left of a region (speck)" in caplog.text and "the others are used" in caplog.text


def test_what_is_drawn_can_be_grown_cut_out_and_turned_round():
    where = scene(100, 100, (10, 10), mpp=(0.5, 0.5))
    core = sw.Region(shapely.box(40, 40, 60, 60), "core")
    assert starts(sw.Annotated([core], buffer=10)) == starts(sw.Annotated([core], buffer=20, unit="px"))
    assert len(starts(sw.Annotated([core], buffer=10))) > len(starts([core])) == 4
    inner = sw.Region(core.polygon, "square")
    assert starts(sw.Annotated([SQUARE, inner], nested_as_holes=True)) == [
        s for s in starts([SQUARE]) if s not in starts([core])
    ]
    cut = starts(sw.Annotated([SQUARE, core], nested_as_holes=["core"]), where)
    assert cut == [s for s in starts([SQUARE]) if s not in starts([core])]
    rest = starts(sw.Annotated([SQUARE], inverse=True))
    assert sorted(rest + starts([SQUARE])) == sorted(sw.GridSampler(10).places(where).start.tolist())
    assert not sw.GridSampler(region=sw.Annotated([SQUARE], inverse=True)).carries_labels


def test_whether_windows_carry_labels_is_known_without_a_slide(tmp_path: Path):
    drawn = sw.write_geojson([SQUARE], tmp_path / "s.geojson")
    mask = sw.Mask(np.ones((2, 2), bool), scale=50, offset=(0, 0))
    for region, carries in (
        ([SQUARE], True),
        ([SQUARE.polygon], False),
        (mask, False),
        (drawn, True),
        (tmp_path, True),
        (mask.save(tmp_path / "m.npz"), False),
        ({"s": mask, "t": [SQUARE]}, True),
        (sw.Annotated(drawn), True),
        (lambda slide: [SQUARE], False),
    ):
        assert sw.RandomSampler(3, region=region).carries_labels == carries
    told = sw.RandomSampler(3, region=lambda slide: [SQUARE], labelled=True)
    assert told.carries_labels and told.places(scene(100, 100)).names == ("square",)
    assert sw.RandomSampler(3, region=lambda slide: [SQUARE], exclude=["other"]).carries_labels


def test_a_slide_whose_region_cannot_be_used_fails_and_is_named(tmp_path: Path):
    (tmp_path / "s.geojson").write_text("{")
    (tmp_path / "t.png").write_bytes(b"no picture")
    both = tmp_path / "both"
    both.mkdir()
    for name in ("s.npz", "s.png"):
        (both / name).touch()
    away = [sw.Region(shapely.box(500, 500, 600, 600), "far")]
    large = sw.Mask(np.ones((9, 9), bool), scale=50, offset=(0, 0))
    for region, slide, message in (
        (tmp_path, "s", "s.geojson.*not JSON"),
        (tmp_path, "t", "t.png"),
        (tmp_path, "u", r"holds no file for it: none of the 2 masks and annotations there is called u\.…"),
        (both, "s", "several files for it: s.npz, s.png"),
        ({"t": away}, "s", "region= has neither 's' nor"),
        (away, "s", r"no region lies on the slide, which is 100 × 100.*\(far\)"),
        (large, "s", "reaches beyond the slide"),
        (lambda slide: 3, "s", "got int 3"),
        (lambda slide: [], "s", "holds no region"),
        (sw.Annotated(large, buffer=3), "s", "buffer= and nested_as_holes= go with regions"),
        (sw.Annotated([SQUARE], buffer=-99, unit="px"), "s", "nothing is left of a region"),
        (sw.Annotated([sw.Region(shapely.box(-1, -1, 101, 101))], inverse=True), "s", "nothing of the slide lies outside"),
    ):
        with pytest.raises(sw.SamplingError, match=f"slide '{slide}' of patient 'p': (.|\n)*{message}"):
            sw.GridSampler(region=region).places(scene(100, 100, slide=slide))
    with pytest.raises(sw.SamplingError, match="unit='px'"):
        sw.GridSampler(region=sw.Annotated([SQUARE], buffer=3)).places(scene(100, 100, mpp=None))
    with pytest.raises(KeyError, match="the user's own"):
        sw.GridSampler(region=lambda slide: {}["the user's own"]).places(scene(100, 100))


def test_points_in_annotations_are_refused_unless_they_may_be_left_out(tmp_path: Path):
    path = tmp_path / "s.geojson"
    text = sw.write_geojson([SQUARE], path).read_text()
    point = '{"type":"Feature","geometry":{"type":"Point","coordinates":[1,2]},"properties":{}}'
    path.write_text(text.replace('"features":[', f'"features":[{point},'))
    with pytest.raises(sw.SamplingError, match="holds what is no area"):
        starts(path)
    assert starts(sw.Annotated(path, areas_only=True)) == starts([SQUARE])


def test_options_of_regions_that_cannot_be_are_refused(tmp_path: Path):
    (tmp_path / "slide.txt").touch()
    for make, message in (
        (lambda: sw.Annotated([SQUARE], unit="mm"), "unit must be one of"),
        (lambda: sw.Annotated([SQUARE], buffer=float("nan")), "buffer"),
        (lambda: sw.Annotated([SQUARE], nested_as_holes="core"), r"nested_as_holes must be True or labels, as in \('core',\)"),
        (lambda: sw.Annotated(tmp_path / "slide.txt"), "must be called .geojson.gz"),
        (lambda: sw.Annotated([3]), "must hold regions only"),
        (lambda: sw.Tissue(method="best"), "method must be one of"),
        (lambda: sw.Tissue(mpp=4, level=1), "one of level=, mpp= and max_px="),
        (lambda: sw.Tissue(closing=-1), "closing must be at least 0"),
    ):
        with pytest.raises(sw.ConfigError, match=message):
            make()


def test_tissue_is_found_on_each_slide(bundled: Path, shared_slides: Path):
    mask = sw.TissueMask(bundled, mpp=8)
    with sw.open_slide(bundled) as reader:
        where = sw.Scene(sw.Slide(bundled, "s", reader.info), "p", reader.info.dimensions, 1.0, (128, 128), reader)
        found = sw.GridSampler(region=sw.Tissue(mpp=8)).places(where).start
        # a resolution that the user has given counts, and not the slide's own
        believed = msgspec.structs.replace(reader.info, mpp=(reader.info.mpp[0] * 4, reader.info.mpp[1] * 4))
        other = sw.Scene(sw.Slide(bundled, "s", believed), "p", reader.info.dimensions, 1.0, (128, 128), reader)
        four_times = sw.Tissue(mpp=32, min_object=400, max_hole=200, closing=80)
        assert sw.GridSampler(region=four_times).places(other).start.tolist() == found.tolist()
    assert found.tolist() == sw.GridSampler(region=mask).places(where).start.tolist() and 50 < len(found) < 200
    # the polygons supplied with the slide: one with 41 holes, none of which a window may touch
    path = shared_slides / "annotations" / "CMU-1-Small-Region.tissues.geojson"
    (region,) = sw.read_annotations(path)
    start = sw.PoissonDiskSampler(40, region=path, min_coverage=1).places(where).start
    assert len(start) > 100 and shapely.covers(region.polygon, shapely.box(*start.T, *(start + 128).T)).all()


def test_repairs_are_said(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    bow = '{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[0,0],[40,40],[40,0],[0,40],[0,0]]]},"properties":{}}'
    (tmp_path / "s.geojson").write_text(bow)
    with caplog.at_level(logging.WARNING):
        assert starts(tmp_path, min_coverage=0.3)
    assert "was repaired" in caplog.text


def test_masks_and_points_need_no_extra():
    """In an interpreter where shapely and scikit-image cannot be imported."""
    program = """
import sys
sys.modules["shapely"] = sys.modules["skimage"] = None
import numpy as np, streamwsi as sw
from tests.sampling.helpers import scene
mask = sw.Mask(np.ones((5, 5), bool), scale=20, offset=(0, 0))
for sampler in (sw.GridSampler(50, region=mask), sw.PoissonDiskSampler(60, region=mask), sw.PointSampler([(9, 9)])):
    sampler.places(scene(100, 100))
for make in (lambda: sw.Tissue(), lambda: sw.GridSampler(region=sw.Annotated([0]))):
    try:
        make()
    except sw.ConfigError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'streamwsi[regions]'") == 2
