"""Places drawn at random, one after the other, until there are enough or no room is left.

In: how many places there are, which of them may be taken, how near they may be.  Out: places.  Knows of no slide or region.

A dart is thrown at all places alike, and sticks where it may. What is left is kept as squares of one size, without those that
hold no place for it; where too few darts stick, squares are halved, down to single places. What was drawn last is then all that
was left, so that "no room" is known and not guessed. Which darts stick is what it would be had they been thrown one by one.

Source: Ebeida M. S. et al., "A simple algorithm for maximal Poisson-disk sampling in high dimensions", Computer Graphics
Forum 31 (2012) 785–794; here on whole pixels, where the halving ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from streamwsi.errors import SamplingError
from streamwsi.geometry import Int64Array
from streamwsi.regions.mask import BoolArray
from streamwsi.sampling.apart import Apart, Taken, first_come

_FIRST_SQUARES = 1 << 14
"""How many squares there are at first, at most."""
_MOST_SQUARES = 1 << 24
_MOST_DARTS = 1 << 17
"""Darts thrown together."""
_ENOUGH = 0.3
"""Share of darts that stick, below which squares are halved."""


class Allowed(Protocol):
    """Which places may be taken, before what is taken already."""

    def whole(self, low: Int64Array, high: Int64Array) -> tuple[BoolArray, BoolArray]:
        """Of boxes of places, each from `low` to `high`, (n, 2): which may hold an allowed one, and which surely only such."""
        ...

    def single(self, places: Int64Array) -> BoolArray:
        """Which of `places`, (n, 2), are allowed."""
        ...


def throw_darts(
    room: tuple[int, int], allowed: Allowed, apart: Apart, taken: Taken, n: int | None, rng: np.random.Generator
) -> Int64Array:
    """At most `n` places, in the order in which they were drawn, (k, 2) int64; fewer only where no more could be added.

    Parameters
    ----------
    room
        (x, y): how many places there are along each axis; they are (0, 0) to (x - 1, y - 1).
    allowed, apart
        Which places may be taken at all, and which not beside one another.
    taken
        What rules out places from the start; those that are drawn are added.
    n
        None: until no place is left, of all that are allowed, which is not too near one that is taken.
    rng
        Where the randomness comes from.

    Raises SamplingError where what is left is too much to be kept.
    """
    left = _Squares.first(room).holding(allowed, apart, taken)
    drawn = [np.empty((0, 2), np.int64)]
    missing = _MOST_SQUARES if n is None else n
    sticking = 1.0
    while len(left) and missing > 0:
        if left.side == 1:
            drawn.append(_stuck(left.shuffled(rng), apart, taken, missing))
            break
        wanted = int(missing / max(sticking, 0.05) * 1.05) + 64
        darts, sure = left.darts(min(wanted, max(len(left), 1024), _MOST_DARTS), rng)
        doubtful = np.flatnonzero(~sure)
        doubtful = doubtful[~taken.rule_out(darts[doubtful], darts[doubtful])]
        sure[doubtful] = allowed.single(darts[doubtful])
        drawn.append(_stuck(darts[sure], apart, taken, missing))
        missing -= len(drawn[-1])
        sticking = len(drawn[-1]) / len(darts)
        if sticking < _ENOUGH:
            left = left.halved().holding(allowed, apart, taken)
    return np.concatenate(drawn)


def _stuck(darts: Int64Array, apart: Apart, taken: Taken, most: int) -> Int64Array:
    return darts[first_come(darts, apart, taken, most)]


@dataclass(frozen=True, eq=False)
class _Squares:
    """The places that are left: squares of `side` places, cut at the end of the room."""

    room: tuple[int, int]
    side: int
    low: Int64Array
    """(n, 2): the first place of each."""
    sure: BoolArray
    """(n,) bool: which of them hold only places that are allowed."""

    @classmethod
    def first(cls, room: tuple[int, int]) -> _Squares:
        """All places, in as many squares as there may be at first."""
        side = 1
        while -(-room[0] // side) * -(-room[1] // side) > _FIRST_SQUARES:
            side *= 2
        y, x = np.meshgrid(np.arange(0, room[1], side), np.arange(0, room[0], side), indexing="ij")
        low = np.column_stack([x.ravel(), y.ravel()]).astype(np.int64)
        return cls(room, side, low, np.zeros(len(low), bool))

    def __len__(self) -> int:
        return len(self.low)

    @property
    def high(self) -> Int64Array:
        """(n, 2): the last place of each."""
        high: Int64Array = np.minimum(self.low + (self.side - 1), np.array(self.room) - 1)
        return high

    def holding(self, allowed: Allowed, apart: Apart, taken: Taken) -> _Squares:
        """Those that may hold a place that can still be taken; where they are single places: those that do."""
        left = self
        half = np.array([self.side // 2])
        if apart.too_near(half, half)[0]:  # else they are too large for one place to rule them out
            left = left._only(~taken.rule_out(left.low, left.high))
        doubtful = np.flatnonzero(~left.sure)
        keep, sure = np.ones(len(left), bool), left.sure.copy()
        if self.side == 1:
            keep[doubtful] = sure[doubtful] = allowed.single(left.low[doubtful])
        else:
            keep[doubtful], sure[doubtful] = allowed.whole(left.low[doubtful], left.high[doubtful])
        return replace(left, sure=sure)._only(keep)

    def halved(self) -> _Squares:
        """The same places, in squares of half the side."""
        side = self.side // 2
        corners = np.array([(0, 0), (side, 0), (0, side), (side, side)])
        low = (self.low[:, None] + corners).reshape(-1, 2)
        if len(low) > _MOST_SQUARES:
            raise SamplingError(
                f"more than {_MOST_SQUARES} squares of {side} pixels are left to be looked at: ask for windows farther apart, "
                "or for a coarser level"
            )
        return replace(self, side=side, low=low, sure=np.repeat(self.sure, 4))._only((low < self.room).all(axis=1))

    def darts(self, count: int, rng: np.random.Generator) -> tuple[Int64Array, BoolArray]:
        """`count` places, each drawn from all alike, and which of them are sure to be allowed."""
        size = self.high - self.low + 1
        ends = np.cumsum(size.prod(axis=1))
        place = rng.integers(0, ends[-1], count)
        square = np.searchsorted(ends, place, side="right")
        width, height = size[square].T
        row, column = np.divmod(place - (ends[square] - width * height), width)
        return self.low[square] + np.column_stack([column, row]), self.sure[square]

    def shuffled(self, rng: np.random.Generator) -> Int64Array:
        """All places, where squares are single ones, in an order drawn at random."""
        return self.low[np.argsort(rng.random(len(self)), kind="stable")]

    def _only(self, rows: BoolArray) -> _Squares:
        return replace(self, low=self.low[rows], sure=self.sure[rows])
