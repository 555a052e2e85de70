from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamwsi.chunks import Status
from streamwsi.errors import OutputError
from streamwsi.pipeline.report import SlideReport
from streamwsi.values import ValueSpec
from streamwsi.writing.outcome import Outcome, PatientOutcome, read_outcome
from tests.writing.fabricate import resolved_slide, write_patient
from tests.writing.fabricate_run import set_begun_again, write_report, write_run

PATIENTS = {
    "whole": {"s": "/slides/w.svs"},
    "bad": {"a": "/slides/a.svs", "b": "/slides/b.svs"},
    "later": {"l": "/slides/l.svs"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A patient is whole, one has failed with one of two slides, and one was not begun."""
    write_run(tmp_path, PATIENTS, ValueSpec("float64", ()))
    status = np.zeros(35, np.uint8)
    status[[3, 4]] = Status.NONE
    status[7] = Status.SKIPPED
    status[30:] = Status.SKIPPED
    write_patient(tmp_path, [resolved_slide(patient="whole", path="/slides/w.svs")], [np.arange(35.0)], [status])
    return tmp_path


def report_failure(folder: Path, **fields: object) -> None:
    write_report(
        folder,
        [
            ("whole", SlideReport(id="s", path="/slides/w.svs", state="done", seconds=1.5, expected=1)),
            ("bad", SlideReport(id="a", path="/slides/a.svs", state="done", expected=35, written=35)),
            ("bad", SlideReport(id="b", path="/slides/b.svs", state="failed", reason="it is torn", expected=20, failed=20)),
            ("later", SlideReport(id="l", path="/slides/l.svs")),
        ],
        **fields,
    )


def patients_of(outcome: Outcome) -> dict[str, PatientOutcome]:
    return {patient.id: patient for patient in outcome.patients}


def test_records_say_what_is_finished_and_the_report_the_rest(folder: Path) -> None:
    report_failure(folder, state="some slides failed", seconds=3.0, windows=62, limiting_stage="collector")
    outcome = read_outcome(folder)
    found = patients_of(outcome)
    assert list(found) == list(PATIENTS)
    assert [found[name].state for name in PATIENTS] == ["done", "failed", "unfinished"]
    (whole,) = found["whole"].slides
    assert (whole.state, whole.expected, whole.written, whole.none, whole.skipped) == ("done", 35, 27, 2, 6)
    assert (whole.seconds, found["whole"].file) == (1.5, "whole.h5")
    first, second = found["bad"].slides
    assert (first.state, first.reason) == (
        "unfinished",
        "it is done, but in no file yet: another slide of its patient has failed",
    )
    assert (second.state, second.reason, second.failed, second.path) == ("failed", "it is torn", 20, "/slides/b.svs")
    assert outcome.last_run is not None
    assert (outcome.last_run.windows, outcome.last_run.limiting_stage) == (62, "collector")


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("interrupted", "the run was interrupted"),
        ("broken off", "the run was broken off: ValueError: no"),
        ("done", "the last run was not asked for it"),
    ],
)
def test_the_report_says_why_a_slide_is_not_finished(folder: Path, state: str, says: str) -> None:
    report_failure(folder, state=state, error="ValueError: no")
    (slide,) = patients_of(read_outcome(folder))["later"].slides
    assert slide.state == "unfinished"
    assert slide.reason is not None and says in slide.reason


def test_a_run_that_has_not_ended_is_called_so(folder: Path) -> None:
    outcome = read_outcome(folder)
    assert outcome.last_run is None
    assert patients_of(outcome)["whole"].state == "done"
    (slide,) = patients_of(outcome)["later"].slides
    assert slide.reason == "the last run has not ended: it is under way, or was killed"
    report_failure(folder, state="interrupted")
    set_begun_again(folder)
    (slide,) = patients_of(read_outcome(folder))["later"].slides
    assert slide.reason == "the last run has not ended: it is under way, or was killed"


def test_a_partial_file_holds_the_slides_that_are_good(folder: Path) -> None:
    report_failure(folder, state="some slides failed")
    write_patient(folder, [resolved_slide(patient="bad", id="a", path="/slides/a.svs")], [np.arange(35.0)], partial=True)
    bad = patients_of(read_outcome(folder))["bad"]
    assert (bad.state, bad.file) == ("partial", "bad.partial.h5")
    assert [slide.state for slide in bad.slides] == ["done", "failed"]


def test_a_slide_behind_the_place_where_its_patient_was_stopped_is_not_missed(tmp_path: Path) -> None:
    write_run(tmp_path, {"p1": {"s": "/s.svs", "t": "/t.svs"}})
    write_patient(tmp_path, [resolved_slide(path="/s.svs")], [np.arange(35.0)])
    (patient,) = read_outcome(tmp_path).patients
    assert (patient.state, [slide.state for slide in patient.slides]) == ("done", ["done", "stopped"])


def test_a_folder_without_a_run_or_with_a_damaged_report_is_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError, match=r"holds no run of streamwsi: there is no run\.json"):
        read_outcome(tmp_path / "empty")
    (folder / "report.json").write_text('{"state": 3}')
    with pytest.raises(OutputError, match=r"report\.json is damaged"):
        read_outcome(folder)
