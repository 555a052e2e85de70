from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import streamwsi as sw
from streamwsi.cli.main import cli
from streamwsi.errors import ConfigError, MaskError


def test_pixels_are_inside_where_their_centres_are():
    """A triangle with a hole, at two level-0 pixels a pixel: its slope goes through no centre."""
    triangle = shapely.Polygon([(0, 0), (12.5, 0), (0, 12.5)], [[(1.5, 1.5), (1.5, 4.5), (4.5, 4.5), (4.5, 1.5)]])
    picture = sw.PolygonMask([triangle], (14, 12), scale=2).array
    assert ["".join(".#"[pixel] for pixel in row) for row in picture.astype(int)] == [
        "######.",
        "#.###..",
        "####...",
        "###....",
        "##.....",
        "#......",
    ]


@given(st.integers(0, 2**32 - 1), st.floats(1, 7))
def test_coverage_is_that_of_the_polygons_but_for_pixels_at_edges(seed, scale):
    random = np.random.default_rng(seed)
    blob = shapely.MultiPoint(random.random((8, 2)) * 300).convex_hull.difference(shapely.Point(150, 150).buffer(40))
    mask = sw.PolygonMask([blob] if blob.area else [], (300, 200), scale=scale)
    boxes = random.random((20, 2)) * (250, 150)
    exact = shapely.area(shapely.intersection(shapely.box(*boxes.T, *(boxes + 50).T), mask.area)) / 2500
    # a pixel at an edge is wrong by less than itself, and an edge of length l crosses about l pixels
    assert np.abs(mask.coverage(boxes, 50) - exact).max() < 400 * scale / 2500


def test_polygons_that_overlap_do_not_cancel():
    mask = sw.PolygonMask([shapely.box(0, 0, 60, 60), shapely.box(30, 30, 90, 90)], (100, 100), scale=1)
    assert mask.array.sum() == 60 * 60 + 60 * 60 - 30 * 30


def test_the_inverse_is_the_rest_of_the_slide():
    ring = shapely.box(10, 10, 90, 90).difference(shapely.box(40, 40, 60, 60))
    mask = sw.PolygonMask([sw.Region(ring)], (100, 100), scale=1)
    rest = mask.inverse()
    assert (rest.array == ~mask.array).all()
    points = np.array([(50, 50), (5, 5), (20, 20), (-5, 50), (500, 50)])
    assert mask.contains(points).tolist() == [False, False, True, False, False]
    assert rest.contains(points).tolist() == [True, True, False, False, False]
    assert (rest.inverse().array == mask.array).all()
    assert (sw.PolygonMask([ring], (100, 100), scale=1, inverse=True).array == rest.array).all()
    assert sw.PolygonMask([], (100, 100), scale=1).share == 0 and sw.PolygonMask([], (100, 100), inverse=True).share == 1


def test_resolution_is_that_asked_for(bundled: Path):
    square = shapely.box(0, 0, 500, 500)
    assert sw.PolygonMask([square], bundled).scale == (1, 1)
    assert sw.PolygonMask([square], bundled, max_px=100).shape == (100, 75)
    coarse = sw.PolygonMask([square], bundled, scale=7)
    coarse.check_covers(bundled)
    assert (coarse.shape, coarse.scale) == ((424, 318), (7, 7))
    for options in ({"scale": 0}, {"scale": np.nan}, {"scale": 2, "max_px": 9}, {"max_px": 1}):
        with pytest.raises(ConfigError):
            sw.PolygonMask([square], bundled, **options)
    with pytest.raises(MaskError, match="give a larger scale="):
        sw.PolygonMask([square], bundled, scale=0.01)


def test_polygons_of_another_slide_are_refused():
    away = sw.Region(shapely.box(5000, 5000, 6000, 6000), "Tumor", "far")
    with pytest.raises(MaskError, match=r"no region lies on the slide, which is 300 × 200.*region 'far' \(Tumor\)"):
        sw.PolygonMask([away], (300, 200))
    assert sw.PolygonMask([away, shapely.box(0, 0, 30, 20)], (300, 200), scale=1).array.sum() == 600


def test_a_saved_polygon_mask_is_a_mask(tmp_path: Path):
    mask = sw.PolygonMask([shapely.box(10, 10, 90, 90)], (100, 120), scale=3)
    back = sw.read_mask(mask.save(tmp_path / "m.npz"), slide=(100, 120))
    assert (back.array == mask.array).all() and back.bounds_l0 == mask.bounds_l0


def test_the_command_writes_mask_and_picture(bundled: Path, tmp_path: Path):
    out, picture = tmp_path / "m.npz", tmp_path / "m.png"
    done = CliRunner().invoke(cli, ["mask", str(bundled), "--out", str(out), "--png", str(picture), "--mpp", "8"])
    assert done.exit_code == 0, done.output
    assert "inside" in done.output and str(picture) in done.output
    with np.load(out) as file:
        assert sorted(file.files) == ["mask", "offset", "scale"]
        assert file["mask"].dtype == bool and file["mask"].shape == (186, 139)
        assert file["scale"].tolist() == [16, 16] and file["offset"].tolist() == [0, 0]
    assert (sw.read_mask(out, slide=bundled).array == sw.TissueMask(bundled, mpp=8).array).all()
    with Image.open(picture) as drawn:
        assert max(drawn.size) == 1600


def test_without_the_extra_the_way_out_is_said():
    """In an interpreter where shapely and scikit-image cannot be imported; masks of arrays work all the same."""
    program = """
import sys
sys.modules["shapely"] = sys.modules["skimage"] = None
import numpy as np, streamwsi as sw
print(sw.Mask(np.ones((2, 2), bool), scale=1, offset=(0, 0)).coverage([(0, 0)], 2)[0])
for make in (lambda: sw.PolygonMask([], (9, 9)), lambda: sw.TissueMask(sys.argv[1], max_px=64)):
    try:
        make()
    except sw.ConfigError as error:
        print(error)
"""
    bundled = Path(__file__).parents[2] / "examples" / "data" / "CMU-1-Small-Region.svs"
    done = subprocess.run([sys.executable, "-c", program, str(bundled)], capture_output=True, text=True, check=True)
    one, polygons, tissue = done.stdout.splitlines()
    assert one == "1.0"
    assert polygons.startswith("a mask of polygons needs shapely") and "pip install 'streamwsi[regions]'" in polygons
    assert "skimage" in tissue and "pip install 'streamwsi[regions]'" in tissue
