"""The driver: starts the workers, carries the scheduler's decisions to them, and brings it what they say.

In: a job.  Out: a report, or an error.  Never touches pixels or native slide libraries.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import msgspec

from streamwsi.errors import CollectorError, DiskError, Interrupted, OutputError, RunError, WorkerDied
from streamwsi.pipeline.accounts import Accounts, Counts
from streamwsi.pipeline.folder import OutputFolder
from streamwsi.pipeline.job import Job
from streamwsi.pipeline.processes import Processes, Worker, describe_exit
from streamwsi.pipeline.report import Report
from streamwsi.pipeline.scheduler import (
    DEATHS_OF_POISON,
    OPENING,
    AskFinished,
    CloseSlide,
    Decision,
    Drop,
    Finished,
    Limits,
    Open,
    PatientJob,
    Publish,
    Read,
    Resolve,
    Scheduler,
    Seal,
    Send,
    SlideKey,
)
from streamwsi.pipeline.slots import Slots
from streamwsi.pipeline.workforce import Deaths, StallWatch, Workforce
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec
from streamwsi.wire import messages
from streamwsi.wire.channels import Context, ControlServer, Poll, Wakeup, make_address, remove_address
from streamwsi.wire.messages import Clock, PatientRef
from streamwsi.wire.shared_memory import SlotsError, SlotsSpec, make_slots, reserve_slots

_LAST_WORDS_S = 1.0
"""How long the last words of a worker that has failed may be on their way."""
_IDLE_S = 0.5
_EXIT_FAILED = 1
_EXPLAINED: dict[str, type[RunError]] = {"PieceError": RunError, "JournalError": RunError, "DiskError": DiskError}
"""Errors of workers that need no traceback, and what they are to the caller."""


class Driver:
    """One run. Use it once."""

    def __init__(self, job: Job, folder: OutputFolder) -> None:
        self._job = job
        self._folder = folder
        self._signal: int | None = None
        self._hurry = False
        self._failure: Exception | None = None
        self._deadline: float | None = None
        self._refs: dict[int, PatientRef] = {}
        self._writer_of: dict[int, str] = {}
        self._resolved: dict[SlideKey, ResolvedSlide] = {}
        self._journaled: dict[SlideKey, tuple[ResolvedSlide, int, Counts]] = {}
        """What journals knew before this run opened the slides: (slide, committed chunks, counts)."""
        self._opened_at: dict[SlideKey, float] = {}
        self._stops: dict[str, SlideKey] = {}
        self._sealed: list[str] = []
        self._all_published = not job.writing.output.one_file
        self._publishing_all: str | None = None
        """The publisher that was told to write the one file of all."""
        self._deaths = Deaths()
        self._stall_watch = StallWatch(job.execution.stall_timeout_s)
        self._slots = Slots(0)
        self._wakeup: Wakeup | None = None
        self._accounts = Accounts(job.dataset, folder, job.gathers, job.quiet)
        self._scheduler = Scheduler(
            (PatientJob(number, len(job.dataset[number].slides)) for number in self._accounts.patients_to_do),
            Limits(
                loader_credits=job.execution.loader_credits,
                collector_credits=job.execution.collector_credits,
                writer_credits=job.execution.writer_credits,
            ),
            ask_finished=job.asks_finished,
            publish_partial=job.writing.output.publish_partial,
            publish=not job.writing.output.one_file,
        )

    def run(self) -> Report:
        """Run until every patient is finished.

        Raises CollectorError, RunError or OutputError when the run is broken off, Interrupted when a signal stops it.
        """
        begun = time.monotonic()
        try:
            if self._accounts.patients_to_do or not self._all_published:
                with self._signals():
                    self._run_workers()
            else:
                self._accounts.progress.say("every patient was finished by an earlier run: nothing to do")
        except Exception as error:  # noqa: BLE001 - raised below, once it stands in the report
            self._failure = self._failure or error
        finally:
            seconds = time.monotonic() - begun
            self._failure = self._accounts.close(
                self._job.execution, seconds, self._failure, interrupted=self._signal is not None
            )
        if self._failure is not None:
            raise self._failure
        if self._signal is not None:
            raise Interrupted(self._signal)
        return self._accounts.report

    # ---- the loop

    def _run_workers(self) -> None:
        execution = self._job.execution
        wakeup = self._wakeup = Wakeup()
        address = make_address(execution.transport, execution.tcp_host, self._job.keys)
        slots = self._make_slots(address.transport)
        processes = self._processes = Processes(wakeup.set)
        lock = None if self._folder.lock is None else self._folder.lock.descriptor
        try:
            with Context(address) as context:
                self._control = ControlServer(context)
                address = msgspec.structs.replace(address, driver=self._control.endpoint)
                self._workforce = Workforce(self._job, processes, self._control, address, lock, slots)
                self._poll = Poll(self._control, wakeup)
                try:
                    self._workforce.start_all()
                    self._reserve_slots(slots)
                    self._loop()
                    self._workforce.stop(self._wait_for_ends, self._hurry)
                finally:
                    processes.kill_all()
                self._accounts.refused(context.refused)
        finally:
            remove_address(address)
            wakeup.close()
            if slots is not None:
                os.close(slots.descriptor)

    def _make_slots(self, sockets: str) -> SlotsSpec | None:
        """Shared memory for the pixels, where it is wanted and there is enough."""
        execution = self._job.execution
        self._accounts.report.transport = sockets
        if execution.transport not in ("auto", "shm") or not hasattr(os, "posix_fallocate"):
            return None
        # One for each chunk that loaders and collectors may hold, and for those that users hold on to
        count = execution.loaders * execution.loader_credits + execution.collectors * (execution.collector_credits + 1)
        try:
            return make_slots(count, self._job.slot_bytes)
        except SlotsError as error:
            self._no_slots(error)
            return None

    def _reserve_slots(self, slots: SlotsSpec | None) -> None:
        """Have the memory, which takes a while, while the workers are being set up; from then on it is used."""
        if slots is None:
            return
        try:
            reserve_slots(slots)
        except SlotsError as error:
            self._no_slots(error)
            return
        self._slots = Slots(slots.count)
        self._accounts.report.transport = "shm"

    def _no_slots(self, error: SlotsError) -> None:
        self._accounts.warn(f"no shared memory: {error}; pixels go through {self._accounts.report.transport} sockets")

    def _loop(self) -> None:
        while self._failure is None:  # after a failure, the scheduler may still count on workers that are gone
            self._carry_out(self._scheduler.decisions())
            if self._finished():
                return
            self._poll.wait(_IDLE_S)
            self._hear()
            self._check_signal()
            self._check_stall()
            if self._folder.lock is not None:
                self._folder.lock.heartbeat()

    def _finished(self) -> bool:
        if self._failure is not None or self._hurry:
            return True
        if self._deadline is not None and time.monotonic() > self._deadline:
            return True
        if not self._scheduler.done:
            return False
        if self._scheduler.stopping or self._all_published:
            return True
        self._publish_all()
        return self._all_published

    def _hear(self) -> None:
        """Take what workers have said, then those that have ended (their last words come first)."""
        ended = self._processes.ended()
        for name, message in self._control.receive():
            self._handle(name, message)
        for worker, code in ended:
            if code == _EXIT_FAILED and self._failure is None and not worker.told_to_stop:
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
            self._accounts.progress.say("stopping: what is in flight is being committed; a second signal stops at once")
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
                signal.signal(number, handler)

    # ---- workers that end, and stages that stand still

    def _worker_ended(self, worker: Worker, code: int) -> None:
        self._workforce.remove(worker)
        self._slots.holder_went(worker.name)
        if worker.told_to_stop or self._failure is not None:
            return
        what = f"{worker.role} {worker.number} (pid {worker.pid}) {describe_exit(code)}"
        held = self._scheduler.held_by(worker.name)
        work = worker.last_work
        suspects, poison = self._scheduler.worker_went(worker.role, worker.name, work.leases, work.slides)
        self._accounts.report.restarts += 1
        self._deaths.add(suspects, poison)
        for key, chunk in poison:
            name = self._accounts.chunk_name(chunk, self._resolved.get(key))
            self._accounts.slide_failed(key, f"{name} has ended {DEATHS_OF_POISON} workers; the last was {what}")
        most = self._job.execution.max_restarts
        if self._deaths.counted(self._scheduler) > most:
            self._failure = WorkerDied(f"{what}; {most} workers were replaced already (max_restarts): the run ends")
            return
        self._accounts.progress.say(f"{what}; it is replaced, and its {len(held)} chunks are done again")
        self._workforce.replace(worker)

    def _check_stall(self) -> None:
        stalled = self._stall_watch.stalled(self._scheduler, self._workforce)
        if stalled is None or self._failure is not None:
            return
        role, waiting = stalled
        key, chunk = waiting[0]
        where = f"slide {self._accounts.slide(key).id!r} of patient {self._accounts.patient(key[0]).id!r}"
        if chunk != OPENING:
            where = f"{self._accounts.chunk_name(chunk, self._resolved.get(key))} of {where}"
        self._failure = RunError(
            f"the {role}s have made no progress for {self._job.execution.stall_timeout_s:g} s (stall_timeout_s) on {where}"
            + (f" and {len(waiting) - 1} more" if len(waiting) > 1 else "")
        )

    # ---- decisions

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self._DECISIONS[type(decision)](self, decision)

    def _open(self, order: Open) -> None:
        patient = self._job.dataset[order.patient]
        self._refs[order.patient] = PatientRef.of(patient)
        self._writer_of[order.patient] = order.writer
        self._workforce.tell(order.writer, messages.OpenPatient(order.patient, patient.id))

    def _resolve(self, order: Resolve) -> None:
        patient = self._job.dataset[order.slide[0]]
        slide = patient.slides[order.slide[1]]
        self._opened_at[order.slide] = time.monotonic()
        message = messages.ResolveSlide(*order.slide, patient.id, slide.id, str(slide.path))
        self._workforce.tell(order.loader, message)

    def _read(self, order: Read) -> None:
        slot = self._slots.take(order.lease, order.loader)
        self._workforce.tell(order.loader, messages.ReadChunk(order.lease, self._resolved[order.slide], order.chunk, slot))

    def _send(self, order: Send) -> None:
        patient, writer = self._refs[order.slide[0]], self._workforce.endpoint(order.writer)
        slot = self._slots.slot_of(order.lease)
        if slot is None:
            collector = self._workforce.endpoint(order.collector)
            self._workforce.tell(order.loader, messages.SendChunk(order.lease, collector, writer, patient))
            return
        skipped = self._slots.pass_on(order.lease, order.collector)
        slide = self._resolved[order.slide]
        message = messages.TakeChunk(order.lease, slot, slide, order.chunk, patient, writer, skipped)
        self._workforce.tell(order.collector, message)

    def _drop(self, order: Drop) -> None:
        self._slots.drop(order.lease)
        self._workforce.tell(order.loader, messages.DropChunk(order.lease))

    def _close_slide(self, order: CloseSlide) -> None:
        for loader in self._workforce.of_role("loader"):
            self._workforce.tell(loader.name, messages.CloseSlide(*order.slide))
        opened = self._opened_at.pop(order.slide, None)
        if opened is not None:
            self._accounts.slide_done(order.slide, time.monotonic() - opened)

    def _ask_finished(self, order: AskFinished) -> None:
        message = messages.AskFinished(order.patient, self._refs[order.patient], order.windows_done)
        self._workforce.tell(order.collector, message)

    def _seal(self, order: Seal) -> None:
        self._workforce.tell(order.writer, messages.SealPatient(order.patient))

    def _publish(self, order: Publish) -> None:
        failed = self._scheduler.has_failed(order.patient)
        message = messages.PublishPatient(order.patient, self._refs[order.patient], order.stop, failed, failed)
        self._workforce.tell(order.publisher, message)

    def _finished_patient(self, order: Finished) -> None:
        patient = self._accounts.patient(order.patient)
        self._accounts.patient_finished(order.patient, order.failed)
        if self._job.writing.output.one_file:
            self._sealed.append(patient.id)
            if order.stop is not None:
                self._stops[patient.id] = order.stop
        del self._refs[order.patient], self._writer_of[order.patient]
        for number in range(len(patient.slides)):
            self._resolved.pop((order.patient, number), None)
            self._journaled.pop((order.patient, number), None)

    _DECISIONS: ClassVar[dict[type, Callable[[Driver, Any], None]]] = {
        Open: _open,
        Resolve: _resolve,
        Read: _read,
        Send: _send,
        Drop: _drop,
        CloseSlide: _close_slide,
        AskFinished: _ask_finished,
        Seal: _seal,
        Publish: _publish,
        Finished: _finished_patient,
    }

    def _publish_all(self) -> None:
        """Have the one file of all patients written, once."""
        if not self._sealed or (self._accounts.any_failed and not self._job.writing.output.publish_partial):
            self._all_published = True
            return
        publisher = next((worker for worker in self._workforce.of_role("publisher") if worker.ready), None)
        if publisher is None or publisher.name == self._publishing_all:
            return
        self._publishing_all = publisher.name
        in_order = tuple(patient.id for patient in self._job.dataset if patient.id in set(self._sealed))
        order = messages.PublishAll(in_order, self._stops, self._accounts.any_failed)
        self._workforce.tell(publisher.name, order)

    # ---- messages

    def _handle(self, name: str, message: Any) -> None:
        worker = self._workforce.get(name)
        if worker is None:
            return  # it was replaced; nothing it held counts any more
        self._stall_watch.heard(worker.role)
        handler = self._MESSAGES.get(type(message))
        if handler is not None:
            handler(self, worker, message)
        if isinstance(clock := getattr(message, "clock", None), Clock):
            self._accounts.clock(worker.role, name, clock)

    def _hello(self, worker: Worker, message: messages.Hello) -> None:
        worker.endpoint, worker.ready = message.endpoint, True
        self._scheduler.worker_came(worker.role, worker.name)

    def _patient_opened(self, worker: Worker, message: messages.PatientOpened) -> None:
        patient = message.patient
        if self._writer_of.get(patient) != worker.name:
            return
        if message.values is not None and not self._same_values(message.values):
            return
        known = {slide.slide: slide for slide in message.slides}
        for number, gone in known.items():
            if number >= len(self._job.dataset[patient].slides):
                journal = self._folder.layout.journal(gone.patient_id)
                self._failure = OutputError(
                    f"{journal} holds slide {gone.id!r} of patient {gone.patient_id!r}, which the dataset has no more: choose "
                    f"another folder, or remove that journal, and the patient is done afresh"
                )
                return
        for number in range(len(self._job.dataset[patient].slides)):
            key = (patient, number)
            if key in self._resolved:
                self._workforce.tell(worker.name, messages.RecordSlide(self._resolved[key]))
            elif number in known:
                committed = message.committed.get(number, [])
                self._journaled[key] = (known[number], len(committed), message.counts.get(number, (0, 0, 0)))
        self._scheduler.patient_opened(patient, message.committed)

    def _slide_resolved(self, worker: Worker, message: messages.SlideResolved) -> None:
        slide = message.slide
        key = (slide.patient, slide.slide)
        before, committed, counts = self._journaled.get(key, (None, 0, (0, 0, 0)))
        if before is not None and committed:
            if (difference := _difference(before, slide)) is not None:
                self._failure = OutputError(
                    f"slide {slide.id!r} of patient {slide.patient_id!r} is not what {self._folder.layout.folder} was begun "
                    f"with: {difference}; choose another folder, or pass overwrite to start afresh"
                )
                return
            slide = msgspec.structs.replace(slide, block=before.block, band=before.band)
        self._resolved[key] = slide
        self._accounts.slide_resolved(key, slide, counts if committed else None)
        if (writer := self._writer_of.get(slide.patient)) is not None:
            self._workforce.tell(writer, messages.RecordSlide(slide))
        self._scheduler.slide_resolved(key, slide.chunks())

    def _slide_failed(self, worker: Worker, message: messages.SlideFailed) -> None:
        self._accounts.slide_failed((message.patient, message.slide), message.reason)
        self._scheduler.slide_failed((message.patient, message.slide))

    def _slide_closed(self, worker: Worker, message: messages.SlideClosed) -> None:
        self._accounts.tiles_decoded(message)

    def _chunk_read(self, worker: Worker, message: messages.ChunkRead) -> None:
        wanted = self._scheduler.chunk_read(message.lease)
        if wanted and message.in_slot:
            self._slots.filled(message.lease, message.skipped)
        else:
            self._slots.give_back(message.lease)

    def _chunk_failed(self, worker: Worker, message: messages.ChunkFailed) -> None:
        self._slots.give_back(message.lease)
        key = self._scheduler.chunk_failed(message.lease)
        if key is not None:
            self._accounts.slide_failed(key, message.reason)

    def _chunk_dropped(self, worker: Worker, message: messages.ChunkDropped) -> None:
        self._slots.give_back(message.lease)

    def _chunk_collected(self, worker: Worker, message: messages.ChunkCollected) -> None:
        if not message.kept:
            self._slots.give_back(message.lease)
        if message.values is None or self._same_values(message.values):
            self._scheduler.chunk_collected(message.lease)

    def _slot_returned(self, worker: Worker, message: messages.SlotReturned) -> None:
        self._slots.give_back(message.lease)

    def _chunks_committed(self, worker: Worker, message: messages.ChunksCommitted) -> None:
        for lease, counts in zip(message.leases, message.counts, strict=True):
            key = self._scheduler.chunk_committed(lease)
            if key is not None:
                self._accounts.committed(key, counts)

    def _finished_answer(self, worker: Worker, message: messages.FinishedAnswer) -> None:
        self._scheduler.finished_answered(message.patient, message.windows_done, message.finished)

    def _patient_sealed(self, worker: Worker, message: messages.PatientSealed) -> None:
        self._scheduler.patient_sealed(message.patient)

    def _patient_published(self, worker: Worker, message: messages.PatientPublished) -> None:
        self._accounts.published(message, partial=self._scheduler.has_failed(message.patient))
        self._scheduler.patient_published(message.patient)

    def _all_files_published(self, worker: Worker, message: messages.AllPublished) -> None:
        self._all_published = True
        self._accounts.all_published(message.file, set(self._sealed))

    def _worker_failed(self, worker: Worker, message: messages.WorkerFailed) -> None:
        if self._failure is not None:
            return
        kind, _, text = message.error.partition(": ")
        if message.user_code:
            self._failure = CollectorError(f"{message.error}\n  in {message.what}\n\n{message.traceback}")
        elif kind in _EXPLAINED:  # the message says it all
            self._failure = _EXPLAINED[kind](text)
        else:
            self._failure = RunError(f"{worker.role} {worker.number} cannot go on: {message.error}\n\n{message.traceback}")

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

    def _same_values(self, spec: ValueSpec) -> bool:
        """Whether these are the values that the run has; the first ones settle it."""
        settled = self._folder.values
        if settled is None:
            self._folder.set_values(spec)
            return True
        if (spec.dtype, spec.shape) == (settled.dtype, settled.shape):
            return True
        self._failure = self._failure or RunError(f"a collector gave a value that is {spec}, others gave {settled}")
        return False


def _difference(before: ResolvedSlide, now: ResolvedSlide) -> str | None:
    """What differs in what a slide was resolved to, in words; None where nothing that matters does."""
    for name in ("id", "fingerprint", "level", "extent", "kernel", "stride", "border"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            return f"its {name} was {old!r} and is {new!r}"
    return None
