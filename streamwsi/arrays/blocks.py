"""An output cut into blocks, and which windows touch which.

In: a grid of windows, the size of a block.  Out: places, boxes, counts.  Never touches data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from streamwsi.arrays.grid import PatchGrid
from streamwsi.geometry import Int64Array

Place = tuple[int, ...]


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

    def touched_by(self, box: Int64Array) -> Iterator[Place]:
        """The blocks that share a place with a window."""
        ranges = [
            range(start // size, -(-min(stop, axis.extent) // size))
            for (start, stop), size, axis in zip(box.tolist(), self.size, self.grid.axes, strict=True)
        ]
        return itertools.product(*ranges)

    def window_ranges(self, place: Place) -> list[range]:
        """Along each axis, the windows that touch a block."""
        return [axis.touching(*span) for axis, span in zip(self.grid.axes, self.spans(place), strict=True)]

    def n_windows(self, place: Place) -> int:
        """How many windows touch a block."""
        return math.prod(len(range_) for range_ in self.window_ranges(place))

    def windows(self, place: Place) -> Iterator[int]:
        """Their places in the plan."""
        return (self.grid.index(window) for window in itertools.product(*self.window_ranges(place)))
