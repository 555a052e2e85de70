"""A picture that is written: block by block, each once, in row-major order; and its smaller levels.

In: an array, a function that gives blocks, or blocks that come by themselves.  Out: blocks, (height, width, channels).  Never
holds more than a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.arrays.outputs import partial_path
from streamwsi.arrays.sources import AnyArray, Source, as_numpy
from streamwsi.errors import ArrayError, ConfigError, OutputError

DTYPES = ("uint8", "uint16", "float32")
AXES = ("YX", "YXC", "CYX")
_MOST_CHANNELS = 1024
"""More are an axis that was taken for one of channels."""
_PIXELS = 16
"""Sides of blocks are multiples of it. Source: TIFF 6.0, section 15."""

Spans = tuple[slice, slice]
"""(rows, columns)."""
BlockSource = Callable[[slice, slice], AnyArray]
"""Given rows and columns, that block: (height, width) or (height, width, channels)."""


class Picture:
    """What is written: its size, and its blocks.

    `shape` and `dtype` are needed where `source` is a function or an iterator. Raises ConfigError for what cannot be written.
    """

    def __init__(
        self,
        source: Any,
        axes: str | None,
        shape: Sequence[int] | None,
        dtype: npt.DTypeLike | None,
        block_px: int,
    ) -> None:
        if block_px < _PIXELS or block_px % _PIXELS:
            raise ConfigError(f"block_px must be a multiple of {_PIXELS}, got {block_px}")
        self.block_px = block_px
        array_like = hasattr(source, "shape") and hasattr(source, "dtype")
        if array_like:
            if shape is not None or dtype is not None:
                raise ConfigError("an array says its shape and dtype itself: leave them out")
            self._source = Source(source)
            shape, self.dtype = self._source.shape, self._source.dtype
        elif shape is None or dtype is None:
            raise ConfigError("blocks that come one by one need dtype, and shape: (height, width) or (height, width, channels)")
        else:
            if axes not in (None, "YX", "YXC"):
                raise ConfigError(f"blocks are (height, width, channels), so axes must be YX or YXC, got {axes!r}")
            self.dtype = np.dtype(dtype)
        self.axes = axes or {2: "YX", 3: "YXC"}.get(len(shape), "")
        if self.axes not in AXES or len(self.axes) != len(shape):
            raise ConfigError(f"axes must be one of {', '.join(AXES)}, one letter for each of {tuple(shape)}, got {axes!r}")
        if self.dtype.name not in DTYPES:
            raise ConfigError(f"pixels must be {', '.join(DTYPES)}, got {self.dtype}: convert them first")
        sizes = dict(zip(self.axes, map(int, shape), strict=True))
        self.height, self.width, self.channels = sizes["Y"], sizes["X"], sizes.get("C", 1)
        if min(self.height, self.width, self.channels) < 1:
            raise ConfigError(f"there is nothing to write: shape {tuple(shape)}")
        if self.channels > _MOST_CHANNELS:
            raise ConfigError(f"{self.channels} channels of shape {tuple(shape)}: if they are the first axis, say axes='CYX'")
        self._array_like, self._given = array_like, source

    @property
    def is_rgb(self) -> bool:
        """Whether its channels are red, green and blue."""
        return self.channels == 3 and self.dtype == np.uint8

    def spans(self) -> Iterator[Spans]:
        """Where its blocks lie, in row-major order."""
        return block_spans(self.height, self.width, self.block_px)

    def blocks(self) -> Iterator[tuple[Spans, AnyArray]]:
        """Each block once, (height, width, channels), and where it lies.

        Raises ArrayError for a block of another shape or type, and where there are too few or too many.
        """
        if self._array_like:
            for rows, columns in self.spans():
                where = {"Y": rows, "X": columns}
                block = self._source.read(tuple(where.get(axis, slice(None)) for axis in self.axes))
                yield (
                    (rows, columns),
                    self._checked(np.moveaxis(block, 0, -1) if self.axes == "CYX" else block, (rows, columns)),
                )
        elif callable(self._given):
            for rows, columns in self.spans():
                yield (rows, columns), self._checked(as_numpy(self._given(rows, columns)), (rows, columns))
        else:
            yield from self._one_by_one(self._given)

    def _one_by_one(self, given: Iterable[Any]) -> Iterator[tuple[Spans, AnyArray]]:
        blocks = iter(given)
        expected = math.ceil(self.height / self.block_px) * math.ceil(self.width / self.block_px)
        for number, spans in enumerate(self.spans()):
            try:
                block = next(blocks)
            except StopIteration:
                raise ArrayError(f"the blocks end after {number} of {expected}") from None
            yield spans, self._checked(as_numpy(block), spans)
        if next(blocks, None) is not None:
            raise ArrayError(f"there are more than the {expected} blocks of {self.height} x {self.width} pixels")

    def _checked(self, block: AnyArray, spans: Spans) -> AnyArray:
        rows, columns = spans
        expected = (rows.stop - rows.start, columns.stop - columns.start, self.channels)
        if block.ndim == 2:
            block = block[..., None]
        if block.shape != expected or block.dtype != self.dtype:
            raise ArrayError(
                f"the block at row {rows.start}, column {columns.start} must be {expected} {self.dtype}, got {block.shape} "
                f"{block.dtype}"
            )
        return block


def block_spans(height: int, width: int, block_px: int) -> Iterator[Spans]:
    """Blocks of a picture, in row-major order; the last ones of a row or column may be smaller."""
    for top in range(0, height, block_px):
        for left in range(0, width, block_px):
            yield slice(top, min(top + block_px, height)), slice(left, min(left + block_px, width))


def level_sizes(height: int, width: int, smallest_px: int) -> list[tuple[int, int]]:
    """(height, width) of each level, each half of the one before, rounded up, until one is not larger than `smallest_px`."""
    sizes = [(height, width)]
    while max(sizes[-1]) > smallest_px:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def halved(block: AnyArray) -> AnyArray:
    """(⌈height / 2⌉, ⌈width / 2⌉, channels): means of 2 × 2 pixels, at the edge of what is left of them.

    Whole numbers are rounded, halves up. NaN is left out of a mean, which is NaN where there is nothing else.
    """
    even = np.pad(block, ((0, block.shape[0] % 2), (0, block.shape[1] % 2), (0, 0)), mode="edge")
    four = (even[::2, ::2], even[::2, 1::2], even[1::2, ::2], even[1::2, 1::2])
    if block.dtype.kind == "u":
        total = four[0].astype(np.uint32)
        for other in four[1:]:
            total += other
        return ((total + 2) >> 2).astype(block.dtype)
    sums, counts = np.zeros(four[0].shape, np.float64), np.zeros(four[0].shape, np.uint8)
    for each in four:
        there = ~np.isnan(each)
        np.add(sums, each, out=sums, where=there)
        counts += there
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that is wanted
        mean: AnyArray = (sums / counts).astype(block.dtype)
    return mean


class Spool:
    """A level on the disk while it is needed, uncompressed; (channels, height, width). Read like an array, blocks at a time.

    It is written in pieces of `piece_px`, which lie one after the other: mapped files would count as memory of the process.
    """

    def __init__(self, path: Path, size: tuple[int, int], picture: Picture, piece_px: int) -> None:
        self._path, self._piece_px = path, piece_px
        self.shape = (picture.channels, *size)
        self.dtype = picture.dtype
        self._across = -(-size[1] // piece_px)
        path.touch()

    def write(self, spans: Spans, block: AnyArray) -> None:
        """Put a piece, (height, width, channels), where it belongs."""
        piece = np.zeros((self.shape[0], self._piece_px, self._piece_px), self.dtype)
        piece[:, : block.shape[0], : block.shape[1]] = np.moveaxis(block, -1, 0)
        with self._path.open("r+b") as file:
            file.seek(self._offset(spans[0].start, spans[1].start))
            file.write(piece.tobytes())

    def __getitem__(self, where: tuple[slice, slice, slice]) -> AnyArray:
        """Of some channels a block that begins with a piece."""
        channels, rows, columns = where
        first, last, _ = channels.indices(self.shape[0])
        side = self._piece_px
        out = np.empty((last - first, rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        with self._path.open("rb") as file:
            for top in range(0, out.shape[1], side):
                for left in range(0, out.shape[2], side):
                    plane_bytes = side * side * self.dtype.itemsize
                    file.seek(self._offset(rows.start + top, columns.start + left) + first * plane_bytes)
                    piece = np.frombuffer(file.read(out.shape[0] * plane_bytes), self.dtype).reshape(-1, side, side)
                    target = out[:, top : top + side, left : left + side]
                    target[...] = piece[:, : target.shape[1], : target.shape[2]]
        return out

    def halve_into(self, coarser: Spool, block_px: int) -> None:
        """Make the next level."""
        for rows, columns in block_spans(*self.shape[1:], block_px):
            coarser.write(half((rows, columns)), halved(np.moveaxis(self[slice(None), rows, columns], 0, -1)))

    def _offset(self, top: int, left: int) -> int:
        """Where in the file a piece begins."""
        number = top // self._piece_px * self._across + left // self._piece_px
        return number * self.shape[0] * self._piece_px**2 * self.dtype.itemsize


def half(spans: Spans) -> Spans:
    """Where the half of a block lies in the next level; blocks begin at even pixels."""
    rows, columns = (slice(span.start // 2, -(-span.stop // 2)) for span in spans)
    return rows, columns


def checked_target(path: Any, suffixes: Sequence[str]) -> tuple[Path, Path]:
    """(path, where it is written before it is complete). Raises ConfigError for another suffix, OutputError where it exists."""
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        raise ConfigError(f"the name must end in {' or '.join(suffixes)}, got {str(path)!r}")
    if target.exists():
        raise OutputError(f"{target} exists; give another name, or remove it")
    if not target.parent.is_dir():
        raise OutputError(f"there is no folder {target.parent} for {target.name}")
    return target, partial_path(target)


def checked_mpp(mpp: float | tuple[float, float] | None) -> tuple[float, float] | None:
    """(x, y) micrometres per pixel. Raises ConfigError where they cannot be."""
    if mpp is None:
        return None
    sides = (float(mpp), float(mpp)) if isinstance(mpp, (int, float)) else tuple(map(float, mpp))
    if len(sides) != 2 or not all(math.isfinite(side) and side > 0 for side in sides):
        raise ConfigError(f"mpp must be micrometres per pixel, above 0: one number or (x, y), got {mpp!r}")
    return sides[0], sides[1]


def checked_channels(channels: Sequence[str] | None, picture: Picture) -> list[str] | None:
    """A name for each channel. Raises ConfigError where there are more or fewer."""
    if channels is None:
        return None
    if isinstance(channels, str) or len(channels) != picture.channels:
        raise ConfigError(f"channels must be {picture.channels} names, one for each, got {channels!r}")
    return [str(name) for name in channels]
