"""Sums over cells of windows that count more at some of their places than at others.

In: windows, a value for each, weights.  Out: weighted means on cells.  Never opens a slide.

A window counts on a cell as much as its weights there add up to, pixel by pixel of what is read: with weights that are all
alike, as much as its area there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.arrays.weights import Weights
from streamwsi.geometry import Int64Array

Float64Array = npt.NDArray[np.float64]


class WeightedSums:
    """Sums of windows that come in parts, anywhere."""

    def __init__(self, extent: tuple[int, int], cell: tuple[int, int], channels: int, weights: Weights) -> None:
        self._extent, self._cell = np.array(extent), np.array(cell)
        columns, rows = (-(-self._extent // self._cell)).tolist()
        self._values = np.zeros((rows, columns, channels))
        self._weights = np.zeros((rows, columns, 1))
        self._of = weights
        self._integrals: dict[tuple[int, int], Float64Array] = {}

    def add(self, start: Int64Array, size: Int64Array, values: npt.NDArray[Any]) -> None:
        """Add windows at `start`, (n, 2), of `size`, (n, 2), in pixels of what is read; `values` are (n, channels)."""
        if not len(start):
            return
        sizes, group = np.unique(size, axis=0, return_inverse=True)
        for number, (width, height) in enumerate(sizes.tolist()):
            members = np.flatnonzero(group.ravel() == number)
            self._add_alike(start[members], (width, height), values[members])

    def means(self) -> Float64Array:
        """(rows, columns, channels) float64; NaN where no window weighs anything. Nothing can be added afterwards."""
        with np.errstate(invalid="ignore"):  # 0 / 0 where no window lies
            self._values /= self._weights
        return self._values

    def _add_alike(self, start: Int64Array, size: tuple[int, int], values: npt.NDArray[Any]) -> None:
        """Add windows of one size: each to the cells that it touches, one after the other."""
        low, high = np.maximum(start, 0), np.minimum(start + size, self._extent)
        first = low // self._cell
        across, down = (-(-high // self._cell) - first).max(axis=0).tolist()
        with np.errstate(invalid="ignore"):  # inf - inf where such windows meet
            for step in np.ndindex(max(down, 0), max(across, 0)):
                cell = first + step[::-1]
                begin, end = np.maximum(low, cell * self._cell), np.minimum(high, (cell + 1) * self._cell)
                touching = np.flatnonzero((end > begin).all(axis=1))
                inside = self._integral(size), begin[touching] - start[touching], end[touching] - start[touching]
                self._add_to(cell[touching], _within(*inside), values[touching])

    def _add_to(self, cell: Int64Array, weights: Float64Array, values: npt.NDArray[Any]) -> None:
        """Add windows to one cell each, (n, 2) (column, row); those that weigh nothing there leave it as it is."""
        weighing = weights > 0
        columns, rows = cell[weighing].T
        weight = weights[weighing, None] / math.prod(self._cell.tolist())
        np.add.at(self._weights, (rows, columns), weight)
        np.add.at(self._values, (rows, columns), weight * values[weighing])

    def _integral(self, size: tuple[int, int]) -> Float64Array:
        """(height + 1, width + 1): for each corner in a window of this (width, height), the sum of the weights before it."""
        found = self._integrals.get(size)
        if found is None:
            found = self._integrals[size] = np.zeros((size[1] + 1, size[0] + 1))
            found[1:, 1:] = self._of.of((size[1], size[0])).cumsum(axis=0).cumsum(axis=1)
        return found


def _within(integral: Float64Array, begin: Int64Array, end: Int64Array) -> Float64Array:
    """(n,): the sums of weights between corners (x, y) of a window."""
    (left, top), (right, bottom) = begin.T, end.T
    sums = integral[bottom, right] - integral[top, right] - integral[bottom, left] + integral[top, left]
    # differences of large sums: what is this small is none, where weights are 0
    return np.where(sums > 1e-12 * integral[-1, -1], sums, 0.0)
