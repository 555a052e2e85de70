"""An output cut into blocks, and which windows touch which.

In: a grid of windows, the size of a block.  Out: places, boxes, counts.  Never touches data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from streamwsi.arrays.grid import Axis, PatchGrid
from streamwsi.geometry import Int64Array

Place = tuple[int, ...]


class Share(NamedTuple):
    """What a block has of a window along one axis."""

    block: int
    """Which block along the axis."""
    inside: slice
    """Where it lies in the block."""
    part: slice
    """Where it lies in the window."""


@dataclass(frozen=True)
class Blocks:
    """The spatial extent of an output, cut into blocks."""

    grid: PatchGrid
    size: tuple[int, ...]

    def places(self) -> Iterator[Place]:
        """All blocks, in row-major order."""
        return itertools.product(
            *(range(-(-axis.extent // size)) for axis, size in zip(self.grid.axes, self.size, strict=True))
        )

    def spans(self, place: Place) -> list[tuple[int, int]]:
        """First and last index + 1 along each axis."""
        return [
            (along * size, min((along + 1) * size, axis.extent))
            for along, size, axis in zip(place, self.size, self.grid.axes, strict=True)
        ]

    def slices(self, place: Place) -> list[slice]:
        """The same as slices."""
        return [slice(*span) for span in self.spans(place)]

    def box(self, place: Place) -> Int64Array:
        """The same as a box."""
        return np.array(self.spans(place), dtype=np.int64)

    def shares(self, place: Place) -> Iterator[tuple[Share, ...]]:
        """What of the window at a place lies in which block: for each block that it touches, its share along each axis."""
        return itertools.product(*map(_shares_along, self.grid.axes, self.size, place))

    def window_ranges(self, place: Place) -> list[range]:
        """Along each axis, the windows that touch a block."""
        return [axis.touching(*span) for axis, span in zip(self.grid.axes, self.spans(place), strict=True)]

    def n_windows(self, place: Place) -> int:
        """How many windows touch a block."""
        return math.prod(len(range_) for range_ in self.window_ranges(place))

    def windows(self, place: Place) -> Iterator[int]:
        """Their places in the plan."""
        return (self.grid.index(window) for window in itertools.product(*self.window_ranges(place)))


def _shares_along(axis: Axis, size: int, along: int) -> list[Share]:
    """The shares that blocks of a size have of the window `along` an axis."""
    start, stop = axis.spans[along]
    stop = min(stop, axis.extent)
    shares = []
    for block in range(start // size, -(-stop // size)):
        first = block * size
        low, high = max(start, first), min(stop, first + size)
        shares.append(Share(block, slice(low - first, high - first), slice(low - start, high - start)))
    return shares
