"""Place pieces back on the slide.

In: the pieces of a slide.  Out: a Map: the mean of the windows on each cell of a grid.  Never opens a slide, never draws.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.errors import MapError
from streamwsi.geometry import Grid, Int64Array, axis_sizes
from streamwsi.maps.pieces import Pieces, SlidePlan, flattened, load

Float64Array = npt.NDArray[np.float64]
_CHANNELS_AT_ONCE = 16
"""Channels that are placed together: their sums lie in memory besides the map."""


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

    def sum(self, table: Float64Array) -> Float64Array:
        """(windows, m) → (cells, m): for each cell, the sum of its windows' rows times the length of the overlap."""
        sums = np.zeros((self.n_cells, table.shape[1]))
        for cells, windows, lengths in self.parts:
            sums[cells] += lengths[:, None] * table[windows]
        return sums


def read_map(path: str | os.PathLike[str], slide: str | None = None, patient: str | None = None) -> Map:
    """The values of a slide on a grid of cells.

    Cells are stride × stride squares (in pixels of the level read) laid from the slide's corner and cut at its edge. A
    cell's value is the mean of the windows that cover it, weighted by the area covered; NaN where none does. A window whose
    value is NaN makes every cell that it touches NaN: a mean over something unknown is unknown. Values of higher rank are
    flattened to channels; booleans and integers become float64 (exact up to 2**53).

    `path`, `slide` and `patient` are those of :func:`~streamwsi.maps.pieces.read_pieces`. Raises MapError as that does, and
    for a CSV file without its record: where its windows lie on the slide is not known then.
    """
    return place(load(Path(path), slide, patient))


def place(pieces: Pieces, coarser: int = 1) -> Map:
    """The map of `pieces`, on cells `coarser` times as wide and high as the stride. Raises MapError without a plan."""
    plan = pieces.plan
    if plan is None:
        raise MapError(
            f"patient {pieces.patient!r}, slide {pieces.slide!r}: the file lies without its record, so the size of the slide "
            "and the stride are not known; read it in the output folder of its run, or use HDF5"
        )
    cell = (plan.stride[0] * coarser, plan.stride[1] * coarser)
    return Map(
        values=rasterize(plan.grid(), pieces.index, flattened(pieces.values), cell),
        x_edges=_edges_l0(plan.extent[0], cell[0], plan.downsample, plan.extent_l0[0]),
        y_edges=_edges_l0(plan.extent[1], cell[1], plan.downsample, plan.extent_l0[1]),
        columns=pieces.columns,
        patient=pieces.patient,
        slide=pieces.slide,
        plan=plan,
    )


def rasterize(grid: Grid, index: Int64Array, values: npt.NDArray[Any], cell: tuple[int, int]) -> Float64Array:
    """Means of the windows over each cell, weighted by the area covered.

    Parameters
    ----------
    grid
        All windows of the slide.
    index
        (N,) int64: places in the plan of the windows that have a value, each once.
    values
        (N, channels) of numbers.
    cell
        (width, height) of a cell, in pixels of the level read.

    Returns
    -------
    (rows, columns, channels) float64; NaN where no window lies, and where one that is NaN does.
    """
    # The area that a window and a cell share is a product of two lengths, one along each axis, so that all windows can be
    # summed along one axis and then along the other.
    down = _overlaps(grid.ys, axis_sizes(grid.ys, grid.extent[1], grid.kernel[1], grid.border), grid.extent[1], cell[1])
    across = _overlaps(grid.xs, axis_sizes(grid.xs, grid.extent[0], grid.kernel[0], grid.border), grid.extent[0], cell[0])
    covered = _over_both(grid, index, np.ones((len(index), 1)), down, across)
    means = np.empty((down.n_cells, across.n_cells, values.shape[1]))
    for first in range(0, values.shape[1], _CHANNELS_AT_ONCE):
        some = slice(first, first + _CHANNELS_AT_ONCE)
        with np.errstate(invalid="ignore"):  # 0 / 0 where no window lies, inf - inf where such windows meet
            means[..., some] = _over_both(grid, index, values[:, some], down, across) / covered
    return means


def _over_both(grid: Grid, index: Int64Array, values: npt.NDArray[Any], down: _Overlaps, across: _Overlaps) -> Float64Array:
    """(rows, columns, channels) of cells: sums of the values, each times the area of the overlap."""
    (rows, columns), channels = grid.shape, values.shape[1]
    windows = np.zeros((rows * columns, channels))
    windows[index] = values
    with np.errstate(invalid="ignore"):
        summed = down.sum(windows.reshape(rows, columns * channels)).reshape(down.n_cells, columns, channels)
        turned = np.moveaxis(summed, 1, 0).reshape(columns, down.n_cells * channels)
        return np.moveaxis(across.sum(turned).reshape(across.n_cells, down.n_cells, channels), 0, 1)


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
