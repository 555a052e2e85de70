"""Who does what next: a pure state machine.

In: events (a worker came or went, a slide was resolved, a chunk was read, processed, committed, …).  Out: decisions.  Knows
no socket, no process, no clock and no pixels, so that crashes, retries and thousands of slides can be tested without any.

A chunk's way, each step one event:

    leased to a loader → read → sent to a collector that has credit → collected → committed by the patient's writer

A run has one or more branches, each a collector with its own workers, journals and files. A chunk is read once for all branches
that need it, and from there goes each branch's own way: a lease has a delivery for each. A lease holds a loader's slot until it
is sent to all, a delivery holds a collector's until it is collected, a writer's from being sent until it is committed; a slow
stage so slows those before it, and a slow branch the others. What a worker that died held is leased again under a new number,
for the branches that need it, and what is still said of the old one is ignored; the living hold what the dead had given them on
top of their credit until they are done with it. The first slide with chunks to lease comes first, and of its chunks each loader
takes neighbours (:mod:`streamwsi.pipeline.blocks`). Memory grows with the slides in flight; of finished ones nothing is kept.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from streamwsi.pipeline.blocks import Block, Blocks
from streamwsi.pipeline.decisions import (
    DEATHS_OF_POISON,
    OPENING,
    AskFinished,
    BranchRules,
    CloseSlide,
    Decision,
    Drop,
    Fail,
    Finished,
    Limits,
    Open,
    PatientJob,
    Publish,
    Read,
    Resolve,
    Seal,
    Send,
    SlideKey,
    SlidePlan,
    Suspect,
)


class _Stage(Enum):
    OPENING = auto()
    OPEN = auto()
    SEALING = auto()
    SEALED = auto()
    PUBLISHING = auto()


class _Step(Enum):
    """Where a delivery is."""

    WAITING = auto()
    """At the loader, being read or read."""
    SENT = auto()
    COLLECTED = auto()


_WITH_WRITER = (_Stage.OPENING, _Stage.OPEN, _Stage.SEALING)
"""A writer holds the patient's journal."""


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
class _Share:
    """What one branch has of a slide."""

    committed: ChunkSet = field(default_factory=ChunkSet)
    in_flight: set[int] = field(default_factory=set)
    """Chunks of which it has a delivery."""
    failed: bool = False
    undoable: int | None = None
    """The first chunk that cannot be done. The slide fails once it is known that its patient was not stopped before."""
    closed: bool = False
    """Nothing more is to be done."""


@dataclass(slots=True)
class _Slide:
    key: SlideKey
    shares: dict[int, _Share]
    """By branch: those that had not finished the patient when it was begun."""
    plan: SlidePlan | None = None
    resolving: str | None = None
    """The loader that opens it."""
    queued: bool = False
    """It stands among those with chunks to lease."""
    blocks: Blocks | None = None
    """Its chunks that were not leased since its patient was opened; None while it has no plan."""
    again: list[int] = field(default_factory=list)
    """A heap: chunks to lease again."""
    leases: set[int] = field(default_factory=set)

    @property
    def failed(self) -> bool:
        """It has failed for every branch."""
        return all(share.failed for share in self.shares.values())

    @property
    def closed(self) -> bool:
        """No branch has anything to do with it any more."""
        return all(share.closed for share in self.shares.values())

    def n_chunks(self, last: int | None) -> int:
        """How many of its chunks count, `last` being where its patient was stopped."""
        if self.plan is None:
            return 0
        return len(self.plan) if last is None else min(len(self.plan), last + 1)


@dataclass(slots=True)
class _Patient:
    """What one branch has of a patient."""

    number: int
    branch: int
    slides: list[_Slide]
    stage: _Stage = _Stage.OPENING
    writer: str | None = None
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

    def share(self, slide: _Slide) -> _Share:
        """What its branch has of one of the slides."""
        return slide.shares[self.branch]

    def last_chunk(self, slide: int) -> int | None:
        """The last chunk of a slide that counts; None: all do."""
        if self.stop is None or slide < self.stop[0]:
            return None
        return self.stop[1] if slide == self.stop[0] else -1

    @property
    def failed(self) -> bool:
        """Slides of it have failed."""
        return any(self.share(slide).failed for slide in self.slides)


@dataclass(slots=True)
class _Delivery:
    """A branch's part of a lease."""

    step: _Step = _Step.WAITING
    collector: str | None = None
    writer: str | None = None


@dataclass(slots=True)
class _Lease:
    number: int
    slide: _Slide
    chunk: int
    loader: str
    deliveries: dict[int, _Delivery]
    """By branch; it ends with the last of them."""
    read: bool = False
    at_loader: bool = True
    """It takes up a slot of its loader: a delivery waits."""

    def waiting(self) -> list[int]:
        """The branches that it is still to be sent to."""
        return [branch for branch, delivery in self.deliveries.items() if delivery.step is _Step.WAITING]


@dataclass(slots=True)
class _Branch:
    """A collector's workers, and what waits for them."""

    rules: BranchRules
    collectors: dict[str, int] = field(default_factory=dict)
    """Chunks that each holds."""
    writers: dict[str, int] = field(default_factory=dict)
    publishers: dict[str, int | None] = field(default_factory=dict)
    """The patient that each is publishing."""
    unopened: deque[_Patient] = field(default_factory=deque)
    """Patients whose writer is gone."""
    sealed: deque[_Patient] = field(default_factory=deque)
    """Patients that wait to be published."""

    def has(self, name: str) -> bool:
        """Whether a worker is one of its own."""
        return name in self.collectors or name in self.writers or name in self.publishers


class Scheduler:
    """Decides who does what next. Call an event's method, then take :meth:`decisions`.

    Events of collectors, writers and publishers say which branch theirs is.

    Parameters
    ----------
    jobs
        The patients; taken one after the other as there is room for them.
    limits
        How much may be under way.
    branches
        The rules of each branch.
    """

    def __init__(self, jobs: Iterable[PatientJob], limits: Limits, branches: Sequence[BranchRules] = (BranchRules(),)) -> None:
        self._jobs: Iterator[PatientJob] | None = iter(jobs)
        self._limits = limits
        self._branches = [_Branch(rules) for rules in branches]
        self._patients: dict[int, dict[int, _Patient]] = {}
        """By number and branch, those that are begun and not finished."""
        self._slides: dict[SlideKey, _Slide] = {}
        self._leases: dict[int, _Lease] = {}
        self._next_lease = 0
        self._loaders: dict[str, int] = {}
        """Chunks that each holds."""
        self._resolving: dict[str, int] = {}
        """Slides that each loader is opening."""
        self._unresolved: list[SlideKey] = []
        """A heap: slides to open, and some that need not be any more."""
        self._runnable: list[SlideKey] = []
        """Slides with chunks to lease, and some without, in order."""
        self._read: deque[_Lease] = deque()
        """Chunks that wait to be sent."""
        self._suspicions: dict[Suspect, int] = {}
        """How many workers ended while they worked on it, for what is still to be done."""
        self._decisions: list[Decision] = []
        self.stopping = False
        """Nothing new is begun; what is in flight is finished."""

    # ---- events

    def worker_came(self, role: str, name: str, branch: int = 0) -> None:
        """A loader, or a branch's collector, writer or publisher, is ready."""
        if role == "loader":
            self._loaders.setdefault(name, 0)
            self._resolving.setdefault(name, 0)
        elif role == "publisher":
            self._branches[branch].publishers.setdefault(name, None)
        elif role == "writer":
            self._branches[branch].writers.setdefault(name, 0)
        else:
            self._branches[branch].collectors.setdefault(name, 0)
            for patient in self._patients_of(branch):
                self._advance(patient)

    def worker_went(
        self, role: str, name: str, leases: Iterable[int] = (), opening: Iterable[SlideKey] = ()
    ) -> tuple[list[Suspect], list[Suspect]]:
        """A worker is gone: what it held is to be done again by another.

        `leases` and `opening` are what it was working on when it ended: these chunks and slides are suspected of having ended
        it. Until they are done, each loader has one thing to do at a time, so that the next end tells which it was. Returns the
        suspects, and of them those that have now ended three workers: their slides have failed, for the branch whose collector
        it was, or for all.
        """
        held = [self._leases[number] for number in leases if number in self._leases]
        suspects = [(lease.slide.key, lease.chunk) for lease in held]
        suspects += [(key, OPENING) for key in opening if key in self._slides and self._slides[key].resolving == name]
        for suspect in suspects:
            self._suspicions[suspect] = self._suspicions.get(suspect, 0) + 1
        if role == "loader":
            branch = None
            self._loader_went(name)
        else:
            branch = next((number for number, of in enumerate(self._branches) if of.has(name)), None)
            if branch is not None:
                self._worker_of_branch_went(role, name, branch)
        poison = [suspect for suspect in suspects if self._suspicions.get(suspect, 0) >= DEATHS_OF_POISON]
        for key, chunk in poison:
            self._cannot_be_done(self._slides[key], chunk, branch)
        return suspects, poison

    def patient_opened(self, patient: int, committed: dict[int, list[int]], branch: int = 0) -> None:
        """The writer that was told to open a patient says what the journal holds: the committed chunks of each slide."""
        state = self._patient(patient, branch)
        if state is None or state.stage is not _Stage.OPENING or state.writer is None:
            return
        state.stage = _Stage.OPEN
        for slide in state.slides:
            state.share(slide).committed = ChunkSet(committed.get(slide.key[1], ()))
            slide.blocks, slide.again = self._blocks_of(slide), []
            # A slide that was open before its writer died keeps its plan. Any other is opened by a loader, also where the
            # journal knows it: it must be seen to be the same still.
            if slide.plan is not None:
                self._queue(slide)
            elif self._all_open(slide):
                heapq.heappush(self._unresolved, slide.key)
        self._advance(state)

    def slide_resolved(self, key: SlideKey, plan: SlidePlan) -> None:
        """A loader has opened a slide."""
        slide = self._slides.get(key)
        if slide is None or slide.plan is not None or slide.failed:
            return
        self._resolved_by(slide)
        slide.plan = plan
        slide.blocks = self._blocks_of(slide)
        self._queue(slide)
        self._advance_all(slide)

    def slide_failed(self, key: SlideKey, branch: int | None = None) -> None:
        """A slide cannot be opened, or not be read or processed on; its other chunks are given up, by `branch` or by all."""
        slide = self._slides.get(key)
        if slide is None:
            return
        for number, share in slide.shares.items():
            if branch in (None, number) and not share.failed:
                share.failed = True
                self._give_up_reading(slide, number, behind=-1)
        if slide.failed:
            self._resolved_by(slide)
        self._advance_all(slide)

    def chunk_read(self, lease: int) -> bool:
        """A loader has read a chunk. Returns whether it is still wanted."""
        state = self._leases.get(lease)
        if state is None or state.read or not state.at_loader:
            return False
        state.read = True
        self._read.append(state)
        return True

    def chunk_failed(self, lease: int) -> Suspect | None:
        """A loader cannot read a chunk: its slide fails, unless its patient is stopped before it.

        Returns the slide and the chunk, or None where the lease is no longer held.
        """
        state = self._leases.get(lease)
        if state is None or state.read:
            return None
        for branch in list(state.deliveries):
            self._end(state, branch)
        self._cannot_be_done(state.slide, state.chunk)
        return state.slide.key, state.chunk

    def chunk_collected(self, lease: int, branch: int = 0) -> None:
        """A collector has processed a chunk: it has credit again."""
        delivery = self._delivery(lease, branch)
        if delivery is not None and delivery.step is _Step.SENT:
            self._credit_collector(branch, delivery)
            delivery.step = _Step.COLLECTED

    def chunk_committed(self, lease: int, branch: int = 0) -> SlideKey | None:
        """A chunk is in the journal. Returns its slide, or None where the lease is no longer held (late, or repeated)."""
        delivery = self._delivery(lease, branch)
        if delivery is None or delivery.step is _Step.WAITING:
            return None
        state = self._leases[lease]
        slide = state.slide
        self._end(state, branch)
        slide.shares[branch].committed.add(state.chunk)
        self._advance(self._patients[slide.key[0]][branch], slide)
        return slide.key

    def finished_answered(self, patient: int, windows_done: int, finished: bool, branch: int = 0) -> None:
        """A collector has said whether a patient is finished."""
        state = self._patient(patient, branch)
        if state is None or state.asking is None or windows_done != self._windows_at(state):
            return
        state.asking = None
        if finished:
            state.stop = state.asked
            for slide in state.slides:
                self._give_up_reading(slide, branch, behind=state.last_chunk(slide.key[1]))
        else:
            slide_number, chunk = state.asked
            state.windows_done = windows_done
            state.asked = (slide_number, chunk + 1)
        self._advance(state)

    def patient_sealed(self, patient: int, branch: int = 0) -> None:
        """A writer has closed a patient's journal."""
        state = self._patient(patient, branch)
        if state is None or state.stage is not _Stage.SEALING:
            return
        state.stage = _Stage.SEALED
        rules = self._branches[branch].rules
        if rules.publish and (rules.publish_partial or not state.failed):
            self._branches[branch].sealed.append(state)
        else:
            self._forget(state)

    def patient_published(self, patient: int, branch: int = 0) -> None:
        """A patient's file has its final name."""
        state = self._patient(patient, branch)
        if state is not None and state.stage is _Stage.PUBLISHING:
            publishers = self._branches[branch].publishers
            if state.publisher in publishers:
                publishers[state.publisher] = None
            self._forget(state)

    def stop(self) -> None:
        """Begin nothing new: what was not sent yet is dropped, what was is still committed."""
        self.stopping = True
        for lease in list(self._leases.values()):
            for branch in lease.waiting():
                self._drop(lease, branch)

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
            publishing = any(busy is not None for branch in self._branches for busy in branch.publishers.values())
            return not self._leases and not publishing
        return self._jobs is None and not self._patients

    def has_failed(self, patient: int, branch: int = 0) -> bool:
        """Whether slides of a patient in flight have failed."""
        state = self._patient(patient, branch)
        return state is not None and state.failed

    def is_suspected(self, suspect: Suspect) -> bool:
        """Whether workers ended over a chunk (or a slide's opening) that is still to be done."""
        return suspect in self._suspicions

    def waiting_for(self, role: str, branch: int = 0) -> list[tuple[SlideKey, int]]:
        """(slide, chunk) of what the loaders, or a branch's workers of another role, were given and have not done.

        OPENING stands where it is not one chunk.
        """
        if role == "loader":
            held = [(lease.slide.key, lease.chunk) for lease in self._leases.values() if not lease.read]
            return held + [(slide.key, OPENING) for slide in self._slides.values() if slide.resolving is not None]
        if role == "publisher":
            busy_with = self._branches[branch].publishers.values()
            return [((patient, 0), OPENING) for patient in busy_with if patient is not None]
        step = {"collector": _Step.SENT, "writer": _Step.COLLECTED}[role]
        held = [
            (lease.slide.key, lease.chunk)
            for lease in self._leases.values()
            if branch in lease.deliveries and lease.deliveries[branch].step is step
        ]
        for patient in self._patients_of(branch):
            if role == "collector" and patient.asking is not None:
                held.append(((patient.number, patient.asked[0]), patient.asked[1]))
            if role == "writer" and patient.stage in (_Stage.OPENING, _Stage.SEALING):
                held.append(((patient.number, 0), OPENING))
        return held

    def held_by(self, name: str) -> list[tuple[int, SlideKey, int]]:
        """(lease, slide, chunk) of every lease in which a worker takes part."""
        return [
            (lease.number, lease.slide.key, lease.chunk)
            for lease in self._leases.values()
            if name == lease.loader or any(name in (held.collector, held.writer) for held in lease.deliveries.values())
        ]

    def __len__(self) -> int:
        """Leases in flight."""
        return len(self._leases)

    # ---- beginning things

    def _open_patients(self) -> None:
        for branch in self._branches:
            while branch.unopened and branch.writers:
                self._open(branch.unopened.popleft())
        if not all(branch.writers for branch in self._branches):
            return
        ahead = self._limits.slides_ahead * max(1, len(self._loaders))
        while self._jobs is not None and len(self._patients) < self._limits.open_patients:
            waiting = len(self._unresolved) + sum(self._resolving.values()) + len(self._runnable)
            opening = sum(any(own.stage is _Stage.OPENING for own in of.values()) for of in self._patients.values())
            if waiting + opening >= ahead:
                return
            job = next(self._jobs, None)
            if job is None:
                self._jobs = None
                return
            keys = [(job.patient, number) for number in range(job.n_slides)]
            slides = [_Slide(key, {branch: _Share() for branch in job.branches}) for key in keys]
            self._slides.update(zip(keys, slides, strict=True))
            self._patients[job.patient] = {branch: _Patient(job.patient, branch, slides) for branch in job.branches}
            for patient in self._patients[job.patient].values():
                self._open(patient)

    def _open(self, patient: _Patient) -> None:
        load = dict.fromkeys(self._branches[patient.branch].writers, 0)
        for other in self._patients_of(patient.branch):
            if other.writer in load and other.stage in _WITH_WRITER:
                load[other.writer] += 1
        patient.writer = min(load, key=load.__getitem__)
        patient.stage = _Stage.OPENING
        self._decisions.append(Open(patient.writer, patient.number, patient.branch))

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
        while found := self._next_chunk():
            loader, slide, chunk, branches = found
            lease = _Lease(self._next_lease, slide, chunk, loader, {branch: _Delivery() for branch in branches})
            self._next_lease += 1
            self._leases[lease.number] = lease
            slide.leases.add(lease.number)
            for branch in branches:
                slide.shares[branch].in_flight.add(chunk)
            self._loaders[loader] += 1
            self._decisions.append(Read(loader, lease.number, slide.key, chunk))

    def _free_loader(self, load: dict[str, int], limit: int) -> str | None:
        """The loader with the least load, if that is below `limit`; while anything is suspected, one that has nothing to do."""
        if self._suspicions:
            return next((name for name in load if not self._loaders[name] and not self._resolving[name]), None)
        loader = min(load, key=load.__getitem__, default=None)
        return loader if loader is not None and load[loader] < limit else None

    def _next_chunk(self) -> tuple[str, _Slide, int, list[int]] | None:
        """A loader that is free, the chunk that it takes, and the branches that need it.

        A suspected chunk comes before all others.
        """
        loader = self._free_loader(self._loaders, self._limits.loader_credits)
        if loader is None:
            return None
        for key, chunk in self._suspicions:
            slide = self._slides[key]
            if chunk in slide.again and self._all_open(slide) and (branches := self._takers(slide, chunk)):
                slide.again.remove(chunk)
                heapq.heapify(slide.again)
                return loader, slide, chunk, branches
        if found := self._chunk_for(loader):
            return loader, *found
        # Others may still have some of their own
        for other in sorted(self._loaders, key=self._loaders.__getitem__) if self._runnable else ():
            idle = not self._loaders[other] and not self._resolving[other]
            free = idle if self._suspicions else self._loaders[other] < self._limits.loader_credits
            if other != loader and free and (found := self._chunk_for(other)):
                return other, *found
        return None

    def _chunk_for(self, loader: str) -> tuple[_Slide, int, list[int]] | None:
        """The chunk that a loader takes next, of the first slide that has any for it, and the branches that need it."""
        n_loaders = max(self._limits.loaders, len(self._loaders))
        for key in list(self._runnable):
            slide = self._slides.get(key)
            if slide is not None and (found := self._chunk_of(slide, loader, n_loaders)) is not None:
                return slide, *found
            self._unqueue_if_done(key)
        # What others have credit for is as good as theirs already, unless this one would have nothing to do
        least = 2 * self._limits.loader_credits if self._loaders[loader] else 1
        for key in list(self._runnable):
            blocks = self._slides[key].blocks
            while blocks is not None and (part := blocks.part_for(loader, least, self._next_lease)) is not None:
                if (found := self._take(self._slides[key], part)) is not None:
                    return self._slides[key], *found
            self._unqueue_if_done(key)
        return None

    def _unqueue_if_done(self, key: SlideKey) -> None:
        """Take a slide out of those with chunks to lease, if it has none."""
        slide = self._slides.get(key)
        wanted = slide is not None and not slide.failed and not slide.closed and self._all_open(slide)
        if wanted and slide is not None and slide.blocks is not None and not slide.blocks.empty:
            return
        self._runnable.remove(key)
        if slide is not None:
            slide.queued = False

    def _chunk_of(self, slide: _Slide, loader: str, n_loaders: int) -> tuple[int, list[int]] | None:
        """The chunk of a slide that a loader takes next, what is to be done again first, and the branches that need it."""
        if slide.blocks is None or not self._all_open(slide):
            return None
        while slide.again:
            chunk = heapq.heappop(slide.again)
            if branches := self._takers(slide, chunk):
                return chunk, branches
        while (block := slide.blocks.block_for(loader, n_loaders, self._next_lease)) is not None:
            if (found := self._take(slide, block)) is not None:
                return found
        return None

    def _take(self, slide: _Slide, block: Block) -> tuple[int, list[int]] | None:
        """The next chunk of a block that any branch needs, and those that do; None: the block is done."""
        while len(block):
            chunk = block.next
            block.taken += 1
            if branches := self._takers(slide, chunk):
                return chunk, branches
        return None

    def _blocks_of(self, slide: _Slide) -> Blocks | None:
        """All its chunks, to be leased; near the order of the plan where it is asked in that order whether they are enough."""
        asks = any(self._branches[branch].rules.ask_finished for branch in slide.shares)
        return None if slide.plan is None else Blocks(slide.plan, self._limits.loader_credits if asks else None)

    def _takers(self, slide: _Slide, chunk: int) -> list[int]:
        """The branches that need a chunk and have no delivery of it."""
        return [
            branch
            for branch, patient in self._patients[slide.key[0]].items()
            if patient.stage is _Stage.OPEN
            and self._is_due(patient, slide, chunk)
            and chunk not in slide.shares[branch].in_flight
        ]

    @staticmethod
    def _is_due(patient: _Patient, slide: _Slide, chunk: int) -> bool:
        """Whether a chunk (or the slide's opening) counts for a branch and is not done."""
        share = patient.share(slide)
        if share.failed or slide.plan is None or chunk == OPENING:
            return not share.failed and slide.plan is None
        if share.undoable is not None and chunk >= share.undoable:
            return False
        return chunk not in share.committed and chunk < slide.n_chunks(patient.last_chunk(slide.key[1]))

    def _all_open(self, slide: _Slide) -> bool:
        """Whether every branch knows what its journal holds, so that what is read is read for all that need it."""
        return all(patient.stage is not _Stage.OPENING for patient in self._patients[slide.key[0]].values())

    def _send_chunks(self) -> None:
        waiting: deque[_Lease] = deque()
        for lease in self._read:
            for branch in lease.waiting():
                self._send(lease, branch)
            if lease.at_loader and lease.number in self._leases:
                waiting.append(lease)
        self._read = waiting

    def _send(self, lease: _Lease, branch: int) -> None:
        """Have a chunk sent, if a collector and its patient's writer have credit."""
        of = self._branches[branch]
        collector = min(of.collectors, key=of.collectors.__getitem__, default=None)
        writer = self._patients[lease.slide.key[0]][branch].writer
        if collector is None or of.collectors[collector] >= self._limits.collector_credits:
            return
        if writer is None or of.writers[writer] >= self._limits.writer_credits:
            return
        delivery = lease.deliveries[branch]
        delivery.step, delivery.collector, delivery.writer = _Step.SENT, collector, writer
        of.collectors[collector] += 1
        of.writers[writer] += 1
        last = self._left_loader(lease)
        self._decisions.append(Send(lease.loader, lease.number, collector, writer, lease.slide.key, lease.chunk, branch, last))

    def _publish_patients(self) -> None:
        for branch in self._branches:
            for publisher, busy_with in branch.publishers.items():
                if busy_with is None and branch.sealed:
                    patient = branch.sealed.popleft()
                    patient.stage, patient.publisher = _Stage.PUBLISHING, publisher
                    branch.publishers[publisher] = patient.number
                    self._decisions.append(Publish(publisher, patient.number, patient.stop, patient.branch))

    # ---- ending things

    def _advance_all(self, slide: _Slide) -> None:
        """After a change to a slide that concerns every branch."""
        for patient in list(self._patients[slide.key[0]].values()):
            self._advance(patient, slide)

    def _advance(self, patient: _Patient, slide: _Slide | None = None) -> None:
        """After a change to `slide` (None: to any of the patient's): ask, close and seal what can now be."""
        if self._suspicions:
            self._suspicions = {suspect: times for suspect, times in self._suspicions.items() if self._is_wanted(*suspect)}
        if self._ask(patient):
            slide = None
        if patient.stage is not _Stage.OPEN:
            return
        for candidate in patient.slides if slide is None else (slide,):
            share = patient.share(candidate)
            if not share.closed and self._complete(candidate, share, patient.last_chunk(candidate.key[1])):
                share.closed = True
                patient.n_closed += 1
                if candidate.closed:
                    self._decisions.append(CloseSlide(candidate.key))
        if patient.n_closed == len(patient.slides) and self._all_asked(patient) and patient.writer is not None:
            patient.stage = _Stage.SEALING
            self._decisions.append(Seal(patient.writer, patient.number, patient.branch))

    def _is_wanted(self, key: SlideKey, chunk: int) -> bool:
        """Whether a chunk (or the slide's opening) is still to be done, for any branch."""
        slide = self._slides[key]
        return any(self._is_due(patient, slide, chunk) for patient in self._patients[key[0]].values())

    @staticmethod
    def _complete(slide: _Slide, share: _Share, last: int | None) -> bool:
        """Whether nothing of a slide is under way, and every chunk up to `last` (None: all) is committed, or it has failed."""
        if share.in_flight or share.failed or slide.plan is None:
            return share.failed and not share.in_flight
        count = slide.n_chunks(last)
        return all(chunk in share.committed for chunk in range(min(share.committed.prefix, count), count))

    def _forget(self, patient: _Patient) -> None:
        of_all = self._patients[patient.number]
        del of_all[patient.branch]
        if not of_all:
            del self._patients[patient.number]
            for slide in patient.slides:
                del self._slides[slide.key]
        self._decisions.append(Finished(patient.number, patient.stop, patient.failed, patient.branch))

    def _queue(self, slide: _Slide) -> None:
        if not slide.queued and not slide.closed and not slide.failed:
            slide.queued = True
            insort(self._runnable, slide.key)

    def _cannot_be_done(self, slide: _Slide, chunk: int, branch: int | None = None) -> None:
        """A chunk, or the slide's opening, cannot be done by `branch`, or by any that still needs it.

        Where it is asked whether a patient is finished, a chunk behind the one that it is stopped at does not count, and how
        far loaders read ahead must not matter: the slide fails when all before it are done, and were not enough.
        """
        for number, share in slide.shares.items():
            if branch not in (None, number) or share.failed or (chunk != OPENING and chunk in share.committed):
                continue
            if chunk == OPENING or not self._branches[number].rules.ask_finished:
                self._fail(slide, chunk, number)
            elif share.undoable is None or chunk < share.undoable:
                share.undoable = chunk
                self._give_up_reading(slide, number, behind=chunk)
        if slide.failed:
            self._resolved_by(slide)
        self._advance_all(slide)

    def _fail(self, slide: _Slide, chunk: int, branch: int) -> None:
        slide.shares[branch].failed = True
        self._give_up_reading(slide, branch, behind=-1)
        self._decisions.append(Fail(slide.key, chunk, branch))

    def _resolved_by(self, slide: _Slide) -> None:
        if slide.resolving in self._resolving:
            self._resolving[slide.resolving] -= 1
        slide.resolving = None

    def _give_up_reading(self, slide: _Slide, branch: int, behind: int | None) -> None:
        """Drop what a branch was still to be sent of a slide's chunks that lie behind one (None: none does)."""
        for lease in [self._leases[number] for number in slide.leases]:
            if behind is not None and lease.chunk > behind and branch in lease.waiting():
                self._drop(lease, branch)

    def _drop(self, lease: _Lease, branch: int) -> None:
        """End a delivery that waits, and have the loader forget the chunk if nobody else waits for it."""
        self._end(lease, branch)
        if not lease.at_loader:
            self._decisions.append(Drop(lease.loader, lease.number))

    def _end(self, lease: _Lease, branch: int) -> None:
        """Take a delivery out, and give back what it held."""
        delivery = lease.deliveries.pop(branch)
        lease.slide.shares[branch].in_flight.discard(lease.chunk)
        if not lease.deliveries:
            del self._leases[lease.number]
            lease.slide.leases.discard(lease.number)
        if delivery.step is _Step.WAITING:
            self._left_loader(lease)
            return
        if delivery.step is _Step.SENT:
            self._credit_collector(branch, delivery)
        writers = self._branches[branch].writers
        if delivery.writer in writers:
            writers[delivery.writer] -= 1

    def _left_loader(self, lease: _Lease) -> bool:
        """Whether nobody is to be sent a chunk any more; its loader has credit again then."""
        if lease.waiting():
            return False
        if lease.at_loader and lease.loader in self._loaders:
            self._loaders[lease.loader] -= 1
        lease.at_loader = False
        return True

    def _credit_collector(self, branch: int, delivery: _Delivery) -> None:
        collectors = self._branches[branch].collectors
        if delivery.collector in collectors:
            collectors[delivery.collector] -= 1

    # ---- doing things again

    def _lease_again(self, lease: _Lease, branch: int) -> None:
        slide = lease.slide
        self._end(lease, branch)
        if lease.chunk not in slide.again:
            heapq.heappush(slide.again, lease.chunk)
        self._queue(slide)
        self._advance(self._patients[slide.key[0]][branch], slide)  # what counts of it may be complete without the chunk

    def _loader_went(self, name: str) -> None:
        self._loaders.pop(name, None)
        self._resolving.pop(name, None)
        # What it had already sent may not have left it: only what was collected is known to be past it.
        for lease in [lease for lease in self._leases.values() if lease.loader == name]:
            for branch, delivery in list(lease.deliveries.items()):
                if delivery.step is not _Step.COLLECTED:
                    self._lease_again(lease, branch)
        for slide in self._slides.values():
            if slide.blocks is not None:
                slide.blocks.loader_went(name)
            if slide.resolving == name:
                slide.resolving = None
                heapq.heappush(self._unresolved, slide.key)

    def _worker_of_branch_went(self, role: str, name: str, branch: int) -> None:
        of = self._branches[branch]
        if role == "collector":
            del of.collectors[name]
            # What it had already given to the writer's socket may not have left it either.
            for lease in list(self._leases.values()):
                if branch in lease.deliveries and lease.deliveries[branch].collector == name:
                    self._lease_again(lease, branch)
            for patient in self._patients_of(branch):
                if patient.asking == name:
                    patient.asking = None
                    self._advance(patient)
        elif role == "writer":
            del of.writers[name]
            self._writer_went(name, branch)
        else:
            publishing = of.publishers.pop(name)
            if publishing is not None:
                patient = self._patients[publishing][branch]
                patient.stage = _Stage.SEALED
                of.sealed.appendleft(patient)

    def _writer_went(self, name: str, branch: int) -> None:
        for lease in list(self._leases.values()):
            if branch not in lease.deliveries or self._patients[lease.slide.key[0]][branch].writer != name:
                continue
            if lease.deliveries[branch].step is _Step.WAITING:
                self._drop(lease, branch)
            else:
                self._end(lease, branch)
        for patient in self._patients_of(branch):
            if patient.writer == name and patient.stage in _WITH_WRITER:
                # Its journal is asked again what it holds, by the writer that opens it next
                patient.writer, patient.stage, patient.n_closed = None, _Stage.OPENING, 0
                for slide in patient.slides:
                    patient.share(slide).closed = False
                self._branches[branch].unopened.append(patient)

    # ---- is_finished

    def _ask(self, patient: _Patient) -> bool:
        """Ask ``is_finished`` after the next chunk in the order of the plan, if that is committed.

        Returns whether a slide has failed, because the next chunk cannot be done.
        """
        failed = False
        if patient.asking is not None or patient.stage is not _Stage.OPEN or self.stopping:
            return failed
        collectors = self._branches[patient.branch].collectors
        while not self._all_asked(patient):
            number, chunk = patient.asked
            slide = patient.slides[number]
            share = patient.share(slide)
            if chunk == share.undoable and not share.failed:
                self._fail(slide, chunk, patient.branch)
                failed = True
            if share.failed or (slide.plan is not None and chunk >= len(slide.plan)):
                patient.asked = (number + 1, 0)
                continue
            if slide.plan is not None and chunk in share.committed and collectors:
                patient.asking = min(collectors, key=collectors.__getitem__)
                self._decisions.append(AskFinished(patient.asking, patient.number, self._windows_at(patient), patient.branch))
            break
        return failed

    def _all_asked(self, patient: _Patient) -> bool:
        """Whether there is nothing to ask any more."""
        asks = self._branches[patient.branch].rules.ask_finished
        return not asks or patient.stop is not None or patient.asked[0] >= len(patient.slides)

    @staticmethod
    def _windows_at(patient: _Patient) -> int:
        """The patient's windows up to and with the chunk that is asked about."""
        slide = patient.slides[patient.asked[0]] if patient.asked[0] < len(patient.slides) else None
        if slide is None or slide.plan is None:
            return -1
        return patient.windows_done + slide.plan.n_windows(patient.asked[1])

    # ---- finding things

    def _patient(self, number: int, branch: int) -> _Patient | None:
        return self._patients.get(number, {}).get(branch)

    def _patients_of(self, branch: int) -> list[_Patient]:
        return [of_all[branch] for of_all in self._patients.values() if branch in of_all]

    def _delivery(self, lease: int, branch: int) -> _Delivery | None:
        state = self._leases.get(lease)
        return None if state is None else state.deliveries.get(branch)
