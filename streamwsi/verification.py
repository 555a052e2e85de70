"""Check that everything a run should have written is there, whole and in its place.

In: an output folder.  Out: a verdict on each patient.  Trusts nothing but what the run was asked and resolved: the windows of
each slide are computed again from that. Changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from streamwsi.config import OutputOptions
from streamwsi.errors import MapError, OutputError
from streamwsi.geometry import Int64Array
from streamwsi.loading.fingerprint import fingerprint
from streamwsi.maps.pieces import read_pieces
from streamwsi.writing.layout import SUFFIXES, Layout, run_folders
from streamwsi.writing.manifest import windows_in
from streamwsi.writing.map_check import map_problems
from streamwsi.writing.patch_check import folder_problems
from streamwsi.writing.publish import PublishedPatient, PublishedSlide, checksum_of, read_record
from streamwsi.writing.run_file import RunFile


@dataclass
class Verdict:
    """What was found of one patient."""

    patient: str
    """The patient's id."""
    collector: str = ""
    """The name of its collector, where the run has several."""
    file: str | None = None
    """Name of its file, or of its folder of images or maps; None where it has none."""
    slides: int = 0
    """How many slides it has."""
    expected: int = 0
    """Windows of their plans."""
    written: int = 0
    """Of these, those that have a row in the file."""
    none: int = 0
    """Those for which the collector gave nothing."""
    skipped: int = 0
    """Those whose pixels could not be read."""
    stopped: int = 0
    """Those behind the place where the patient was stopped."""
    problems: list[str] = field(default_factory=list)
    """What is wrong; empty: everything is there."""
    unchecked: list[str] = field(default_factory=list)
    """What could not be checked, and why."""


def verify(folder: str | os.PathLike[str]) -> list[Verdict]:
    """A verdict on each patient of a run, in the order of its dataset; of each collector, where it has several.

    A file is read to its end, as is every image and map; sizes and checksums are compared with those at publication; the
    windows with those that the plan has: their number, order, coordinates, each exactly once with one status. Slides that are
    at hand are compared with what they were.

    Raises OutputError when the folder holds no run.
    """
    folders = run_folders(Path(folder))
    if not folders:
        raise OutputError(f"{folder} holds no run of streamwsi: there is no run.json in it")
    return [verdict for name, path in folders.items() for verdict in _verify_run(path, name)]


def _verify_run(folder: Path, collector: str) -> list[Verdict]:
    run = RunFile.read(Layout.of(OutputOptions(folder=str(folder), format="csv")))
    if run is None:
        raise OutputError(f"{folder} holds no run of streamwsi any more")
    layout = replace(Layout.of(OutputOptions(folder=str(folder), format="csv")), suffix=SUFFIXES[run.defining.format])
    checked: dict[str, list[str]] = {}
    verdicts = [_verify_patient(layout, run, patient_id, slides, checked) for patient_id, slides in run.patients.items()]
    return [replace(verdict, collector=collector) for verdict in verdicts]


def _verify_patient(
    layout: Layout, run: RunFile, patient_id: str, slides: dict[str, str], checked: dict[str, list[str]]
) -> Verdict:
    verdict = Verdict(patient_id)
    record = read_record(layout, patient_id)
    if record is None:
        partial = layout.final_file(patient_id, partial=True)
        verdict.problems.append("not finished" + (f"; only {partial.name} is there" if partial.exists() else ""))
        return verdict
    verdict.file, verdict.slides = record.file, len(record.slides)
    if record.file not in checked:  # one file may hold many patients
        checked[record.file] = list(_problems_of(layout.folder / record.file, record, run))
    verdict.problems += checked[record.file]
    named = [slide.resolved.id for slide in record.slides]
    if named != list(slides):
        verdict.problems.append(f"slides {named} were published, the run has {list(slides)}")
    for slide in record.slides:
        _verify_statuses(slide, verdict)
        if run.defining.collector_mode == "stream" and record.maps is None and not verdict.problems:
            _verify_rows(layout.folder / record.file, patient_id, slide, verdict)
        _verify_source(slide, slides.get(slide.resolved.id, slide.resolved.path), verdict)
    return verdict


def _problems_of(path: Path, record: PublishedPatient, run: RunFile) -> Iterable[str]:
    if record.maps is not None:
        return map_problems(path, record, int(run.defining.maps["reduction"]))
    return _file_problems(path, record) if record.images is None else folder_problems(path, record)


def _file_problems(path: Path, record: PublishedPatient) -> list[str]:
    size = path.stat().st_size
    if size != record.size_bytes:
        return [f"{path.name} has {size} bytes, at publication it had {record.size_bytes}"]
    if checksum_of(path) != record.checksum:
        return [f"{path.name} has changed since its publication: its checksum differs"]
    return []


def _verify_statuses(slide: PublishedSlide, verdict: Verdict) -> None:
    """Every window has exactly one status."""
    expected = len(slide.resolved.plan())
    counts = {"written": slide.written, "none": slide.none, "skipped": slide.skipped, "stopped": slide.stopped}
    for name, count in counts.items():
        setattr(verdict, name, getattr(verdict, name) + count)
    verdict.expected += expected
    if sum(counts.values()) != expected:
        verdict.problems.append(f"slide {slide.resolved.id!r}: {counts} do not add up to the {expected} windows of its plan")


def _verify_rows(path: Path, patient_id: str, slide: PublishedSlide, verdict: Verdict) -> None:
    """The rows of a file are the written windows of the plan, in order, and no others."""
    name = slide.resolved.id
    try:
        rows = windows_in(path, name) if path.is_dir() else _windows_of_pieces(path, name, patient_id)
    except (MapError, ValueError) as error:
        verdict.problems.append(str(error))
        return
    has_row = np.ones(len(slide.resolved.plan()), bool)
    for first, last, _ in slide.not_written:
        has_row[first : last + 1] = False
    expected = np.flatnonzero(has_row)
    index, coords, size = rows
    if not np.array_equal(index, expected):
        missing, strange = np.setdiff1d(expected, index), np.setdiff1d(index, expected)
        verdict.problems.append(
            f"slide {name!r}: "
            + (f"window {missing[0]} is missing" if len(missing) else f"window {strange[0]} should not have a row")
        )
    planned = slide.resolved.plan().windows(index)
    if not (np.array_equal(planned.xy, coords) and np.array_equal(planned.size, size)):
        verdict.problems.append(f"slide {name!r}: coordinates are not those of the plan")


def _windows_of_pieces(path: Path, slide: str, patient_id: str) -> tuple[Int64Array, Int64Array, Int64Array]:
    pieces = read_pieces(path, slide=slide, patient=patient_id)
    return pieces.index, pieces.coords, pieces.size


def _verify_source(slide: PublishedSlide, path: str, verdict: Verdict) -> None:
    """The slide is still what it was."""
    try:
        found = fingerprint(path)
    except OSError as error:
        verdict.unchecked.append(f"slide {slide.resolved.id!r} is not at hand ({error.strerror or error}): not compared")
        return
    if found != slide.resolved.fingerprint:
        verdict.problems.append(f"slide {slide.resolved.id!r} at {path} is not the one that was read: its content differs")


def as_table(verdicts: list[Verdict]) -> str:
    """The verdicts as a table, what is wrong and what was not checked below it."""
    heads = ("patient", "slides", "windows", "written", "none", "skipped", "stopped", "verdict")
    rows = [
        (_named(v), v.slides, v.expected, v.written, v.none, v.skipped, v.stopped, "WRONG" if v.problems else "ok")
        for v in verdicts
    ]
    texts = [heads, *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts]
    lines += [f"{_named(v)}: {problem}" for v in verdicts for problem in v.problems]
    lines += [f"{_named(v)}: not checked: {what}" for v in verdicts for what in v.unchecked]
    wrong = sum(1 for v in verdicts if v.problems)
    return "\n".join([*lines, f"{len(verdicts) - wrong} of {len(verdicts)} patients are whole"])


def _named(verdict: Verdict) -> str:
    return f"{verdict.collector}/{verdict.patient}" if verdict.collector else verdict.patient
