"""The driver: starts the workers, carries the scheduler's decisions to them, and brings it what they say.

In: a job.  Out: a report, or an error.  Never touches pixels or native slide libraries.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from streamwsi._version import __version__
from streamwsi.collecting.main import CollectingOptions
from streamwsi.collecting.spec import Shipped
from streamwsi.config import Execution
from streamwsi.dataset import Dataset
from streamwsi.errors import CollectorError, DiskError, Interrupted, OutputError, RunError, WorkerDied
from streamwsi.loading.resolve import ReadingOptions
from streamwsi.pipeline.child import ROLES, Role, Startup
from streamwsi.pipeline.folder import OutputFolder
from streamwsi.pipeline.processes import Processes, Worker, describe_exit
from streamwsi.pipeline.progress import Progress
from streamwsi.pipeline.report import PatientReport, Report, SlideReport
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
    Suspect,
)
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec, decode_result
from streamwsi.wire import messages
from streamwsi.wire.blackbox import make_box
from streamwsi.wire.channels import Context, ControlServer, Poll, Wakeup, make_address, remove_address
from streamwsi.wire.keys import RunKeys
from streamwsi.wire.messages import Clock, Message, PatientRef
from streamwsi.writing.journal import remove_journal
from streamwsi.writing.layout import write_whole
from streamwsi.writing.main import WritingOptions
from streamwsi.writing.publish import read_record

_STOP_TIMEOUT_S = 5.0
"""How long workers may take to end once they are told to."""
_LAST_WORDS_S = 1.0
"""How long the last words of a worker that has failed may be on their way."""
_IDLE_S = 0.5
_EXIT_FAILED = 1
_EXPLAINED: dict[str, type[RunError]] = {"PieceError": RunError, "JournalError": RunError, "DiskError": DiskError}
"""Errors of workers that need no traceback, and what they are to the caller."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a run needs."""

    dataset: Dataset
    reading: ReadingOptions
    level: int
    shipped_level: Shipped | None
    collecting: CollectingOptions
    collector: Shipped
    asks_finished: bool
    gathers: bool
    writing: WritingOptions
    execution: Execution
    keys: RunKeys | None
    """Those that the user gives; None: they are made for the run."""
    quiet: bool


class Driver:
    """One run. Use it once."""

    def __init__(self, job: Job, folder: OutputFolder) -> None:
        self._job = job
        self._folder = folder
        self._signal: int | None = None
        self._hurry = False
        self._failure: Exception | None = None
        self._deadline: float | None = None
        self._reports: dict[int, PatientReport] = {}
        self._report = Report(streamwsi_version=__version__, warnings=list(folder.warnings))
        self._clocks: dict[str, dict[str, Clock]] = {role: {} for role in ROLES}
        self._refs: dict[int, PatientRef] = {}
        self._writer_of: dict[int, str] = {}
        self._resolved: dict[SlideKey, ResolvedSlide] = {}
        self._journaled: dict[SlideKey, tuple[ResolvedSlide, int, tuple[int, int, int]]] = {}
        """What journals knew before this run opened the slides: (slide, committed chunks, counts)."""
        self._opened_at: dict[SlideKey, float] = {}
        self._stops: dict[str, SlideKey] = {}
        self._sealed: list[str] = []
        self._all_published = not job.writing.output.one_file
        self._workers: dict[str, Worker] = {}
        self._deaths: list[list[Suspect]] = []
        """What was suspected of each worker's end."""
        self._poison: set[Suspect] = set()
        self._heard_at = dict.fromkeys(ROLES, time.monotonic())
        """When a worker of each role last said something, or had nothing to do."""
        self._stall_checked_at = time.monotonic()

    def run(self) -> Report:
        """Run until every patient is finished.

        Raises CollectorError, RunError or OutputError when the run is broken off, Interrupted when a signal stops it.
        """
        job = self._job
        begun = time.monotonic()
        todo = self._patients_to_do()
        n_slides = sum(len(job.dataset[number].slides) for number in todo)
        self._progress = Progress(n_slides, job.quiet)
        self._scheduler = Scheduler(
            (PatientJob(number, len(job.dataset[number].slides)) for number in todo),
            self._limits(),
            ask_finished=job.asks_finished,
            publish_partial=job.writing.output.publish_partial,
            publish=not job.writing.output.one_file,
        )
        for warning in self._report.warnings:
            self._progress.say(f"warning: {warning}")
        try:
            if todo or not self._all_published:
                with self._signals():
                    self._run_workers()
            else:
                self._progress.say("every patient was finished by an earlier run: nothing to do")
        except Exception as error:  # noqa: BLE001 - raised below, once it stands in the report
            self._failure = self._failure or error
        finally:
            self._progress.close()
            self._report.seconds = round(time.monotonic() - begun, 3)
            self._finish_report()
        if self._failure is not None:
            raise self._failure
        if self._signal is not None:
            raise Interrupted(self._signal)
        return self._report

    # ---- the loop

    def _run_workers(self) -> None:
        wakeup = Wakeup()
        self._wakeup = wakeup
        address = make_address(self._job.execution.transport, self._job.execution.tcp_host, self._job.keys)
        self._processes = Processes(wakeup.set)
        try:
            with Context(address) as context:
                self._control = ControlServer(context)
                self._address = msgspec.structs.replace(address, driver=self._control.endpoint)
                self._poll = Poll(self._control, wakeup)
                try:
                    self._start_workers()
                    self._loop()
                    self._stop_workers()
                finally:
                    self._processes.kill_all()
                clocks = [clock for of_role in self._clocks.values() for clock in of_role.values()]
                self._report.refused_messages = context.refused + sum(clock.refused for clock in clocks)
        finally:
            remove_address(address)
            wakeup.close()

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
            if hasattr(self, "_wakeup"):
                self._wakeup.set()

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ---- workers

    def _start_workers(self) -> None:
        execution = self._job.execution
        counts: dict[Role, int] = {
            "loader": execution.loaders,
            "collector": execution.collectors,
            "writer": execution.writers,
            "publisher": 1,
        }
        for role, count in counts.items():
            for number in range(count):
                devices = execution.devices if role == "collector" else ()
                self._start(role, number, 1, devices[number % len(devices)] if devices else None)

    def _start(self, role: Role, number: int, incarnation: int, device: str | None) -> None:
        job = self._job
        name = f"{role}-{number}.{incarnation}"
        lock = self._folder.lock
        startup = Startup(
            role=role, name=name, address=self._address, lock=None if lock is None else lock.descriptor, box=make_box()
        )
        if role == "loader":
            startup = msgspec.structs.replace(startup, reading=job.reading, level=job.level, shipped=job.shipped_level)
        elif role == "collector":
            options = msgspec.structs.replace(job.collecting, device=device)
            startup = msgspec.structs.replace(startup, collecting=options, shipped=job.collector)
        else:
            gatherer = job.collector if role == "publisher" and job.gathers else None
            startup = msgspec.structs.replace(startup, writing=job.writing, shipped=gatherer)
        self._workers[name] = self._processes.start(startup, number, device)

    def _worker_ended(self, worker: Worker, code: int) -> None:
        del self._workers[worker.name]
        if worker.told_to_stop or self._failure is not None:
            return
        what = f"{worker.role} {worker.number} (pid {worker.pid}) {describe_exit(code)}"
        held = self._scheduler.held_by(worker.name)
        work = worker.last_work
        suspects, poison = self._scheduler.worker_went(worker.role, worker.name, work.leases, work.slides)
        self._report.restarts += 1
        self._deaths.append(suspects)
        for key, chunk in poison:
            self._poison.add((key, chunk))
            self._fail_slide(key, f"{self._chunk_name(key, chunk)} has ended {DEATHS_OF_POISON} workers; the last was {what}")
        if self._restarts_used() > self._job.execution.max_restarts:
            self._failure = WorkerDied(
                f"{what}; {self._job.execution.max_restarts} workers were replaced already (max_restarts): the run ends"
            )
            return
        self._progress.say(f"{what}; it is replaced, and its {len(held)} chunks are done again")
        if worker.endpoint:
            for other in self._workers.values():
                self._control.send(other.name, messages.EndpointGone(worker.endpoint))
        incarnation = int(worker.name.rpartition(".")[2]) + 1
        self._start(worker.role, worker.number, incarnation, worker.device)

    def _restarts_used(self) -> int:
        """Deaths that count: not those over a chunk that is poison, or may yet turn out to be."""
        return sum(
            1
            for suspects in self._deaths
            if not any(suspect in self._poison or self._scheduler.is_suspected(suspect) for suspect in suspects)
        )

    def _check_stall(self) -> None:
        """End the run when a stage that is set up has work and has said nothing for too long."""
        timeout_s, now = self._job.execution.stall_timeout_s, time.monotonic()
        if not timeout_s or now - self._stall_checked_at < min(1.0, timeout_s / 4):
            return
        self._stall_checked_at = now
        for role in ROLES:
            waiting = self._scheduler.waiting_for(role)
            workers = [worker for worker in self._workers.values() if worker.role == role]
            if not waiting or not all(worker.ready for worker in workers):
                self._heard_at[role] = now
            elif now - self._heard_at[role] > timeout_s and self._failure is None:
                (patient, slide), chunk = waiting[0]
                where = f"slide {self._slide_report((patient, slide)).id!r} of patient {self._reports[patient].id!r}"
                what = where if chunk == OPENING else f"{self._chunk_name((patient, slide), chunk)} of {where}"
                self._failure = RunError(
                    f"the {role}s have made no progress for {timeout_s:g} s (stall_timeout_s) on {what}"
                    + (f" and {len(waiting) - 1} more" if len(waiting) > 1 else "")
                )

    def _chunk_name(self, key: SlideKey, chunk: int) -> str:
        """A chunk as a person finds it: where its windows lie."""
        slide = self._resolved.get(key)
        if chunk == OPENING or slide is None:
            return "its opening"
        windows = slide.grid().windows(slide.chunks().indices(chunk))
        (left, top), (right, bottom) = windows.xy[0].tolist(), windows.xy[-1].tolist()
        return f"chunk {chunk} ({len(windows)} windows at level-0 ({left}, {top}) to ({right}, {bottom}))"

    def _stop_workers(self) -> None:
        """Tell all workers to stop; those that do not in time are killed by the caller."""
        for worker in self._workers.values():
            worker.told_to_stop = True
            if not (worker.ready and self._control.send(worker.name, messages.Stop())):
                worker.process.kill()  # it is still being set up, and cannot be told
        until = time.monotonic() + (0 if self._hurry else _STOP_TIMEOUT_S)
        while self._processes.alive and (left := until - time.monotonic()) > 0:
            self._poll.wait(left)
            self._hear()
            if self._hurry:
                return

    # ---- decisions

    def _carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self._DECISIONS[type(decision)](self, decision)

    def _tell(self, worker: str, message: Message) -> None:
        # A worker that cannot be reached has ended, which is noticed and handled as such.
        self._control.send(worker, message)

    def _open(self, order: Open) -> None:
        patient = self._job.dataset[order.patient]
        self._refs[order.patient] = PatientRef.of(patient)
        self._writer_of[order.patient] = order.writer
        self._tell(order.writer, messages.OpenPatient(order.patient, patient.id))

    def _resolve(self, order: Resolve) -> None:
        patient = self._job.dataset[order.slide[0]]
        slide = patient.slides[order.slide[1]]
        self._opened_at[order.slide] = time.monotonic()
        self._tell(order.loader, messages.ResolveSlide(*order.slide, patient.id, slide.id, str(slide.path)))

    def _read(self, order: Read) -> None:
        self._tell(order.loader, messages.ReadChunk(order.lease, self._resolved[order.slide], order.chunk))

    def _send(self, order: Send) -> None:
        collector, writer = self._workers[order.collector].endpoint, self._workers[order.writer].endpoint
        self._tell(order.loader, messages.SendChunk(order.lease, collector, writer, self._refs[order.slide[0]]))

    def _drop(self, order: Drop) -> None:
        self._tell(order.loader, messages.DropChunk(order.lease))

    def _close_slide(self, order: CloseSlide) -> None:
        for worker in self._workers.values():
            if worker.role == "loader":
                self._tell(worker.name, messages.CloseSlide(*order.slide))
        slide = self._slide_report(order.slide)
        opened = self._opened_at.pop(order.slide, None)
        if opened is not None:
            slide.seconds = round(time.monotonic() - opened, 3)
            self._progress.slide_done()

    def _ask_finished(self, order: AskFinished) -> None:
        self._tell(order.collector, messages.AskFinished(order.patient, self._refs[order.patient], order.windows_done))

    def _seal(self, order: Seal) -> None:
        self._tell(order.writer, messages.SealPatient(order.patient))

    def _publish(self, order: Publish) -> None:
        failed = self._scheduler.has_failed(order.patient)
        message = messages.PublishPatient(order.patient, self._refs[order.patient], order.stop, failed, failed)
        self._tell(order.publisher, message)

    def _finished_patient(self, order: Finished) -> None:
        report = self._reports[order.patient]
        if order.failed and report.state != "partial":
            report.state = "failed"
        if self._job.writing.output.one_file:
            self._sealed.append(report.id)
            if order.stop is not None:
                self._stops[report.id] = order.stop
        for slide in report.slides:
            if slide.state == "failed":
                slide.failed = max(0, (slide.expected or 0) - slide.written - slide.none - slide.skipped)
            else:
                slide.state = "done"
        del self._refs[order.patient], self._writer_of[order.patient]
        for number in range(len(report.slides)):
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
        if not self._sealed or (self._report_failed() and not self._job.writing.output.publish_partial):
            self._all_published = True
            return
        publisher = next((w for w in self._workers.values() if w.role == "publisher" and w.ready), None)
        if publisher is None or publisher.name == getattr(self, "_publishing_all", None):
            return
        self._publishing_all = publisher.name
        in_order = tuple(report.id for report in self._reports.values() if report.id in set(self._sealed))
        order = messages.PublishAll(in_order, self._stops, self._report_failed())
        self._tell(publisher.name, order)

    # ---- messages

    def _handle(self, name: str, message: Any) -> None:
        worker = self._workers.get(name)
        if worker is None:
            return  # it was replaced; nothing it held counts any more
        self._heard_at[worker.role] = time.monotonic()
        handler = self._MESSAGES.get(type(message))
        if handler is not None:
            handler(self, worker, message)
        if isinstance(clock := getattr(message, "clock", None), Clock):
            self._clocks[worker.role][name] = clock

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
                self._tell(worker.name, messages.RecordSlide(self._resolved[key]))
            elif number in known:
                committed = message.committed.get(number, [])
                self._journaled[key] = (known[number], len(committed), message.counts.get(number, (0, 0, 0)))
        self._scheduler.patient_opened(patient, message.committed)

    def _slide_resolved(self, worker: Worker, message: messages.SlideResolved) -> None:
        slide = message.slide
        key = (slide.patient, slide.slide)
        report = self._slide_report(key)
        before, committed, counts = self._journaled.get(key, (None, 0, (0, 0, 0)))
        if before is not None and committed:
            if (difference := _difference(before, slide)) is not None:
                self._failure = OutputError(
                    f"slide {slide.id!r} of patient {slide.patient_id!r} is not what {self._folder.layout.folder} was begun "
                    f"with: {difference}; choose another folder, or pass overwrite to start afresh"
                )
                return
            slide = msgspec.structs.replace(slide, block=before.block)
            report.written, report.none, report.skipped = counts
        self._resolved[key] = slide
        report.reader, report.level, report.resampled_px = slide.info.reader, slide.level, slide.resampled_px
        report.expected = len(slide.grid())
        if not report.expected:
            self._warn(f"slide {slide.id!r} is smaller than the window: border 'crop' gives it none")
        if slide.resampled_px:
            self._warn(f"slide {slide.id!r}: regions of level {slide.level} are shifted by up to {slide.resampled_px:.3f} px")
        if (writer := self._writer_of.get(slide.patient)) is not None:
            self._tell(writer, messages.RecordSlide(slide))
        self._progress.slide_opened(report.expected, sum(counts) if committed else 0)
        self._scheduler.slide_resolved(key, slide.chunks())

    def _slide_failed(self, worker: Worker, message: messages.SlideFailed) -> None:
        self._fail_slide((message.patient, message.slide), message.reason)
        self._scheduler.slide_failed((message.patient, message.slide))

    def _chunk_read(self, worker: Worker, message: messages.ChunkRead) -> None:
        self._scheduler.chunk_read(message.lease)

    def _chunk_failed(self, worker: Worker, message: messages.ChunkFailed) -> None:
        key = self._scheduler.chunk_failed(message.lease)
        if key is not None:
            self._fail_slide(key, message.reason)

    def _chunk_collected(self, worker: Worker, message: messages.ChunkCollected) -> None:
        if message.values is None or self._same_values(message.values):
            self._scheduler.chunk_collected(message.lease)

    def _chunks_committed(self, worker: Worker, message: messages.ChunksCommitted) -> None:
        done = 0
        for lease, counts in zip(message.leases, message.counts, strict=True):
            key = self._scheduler.chunk_committed(lease)
            if key is not None:
                slide = self._slide_report(key)
                slide.written += counts[0]
                slide.none += counts[1]
                slide.skipped += counts[2]
                done += sum(counts)
        self._report.windows += done
        self._progress.windows_done(done)

    def _finished_answer(self, worker: Worker, message: messages.FinishedAnswer) -> None:
        self._scheduler.finished_answered(message.patient, message.windows_done, message.finished)

    def _patient_sealed(self, worker: Worker, message: messages.PatientSealed) -> None:
        self._scheduler.patient_sealed(message.patient)

    def _patient_published(self, worker: Worker, message: messages.PatientPublished) -> None:
        report = self._reports[message.patient]
        failed = self._scheduler.has_failed(message.patient)
        report.state, report.file = "partial" if failed else "done", message.file
        for counts in message.slides:
            slide = report.slides[counts.slide]
            slide.written, slide.none = counts.written, counts.none
            slide.skipped, slide.stopped = counts.skipped, counts.stopped
        if message.result is not None:
            self._report.results[report.id] = decode_result(message.result)
        self._scheduler.patient_published(message.patient)

    def _all_files_published(self, worker: Worker, message: messages.AllPublished) -> None:
        self._all_published = True
        sealed = set(self._sealed)
        for report in self._reports.values():
            if report.id in sealed:
                report.state = "done" if report.state == "unfinished" else report.state
                report.file = message.file

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
        messages.ChunkRead: _chunk_read,
        messages.ChunkFailed: _chunk_failed,
        messages.ChunkCollected: _chunk_collected,
        messages.ChunksCommitted: _chunks_committed,
        messages.FinishedAnswer: _finished_answer,
        messages.PatientSealed: _patient_sealed,
        messages.PatientPublished: _patient_published,
        messages.AllPublished: _all_files_published,
        messages.WorkerFailed: _worker_failed,
    }

    # ---- what is known

    def _limits(self) -> Limits:
        execution = self._job.execution
        return Limits(
            loader_credits=execution.loader_credits,
            collector_credits=execution.collector_credits,
            writer_credits=execution.writer_credits,
        )

    def _patients_to_do(self) -> list[int]:
        """Patients that no earlier run has finished; the others are reported as they were."""
        todo = []
        layout = self._folder.layout
        for number, patient in enumerate(self._job.dataset):
            slides = [SlideReport(id=slide.id, path=str(slide.path)) for slide in patient.slides]
            report = self._reports[number] = PatientReport(id=patient.id, slides=slides)
            record = read_record(layout, patient.id)
            if record is None:
                todo.append(number)
                continue
            report.state, report.file = "already done", record.file
            remove_journal(layout.journal(patient.id))  # a kill may have come between its record and its journal's end
            for slide, published in zip(slides, record.slides, strict=False):
                slide.state, slide.expected = "done", len(published.resolved.grid())
                slide.reader, slide.level = published.resolved.info.reader, published.resolved.level
                slide.written, slide.none = published.written, published.none
                slide.skipped, slide.stopped = published.skipped, published.stopped
            if self._job.gathers:
                self._report.results[patient.id] = decode_result(layout.result_file(patient.id).read_bytes())
        return todo

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

    def _slide_report(self, key: SlideKey) -> SlideReport:
        return self._reports[key[0]].slides[key[1]]

    def _fail_slide(self, key: SlideKey, reason: str) -> None:
        slide = self._slide_report(key)
        if slide.state != "failed":
            slide.state, slide.reason = "failed", reason
            self._warn(f"slide {slide.id!r} of patient {self._reports[key[0]].id!r} failed: {reason}", keep=False)

    def _warn(self, text: str, keep: bool = True) -> None:
        if keep:
            self._report.warnings.append(text)
        self._progress.say(f"warning: {text}")

    def _report_failed(self) -> bool:
        return any(slide.state == "failed" for report in self._reports.values() for slide in report.slides)

    def _finish_report(self) -> None:
        report = self._report
        report.patients = list(self._reports.values())
        report.windows_per_second = round(report.windows / report.seconds, 1) if report.seconds else 0.0
        execution = self._job.execution
        workers = {
            "loader": execution.loaders,
            "collector": execution.collectors,
            "writer": execution.writers,
            "publisher": 1,
        }
        report.set_clocks({stage: clocks for stage, clocks in self._clocks.items() if clocks}, workers)
        if self._failure is not None:
            report.state, report.error = "broken off", str(self._failure).splitlines()[0]
        elif self._signal is not None:
            report.state = "interrupted"
        elif self._report_failed():
            report.state = "some slides failed"
        try:
            write_whole(self._folder.layout.report_file, report.to_json())
        except OSError as error:
            if self._failure is None:
                self._failure = RunError(f"{self._folder.layout.report_file} cannot be written: {error}")
        if report.state in ("done", "some slides failed"):
            self._folder.remove_empty_folders()


def _difference(before: ResolvedSlide, now: ResolvedSlide) -> str | None:
    """What differs in what a slide was resolved to, in words; None where nothing that matters does."""
    for name in ("id", "fingerprint", "level", "extent", "kernel", "stride", "border"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            return f"its {name} was {old!r} and is {new!r}"
    return None
