from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamwsi.microns import GREATEST_MPP, LEAST_MPP, believable_mpp, mpp_of_power, why_not_believed


@pytest.mark.parametrize(
    ("mpp", "extent", "believed"),
    [
        (0.25, (100_000, 80_000), True),
        (0.499, (2220, 2967), True),
        (28.97, (2000, 1500), True),  # a scanner's overview
        (0.5, (400_000, 150_000), True),  # a whole brain on a large slide
        (352.9, (10_000, 5000), False),  # 72 dpi: a slide of three metres
        (0.00499, (2220, 2967), False),  # centimetres taken for something else
        (10.0, (100_000, 80_000), False),  # a slide of a metre
    ],
)
def test_a_resolution_is_believed_where_a_microscope_slide_can_have_it(
    mpp: float, extent: tuple[int, int], believed: bool
) -> None:
    assert (believable_mpp((mpp, mpp), extent) is not None) == believed


def test_no_resolution_is_not_believed() -> None:
    assert believable_mpp(None, (100, 100)) is None


@pytest.mark.parametrize("mpp", [0.0, -0.5, float("nan"), float("inf"), 25400 / 300, 25400 / 72, 0.00499])
def test_what_no_microscope_slide_has_is_refused_without_knowing_its_size(mpp: float) -> None:
    why = why_not_believed((0.5, mpp))
    assert why is not None
    assert f"0.5 × {mpp:g} µm, which is hardly true of level 0 (a microscope slide's are from 0.02 to 80 µm)" in why


def test_a_resolution_and_a_power_that_contradict_each_other_are_both_named() -> None:
    assert why_not_believed((352.9, 352.9), None, 20.0) == (
        "says that a pixel is 352.9 × 352.9 µm, which is hardly true of level 0 (a microscope slide's are from 0.02 to 80 µm; "
        "its objective power is 20×, which is about 0.5 µm)"
    )
    assert why_not_believed((5.0, 5.0), (1000, 1000), 20.0) == (
        "says that a pixel is 5 × 5 µm, which is hardly true of level 0 (its objective power is 20×, which is about 0.5 µm)"
    )
    assert why_not_believed((0.05, 0.05), None, 20.0) is not None
    assert why_not_believed((5.0, 5.0), (1000, 1000)) is None


@pytest.mark.parametrize(("power", "mpp"), [(20.0, 0.499), (20.0, 0.2425), (40.0, 0.2265), (40.0, 0.16), (100.0, 0.05)])
def test_the_optics_that_there_are_contradict_nothing(power: float, mpp: float) -> None:
    assert believable_mpp((mpp, mpp), (100_000, 80_000), power) == (mpp, mpp)


@given(st.floats(LEAST_MPP, GREATEST_MPP), st.floats(0.2, 5.0))
def test_a_power_is_believed_within_a_factor(mpp: float, factor: float) -> None:
    assert why_not_believed((mpp, mpp), None, mpp_of_power(mpp) * factor * 0.999) is None or factor < 0.201
    assert why_not_believed((mpp, mpp), None, mpp_of_power(mpp) * 5.1) is not None


@pytest.mark.parametrize("power", [0.0, float("nan"), float("inf")])
def test_a_power_that_is_none_says_nothing(power: float) -> None:
    assert why_not_believed((0.5, 0.5), None, power) is None
