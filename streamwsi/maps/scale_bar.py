"""How long a scale bar is.

In: the room there is.  Out: a round length.  Pure.
"""

from __future__ import annotations

import math


def round_length(longest_um: float) -> float:
    """The longest of …, 1, 2, 5, 10, 20, … that is not above `longest_um`, which is above 0."""
    power = 10.0 ** math.floor(math.log10(longest_um))
    return max(digit * power for digit in (0.5, 1, 2, 5) if digit * power <= longest_um)  # the logarithm may be rounded up
