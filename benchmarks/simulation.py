"""The scheduler alone, in a world where everything is done at once: how fast it decides, and what it keeps.

In: how many slides.  Out: chunks per second, and memory.  Starts no pipeline and opens no slide.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from streamwsi.pipeline.decisions import Limits, Open, PatientJob, Publish, Read, Resolve, Seal, Send
from streamwsi.pipeline.scheduler import Scheduler

N_CHUNKS = 1000
LEFT_OVER = 10
"""Chunks still to do of a slide whose others are in the journal already, as on a resume."""
_SAMPLE_EVERY = 20
"""Patients between two looks at the memory."""


@dataclass(frozen=True)
class Simulated:
    """What a simulation has found."""

    chunks_per_s: float
    """While slides were done from their first chunk to the last."""
    growth_mb: float
    """The most memory at any later time, less what it was when those were done."""


class _Plan:
    """A slide's chunks, as the scheduler sees them."""

    def __len__(self) -> int:
        return N_CHUNKS

    def n_windows(self, chunk: int) -> int:
        """As many in each."""
        return 32

    def block_at(self, chunk: int, n_loaders: int) -> tuple[int, int, int]:
        """As on a slide of four columns."""
        return 10, max(1, 4 // n_loaders), 4


def simulate(n_whole: int, n_resumed: int) -> Simulated:
    """Have `n_whole` slides of 1000 chunks done, then `n_resumed` of which all but the last few chunks were done before.

    The latter go through every stage of a slide, and so leave behind whatever a whole one would. Each slide is a patient of its
    own. In a process of its own, whose memory is nobody else's.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_simulate, (n_whole, n_resumed))


def _simulate(n_whole: int, n_resumed: int) -> Simulated:
    world = _World(n_whole, n_whole + n_resumed)
    begun = time.perf_counter()
    world.run_until(n_whole)
    chunks_per_s = world.committed / (time.perf_counter() - begun)
    before, peak = _memory_mb(), 0.0
    for finished in range(n_whole, n_whole + n_resumed + 1, _SAMPLE_EVERY):
        world.run_until(finished)
        peak = max(peak, _memory_mb())
    world.run_until(n_whole + n_resumed)
    return Simulated(chunks_per_s, max(max(peak, _memory_mb()) - before, 0.0))


def _memory_mb() -> float:
    """What this process would free by ending."""
    return float(psutil.Process().memory_full_info().uss) / 1e6


class _World:
    """One worker of each role, two collectors; each event is followed by the decisions it calls for, none are saved up."""

    def __init__(self, n_whole: int, n_slides: int) -> None:
        self._n_whole = n_whole
        self._scheduler = Scheduler((PatientJob(number, 1) for number in range(n_slides)), Limits())
        self._events: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._done_before = list(range(N_CHUNKS - LEFT_OVER))
        self.committed = 0
        self.published = 0
        for name in ("loader-0", "collector-0", "collector-1", "writer-0", "publisher-0"):
            self._scheduler.worker_came(name.partition("-")[0], name)
        self._take_decisions()

    def run_until(self, published: int) -> None:
        """Go on until so many patients are published."""
        while self.published < published:
            event, arguments = self._events.popleft()
            event(*arguments)
            self._take_decisions()

    def _take_decisions(self) -> None:
        scheduler, events = self._scheduler, self._events
        for decision in scheduler.decisions():
            if isinstance(decision, Read):
                events.append((scheduler.chunk_read, (decision.lease,)))
            elif isinstance(decision, Send):
                events.append((scheduler.chunk_collected, (decision.lease,)))
                events.append((scheduler.chunk_committed, (decision.lease,)))
                self.committed += 1
            elif isinstance(decision, Open):
                before = {} if decision.patient < self._n_whole else {0: self._done_before}
                events.append((scheduler.patient_opened, (decision.patient, before)))
            elif isinstance(decision, Resolve):
                events.append((scheduler.slide_resolved, (decision.slide, _Plan())))
            elif isinstance(decision, Seal):
                events.append((scheduler.patient_sealed, (decision.patient,)))
            elif isinstance(decision, Publish):
                events.append((self._publish, (decision.patient,)))

    def _publish(self, patient: int) -> None:
        self._scheduler.patient_published(patient)
        self.published += 1
