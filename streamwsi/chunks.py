"""Big chunks, the batches that are cut from them, and what a collector gives back for a window.

In: pixels and a table of windows.  Out: BigChunk → Batch, SmallChunk; ProcessedPiece.  Never opens a slide or a socket.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.dataset import Patient, Slide
from streamwsi.errors import ChunkError, NotPairedError
from streamwsi.geometry import Int64Array, Window, Windows
from streamwsi.paired import AnyArray, PairedPixels

UInt8Array = npt.NDArray[np.uint8]
_SMALL_BYTES = 1 << 16
"""Windows of fewer bytes are gathered all at once."""


class Status(IntEnum):
    """How a window of the plan ended; each ends with exactly one."""

    WRITTEN = 0
    """It has a row."""
    NONE = 1
    """The collector gave nothing for it."""
    SKIPPED = 2
    """Its pixels could not be read."""
    STOPPED = 3
    """It lies behind the place where ``is_finished`` stopped its patient."""


class _Paired:
    """What is read of images that are paired with the slide, by name."""

    paired: Mapping[str, AnyArray]
    """By name."""

    @property
    def labels(self) -> AnyArray:
        """``paired["labels"]``. What a sampler calls each window is ``windows.labels``."""
        return self._paired_with("labels")

    @property
    def mask(self) -> AnyArray:
        """``paired["mask"]``."""
        return self._paired_with("mask")

    def _paired_with(self, name: str) -> AnyArray:
        if name not in self.paired:
            raise NotPairedError(
                f"no image called {name!r} is read with the slides: give the loader paired={{{name!r}: Paired(…)}}"
            )
        return self.paired[name]


@dataclass(frozen=True, eq=False)
class SmallChunk(_Paired):
    """One window's pixels."""

    window: Window
    """Where it lies."""
    pixels: UInt8Array
    """(height, width, 3) uint8, RGB, with its margin; of several resolutions (r, height, width, 3), all around one centre, the
    finest first. A view into its big chunk, or into its batch; what transforms have made of it, where the loader has some."""
    margin: int = 0
    """Pixels on each side that belong to what lies around the window."""
    slide: Slide | None = None
    """The slide it is of; None where a chunk is cut that does not say."""
    patient: Patient | None = None
    """Whose slide it is."""
    paired: Mapping[str, AnyArray] = field(default_factory=dict)
    """By name, what paired images have at the same place, each along its own axes."""


@dataclass(frozen=True, eq=False)
class Batch(_Paired):
    """Windows of one big chunk, stacked for a model; all of one size."""

    pixels: UInt8Array
    """(n, height, width, 3) uint8, RGB, contiguous; with the margin around the windows, where one was asked for. Of several
    resolutions (n, r, height, width, 3): each window's centre is the same in all, and they come as they were asked for, the
    finest first. What transforms have made of it, where the loader has some. The collector's own: it may change them."""
    windows: Windows
    """Their windows, in the rows' order."""
    slide: Slide
    """The slide they are of, with what its reader says."""
    patient: Patient
    """Whose slide it is, with records."""
    margin: int = 0
    """Pixels on each side of a window's that belong to what lies around it."""
    paired: Mapping[str, AnyArray] = field(default_factory=dict)
    """By name, what paired images have at the same places: (n, …), contiguous, each along its own axes, of its own dtype."""

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[SmallChunk]:
        for row, window in enumerate(self.windows):
            yield SmallChunk(window, self.pixels[row], self.margin, self.slide, self.patient, _row_of(self.paired, row))

    @property
    def finest(self) -> UInt8Array:
        """(n, height, width, 3) uint8, RGB: the pixels of the finest resolution, where there are several, a view; else all."""
        return self.pixels if self.pixels.ndim == 4 else self.pixels[:, 0]

    @property
    def slides(self) -> tuple[Slide, ...]:
        """The slide of each row, as a :class:`MixedBatch` has them."""
        return (self.slide,) * len(self)

    @property
    def patients(self) -> tuple[Patient, ...]:
        """The patient of each row."""
        return (self.patient,) * len(self)


@dataclass(frozen=True, eq=False)
class MixedBatch(_Paired):
    """Windows of several big chunks, and of several slides perhaps, stacked for a model; all of one size."""

    pixels: UInt8Array
    """(n, height, width, 3) uint8, RGB, contiguous, as those of a :class:`Batch`: (n, r, height, width, 3) of several
    resolutions; with the margin around the windows, where one was asked for."""
    windows: Windows
    """Their windows, in the rows' order."""
    slides: tuple[Slide, ...]
    """The slide of each row, with what its reader says."""
    patients: tuple[Patient, ...]
    """The patient of each row, with records."""
    margin: int = 0
    """Pixels on each side of a window's that belong to what lies around it."""
    paired: Mapping[str, AnyArray] = field(default_factory=dict)
    """By name, what paired images have at the same places: (n, …), contiguous, each along its own axes, of its own dtype."""

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[SmallChunk]:
        for row, window in enumerate(self.windows):
            paired = _row_of(self.paired, row)
            yield SmallChunk(window, self.pixels[row], self.margin, self.slides[row], self.patients[row], paired)

    @property
    def finest(self) -> UInt8Array:
        """(n, height, width, 3) uint8, RGB: the pixels of the finest resolution, where there are several, a view; else all."""
        return self.pixels if self.pixels.ndim == 4 else self.pixels[:, 0]


def _row_of(paired: Mapping[str, AnyArray], row: int) -> dict[str, AnyArray]:
    return {name: values[row] for name, values in paired.items()}


@dataclass(frozen=True)
class ProcessedPiece:
    """What a collector returns for one window, where it does not return one row for each."""

    window: Window
    """The one of the batch that it is of."""
    value: Any
    """An array or a number; of one shape and dtype throughout a run."""
    slide: Slide | None = None
    """The slide it is of; filled in where pieces are gathered."""


@dataclass(frozen=True, eq=False)
class BigChunk:
    """A bounded group of neighbouring windows with the pixels they need: the unit of work."""

    windows: Windows
    """All its windows, in the order of the plan."""
    pixels: UInt8Array
    """(height, width, 3) uint8: one region; or (n, height, width, 3): packed, one per window; or (n, r, height, width, 3):
    packed, several resolutions per window."""
    origin: tuple[int, int] | None
    """(x, y) of the region, in pixels of the level read; None where the windows are packed."""
    skipped: npt.NDArray[np.bool_]
    """(n,) bool: windows whose pixels could not be read."""
    margin: int = 0
    """Pixels around each window that its pixels have besides its own."""
    paired: Mapping[str, PairedPixels] = field(default_factory=dict)
    """By name, what paired images have at the same places."""

    def __post_init__(self) -> None:
        ndims = (3,) if self.origin is not None else (4, 5)
        if self.pixels.ndim not in ndims or self.pixels.shape[-1] != 3 or len(self.skipped) != len(self.windows):
            kind, axes = ("packed chunk", "4 or 5") if self.origin is None else ("region", "3")
            raise ChunkError(
                f"a {kind} of {len(self.windows)} windows must have {axes} axes, the last one of 3 channels, and a flag per "
                f"window; got {self.pixels.shape} and {len(self.skipped)} flags"
            )

    def pixels_of(self, row: int) -> UInt8Array:
        """(height, width, 3) or (r, height, width, 3) uint8, a view: the window in that `row`, with its margin."""
        width, height = self.size_px(row)
        if self.origin is None:
            return self.pixels[row, ..., :height, :width, :]
        x, y = (self.corners[row] - self.origin).tolist()
        return self.pixels[y : y + height, x : x + width]

    def pixels_of_all(self) -> list[UInt8Array]:
        """Those of each window."""
        height, width = self.pixels.shape[-3:-1]
        if self.origin is None and (self.windows.size + 2 * self.margin == (width, height)).all():
            return list(self.pixels)
        return [self.pixels_of(row) for row in range(len(self.windows))]

    @cached_property
    def corners(self) -> Int64Array:
        """(n, 2) int64: (x, y) of where each window's pixels begin, in pixels of the level read."""
        corners: Int64Array = self.windows.start - self.margin
        return corners

    def size_px(self, row: int) -> tuple[int, int]:
        """(width, height) of the pixels of the window in that `row`."""
        width, height = self.windows.size[row].tolist()
        return width + 2 * self.margin, height + 2 * self.margin

    def small_chunks(self) -> Iterator[SmallChunk]:
        """Every window that could be read, with its pixels."""
        for row in np.flatnonzero(~self.skipped).tolist():
            paired = {name: pixels.of(row) for name, pixels in self.paired.items()}
            yield SmallChunk(self.windows[row], self.pixels_of(row), self.margin, paired=paired)

    @cached_property
    def readable_rows(self) -> npt.NDArray[np.intp]:
        """Rows of the windows that could be read."""
        return np.flatnonzero(~self.skipped)

    def batch_rows(self, batch_size: int) -> Iterator[npt.NDArray[np.intp]]:
        """Rows of each batch: windows of one size, in the order of the plan, at most `batch_size` of them.

        The cut depends on nothing but the chunk, so that a chunk processed again is cut the same way.
        """
        rows = self.readable_rows
        if not len(rows):
            return
        own = self.windows.size[rows]
        if (own == own[0]).all():
            for first in range(0, len(rows), batch_size):
                yield rows[first : first + batch_size]
            return
        sizes, group = np.unique(own, axis=0, return_inverse=True)
        # the full-sized windows come first, then those that an adaptive border has cut
        for number in range(len(sizes) - 1, -1, -1):
            members = rows[group.ravel() == number]
            for first in range(0, len(members), batch_size):
                yield members[first : first + batch_size]

    def as_stacked(self, rows: npt.NDArray[np.intp]) -> UInt8Array | None:
        """(n, height, width, 3) or (n, r, height, width, 3) uint8, contiguous and writable: the pixels of the windows in these
        `rows`, all of one size, a view; None where they do not lie one after the other.
        """
        width, height = self.size_px(int(rows[0]))
        packed = self.origin is None and (height, width) == self.pixels.shape[-3:-1] and bool(np.all(np.diff(rows) == 1))
        return self.pixels[rows[0] : rows[-1] + 1] if packed and self.pixels.flags.writeable else None

    def stack(self, rows: npt.NDArray[np.intp], memory: Callable[[int], UInt8Array] | None = None) -> UInt8Array:
        """(n, height, width, 3) or (n, r, height, width, 3) uint8, contiguous: the pixels of the windows in these `rows`, all
        of one size, copied once.

        `memory` gives room for so many bytes, (n,) uint8, where it is asked for some.
        """
        width, height = self.size_px(int(rows[0]))
        if self.origin is not None and width * height * 3 < _SMALL_BYTES:
            return self._gathered(self.corners[rows] - self.origin, width, height)
        resolutions = self.pixels.shape[1:-3] if self.origin is None else ()
        shape = (len(rows), *resolutions, height, width, 3)
        size = math.prod(shape)
        flat = np.empty(size, np.uint8) if memory is None else memory(size)
        stacked = flat.reshape(shape)
        for target, row in zip(stacked, rows.tolist(), strict=True):
            target[...] = self.pixels_of(row)
        return stacked

    def stack_paired(self, rows: npt.NDArray[np.intp]) -> dict[str, AnyArray]:
        """By name, (n, …), contiguous: what paired images have where the windows in these `rows`, all of one size, lie."""
        return {name: pixels.stack(rows) for name, pixels in self.paired.items()}

    def _gathered(self, starts: Int64Array, width: int, height: int) -> UInt8Array:
        """The windows at `starts`, (n, 2) x and y in the region, all at once: a loop would take longer than the copy."""
        across, down = starts.T
        region_h, region_w = self.pixels.shape[:2]
        # Every place where a window of this size could begin, its rows as runs of bytes
        shape = (region_h - height + 1, region_w - width + 1, height, width * 3)
        strides = (self.pixels.strides[0], self.pixels.strides[1], self.pixels.strides[0], 1)
        places = np.lib.stride_tricks.as_strided(self.pixels, shape, strides, writeable=False)
        gathered: UInt8Array = places[down, across]
        return gathered.reshape(len(starts), height, width, 3)
