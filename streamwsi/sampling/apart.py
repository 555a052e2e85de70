"""Which windows are too near one another, and which of them stay when they come one after the other.

In: places of windows.  Out: which may stand together.  Whole numbers of pixels of what is read; draws nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from streamwsi.geometry import Int64Array
from streamwsi.regions.mask import BoolArray

_ROUNDING = 1e-12
"""Distances and shares that are equal but for how numbers are rounded are equal."""
_BLOCK = 1 << 17
"""Places that are looked at together."""
_MOST_PAIRS = 1 << 21
"""Pairs of neighbours that are looked at together."""
_FARTHEST_PX = 1 << 28
"""No slide is as large."""


@dataclass(frozen=True)
class Apart:
    """When two windows are too near one another; the same place twice always is.

    How near they are goes by how far apart they are along each axis: the farther, the less near.
    """

    kernel: tuple[int, int]
    """(width, height) of both windows."""
    max_overlap: float = 1.0
    """Share of a window's area that it may share with the other, 0–1."""
    spacing: float = 0.0
    """Least distance of their centres; 0: any."""
    unit: tuple[float, float] = (1.0, 1.0)
    """(x, y): sides of a pixel, in the unit of `spacing`."""

    def too_near(self, across: npt.NDArray[np.int64], down: npt.NDArray[np.int64]) -> BoolArray:
        """Which pairs are too near, `across` and `down` pixels apart, neither below 0."""
        near: BoolArray = (across == 0) & (down == 0)
        if self.max_overlap < 1:
            width, height = self.kernel
            shared = np.maximum(width - across, 0) * np.maximum(height - down, 0)
            near |= shared > self.max_overlap * (width * height) * (1 + _ROUNDING)
        if self.spacing > 0:
            x, y = self.unit
            near |= (across * x) ** 2 + (down * y) ** 2 < self.spacing**2 * (1 - _ROUNDING)
        return near

    @cached_property
    def reach(self) -> tuple[int, int]:
        """Pixels apart along x, and along y, beyond which no two windows are too near."""
        shared = [math.floor(side * (1 - self.max_overlap)) for side in self.kernel]
        spaced = [math.ceil(min(self.spacing / side, _FARTHEST_PX)) for side in self.unit]
        return max(shared[0], spaced[0]), max(shared[1], spaced[1])

    @cached_property
    def cell(self) -> tuple[int, int]:
        """(width, height) of a box of places, any two of which are too near; as large as is easily known."""
        side = 1 - math.sqrt(self.max_overlap)
        overlapping = [max(math.floor(length * side), 1) for length in self.kernel]
        spaced = [min(max(math.floor(self.spacing / (math.sqrt(2) * length)), 1), _FARTHEST_PX) for length in self.unit]
        for width, height in sorted((overlapping, spaced), key=math.prod, reverse=True):
            if self.too_near(np.array([width - 1]), np.array([height - 1]))[0]:
                return width, height
        return 1, 1


class Taken:
    """Places that are taken, none too near another; what they rule out.

    They are kept in cells of a grid of which each holds one at most, so that what is near a place is found at once.
    """

    def __init__(self, apart: Apart) -> None:
        self._apart = apart
        self._keys: Int64Array = np.empty(0, np.int64)
        self._places: Int64Array = np.empty((0, 2), np.int64)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, places: Int64Array) -> None:
        """Take `places`, (n, 2), none of them ruled out by another or by what is taken."""
        keys = np.concatenate([self._keys, _keys(places, self._apart)])
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], np.concatenate([self._places, places])[order]

    def rule_out(self, low: Int64Array, high: Int64Array) -> BoolArray:
        """Which boxes of places, each from `low` to `high`, (n, 2), are ruled out whole by a single one that is taken; (n,)."""
        out = np.zeros(len(low), bool)
        if len(self):
            for start in range(0, len(low), _BLOCK):
                rows = slice(start, start + _BLOCK)
                out[rows] = self._rule_out(low[rows], high[rows])
        return out

    def _rule_out(self, low: Int64Array, high: Int64Array) -> BoolArray:
        out = np.zeros(len(low), bool)
        keys = _keys((low + high) // 2, self._apart)
        across, down = _neighbours(self._apart)
        left = np.arange(len(low))
        for row in sorted(range(-down, down + 1), key=abs):
            first = keys[left] + row * _ROW - across
            at = np.searchsorted(self._keys, first)
            for _ in range(2 * across + 1):
                there = np.minimum(at, len(self) - 1)
                hit = (at < len(self)) & (self._keys[there] <= first + 2 * across)
                near = left[hit]
                place = self._places[there[hit]]
                far = np.maximum(np.abs(low[near] - place), np.abs(high[near] - place))
                out[near] |= self._apart.too_near(far[:, 0], far[:, 1])
                at += 1
            left = left[~out[left]]
        return out


def repeated(start: Int64Array) -> Int64Array:
    """Rows of `start`, (n, 2), that stood there before; ascending, (k,) int64."""
    if not len(start):
        return np.empty(0, np.int64)
    low = start.min(axis=0)
    keys = (start[:, 1] - low[1]) * (start[:, 0].max() - low[0] + 1) + start[:, 0] - low[0]
    order = np.argsort(keys, kind="stable")
    again = order[1:][keys[order[1:]] == keys[order[:-1]]]
    return np.sort(again).astype(np.int64)


def first_come(places: Int64Array, apart: Apart, taken: Taken, most: int | None = None) -> BoolArray:
    """Which of `places`, (n, 2), stay when they come in their order and each one must not be too near any before; (n,) bool.

    Those that stay are added to `taken`, which rules out too. When `most` have stayed, no more do.
    """
    stay = np.zeros(len(places), bool)
    waiting = [np.arange(len(places))]
    missing = len(places) if most is None else most
    while waiting and missing:
        rows = waiting.pop()
        rows = rows[~taken.rule_out(places[rows], places[rows])]
        if not len(rows):
            continue
        order, low, high = _near_each_other(places[rows], apart)
        if len(rows) > 1 and (high - low).sum() > _MOST_PAIRS:
            waiting += [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
            continue
        chosen = rows[_first(places[rows], apart, order, low, high)][:missing]
        missing -= len(chosen)
        taken.add(places[chosen])
        stay[chosen] = True
    return stay


def _near_each_other(places: Int64Array, apart: Apart) -> tuple[Int64Array, Int64Array, Int64Array]:
    """An order of places, and for each of them in that order, row by row of cells, where in it its neighbours begin and end."""
    keys = _keys(places, apart)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    across, down = _neighbours(apart)
    rows = keys + np.arange(-down, down + 1)[:, None] * _ROW
    return order, np.searchsorted(keys, rows - across), np.searchsorted(keys, rows + across, side="right")


def _first(places: Int64Array, apart: Apart, order: Int64Array, low: Int64Array, high: Int64Array) -> BoolArray:
    """Which places stay: those that have none before them that stays and is too near; see :func:`_near_each_other`."""
    counts = (high - low).ravel()
    later = np.repeat(np.tile(np.arange(len(order)), len(low)), counts)
    earlier = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(low.ravel(), counts)
    later, earlier = order[later], order[earlier]
    pairs = earlier < later
    later, earlier = later[pairs], earlier[pairs]
    between = np.abs(places[later] - places[earlier])
    near = apart.too_near(between[:, 0], between[:, 1])
    later, earlier = later[near], earlier[near]
    stay, open_ = np.zeros(len(places), bool), np.ones(len(places), bool)
    while open_.any():
        free = open_.copy()
        free[later] = False
        stay |= free
        open_ &= ~free
        open_[later[free[earlier]]] = False
        pairs = open_[later] & open_[earlier]
        later, earlier = later[pairs], earlier[pairs]
    return stay


_ROW = 1 << 31
"""Keys from one row of cells to the next: rows have fewer cells, and neighbours beyond an end have none."""


def _keys(places: Int64Array, apart: Apart) -> Int64Array:
    """Numbers of the cells that places lie in; those of a row follow one another."""
    width, height = apart.cell
    keys: Int64Array = (places[:, 1] // height + _ROW // 4) * _ROW + places[:, 0] // width + _ROW // 4
    return keys


def _neighbours(apart: Apart) -> tuple[int, int]:
    """How many cells away, across and down, a place may lie that is too near."""
    (reach_x, reach_y), (width, height) = apart.reach, apart.cell
    return -(-reach_x // width), -(-reach_y // height)
