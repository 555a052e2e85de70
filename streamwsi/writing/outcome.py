"""What has become of a run's patients and slides, as its folder tells.

In: an output folder.  Out: the state and the counts of every slide.  Goes by the records of what was published, and for the
rest by the report of the last run that ended; never opens a journal, a patient's file or a slide, and changes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from streamwsi.config import OutputOptions
from streamwsi.errors import OutputError
from streamwsi.values import ValueSpec
from streamwsi.writing.layout import Layout
from streamwsi.writing.publish import PublishedPatient, PublishedSlide, read_record
from streamwsi.writing.run_file import RunFile

SlideState = Literal["done", "failed", "stopped", "unfinished"]
PatientState = Literal["done", "partial", "failed", "unfinished"]
_NOT_ENDED = "the last run has not ended: it is under way, or was killed"


class SlideOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of one slide."""

    id: str
    path: str
    """Where it lay."""
    state: SlideState
    """``stopped``: not looked at, for ``is_finished`` had stopped its patient before."""
    reason: str | None = None
    """Why it failed, or is not finished."""
    expected: int | None = None
    """Windows of its plan; None where that is not known."""
    written: int = 0
    none: int = 0
    skipped: int = 0
    stopped: int = 0
    failed: int = 0
    """Windows without a status, for the slide has failed."""
    seconds: float | None = None
    """From its opening to its last commit, in the last run; None where that had nothing to do with it."""


class PatientOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of one patient."""

    id: str
    state: PatientState
    file: str | None
    """Name of its file in the folder, where there is one."""
    slides: list[SlideOutcome]


class LastRun(msgspec.Struct, frozen=True, kw_only=True):
    """How the last run on the folder went, as its report has it."""

    state: str
    seconds: float
    windows: int
    """Windows committed in it."""
    windows_per_second: float
    limiting_stage: str | None = None
    restarts: int = 0
    error: str | None = None
    warnings: list[str] = []


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of all that a folder was asked for."""

    folder: str
    collector: str
    collector_mode: str
    format: str
    values: ValueSpec | None
    """dtype, shape and columns of the values, once there is one."""
    last_run: LastRun | None
    """None where none has ended."""
    patients: list[PatientOutcome]
    """In the order of the dataset."""


class _ReportedPatient(msgspec.Struct):
    """The part of a report on a patient that is needed here."""

    id: str
    slides: list[SlideOutcome] = []


class _Report(LastRun, frozen=True, kw_only=True):
    """The part of ``report.json`` that is needed here."""

    patients: list[_ReportedPatient] = []


def read_outcome(folder: str | os.PathLike[str]) -> Outcome:
    """What has become of each patient of the run in `folder`; OutputError when it holds none, or its files are damaged."""
    layout = Layout.of(OutputOptions(folder=os.fspath(folder), format="csv"))
    run = RunFile.read(layout)
    if run is None:
        raise OutputError(f"{layout.folder} holds no run of streamwsi: there is no {layout.run_file.name} in it")
    report = _read_report(layout)
    why = _why_unfinished(layout, report)
    reported = {patient.id: patient.slides for patient in report.patients} if report else {}
    last = None
    if report is not None:
        last = LastRun(**{name: getattr(report, name) for name in LastRun.__struct_fields__})
    return Outcome(
        folder=str(layout.folder),
        collector=run.defining.collector,
        collector_mode=run.defining.collector_mode,
        format=run.defining.format,
        values=run.values,
        last_run=last,
        patients=[
            _patient(layout, patient_id, slides, {slide.id: slide for slide in reported.get(patient_id, [])}, why)
            for patient_id, slides in run.patients.items()
        ],
    )


def _patient(
    layout: Layout, patient_id: str, paths: dict[str, str], reported: dict[str, SlideOutcome], why: str
) -> PatientOutcome:
    whole = read_record(layout, patient_id)
    record = whole or read_record(layout, patient_id, partial=True)
    published = {slide.resolved.id: slide for slide in record.slides} if record else {}
    if any(slide.state == "failed" for slide in reported.values()):
        why = "another slide of its patient has failed"
    slides = [
        _published(path, published[slide], reported.get(slide))
        if slide in published
        else _other(slide, path, reported.get(slide), stopped=whole is not None, why=why)
        for slide, path in paths.items()
    ]
    return PatientOutcome(
        id=patient_id, state=_state(whole, record, slides), file=record.file if record else None, slides=slides
    )


def _state(whole: PublishedPatient | None, record: PublishedPatient | None, slides: list[SlideOutcome]) -> PatientState:
    if whole is not None:
        return "done"
    if record is not None:
        return "partial"
    return "failed" if any(slide.state == "failed" for slide in slides) else "unfinished"


def _published(path: str, slide: PublishedSlide, reported: SlideOutcome | None) -> SlideOutcome:
    return SlideOutcome(
        id=slide.resolved.id,
        path=path,
        state="done",
        expected=len(slide.resolved.plan()),
        written=slide.written,
        none=slide.none,
        skipped=slide.skipped,
        stopped=slide.stopped,
        seconds=reported.seconds if reported else None,
    )


def _other(slide: str, path: str, reported: SlideOutcome | None, stopped: bool, why: str) -> SlideOutcome:
    """A slide that is in no file; `stopped`: its patient's is there."""
    found = reported or SlideOutcome(id=slide, path=path, state="unfinished")
    if stopped:
        return msgspec.structs.replace(found, path=path, state="stopped")
    if found.state == "failed":
        return msgspec.structs.replace(found, path=path)
    # a slide that is done itself is committed; it is in no file because of others
    reason = f"it is done, but in no file yet: {why}" if found.state == "done" else why
    return msgspec.structs.replace(found, path=path, state="unfinished", reason=reason)


def _read_report(layout: Layout) -> _Report | None:
    try:
        return msgspec.json.decode(layout.report_file.read_bytes(), type=_Report)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise OutputError(f"{layout.report_file} is damaged: {error}; remove it, or run the same command again") from error


def _why_unfinished(layout: Layout, report: _Report | None) -> str:
    # run.json is written when a run begins, the report when it ends
    if report is None or _written_ns(layout.report_file) < _written_ns(layout.run_file):
        return _NOT_ENDED
    if report.state == "interrupted":
        return "the run was interrupted; the same command goes on"
    if report.state == "broken off":
        return f"the run was broken off: {report.error}"
    return "the last run was not asked for it"


def _written_ns(path: Path) -> int:
    return path.stat().st_mtime_ns
