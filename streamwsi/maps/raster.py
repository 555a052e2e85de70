"""Place pieces back on the slide.

In: the pieces of a slide, at once or in parts.  Out: a Map: the mean of the windows on each cell of a grid.  Memory follows the
map and the parts, not the number of windows.  Never opens a slide, never draws.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.arrays.weights import Weights
from streamwsi.errors import MapError
from streamwsi.geometry import Grid, Int64Array, axis_sizes, starts_at
from streamwsi.maps.pieces import Pieces, PieceStream, SlidePlan, flattened, load
from streamwsi.maps.weighted import WeightedSums

Float64Array = npt.NDArray[np.float64]
_CHANNELS_AT_ONCE = 16
"""Channels that are placed together: their sums lie in memory besides the map."""
_FINER = 4
"""Cells to a plan's, along each axis, where windows have weights."""
_WINDOWS_AT_ONCE = 1 << 20
"""Places in the plan that are looked at together, whether or not they have a value."""


@dataclass(frozen=True, eq=False)
class Map:
    """Values on the cells of a slide."""

    values: Float64Array
    """(rows, columns, channels) float64; NaN where nothing was processed."""
    x_edges: Float64Array
    """(columns + 1,) float64, ascending: the cells' edges in level-0 pixels, from 0 to the slide's width."""
    y_edges: Float64Array
    """(rows + 1,) float64, ascending: the cells' edges in level-0 pixels, from 0 to the slide's height."""
    columns: tuple[str, ...]
    """(channels,): names of the values."""
    patient: str
    """The patient's id."""
    slide: str
    """The slide's id, in its patient."""
    plan: SlidePlan
    """What the slide was resolved to."""


@dataclass(frozen=True, eq=False)
class _Overlaps:
    """How the windows along one axis lie over its cells, taken apart so that a cell occurs once in each part."""

    n_cells: int
    parts: list[tuple[Int64Array, Int64Array, Float64Array]]
    """(cells, windows, lengths of their overlap); all lengths are above 0."""

    def of(self, first: int, stop: int) -> tuple[int, _Overlaps]:
        """The same for the windows from `first` to before `stop` alone, and the cell that is its first."""
        cut = [(part, slice(*np.searchsorted(part[1], (first, stop)))) for part in self.parts]
        parts = [(cells[some], windows[some] - first, lengths[some]) for (cells, windows, lengths), some in cut]
        touched = [cells for cells, _, _ in parts if len(cells)]
        if not touched:
            return 0, _Overlaps(0, [])
        lowest, highest = min(int(cells[0]) for cells in touched), max(int(cells[-1]) for cells in touched)
        return lowest, _Overlaps(
            highest + 1 - lowest, [(cells - lowest, windows, lengths) for cells, windows, lengths in parts]
        )

    def sum(self, table: Float64Array) -> Float64Array:
        """(windows, m) → (cells, m): for each cell, the sum of its windows' rows times the length of the overlap."""
        sums = np.zeros((self.n_cells, table.shape[1]))
        for cells, windows, lengths in self.parts:
            sums[cells] += lengths[:, None] * table[windows]
        return sums


def read_map(path: str | os.PathLike[str], slide: str | None = None, patient: str | None = None, *, weights: Any = None) -> Map:
    """The values of a slide on a grid of cells.

    Cells are stride × stride squares (in pixels of the level read; of a quarter of a window where a sampler has placed windows
    freely) laid from the slide's corner and cut at its edge. A
    cell's value is the mean of the windows that cover it, weighted by the area covered; NaN where none does. A window whose
    value is NaN makes every cell that it touches NaN: a mean over something unknown is unknown. Values of higher rank are
    flattened to channels; booleans and integers become float64 (exact up to 2**53).

    With `weights`, windows that overlap are blended on cells a quarter as wide and high: a window counts on a cell as much as
    its weights there add up to. ``"mean"``, ``"gaussian"``, ``"distance"``, an array of a window's (height, width), or a
    callable that is given a size and returns such an array: as for :class:`streamwsi.Aggregator`.

    `path`, `slide` and `patient` are those of :func:`~streamwsi.maps.pieces.read_pieces`. Raises ConfigError for weights that
    cannot be, and MapError as that does, and
    for a CSV file without its record: where its windows lie on the slide is not known then.
    """
    return place(load(Path(path), slide, patient), weights=weights)


def place(pieces: Pieces | PieceStream, coarser: int = 1, weights: Any = None) -> Map:
    """The map of `pieces`, on cells `coarser` times as wide and high as those of :func:`cell_of`; MapError without a plan."""
    plan = plan_of(pieces)
    width, height = cell_of(plan, weights)
    cell = (width * coarser, height * coarser)
    parts = pieces if isinstance(pieces, PieceStream) else [pieces]
    sums: _Sums | _ScatteredSums | WeightedSums
    if plan.sampled is None and weights is None:
        sums = _Sums(plan.grid(), cell, len(pieces.columns))
        for part in parts:
            sums.add(part.index, flattened(part.values))
    else:
        if weights is None:
            sums = _ScatteredSums(plan.extent, cell, len(pieces.columns))
        else:
            sums = WeightedSums(plan.extent, cell, len(pieces.columns), Weights(weights, plan.kernel[::-1]))
        for part in parts:
            sums.add(starts_at(part.coords, plan.downsample), part.size, flattened(part.values))
    return Map(
        values=sums.means(),
        x_edges=_edges_l0(plan.extent[0], cell[0], plan.downsample, plan.extent_l0[0]),
        y_edges=_edges_l0(plan.extent[1], cell[1], plan.downsample, plan.extent_l0[1]),
        columns=pieces.columns,
        patient=pieces.patient,
        slide=pieces.slide,
        plan=plan,
    )


def plan_of(pieces: Pieces | PieceStream) -> SlidePlan:
    """Where the windows lie on the slide; MapError where that is not known."""
    if pieces.plan is None:
        raise MapError(
            f"patient {pieces.patient!r}, slide {pieces.slide!r}: the file lies without its record, so the size of the slide "
            "and the stride are not known; read it in the output folder of its run, or use HDF5"
        )
    return pieces.plan


def cell_of(plan: SlidePlan, weights: Any = None) -> tuple[int, int]:
    """(width, height) of a map's cells, in pixels of what is read: the plan's; for weights to be seen, a quarter of it."""
    if weights is None:
        return plan.cell
    width, height = plan.cell
    return max(1, width // _FINER), max(1, height // _FINER)


def coarser_for(plan: SlidePlan, size: tuple[int, int], weights: Any = None) -> int:
    """How many cells to make one of, so that a map does not have more cells than (columns, rows) `size`."""
    cells = [extent / side for extent, side in zip(plan.extent, cell_of(plan, weights), strict=True)]
    return max(1, *(math.ceil(n_cells / n_px) for n_cells, n_px in zip(cells, size, strict=True)))


def halved(heat: Map) -> Map:
    """The map on cells twice as wide and high: means of those that have a value, NaN where none has."""
    rows, columns, channels = heat.values.shape
    even = np.full((rows + rows % 2, columns + columns % 2, channels), np.nan)
    even[:rows, :columns] = heat.values
    fours = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, channels).swapaxes(1, 2)
    known = ~np.isnan(fours)
    with np.errstate(invalid="ignore"):  # 0 / 0 where none is known, inf - inf
        values = np.where(known, fours, 0).sum(axis=(2, 3)) / known.sum(axis=(2, 3))
    edges = [np.append(edges[:-1:2], edges[-1]) for edges in (heat.x_edges, heat.y_edges)]
    return Map(values, edges[0], edges[1], heat.columns, heat.patient, heat.slide, heat.plan)


def rasterize(grid: Grid, index: Int64Array, values: npt.NDArray[Any], cell: tuple[int, int]) -> Float64Array:
    """Means of the windows over each cell, weighted by the area covered.

    Parameters
    ----------
    grid
        All windows of the slide.
    index
        (N,) int64, ascending: places in the plan of the windows that have a value.
    values
        (N, channels) of numbers.
    cell
        (width, height) of a cell, in pixels of the level read.

    Returns
    -------
    (rows, columns, channels) float64; NaN where no window lies, and where one that is NaN does.
    """
    sums = _Sums(grid, cell, values.shape[1])
    sums.add(index, values)
    return sums.means()


class _Sums:
    """Sums over cells of windows that come in parts: the values times the area of the overlap, and the area."""

    # The area that a window and a cell share is a product of two lengths, one along each axis, so that all windows can be
    # summed along one axis and then along the other.

    def __init__(self, grid: Grid, cell: tuple[int, int], channels: int) -> None:
        self._grid = grid
        self._down = _overlaps(
            grid.ys, axis_sizes(grid.ys, grid.extent[1], grid.kernel[1], grid.border), grid.extent[1], cell[1]
        )
        self._across = _overlaps(
            grid.xs, axis_sizes(grid.xs, grid.extent[0], grid.kernel[0], grid.border), grid.extent[0], cell[0]
        )
        self._values = np.zeros((self._down.n_cells, self._across.n_cells, channels))
        self._areas = np.zeros((self._down.n_cells, self._across.n_cells, 1))

    def add(self, index: Int64Array, values: npt.NDArray[Any]) -> None:
        """Add windows, (n,) places in the plan, ascending, each given once in all; `values` are (n, channels)."""
        if not len(index):
            return
        columns = self._grid.shape[1]
        step = max(1, _WINDOWS_AT_ONCE // columns)
        for first in range(int(index[0]) // columns, int(index[-1]) // columns + 1, step):
            rows = slice(*np.searchsorted(index, (first * columns, (first + step) * columns)))
            self._add_rows(first, min(first + step, self._grid.shape[0]), index[rows], values[rows])

    def means(self) -> Float64Array:
        """(rows, columns, channels) float64; NaN where no window lies. Nothing can be added afterwards."""
        with np.errstate(invalid="ignore"):  # 0 / 0 where no window lies
            self._values /= self._areas
        return self._values

    def _add_rows(self, first: int, stop: int, index: Int64Array, values: npt.NDArray[Any]) -> None:
        """Add windows of these rows of the plan."""
        top, down = self._down.of(first, stop)
        cells = slice(top, top + down.n_cells)
        places = index - first * self._grid.shape[1]
        self._areas[cells] += self._over_both(stop - first, places, np.ones((len(index), 1)), down)
        for channel in range(0, values.shape[1], _CHANNELS_AT_ONCE):
            some = slice(channel, channel + _CHANNELS_AT_ONCE)
            with np.errstate(invalid="ignore"):  # inf - inf where such windows meet
                self._values[cells, :, some] += self._over_both(stop - first, places, values[:, some], down)

    def _over_both(self, n_rows: int, places: Int64Array, values: npt.NDArray[Any], down: _Overlaps) -> Float64Array:
        """(rows, columns, channels) of cells: sums of the values, each times the area of the overlap."""
        columns, channels = self._grid.shape[1], values.shape[1]
        windows = np.zeros((n_rows * columns, channels))
        windows[places] = values
        with np.errstate(invalid="ignore"):
            summed = down.sum(windows.reshape(n_rows, columns * channels)).reshape(down.n_cells, columns, channels)
            turned = np.moveaxis(summed, 1, 0).reshape(columns, down.n_cells * channels)
            return np.moveaxis(self._across.sum(turned).reshape(self._across.n_cells, down.n_cells, channels), 0, 1)


class _ScatteredSums:
    """The same for windows that lie anywhere: each is added to the cells that it touches, one after the other."""

    def __init__(self, extent: tuple[int, int], cell: tuple[int, int], channels: int) -> None:
        self._extent, self._cell = np.array(extent), np.array(cell)
        columns, rows = (-(-self._extent // self._cell)).tolist()
        self._values = np.zeros((rows, columns, channels))
        self._areas = np.zeros((rows, columns, 1))

    def add(self, start: Int64Array, size: Int64Array, values: npt.NDArray[Any]) -> None:
        """Add windows at `start`, (n, 2), of `size`, (n, 2), in pixels of the level; `values` are (n, channels)."""
        low, high = np.maximum(start, 0), np.minimum(start + size, self._extent)
        first = low // self._cell
        across, down = (-(-high // self._cell) - first).max(axis=0, initial=0).tolist()
        with np.errstate(invalid="ignore"):  # inf - inf where such windows meet
            for step in np.ndindex(down, across):
                self._add_to(first + step[::-1], low, high, values)

    def means(self) -> Float64Array:
        """(rows, columns, channels) float64; NaN where no window lies. Nothing can be added afterwards."""
        with np.errstate(invalid="ignore"):  # 0 / 0 where no window lies
            self._values /= self._areas
        return self._values

    def _add_to(self, cell: Int64Array, low: Int64Array, high: Int64Array, values: npt.NDArray[Any]) -> None:
        """Add windows to one cell each, (n, 2) (column, row), those that touch it."""
        sides = np.minimum(high, (cell + 1) * self._cell) - np.maximum(low, cell * self._cell)
        touching = np.flatnonzero((sides > 0).all(axis=1))
        area = sides[touching].prod(axis=1)[:, None] / self._cell.prod()
        columns, rows = cell[touching].T
        np.add.at(self._areas, (rows, columns), area)
        np.add.at(self._values, (rows, columns), area * values[touching])


def _overlaps(starts: Int64Array, sizes: Int64Array, extent_px: int, cell_px: int) -> _Overlaps:
    edges = _edges(extent_px, cell_px)
    low, high = edges[:-1], edges[1:]
    stops = starts + sizes
    # starts and stops both ascend, so that the windows over a cell are neighbours
    first = np.searchsorted(stops, low, side="right")
    count = np.searchsorted(starts, high, side="left") - first
    parts = []
    for step in range(int(count.max(initial=0))):
        cells = np.flatnonzero(count > step)
        windows = first[cells] + step
        lengths = np.minimum(stops[windows], high[cells]) - np.maximum(starts[windows], low[cells])
        parts.append((cells, windows, lengths.astype(np.float64)))
    return _Overlaps(len(low), list(_scaled(parts, len(low))))


def _scaled(
    parts: list[tuple[Int64Array, Int64Array, Float64Array]], n_cells: int
) -> Iterator[tuple[Int64Array, Int64Array, Float64Array]]:
    """Lengths times a power of two, so that no cell's sum exceeds 1: the largest numbers do not overflow, none is rounded."""
    total = np.zeros(n_cells)
    for cells, _, lengths in parts:
        total[cells] += lengths
    scale = 0.5 ** np.ceil(np.log2(total.max(initial=1.0)))
    for cells, windows, lengths in parts:
        yield cells, windows, lengths * scale


def _edges(extent_px: int, cell_px: int) -> Int64Array:
    return np.minimum(np.arange(0, extent_px + cell_px, cell_px, dtype=np.int64), extent_px)


def _edges_l0(extent_px: int, cell_px: int, downsample: float, extent_l0: int) -> Float64Array:
    edges: Float64Array = np.minimum(_edges(extent_px, cell_px) * downsample, float(extent_l0))
    edges[-1] = extent_l0
    return edges
