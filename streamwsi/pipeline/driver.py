"""The driver: starts the workers, carries the scheduler's decisions to them, and brings it what they say.

In: a job.  Out: a report, or an error.  Never touches pixels or native slide libraries.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import msgspec

from streamwsi.errors import CollectorError, DiskError, Interrupted, OutputError, RunError, WorkerDied
from streamwsi.pipeline.accounts import Accounts
from streamwsi.pipeline.branch import Branch
from streamwsi.pipeline.decisions import (
    DEATHS_OF_POISON,
    OPENING,
    AskFinished,
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
)
from streamwsi.pipeline.folder import OutputFolder
from streamwsi.pipeline.job import Job
from streamwsi.pipeline.processes import Processes, Worker, describe_exit
from streamwsi.pipeline.progress import Progress
from streamwsi.pipeline.report import Report
from streamwsi.pipeline.scheduler import Scheduler
from streamwsi.pipeline.slots import Slots
from streamwsi.pipeline.workforce import STOP_TIMEOUT_S, Deaths, StallWatch, Workforce
from streamwsi.resolved import ResolvedSlide
from streamwsi.wire import messages
from streamwsi.wire.channels import Context, ControlServer, Poll, Wakeup, make_address, remove_address
from streamwsi.wire.messages import Clock, PatientRef
from streamwsi.wire.shared_memory import SlotsError, SlotsSpec, can_be_shared, make_slots, reserve_slots

_LAST_WORDS_S = 1.0
"""How long the last words of a worker that has failed may be on their way."""
_IDLE_S = 0.5
_SLIDES_OF_TILES = 256
"""Slides whose tiles are remembered, for what some loader may still say of them."""
_EXIT_FAILED = 1
_EXPLAINED: dict[str, type[RunError]] = {"PieceError": RunError, "JournalError": RunError, "DiskError": DiskError}
"""Errors of workers that need no traceback, and what they are to the caller."""


class Driver:
    """One run. Use it once."""

    def __init__(self, job: Job, folders: Sequence[OutputFolder]) -> None:
        """`folders` are those of the job's branches."""
        self._job = job
        self._signal: int | None = None
        self._hurry = False
        self._failure: BaseException | None = None
        self._deadline: float | None = None
        self._all_done = False
        self._refs: dict[int, PatientRef] = {}
        """Of the patients that are begun."""
        self._resolved: dict[SlideKey, ResolvedSlide] = {}
        self._opened_at: dict[SlideKey, float] = {}
        self._tiles: OrderedDict[SlideKey, tuple[int, int]] = OrderedDict()
        """Tiles decoded, and a bit for each tile that was, of what loaders have said of the slides that they closed last."""
        self._reasons: dict[tuple[SlideKey, int], str] = {}
        """Why chunks, or the openings of slides, cannot be done."""
        self._deaths = Deaths()
        self._slots = Slots(0)
        self._wakeup: Wakeup | None = None
        self._progress = Progress(job.quiet)
        self._all_branches = [
            Branch(branch, folder, job.dataset, self._progress) for branch, folder in zip(job.branches, folders, strict=True)
        ]
        self._branches = [branch for branch in self._all_branches if branch.has_work]
        """Those that earlier runs have not finished: the scheduler's numbers are places here."""
        self._stall_watch = StallWatch(job.execution.stall_timeout_s, len(self._branches))
        self._scheduler = Scheduler(
            self._patient_jobs(),
            Limits(
                loader_credits=job.execution.loader_credits,
                collector_credits=job.execution.collector_credits,
                writer_credits=job.execution.writer_credits,
                loaders=job.execution.loaders,
            ),
            [branch.rules for branch in self._branches],
        )

    def _patient_jobs(self) -> Iterator[PatientJob]:
        for number, patient in enumerate(self._job.dataset):
            branches = tuple(place for place, branch in enumerate(self._branches) if number in branch.accounts.todo)
            if branches:
                yield PatientJob(number, len(patient.slides), branches)

    def run(self) -> list[Report]:
        """Run until every patient is finished. Returns a report for each branch.

        Raises CollectorError, RunError or OutputError when the run is broken off, Interrupted when a signal stops it.
        """
        begun = time.monotonic()
        try:
            if self._branches:
                with self._signals():
                    self._run_workers()
            else:
                self._progress.say("every patient was finished by an earlier run: nothing to do")
        except BaseException as error:  # noqa: BLE001 - raised below, once it stands in the report
            self._failure = self._failure or error
        finally:
            self._progress.close()
            seconds = time.monotonic() - begun
            interrupted = self._signal is not None and not self._all_done
            failures = [
                branch.accounts.close(branch.job.execution, seconds, self._failure, interrupted)
                for branch in self._all_branches
            ]
            self._failure = self._failure or next(filter(None, failures), None)
        if self._failure is not None:
            raise self._failure
        if interrupted:
            raise Interrupted(self._signal or signal.SIGINT)
        return [branch.accounts.report for branch in self._all_branches]

    # ---- the loop

    def _run_workers(self) -> None:
        execution = self._job.execution
        address = make_address(execution.transport, execution.tcp_host, self._job.keys)
        wakeup = self._wakeup = Wakeup()
        slots = self._make_slots(address.transport)
        processes = self._processes = Processes(wakeup.set)
        try:
            with Context(address) as context:
                self._control = ControlServer(context)
                address = msgspec.structs.replace(address, driver=self._control.endpoint)
                self._workforce = Workforce(self._job, self._branches, processes, self._control, address, slots)
                self._poll = Poll(self._control, wakeup)
                try:
                    self._workforce.start_all()
                    self._reserve_slots(slots, address.transport)
                    self._loop()
                    self._workforce.stop(self._wait_for_ends, self._hurry)
                    self._warn_of_those_left()
                finally:
                    processes.kill_all()
                for branch in self._branches:
                    branch.accounts.refused(context.refused)
        finally:
            remove_address(address)
            wakeup.close()
            if slots is not None:
                os.close(slots.descriptor)

    def _make_slots(self, sockets: str) -> SlotsSpec | None:
        """Shared memory for the pixels, where it is wanted and there is enough."""
        execution = self._job.execution
        self._pixels_go_through(sockets)
        if not can_be_shared(execution.transport):
            return None
        # One for each chunk that loaders and collectors may hold, and for those that users hold on to
        collectors = sum(branch.job.execution.collectors for branch in self._branches)
        count = execution.loaders * execution.loader_credits + collectors * (execution.collector_credits + 1)
        try:
            return make_slots(count, self._job.slot_bytes)
        except SlotsError as error:
            self._no_slots(error, sockets)
            return None

    def _reserve_slots(self, slots: SlotsSpec | None, sockets: str) -> None:
        """Have the memory, which takes a while, while the workers are being set up; from then on it is used."""
        if slots is None:
            return
        try:
            reserve_slots(slots)
        except SlotsError as error:
            self._no_slots(error, sockets)
            return
        self._slots = Slots(slots.count)
        self._pixels_go_through("shm")

    def _no_slots(self, error: SlotsError, sockets: str) -> None:
        for branch in self._branches:
            branch.accounts.warn(f"no shared memory: {error}; pixels go through {sockets} sockets")

    def _pixels_go_through(self, transport: str) -> None:
        for branch in self._branches:
            branch.accounts.report.transport = transport

    def _loop(self) -> None:
        while self._failure is None:  # after a failure, the scheduler may still count on workers that are gone
            self._carry_out(self._scheduler.decisions())
            if self._finished():
                return
            self._poll.wait(_IDLE_S)
            self._hear()
            self._check_signal()
            self._check_stall()
            for branch in self._branches:
                if branch.folder.lock is not None:
                    branch.folder.lock.heartbeat()

    def _finished(self) -> bool:
        if self._failure is not None or self._hurry:
            return True
        if self._deadline is not None and time.monotonic() > self._deadline:
            return True
        if not self._scheduler.done:
            return False
        if not self._scheduler.stopping:
            for number, branch in enumerate(self._branches):
                if not branch.all_published:
                    self._publish_all(number, branch)
        self._all_done = not self._scheduler.stopping and all(branch.all_published for branch in self._branches)
        return self._scheduler.stopping or self._all_done

    def _hear(self) -> None:
        """Take what workers have said, then those that have ended (their last words come first)."""
        ended = self._processes.ended()
        for name, message in self._control.receive():
            self._handle(name, message)
        for worker, code in ended:
            if code == _EXIT_FAILED and self._failure is None:
                self._wait_for_last_words()
            self._worker_ended(worker, code)

    def _wait_for_last_words(self) -> None:
        until = time.monotonic() + _LAST_WORDS_S
        while self._failure is None and time.monotonic() < until:
            self._poll.wait(until - time.monotonic())
            for name, message in self._control.receive():
                self._handle(name, message)

    def _wait_for_ends(self, left_s: float) -> bool:
        self._poll.wait(left_s)
        self._hear()
        return not self._hurry

    def _check_signal(self) -> None:
        if self._signal is not None and not self._scheduler.stopping:
            self._progress.say("stopping: what is in flight is being committed; a second signal stops at once")
            self._scheduler.stop()
            self._deadline = time.monotonic() + self._job.execution.grace_s

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have SIGINT and SIGTERM stop the run; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: Any) -> None:
            if self._signal is not None:
                self._hurry = True
            self._signal = self._signal or number
            if self._wakeup is not None:
                self._wakeup.set()

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not Python's

    # ---- workers that end, and stages that stand still

    def _worker_ended(self, worker: Worker, code: int) -> None:
        self._workforce.remove(worker)
        self._slots.holder_went(worker.name)
        if self._failure is not None:
            return
        of_name = "" if worker.role == "loader" else self._branch_of(worker).of_name
        what = f"{worker.role} {worker.number}{of_name} (pid {worker.pid}) {describe_exit(code)}"
        if worker.told_to_stop:
            if code and self._all_done and not worker.killed:
                for branch in self._branches_of(worker):
                    branch.accounts.warn(f"{what}, after all was done: its teardown may be incomplete")
            return
        held = self._scheduler.held_by(worker.name)
        work = worker.last_work
        suspects, poison = self._scheduler.worker_went(worker.role, worker.name, work.leases, work.slides)
        self._deaths.add(suspects, poison)
        for branch in self._branches:
            branch.accounts.report.restarts += 1
        for key, chunk in poison:
            name = Accounts.chunk_name(chunk, self._resolved.get(key))
            self._reasons[key, chunk] = f"{name} has ended {DEATHS_OF_POISON} workers; the last was {what}"
        most = self._job.execution.max_restarts
        if self._deaths.counted(self._scheduler) > most:
            self._failure = WorkerDied(f"{what}; {most} workers were replaced already (max_restarts): the run ends")
            return
        self._progress.say(f"{what}; it is replaced, and its {len(held)} chunks are done again")
        self._workforce.replace(worker)

    def _warn_of_those_left(self) -> None:
        """Say who has not ended in the time that there is for teardown, and is killed."""
        for worker in [] if self._hurry or self._failure is not None else self._processes.alive.values():
            for branch in self._branches_of(worker):
                branch.accounts.warn(
                    f"{worker.role} {worker.number} had not ended {STOP_TIMEOUT_S:g} s after it was told to, and was killed: "
                    "its teardown may be incomplete"
                )

    def _check_stall(self) -> None:
        stalled = self._stall_watch.stalled(self._scheduler, self._workforce)
        if stalled is None or self._failure is not None:
            return
        role, number, waiting = stalled
        branch = self._branches[number]
        of_name = "" if role == "loader" else branch.of_name
        key, chunk = waiting[0]
        where = f"slide {branch.accounts.slide(key).id!r} of patient {branch.accounts.patient(key[0]).id!r}"
        if chunk != OPENING:
            where = f"{Accounts.chunk_name(chunk, self._resolved.get(key))} of {where}"
        self._failure = RunError(
            f"the {role}s{of_name} have made no progress for {self._job.execution.stall_timeout_s:g} s (stall_timeout_s) "
            f"on {where}" + (f" and {len(waiting) - 1} more" if len(waiting) > 1 else "")
        )

    # ---- decisions

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self._DECISIONS[type(decision)](self, decision)

    def _open(self, order: Open) -> None:
        patient = self._job.dataset[order.patient]
        self._refs[order.patient] = PatientRef.of(patient)
        self._branches[order.branch].writer_of[order.patient] = order.writer
        self._workforce.tell(order.writer, messages.OpenPatient(order.patient, patient.id))

    def _resolve(self, order: Resolve) -> None:
        patient = self._job.dataset[order.slide[0]]
        slide = patient.slides[order.slide[1]]
        self._opened_at[order.slide] = time.monotonic()
        message = messages.ResolveSlide(*order.slide, patient.id, slide.id, str(slide.path))
        self._workforce.tell(order.loader, message)

    def _read(self, order: Read) -> None:
        slot = self._slots.take(order.lease, order.loader)
        slide = self._resolved[order.slide].for_chunk(order.chunk)
        self._workforce.tell(order.loader, messages.ReadChunk(order.lease, slide, order.chunk, slot))

    def _send(self, order: Send) -> None:
        patient, writer = self._refs[order.slide[0]], self._workforce.endpoint(order.writer)
        slot = self._slots.slot_of(order.lease)
        if slot is None:
            collector = self._workforce.endpoint(order.collector)
            self._workforce.tell(order.loader, messages.SendChunk(order.lease, collector, writer, patient, order.last))
            return
        skipped = self._slots.pass_on(order.lease, order.collector, order.last)
        slide = self._resolved[order.slide].for_chunk(order.chunk)
        message = messages.TakeChunk(order.lease, slot, slide, order.chunk, patient, writer, skipped)
        self._workforce.tell(order.collector, message)

    def _drop(self, order: Drop) -> None:
        self._slots.drop(order.lease)
        self._workforce.tell(order.loader, messages.DropChunk(order.lease))

    def _fail(self, order: Fail) -> None:
        self._branches[order.branch].accounts.slide_failed(order.slide, self._reasons[order.slide, order.chunk])

    def _close_slide(self, order: CloseSlide) -> None:
        for loader in self._workforce.of_role("loader"):
            self._workforce.tell(loader.name, messages.CloseSlide(*order.slide))
        opened = self._opened_at.pop(order.slide, None)
        for branch in self._branches:
            if opened is not None and order.slide[0] in branch.accounts.todo:
                branch.accounts.slide_done(order.slide, time.monotonic() - opened)

    def _ask_finished(self, order: AskFinished) -> None:
        message = messages.AskFinished(order.patient, self._refs[order.patient], order.windows_done)
        self._workforce.tell(order.collector, message)

    def _seal(self, order: Seal) -> None:
        self._workforce.tell(order.writer, messages.SealPatient(order.patient))

    def _publish(self, order: Publish) -> None:
        failed = self._scheduler.has_failed(order.patient, order.branch)
        message = messages.PublishPatient(order.patient, self._refs[order.patient], order.stop, failed, failed)
        self._workforce.tell(order.publisher, message)

    def _finished_patient(self, order: Finished) -> None:
        self._branches[order.branch].patient_finished(order.patient, order.stop, order.failed)
        if not any(order.patient in branch.writer_of for branch in self._branches):
            del self._refs[order.patient]
            for number in range(len(self._job.dataset[order.patient].slides)):
                self._resolved.pop((order.patient, number), None)
            for place in [place for place in self._reasons if place[0][0] == order.patient]:
                del self._reasons[place]

    _DECISIONS: ClassVar[dict[type, Callable[[Driver, Any], None]]] = {
        Open: _open,
        Resolve: _resolve,
        Read: _read,
        Send: _send,
        Drop: _drop,
        Fail: _fail,
        CloseSlide: _close_slide,
        AskFinished: _ask_finished,
        Seal: _seal,
        Publish: _publish,
        Finished: _finished_patient,
    }

    def _publish_all(self, number: int, branch: Branch) -> None:
        """Have a branch's one file of all patients written, once."""
        order = branch.publish_all()
        publisher = next((worker for worker in self._workforce.of_role("publisher", number) if worker.ready), None)
        if order is None or publisher is None or publisher.name == branch.publishing_all:
            return
        branch.publishing_all = publisher.name
        self._workforce.tell(publisher.name, order)

    # ---- messages

    def _handle(self, name: str, message: Any) -> None:
        worker = self._workforce.get(name)
        if worker is None:
            return  # it was replaced; nothing it held counts any more
        self._stall_watch.heard(worker)
        handler = self._MESSAGES.get(type(message))
        if handler is not None:
            try:
                handler(self, worker, message)
            except (OutputError, RunError) as error:
                self._failure = self._failure or error
        if isinstance(clock := getattr(message, "clock", None), Clock):
            for branch in self._branches_of(worker):
                branch.accounts.clock(worker.role, name, clock)

    def _branch_of(self, worker: Worker) -> Branch:
        return self._branches[worker.branch]

    def _branches_of(self, worker: Worker) -> list[Branch]:
        """Those that a worker works for: a loader for all."""
        return self._branches if worker.role == "loader" else [self._branch_of(worker)]

    def _hello(self, worker: Worker, message: messages.Hello) -> None:
        worker.endpoint, worker.ready = message.endpoint, True
        self._scheduler.worker_came(worker.role, worker.name, worker.branch)

    def _patient_opened(self, worker: Worker, message: messages.PatientOpened) -> None:
        patient, branch = message.patient, self._branch_of(worker)
        if branch.writer_of.get(patient) != worker.name:
            return
        branch.patient_opened(message, self._resolved)
        for number in range(len(self._job.dataset[patient].slides)):
            if (patient, number) in self._resolved:
                branch.accounts.counted_again((patient, number), message.counts.get(number, (0, 0, 0)))
                self._workforce.tell(worker.name, messages.RecordSlide(self._resolved[patient, number]))
        self._scheduler.patient_opened(patient, message.committed, worker.branch)

    def _slide_resolved(self, worker: Worker, message: messages.SlideResolved) -> None:
        slide = message.slide
        key = (slide.patient, slide.slide)
        branches = [branch for branch in self._branches if slide.patient in branch.writer_of]
        slide = self._cut_as_before(slide, [before for branch in branches if (before := branch.before(key)) is not None])
        for branch in branches:
            branch.slide_resolved(key, slide)
        self._resolved[key] = slide
        for branch in branches:
            self._workforce.tell(branch.writer_of[slide.patient], messages.RecordSlide(slide))
        self._scheduler.slide_resolved(key, slide.chunks())

    @staticmethod
    def _cut_as_before(slide: ResolvedSlide, before: list[ResolvedSlide]) -> ResolvedSlide:
        """A slide, cut into the chunks that its journals are about. Raises OutputError where they differ."""
        layouts = {(known.block, known.band, known.sample) for known in before}
        if len(layouts) > 1:
            raise OutputError(
                f"slide {slide.id!r} of patient {slide.patient_id!r} was begun by several collectors that ran apart, and cut "
                "into other chunks by each: run them apart until it is finished, or pass overwrite to start afresh"
            )
        if not before:
            return slide
        sample = before[0].sample if before[0].same_windows(slide) else slide.sample  # else it is refused, with the reason
        return msgspec.structs.replace(slide, block=before[0].block, band=before[0].band, sample=sample)

    def _slide_failed(self, worker: Worker, message: messages.SlideFailed) -> None:
        key = (message.patient, message.slide)
        for branch in self._branches:
            if message.patient in branch.writer_of:
                branch.accounts.slide_failed(key, message.reason)
        self._scheduler.slide_failed(key)

    def _slide_closed(self, worker: Worker, message: messages.SlideClosed) -> None:
        key = (message.patient, message.slide)
        decoded, seen = self._tiles.get(key, (0, 0))
        decoded, seen = decoded + message.tiles_decoded, seen | int.from_bytes(message.tiles_seen, "big")
        self._tiles[key] = decoded, seen  # some loader may say so after the patient is finished
        self._tiles.move_to_end(key)
        if len(self._tiles) > _SLIDES_OF_TILES:
            self._tiles.popitem(last=False)
        for branch in self._branches:
            if message.patient in branch.accounts.todo:
                branch.accounts.tiles_decoded(key, decoded, seen.bit_count())
                branch.accounts.tiles_shifted(key, message.shifted_px)

    def _chunk_read(self, worker: Worker, message: messages.ChunkRead) -> None:
        wanted = self._scheduler.chunk_read(message.lease)
        if wanted and message.in_slot:
            self._slots.filled(message.lease, message.skipped)
        else:
            self._slots.unread(message.lease)

    def _chunk_failed(self, worker: Worker, message: messages.ChunkFailed) -> None:
        self._slots.unread(message.lease)
        place = self._scheduler.chunk_failed(message.lease)
        if place is not None:
            self._reasons[place] = message.reason

    def _chunk_dropped(self, worker: Worker, message: messages.ChunkDropped) -> None:
        self._slots.unread(message.lease)

    def _chunk_collected(self, worker: Worker, message: messages.ChunkCollected) -> None:
        if not message.kept:
            self._slots.give_back(message.lease, worker.name)
        if message.values is not None:
            self._branch_of(worker).same_values(message.values)
        self._scheduler.chunk_collected(message.lease, worker.branch)

    def _slot_returned(self, worker: Worker, message: messages.SlotReturned) -> None:
        self._slots.give_back(message.lease, worker.name)

    def _chunks_committed(self, worker: Worker, message: messages.ChunksCommitted) -> None:
        for lease, counts in zip(message.leases, message.counts, strict=True):
            key = self._scheduler.chunk_committed(lease, worker.branch)
            if key is not None:
                self._branch_of(worker).accounts.committed(key, counts)

    def _finished_answer(self, worker: Worker, message: messages.FinishedAnswer) -> None:
        self._scheduler.finished_answered(message.patient, message.windows_done, message.finished, worker.branch)

    def _patient_sealed(self, worker: Worker, message: messages.PatientSealed) -> None:
        self._scheduler.patient_sealed(message.patient, worker.branch)

    def _patient_published(self, worker: Worker, message: messages.PatientPublished) -> None:
        partial = self._scheduler.has_failed(message.patient, worker.branch)
        self._branch_of(worker).accounts.published(message, partial=partial)
        self._scheduler.patient_published(message.patient, worker.branch)

    def _all_files_published(self, worker: Worker, message: messages.AllPublished) -> None:
        branch = self._branch_of(worker)
        branch.all_published = True
        branch.accounts.all_published(message.file, set(branch.sealed))

    def _worker_failed(self, worker: Worker, message: messages.WorkerFailed) -> None:
        if self._failure is not None:
            return
        kind, _, text = message.error.partition(": ")
        of_name = "" if worker.role == "loader" else self._branch_of(worker).of_name
        where = f"{message.what}, collector{of_name}" if of_name else message.what
        if message.user_code and self._signal is not None:
            # what it had started may have been told to end too; if not, it will go wrong again
            self._progress.say(f"{message.error} in {where}, while the run is being stopped")
        elif message.user_code:
            self._failure = CollectorError(f"{message.error}\n  in {where}\n\n{message.traceback}")
        elif kind in _EXPLAINED:  # the message says it all
            self._failure = _EXPLAINED[kind](text)
        else:
            self._failure = RunError(
                f"{worker.role} {worker.number}{of_name} cannot go on: {message.error}\n\n{message.traceback}"
            )

    _MESSAGES: ClassVar[dict[type, Callable[[Driver, Worker, Any], None]]] = {
        messages.Hello: _hello,
        messages.PatientOpened: _patient_opened,
        messages.SlideResolved: _slide_resolved,
        messages.SlideFailed: _slide_failed,
        messages.SlideClosed: _slide_closed,
        messages.ChunkRead: _chunk_read,
        messages.ChunkFailed: _chunk_failed,
        messages.ChunkDropped: _chunk_dropped,
        messages.ChunkCollected: _chunk_collected,
        messages.SlotReturned: _slot_returned,
        messages.ChunksCommitted: _chunks_committed,
        messages.FinishedAnswer: _finished_answer,
        messages.PatientSealed: _patient_sealed,
        messages.PatientPublished: _patient_published,
        messages.AllPublished: _all_files_published,
        messages.WorkerFailed: _worker_failed,
    }
