from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamwsi.maps.scale_bar import round_length


@given(longest=st.floats(1e-3, 1e9))
@example(longest=1000.0)
@example(longest=math.nextafter(1000, 0))
@example(longest=math.nextafter(1e-3, 1))
def test_a_scale_bar_has_a_round_length_that_fits(longest: float) -> None:
    length = round_length(longest)
    assert longest / 2.51 <= length <= longest
    digit = length / 10.0 ** math.floor(math.log10(length * 1.0001))
    assert any(digit == pytest.approx(round_digit) for round_digit in (1, 2, 5))
