"""Batches, each made ready while the one before it is being processed, where that gains anything.

In: chunks, as they arrive.  Out: their batches, in order.  Windows that overlap are copied together, once; those that lie side
by side in their chunk are a batch as they are.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import Batch, BigChunk, UInt8Array
from streamwsi.collecting.rows import ChunkRows
from streamwsi.dataset import Patient, Slide
from streamwsi.memory import block_bytes, empty_pixels, idle
from streamwsi.paired import AnyArray
from streamwsi.resolved import ResolvedSlide

_T = TypeVar("_T")
_Copy = Callable[[], _T]
"""Gives what is copied: does it now, or waits until another thread has."""


_TIME_LEFT = 0.02
"""Waiting for chunks for so much of the time, a collector has time to copy."""
_NEWS = 0.1
"""What the last chunk counts for in that."""


@dataclass(eq=False)
class ChunkWork:
    """A chunk that is to be processed."""

    lease: int
    number: int
    resolved: ResolvedSlide
    slide: Slide
    patient: Patient
    writer: str
    """The endpoint that its pieces go to."""
    chunk: BigChunk
    memory: UInt8Array | None = None
    """The slot that holds its pixels; None: they are its own."""
    rows: ChunkRows | None = field(default=None, init=False)
    """What was made of it so far."""

    def let_go(self) -> weakref.ref[UInt8Array] | None:
        """Let go of the pixels; returns a reference that is dead once nobody else holds any, where they lie in a slot."""
        memory = None if self.memory is None else weakref.ref(self.memory)
        self.memory = None
        del self.chunk
        return memory


@dataclass(eq=False)
class Step:
    """One batch of a chunk."""

    work: ChunkWork
    members: npt.NDArray[np.intp]
    """The chunk's rows that are in it; none where nothing of the chunk could be read."""
    last: bool
    """It is the chunk's last."""
    _pixels: _Copy[UInt8Array] | None
    _paired: _Copy[dict[str, AnyArray]] | None = None

    def batch(self) -> Batch:
        """The batch, ready. Call it once."""
        pixels, self._pixels = self._pixels, None
        paired, self._paired = self._paired, None
        if pixels is None:
            raise RuntimeError("the batch was taken already, or nothing of its chunk could be read")
        chunk = self.work.chunk
        images = {} if paired is None else paired()
        return Batch(pixels(), chunk.windows.take(self.members), self.work.slide, self.work.patient, chunk.margin, images)


class BatchMemory:
    """Room for batches, used again once nobody has it any more: fresh memory costs about as much as the copy into it."""

    _MOST = 4

    def __init__(self) -> None:
        self._blocks: list[UInt8Array] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> UInt8Array:
        """(size,) uint8. Whoever holds a view of it holds the block. From any thread."""
        needed = block_bytes((size,))
        with self._lock:
            for place, free in enumerate(idle(self._blocks)):
                if free and len(self._blocks[place]) >= needed:
                    return empty_pixels((size,), self._blocks[place])
            block = np.empty(needed, np.uint8)
            self._blocks = [*self._blocks[1 - self._MOST :], block]
            return empty_pixels((size,), block)


class Ahead:
    """Cuts chunks into batches, and copies the next one in a thread of its own while one is being processed.

    With `always`, which is for batches that a device computes, or who knows what, that is so in any case. Else it is so while
    whoever processes them is what limits. Who waits for chunks has time to copy a batch when it is its turn: a second thread
    would take a processor from those who read the chunks, and the pixels would not be in the cache of the one that needs them.
    `clock` gives seconds.
    """

    def __init__(self, batch_size: int, always: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._batch_size = batch_size
        self._always = always
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._memory = BatchMemory()
        self._arrived: deque[ChunkWork] = deque()
        self._members: Iterator[tuple[ChunkWork, npt.NDArray[np.intp], bool]] = iter(())
        self._next: Step | None = None
        self._begun: float | None = None
        """When the present chunk was begun."""
        self._waits_since: float | None = None
        """Since when there has been no chunk."""
        self._waits = 0.0
        """The share of its time for which there is none, of late."""

    def add(self, work: ChunkWork) -> None:
        """A chunk has arrived."""
        self._arrived.append(work)

    def take(self, more: Callable[[], object]) -> Step | None:
        """The next batch; None where no chunk is there. `more` is called for chunks to be added before there are none left."""
        step = self._next or self._prepare(more)
        if step is None:
            if self._waits_since is None:
                self._waits_since = self._clock()
            return None
        self._next = self._prepare(more)
        return step

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, more: Callable[[], object]) -> Step | None:
        found = next(self._members, None)
        if found is None:
            if not self._arrived:
                more()
            if not self._arrived:
                return None
            self._chunk_begins()
            self._members = self._cut(self._arrived.popleft())
            found = next(self._members)
        work, members, last = found
        if not len(members):
            return Step(work, members, last, None)
        stacked = work.chunk.as_stacked(members)
        pixels = self._copy(lambda: work.chunk.stack(members, self._memory.take)) if stacked is None else lambda: stacked
        paired = self._copy(lambda: work.chunk.stack_paired(members)) if work.chunk.paired else None
        return Step(work, members, last, pixels, paired)

    def _chunk_begins(self) -> None:
        now = self._clock()
        if self._begun is not None and now > self._begun:
            waited = 0.0 if self._waits_since is None else now - self._waits_since
            self._waits += (waited / (now - self._begun) - self._waits) * _NEWS
        self._begun, self._waits_since = now, None

    def _copy(self, copy: _Copy[_T]) -> _Copy[_T]:
        return self._thread.submit(copy).result if self._always or self._waits < _TIME_LEFT else copy

    def _cut(self, work: ChunkWork) -> Iterator[tuple[ChunkWork, npt.NDArray[np.intp], bool]]:
        all_members = list(work.chunk.batch_rows(self._batch_size)) or [np.empty(0, np.intp)]
        for number, members in enumerate(all_members, 1):
            yield work, members, number == len(all_members)
