"""Whether what a slide says of its resolution can be believed.

In: what it says.  Out: a reason not to.  Pure; opens no slide.  This is the one place where that is decided.
"""

from __future__ import annotations

import math

LEAST_MPP, GREATEST_MPP = 0.02, 80.0
"""Micrometres per level-0 pixel: an objective of 100× with small pixels is at 0.05, a scanner's macro camera at 50. Numbers for
printing lie above, such as 300 dpi (84.7 µm) and 72 dpi (352.8 µm); units taken for one another are off by 10 or more."""
LONGEST_MM = 250.0
"""Of a slide's side: the largest glass slides, for sections of whole brains and breasts, have 200 mm."""
POWER_FACTOR = 5.0
"""How far the resolution may lie from that of the objective power: optics and cameras differ by 2 or 3, wrong units by 10."""


def mpp_of_power(power: float) -> float:
    """Micrometres per pixel that are called so many times: 10 / power, as 0.5 is called 20×, and the other way round.

    A convention, not optics. Source: TIAToolbox, ``utils/misc.py``, ``objective_power2mpp``.
    """
    return 10.0 / power


def why_not_believed(
    mpp: tuple[float, float] | None, extent_l0: tuple[int, int] | None = None, power: float | None = None
) -> str | None:
    """Why (x, y) micrometres per level-0 pixel are not believed, to stand behind the slide's name; None: they are.

    `extent_l0` is the slide's (width, height) in level-0 pixels and `power` its objective power, where they are known. Files
    that were not made by a scanner often hold a resolution for printing, or one whose unit was mistaken.
    """
    if mpp is None:
        return "does not say how many micrometres a pixel is"
    said = f"says that a pixel is {' × '.join(f'{side:g}' for side in mpp)} µm, which is hardly true of level 0"
    of_power = mpp_of_power(power) if power is not None and 0 < power < math.inf else None
    from_power = "" if of_power is None else f"; its objective power is {power:g}×, which is about {of_power:g} µm"
    if not all(LEAST_MPP <= side <= GREATEST_MPP for side in mpp):
        return f"{said} (a microscope slide's are from {LEAST_MPP:g} to {GREATEST_MPP:g} µm{from_power})"
    if extent_l0 is not None:
        longest_mm = max(pixels * side / 1000 for pixels, side in zip(extent_l0, mpp, strict=True))
        if longest_mm > LONGEST_MM:
            return f"{said} (the slide would be {longest_mm:.0f} mm long{from_power})"
    if of_power is not None and not all(1 / POWER_FACTOR <= side / of_power <= POWER_FACTOR for side in mpp):
        return f"{said} ({from_power.removeprefix('; ')})"
    return None


def believable_mpp(
    mpp: tuple[float, float] | None, extent_l0: tuple[int, int] | None = None, power: float | None = None
) -> tuple[float, float] | None:
    """(x, y) micrometres per level-0 pixel, if they are believed, else None; see :func:`why_not_believed`."""
    return mpp if why_not_believed(mpp, extent_l0, power) is None else None
