"""Where the patches of an array lie: the windows of `geometry`, on any number of axes.

In: extents, patch sizes, steps, borders.  Out: boxes, places in the plan.  Never touches an array's data.
A box is (axes, 2) int64: first and last index + 1 along each spatial axis. With border ``pad`` it may reach beyond the array.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamwsi.errors import ArrayError, ConfigError
from streamwsi.geometry import BORDERS, Border, Int64Array, axis_sizes, axis_starts

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """The windows along one axis."""

    extent: int
    patch: int
    step: int
    border: Border

    @cached_property
    def starts(self) -> list[int]:
        """First index of each window, ascending."""
        found: list[int] = axis_starts(self.extent, self.patch, self.step, self.border).tolist()
        return found

    @cached_property
    def sizes(self) -> list[int]:
        """Size of each window: the patch, cut at the edge for ``adaptive``."""
        starts = np.array(self.starts, dtype=np.int64)
        found: list[int] = axis_sizes(starts, self.extent, self.patch, self.border).tolist()
        return found

    @cached_property
    def stops(self) -> list[int]:
        """Last index + 1 of each window, beyond the array too; never descending."""
        return [start + size for start, size in zip(self.starts, self.sizes, strict=True)]

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """First index and last index + 1 of each window."""
        return list(zip(self.starts, self.stops, strict=True))

    @cached_property
    def by_span(self) -> dict[tuple[int, int], int]:
        """Which window has a span."""
        return {span: along for along, span in enumerate(self.spans)}

    def touching(self, start: int, stop: int) -> range:
        """The windows that share an index with ``start … stop - 1``."""
        return range(bisect_left(self.stops, start + 1), bisect_left(self.starts, stop))

    @cached_property
    def overlaps(self) -> Int64Array:
        """(extent,) int64: how many windows hold each index."""
        change = np.zeros(self.extent + 1, dtype=np.int64)
        for start, stop in zip(self.starts, self.stops, strict=True):
            change[start] += 1
            change[min(stop, self.extent)] -= 1
        return np.cumsum(change)[:-1]


class Window(NamedTuple):
    """One window of a grid."""

    number: int
    """Its place in the plan."""
    place: tuple[int, ...]
    """Which one it is along each axis."""
    size: tuple[int, ...]


@dataclass(frozen=True)
class PatchGrid:
    """All windows over some axes, in row-major order, without holding them."""

    axes: tuple[Axis, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """How many windows there are along each axis."""
        return tuple(len(axis.starts) for axis in self.axes)

    @property
    def extent(self) -> tuple[int, ...]:
        """The array's size along each spatial axis."""
        return tuple(axis.extent for axis in self.axes)

    @property
    def patch_size(self) -> tuple[int, ...]:
        """The size of a window that is not cut."""
        return tuple(axis.patch for axis in self.axes)

    @cached_property
    def _n_windows(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self._n_windows

    def place(self, index: int) -> tuple[int, ...]:
        """Which window along each axis the one at `index` of the plan is."""
        place = []
        for count in reversed(self.shape):
            index, along = divmod(index, count)
            place.append(along)
        return tuple(reversed(place))

    def index(self, place: Sequence[int]) -> int:
        """The inverse of :meth:`place`."""
        index = 0
        for along, count in zip(place, self.shape, strict=True):
            index = index * count + along
        return index

    def box(self, index: int) -> Int64Array:
        """The window at `index` of the plan; (axes, 2) int64."""
        return self.box_at(self.place(index))

    def box_at(self, place: Sequence[int]) -> Int64Array:
        """The window at a place along each axis; (axes, 2) int64."""
        return np.array([axis.spans[along] for axis, along in zip(self.axes, place, strict=True)], dtype=np.int64)

    def find(self, box: Int64Array) -> Window:
        """The window with this box.

        Raises ArrayError when the grid has no such window.
        """
        spans: list[list[int]] = box.tolist()
        index, place, size = 0, [], []
        for number, (axis, (start, stop)) in enumerate(zip(self.axes, spans, strict=True)):
            along = axis.by_span.get((start, stop))
            if along is None:
                raise ArrayError(
                    f"box {written(box)} is none of the sampler's: along axis {number} no window spans {start}:{stop} "
                    f"(extent {axis.extent}, patch {axis.patch}, step {axis.step}, border {axis.border!r}); "
                    f"append each patch with the box that came with it"
                )
            index = index * len(axis.starts) + along
            place.append(along)
            size.append(stop - start)
        return Window(index, tuple(place), tuple(size))

    @property
    def max_overlaps(self) -> int:
        """How many windows hold the index that most of them hold."""
        return math.prod(int(axis.overlaps.max()) for axis in self.axes)

    @property
    def n_uncovered(self) -> int:
        """How many places of the array no window holds."""
        return math.prod(self.extent) - math.prod(int(np.count_nonzero(axis.overlaps)) for axis in self.axes)


def make_grid(extent: Sequence[int], patch_size: Any, step: Any, border: Any) -> PatchGrid:
    """The grid over these extents; sizes, steps and borders are one for all axes, or one for each.

    Raises ConfigError when a number is missing, is not a whole one of at least 1, or the border is unknown.
    """
    n_axes = len(extent)
    extents = _whole_numbers("extent", tuple(extent), n_axes)
    patches = _whole_numbers("patch_size", patch_size, n_axes)
    steps = patches if step is None else _whole_numbers("step", step, n_axes)
    one_for_all: Any = border if isinstance(border, str) else None
    borders: tuple[Border, ...] = (one_for_all,) * n_axes if one_for_all else tuple(border)
    if len(borders) != n_axes:
        raise ConfigError(f"border must be one, or one for each of the {n_axes} spatial axes, got {border!r}")
    for one in borders:
        if one not in BORDERS:
            raise ConfigError(f"border must be one of {', '.join(BORDERS)}, got {one!r}")
    return PatchGrid(tuple(map(Axis, extents, patches, steps, borders)))


def _whole_numbers(name: str, given: Any, n_axes: int) -> tuple[int, ...]:
    values = (given,) * n_axes if isinstance(given, int | np.integer) else tuple(given)
    if len(values) != n_axes:
        raise ConfigError(f"{name} must be one number, or one for each of the {n_axes} spatial axes, got {given!r}")
    for value in values:
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be whole numbers of at least 1, got {given!r}")
    return tuple(int(value) for value in values)


def spatial_axes(ndim: int, n_spatial: int, given: Any) -> tuple[int, ...]:
    """Which of `ndim` axes are spatial, ascending and from 0; `given` is ``first``, ``last``, or the axes themselves.

    Raises ConfigError when there are not that many axes, one stands there twice, or they are not ascending.
    """
    if n_spatial > ndim:
        raise ConfigError(f"{n_spatial} axes are to be spatial, but the array has {ndim}")
    if isinstance(given, str):
        if given not in ("first", "last"):
            raise ConfigError(f"spatial_axes must be 'first', 'last' or a tuple of axes, got {given!r}")
        return tuple(range(n_spatial)) if given == "first" else tuple(range(ndim - n_spatial, ndim))
    axes = tuple(int(axis) + (ndim if axis < 0 else 0) for axis in given)
    if len(axes) != n_spatial or list(axes) != sorted(set(axes)) or not all(0 <= axis < ndim for axis in axes):
        raise ConfigError(
            f"spatial_axes must be {n_spatial} different axes of an array of {ndim}, in their order, got {given!r}; "
            f"transpose the array where another order is wanted"
        )
    return axes


def written(box: Int64Array) -> str:
    """A box as one would slice it: ``[0:256, 128:384]``."""
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in box.tolist()) + "]"
