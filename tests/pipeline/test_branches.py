"""The scheduler with several branches: what is read once goes to all that need it, and each ends its patients by itself.

What holds for one branch is tested in ``test_scheduler.py``. Here, as there, a worker is a list of things that it has been
given and of things it has said; no process is started.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from streamwsi.pipeline.decisions import (
    AskFinished,
    BranchRules,
    CloseSlide,
    Drop,
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
)
from streamwsi.pipeline.scheduler import Scheduler

OF_BRANCH = ("collector", "writer", "publisher")
Chunk = tuple[SlideKey, int]


class Plan(tuple[int, ...]):
    """Windows of each chunk."""

    def n_windows(self, chunk: int) -> int:
        return self[chunk]

    def block_at(self, chunk: int, n_loaders: int) -> tuple[int, int, int]:
        return 1, 1, 1


@dataclass(eq=False)
class Worker:
    role: str
    name: str
    branch: int
    todo: list[Any] = field(default_factory=list)
    said: list[tuple[str, tuple[Any, ...], bool]] = field(default_factory=list)
    """(event, arguments, whether the branch is to be told too), heard in this order."""
    read: set[int] = field(default_factory=set)
    """Of a loader: chunks in its memory."""

    def next(self) -> list[Any]:
        """What it may do now: anything, but a loader sends and forgets in the order in which it is told."""
        in_order = [item for item in self.todo if isinstance(item, (Send, Drop))]
        return [item for item in self.todo if item not in in_order[1:]]


class World:
    """Carries out what the scheduler decides, for two branches or more, and keeps what is true."""

    def __init__(self, slides: list[list[Plan]], n_branches: int, limits: Limits, enough: dict[tuple[int, int], int]) -> None:
        self.slides = slides
        self.n_branches = n_branches
        self.limits = limits
        self.enough = enough
        """(branch, patient) → after how many windows ``is_finished`` says yes."""
        self.journals: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
        """(branch, patient) → (slide, chunk)."""
        self.files: set[tuple[int, int]] = set()
        self.born = 0
        self.begin()

    def begin(self) -> None:
        """A run on what there is."""
        self.workers: dict[str, Worker] = {}
        self.reads: Counter[Chunk] = Counter()
        self.leases: dict[int, Read] = {}
        self.deliveries: dict[int, set[int]] = defaultdict(set)
        """The branches that each lease was sent to."""
        self.in_flight: dict[tuple[int, Chunk], Send] = {}
        """What was sent to a branch, and is neither known to be committed nor lost."""
        self.finished: Counter[tuple[int, int]] = Counter()
        self.stops: dict[tuple[int, int], SlideKey | None] = {}
        self.closed: list[SlideKey] = []
        self.deaths = 0
        self.todo = {
            number: branches
            for number in range(len(self.slides))
            if (branches := tuple(b for b in range(self.n_branches) if (b, number) not in self.files))
        }
        jobs = (PatientJob(number, len(self.slides[number]), branches) for number, branches in self.todo.items())
        rules = [BranchRules(ask_finished=any(own == b for own, _ in self.enough)) for b in range(self.n_branches)]
        self.scheduler = Scheduler(jobs, self.limits, rules)

    def staff(self, each: int = 1) -> None:
        for role, branch in [("loader", 0), *((role, b) for role in OF_BRANCH for b in range(self.n_branches))]:
            while len(self.of(role, branch)) < each:
                self.born += 1
                worker = Worker(role, f"{role}-{self.born}", branch)
                self.workers[worker.name] = worker
                self.scheduler.worker_came(role, worker.name, branch)

    def of(self, role: str, branch: int = 0) -> list[Worker]:
        return [worker for worker in self.workers.values() if (worker.role, worker.branch) == (role, branch)]

    def kill(self, name: str, luck: random.Random) -> None:
        """A worker dies: some of what it has said and sent still arrives."""
        worker = self.workers[name]
        while worker.said and luck.random() < 0.5:
            self.hear(worker)
        del self.workers[name]
        self.deaths += 1
        for other in self.workers.values():
            other.todo = [item for item in other.todo if getattr(item, "sender", None) != name or luck.random() < 0.5]
        self.in_flight = {key: send for key, send in self.in_flight.items() if name not in send[:4]}
        self.scheduler.worker_went(worker.role, name)

    # ---- what can happen

    def actions(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = [self.flush]
        for worker in self.workers.values():
            if worker.said:
                found.append(lambda worker=worker: self.hear(worker))
            found += [lambda worker=worker, item=item: self.work(worker, item) for item in worker.next()]
        return found

    def hear(self, worker: Worker) -> None:
        event, arguments, of_branch = worker.said.pop(0)
        if event == "chunk_committed":
            read = self.leases[arguments[0]]
            self.in_flight.pop((worker.branch, (read.slide, read.chunk)), None)
        getattr(self.scheduler, event)(*arguments, *([worker.branch] if of_branch else []))

    def work(self, worker: Worker, item: Any) -> None:
        worker.todo.remove(item)
        say = worker.said.append
        if isinstance(item, Resolve):
            say(("slide_resolved", (item.slide, self.slides[item.slide[0]][item.slide[1]]), False))
        elif isinstance(item, Read):
            worker.read.add(item.lease)
            say(("chunk_read", (item.lease,), False))
        elif isinstance(item, Send):
            assert item.lease in worker.read, "sent after the loader was told that it may forget it"
            if item.last:
                worker.read.remove(item.lease)
            if item.collector in self.workers:
                self.workers[item.collector].todo.append(Parcel(item, worker.name))
        elif isinstance(item, Drop):
            worker.read.discard(item.lease)
            worker.todo = [other for other in worker.todo if not (isinstance(other, Read) and other.lease == item.lease)]
        elif isinstance(item, Parcel) and worker.role == "collector":
            assert item.order.branch == worker.branch
            if item.order.writer in self.workers:
                self.workers[item.order.writer].todo.append(Parcel(item.order, worker.name))
            say(("chunk_collected", (item.order.lease,), True))
        elif isinstance(item, Parcel):
            assert item.order.branch == worker.branch
            self.journals[worker.branch, item.order.slide[0]].add((item.order.slide[1], item.order.chunk))
            say(("chunk_committed", (item.order.lease,), True))
        elif isinstance(item, Open):
            committed = defaultdict(list)
            for slide, chunk in sorted(self.journals[item.branch, item.patient]):
                committed[slide].append(chunk)
            say(("patient_opened", (item.patient, dict(committed)), True))
        elif isinstance(item, AskFinished):
            finished = item.windows_done >= self.enough.get((item.branch, item.patient), 1 << 30)
            say(("finished_answered", (item.patient, item.windows_done, finished), True))
        elif isinstance(item, Seal):
            say(("patient_sealed", (item.patient,), True))
        elif isinstance(item, Publish):
            self.files.add((item.branch, item.patient))
            say(("patient_published", (item.patient,), True))

    def flush(self) -> None:
        for decision in self.scheduler.decisions():
            if isinstance(decision, Finished):
                self.finished[decision.branch, decision.patient] += 1
                self.stops[decision.branch, decision.patient] = decision.stop
                continue
            if isinstance(decision, CloseSlide):
                self.closed.append(decision.slide)
                continue
            if isinstance(decision, Read):
                self.leases[decision.lease] = decision
                self.reads[decision.slide, decision.chunk] += 1
            if isinstance(decision, Send):
                assert decision.branch not in self.deliveries[decision.lease], "sent to a branch twice under one lease"
                self.deliveries[decision.lease].add(decision.branch)
                key = decision.branch, (decision.slide, decision.chunk)
                assert key not in self.in_flight, "sent to a branch again that has it still"
                self.in_flight[key] = decision
            worker = self.workers.get(decision[0])
            if worker is None:
                continue
            if isinstance(decision, (Open, AskFinished, Seal, Publish)):
                assert worker.branch == decision.branch
            worker.todo.append(decision)

    # ---- running on

    def run(self, choose: random.Random | None = None) -> None:
        self.flush()
        while len(actions := self.actions()) > 1:
            (choose.choice(actions) if choose else actions[1])()
            if choose is None:
                self.flush()
        self.flush()

    def finish(self) -> None:
        self.staff()
        self.run()
        assert self.scheduler.done and not len(self.scheduler)
        assert not any(worker.read or worker.todo for worker in self.workers.values()), "kept for nothing"
        if self.scheduler.stopping:
            return
        assert self.finished == Counter({(b, number): 1 for number, branches in self.todo.items() for b in branches})
        for number, branches in self.todo.items():
            for branch in branches:
                self.check(branch, number)

    def check_credits(self) -> None:
        """No loader holds more than its credits."""
        for worker in self.of("loader"):
            dropped = {item.lease for item in worker.todo if isinstance(item, Drop)}
            leaving = dropped | {item.lease for item in worker.todo if isinstance(item, Send) and item.last}
            reading = sum(isinstance(item, Read) and item.lease not in dropped for item in worker.todo)
            assert reading + len(worker.read - leaving) <= self.limits.loader_credits

    def check(self, branch: int, patient: int) -> None:
        """Every chunk that counts is in the branch's journal, and it was stopped where it should be."""
        done, stop = 0, None
        for number, plan in enumerate(self.slides[patient]):
            for chunk, windows in enumerate(plan):
                done += windows
                if stop is None and done >= self.enough.get((branch, patient), 1 << 30):
                    stop = number, chunk
        assert self.stops[branch, patient] == stop
        counts = {(number, chunk) for number, plan in enumerate(self.slides[patient]) for chunk in range(len(plan))}
        assert {chunk for chunk in counts if stop is None or chunk <= stop} <= self.journals[branch, patient]


@dataclass(frozen=True, eq=False)
class Parcel:
    """A chunk on its way to a collector, or its pieces on their way to a writer."""

    order: Send
    sender: str


def world_of(*n_chunks: int, n_branches: int = 2, limits: Limits | None = None, **enough: Any) -> World:
    """A world of patients with one slide each."""
    world = World([[Plan((2,) * n)] for n in n_chunks], n_branches, limits or Limits(), enough.get("enough", {}))
    world.staff()
    world.flush()
    return world


@pytest.mark.parametrize("n_branches", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_each_chunk_is_read_once_and_sent_to_every_branch(n_branches: int, seed: int) -> None:
    world = world_of(7, 1, 0, 12, n_branches=n_branches, limits=Limits(2, 2, 3, 2, 2))
    world.staff(each=2)
    world.run(random.Random(seed))
    world.finish()
    assert set(world.reads.values()) == {1} and len(world.reads) == 7 + 1 + 12
    assert all(len(branches) == n_branches for branches in world.deliveries.values())
    assert sorted(world.closed) == [(number, 0) for number in range(4)]


def test_a_slow_branch_slows_the_other_by_what_a_loader_may_hold_and_no_more() -> None:
    world = world_of(40, limits=Limits(loader_credits=3, collector_credits=2))
    (slow,) = world.of("collector", 1)
    for _ in range(400):
        for worker in list(world.workers.values()):
            for item in [] if worker is slow else list(worker.todo):
                world.work(worker, item)
            while worker.said:
                world.hear(worker)
        world.flush()
    committed = len(world.journals[0, 0])
    assert committed == 2 + 3, "two at the slow collector, three that wait for it at the loader"
    assert not world.journals[1, 0]
    world.finish()
    assert set(world.reads.values()) == {1}


def test_what_one_branch_has_committed_before_is_read_for_the_other_alone() -> None:
    world = world_of(6, 3)
    world.journals[0, 0] = {(0, chunk) for chunk in (0, 1, 2, 4)}
    world.finish()
    sent = {(read.slide, read.chunk): world.deliveries[lease] for lease, read in world.leases.items()}
    assert [sent[(0, 0), chunk] for chunk in range(6)] == [{1}, {1}, {1}, {0, 1}, {1}, {0, 1}]
    assert set(world.reads.values()) == {1}


def test_a_patient_that_one_branch_has_finished_before_is_opened_for_the_other_alone() -> None:
    world = world_of(3, 2)
    world.files = {(0, 0)}
    world.begin()
    world.finish()
    assert world.finished == Counter({(1, 0): 1, (0, 1): 1, (1, 1): 1})
    assert {read.slide: world.deliveries[lease] for lease, read in world.leases.items()} == {(0, 0): {1}, (1, 0): {0, 1}}


def test_no_slide_is_opened_before_every_branch_knows_what_its_journal_holds() -> None:
    world = world_of(3)
    first, second = (world.of("writer", branch)[0] for branch in (0, 1))
    world.work(first, first.todo[0])
    world.hear(first)
    world.flush()
    assert not any(isinstance(item, Resolve) for item in world.of("loader")[0].todo)
    world.work(second, second.todo[0])
    world.hear(second)
    world.flush()
    assert [type(item) for item in world.of("loader")[0].todo] == [Resolve]
    world.finish()


def test_a_branch_that_is_stopped_early_leaves_the_rest_to_the_other() -> None:
    world = world_of(9, enough={(0, 0): 5})
    world.finish()
    assert world.stops == {(0, 0): (0, 2), (1, 0): None}
    assert set(world.reads.values()) == {1} and len(world.reads) == 9


def test_a_slide_that_fails_for_one_branch_goes_on_for_the_other() -> None:
    world = world_of(8, limits=Limits(loader_credits=3, collector_credits=2))
    while not world.deliveries:
        world.actions()[1]()
        world.flush()
    world.scheduler.slide_failed((0, 0), branch=0)
    world.staff()
    world.run()
    assert world.scheduler.done and world.finished == Counter({(0, 0): 1, (1, 0): 1})
    assert world.files == {(1, 0)}
    assert world.journals[1, 0] == {(0, chunk) for chunk in range(8)}


@pytest.mark.parametrize("role", ["collector", "writer"])
def test_the_other_branch_is_not_sent_again_what_one_has_lost_with_its_worker(role: str) -> None:
    world = world_of(5, limits=Limits(loader_credits=3, collector_credits=3, writer_credits=4))
    (lost,) = world.of(role, 0)
    for _ in range(60):
        for worker in list(world.workers.values()):
            for item in list(worker.todo):
                if not (worker is lost and isinstance(item, Parcel)):
                    world.work(worker, item)
            while worker.said:
                world.hear(worker)
        world.flush()
    world.kill(lost.name, random.Random(0))
    world.finish()
    again = [lease for lease, read in world.leases.items() if world.reads[read.slide, read.chunk] == 2]
    assert again
    to_other = Counter(
        (world.leases[lease].slide, world.leases[lease].chunk) for lease in again if 1 in world.deliveries[lease]
    )
    assert set(to_other.values()) == {1}


some_slides = st.lists(
    st.lists(st.lists(st.integers(1, 3), max_size=9).map(Plan), min_size=1, max_size=2), min_size=2, max_size=4
)
some_limits = st.builds(
    Limits,
    loader_credits=st.integers(1, 4),
    collector_credits=st.integers(1, 3),
    writer_credits=st.integers(1, 4),
    slides_ahead=st.integers(1, 3),
    open_patients=st.integers(1, 3),
)


@settings(max_examples=150)
@given(
    slides=some_slides,
    n_branches=st.integers(2, 3),
    limits=some_limits,
    enough=st.dictionaries(st.tuples(st.integers(0, 1), st.integers(0, 3)), st.integers(1, 12), max_size=3),
    chance=st.randoms(use_true_random=False),
    deadly=st.sampled_from([0.0, 0.01, 0.05]),
    times=st.integers(20, 500),
)
def test_whatever_happens_every_branch_ends_every_patient_once_with_all_that_counts_in_its_journal(
    slides: list[list[Plan]],
    n_branches: int,
    limits: Limits,
    enough: dict[tuple[int, int], int],
    chance: random.Random,
    deadly: float,
    times: int,
) -> None:
    world = World(slides, n_branches, limits, enough)
    world.staff()
    for _ in range(times):
        drawn = chance.random()
        if drawn < deadly and world.workers:
            world.kill(chance.choice(list(world.workers)), chance)
        elif drawn < 2 * deadly:
            world.staff(each=chance.randint(1, 2))
        elif drawn < 2.02 * deadly:
            world.begin()  # everything is killed
        else:
            chance.choice(world.actions())()
        world.check_credits()
    if chance.random() < 0.3:
        world.scheduler.stop()
        world.finish()
        world.begin()
    world.finish()
