from __future__ import annotations

import math
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamwsi.errors import ConfigError
from streamwsi.maps.colours import NOT_COLOURED, Colouring, Scale

tables = arrays(np.float64, (6, 5), elements=st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, -np.inf]))


@given(values=tables, threshold=st.none() | st.floats(-1e6, 1e6), cmap=st.sampled_from(["viridis", "magma", "gray"]))
def test_a_value_has_the_colour_map_s_colour_at_its_place(values: Any, threshold: float | None, cmap: str) -> None:
    colours = Scale(cmap, -100.0, 1000.0, threshold, (False, False)).rgb(values)
    for value, colour in zip(values.ravel().tolist(), colours.reshape(-1, 3).tolist(), strict=True):
        if math.isnan(value) or (threshold is not None and value < threshold):
            assert tuple(colour) == NOT_COLOURED
        else:
            place = min(1.0, max(0.0, (value + 100) / 1100))
            expected = [round(255 * part) for part in matplotlib.colormaps[cmap](place)[:3]]
            assert np.abs(np.array(colour) - expected).max() <= 2  # the next of 256 colours, where rounding differs


@given(first=tables, second=tables, threshold=st.none() | st.floats(-1e6, 1e6))
def test_ranges_are_joined_as_if_the_values_had_been_together(first: Any, second: Any, threshold: float | None) -> None:
    colouring = Colouring(threshold=threshold)
    together = colouring.range_of(np.concatenate([first, second]))
    assert colouring.range_of(first) | colouring.range_of(second) == together


@given(values=tables, threshold=st.none() | st.floats(-1e6, 1e6))
def test_the_ends_are_the_extremes_of_what_is_coloured(values: Any, threshold: float | None) -> None:
    colouring = Colouring(threshold=threshold)
    scale = colouring.scale(colouring.range_of(values))
    assert scale.low < scale.high
    coloured = values[scale.coloured(values)]
    finite = coloured[np.isfinite(coloured)]
    if len(finite) and np.ptp(finite) > 1e-3:
        assert (scale.low, scale.high) == (finite.min(), finite.max())
    assert scale.extend == ((coloured < scale.low).any(), (coloured > scale.high).any())


def test_given_ends_are_kept_and_what_lies_beyond_is_known() -> None:
    colouring = Colouring(vmin=0.2, vmax=0.8)
    scale = colouring.scale(colouring.range_of(np.array([0.1, 0.5, 0.8])))
    assert (scale.low, scale.high, scale.extend) == (0.2, 0.8, (True, False))


def test_values_that_differ_by_rounding_are_one_value() -> None:
    values = np.array([0.1, np.nextafter(0.1, 1)])
    scale = Colouring().scale(Colouring().range_of(values))
    assert scale.high - scale.low > 0.1
    assert len(np.unique(scale.rgb(values[None])[0], axis=0)) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vmin": np.nan}, "vmin must be a finite number, got nan"),
        ({"threshold": np.inf}, "threshold must be a finite number, got inf"),
        ({"vmin": 1.0, "vmax": 1.0}, r"vmin must be below vmax, got 1\.0 and 1\.0"),
        ({"alpha": -0.1}, r"alpha must be from 0 to 1, got -0\.1"),
    ],
    ids=str,
)
def test_what_cannot_be_coloured_is_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Colouring(**options)  # type: ignore[arg-type]
