"""Batches, each made ready while the one before it is being processed.

In: chunks, as they arrive.  Out: their batches, in order.  Windows that overlap are copied together, once; those that lie side
by side in their chunk are a batch as they are.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import Batch, BigChunk, UInt8Array
from streamwsi.collecting.rows import ChunkRows
from streamwsi.dataset import Patient, Slide
from streamwsi.paired import AnyArray
from streamwsi.resolved import ResolvedSlide


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
    _pixels: UInt8Array | Future[UInt8Array] | None
    _paired: Future[dict[str, AnyArray]] | None = None

    def batch(self) -> Batch:
        """The batch, ready. Call it once."""
        found, self._pixels = self._pixels, None
        if found is None:
            raise RuntimeError("the batch was taken already, or nothing of its chunk could be read")
        pixels = found.result() if isinstance(found, Future) else found
        paired = {} if self._paired is None else self._paired.result()
        self._paired = None
        chunk = self.work.chunk
        return Batch(pixels, chunk.windows.take(self.members), self.work.slide, self.work.patient, chunk.margin, paired)


class BatchMemory:
    """Room for batches, used again once nobody has it any more: fresh memory costs about as much as the copy into it."""

    _MOST = 4

    def __init__(self) -> None:
        self._blocks: list[UInt8Array] = []

    def take(self, size: int) -> UInt8Array:
        """(size,) uint8. Whoever holds a view of it holds the block."""
        for place, references in enumerate(_references(self._blocks)):
            if references == _IDLE_REFERENCES and len(self._blocks[place]) >= size:
                return self._blocks[place][:size]
        block = np.empty(size, np.uint8)
        self._blocks = [*self._blocks[1 - self._MOST :], block]
        return block[:size]


def _references(blocks: list[UInt8Array]) -> list[int]:
    """How many hold each block, and how many more for the counting itself, which differs between versions of Python."""
    return [sys.getrefcount(block) for block in blocks]


_IDLE_REFERENCES = _references([np.empty(1, np.uint8)])[0]
"""To a block that nobody has but the list that it is counted in."""


class Ahead:
    """Cuts chunks into batches, and makes the next one ready in a thread of its own."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._memory = BatchMemory()
        self._arrived: deque[ChunkWork] = deque()
        self._members: Iterator[tuple[ChunkWork, npt.NDArray[np.intp], bool]] = iter(())
        self._next: Step | None = None

    def add(self, work: ChunkWork) -> None:
        """A chunk has arrived."""
        self._arrived.append(work)

    def take(self, more: Callable[[], object]) -> Step | None:
        """The next batch; None where no chunk is there. `more` is called for chunks to be added before there are none left."""
        step = self._next or self._prepare(more)
        self._next = self._prepare(more) if step is not None else None
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
            self._members = self._cut(self._arrived.popleft())
            found = next(self._members)
        work, members, last = found
        pixels: UInt8Array | Future[UInt8Array] | None = None
        if len(members):
            pixels = work.chunk.as_stacked(members)
        if pixels is None and len(members):
            pixels = self._thread.submit(work.chunk.stack, members, self._memory.take)
        paired = self._thread.submit(work.chunk.stack_paired, members) if len(members) and work.chunk.paired else None
        return Step(work, members, last, pixels, paired)

    def _cut(self, work: ChunkWork) -> Iterator[tuple[ChunkWork, npt.NDArray[np.intp], bool]]:
        all_members = list(work.chunk.batch_rows(self._batch_size)) or [np.empty(0, np.intp)]
        for number, members in enumerate(all_members, 1):
            yield work, members, number == len(all_members)
