"""Where the windows of a sliding window lie, and how a grid of windows is cut into big chunks.

In: extents, kernel, stride, border.  Out: starts and sizes, as NumPy tables.  Never opens a slide.
All positions are in pixels of the level read unless a name ends in ``_l0``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from streamwsi.errors import ConfigError

Int64Array = npt.NDArray[np.int64]
Border = Literal["pad", "edge", "squeeze", "adaptive", "crop"]
BORDERS: tuple[Border, ...] = get_args(Border)


def axis_starts(extent_px: int, kernel_px: int, stride_px: int, border: Border = "pad") -> Int64Array:
    """Starts of the windows along one axis.

    Parameters
    ----------
    extent_px, kernel_px, stride_px
        Size of the level, of the window, and the step; all at least 1.
    border
        ``pad``: 0, s, 2s, … up to and including the first that reaches the edge, none at or beyond it.
        ``edge``: 0, s, 2s, … ≤ S−k, plus S−k if it is not there. ``squeeze``: ⌈(S−k)/s⌉ + 1 starts from 0 to S−k, spread
        evenly in whole pixels. ``adaptive``: as ``pad`` (the last window is cut, see :func:`axis_sizes`).
        ``crop``: 0, s, 2s, … ≤ S−k.

    Returns
    -------
    (n,) int64, ascending, without duplicates. A slide smaller than the window has one start, 0 (``crop``: none).

    Raises
    ------
    ConfigError
        When a size is below 1, or the border is unknown.
    """
    for name, value in (("extent", extent_px), ("kernel", kernel_px), ("stride", stride_px)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1 pixel, got {value}")
    room = extent_px - kernel_px
    if border == "crop":
        return np.arange(0, room + 1, stride_px, dtype=np.int64)
    if border in ("pad", "adaptive"):
        stop = min(extent_px, max(room, 0) + stride_px)
        return np.arange(0, stop, stride_px, dtype=np.int64)
    if border not in BORDERS:
        raise ConfigError(f"border must be one of {', '.join(BORDERS)}, got {border!r}")
    if room <= 0:
        return np.zeros(1, dtype=np.int64)
    if border == "edge":
        starts = np.arange(0, room + 1, stride_px, dtype=np.int64)
        return starts if starts[-1] == room else np.append(starts, np.int64(room))
    gaps = -(-room // stride_px)
    return np.arange(gaps + 1, dtype=np.int64) * room // gaps


def axis_sizes(starts: Int64Array, extent_px: int, kernel_px: int, border: Border) -> Int64Array:
    """Sizes of the windows that begin at `starts`: the kernel, cut at the edge for ``adaptive``; (n,) int64."""
    if border == "adaptive":
        return np.minimum(kernel_px, extent_px - starts)
    return np.full_like(starts, kernel_px)


def starts_at(xy: Int64Array, downsample: float) -> Int64Array:
    """The starts in pixels of the level read, (n, 2) int64, of windows at level-0 `xy`; `downsample` is at least 1."""
    # the whole numbers whose floor(start * downsample) these are
    starts: Int64Array = np.ceil(xy / downsample - 1e-9).astype(np.int64)
    return starts


@dataclass(frozen=True)
class Window:
    """One position of the sliding window."""

    index: int
    """Its place in the plan; row-major for a grid."""
    x: int
    """Left edge in level-0 pixels, as written to files: ``floor(start_x * downsample)``."""
    y: int
    """Top edge in level-0 pixels, as written to files."""
    start_x: int
    """Left edge in pixels of the level read."""
    start_y: int
    """Top edge in pixels of the level read."""
    width: int
    """Width in pixels of the level read."""
    height: int
    """Height in pixels of the level read."""
    label: str | None = None
    """What the region that it was chosen in is called; None where it has no label."""


@dataclass(frozen=True, eq=False)
class Windows:
    """A table of windows: one row each, columns as arrays. Indexing gives a :class:`Window`."""

    index: Int64Array
    """(n,) int64: places in the plan."""
    start: Int64Array
    """(n, 2) int64: (x, y) in pixels of the level read."""
    xy: Int64Array
    """(n, 2) int64: (x, y) in level-0 pixels, as written to files."""
    size: Int64Array
    """(n, 2) int64: (width, height) in pixels of the level read."""
    label: Int64Array | None = None
    """(n,) int64: places in `label_names`, -1 for none; None where no window of the slide has a label."""
    label_names: tuple[str, ...] = ()
    """The labels that there are on the slide."""

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Window:
        (start_x, start_y), (x, y), (width, height) = (
            self.start[row].tolist(),
            self.xy[row].tolist(),
            self.size[row].tolist(),
        )
        return Window(int(self.index[row]), x, y, start_x, start_y, width, height, self.label_at(row))

    def label_at(self, row: int) -> str | None:
        """The label of the window at `row`; None where it has none."""
        code = -1 if self.label is None else int(self.label[row])
        return self.label_names[code] if code >= 0 else None

    @property
    def labels(self) -> list[str | None]:
        """The label of each window; None for one that has none."""
        if self.label is None:
            return [None] * len(self)
        return [self.label_names[code] if code >= 0 else None for code in self.label.tolist()]

    def __iter__(self) -> Iterator[Window]:
        return (self[row] for row in range(len(self)))

    def take(self, rows: npt.NDArray[np.intp] | slice) -> Windows:
        """The windows at `rows`, as another table."""
        label = None if self.label is None else self.label[rows]
        return Windows(self.index[rows], self.start[rows], self.xy[rows], self.size[rows], label, self.label_names)

    def table(self) -> Int64Array:
        """All columns side by side, (n, 8) int64: index, start, xy, size, label (-1: none); what crosses the wire."""
        label = np.full(len(self), -1, np.int64) if self.label is None else self.label
        return np.column_stack([self.index, self.start, self.xy, self.size, label])

    @classmethod
    def from_table(cls, table: Int64Array, label_names: tuple[str, ...] = ()) -> Windows:
        """The inverse of :meth:`table`. Raises ValueError for labels that are none of `label_names`."""
        label = table[:, 7] if label_names else None
        if label is not None and (label.min(initial=-1) < -1 or label.max(initial=-1) >= len(label_names)):
            raise ValueError(f"labels from {label.min()} to {label.max()}, of {len(label_names)}")
        return cls(table[:, 0], table[:, 1:3], table[:, 3:5], table[:, 5:7], label, label_names)


@dataclass(frozen=True)
class Grid:
    """The sliding window over one level: all windows, in row-major order, without holding them."""

    extent: tuple[int, int]
    """(width, height) of the level read, in its pixels."""
    kernel: tuple[int, int]
    """(width, height) of the window."""
    stride: tuple[int, int]
    """(x, y) steps."""
    border: Border
    downsample: float
    """Level-0 pixels per pixel of the level read."""

    @cached_property
    def xs(self) -> Int64Array:
        """(columns,) int64: left edges."""
        return axis_starts(self.extent[0], self.kernel[0], self.stride[0], self.border)

    @cached_property
    def ys(self) -> Int64Array:
        """(rows,) int64: top edges."""
        return axis_starts(self.extent[1], self.kernel[1], self.stride[1], self.border)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of windows."""
        return len(self.ys), len(self.xs)

    def __len__(self) -> int:
        return len(self.ys) * len(self.xs)

    def windows(self, index: Int64Array) -> Windows:
        """The windows with these places in the plan; `index` is (n,) int64, each in ``0 … len(self) - 1``."""
        row, column = np.divmod(index, max(len(self.xs), 1))
        start = np.stack([self.xs[column], self.ys[row]], axis=1)
        sizes = (
            axis_sizes(self.xs, self.extent[0], self.kernel[0], self.border)[column],
            axis_sizes(self.ys, self.extent[1], self.kernel[1], self.border)[row],
        )
        xy = np.floor(start * self.downsample).astype(np.int64)
        return Windows(index, start, xy, np.stack(sizes, axis=1))


_BLOCK_ROWS = 128
"""Of windows in a block of chunks, where there are as many: what it shares with those above and below is small beside it."""
_FAR_APART = 1.5
"""How much worse an edge between blocks below each other is: loaders are further apart there in the order of the plan."""


@dataclass(frozen=True)
class ChunkGrid:
    """A grid of windows cut into blocks of neighbours: the big chunks.

    They are numbered row by row within a band of neighbouring columns, one band after the other, so that what a row of chunks
    shares with the next one is not larger than a band.
    """

    shape: tuple[int, int]
    """(rows, columns) of windows in the grid."""
    block: tuple[int, int]
    """(rows, columns) of windows in one chunk; the last ones of a row or column may hold fewer."""
    band: int = 0
    """Columns of chunks in a band; 0: all are in one. The last band may have fewer."""

    @property
    def chunks_shape(self) -> tuple[int, int]:
        """(rows, columns) of chunks."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    def __len__(self) -> int:
        return math.prod(self.chunks_shape)

    def bounds(self, chunk: int) -> tuple[int, int, int, int]:
        """First row, last row + 1, first column, last column + 1 of the windows of a chunk."""
        rows, columns = self.chunks_shape
        band = self.band or columns
        number, within = divmod(chunk, rows * band)
        row, column = divmod(within, min(band, columns - number * band))
        top, left = row * self.block[0], (number * band + column) * self.block[1]
        return top, min(top + self.block[0], self.shape[0]), left, min(left + self.block[1], self.shape[1])

    def block_at(self, chunk: int, n_loaders: int) -> tuple[int, int, int]:
        """The block of neighbouring chunks that one of `n_loaders` is to read, at a chunk that is the first of its row.

        Returns (rows, columns) of the block, and how many chunks on the next row of the band begins. Blocks are cut so that
        there is one for each loader, and what windows at their edges share is least: as long stripes beside each other where
        the band is wide, and where it is not, below each other too.
        """
        rows, columns = self.chunks_shape
        band = self.band or columns
        left = chunk // (rows * band) * band
        step = min(band, columns - left)
        rows_left = rows - (chunk - left * rows) // step
        block = min(self._edges(stripes, step, n_loaders) for stripes in range(1, min(n_loaders, step) + 1))[1:]
        return min(block[0], rows_left), block[1], step

    def _edges(self, stripes: int, step: int, n_loaders: int) -> tuple[float, int, int]:
        """What cutting a band into so many stripes costs, in parts of its area, and the (rows, columns) of their blocks.

        An edge costs what one window's width or height is of the whole. Where there is a stripe for each loader, they go on to
        the block below their own, and edges between those cost nothing.
        """
        rows, columns = self.chunks_shape[0], -(-step // stripes)
        stripes = -(-step // columns)
        deep = -(-n_loaders // stripes)
        height = min(-(-_BLOCK_ROWS // self.block[0]), -(-rows // deep))
        across = (stripes - 1) / (step * self.block[1])
        down = 0.0 if stripes == n_loaders else (-(-rows // height) - 1) / self.shape[0]
        return across + _FAR_APART * down, height, columns

    def n_windows(self, chunk: int) -> int:
        """How many windows a chunk holds."""
        top, bottom, left, right = self.bounds(chunk)
        return (bottom - top) * (right - left)

    def chunk_of(self, index: Int64Array) -> Int64Array:
        """The chunks that hold the windows with these places in the plan; (n,) int64."""
        rows, columns = self.chunks_shape
        band = self.band or max(columns, 1)
        row, column = np.divmod(index, max(self.shape[1], 1))
        number, within = np.divmod(column // self.block[1], band)
        width = np.minimum(band, columns - number * band)
        chunks: Int64Array = number * (rows * band) + row // self.block[0] * width + within
        return chunks

    def indices(self, chunk: int) -> Int64Array:
        """Places in the plan of a chunk's windows, (n,) int64, ascending."""
        top, bottom, left, right = self.bounds(chunk)
        rows = np.arange(top, bottom, dtype=np.int64) * self.shape[1]
        return (rows[:, None] + np.arange(left, right, dtype=np.int64)).ravel()


_CHUNK_COST_PX = 64 * 1024
"""What a chunk costs besides its pixels (a lease, a message, a commit), in pixels."""
MOST_WINDOWS = 8192
"""In one chunk, by default."""
_RUN_COST_PX = 4 * 1024
"""What a row of windows in a chunk costs: a run in the journal."""
_CACHE_SHARE = 0.6
"""Of the cache, what one row of chunks in a band may fill: some is for other tiles, and chunks are not finished in order."""


def cut_chunks(
    grid: Grid,
    batch_size: int,
    chunk_px: int,
    tile: tuple[int, int] | None = None,
    cache_px: int = 1 << 25,
    max_windows: int = MOST_WINDOWS,
    resolutions: int | None = None,
) -> ChunkGrid:
    """Cut a grid into chunks of about `chunk_px` pixels, each a multiple of `batch_size` windows where that is possible.

    Among the blocks that fit the budget, the one that costs the fewest pixels per window in all is taken: those of all the
    tiles that it touches, so that chunks are cut along tiles. (`tile` is their (width, height), None where the level has none.)
    A block that does not divide the grid leaves small chunks at the edge, which cost too. A window larger than the budget is a
    chunk of its own.

    Windows of several `resolutions` are packed one by one, however they overlap, each so many times as large; None: they have
    one.

    Bands are as wide as `cache_px` allows, which is to hold the tiles that a row of chunks shares with the next.
    """
    rows, columns = grid.shape
    if rows == 0 or columns == 0:
        return ChunkGrid(grid.shape, (1, 1))
    (kernel_w, kernel_h), (stride_w, stride_h) = grid.kernel, grid.stride
    tile_w, tile_h = tile or (1, 1)
    across = np.arange(1, min(columns, max_windows) + 1, dtype=np.int64)[:, None]
    down = np.arange(1, min(rows, max_windows) + 1, dtype=np.int64)[None, :]
    if len(across) * down.shape[1] > 1 << 20:  # candidates need not be complete for very large grids
        across, down = across[: 1 << 10], down[:, : 1 << 10]
    dense_px = ((across - 1) * stride_w + kernel_w) * ((down - 1) * stride_h + kernel_h)
    packed_px = across * down * kernel_w * kernel_h
    pixels = np.minimum(dense_px, packed_px) if resolutions is None else packed_px * resolutions
    touched_px = _touched_px(across, kernel_w, stride_w, tile_w) * _touched_px(down, kernel_h, stride_h, tile_h)
    windows = across * down
    chunks = -(-columns // across) * -(-rows // down)
    fits = (pixels <= chunk_px) & (windows <= max_windows)
    whole = fits & (windows % batch_size == 0)
    allowed = whole if whole.any() else fits
    if not allowed.any():
        return ChunkGrid(grid.shape, (1, 1), _band(grid, (1, 1), (tile_w, tile_h), cache_px))
    cost = np.where(allowed, chunks * (touched_px + _CHUNK_COST_PX + down * _RUN_COST_PX), np.inf)
    best_across, best_down = np.unravel_index(int(np.argmin(cost)), cost.shape)
    block = int(down[0, best_down]), int(across[best_across, 0])
    return ChunkGrid(grid.shape, block, _band(grid, block, (tile_w, tile_h), cache_px))


def _touched_px(windows: Int64Array, kernel_px: int, stride_px: int, tile_px: int) -> npt.NDArray[np.float64]:
    """Pixels along one axis of the tiles that so many windows touch: exact for chunks cut along tiles, else the mean."""
    extent = (windows - 1) * stride_px + kernel_px
    along = windows * stride_px % tile_px == 0
    touched: npt.NDArray[np.float64] = np.where(along, -(-extent // tile_px) * tile_px, extent + tile_px - 1.0)
    return touched


def _band(grid: Grid, block: tuple[int, int], tile: tuple[int, int], cache_px: int) -> int:
    """Columns of chunks in a band; 0 where all can be in one."""
    columns = -(-grid.shape[1] // block[1])
    step_px = block[0] * grid.stride[1]
    overlap_px = max(0, grid.kernel[1] - grid.stride[1]) + (0 if step_px % tile[1] == 0 else tile[1] - 1)
    if not overlap_px:
        return 0
    # A tile is kept for as many rows of chunks as the overlap reaches over; each of them adds as many pixels as are shared
    rows, added_px = -(-overlap_px // step_px), min(overlap_px, step_px)
    shared_px = rows * -(-added_px // tile[1]) * tile[1] * block[1] * grid.stride[0]
    widest = max(1, int(_CACHE_SHARE * cache_px) // shared_px)
    return 0 if widest >= columns else -(-columns // -(-columns // widest))
