"""Patches in the order of storage: slabs across the array are read one after the other, each once, and dropped in time.

In: a source, a grid, a bound on memory.  Out: patches and boxes.  Where a slab across the whole array is larger than the
bound, the array is swept in bands; what neighbouring bands share is then read once for each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from streamwsi.arrays.grid import PatchGrid
from streamwsi.arrays.padding import Padding
from streamwsi.arrays.sources import AnyArray, Source
from streamwsi.errors import ConfigError
from streamwsi.geometry import Int64Array


@dataclass(frozen=True)
class Step:
    """One row of windows along the swept axis."""

    along: int
    drop_before: int
    """Slabs that end at or before this index are not needed any more."""
    read: tuple[int, int] | None
    """First and last index + 1 to read beforehand; None where all that is needed is held."""


@dataclass(frozen=True)
class Sweep:
    """One band of the grid, swept along one axis."""

    axis: int
    """Which of the spatial axes is swept."""
    band: tuple[range, ...]
    """Along each spatial axis, the windows of the band."""
    steps: tuple[Step, ...]
    rows: int
    """The largest number of indices along the swept axis that are held at once."""


@dataclass
class Held:
    """The slabs of one sweep that are in memory."""

    axis: int
    """The swept axis's number in the array."""
    origin: list[int]
    """Where the slabs begin along each axis of the array; the swept one is not looked at."""
    slabs: list[tuple[int, AnyArray]] = field(default_factory=list)
    """Where each begins along the swept axis, and it."""

    def read(self, where: tuple[slice, ...]) -> AnyArray:
        """A copy of the array there, from the slabs: ``where`` as in the array."""
        wanted = where[self.axis]
        parts = []
        for begin, slab in self.slabs:
            low, high = max(wanted.start - begin, 0), min(wanted.stop - begin, slab.shape[self.axis])
            if low < high:
                inside = [
                    slice(one.start - first, one.stop - first) if one.start is not None else one
                    for one, first in zip(where, self.origin, strict=True)
                ]
                inside[self.axis] = slice(low, high)
                parts.append(slab[tuple(inside)])
        return np.concatenate(parts, axis=self.axis)


@dataclass(frozen=True)
class Sweeper:
    """How an array is swept."""

    source: Source
    grid: PatchGrid
    spatial: tuple[int, ...]
    padding: Padding

    def plan(self, max_bytes: int) -> list[Sweep]:
        """The sweeps that hold at most `max_bytes` of slabs, and read as little twice as that allows.

        Raises ConfigError when even a band of single windows needs more.
        """
        if not len(self.grid):
            return []
        whole = tuple(range(count) for count in self.grid.shape)
        sweeps = [self._sweep(axis, whole) for axis in range(len(whole))]
        best = min(sweeps, key=self._bytes)
        while self._bytes(best) > max_bytes:
            across = [len(band) if axis != best.axis else 0 for axis, band in enumerate(best.band)]
            widest = int(np.argmax(across))
            if across[widest] <= 1:
                raise ConfigError(
                    f"max_bytes is {max_bytes}, but a column of single windows along axis {best.axis} needs "
                    f"{self._bytes(best)}: give that much, or smaller patches"
                )
            half = -(-across[widest] // 2)
            best = replace(best, band=(*best.band[:widest], range(half), *best.band[widest + 1 :]))
        widths = [len(band) for band in best.band]
        cut = [
            [range(low, min(low + width, count)) for low in range(0, count, width)]
            for width, count in zip(widths, self.grid.shape, strict=True)
        ]
        return [replace(best, band=band) for band in itertools.product(*cut)]

    def patches(self, sweeps: Sequence[Sweep]) -> Iterator[tuple[AnyArray, Int64Array]]:
        """The patches of all sweeps, each with its box."""
        for sweep in sweeps:
            yield from self._patches(sweep)

    def _patches(self, sweep: Sweep) -> Iterator[tuple[AnyArray, Int64Array]]:
        ndim, axes = len(self.source.shape), self.grid.axes
        swept = self.spatial[sweep.axis]
        where = [slice(None)] * ndim
        for axis, number in enumerate(self.spatial):
            where[number] = slice(*self._span(axis, sweep.band[axis]))
        held = Held(swept, [one.start or 0 for one in where])
        for step in sweep.steps:
            held.slabs = [(begin, slab) for begin, slab in held.slabs if begin + slab.shape[swept] > step.drop_before]
            if step.read is not None:
                where[swept] = slice(*step.read)
                held.slabs.append((step.read[0], self.source.read(tuple(where))))
            along = (*sweep.band[: sweep.axis], range(step.along, step.along + 1), *sweep.band[sweep.axis + 1 :])
            for place in itertools.product(*along):
                far = any(self.padding.reaches_far(axis, one) for axis, one in zip(axes, place, strict=True))
                read = self.source.read if far else held.read
                yield self.padding.patch(read, ndim, axes, self.spatial, place), self.grid.box_at(place)

    def _sweep(self, axis: int, band: tuple[range, ...]) -> Sweep:
        """How to sweep along an axis: which slabs to read when, cut as storage is."""
        along, cuts = self.grid.axes[axis], self.source.cuts(self.spatial[axis])
        near = [not self.padding.reaches_far(along, one) for one in band[axis]]
        spans = [self.padding.span(along, one) for one in band[axis]]
        needed_from = along.extent
        drops = [0] * len(spans)
        for row in reversed(range(len(spans))):
            needed_from = min(needed_from, spans[row][0]) if near[row] else needed_from
            drops[row] = needed_from
        steps: list[Step] = []
        slabs: list[tuple[int, int]] = []
        read_to = rows = 0
        for row, one in enumerate(band[axis]):
            read = None
            low, high = spans[row]
            slabs = [slab for slab in slabs if slab[1] > drops[row]]
            if near[row] and high > read_to:
                read = max(read_to, cuts.before(low)), cuts.after(high)
                slabs.append(read)
                read_to = read[1]
            rows = max(rows, sum(stop - start for start, stop in slabs))
            steps.append(Step(one, drops[row], read))
        return Sweep(axis, band, tuple(steps), rows)

    def _span(self, axis: int, band: range) -> tuple[int, int]:
        """First and last index + 1 of the array that a band of windows along an axis needs."""
        along = self.grid.axes[axis]
        if len(band) == len(along.starts):
            return 0, along.extent
        spans = [self.padding.span(along, one) for one in band if not self.padding.reaches_far(along, one)]
        return min((low for low, _ in spans), default=0), max((high for _, high in spans), default=0)

    def _bytes(self, sweep: Sweep) -> int:
        """The most bytes of slabs that a sweep holds at once, whichever band it is."""
        indices = list(self.source.shape)
        for axis, number in enumerate(self.spatial):
            indices[number] = sweep.rows if axis == sweep.axis else self._widest(axis, len(sweep.band[axis]))
        return math.prod(indices) * self.source.dtype.itemsize

    def _widest(self, axis: int, width: int) -> int:
        """Indices along an axis that the widest of the bands of `width` windows needs."""
        count = self.grid.shape[axis]
        spans = (self._span(axis, range(low, min(low + width, count))) for low in range(0, count, width))
        return max(high - low for low, high in spans)
