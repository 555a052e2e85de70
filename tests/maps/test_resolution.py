from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamwsi.maps.resolution import believable_mpp, round_length


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


@given(longest=st.floats(1e-3, 1e9))
@example(longest=1000.0)
@example(longest=math.nextafter(1000, 0))
@example(longest=math.nextafter(1e-3, 1))
def test_a_scale_bar_has_a_round_length_that_fits(longest: float) -> None:
    length = round_length(longest)
    assert longest / 2.51 <= length <= longest
    digit = length / 10.0 ** math.floor(math.log10(length * 1.0001))
    assert any(digit == pytest.approx(round_digit) for round_digit in (1, 2, 5))
