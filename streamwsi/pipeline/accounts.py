"""What is known of the patients, the slides and the time of a run; at the end, its report.

In: what happened, as the driver hears it.  Out: a Report.  Decides nothing, speaks to no worker.
"""

from __future__ import annotations

from streamwsi._version import __version__
from streamwsi.config import Execution
from streamwsi.dataset import Dataset
from streamwsi.errors import RunError
from streamwsi.pipeline.child import ROLES, Role
from streamwsi.pipeline.decisions import OPENING, SlideKey
from streamwsi.pipeline.folder import OutputFolder
from streamwsi.pipeline.progress import Progress
from streamwsi.pipeline.report import PatientReport, Report, SlideReport
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import decode_result
from streamwsi.wire import messages
from streamwsi.wire.messages import Clock
from streamwsi.writing.journal import remove_journal
from streamwsi.writing.layout import write_whole
from streamwsi.writing.publish import PublishedSlide, read_record

Counts = tuple[int, int, int]
"""Windows written, none, skipped."""


class Accounts:
    """The books of one collector in one run."""

    def __init__(
        self, dataset: Dataset, folder: OutputFolder, gathers: bool, progress: Progress, name: str | None = None
    ) -> None:
        self._folder = folder
        self._gathers = gathers
        self._progress = progress
        self._prefix = "" if name is None else f"{name}: "
        self._dataset = dataset
        self._patients: dict[int, PatientReport] = {}
        self._clocks: dict[Role, dict[str, Clock]] = {role: {} for role in ROLES}
        self.report = Report(streamwsi_version=__version__, warnings=list(folder.warnings))
        self.todo = frozenset(self._find_patients_to_do())
        """Places in the dataset of the patients that no earlier run has finished."""
        progress.add_slides(sum(len(dataset[number].slides) for number in self.todo))
        for warning in self.report.warnings:
            progress.say(f"{self._prefix}warning: {warning}")

    def patient(self, number: int) -> PatientReport:
        """The report on a patient."""
        return self._patients[number]

    def slide(self, key: SlideKey) -> SlideReport:
        """The report on a slide."""
        return self._patients[key[0]].slides[key[1]]

    @property
    def any_failed(self) -> bool:
        """Whether any slide has failed."""
        return any(slide.state == "failed" for patient in self._patients.values() for slide in patient.slides)

    # ---- what happened

    def slide_resolved(self, key: SlideKey, resolved: ResolvedSlide, before: Counts | None) -> None:
        """A slide was opened; `before` are the counts of its windows that earlier runs have committed."""
        slide = self.slide(key)
        if before is not None:
            slide.written, slide.none, slide.skipped = before
        slide.reader, slide.level, slide.resampled_px = resolved.info.reader, resolved.level, resolved.resampled_px
        slide.reader_reason = resolved.info.reader_reason
        slide.expected = len(resolved.plan())
        if not slide.expected:
            why = "it is smaller than the window: border 'crop' gives it none"
            self.warn(f"slide {slide.id!r} has no windows: {why if resolved.sample is None else 'the sampler chooses none'}")
        if resolved.resampled_px:
            self.warn(
                f"slide {slide.id!r}: regions of level {resolved.level} are shifted by up to {resolved.resampled_px:.3f} px"
            )
        self._progress.slide_opened(slide.expected, sum(before or ()))

    def slide_failed(self, key: SlideKey, reason: str) -> None:
        """A slide has failed; the first reason counts."""
        slide = self.slide(key)
        if slide.state != "failed":
            slide.state, slide.reason = "failed", reason
            self.warn(f"slide {slide.id!r} of patient {self._patients[key[0]].id!r} failed: {reason}", keep=False)

    def slide_done(self, key: SlideKey, seconds: float) -> None:
        """Nothing more is to be done of a slide."""
        self.slide(key).seconds = round(seconds, 3)
        self._progress.slide_done()

    def committed(self, key: SlideKey, counts: Counts) -> None:
        """A chunk was committed."""
        slide = self.slide(key)
        slide.written += counts[0]
        slide.none += counts[1]
        slide.skipped += counts[2]
        self.report.windows += sum(counts)
        self._progress.windows_done(sum(counts))

    def counted_again(self, key: SlideKey, counts: Counts) -> None:
        """What the journal holds of a slide, after its writer has died, maybe between a commit and its word of it."""
        slide = self.slide(key)
        more = sum(counts) - slide.written - slide.none - slide.skipped
        slide.written, slide.none, slide.skipped = counts
        self.report.windows += more
        self._progress.windows_done(more)

    def tiles_decoded(self, key: SlideKey, decoded: int, distinct: int) -> None:
        """What the loaders have decoded of a slide that they have closed."""
        slide = self.slide(key)
        slide.tiles_decoded, slide.tiles_distinct = decoded, distinct

    def tiles_shifted(self, key: SlideKey, shifted_px: float) -> None:
        """What a loader says of tiles that it has not decoded itself."""
        slide = self.slide(key)
        if shifted_px > slide.resampled_px:
            slide.resampled_px = shifted_px
            self.warn(f"slide {slide.id!r}: tiles that could not be decoded directly are shifted by up to {shifted_px:.3f} px")

    def published(self, message: messages.PatientPublished, partial: bool) -> None:
        """A patient's file has its final name."""
        patient = self._patients[message.patient]
        patient.state, patient.file = "partial" if partial else "done", message.file
        for counts in message.slides:
            _count_as_published(patient.slides[counts.slide], counts)
        if self._gathers:  # read, not sent: it may be larger than a message
            self.report.results[patient.id] = decode_result(self._folder.layout.result_file(patient.id, partial).read_bytes())

    def all_published(self, file: str, patient_ids: set[str]) -> None:
        """The file of all patients has its final name."""
        for patient in self._patients.values():
            if patient.id in patient_ids:
                patient.state = "done" if patient.state == "unfinished" else patient.state
                patient.file = file
                record = read_record(self._folder.layout, patient.id, partial=self.any_failed)
                for published in [] if record is None else record.slides:
                    _count_as_published(patient.slides[published.resolved.slide], published)

    def patient_finished(self, number: int, failed: bool) -> None:
        """A patient is done with: published, or given up because slides of it have failed."""
        patient = self._patients[number]
        if failed and patient.state != "partial":
            patient.state = "failed"
        for slide in patient.slides:
            left = max(0, (slide.expected or 0) - slide.written - slide.none - slide.skipped)
            if slide.state == "failed":
                slide.failed = left
            else:
                slide.state = "done"
                if failed and patient.state == "failed":  # no publication says how many of them is_finished has spared
                    slide.stopped = left

    def clock(self, role: Role, worker: str, clock: Clock) -> None:
        """Where a worker's time has gone so far."""
        self._clocks[role][worker] = clock

    def warn(self, text: str, keep: bool = True) -> None:
        """Say it, and keep it in the report."""
        if keep:
            self.report.warnings.append(text)
        self._progress.say(f"{self._prefix}warning: {text}")

    @staticmethod
    def chunk_name(chunk: int, resolved: ResolvedSlide | None) -> str:
        """A chunk as a person finds it: where its windows lie."""
        if chunk == OPENING or resolved is None:
            return "its opening"
        windows = resolved.plan().windows(resolved.chunks().indices(chunk))
        (left, top), (right, bottom) = windows.xy[0].tolist(), windows.xy[-1].tolist()
        return f"chunk {chunk} ({len(windows)} windows at level-0 ({left}, {top}) to ({right}, {bottom}))"

    # ---- its end

    def refused(self, by_driver: int) -> None:
        """How many messages the driver's sockets have refused; the workers' come with their clocks."""
        clocks = [clock for of_role in self._clocks.values() for clock in of_role.values()]
        self.report.refused_messages = by_driver + sum(clock.refused for clock in clocks)

    def close(
        self, execution: Execution, seconds: float, failure: BaseException | None, interrupted: bool
    ) -> BaseException | None:
        """Finish the report and write it. Returns `failure`, or what keeps the report from being written."""
        report = self.report
        report.seconds = round(seconds, 3)
        report.patients = list(self._patients.values())
        report.windows_per_second = round(report.windows / report.seconds, 1) if report.seconds else 0.0
        workers = {
            "loader": execution.loaders,
            "collector": execution.collectors,
            "writer": execution.writers,
            "publisher": 1,
        }
        report.set_clocks({stage: clocks for stage, clocks in self._clocks.items() if clocks}, workers)
        if failure is not None:
            report.state, report.error = "broken off", next(iter(str(failure).splitlines()), type(failure).__name__)
        elif interrupted:
            report.state = "interrupted"
        elif self.any_failed:
            report.state = "some slides failed"
        try:
            write_whole(self._folder.layout.report_file, report.to_json())
        except OSError as error:
            failure = failure or RunError(f"{self._folder.layout.report_file} cannot be written: {error}")
        if report.state in ("done", "some slides failed"):
            self._folder.remove_empty_folders()
        return failure

    def _find_patients_to_do(self) -> list[int]:
        """Patients that no earlier run has finished; the others are reported as they were."""
        todo = []
        layout = self._folder.layout
        for number, patient in enumerate(self._dataset):
            slides = [SlideReport(id=slide.id, path=str(slide.path)) for slide in patient.slides]
            report = self._patients[number] = PatientReport(id=patient.id, slides=slides)
            record = read_record(layout, patient.id)
            if record is None:
                todo.append(number)
                continue
            report.state, report.file = "already done", record.file
            remove_journal(layout.journal(patient.id))  # a kill may have come between its record and its journal's end
            for slide, published in zip(slides, record.slides, strict=False):
                slide.state, slide.expected = "done", len(published.resolved.plan())
                slide.reader, slide.level = published.resolved.info.reader, published.resolved.level
                _count_as_published(slide, published)
            if self._gathers:
                self.report.results[patient.id] = decode_result(layout.result_file(patient.id).read_bytes())
        return todo


def _count_as_published(slide: SlideReport, counts: messages.SlideCounts | PublishedSlide) -> None:
    slide.written, slide.none = counts.written, counts.none
    slide.skipped, slide.stopped = counts.skipped, counts.stopped
