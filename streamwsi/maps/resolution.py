"""Whether a slide's resolution can be believed, and how long a scale bar is.

In: what a slide says.  Out: micrometres.  Pure.
"""

from __future__ import annotations

import math

_LEAST_MPP, _GREATEST_MPP = 0.02, 100.0
"""Micrometres per level-0 pixel: an objective of 100× with small pixels is at 0.05, a scanner's macro camera at 50."""
_LONGEST_MM = 250.0
"""Of a slide's side: the largest glass slides, for sections of whole brains and breasts, have 200 mm."""


def believable_mpp(mpp: tuple[float, float] | None, extent_l0: tuple[int, int]) -> tuple[float, float] | None:
    """(x, y) micrometres per level-0 pixel where a microscope slide can have them, else None.

    Files that were not made by a scanner often hold a resolution for printing, such as 72 dpi: 352.8 µm per pixel, and a slide
    of some metres. A scale bar of it would be a lie.
    """
    if mpp is None or not all(_LEAST_MPP <= side <= _GREATEST_MPP for side in mpp):
        return None
    if any(pixels * side > 1000 * _LONGEST_MM for pixels, side in zip(extent_l0, mpp, strict=True)):
        return None
    return mpp


def round_length(longest_um: float) -> float:
    """The longest of …, 1, 2, 5, 10, 20, … that is not above `longest_um`, which is above 0."""
    power = 10.0 ** math.floor(math.log10(longest_um))
    return max(digit * power for digit in (0.5, 1, 2, 5) if digit * power <= longest_um)  # the logarithm may be rounded up
