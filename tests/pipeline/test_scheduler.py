"""The scheduler against a world of workers that carry its decisions out in any order, die, come back, and repeat themselves.

Nothing here starts a process or opens a slide: a worker is a list of orders and of things it has said and nobody has heard yet.
"""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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
    Suspect,
)
from streamwsi.pipeline.scheduler import ChunkSet, Scheduler

ROLES = ("loader", "collector", "writer", "publisher")
ONE_EACH = dict.fromkeys(ROLES, 1)


# ---- what there is to do


@dataclass(frozen=True)
class Slide:
    """Its chunks' windows; what a loader answers for it; and thereby the scheduler's plan of it."""

    windows: tuple[int, ...]
    bad: int | None = None
    """The chunk that cannot be read, or OPENING."""
    poison: tuple[str, int] | None = None
    """(role, chunk): what the chunk, or OPENING, ends whenever one works on it."""
    columns: int = 1
    """How many chunks lie side by side, where that divides them."""
    rows: int = 2
    """Of the blocks that they are read in."""

    def __len__(self) -> int:
        return len(self.windows)

    def n_windows(self, chunk: int) -> int:
        return self.windows[chunk]

    def block_at(self, chunk: int, n_loaders: int) -> tuple[int, int, int]:
        columns = self.columns if len(self) % self.columns == 0 else 1
        return min(self.rows, (len(self) - chunk) // columns), -(-columns // n_loaders), columns


@dataclass(frozen=True)
class Patient:
    slides: tuple[Slide, ...]
    enough: int | None = None
    """After how many windows ``is_finished`` says yes; None: never."""

    def stop(self) -> SlideKey | None:
        """(slide, chunk) after which it is stopped, unless one of its slides fails."""
        done = 0
        for number, slide in enumerate(self.slides):
            for chunk, windows in enumerate(slide.windows):
                done += windows
                if self.enough is not None and done >= self.enough:
                    return number, chunk
        return None

    def questions(self) -> list[int]:
        """Every windows_done that ``is_finished`` may be asked about, in order."""
        done, asked = 0, []
        for slide in self.slides:
            for windows in slide.windows:
                done += windows
                asked.append(done)
        return asked


def patients(*n_chunks: int, windows: int = 3) -> list[Patient]:
    """Patients of one slide each, with so many chunks."""
    return [Patient((Slide((windows,) * n),)) for n in n_chunks]


# ---- the world


class Parcel(NamedTuple):
    """A chunk on its way to a collector, or its pieces on their way to a writer."""

    lease: int
    slide: SlideKey
    chunk: int
    sender: str
    writer: str


@dataclass(eq=False)
class Worker:
    role: str
    name: str
    todo: list[Any] = field(default_factory=list)
    """Orders and parcels, to be dealt with in any order."""
    said: deque[tuple[str, tuple[Any, ...]]] = field(default_factory=deque)
    """Events on their way to the scheduler: they arrive in this order."""
    read: dict[int, Read] = field(default_factory=dict)
    """Of a loader: chunks that wait to be sent."""
    journals: set[int] = field(default_factory=set)
    """Of a writer: patients whose journals it has open."""

    def say(self, event: str, *arguments: Any) -> None:
        self.said.append((event, arguments))

    def at_work(self, *items: Any) -> list[Any]:
        """What it works on while it works on `items`: a loader has threads for all it has been given."""
        return [item for item in self.todo if isinstance(item, (Read, Resolve))] if self.role == "loader" else list(items)


@dataclass(eq=False)
class Lease:
    """What the scheduler is known to count for one chunk."""

    order: Read
    step: str = "loader"
    send: Send | None = None


class World:
    """Carries out what the scheduler decides, and checks every decision against what is true."""

    def __init__(
        self,
        patients: list[Patient],
        limits: Limits | None = None,
        *,
        ask: bool = False,
        publish_partial: bool = False,
        publish: bool = True,
    ) -> None:
        self.patients = patients
        self.limits = limits or Limits()
        self.rules = BranchRules(ask, publish_partial, publish)
        self.journals: dict[int, set[SlideKey]] = defaultdict(set)
        """(slide, chunk) of what each patient's journal holds: outlives every worker."""
        self.files: dict[int, set[SlideKey]] = {}
        """What each published patient's journal held then."""
        self.counted: Counter[tuple[SlideKey, int]] = Counter()
        """How often the scheduler took a chunk for newly committed."""
        self.reads: Counter[tuple[SlideKey, int]] = Counter()
        self.decided: list[Decision] = []
        self.luck = random.Random(0)
        self._incarnation = 0
        self.begin()

    def begin(self) -> None:
        """A run on what there is: no worker yet, journals as they are."""
        self.workers: dict[str, Worker] = {}
        self.heard: list[tuple[str, str, tuple[Any, ...]]] = []
        """(worker, event, arguments) of everything that was said."""
        self.leases: dict[int, Lease] = {}
        self.known: dict[int, set[SlideKey]] = {}
        """Of each open patient, what the scheduler knows to be committed."""
        self.writer_of: dict[int, str] = {}
        self.resolved: set[SlideKey] = set()
        self.failed: set[SlideKey] = set()
        self.questions: dict[int, list[int]] = defaultdict(list)
        self.stops: dict[int, SlideKey | None] = {}
        self.finished: dict[int, Finished] = {}
        self.blamed: Counter[Suspect] = Counter()
        """How many workers ended while they worked on it."""
        todo = [n for n in range(len(self.patients)) if n not in self.files]
        jobs = (PatientJob(number, len(self.patients[number].slides)) for number in todo)
        self.scheduler = Scheduler(jobs, self.limits, [self.rules])
        self.todo = todo

    # ---- workers

    def start(self, role: str) -> str:
        """A worker comes. Returns its name."""
        self._incarnation += 1
        worker = Worker(role, f"{role}-{self._incarnation}")
        self.workers[worker.name] = worker
        self.scheduler.worker_came(role, worker.name)
        return worker.name

    def staff(self, **counts: int) -> None:
        """Have at least so many workers of each role."""
        for role, count in {**ONE_EACH, **counts}.items():
            while len(self.of(role)) < count:
                self.start(role)

    def of(self, role: str) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.role == role]

    def one(self, role: str) -> Worker:
        (worker,) = self.of(role)
        return worker

    def kill(self, name: str, is_lost: Callable[[], bool] = lambda: True, working_on: Iterable[Any] = ()) -> None:
        """A worker dies: of what it has said and sent, `is_lost` tells one by one what does not arrive any more."""
        worker = self.workers[name]
        while worker.said and not is_lost():
            self.hear(worker)
        del self.workers[name]
        for other in self.workers.values():
            other.todo = [item for item in other.todo if not (_sender(item) == name and is_lost())]
        for number, lease in list(self.leases.items()):
            slide = lease.order.slide
            with_writer = self.writer_of.get(slide[0]) == name
            with_collector = lease.send is not None and lease.send.collector == name
            with_loader = lease.order.loader == name and lease.step in ("loader", "sent")
            if with_writer or with_collector or with_loader:
                del self.leases[number]
        for patient, writer in list(self.writer_of.items()):
            if writer == name:
                del self.writer_of[patient]
                self.known.pop(patient, None)
        leases = [item.lease for item in working_on if isinstance(item, (Read, Parcel))]
        opening = [item.slide for item in working_on if isinstance(item, Resolve)]
        suspects, poison = self.scheduler.worker_went(worker.role, name, leases, opening)
        self.blamed.update(suspects)
        for suspect in poison:
            assert suspect in suspects and self.blamed[suspect] >= DEATHS_OF_POISON

    # ---- what can happen next

    def actions(self) -> list[Callable[[], None]]:
        """Everything that can happen now."""
        found: list[Callable[[], None]] = [self.flush]
        for worker in self.workers.values():
            if worker.said:
                found.append(lambda worker=worker: self.hear(worker))
            found += [lambda worker=worker, item=item: self.work(worker, item) for item in worker.todo]
        return found

    def flush(self) -> None:
        """Carry out what the scheduler decides."""
        decisions = self.scheduler.decisions()
        for decision in decisions:
            self._check(decision)
            self.decided.append(decision)
            self._carry_out(decision)
        assert not self.scheduler.decisions(), "nothing may be left undecided until something else happens"
        self.check_credits()

    def hear(self, worker: Worker) -> None:
        """What a worker has said reaches the scheduler."""
        event, arguments = worker.said.popleft()
        self.heard.append((worker.name, event, arguments))
        self._tell(event, *arguments)

    def repeatable(self) -> list[tuple[str, tuple[Any, ...]]]:
        """What may be said once more: of the journals and files of patients only by workers that live, since the caller
        hears no other."""
        return [
            (event, arguments)
            for name, event, arguments in self.heard
            if name in self.workers or not event.startswith("patient_")
        ]

    def repeat(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Something that was said before arrives once more, and changes nothing."""
        before = len(self.scheduler)
        assert not self._tell(event, *arguments)
        assert len(self.scheduler) == before

    def _tell(self, event: str, *arguments: Any) -> Any:
        said = getattr(self.scheduler, event)(*arguments)
        if event == "patient_opened":
            patient, committed = arguments
            if patient in self.writer_of:
                self.known.setdefault(patient, {(slide, chunk) for slide, chunks in committed.items() for chunk in chunks})
        elif event == "finished_answered" and arguments[2] and not self.failures(arguments[0]):
            self.stops[arguments[0]] = self.patients[arguments[0]].stop()
        elif event == "slide_resolved":
            self.resolved.add(arguments[0])
        elif event == "slide_failed":
            self.failed.add(arguments[0])
        elif event == "chunk_collected" and arguments[0] in self.leases:
            self.leases[arguments[0]].step = "collected"
        elif event == "chunk_failed" and said is not None:
            order = self.leases.pop(arguments[0]).order
            assert said == (order.slide, order.chunk)
        elif event == "chunk_committed":
            lease = self.leases.pop(arguments[0], None)
            assert said == (None if lease is None else lease.order.slide)
            if lease is not None:
                (patient, slide), chunk = lease.order.slide, lease.order.chunk
                self.counted[said, chunk] += 1
                assert self.counted[said, chunk] == 1
                self.known[patient].add((slide, chunk))
        return said

    def work(self, worker: Worker, item: Any) -> None:
        """A worker deals with an order, or with what was sent to it."""
        if self._is_deadly(worker, item):
            self.kill(worker.name, is_lost=lambda: self.luck.random() < 0.5, working_on=worker.at_work(item))
            return
        worker.todo.remove(item)
        if isinstance(item, Parcel) and worker.role == "collector":
            if item.writer in self.workers:
                self.workers[item.writer].todo.append(item._replace(sender=worker.name))
            worker.say("chunk_collected", item.lease)
        elif isinstance(item, Parcel):
            if item.slide[0] in worker.journals:
                self.journals[item.slide[0]].add((item.slide[1], item.chunk))
                worker.say("chunk_committed", item.lease)
        elif isinstance(item, Resolve):
            slide = self.slide(item.slide)
            if slide.bad == OPENING:
                worker.say("slide_failed", item.slide)
            else:
                worker.say("slide_resolved", item.slide, slide)
        elif isinstance(item, Read):
            if self.slide(item.slide).bad == item.chunk:
                worker.say("chunk_failed", item.lease)
            else:
                worker.read[item.lease] = item
                worker.say("chunk_read", item.lease)
        elif isinstance(item, Send):
            read = worker.read.pop(item.lease)
            if item.collector in self.workers:
                parcel = Parcel(item.lease, item.slide, read.chunk, worker.name, item.writer)
                self.workers[item.collector].todo.append(parcel)
        elif isinstance(item, AskFinished):
            enough = self.patients[item.patient].enough
            finished = enough is not None and item.windows_done >= enough
            worker.say("finished_answered", item.patient, item.windows_done, finished)
        elif isinstance(item, Open):
            assert all(item.patient not in other.journals for other in self.of("writer")), "a journal has one owner"
            worker.journals.add(item.patient)
            committed = defaultdict(list)
            for slide, chunk in sorted(self.journals[item.patient]):
                committed[slide].append(chunk)
            worker.say("patient_opened", item.patient, dict(committed))
        elif isinstance(item, Seal):
            worker.journals.remove(item.patient)
            worker.say("patient_sealed", item.patient)
        elif isinstance(item, Publish):
            self.files[item.patient] = set(self.journals[item.patient])
            worker.say("patient_published", item.patient)

    def _is_deadly(self, worker: Worker, item: Any) -> bool:
        if not isinstance(item, (Read, Resolve, Parcel)):
            return False
        chunk = OPENING if isinstance(item, Resolve) else item.chunk
        return self.slide(item.slide).poison == (worker.role, chunk)

    def _carry_out(self, decision: Decision) -> None:
        if isinstance(decision, Finished):
            assert decision.patient not in self.finished, "finished twice"
            self.finished[decision.patient] = decision
            self.writer_of.pop(decision.patient, None)
            return
        if isinstance(decision, CloseSlide):
            return
        if isinstance(decision, Fail):
            self.failed.add(decision.slide)
            return
        if isinstance(decision, Read):
            self.leases[decision.lease] = Lease(decision)
            self.reads[decision.slide, decision.chunk] += 1
        elif isinstance(decision, Send):
            lease = self.leases[decision.lease]
            lease.step, lease.send = "sent", decision
        elif isinstance(decision, Open):
            self.writer_of[decision.patient] = decision.writer
        elif isinstance(decision, Drop):
            self.leases.pop(decision.lease, None)
        worker = self.workers.get(decision[0])
        if worker is None:
            return  # it died before the order left
        if isinstance(decision, Drop):
            worker.read.pop(decision.lease, None)
            worker.todo = [item for item in worker.todo if not (isinstance(item, Read) and item.lease == decision.lease)]
        else:
            worker.todo.append(decision)

    # ---- what must be true

    def _check(self, decision: Decision) -> None:
        if self.scheduler.stopping:
            assert isinstance(decision, (Drop, CloseSlide, Fail, Seal, Finished, AskFinished)), (
                f"begun after the stop: {decision}"
            )
        if isinstance(decision, (Open, Resolve, Read, Send, Publish)):
            assert decision[0] in self.workers
        if isinstance(decision, (Resolve, Read)) and any(map(self.scheduler.is_suspected, self.blamed)):
            assert self.is_idle(decision.loader), "something is suspected: one thing at a time"
        if isinstance(decision, Resolve):
            assert decision.slide not in self.resolved | self.failed
            resolving = [item for worker in self.of("loader") for item in worker.todo if isinstance(item, Resolve)]
            assert decision.slide not in [item.slide for item in resolving], "opened twice at once"
        elif isinstance(decision, Read):
            self._check_read(decision)
        elif isinstance(decision, Send):
            lease = self.leases[decision.lease]
            assert lease.step == "loader" and lease.order.loader == decision.loader and lease.order.slide == decision.slide
            assert decision.lease in self.workers[decision.loader].read, "sent before it was read"
            assert decision.collector in self.workers
            assert decision.writer == self.writer_of[decision.slide[0]] and decision.writer in self.workers
        elif isinstance(decision, Fail):
            self._check_failure(decision)
        elif isinstance(decision, AskFinished):
            self._check_question(decision)
        elif isinstance(decision, Publish):
            assert not any(isinstance(item, Publish) for item in self.workers[decision.publisher].todo)
            assert self.rules.publish_partial or not self.failures(decision.patient)
            self.check_complete(decision.patient, decision.stop)
        elif isinstance(decision, Finished):
            failed = bool(self.failures(decision.patient))
            assert decision.failed == failed
            published = self.rules.publish and (self.rules.publish_partial or not failed)
            assert (decision.patient in self.files) == published
            self.check_complete(decision.patient, decision.stop)

    def _check_read(self, order: Read) -> None:
        patient, slide = order.slide
        assert order.slide in self.resolved and order.slide not in self.failed
        assert 0 <= order.chunk < len(self.slide(order.slide))
        assert (slide, order.chunk) not in self.known[patient], "a committed chunk is read again"
        stop = self.stops.get(patient)
        assert stop is None or (slide, order.chunk) <= stop
        assert all((held.order.slide, held.order.chunk) != (order.slide, order.chunk) for held in self.leases.values())
        assert self.writer_of[patient] in self.workers

    def _check_failure(self, failure: Fail) -> None:
        """It is true, new, and counts: nothing behind the place where a patient is stopped can fail it."""
        (patient, number), chunk = failure.slide, failure.chunk
        slide = self.slide(failure.slide)
        assert chunk == slide.bad or (slide.poison is not None and chunk == slide.poison[1])
        assert failure.slide not in self.failed
        stop = self.patients[patient].stop() if self.rules.ask_finished else None
        if stop is not None and chunk != OPENING and not self.failures(patient):
            assert (number, chunk) <= stop

    def _check_question(self, question: AskFinished) -> None:
        asked = self.questions[question.patient]
        if not self.failures(question.patient):
            expected = self.patients[question.patient].questions()
            again = len(asked) > 0 and asked[-1] == question.windows_done  # the collector that was asked has died
            assert again or question.windows_done == expected[len(asked)]
            if again:
                return
        asked.append(question.windows_done)

    def is_idle(self, loader: str) -> bool:
        """Whether a loader has nothing to do, as far as the scheduler has heard."""
        worker = self.workers[loader]
        opening = [item for item in worker.todo if isinstance(item, Resolve)]
        opened = [event for event, _ in worker.said if event.startswith("slide_")]
        reading = [lease for lease in self.leases.values() if lease.order.loader == loader and lease.step == "loader"]
        return not opening and not opened and not reading

    def check_credits(self) -> None:
        loaders: Counter[str] = Counter()
        collectors: Counter[str] = Counter()
        writers: Counter[str] = Counter()
        for lease in self.leases.values():
            if lease.send is None:
                loaders[lease.order.loader] += 1
            else:
                collectors[lease.send.collector] += lease.step == "sent"
                writers[lease.send.writer] += 1
        assert all(held <= self.limits.loader_credits for held in loaders.values())
        assert all(held <= self.limits.collector_credits for held in collectors.values())
        assert all(held <= self.limits.writer_credits for held in writers.values())
        for worker in self.of("loader"):
            assert sum(isinstance(item, Resolve) for item in worker.todo) <= self.limits.slides_ahead
        assert len(self.writer_of) <= self.limits.open_patients

    def check_complete(self, patient: int, stop: SlideKey | None) -> None:
        """Every chunk that counts is in the journal, and the patient was stopped where it should be."""
        if not self.failures(patient):
            assert stop == (self.patients[patient].stop() if self.rules.ask_finished else None)
        for number, slide in enumerate(self.patients[patient].slides):
            if (patient, number) not in self.failed:
                counts = {(number, chunk) for chunk in range(len(slide)) if stop is None or (number, chunk) <= stop}
                assert counts <= self.journals[patient]

    def failures(self, patient: int) -> list[SlideKey]:
        return [slide for slide in self.failed if slide[0] == patient]

    def slide(self, key: SlideKey) -> Slide:
        return self.patients[key[0]].slides[key[1]]

    # ---- running on

    def run(self, choose: random.Random | None = None, unless: Callable[[], bool] = lambda: False) -> None:
        """Let everything happen that can, until nothing can any more or `unless` holds; in a drawn order if one is given."""
        self.flush()
        while not unless() and len(actions := self.actions()) > 1:
            if choose is not None:
                choose.choice(actions)()
            else:
                actions[1]()
                self.flush()
        self.flush()

    def finish(self) -> None:
        """Run to the end without further faults, and check that it is one."""
        self.staff()
        self.run()
        while any(not self.of(role) for role in ROLES):  # poison has ended some
            self.staff()
            self.run()
        assert self.scheduler.done
        assert not self.leases and not len(self.scheduler)
        if not self.scheduler.stopping:
            assert sorted(self.finished) == self.todo
            assert not any(worker.read or worker.journals for worker in self.workers.values()), "kept for nothing"
            assert not any(map(self.scheduler.is_suspected, self.blamed))

    def work_off(self, role: str, but: tuple[Any, ...] = ()) -> None:
        """Have the workers of one role do all they can (`but` some orders), and be heard; the others rest."""
        for worker in self.of(role):
            for item in [item for item in worker.todo if item not in but]:
                self.work(worker, item)
            while worker.said:
                self.hear(worker)
        self.flush()

    def log(self, *kinds: type) -> list[Any]:
        """Decisions of these kinds, in order."""
        return [decision for decision in self.decided if isinstance(decision, kinds)]


def _sender(item: Any) -> str | None:
    return item.sender if isinstance(item, Parcel) else None


def world_of(*arguments: Any, counts: dict[str, int] | None = None, **options: Any) -> World:
    """A world with its workers."""
    world = World(*arguments, **options)
    world.staff(**(counts or {}))
    world.flush()
    return world


def sent(world: World, n_chunks: int) -> World:
    """`world`, once so many chunks were sent and no collector or writer has touched any."""
    world.work_off("writer")
    for _ in range(3 + n_chunks):
        world.work_off("loader")
    assert len(world.log(Send)) == n_chunks
    return world


# ---- who reads what


def of_columns(columns: int, rows: int) -> list[Patient]:
    return [Patient((Slide((1,) * (columns * rows), columns=columns, rows=6),))]


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_one_loader_reads_in_the_order_of_the_plan(columns: int) -> None:
    world = world_of(of_columns(columns, 12))
    world.finish()
    assert [order.chunk for order in world.log(Read)] == list(range(columns * 12))


def test_each_loader_reads_its_own_columns() -> None:
    world = world_of(of_columns(2, 12), counts={"loader": 2})
    world.finish()
    readers = {order.chunk % 2: order.loader for order in world.log(Read)[:-8]}  # in the end they share what is left
    assert len(set(readers.values())) == 2
    assert all(order.loader == readers[order.chunk % 2] for order in world.log(Read)[:-8])


def test_the_columns_of_a_loader_that_dies_are_read_by_others() -> None:
    world = world_of(of_columns(2, 12), Limits(loader_credits=2, loaders=2), counts={"loader": 2})
    world.run(unless=lambda: len(world.log(Read)) >= 8)
    dead, other = world.of("loader")
    world.kill(dead.name)
    world.run()
    assert world.scheduler.done
    assert world.journals[0] == {(0, chunk) for chunk in range(24)}
    assert {order.loader for order in world.log(Read)[8:]} <= {dead.name, other.name}


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("loaders", [2, 3, 8])
def test_loaders_do_not_leave_chunks_far_behind(loaders: int, ask: bool) -> None:
    columns, rows = 2, 300
    world = world_of(of_columns(columns, rows), Limits(loaders=loaders), ask=ask, counts={"loader": loaders})
    order_of_events = random.Random(loaders)
    while not world.scheduler.done:
        world.run(order_of_events)
    read, first = set(), 0
    for order in world.log(Read):
        read.add(order.chunk)
        while first in read:
            first += 1
        assert len(read) - first <= 2 * loaders * columns * 6
    assert max(world.reads.values()) == 1 and first == columns * rows


# ---- credits


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limits", [Limits(1, 1, 1, 1, 1), Limits(3, 2, 4, 2, 2), Limits()])
def test_no_worker_ever_holds_more_than_its_credits(limits: Limits, seed: int) -> None:
    world = world_of(patients(5, 1, 9, 0, 4), limits, counts={"loader": 2, "collector": 3, "writer": 2})

    def none_holds_too_much() -> bool:
        for worker in world.workers.values():
            reading = sum(isinstance(item, Read) for item in worker.todo)
            sending = sum(isinstance(item, Send) for item in worker.todo)
            assert reading + len(worker.read) - sending <= limits.loader_credits
            parcels = sum(isinstance(item, Parcel) for item in worker.todo)
            assert parcels <= (limits.collector_credits if worker.role == "collector" else limits.writer_credits)
        return False

    world.run(random.Random(seed), unless=none_holds_too_much)
    world.finish()


def test_a_slow_collector_stops_the_sending_and_then_the_reading() -> None:
    world = sent(world_of(patients(50), Limits(loader_credits=3, collector_credits=2)), 2)
    assert len(world.log(Read)) == 2 + 3
    world.finish()


def test_a_slow_writer_stops_the_sending() -> None:
    world = world_of(patients(50), Limits(loader_credits=3, collector_credits=2, writer_credits=5))
    world.work_off("writer")
    for _ in range(20):
        world.work_off("loader")
        world.work_off("collector")
    assert len(world.log(Send)) == 5
    assert len(world.log(Read)) == 5 + 3
    world.finish()


def test_a_slow_publisher_stops_the_opening_of_patients() -> None:
    world = world_of(patients(*[1] * 20), Limits(open_patients=3))
    world.run(unless=lambda: bool(world.one("publisher").todo))
    for _ in range(20):
        for role in ("loader", "collector", "writer"):
            world.work_off(role)
    assert len(world.log(Open)) == 3
    world.finish()


def test_a_slot_that_becomes_free_is_used_at_once() -> None:
    world = world_of(patients(3), Limits(loader_credits=1))
    world.work_off("writer")
    world.work_off("loader")
    assert len(world.log(Read)) == 1
    world.work_off("loader")
    assert [len(world.log(Send)), len(world.log(Read))] == [1, 2]


def test_a_collector_without_credit_does_not_keep_others_from_getting_chunks() -> None:
    world = sent(world_of(patients(20), Limits(collector_credits=2), counts={"collector": 2}), 4)
    idle, busy = world.of("collector")
    world.work(idle, idle.todo[0])
    world.hear(idle)
    world.flush()
    assert world.log(Send)[-1].collector == idle.name
    assert len(busy.todo) == 2


def test_a_writer_without_credit_does_not_keep_chunks_of_other_writers_from_being_sent() -> None:
    limits = Limits(loader_credits=8, collector_credits=8, writer_credits=2)
    world = sent(world_of(patients(4, 4), limits, counts={"writer": 2}), 4)
    assert Counter(order.writer for order in world.log(Send)) == {"writer-3": 2, "writer-4": 2}
    world.finish()


# ---- order


def test_the_next_slide_is_opened_before_the_last_is_finished() -> None:
    world = world_of(patients(2, 2, 2), Limits(slides_ahead=1))
    world.work_off("writer")
    world.work_off("loader")
    assert [order.chunk for order in world.log(Read)] == [0, 1]
    assert [order.patient for order in world.log(Open)] == [
        0,
        1,
    ]  # the first is leased to its end, though nothing of it was read
    world.finish()


def test_no_more_slides_are_open_than_are_read_ahead() -> None:
    world = world_of(patients(*[100] * 10), Limits(slides_ahead=2), counts={"loader": 2})
    for _ in range(5):
        world.work_off("writer")
        world.work_off("loader")
    assert len(world.log(Open)) == len(world.log(Resolve)) == 2 * 2


def test_patients_are_dealt_to_the_writers() -> None:
    world = world_of(patients(*[1] * 6), Limits(slides_ahead=6), counts={"writer": 3})
    assert Counter(order.writer for order in world.log(Open)) == {writer.name: 2 for writer in world.of("writer")}


def test_a_chunk_that_is_done_again_comes_before_those_of_later_slides() -> None:
    world = sent(world_of(patients(2, 50), Limits(loader_credits=2, collector_credits=2)), 2)
    assert world.log(Read)[-1].slide == (1, 0)
    world.kill(world.one("collector").name)
    world.flush()
    world.start("collector")
    world.work_off("loader")
    assert [order.slide for order in world.log(Read)[4:6]] == [(0, 0), (0, 0)]


# ---- slides that fail, slides without chunks


def test_a_failed_slide_gives_its_patient_up_and_the_others_finish() -> None:
    good, unreadable, missing = Slide((4, 4)), Slide((4, 4, 4), bad=1), Slide((), bad=OPENING)
    world = world_of([Patient((good, unreadable)), Patient((good,)), Patient((missing, good))])
    world.finish()
    assert {number: end.failed for number, end in world.finished.items()} == {0: True, 1: False, 2: True}
    assert set(world.files) == {1}
    assert world.journals[2] == {(1, 0), (1, 1)}, "what is good of a failed patient stays for a rerun"


def test_partial_patients_are_published_if_that_is_asked_for() -> None:
    world = world_of([Patient((Slide((4,)), Slide((4,), bad=0)))], publish_partial=True)
    world.finish()
    assert world.files == {0: {(0, 0)}}
    assert world.finished[0] == Finished(0, None, failed=True)


def test_what_was_not_sent_of_a_failed_slide_is_dropped_and_the_rest_is_committed() -> None:
    world = world_of([Patient((Slide((1,) * 9, bad=4),))], Limits(loader_credits=5, collector_credits=2))
    world.run(unless=lambda: bool(world.failed))
    dropped = {order.lease for order in world.log(Drop)}
    assert dropped == {order.lease for order in world.log(Read)} - {order.lease for order in world.log(Send)} - {4}
    world.finish()
    assert world.journals[0] == {(0, order.lease) for order in world.log(Send)}


def test_slides_without_chunks_are_complete_as_soon_as_they_are_open() -> None:
    world = world_of([Patient((Slide(()), Slide((2,)), Slide(()))), Patient((Slide(()),))], ask=True)
    world.finish()
    assert set(world.files) == {0, 1}


def test_a_patient_whose_slides_fail_before_any_collector_is_ready_is_given_up() -> None:
    missing, empty = Slide((), bad=OPENING), Slide(())
    world = World([Patient((missing,)), Patient((empty,))], ask=True)
    for role in ("loader", "writer", "publisher"):
        world.start(role)
    world.run()
    world.finish()


def test_without_publication_a_patient_is_finished_when_its_journal_is_closed() -> None:
    world = world_of(patients(2, 3), publish=False)
    world.finish()
    assert not world.files and not world.log(Publish)
    assert [journal for _, journal in sorted(world.journals.items())] == [{(0, 0), (0, 1)}, {(0, 0), (0, 1), (0, 2)}]


# ---- deaths


def test_chunks_of_a_dead_collector_are_leased_again_both_sent_and_collected() -> None:
    world = sent(world_of(patients(6), Limits(collector_credits=2)), 2)
    collector = world.one("collector")
    world.work(collector, collector.todo[0])
    world.hear(collector)
    world.flush()
    assert len(world.log(Send)) == 3  # two at the collector, one collected and on its way to the writer
    world.kill(collector.name)
    world.flush()
    assert {chunk for (_, chunk), times in world.reads.items() if times == 2} <= {0, 1, 2}
    world.finish()
    assert [world.reads[(0, 0), chunk] for chunk in range(6)] == [2, 2, 2, 1, 1, 1]


def test_chunks_of_a_dead_loader_are_leased_again_unless_they_were_collected() -> None:
    world = sent(world_of(patients(6), Limits(loader_credits=2, collector_credits=2)), 2)
    collector = world.one("collector")
    world.work(collector, collector.todo[0])
    world.hear(collector)
    first_loader = world.one("loader")
    world.start("loader")
    world.kill(first_loader.name)
    world.flush()
    world.finish()
    assert [world.reads[(0, 0), chunk] for chunk in range(6)] == [1, 2, 2, 2, 1, 1]


def test_a_slide_whose_loader_dies_while_opening_it_is_opened_by_another() -> None:
    world = world_of(patients(1))
    world.work_off("writer")
    first = world.log(Resolve)[0].loader
    world.kill(first)
    world.start("loader")
    world.flush()
    assert [order.loader for order in world.log(Resolve)] == [first, world.one("loader").name]
    world.finish()


def test_after_a_writer_died_its_patients_are_opened_anew_and_only_what_is_not_committed_is_leased() -> None:
    world = sent(world_of(patients(4, 1), Limits(loader_credits=8, collector_credits=3), counts={"writer": 2}), 3)
    world.work_off("collector")
    dead = next(worker for worker in world.of("writer") if 0 in worker.journals)
    world.work(dead, dead.todo[0])  # committed, and the scheduler knows
    world.hear(dead)
    world.work(dead, dead.todo[0])  # committed, and the word of it is lost
    world.kill(dead.name)
    world.flush()
    survivor = world.one("writer").name
    assert [order.writer for order in world.log(Open) if order.patient == 0] == [dead.name, survivor]
    assert [order.writer for order in world.log(Open) if order.patient == 1] == [survivor]
    before = sum(world.reads.values())
    world.work_off("writer")
    assert sorted(order.chunk for order in world.log(Read)[before:] if order.slide == (0, 0)) == [2, 3]
    world.finish()


def test_a_patient_whose_writer_dies_while_closing_its_journal_is_opened_and_closed_again() -> None:
    world = world_of(patients(2))
    world.run(unless=lambda: bool(world.log(Seal)))
    world.kill(world.one("writer").name)
    world.finish()
    assert len(world.log(Open)) == len(world.log(Seal)) == 2
    assert max(world.reads.values()) == 1


def test_what_a_dead_writer_said_of_a_journal_does_not_open_it() -> None:
    world = world_of(patients(3))
    world.kill(world.one("writer").name)
    world.scheduler.patient_opened(0, {})
    world.flush()
    assert not world.log(Resolve)
    world.finish()


def test_a_slide_may_be_resolved_while_its_patient_is_opened_anew() -> None:
    world = world_of(patients(3))
    world.work_off("writer")
    loader = world.one("loader")
    world.work(loader, loader.todo[0])
    world.kill(world.one("writer").name)
    world.hear(loader)
    world.flush()
    assert not world.log(Read)
    world.finish()
    assert len(world.log(Resolve)) == 1


def test_a_patient_whose_publisher_died_is_published_by_the_next() -> None:
    world = world_of(patients(1))
    world.run(unless=lambda: bool(world.log(Publish)))
    world.kill(world.one("publisher").name)
    world.flush()
    assert not world.scheduler.done
    world.finish()
    assert len(world.log(Publish)) == 2


def test_acknowledgements_that_come_late_or_twice_are_ignored() -> None:
    world = sent(world_of(patients(4), Limits(collector_credits=2)), 2)
    world.work_off("collector")
    (writer,) = world.of("writer")
    stale = writer.todo[0]
    world.kill(world.one("collector").name, is_lost=lambda: False)  # the pieces arrive, though their leases are void
    world.start("collector")
    world.flush()
    world.work(writer, stale)
    world.hear(writer)
    world.flush()
    assert not world.counted
    for event, arguments in world.repeatable():
        world.repeat(event, arguments)
    world.finish()
    assert set(world.counted.values()) == {1}


def test_a_worker_that_is_gone_before_it_was_ready_changes_nothing() -> None:
    world = world_of(patients(3))
    for role in ROLES:
        world.scheduler.worker_went(role, f"{role}-that-never-came")
    world.finish()


def test_who_takes_part_in_which_lease_can_be_asked() -> None:
    world = sent(world_of(patients(4), Limits(loader_credits=1, collector_credits=2)), 2)
    held = world.scheduler.held_by(world.one("collector").name)
    assert held == [(0, (0, 0), 0), (1, (0, 0), 1)]
    assert world.scheduler.held_by(world.one("writer").name) == held
    assert world.scheduler.held_by(world.one("loader").name) == [*held, (2, (0, 0), 2)]
    assert world.scheduler.held_by("nobody") == []


# ---- poison


@pytest.mark.parametrize("role", ["loader", "collector"])
def test_a_chunk_that_has_ended_three_workers_fails_its_slide_and_no_other(role: str) -> None:
    deadly = Slide((1,) * 6, poison=(role, 3))
    world = world_of([*patients(6), Patient((deadly,)), *patients(6)], counts={"loader": 2, "collector": 2})
    world.finish()
    assert world.failed == {(1, 0)}
    assert set(world.files) == {0, 2}
    assert world.blamed[(1, 0), 3] == DEATHS_OF_POISON


def test_a_slide_that_has_ended_three_loaders_when_opened_fails_and_no_other() -> None:
    world = world_of([*patients(6), Patient((Slide((1,), poison=("loader", OPENING)),)), *patients(6)])
    world.finish()
    assert world.failed == {(1, 0)}
    assert world.blamed[(1, 0), OPENING] == DEATHS_OF_POISON


@pytest.mark.parametrize("chunk", [OPENING, 0, 4])
@pytest.mark.parametrize("n_loaders", [1, 3])
def test_what_a_loader_was_doing_beside_poison_is_not_taken_for_it(chunk: int, n_loaders: int) -> None:
    everyone = [*patients(9, 9), Patient((Slide((1,) * 9, poison=("loader", chunk)),)), *patients(9, 9, 9)]
    world = world_of(everyone, Limits(loader_credits=8, slides_ahead=4), counts={"loader": n_loaders})
    for seed in range(20):
        world.run(random.Random(seed))
        world.staff(loader=n_loaders)
    world.finish()
    assert world.failed == {(2, 0)}
    assert all(times == 1 for suspect, times in world.blamed.items() if suspect != ((2, 0), chunk))


def test_two_poisonous_chunks_are_found_both() -> None:
    deadly = [Patient((Slide((1,) * 9, poison=("loader", chunk)), Slide((1,) * 3))) for chunk in (2, 5)]
    world = world_of([*deadly, *patients(4)], Limits(loader_credits=8))
    world.finish()
    assert world.failed == {(0, 0), (1, 0)}
    assert set(world.files) == {2}


def test_a_suspected_chunk_is_done_again_before_anything_else_and_all_goes_on_as_before() -> None:
    world = world_of(patients(4, 60), Limits(loader_credits=4, collector_credits=2), counts={"loader": 2})
    collector = world.one("collector")

    def at_the_collector() -> list[Parcel]:
        return [item for item in collector.todo if isinstance(item, Parcel) and (item.slide, item.chunk) == ((1, 0), 5)]

    world.run(unless=lambda: bool(at_the_collector()))
    (suspect,) = at_the_collector()
    world.kill(collector.name, working_on=[suspect])
    assert world.scheduler.is_suspected((suspect.slide, suspect.chunk))
    world.start("collector")
    before = len(world.log(Read))
    world.run(unless=lambda: not world.scheduler.is_suspected((suspect.slide, suspect.chunk)))
    assert world.log(Read)[before][2:] == (suspect.slide, suspect.chunk)
    world.run(unless=lambda: sum(lease.step == "loader" for lease in world.leases.values()) > 2)
    assert len(world.leases) > 2
    world.finish()
    assert not world.failed


@pytest.mark.parametrize("seed", range(10))
def test_nothing_waits_for_ever_while_something_is_suspected(seed: int) -> None:
    deadly = Patient(
        (Slide((1,) * 8, poison=("loader", 1)), Slide((1,) * 8, poison=("collector", 6)), Slide((1,) * 8)), enough=20
    )
    world = world_of([deadly, *patients(5, 5)], Limits(2, 2, 2, 2, 2), ask=True, counts={"loader": 2, "collector": 2})
    for again in range(12):
        world.run(random.Random(100 * seed + again))
        world.staff(loader=2, collector=2)
    world.finish()
    assert set(world.files) == {1, 2}


def test_a_chunk_whose_patient_was_stopped_before_it_is_not_suspected_any_more() -> None:
    world, collector = stopped_after_the_first_of_three_sent_chunks()
    behind = next(item for item in collector.todo if isinstance(item, Parcel))
    world.kill(collector.name, is_lost=lambda: False, working_on=[behind])
    assert world.blamed == {(behind.slide, behind.chunk): 1}
    assert not world.scheduler.is_suspected((behind.slide, behind.chunk))
    world.finish()


# ---- who is being waited for


def test_what_a_stage_has_been_given_and_has_not_done_can_be_asked() -> None:
    world = world_of([Patient((Slide((2, 2)), Slide((2,))), enough=6)], Limits(loader_credits=1, slides_ahead=1), ask=True)

    def waiting() -> dict[str, list[Suspect]]:
        return {role: found for role in ROLES if (found := world.scheduler.waiting_for(role))}

    assert waiting() == {"writer": [((0, 0), OPENING)]}
    world.work_off("writer")
    assert waiting() == {"loader": [((0, 0), OPENING)]}
    world.work_off("loader")
    assert waiting() == {"loader": [((0, 0), 0), ((0, 1), OPENING)]}
    for _ in range(3):
        world.work_off("loader")
    assert waiting() == {"collector": [((0, 0), 0), ((0, 0), 1)]}
    world.work_off("collector")
    assert waiting() == {"collector": [((0, 1), 0)], "writer": [((0, 0), 0), ((0, 0), 1)]}
    world.work_off("writer")
    assert waiting() == {"collector": [((0, 1), 0), ((0, 0), 0)]}, "a question that was not answered counts too"
    world.run(unless=lambda: bool(world.log(Publish)))
    assert waiting() == {"publisher": [((0, 0), OPENING)]}
    world.finish()
    assert not waiting()


# ---- stopping


def test_after_a_stop_nothing_is_begun_and_what_was_sent_is_committed() -> None:
    world = sent(world_of(patients(9, 9), Limits(loader_credits=3, collector_credits=2)), 2)
    world.scheduler.stop()
    assert not world.scheduler.done
    world.flush()
    assert {order.lease for order in world.log(Drop)} == {2, 3, 4}
    world.run()
    assert world.scheduler.done
    assert world.journals[0] == {(0, 0), (0, 1)}


def test_after_a_stop_no_more_questions_are_asked() -> None:
    world = sent(world_of(patients(9), Limits(collector_credits=2), ask=True), 2)
    world.scheduler.stop()
    world.run()
    assert world.scheduler.done
    assert not world.log(AskFinished)


def test_a_stop_while_patients_and_slides_are_being_opened_ends_the_run() -> None:
    world = world_of(patients(3, 3), Limits(slides_ahead=2))
    world.work_off("writer")
    world.scheduler.stop()
    world.run()
    assert world.scheduler.done
    assert not world.log(Read)


@pytest.mark.parametrize("number", [0, 1])
def test_a_stop_waits_for_a_publication_that_has_begun(number: int) -> None:
    world = world_of(patients(1, 1))
    world.run(unless=lambda: len(world.log(Publish)) == number + 1)
    world.scheduler.stop()
    world.flush()
    assert not world.scheduler.done
    world.work_off("publisher")
    assert world.scheduler.done
    assert len(world.files) == number + 1


def test_a_stop_does_not_wait_for_workers_that_died() -> None:
    world = sent(world_of(patients(9)), 2)
    world.scheduler.stop()
    world.kill(world.one("collector").name)
    world.flush()
    assert world.scheduler.done


# ---- going on where an earlier run ended


def test_committed_chunks_are_not_leased_on_resume() -> None:
    world = world_of([Patient((Slide((1,) * 5), Slide((1,) * 4)))])
    world.journals[0] = {(0, 0), (0, 1), (0, 3), (1, 3)}
    world.finish()
    assert sorted((order.slide[1], order.chunk) for order in world.log(Read)) == [(0, 2), (0, 4), (1, 0), (1, 1), (1, 2)]


def test_a_patient_of_whom_everything_is_committed_is_opened_and_published() -> None:
    world = world_of(patients(3))
    world.journals[0] = {(0, 0), (0, 1), (0, 2)}
    world.finish()
    assert not world.log(Read)
    assert set(world.files) == {0}


# ---- is_finished


@pytest.mark.parametrize("seed", range(12))
def test_is_finished_is_asked_in_the_order_of_the_plan_and_stops_at_the_same_chunk(seed: int) -> None:
    patient = Patient((Slide((2, 3)), Slide(()), Slide((5, 1, 4)), Slide((1,))), enough=11)
    world = world_of([patient], ask=True, counts={"loader": 2, "collector": 3})
    world.run(random.Random(seed))
    world.finish()
    assert [order.windows_done for order in world.log(AskFinished)] == [2, 5, 10, 11]
    assert world.finished[0] == Finished(0, stop=(2, 1), failed=False)
    assert all(after.patient == before.patient for before, after in pairwise(world.log(AskFinished)))


def test_chunks_behind_a_stop_are_dropped_or_not_leased_at_all() -> None:
    limits = Limits(loader_credits=3, writer_credits=4)
    world = world_of([Patient((Slide((1,) * 30), Slide((1,) * 30)), enough=1)], limits, ask=True)
    world.finish()
    assert world.finished[0].stop == (0, 0)
    assert len(world.reads) <= 1 + 4 + 3


def test_the_question_is_asked_again_when_the_collector_that_was_asked_dies() -> None:
    world = world_of([Patient((Slide((2, 2)),), enough=4)], ask=True)
    world.run(unless=lambda: bool(world.log(AskFinished)))
    world.kill(world.one("collector").name)
    world.flush()
    world.start("collector")
    world.flush()
    assert [order.windows_done for order in world.log(AskFinished)] == [2, 2]
    world.finish()


@pytest.mark.parametrize("role", ["loader", "collector"])
def test_a_chunk_behind_the_stop_that_is_lost_with_its_worker_does_not_keep_the_patient(role: str) -> None:
    world, collector = stopped_after_the_first_of_three_sent_chunks()
    if role == "loader":
        while collector.said:
            world.hear(collector)
        world.flush()
        world.kill(world.one("loader").name)
        collector.todo.clear()  # they had not left the loader
    else:
        world.kill(collector.name, is_lost=lambda: False)
    world.start("loader")
    world.run(unless=lambda: (0, 1) in world.resolved)
    assert len(world.log(Seal)) == 1
    world.finish()


def test_what_was_not_sent_of_the_chunks_behind_a_stop_is_dropped() -> None:
    world, collector = stopped_after_the_first_of_three_sent_chunks(loader_credits=4)
    assert len(world.leases) == 2 + 4
    world.hear(collector)
    world.flush()
    assert len(world.log(Drop)) == 4
    assert len(world.leases) == 2
    world.finish()


def test_what_was_lost_behind_a_stop_is_not_done_again_while_the_patient_is_still_open() -> None:
    world, collector = stopped_after_the_first_of_three_sent_chunks()
    world.hear(collector)
    world.flush()
    world.kill(world.one("loader").name)
    world.start("loader")
    world.flush()
    assert not world.log(Seal), "its second slide is still to be opened"
    world.finish()
    assert max(world.reads.values()) == 1


def stopped_after_the_first_of_three_sent_chunks(loader_credits: int = 1) -> tuple[World, Worker]:
    """A world whose collector has said, unheard so far, that the first chunk is enough; a second slide is not open yet."""
    limits = Limits(loader_credits=loader_credits, collector_credits=2, writer_credits=3)
    world = world_of([Patient((Slide((1,) * 12), Slide((1,))), enough=1)], limits, ask=True)
    collector, writer = world.one("collector"), world.one("writer")
    second = Resolve(world.one("loader").name, (0, 1))
    world.work_off("writer")
    for _ in range(3):
        world.work_off("loader", but=(second,))
    world.work(collector, collector.todo[0])
    world.hear(collector)
    world.flush()
    world.work_off("loader", but=(second,))
    world.work_off("loader", but=(second,))
    world.work(writer, writer.todo[0])
    world.hear(writer)
    world.flush()
    world.work(collector, next(item for item in collector.todo if isinstance(item, AskFinished)))
    return world, collector


def test_an_answer_that_is_given_twice_counts_once() -> None:
    world = world_of([Patient((Slide((2, 2, 2)),), enough=None)], ask=True)
    world.run(unless=lambda: len(world.log(AskFinished)) == 2)
    world.repeat("finished_answered", (0, 2, False))
    world.repeat("finished_answered", (0, 2, True))
    world.finish()
    assert [order.windows_done for order in world.log(AskFinished)] == [2, 4, 6]


def test_an_answer_that_comes_while_the_patient_is_opened_anew_counts() -> None:
    world = world_of([Patient((Slide((2, 2, 2)),), enough=2)], ask=True)
    world.run(unless=lambda: bool(world.log(AskFinished)))
    world.kill(world.one("writer").name)
    world.work_off("collector")
    world.finish()
    assert world.finished[0].stop == (0, 0)
    assert len(world.log(AskFinished)) == 1


# ---- memory


def test_of_finished_slides_nothing_is_kept() -> None:
    n_patients, taken = 10_000, 0

    def jobs() -> Iterator[PatientJob]:
        nonlocal taken
        for number in range(n_patients):
            taken += 1
            yield PatientJob(number, 1)

    limits = Limits()
    scheduler = Scheduler(jobs(), limits, [BranchRules(ask_finished=True)])
    for role in ROLES:
        scheduler.worker_came(role, role)
    finished, most_kept, kept_bytes = 0, 0, []
    tracemalloc.start()
    try:
        while not scheduler.done:
            for decision in scheduler.decisions():
                finished += isinstance(decision, Finished)
                _answer(scheduler, decision)
            assert taken <= finished + limits.open_patients + 1
            most_kept = max(most_kept, sum(len(value) for value in vars(scheduler).values() if hasattr(value, "__len__")))
            if finished % 1000 == 0:
                kept_bytes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert finished == n_patients
    assert most_kept < 8 * limits.open_patients
    assert kept_bytes[-1] < max(kept_bytes[: len(kept_bytes) // 2]) + (64 << 10)


def _answer(scheduler: Scheduler, decision: Decision) -> None:
    """What workers say who do everything at once."""
    if isinstance(decision, Open):
        scheduler.patient_opened(decision.patient, {})
    elif isinstance(decision, Resolve):
        scheduler.slide_resolved(decision.slide, Slide((4, 4)))
    elif isinstance(decision, Read):
        scheduler.chunk_read(decision.lease)
    elif isinstance(decision, Send):
        scheduler.chunk_collected(decision.lease)
        scheduler.chunk_committed(decision.lease)
    elif isinstance(decision, AskFinished):
        scheduler.finished_answered(decision.patient, decision.windows_done, False)
    elif isinstance(decision, Seal):
        scheduler.patient_sealed(decision.patient)
    elif isinstance(decision, Publish):
        scheduler.patient_published(decision.patient)


@pytest.mark.parametrize("order", [range(200), reversed(range(200)), random.Random(5).sample(range(200), 200)])
def test_a_set_of_chunks_keeps_only_what_is_out_of_order(order: Iterable[int]) -> None:
    chunks, reference = ChunkSet(), set()
    for number in order:
        chunks.add(number)
        chunks.add(number)
        reference.add(number)
        assert len(chunks) == len(reference)
        assert number in chunks and (number + 1 in chunks) == (number + 1 in reference)
    assert (chunks.prefix, chunks.others) == (200, set())


# ---- everything at once, in any order

slides = st.builds(
    Slide,
    windows=st.lists(st.integers(1, 3), max_size=8).map(tuple),
    bad=st.one_of(st.none(), st.none(), st.none(), st.integers(OPENING, 4)),
    poison=st.one_of(
        st.none(), st.none(), st.none(), st.tuples(st.sampled_from(["loader", "collector"]), st.integers(OPENING, 4))
    ),
    columns=st.integers(1, 3),
)
some_patients = st.builds(
    Patient,
    slides=st.lists(slides, min_size=1, max_size=3).map(tuple),
    enough=st.one_of(st.none(), st.integers(1, 12)),
)
some_limits = st.builds(
    Limits,
    loader_credits=st.integers(1, 4),
    collector_credits=st.integers(1, 3),
    writer_credits=st.integers(1, 5),
    slides_ahead=st.integers(1, 3),
    open_patients=st.integers(1, 4),
)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens, in whatever order: every patient ends once, with every chunk that counts in its journal."""

    @initialize(
        patients=st.lists(some_patients, min_size=2, max_size=5),
        limits=some_limits,
        ask=st.booleans(),
        publish_partial=st.booleans(),
        publish=st.booleans(),
    )
    def begin(self, patients: list[Patient], limits: Limits, ask: bool, publish_partial: bool, publish: bool) -> None:
        self.world = World(patients, limits, ask=ask, publish_partial=publish_partial, publish=publish)
        self.world.staff()

    @rule(seed=st.integers(0, 1 << 16), times=st.integers(1, 80))
    def things_happen(self, seed: int, times: int) -> None:
        order = random.Random(seed)
        for _ in range(times):
            order.choice(self.world.actions())()

    @rule(counts=st.fixed_dictionaries({role: st.integers(1, 3) for role in ROLES}))
    def workers_come(self, counts: dict[str, int]) -> None:
        self.world.staff(**counts)

    @precondition(lambda self: self.world.workers)
    @rule(choice=st.integers(0, 100), luck=st.randoms(use_true_random=False), at_work=st.booleans())
    def a_worker_dies(self, choice: int, luck: random.Random, at_work: bool) -> None:
        worker = list(self.world.workers.values())[choice % len(self.world.workers)]
        working_on = worker.at_work(*worker.todo[:1]) if at_work else []
        self.world.kill(worker.name, is_lost=lambda: luck.random() < 0.5, working_on=working_on)

    @precondition(lambda self: self.world.repeatable())
    @rule(choice=st.integers(0, 1000))
    def something_is_said_again(self, choice: int) -> None:
        said = self.world.repeatable()
        self.world.repeat(*said[choice % len(said)])

    @rule(often=st.integers(0, 5))
    def the_run_is_told_to_stop(self, often: int) -> None:
        if often == 0:
            self.world.scheduler.stop()

    @rule(often=st.integers(0, 5))
    def everything_is_killed_and_begun_again(self, often: int) -> None:
        if often == 0:
            self.world.begin()

    @invariant()
    def a_stopped_run_is_done_once_nothing_is_in_flight(self) -> None:
        if self.world.scheduler.stopping and self.world.scheduler.done:
            assert not len(self.world.scheduler)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.finish()
        if self.world.scheduler.stopping:
            self.world.begin()
            self.world.finish()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=40)
