"""How runs end: teardown, signals that come late, what the report counts, results of any size, stages that stand still."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamwsi as sw
from streamwsi.pipeline import driver as driver_module
from streamwsi.pipeline import workforce as workforce_module
from streamwsi.pipeline.driver import Driver
from streamwsi.pipeline.processes import Worker
from streamwsi.pipeline.progress import Progress
from streamwsi.pipeline.stream_crew import Crew
from streamwsi.pipeline.workforce import StallWatch, Workforce
from streamwsi.wire import channels
from streamwsi.wire.messages import CloseSlide
from tests.helpers import BAD_TILE
from tests.pipeline.conftest import workers_of
from tests.pipeline.test_failures import wait_for
from tests.pipeline.test_results import run


class Ending(sw.MeanCollector):
    """Ends in one of several ways."""

    def __init__(self, how: str) -> None:
        self.how = how

    def teardown(self) -> None:
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "exits":
            os._exit(7)
        if self.how == "never":
            time.sleep(3600)


@pytest.mark.parametrize(("how", "what"), [("killed", "was killed by SIGKILL"), ("exits", "ended with exit code 7")])
def test_a_process_that_ends_in_teardown_without_saying_so_is_a_warning(
    one_patient: sw.Dataset, tmp_path: Path, how: str, what: str
) -> None:
    report = run(one_patient, tmp_path, Ending(how))
    assert report.exit_code == 0 and (tmp_path / "p.csv").exists()  # nothing of the results is in doubt
    (warning,) = report.warnings
    assert warning.startswith("collector 0 (pid ") and what in warning and "after all was done" in warning


def test_a_teardown_that_takes_too_long_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, one_patient: sw.Dataset, tmp_path: Path
) -> None:
    for module in (driver_module, workforce_module):
        monkeypatch.setattr(module, "STOP_TIMEOUT_S", 0.5)
    report = run(one_patient, tmp_path, Ending("never"))
    assert report.exit_code == 0
    assert [warning for warning in report.warnings if "collector 0 had not ended 0.5 s after it was told to" in warning]


def test_a_signal_that_comes_when_all_is_done_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, one_patient: sw.Dataset, tmp_path: Path
) -> None:
    stop = Workforce.stop

    def late(self: Workforce, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        stop(self, *arguments)

    monkeypatch.setattr(Workforce, "stop", late)
    assert run(one_patient, tmp_path).state == "done"


def test_what_a_handler_of_the_user_raises_stands_in_the_report(
    monkeypatch: pytest.MonkeyPatch, one_patient: sw.Dataset, tmp_path: Path
) -> None:
    def time_is_up(self: Driver) -> None:
        raise SystemExit(99)

    monkeypatch.setattr(Driver, "_check_signal", time_is_up)
    with pytest.raises(SystemExit):
        run(one_patient, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["state"], report["error"]) == ("broken off", "99")


class Few(sw.MeanCollector):
    def is_finished(self, patient: sw.Patient, windows_done: int) -> bool:
        return windows_done >= 20


@pytest.mark.parametrize("one_file", [True, False])
def test_the_report_counts_what_is_in_the_file_where_patients_were_stopped(
    three_patients: sw.Dataset, tmp_path: Path, one_file: bool
) -> None:
    options = {"one_file": one_file, "chunk_px": 4 * 256 * 256, "collectors": 2}
    report = run(three_patients, tmp_path, Few(), **options)
    for patient in report.patients:
        assert sum(slide.stopped for slide in patient.slides) > 0
        for slide in patient.slides:
            assert slide.written + slide.stopped == slide.expected
            if slide.written:
                path, owner = tmp_path / str(patient.file), patient.id if one_file else None
                assert len(sw.read_pieces(path, slide.id, owner).values) == slide.written
    again = run(three_patients, tmp_path, Few(), **options)
    assert [patient.state for patient in again.patients] == ["already done"] * 3
    assert again.stages == {}  # nothing was started for that
    written = [[slide.written for patient in report.patients for slide in patient.slides] for report in (report, again)]
    assert written[0] == written[1]


class Forty(sw.MeanCollector):
    def is_finished(self, patient: sw.Patient, windows_done: int) -> bool:
        return windows_done >= 40


@pytest.mark.parametrize("loader_credits", [1, 16])
def test_what_cannot_be_read_behind_the_place_where_a_patient_is_stopped_does_not_matter(
    shared_slides: Path, tmp_path: Path, loader_credits: int
) -> None:
    dataset = sw.Dataset([sw.Patient("p", {"s": shared_slides / BAD_TILE[0]})])
    options = {"kernel_size": 240, "chunk_px": 4 * 240 * 240, "loader_credits": loader_credits, "threads": 1}
    slide = run(dataset, tmp_path / "stopped", Forty(), **options).patients[0].slides[0]
    assert (slide.state, slide.written, slide.failed) == ("done", 40, 0)
    report = run(dataset, tmp_path / "whole", **options)
    assert report.exit_code == 1 and "1680" in (report.failed_slides[0].reason or "")


class Large(sw.StreamCollector):
    mode = "collect"

    def process(self, batch: sw.Batch) -> Any:
        return np.zeros(len(batch))

    def collate(self, patient: sw.Patient, pieces: Any) -> Any:
        return np.arange(1 << 18)


def test_a_result_may_be_larger_than_a_message(
    monkeypatch: pytest.MonkeyPatch, one_patient: sw.Dataset, tmp_path: Path
) -> None:
    monkeypatch.setattr(channels, "_CONTROL_MAX_BYTES", 1 << 20)  # of those that the driver takes
    report = run(one_patient, tmp_path, Large(), stall_timeout_s=20.0)
    np.testing.assert_array_equal(report.results["p"], np.arange(1 << 18))


# ---- stages that stand still


class Waiting:
    """A scheduler and a workforce of which all stages have something to do."""

    def waiting_for(self, role: str, branch: int) -> list[Any]:
        return [((0, 0), 0)]

    def of_role(self, role: str, branch: int) -> list[Worker]:
        return []


def test_a_stall_is_time_in_which_the_run_was_running(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(workforce_module.time, "monotonic", lambda: now[0])
    watch, world = StallWatch(8.0, 1), Waiting()

    def stalled_at(second: float) -> bool:
        now[0] = second
        return watch.stalled(world, world) is not None  # type: ignore[arg-type]

    assert not any(stalled_at(second) for second in (1.0, 2.5, 4.0))
    assert not stalled_at(3604.0)  # the driver stood still for an hour, and so may have all others
    assert not any(stalled_at(3604.0 + second) for second in (1.5, 3.0))
    assert any(stalled_at(3604.0 + second) for second in (4.5, 6.0))


# ---- who hears it


class Gone(io.StringIO):
    """A terminal that was closed."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("file", [Gone(), None])
def test_a_run_goes_on_that_nobody_looks_at_any_more(
    monkeypatch: pytest.MonkeyPatch, one_patient: sw.Dataset, tmp_path: Path, file: Gone | None
) -> None:
    monkeypatch.setattr("sys.stderr", file)
    loader = sw.SlidingWindowLoader(one_patient, 256)
    report = sw.Pipeline(loader, sw.MeanCollector(), sw.CSVStreamWriter(tmp_path)).run()
    progress = Progress()
    progress.add_slides(1)
    progress.slide_opened(10, 0)
    progress.windows_done(10)
    progress.say("done")
    progress.close()
    assert report.exit_code == 0


def test_a_stream_says_what_went_wrong_in_a_loader_that_has_ended_meanwhile(bundled: Path, tmp_path: Path) -> None:
    for name in "abcd":
        shutil.copy(bundled, tmp_path / f"{name}.svs")

    begun = tmp_path / "begun"

    def level(slide: sw.Slide) -> int:
        if slide.id == "b":
            wait_for(begun.exists)
            raise LookupError("nobody knows it")
        return 0

    loader = sw.SlidingWindowLoader(sw.Dataset.from_folder(tmp_path), 256, level=level)

    stream = sw.stream(loader, batch_size=8, threads=2, loaders=1, chunk_px=8 * 256 * 256, chunks_ahead=2)

    def use() -> None:
        for _ in stream:
            begun.touch()
            wait_for(lambda: not workers_of(os.getpid(), "loader"))

    with pytest.raises(sw.CollectorError, match="nobody knows it"):
        use()
    assert stream.report.restarts == 0


def test_a_stream_closes_slides_that_are_open_and_of_no_use(monkeypatch: pytest.MonkeyPatch, bundled: Path) -> None:
    told: list[Any] = []
    tell_all = Crew.tell_all

    def noted(self: Crew, message: Any) -> None:
        told.append(message)
        tell_all(self, message)

    monkeypatch.setattr(Crew, "tell_all", noted)
    loader = sw.SlidingWindowLoader(sw.Dataset.from_paths([bundled]), 256, level=7)
    with pytest.warns(RuntimeWarning, match="has no level 7"):
        assert not list(sw.stream(loader, on_bad_slide="skip"))
    assert CloseSlide(0, 0) in told
