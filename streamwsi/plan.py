"""The windows that a sampler has chosen on a slide, and how they are cut into big chunks.

In: where windows lie, as a sampler says.  Out: a sample, as bytes and as tables.  Never opens a slide, never draws anything.

The windows of a grid need no such list: they follow from a few numbers (:class:`streamwsi.geometry.Grid`).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.errors import ConfigError
from streamwsi.geometry import MOST_WINDOWS, Int64Array, Windows

_BAND_SHARE = 0.6
"""Of the cache, what one row of cells in a band may fill."""
_LARGEST_PLACE = (1 << 30) - 1
"""Differences of two places fit into 32 bits."""


class Plan(Protocol):
    """All windows of a slide."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def windows(self, index: Int64Array) -> Windows:
        """Those with these places in the plan, (n,) int64, each in ``0 … len(self) - 1``."""
        ...


class Chunks(Protocol):
    """How the windows of a plan are cut into big chunks."""

    def __len__(self) -> int:
        """How many chunks there are."""
        ...

    def n_windows(self, chunk: int) -> int:
        """How many windows a chunk holds."""
        ...

    def block_at(self, chunk: int, n_loaders: int) -> tuple[int, int, int]:
        """The block of neighbouring chunks that one of so many loaders is to read, at a chunk that is the first of its row.

        (rows, columns) of it, and how many chunks on the next row begins.
        """
        ...

    def chunk_of(self, index: Int64Array) -> Int64Array:
        """The chunks that hold the windows with these places in the plan, (n,) int64."""
        ...

    def indices(self, chunk: int) -> Int64Array:
        """Places in the plan of a chunk's windows, (n,) int64, ascending."""
        ...


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Windows that a sampler has chosen on one slide, in the order of the plan."""

    count: int
    """How many there are."""
    chunks: int
    """How many chunks they are cut into."""
    table: bytes
    """(4, n) int32, little-endian, each row but the first value as differences, deflated: x and y of the window's start in
    pixels of what is read, the chunk that holds it, its label (-1: none)."""
    label_names: tuple[str, ...] = ()
    """The labels that there are; none: no window has one."""
    only: tuple[int, bytes] | None = None
    """(chunk, places in the plan as the table is encoded) where the table is cut to the windows of one chunk, as it crosses the
    wire; None: it has all."""

    @classmethod
    def of(
        cls, start: Int64Array, chunk: Int64Array, label: Int64Array | None = None, label_names: tuple[str, ...] = ()
    ) -> Sample:
        """A sample of windows at `start`, (n, 2) int64, held by the chunks `chunk`, (n,), with labels where there are any.

        Raises ConfigError where a window lies too far out to be kept.
        """
        if len(start) and int(np.abs(start).max()) > _LARGEST_PLACE:
            raise ConfigError(f"a window at {np.abs(start).max()} px is too far out: at most {_LARGEST_PLACE}")
        code = np.full(len(start), -1, np.int64) if label is None else label
        return cls(
            count=len(start),
            chunks=int(chunk.max(initial=-1)) + 1,
            table=_packed(np.stack([start[:, 0], start[:, 1], chunk, code])),
            label_names=label_names if label is not None else (),
        )

    def decoded(self, kernel: tuple[int, int], downsample: float) -> SampledWindows:
        """As tables; `kernel` is (width, height) and `downsample` the level-0 pixels per pixel of what is read."""
        x, y, chunk, label = _unpacked(self.table, 4)
        index = np.arange(self.count, dtype=np.int64) if self.only is None else _unpacked(self.only[1], 1)[0]
        if len(index) != len(x):
            raise ValueError(f"a sample of {len(index)} windows with {len(x)} places")
        return SampledWindows(
            sample=self,
            index=index,
            start=np.stack([x, y], axis=1),
            chunk=chunk,
            label=label if self.label_names else None,
            kernel=kernel,
            downsample=downsample,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class SampledWindows:
    """A sample as tables; a plan, and the chunks that it is cut into."""

    sample: Sample
    index: Int64Array
    """(m,) int64, ascending: the windows that the tables are about; all of the plan, or those of one chunk."""
    start: Int64Array
    """(m, 2) int64: (x, y) of their starts, in pixels of what is read."""
    chunk: Int64Array
    """(m,) int64: the chunks that hold them."""
    label: Int64Array | None
    """(m,) int64: places in the sample's `label_names`; None where it has none."""
    kernel: tuple[int, int]
    downsample: float

    def __len__(self) -> int:
        return self.sample.count

    def windows(self, index: Int64Array) -> Windows:
        """The windows with these places in the plan."""
        rows = self.rows(index)
        start = self.start[rows]
        xy = np.floor(start * self.downsample).astype(np.int64)
        size = np.broadcast_to(np.array(self.kernel, np.int64), start.shape)
        label = None if self.label is None else self.label[rows]
        return Windows(index, start, xy, size, label, self.sample.label_names)

    def chunks(self) -> SampledChunks:
        """How they are cut into big chunks."""
        return SampledChunks(self)

    def cut_to(self, chunk: int) -> Sample:
        """The sample with the windows of one chunk alone."""
        rows = self.rows_of(chunk)
        codes = np.full(len(rows), -1, np.int64) if self.label is None else self.label[rows]
        start = self.start[rows]
        return msgspec.structs.replace(
            self.sample,
            table=_packed(np.stack([start[:, 0], start[:, 1], self.chunk[rows], codes])),
            only=(chunk, _packed(self.index[rows][None])),
        )

    def rows_of(self, chunk: int) -> npt.NDArray[np.intp]:
        """Rows of the tables that are a chunk's, ascending."""
        order, bounds = self._by_chunk
        if self.sample.only is not None:
            return order if chunk == self.sample.only[0] else order[:0]
        return order[bounds[chunk] : bounds[chunk + 1]]

    def rows(self, index: Int64Array) -> npt.NDArray[np.intp]:
        """Rows of the tables that are these windows'. Raises ValueError where they are cut to others."""
        if self.sample.only is None:
            return index
        rows = np.searchsorted(self.index, index)
        if not np.array_equal(self.index[np.minimum(rows, len(self.index) - 1)], index):
            raise ValueError(f"windows that are not in chunk {self.sample.only[0]}, to which this sample is cut")
        return rows

    @cached_property
    def _by_chunk(self) -> tuple[npt.NDArray[np.intp], Int64Array]:
        order = np.argsort(self.chunk, kind="stable")
        return order, np.searchsorted(self.chunk[order], np.arange(self.sample.chunks + 1))


@dataclass(frozen=True, eq=False)
class SampledChunks:
    """The chunks of a sample; see :class:`Chunks`."""

    _of: SampledWindows

    def __len__(self) -> int:
        return self._of.sample.chunks

    def n_windows(self, chunk: int) -> int:
        """How many windows a chunk holds."""
        return len(self._of.rows_of(chunk))

    def block_at(self, chunk: int, n_loaders: int) -> tuple[int, int, int]:
        """They lie in no rows: each is a block of its own, and the next follows."""
        return 1, 1, 1

    def chunk_of(self, index: Int64Array) -> Int64Array:
        """The chunks that hold these windows."""
        chunks: Int64Array = self._of.chunk[self._of.rows(index)]
        return chunks

    def indices(self, chunk: int) -> Int64Array:
        """Places in the plan of a chunk's windows, ascending."""
        index: Int64Array = self._of.index[self._of.rows_of(chunk)]
        return index


def cut_sample(
    start: Int64Array,
    size: tuple[int, int],
    batch_size: int,
    chunk_px: int,
    tile: tuple[int, int] | None = None,
    cache_px: int = 1 << 25,
    resolutions: int | None = None,
    max_windows: int = MOST_WINDOWS,
) -> Int64Array:
    """The chunk of each window, (n,) int64: neighbours together, about `chunk_px` pixels each, in the order of reading.

    Parameters
    ----------
    start
        (n, 2) int64: (x, y), in pixels of what is read.
    size
        (width, height) of what is read of each window, its margin included.
    batch_size
        Chunks are multiples of it, where windows of one batch are not too large for one chunk.
    chunk_px
        What a chunk may have: as one region, or packed window by window, whichever is smaller.
    tile
        (width, height) of the level's tiles; None where it has none.
    cache_px
        What the cache of tiles may hold of a row of cells.
    resolutions
        How many there are of each window, which are then packed, however they overlap; None: one.
    max_windows
        In one chunk.

    The slide is laid out in cells of about that many pixels, along tiles, which are gone through row by row within a band, and
    the windows of a cell row by row: so those that share tiles come one after the other.
    """
    n = len(start)
    if not n:
        return np.empty(0, np.int64)
    order = _reading_order(start, size, chunk_px, tile or (1, 1), cache_px)
    window_px = math.prod(size) * (resolutions or 1)
    fits = max(1, min(chunk_px // window_px, max_windows))
    firsts = np.arange(0, n, min(batch_size, fits))
    placed = start[order]
    low, high = np.minimum.reduceat(placed, firsts), np.maximum.reduceat(placed, firsts) + size
    counts = np.diff(np.append(firsts, n)).tolist()
    chunk = np.empty(n, np.int64)
    number, held, box = -1, 0, (0, 0, 0, 0)
    for first, count, (left, top), (right, bottom) in zip(firsts.tolist(), counts, low.tolist(), high.tolist(), strict=True):
        joined = (min(box[0], left), min(box[1], top), max(box[2], right), max(box[3], bottom))
        packed_px, region_px = (held + count) * window_px, (joined[2] - joined[0]) * (joined[3] - joined[1])
        pixels = packed_px if resolutions is not None else min(region_px, packed_px)
        if number < 0 or held + count > max_windows or pixels > chunk_px:
            number, held, joined = number + 1, 0, (left, top, right, bottom)
        held, box = held + count, joined
        chunk[order[first : first + count]] = number
    return chunk


def _reading_order(
    start: Int64Array, size: tuple[int, int], chunk_px: int, tile: tuple[int, int], cache_px: int
) -> npt.NDArray[np.intp]:
    """Places of the windows, as they are to be read one after the other."""
    side = math.isqrt(chunk_px)
    cell = [max(own, (side - extent) // own * own) for own, extent in zip(tile, size, strict=True)]
    column, row = (start // cell).T
    band = max(1, int(_BAND_SHARE * cache_px) // ((size[1] + tile[1]) * cell[0]))
    return np.lexsort((start[:, 0], start[:, 1], column, row, column // band))


def _packed(rows: Int64Array) -> bytes:
    """Rows of numbers as differences, which are small where windows are in some order, deflated."""
    return zlib.compress(np.diff(rows, axis=1, prepend=0).astype("<i4").tobytes(), 1)


def _unpacked(data: bytes, n_rows: int) -> Int64Array:
    """The inverse of :func:`_packed`, for so many rows. Raises ValueError for what is none."""
    try:
        rows = np.frombuffer(zlib.decompress(data), "<i4").reshape(n_rows, -1)
    except zlib.error as error:
        raise ValueError(f"no table of windows: {error}") from error
    unpacked: Int64Array = np.cumsum(rows, axis=1, dtype=np.int64)
    return unpacked
