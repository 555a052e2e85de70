from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamwsi as sw
from streamwsi.errors import ConfigError, MaskError

tables = st.builds(
    lambda seed, rows, columns, share: np.random.default_rng(seed).random((rows, columns)) < share,
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
)


def brute_force_coverage(mask: sw.Mask, x: float, y: float, width: float, height: float) -> float:
    """Area of the box inside, pixel by pixel, over the area of the box."""
    area = 0.0
    for (row, column), inside in np.ndenumerate(mask.array):
        left, top = mask.offset[0] + column * mask.scale[0], mask.offset[1] + row * mask.scale[1]
        across = min(x + width, left + mask.scale[0]) - max(x, left)
        down = min(y + height, top + mask.scale[1]) - max(y, top)
        area += inside * max(across, 0) * max(down, 0)
    return area / (width * height)


@given(
    tables,
    st.tuples(st.floats(0.3, 40), st.floats(0.3, 40)),
    st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    st.lists(st.tuples(st.floats(-150, 500), st.floats(-150, 500), st.floats(0.5, 400), st.floats(0.5, 400)), max_size=8),
)
def test_coverage_is_that_of_every_pixel_counted(table, scale, offset, boxes):
    mask = sw.Mask(table, scale=scale, offset=offset)
    boxes = np.array(boxes).reshape(-1, 4)
    shares = mask.coverage(boxes[:, :2], boxes[:, 2:])
    assert shares.shape == (len(boxes),)
    for share, box in zip(shares, boxes, strict=True):
        assert share == pytest.approx(brute_force_coverage(mask, *box), abs=1e-9)


@given(tables, st.integers(1, 5), st.integers(1, 7), st.floats(0.3, 40), st.integers(0, 2**32 - 1))
def test_full_boxes_are_one_and_empty_ones_nothing(table, kernel, boxes, scale, seed):
    """To the last bit, whatever the scale: a threshold of 1 must not lose windows that are all inside."""
    mask = sw.Mask(table, scale=scale, offset=(3.7, -1.3))
    rows, columns = table.shape
    xy = np.random.default_rng(seed).integers(0, (max(columns - kernel, 0) + 1, max(rows - kernel, 0) + 1), (boxes, 2))
    shares = mask.coverage(xy * scale + (3.7, -1.3), kernel * scale)
    for (x, y), share in zip(xy, shares, strict=True):
        window = table[y : y + kernel, x : x + kernel]
        if window.shape == (kernel, kernel):
            assert share == 1 if window.all() else share < 1
        assert share == 0 if not window.any() else share > 0


@given(tables, st.floats(0.3, 40), st.integers(0, 2**32 - 1))
def test_mask_and_inverse_share_what_the_mask_covers(table, scale, seed):
    mask = sw.Mask(table, scale=scale, offset=(0, 0))
    rows, columns = table.shape
    ends = np.sort(np.random.default_rng(seed).random((2, 6, 2)) * (columns * scale, rows * scale), axis=0)
    size = ends[1] - ends[0] + 1e-3
    corner = np.minimum(ends[0], (columns * scale, rows * scale) - size)
    keep = (corner >= 0).all(axis=1)
    both = mask.coverage(corner, size) + mask.inverse().coverage(corner, size)
    assert both[keep] == pytest.approx(1)


def test_points_are_inside_where_their_pixel_is():
    mask = sw.Mask(np.array([[True, False], [False, True]]), scale=(10, 20), offset=(100, 200))
    points = [(100, 200), (109.9, 219.9), (110, 219), (115, 225), (120, 240), (99.9, 210), (np.nan, 210), (1e30, 210)]
    assert mask.contains(points).tolist() == [True, True, False, True, False, False, False, False]
    assert mask.bounds_l0 == (100, 200, 120, 240)


def test_what_lies_beyond_the_mask_is_not_inside():
    mask = sw.Mask(np.ones((4, 4), bool), scale=8, offset=(0, 0))
    assert mask.coverage([(-8, 0), (16, 16), (24, 24), (100, 0)], 16).tolist() == [0.5, 1.0, 0.25, 0.0]


@pytest.mark.parametrize(
    ("shape", "dimensions"), [((296, 221), (2220, 2967)), ((297, 222), (2220, 2967)), ((1, 1), (10, 10)), ((5, 3), (7, 12))]
)
def test_a_mask_of_the_slides_form_covers_it(shape, dimensions):
    mask = sw.Mask.placed(np.ones(shape, bool), slide=dimensions)
    assert mask.bounds_l0 == pytest.approx((0, 0, *dimensions))
    assert mask.coverage([(0, 0)], dimensions).tolist() == [1.0]


def test_a_mask_of_another_form_is_refused():
    with pytest.raises(MaskError, match="rows and columns seem to be swapped"):
        sw.Mask.placed(np.ones((221, 296), bool), slide=(2220, 2967))
    with pytest.raises(MaskError, match="does not have the form of the slide"):
        sw.Mask.placed(np.ones((296, 260), bool), slide=(2220, 2967))


def test_a_wrong_scale_is_refused_with_the_right_one():
    array = np.ones((297, 222), bool)
    sw.Mask.placed(array, slide=(2220, 2967), scale=10)
    with pytest.raises(MaskError, match=r"reaches beyond the slide.*2220 × 2967.*scale of 10 × 9\.98"):
        sw.Mask.placed(array, slide=(2220, 2967), scale=16)
    with pytest.raises(MaskError, match=r"does not cover the slide.*scale of 10 × 9\.98"):
        sw.Mask.placed(array, slide=(2220, 2967), scale=8)
    with pytest.raises(MaskError, match="reaches beyond the slide"):
        sw.Mask.placed(array[:100, :100], slide=(2220, 2967), scale=10, offset=(1300, 0))
    part = sw.Mask.placed(array[:100, :100], slide=(2220, 2967), scale=10, offset=(1200, 0))
    assert part.bounds_l0 == (1200, 0, 2200, 1000)


def test_nothing_about_the_place_is_guessed():
    with pytest.raises(ConfigError, match="nothing says where the mask lies"):
        sw.Mask.placed(np.ones((3, 3), bool), scale=4)
    with pytest.raises(ConfigError, match="offset= goes with scale="):
        sw.Mask.placed(np.ones((3, 3), bool), slide=(9, 9), offset=(0, 0))


@pytest.mark.parametrize("array", [np.ones((3, 3), np.uint8), np.ones((3, 3, 1), bool), np.ones((0, 3), bool)])
def test_only_tables_of_booleans_are_masks(array):
    with pytest.raises(MaskError, match="2-D array of booleans"):
        sw.Mask(array, scale=1, offset=(0, 0))


@pytest.mark.parametrize("scale", [0, -1, (1, 0), np.nan, np.inf, (1, 2, 3), "x"])
def test_scales_that_cannot_be_are_refused(scale):
    with pytest.raises(ConfigError, match="scale"):
        sw.Mask(np.ones((3, 3), bool), scale=scale, offset=(0, 0))


def test_boxes_that_cannot_be_are_refused():
    mask = sw.Mask(np.ones((3, 3), bool), scale=1, offset=(0, 0))
    with pytest.raises(ConfigError, match="above 0"):
        mask.coverage([(0, 0)], 0)
    with pytest.raises(ConfigError, match=r"corners must be finite numbers \(n, 2\)"):
        mask.coverage([0, 0], 1)
    with pytest.raises(ConfigError, match="for 2 boxes"):
        mask.coverage([(0, 0), (1, 1)], [(1, 1)] * 3)
    with pytest.raises(ConfigError, match="finite"):
        mask.coverage([(np.nan, 0)], 1)
    assert mask.coverage(np.empty((0, 2)), 1).shape == (0,)


def test_the_array_is_the_masks_own():
    array = np.ones((3, 3), bool)
    mask = sw.Mask(array, scale=1, offset=(0, 0))
    array[:] = False
    assert mask.share == 1
    with pytest.raises(ValueError, match="read-only"):
        mask.array[0, 0] = False


def test_overlay_shows_what_is_inside_where_it_is(bundled: Path, tmp_path: Path):
    """The right half inside: the left one is greyed, the right one is as it was but for the edge."""
    array = np.zeros((30, 22), bool)
    array[:, 11:] = True
    mask = sw.Mask.placed(array, slide=bundled)
    picture = mask.overlay(bundled, tmp_path / "mask.png", longest_px=300)
    with sw.open_slide(bundled) as slide:
        plain = slide.thumbnail(300)
    middle = plain.shape[1] // 2
    same = (picture == plain).all(axis=2)
    assert same[2:-2, middle + 3 : -2].all()
    assert not same[:, : middle - 2].any()
    assert (picture[:, : middle - 2].max() < 220) and (plain[:, : middle - 2].max() > 240)
    from PIL import Image

    with Image.open(tmp_path / "mask.png") as saved:
        assert (np.array(saved) == picture).all()
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_overlay_on_another_slide_is_refused(bundled: Path):
    with pytest.raises(MaskError, match="reaches beyond the slide"):
        sw.Mask(np.ones((10, 10), bool), scale=1000, offset=(0, 0)).overlay(bundled)
