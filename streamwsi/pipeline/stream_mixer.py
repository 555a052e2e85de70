"""Batches whose windows are drawn from several chunks.

In: chunks, in the order of the shuffle.  Out: their windows in batches, each once, in an order that depends on the random
generator and the chunks alone.  Holds the pixels of `pool` chunks, and of the batches being filled; each pixel is copied once.

The next batch is filled, in a thread of its own, while the one before it is being used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from streamwsi.chunks import BigChunk, MixedBatch, UInt8Array
from streamwsi.collecting.ahead import BatchMemory, ChunkWork
from streamwsi.dataset import Patient, Slide
from streamwsi.geometry import Int64Array, Windows
from streamwsi.paired import AnyArray
from streamwsi.pipeline.stream_order import Draw

_Form = tuple[Any, ...]
"""What windows of one batch have in common: the shape of their pixels, and shape and dtype of what goes with them."""
_MOST_SIZES = 8
"""Forms of windows for which batches are being filled (``adaptive`` borders have many); one more has the oldest given out."""


class _Member(NamedTuple):
    """A chunk of the pool."""

    work: ChunkWork
    rows: list[int]
    """Its windows that could be read."""
    windows: Windows
    """All its windows."""


class _Copy(NamedTuple):
    """A window that is to be copied to its place."""

    chunk: BigChunk
    row: int
    target: UInt8Array
    paired: dict[str, AnyArray]
    """By name, where what goes with it goes."""


@dataclass(eq=False)
class _Filling:
    """A batch to be."""

    pixels: UInt8Array
    margin: int
    paired: dict[str, AnyArray]
    rows: list[tuple[Windows, int]] = field(default_factory=list)
    slides: list[Slide] = field(default_factory=list)
    patients: list[Patient] = field(default_factory=list)
    copied: Future[None] | None = None

    def batch(self) -> MixedBatch:
        if self.copied is not None:
            self.copied.result()
        windows = _together(self.rows)
        n = len(windows)
        paired = {name: values[:n] for name, values in self.paired.items()}
        return MixedBatch(self.pixels[:n], windows, tuple(self.slides), tuple(self.patients), self.margin, paired)


def _together(rows: list[tuple[Windows, int]]) -> Windows:
    """Windows of several tables, as one. What a label is called is that of its own slide: numbers of several differ."""

    def column(name: str) -> Int64Array:
        return np.array([getattr(table, name)[row] for table, row in rows], np.int64)

    labels = [table.label_at(row) for table, row in rows]
    names = tuple(sorted({name for name in labels if name is not None}))
    code = None if not names else np.array([-1 if name is None else names.index(name) for name in labels], np.int64)
    return Windows(column("index"), column("start"), column("xy"), column("size"), code, names)


class Mixer:
    """Draws windows from a pool of chunks."""

    def __init__(self, batch_size: int, pool: int, random: np.random.Generator) -> None:
        self._batch_size = batch_size
        self._draw: Draw[int] = Draw(pool, random)
        self._members: dict[int, _Member] = {}
        self._filling: dict[_Form, _Filling] = {}
        """By what their windows are like, the oldest first."""
        self._full: deque[_Filling] = deque()
        self._copies: list[_Copy] = []
        self._memory = BatchMemory()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")

    @property
    def wants(self) -> bool:
        """Another chunk must be added, or the end be told, before windows are drawn."""
        return self._draw.wants

    @property
    def done(self) -> bool:
        """Everything was given out."""
        return self._draw.done and not self._filling and not self._full

    def add(self, work: ChunkWork) -> None:
        """Another chunk for the pool."""
        rows = work.chunk.readable_rows.tolist()
        if rows:
            self._members[work.lease] = _Member(work, rows, work.chunk.windows)
            self._draw.add(work.lease, len(rows))

    def end(self) -> None:
        """No other chunks come."""
        self._draw.close()

    def take(self, more: Callable[[], bool]) -> MixedBatch | None:
        """The next batch; None where chunks are missing, or nothing is left.

        `more` is called where a chunk is wanted, and says whether there was one, or the end was told.
        """
        self._fill(more)
        if not self._full:
            return None
        batch = self._full.popleft()
        self._fill(more)
        return batch.batch()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _fill(self, more: Callable[[], bool]) -> None:
        """Have a batch full, if there are the windows for one."""
        while not self._full:
            while self._draw.wants and more():
                pass
            drawn = self._draw.take()
            if drawn is not None:
                self._place(self._members[drawn.key], drawn.part)
                if drawn.last:
                    del self._members[drawn.key]
                    self._copy()  # a batch that is long in filling does not keep it
            elif self._draw.done and self._filling:
                self._finish(next(iter(self._filling)))
            else:
                return

    def _place(self, member: _Member, part: int) -> None:
        """Have a window copied into the batch that it goes into."""
        chunk, row = member.work.chunk, member.rows[part]
        pixels = chunk.pixels_of(row)
        paired = {name: image.of(row) for name, image in chunk.paired.items()}
        form: _Form = (pixels.shape, *((name, values.shape, values.dtype.str) for name, values in paired.items()))
        filling = self._filling.get(form)
        if filling is None:
            if len(self._filling) == _MOST_SIZES:
                self._finish(next(iter(self._filling)))
            memory = self._memory.take(self._batch_size * pixels.size)
            blank = {name: np.empty((self._batch_size, *values.shape), values.dtype) for name, values in paired.items()}
            filling = _Filling(memory.reshape(self._batch_size, *pixels.shape), chunk.margin, blank)
            self._filling[form] = filling
        place = len(filling.rows)
        targets = {name: values[place] for name, values in filling.paired.items()}
        self._copies.append(_Copy(chunk, row, filling.pixels[place], targets))
        filling.rows.append((member.windows, row))
        filling.slides.append(member.work.slide)
        filling.patients.append(member.work.patient)
        if len(filling.rows) == self._batch_size:
            self._finish(form)

    def _finish(self, form: _Form) -> None:
        """A batch has all the windows that it gets."""
        filling = self._filling.pop(form)
        filling.copied = self._copy()
        self._full.append(filling)

    def _copy(self) -> Future[None]:
        """Have copied what was drawn since the last time; what was drawn before that is copied before."""
        copies, self._copies = self._copies, []
        return self._thread.submit(_copy_each, copies)


def _copy_each(copies: list[_Copy]) -> None:
    while copies:
        chunk, row, target, paired = copies.pop()
        target[...] = chunk.pixels_of(row)
        for name, values in paired.items():
            values[...] = chunk.paired[name].of(row)
