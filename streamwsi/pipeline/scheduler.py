"""Who does what next: a pure state machine.

In: events (a worker came or went, a slide was resolved, a chunk was read, processed, committed, …).  Out: decisions.  Knows
no socket, no process, no clock and no pixels, so that crashes, retries and thousands of slides can be tested without any.

A chunk's way, each step one event:

    leased to a loader → read → sent to a collector that has credit → collected → committed by the patient's writer

A lease holds a loader's slot until it is sent, a collector's until it is collected, a writer's from being sent until it is
committed; a slow stage so slows those before it. A chunk whose worker died is leased again under a new number, and what is
still said of the old one is ignored; the living hold what the dead had given them on top of their credit until they are done
with it. The first slide with chunks to lease comes first. Memory grows with the slides in flight; of finished ones nothing
is kept.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple, Protocol

SlideKey = tuple[int, int]
"""(patient, slide): places in the dataset."""
Suspect = tuple[SlideKey, int]
"""A chunk of a slide, or OPENING for the slide as a whole."""
OPENING = -1
DEATHS_OF_POISON = 3
"""A chunk that was being worked on when so many workers ended is given up, and its slide with it."""


# ---- decisions


class Open(NamedTuple):
    """Have a writer open a patient's journal."""

    writer: str
    patient: int


class Resolve(NamedTuple):
    """Have a loader open a slide."""

    loader: str
    slide: SlideKey


class Read(NamedTuple):
    """Have a loader read a chunk."""

    loader: str
    lease: int
    slide: SlideKey
    chunk: int


class Send(NamedTuple):
    """Have a loader send a chunk it has read."""

    loader: str
    lease: int
    collector: str
    writer: str
    slide: SlideKey
    chunk: int


class Drop(NamedTuple):
    """Have a loader forget a chunk."""

    loader: str
    lease: int


class CloseSlide(NamedTuple):
    """Nothing more is read from a slide."""

    slide: SlideKey


class AskFinished(NamedTuple):
    """Ask the user's ``is_finished``."""

    collector: str
    patient: int
    windows_done: int


class Seal(NamedTuple):
    """Have a writer close a patient's journal."""

    writer: str
    patient: int


class Publish(NamedTuple):
    """Have a sealed journal published."""

    publisher: str
    patient: int
    stop: SlideKey | None
    """(slide, chunk) after which the patient was stopped."""


class Finished(NamedTuple):
    """A patient is done with: published, or given up because slides of it have failed."""

    patient: int
    stop: SlideKey | None
    """(slide, chunk) after which it was stopped."""
    failed: bool
    """Slides of it have failed."""


Decision = Open | Resolve | Read | Send | Drop | CloseSlide | AskFinished | Seal | Publish | Finished


# ---- what the caller says at the start


class PatientJob(NamedTuple):
    """A patient to process."""

    patient: int
    n_slides: int


class SlidePlan(Protocol):
    """What the scheduler knows of a slide's chunks."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def n_windows(self, chunk: int) -> int:
        """How many windows one holds."""
        ...


@dataclass(frozen=True)
class Limits:
    """How much may be under way."""

    loader_credits: int = 4
    collector_credits: int = 2
    writer_credits: int = 16
    slides_ahead: int = 4
    """Slides being opened, or open and not yet leased to their end, for each loader."""
    open_patients: int = 64
    """Patients begun and not finished, publication included."""


# ---- state


class _Stage(Enum):
    OPENING = auto()
    OPEN = auto()
    SEALING = auto()
    SEALED = auto()
    PUBLISHING = auto()


class _Step(Enum):
    READING = auto()
    READ = auto()
    SENT = auto()
    COLLECTED = auto()


_WITH_WRITER = (_Stage.OPENING, _Stage.OPEN, _Stage.SEALING)
"""A writer holds the patient's journal."""
_WITH_LOADER = (_Step.READING, _Step.READ)
"""The chunk takes up a slot of its loader."""


class ChunkSet:
    """Numbers of chunks, most of them a prefix: those below `prefix`, and `others`."""

    __slots__ = ("others", "prefix")

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self.prefix = 0
        self.others: set[int] = set()
        for number in numbers:
            self.add(number)

    def add(self, number: int) -> None:
        """Add a number; again is harmless."""
        if number == self.prefix:
            self.prefix += 1
            while self.prefix in self.others:
                self.others.remove(self.prefix)
                self.prefix += 1
        elif number > self.prefix:
            self.others.add(number)

    def __contains__(self, number: int) -> bool:
        return number < self.prefix or number in self.others

    def __len__(self) -> int:
        return self.prefix + len(self.others)


@dataclass(slots=True)
class _Slide:
    key: SlideKey
    plan: SlidePlan | None = None
    resolving: str | None = None
    """The loader that opens it."""
    queued: bool = False
    """It stands among those with chunks to lease."""
    next: int = 0
    """No chunk from this one on was leased since its patient was opened."""
    again: list[int] = field(default_factory=list)
    """A heap: chunks before `next` to lease again."""
    committed: ChunkSet = field(default_factory=ChunkSet)
    leases: set[int] = field(default_factory=set)
    failed: bool = False
    closed: bool = False

    def n_chunks(self, last: int | None) -> int:
        """How many of its chunks count, `last` being where its patient was stopped."""
        if self.plan is None:
            return 0
        return len(self.plan) if last is None else min(len(self.plan), last + 1)


@dataclass(slots=True)
class _Patient:
    job: PatientJob
    writer: str | None
    stage: _Stage
    slides: list[_Slide]
    n_closed: int = 0
    """How many of the slides are closed."""
    publisher: str | None = None
    stop: SlideKey | None = None
    """(slide, chunk): the last chunk that counts."""
    asked: SlideKey = (0, 0)
    """(slide, chunk): the first chunk after which ``is_finished`` was not asked yet."""
    asking: str | None = None
    """The collector that was asked and has not answered."""
    windows_done: int = 0
    """Windows of the chunks before `asked`."""

    def last_chunk(self, slide: int) -> int | None:
        """The last chunk of a slide that counts; None: all do."""
        if self.stop is None or slide < self.stop[0]:
            return None
        return self.stop[1] if slide == self.stop[0] else -1


@dataclass(slots=True)
class _Lease:
    number: int
    slide: _Slide
    chunk: int
    loader: str
    step: _Step = _Step.READING
    collector: str | None = None
    writer: str | None = None


class Scheduler:
    """Decides who does what next. Call an event's method, then take :meth:`decisions`.

    Parameters
    ----------
    jobs
        The patients; taken one after the other as there is room for them.
    limits
        How much may be under way.
    ask_finished
        The collector has an ``is_finished`` of its own.
    publish_partial
        Patients of whom slides have failed are published too.
    publish
        Patients are published one by one (else the caller does it at the end, from the sealed journals).
    """

    def __init__(
        self,
        jobs: Iterable[PatientJob],
        limits: Limits,
        *,
        ask_finished: bool = False,
        publish_partial: bool = False,
        publish: bool = True,
    ) -> None:
        self._jobs: Iterator[PatientJob] | None = iter(jobs)
        self._limits = limits
        self._ask_finished = ask_finished
        self._publish_partial = publish_partial
        self._publish_each = publish
        self._patients: dict[int, _Patient] = {}
        self._slides: dict[SlideKey, _Slide] = {}
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 0
        self._loaders: dict[str, int] = {}
        """Chunks that each holds."""
        self._resolving: dict[str, int] = {}
        """Slides that each loader is opening."""
        self._collectors: dict[str, int] = {}
        self._writers: dict[str, int] = {}
        self._publishers: dict[str, int | None] = {}
        """The patient that each is publishing."""
        self._unopened: deque[int] = deque()
        """Patients whose writer is gone."""
        self._unresolved: list[SlideKey] = []
        """A heap: slides to open, and some that need not be any more."""
        self._runnable: list[SlideKey] = []
        """A heap: slides with chunks to lease, and some without."""
        self._read: deque[_Lease] = deque()
        """Chunks that wait to be sent."""
        self._sealed: deque[int] = deque()
        """Patients that wait to be published."""
        self._suspicions: dict[Suspect, int] = {}
        """How many workers ended while they worked on it, for what is still to be done."""
        self._decisions: list[Decision] = []
        self.stopping = False
        """Nothing new is begun; what is in flight is finished."""

    # ---- events

    def worker_came(self, role: str, name: str) -> None:
        """A loader, collector, writer or publisher is ready."""
        if role == "loader":
            self._loaders.setdefault(name, 0)
            self._resolving.setdefault(name, 0)
        elif role == "collector":
            self._collectors.setdefault(name, 0)
            for patient in self._patients.values():
                self._advance(patient)
        elif role == "writer":
            self._writers.setdefault(name, 0)
        else:
            self._publishers.setdefault(name, None)

    def worker_went(
        self, role: str, name: str, leases: Iterable[int] = (), opening: Iterable[SlideKey] = ()
    ) -> tuple[list[Suspect], list[Suspect]]:
        """A worker is gone: what it held is to be done again by another.

        `leases` and `opening` are what it was working on when it ended: these chunks and slides are suspected of having ended
        it. Until they are done, each loader has one thing to do at a time, so that the next end tells which it was. Returns the
        suspects, and of them those that have now ended three workers: their slides have failed.
        """
        held = [self._leases[number] for number in leases if number in self._leases]
        suspects = [(lease.slide.key, lease.chunk) for lease in held]
        suspects += [(key, OPENING) for key in opening if key in self._slides and self._slides[key].resolving == name]
        for suspect in suspects:
            self._suspicions[suspect] = self._suspicions.get(suspect, 0) + 1
        self._replace(role, name)
        poison = [suspect for suspect in suspects if self._suspicions.get(suspect, 0) >= DEATHS_OF_POISON]
        for slide, _ in poison:
            self.slide_failed(slide)
        return suspects, poison

    def _replace(self, role: str, name: str) -> None:
        if role == "loader":
            self._loader_went(name)
        elif role == "collector":
            self._collectors.pop(name, None)
            # What it had already given to the writer's socket may not have left it either.
            for lease in [lease for lease in self._leases.values() if lease.collector == name]:
                self._lease_again(lease)
            for patient in self._patients.values():
                if patient.asking == name:
                    patient.asking = None
                    self._advance(patient)
        elif role == "writer":
            self._writer_went(name)
        else:
            patient_number = self._publishers.pop(name, None)
            if patient_number is not None:
                self._patients[patient_number].stage = _Stage.SEALED
                self._sealed.appendleft(patient_number)

    def patient_opened(self, patient: int, committed: dict[int, list[int]]) -> None:
        """The writer that was told to open a patient says what the journal holds: the committed chunks of each slide."""
        state = self._patients.get(patient)
        if state is None or state.stage is not _Stage.OPENING or state.writer is None:
            return
        state.stage = _Stage.OPEN
        for slide in state.slides:
            slide.committed = ChunkSet(committed.get(slide.key[1], ()))
            slide.next, slide.again = 0, []
            # A slide that was open before its writer died keeps its plan. Any other is opened by a loader, also where the
            # journal knows it: it must be seen to be the same still.
            if slide.plan is None:
                heapq.heappush(self._unresolved, slide.key)
            else:
                self._queue(slide)
        self._advance(state)

    def slide_resolved(self, key: SlideKey, plan: SlidePlan) -> None:
        """A loader has opened a slide."""
        slide = self._slides.get(key)
        if slide is None or slide.plan is not None or slide.failed:
            return
        self._resolved_by(slide)
        slide.plan = plan
        patient = self._patients[key[0]]
        if patient.stage is _Stage.OPEN:
            self._queue(slide)
        self._advance(patient, slide)

    def slide_failed(self, key: SlideKey) -> None:
        """A slide cannot be opened, or not be read on; its other chunks are given up."""
        slide = self._slides.get(key)
        if slide is None or slide.failed:
            return
        self._resolved_by(slide)
        slide.failed = True
        self._give_up_reading(slide, behind=-1)
        self._advance(self._patients[key[0]], slide)

    def chunk_read(self, lease: int) -> bool:
        """A loader has read a chunk. Returns whether it is still wanted."""
        state = self._leases.get(lease)
        if state is None or state.step is not _Step.READING:
            return False
        state.step = _Step.READ
        self._read.append(state)
        return True

    def chunk_failed(self, lease: int) -> SlideKey | None:
        """A loader cannot read a chunk: its slide fails. Returns the slide, or None where the lease is no longer held."""
        state = self._leases.get(lease)
        if state is None or state.step is not _Step.READING:
            return None
        self._end(state)
        self.slide_failed(state.slide.key)
        return state.slide.key

    def chunk_collected(self, lease: int) -> None:
        """A collector has processed a chunk: it has credit again."""
        state = self._leases.get(lease)
        if state is not None and state.step is _Step.SENT:
            self._credit_collector(state)
            state.step = _Step.COLLECTED

    def chunk_committed(self, lease: int) -> SlideKey | None:
        """A chunk is in the journal. Returns its slide, or None where the lease is no longer held (late, or repeated)."""
        state = self._leases.get(lease)
        if state is None or state.step not in (_Step.SENT, _Step.COLLECTED):
            return None
        slide = state.slide
        self._end(state)
        slide.committed.add(state.chunk)
        self._advance(self._patients[slide.key[0]], slide)
        return slide.key

    def finished_answered(self, patient: int, windows_done: int, finished: bool) -> None:
        """A collector has said whether a patient is finished."""
        state = self._patients.get(patient)
        if state is None or state.asking is None or windows_done != self._windows_at(state):
            return
        state.asking = None
        if finished:
            state.stop = state.asked
            for slide in state.slides:
                self._give_up_reading(slide, behind=state.last_chunk(slide.key[1]))
        else:
            slide_number, chunk = state.asked
            state.windows_done = windows_done
            state.asked = (slide_number, chunk + 1)
        self._advance(state)

    def patient_sealed(self, patient: int) -> None:
        """A writer has closed a patient's journal."""
        state = self._patients.get(patient)
        if state is None or state.stage is not _Stage.SEALING:
            return
        state.stage = _Stage.SEALED
        if self._publish_each and (self._publish_partial or not any(slide.failed for slide in state.slides)):
            self._sealed.append(patient)
        else:
            self._forget(state)

    def patient_published(self, patient: int) -> None:
        """A patient's file has its final name."""
        state = self._patients.get(patient)
        if state is not None and state.stage is _Stage.PUBLISHING:
            if state.publisher in self._publishers:
                self._publishers[state.publisher] = None
            self._forget(state)

    def stop(self) -> None:
        """Begin nothing new: what was not sent yet is dropped, what was is still committed."""
        self.stopping = True
        for lease in [lease for lease in self._leases.values() if lease.step in _WITH_LOADER]:
            self._drop(lease)

    # ---- what the caller asks

    def decisions(self) -> list[Decision]:
        """What is to be done now."""
        if not self.stopping:
            # In this order: each makes room for those after it
            self._send_chunks()
            self._resolve_slides()
            self._lease_chunks()
            self._open_patients()
            self._publish_patients()
        decided, self._decisions = self._decisions, []
        return decided

    @property
    def done(self) -> bool:
        """Every patient is finished (or, when stopping, nothing is in flight), and no decision waits to be taken."""
        if self._decisions:
            return False
        if self.stopping:
            return not self._leases and all(patient is None for patient in self._publishers.values())
        return self._jobs is None and not self._patients

    def has_failed(self, patient: int) -> bool:
        """Whether slides of a patient in flight have failed."""
        state = self._patients.get(patient)
        return state is not None and any(slide.failed for slide in state.slides)

    def is_suspected(self, suspect: Suspect) -> bool:
        """Whether workers ended over a chunk (or a slide's opening) that is still to be done."""
        return suspect in self._suspicions

    def waiting_for(self, role: str) -> list[tuple[SlideKey, int]]:
        """(slide, chunk) of what the workers of a role have been given and have not done; OPENING where it is not one chunk."""
        if role == "publisher":
            return [((patient, 0), OPENING) for patient in self._publishers.values() if patient is not None]
        steps = {"loader": _Step.READING, "collector": _Step.SENT, "writer": _Step.COLLECTED}
        held = [(lease.slide.key, lease.chunk) for lease in self._leases.values() if lease.step is steps[role]]
        if role == "loader":
            held += [(slide.key, OPENING) for slide in self._slides.values() if slide.resolving is not None]
        if role == "collector":
            asking = [(number, patient.asked) for number, patient in self._patients.items() if patient.asking is not None]
            held += [((number, slide), chunk) for number, (slide, chunk) in asking]
        if role == "writer":
            stages = (_Stage.OPENING, _Stage.SEALING)
            held += [((number, 0), OPENING) for number, patient in self._patients.items() if patient.stage in stages]
        return held

    def held_by(self, name: str) -> list[tuple[int, SlideKey, int]]:
        """(lease, slide, chunk) of every lease in which a worker takes part."""
        return [
            (lease.number, lease.slide.key, lease.chunk)
            for lease in self._leases.values()
            if name in (lease.loader, lease.collector, lease.writer)
        ]

    def __len__(self) -> int:
        """Leases in flight."""
        return len(self._leases)

    # ---- beginning things

    def _open_patients(self) -> None:
        if not self._writers:
            return
        ahead = self._limits.slides_ahead * max(1, len(self._loaders))
        while self._unopened:
            self._open(self._patients[self._unopened.popleft()])
        while self._jobs is not None and len(self._patients) < self._limits.open_patients:
            waiting = len(self._unresolved) + sum(self._resolving.values()) + len(self._runnable)
            opening = sum(1 for patient in self._patients.values() if patient.stage is _Stage.OPENING)
            if waiting + opening >= ahead:
                return
            job = next(self._jobs, None)
            if job is None:
                self._jobs = None
                return
            slides = [_Slide((job.patient, number)) for number in range(job.n_slides)]
            patient = _Patient(job, None, _Stage.OPENING, slides)
            self._patients[job.patient] = patient
            self._slides.update((slide.key, slide) for slide in slides)
            self._open(patient)

    def _open(self, patient: _Patient) -> None:
        load = dict.fromkeys(self._writers, 0)
        for other in self._patients.values():
            if other.writer in load and other.stage in _WITH_WRITER:
                load[other.writer] += 1
        patient.writer = min(load, key=load.__getitem__)
        patient.stage = _Stage.OPENING
        self._decisions.append(Open(patient.writer, patient.job.patient))

    def _resolve_slides(self) -> None:
        while self._unresolved:
            slide = self._slides.get(self._unresolved[0])
            if slide is None or slide.failed or slide.plan is not None or slide.resolving is not None:
                heapq.heappop(self._unresolved)
                continue
            loader = self._free_loader(self._resolving, self._limits.slides_ahead)
            if loader is None:
                return
            heapq.heappop(self._unresolved)
            slide.resolving = loader
            self._resolving[loader] += 1
            self._decisions.append(Resolve(loader, slide.key))

    def _lease_chunks(self) -> None:
        while (found := self._next_chunk()) is not None:
            loader = self._free_loader(self._loaders, self._limits.loader_credits)
            if loader is None:
                return
            slide, chunk = found
            if chunk in slide.again:
                slide.again.remove(chunk)
                heapq.heapify(slide.again)
            else:
                slide.next += 1
            lease = _Lease(self._next_lease, slide, chunk, loader)
            self._next_lease += 1
            self._leases[lease.number] = lease
            slide.leases.add(lease.number)
            self._loaders[loader] += 1
            self._decisions.append(Read(loader, lease.number, slide.key, chunk))

    def _free_loader(self, load: dict[str, int], limit: int) -> str | None:
        """The loader with the least load, if that is below `limit`; while anything is suspected, one that has nothing to do."""
        if self._suspicions:
            return next((name for name in load if not self._loaders[name] and not self._resolving[name]), None)
        loader = min(load, key=load.__getitem__, default=None)
        return loader if loader is not None and load[loader] < limit else None

    def _next_chunk(self) -> tuple[_Slide, int] | None:
        """The chunk to lease next: a suspected one before all others, then the first of the first slide that has any."""
        for key, chunk in self._suspicions:
            slide = self._slides[key]
            if chunk in slide.again and self._has_chunk(slide):
                return slide, chunk
        while self._runnable:
            first = self._slides.get(self._runnable[0])
            if first is not None and self._has_chunk(first):
                return first, first.again[0] if first.again else first.next
            heapq.heappop(self._runnable)
            if first is not None:
                first.queued = False
        return None

    def _has_chunk(self, slide: _Slide) -> bool:
        """Whether a slide has a chunk to lease: the first of `again`, or `next`."""
        patient = self._patients[slide.key[0]]
        if slide.failed or patient.stage is not _Stage.OPEN:
            return False
        stop = slide.n_chunks(patient.last_chunk(slide.key[1]))
        while slide.again and not self._is_due(slide.key, slide.again[0]):
            heapq.heappop(slide.again)
        while slide.next < stop and slide.next in slide.committed:
            slide.next += 1
        return bool(slide.again) or slide.next < stop

    def _is_due(self, key: SlideKey, chunk: int) -> bool:
        """Whether a chunk (or the slide's opening) counts and is not done."""
        slide = self._slides[key]
        if slide.failed or slide.plan is None or chunk == OPENING:
            return not slide.failed and slide.plan is None
        return chunk < slide.n_chunks(self._patients[key[0]].last_chunk(key[1])) and chunk not in slide.committed

    def _send_chunks(self) -> None:
        waiting: deque[_Lease] = deque()
        for lease in self._read:
            if lease.number in self._leases and not self._send(lease):
                waiting.append(lease)
        self._read = waiting

    def _send(self, lease: _Lease) -> bool:
        """Have a chunk sent, if a collector and its patient's writer have credit."""
        collector = min(self._collectors, key=self._collectors.__getitem__, default=None)
        writer = self._patients[lease.slide.key[0]].writer
        if collector is None or self._collectors[collector] >= self._limits.collector_credits:
            return False
        if writer is None or self._writers[writer] >= self._limits.writer_credits:
            return False
        lease.step, lease.collector, lease.writer = _Step.SENT, collector, writer
        self._loaders[lease.loader] -= 1
        self._collectors[collector] += 1
        self._writers[writer] += 1
        self._decisions.append(Send(lease.loader, lease.number, collector, writer, lease.slide.key, lease.chunk))
        return True

    def _publish_patients(self) -> None:
        for publisher, busy_with in self._publishers.items():
            if busy_with is None and self._sealed:
                patient = self._patients[self._sealed.popleft()]
                patient.stage, patient.publisher = _Stage.PUBLISHING, publisher
                self._publishers[publisher] = patient.job.patient
                self._decisions.append(Publish(publisher, patient.job.patient, patient.stop))

    # ---- ending things

    def _advance(self, patient: _Patient, slide: _Slide | None = None) -> None:
        """After a change to `slide` (None: to any of the patient's): ask, close and seal what can now be."""
        if self._suspicions:
            self._suspicions = {suspect: times for suspect, times in self._suspicions.items() if self._is_due(*suspect)}
        self._ask(patient)
        if patient.stage is not _Stage.OPEN:
            return
        for candidate in patient.slides if slide is None else (slide,):
            if not candidate.closed and self._complete(candidate, patient.last_chunk(candidate.key[1])):
                candidate.closed = True
                patient.n_closed += 1
                self._decisions.append(CloseSlide(candidate.key))
        if patient.n_closed == len(patient.slides) and self._all_asked(patient) and patient.writer is not None:
            patient.stage = _Stage.SEALING
            self._decisions.append(Seal(patient.writer, patient.job.patient))

    @staticmethod
    def _complete(slide: _Slide, last: int | None) -> bool:
        """Whether nothing of a slide is under way, and every chunk up to `last` (None: all) is committed, or it has failed."""
        if slide.leases or slide.failed or slide.plan is None:
            return slide.failed and not slide.leases
        count = slide.n_chunks(last)
        return all(chunk in slide.committed for chunk in range(min(slide.committed.prefix, count), count))

    def _forget(self, patient: _Patient) -> None:
        del self._patients[patient.job.patient]
        for slide in patient.slides:
            del self._slides[slide.key]
        failed = any(slide.failed for slide in patient.slides)
        self._decisions.append(Finished(patient.job.patient, patient.stop, failed))

    def _queue(self, slide: _Slide) -> None:
        if not slide.queued and not slide.failed and not slide.closed:
            slide.queued = True
            heapq.heappush(self._runnable, slide.key)

    def _resolved_by(self, slide: _Slide) -> None:
        if slide.resolving in self._resolving:
            self._resolving[slide.resolving] -= 1
        slide.resolving = None

    def _give_up_reading(self, slide: _Slide, behind: int | None) -> None:
        """Drop the leases of a slide's chunks that lie behind one (None: none does) and were not sent yet."""
        for lease in [self._leases[number] for number in slide.leases]:
            if behind is not None and lease.chunk > behind and lease.step in _WITH_LOADER:
                self._drop(lease)

    def _drop(self, lease: _Lease) -> None:
        self._end(lease)
        self._decisions.append(Drop(lease.loader, lease.number))

    def _end(self, lease: _Lease) -> None:
        """Take a lease out, and give back what it held."""
        del self._leases[lease.number]
        lease.slide.leases.discard(lease.number)
        if lease.step in _WITH_LOADER:
            if lease.loader in self._loaders:
                self._loaders[lease.loader] -= 1
            return
        if lease.step is _Step.SENT:
            self._credit_collector(lease)
        if lease.writer in self._writers:
            self._writers[lease.writer] -= 1

    def _credit_collector(self, lease: _Lease) -> None:
        if lease.collector in self._collectors:
            self._collectors[lease.collector] -= 1

    # ---- doing things again

    def _lease_again(self, lease: _Lease) -> None:
        self._end(lease)
        heapq.heappush(lease.slide.again, lease.chunk)
        self._queue(lease.slide)
        self._advance(self._patients[lease.slide.key[0]], lease.slide)  # what counts of it may be complete without the chunk

    def _loader_went(self, name: str) -> None:
        self._loaders.pop(name, None)
        self._resolving.pop(name, None)
        # What it had already sent may not have left it: only what was collected is known to be past it.
        for lease in [lease for lease in self._leases.values() if lease.loader == name]:
            if lease.step is not _Step.COLLECTED:
                self._lease_again(lease)
        for slide in self._slides.values():
            if slide.resolving == name:
                slide.resolving = None
                heapq.heappush(self._unresolved, slide.key)

    def _writer_went(self, name: str) -> None:
        self._writers.pop(name, None)
        for lease in [lease for lease in self._leases.values() if self._patients[lease.slide.key[0]].writer == name]:
            if lease.step in _WITH_LOADER:
                self._drop(lease)
            else:
                self._end(lease)
        for patient in self._patients.values():
            if patient.writer == name and patient.stage in _WITH_WRITER:
                # Its journal is asked again what it holds, by the writer that opens it next
                patient.writer, patient.stage, patient.n_closed = None, _Stage.OPENING, 0
                for slide in patient.slides:
                    slide.closed = False
                self._unopened.append(patient.job.patient)

    # ---- is_finished

    def _ask(self, patient: _Patient) -> None:
        """Ask ``is_finished`` after the next chunk in the order of the plan, if that is committed."""
        if patient.asking is not None or patient.stage is not _Stage.OPEN or self.stopping:
            return
        while not self._all_asked(patient):
            number, chunk = patient.asked
            slide = patient.slides[number]
            if slide.failed or (slide.plan is not None and chunk >= len(slide.plan)):
                patient.asked = (number + 1, 0)
                continue
            if slide.plan is not None and chunk in slide.committed and self._collectors:
                patient.asking = min(self._collectors, key=self._collectors.__getitem__)
                self._decisions.append(AskFinished(patient.asking, patient.job.patient, self._windows_at(patient)))
            return

    def _all_asked(self, patient: _Patient) -> bool:
        """Whether there is nothing to ask any more."""
        return not self._ask_finished or patient.stop is not None or patient.asked[0] >= len(patient.slides)

    def _windows_at(self, patient: _Patient) -> int:
        """The patient's windows up to and with the chunk that is asked about."""
        slide = patient.slides[patient.asked[0]] if patient.asked[0] < len(patient.slides) else None
        if slide is None or slide.plan is None:
            return -1
        return patient.windows_done + slide.plan.n_windows(patient.asked[1])
