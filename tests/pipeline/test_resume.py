"""The same command again: what goes on, what is warned of, what is refused, and what waits."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamwsi as sw
from streamwsi.pipeline import driver
from tests.pipeline.conftest import workers_of
from tests.pipeline.test_failures import (  # the fixtures are used by name
    ALL_WINDOWS,
    PROMPT_S,
    assert_same_files,
    begin,
    finish,
    interrupted,
    slow,
    undisturbed,
)
from tests.pipeline.test_results import Cli, run

__all__ = ["interrupted", "slow", "undisturbed"]
WINDOWS = 108
"""Of the bundled slide, in windows of 256 px."""

NO_LOCKS = """
import errno, fcntl
def flock(file, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
from streamwsi.cli import main
main()
"""
"""The command line on a file system that has no locks."""


@pytest.fixture(scope="module")
def finished(copies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one patient, copy0, that is done; never changed."""
    out = tmp_path_factory.mktemp("finished")
    run(sw.Dataset.from_paths(copies[:1]), out, Constant(1.0))
    return out


def states(report: sw.Report) -> dict[str, str]:
    return {patient.id: patient.state for patient in report.patients}


def version(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_a_patient_added_to_the_dataset_is_processed_and_the_others_stay(
    copies: list[Path], finished: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    before = version(out / "copy0.csv")
    report = run(sw.Dataset.from_paths(copies[:3]), out, Constant(1.0))
    assert states(report) == {"copy0": "already done", "copy1": "done", "copy2": "done"}
    assert report.windows == 2 * WINDOWS and version(out / "copy0.csv") == before
    assert [verdict.problems for verdict in sw.verify(out)] == [[], [], []]


def test_failed_slides_are_tried_again_and_only_they_are_read(copies: list[Path], tmp_path: Path) -> None:
    late = tmp_path / "late.svs"
    dataset = sw.Dataset(
        [
            sw.Patient("good", {"s": copies[0]}),
            sw.Patient("half", {"there": copies[1], "late": late}),
            sw.Patient("bad", {"s": tmp_path / "never.svs"}),
        ]
    )
    first = run(dataset, tmp_path / "out")
    assert first.exit_code == 1 and states(first) == {"good": "done", "half": "failed", "bad": "failed"}
    assert not (tmp_path / "out" / "half.csv").exists()
    shutil.copy(copies[2], late)
    again = run(dataset, tmp_path / "out")
    assert again.exit_code == 1 and states(again) == {"good": "already done", "half": "done", "bad": "failed"}
    assert again.windows == WINDOWS, "the slide that was good was read again"
    clean = run(dataset, tmp_path / "clean")
    assert clean.windows == 3 * WINDOWS
    assert (tmp_path / "out" / "half.csv").read_bytes() == (tmp_path / "clean" / "half.csv").read_bytes()


def test_a_collector_whose_code_changed_is_a_warning(copies: list[Path], tmp_path: Path, cli: Cli) -> None:
    mine = tmp_path / "mine.py"
    code = "import streamwsi as sw\nclass Mine(sw.StreamCollector):\n    def process(self, batch): return [{}.0] * len(batch)\n"
    command = ["--out", tmp_path / "out", "--collector", f"{mine}:Mine", "--format", "csv"]
    mine.write_text(code.format(1))
    assert cli("heatmap", copies[0], *command).returncode == 0
    unchanged = cli("heatmap", copies[0], copies[1], *command)
    assert unchanged.returncode == 0 and "source has changed" not in unchanged.stderr
    mine.write_text(code.format(2))
    changed = cli("heatmap", *copies[:3], *command)
    warning = "the collector's source has changed since this run began"
    assert changed.returncode == 0 and f"warning: {warning}" in changed.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["warnings"] == [warning] and report["windows"] == WINDOWS


def test_an_unfinished_run_may_be_overwritten_and_what_is_not_its_own_stays(
    slow: list[object], interrupted: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(interrupted, tmp_path / "out"))
    (out / "notes.txt").write_text("mine")
    other = [64 if part == 4 else part for part in slow]
    refused = subprocess.run([*map(str, other), str(out)], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "its batch_size is 4, this one's is 64" in refused.stderr
    afresh = finish([*other[:-1], "--overwrite", "--out"], out)
    assert afresh["windows"] == ALL_WINDOWS and (out / "notes.txt").read_text() == "mine"
    assert_same_files(out, undisturbed)


def test_a_commit_may_be_made_to_survive_a_loss_of_power(slow: list[object], undisturbed: Path, tmp_path: Path) -> None:
    powered = [*slow[:-1], "--durability", "power", "--out"]
    process = begin(powered, tmp_path)
    process.kill()
    process.communicate()
    assert json.loads((tmp_path / "run.json").read_text())["execution"]["durability"] == "power"
    assert 0 < finish(powered, tmp_path)["windows"] < ALL_WINDOWS
    assert_same_files(tmp_path, undisturbed)


def test_a_resume_waits_for_children_of_a_killed_driver_and_says_for_how_long(
    slow: list[object], undisturbed: Path, tmp_path: Path
) -> None:
    process = begin(slow, tmp_path)
    writer = workers_of(process.pid, "writer")[0]
    writer.suspend()  # it cannot end, as one that is inside a commit on a slow disk
    process.kill()
    process.wait()
    try:
        refused = subprocess.run([*map(str, slow), str(tmp_path)], capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "its driver is gone, but children of it have not ended in 10 s" in refused.stderr
        again = subprocess.Popen([*map(str, slow), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            again.wait(2)
        assert not workers_of(again.pid, "loader"), "it has begun beside a writer of the run before"
    finally:
        writer.resume()
        process.communicate()  # its children have the other end
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert_same_files(tmp_path, undisturbed)


def test_where_a_file_system_has_no_locks_a_second_run_is_refused_while_the_first_shows_signs_of_life(
    slow: list[object], tmp_path: Path
) -> None:
    lockless = [sys.executable, "-c", NO_LOCKS, *slow[3:]]
    process = begin(lockless, tmp_path)
    second = subprocess.run([*map(str, lockless), str(tmp_path)], capture_output=True, text=True, check=False)
    assert second.returncode == 2 and f"pid {process.pid} on " in second.stderr
    assert "after 60 s without a sign it is free" in second.stderr
    process.kill()  # leaves its name in the lock's file; a run that ends well does not
    process.communicate()
    assert f"pid {process.pid} on " in (tmp_path / ".lock").read_text()
    assert subprocess.run([*map(str, lockless), str(tmp_path)], capture_output=True, check=False).returncode == 2
    old = time.time() - 61
    os.utime(tmp_path / ".lock", (old, old))
    assert 0 < finish(lockless, tmp_path)["windows"] < ALL_WINDOWS
    assert finish(lockless, tmp_path)["windows"] == 0, "a run that has ended well is not waited for"


class Crashing(sw.StreamCollector):
    """Ends the process that gathers, again and again."""

    mode = "accumulate"

    def process(self, batch: sw.Batch) -> Any:
        return batch.windows.index

    def accumulate(self, previous: Any, piece: sw.ProcessedPiece, patient: sw.Patient) -> Any:
        os._exit(0)


def test_publishers_that_die_use_up_the_restarts(one_patient: sw.Dataset, tmp_path: Path) -> None:
    with pytest.raises(sw.WorkerDied, match=r"publisher 0 .*ended with exit code 0, without saying so.*max_restarts"):
        run(one_patient, tmp_path, Crashing(), max_restarts=2)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["state"] == "broken off" and report["restarts"] == 3
    assert list(tmp_path.glob(".journal/*.sqlite")) and not list(tmp_path.glob("*.result"))


def test_an_exception_is_what_the_user_is_told_though_another_worker_dies(copies: list[Path], tmp_path: Path, cli: Cli) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        textwrap.dedent("""
        import os, threading
        import streamwsi as sw

        class Mine(sw.StreamCollector):
            def process(self, batch):
                if self.device == "dying":
                    os._exit(1)
                raise ArithmeticError("the model's fault")
        """)
    )
    command = ["--out", tmp_path / "out", "--collector", f"{mine}:Mine", "--devices", "dying,raising", "--chunk-px", 70_000]
    begun = time.monotonic()
    done = cli("heatmap", copies[0], *command)
    assert done.returncode == 3 and "ArithmeticError: the model's fault" in done.stderr, done.stderr
    assert time.monotonic() - begun < 2 * PROMPT_S


# ---- what is another run's


class Constant(sw.StreamCollector):
    def __init__(self, value: float, until: int = 10**9) -> None:
        self.value, self.until = value, until

    def process(self, batch: sw.Batch) -> Any:
        if batch.windows.index[-1] >= self.until:
            raise ArithmeticError("far enough")
        return np.full(len(batch), self.value)


def broken_off(dataset: sw.Dataset, out: Path, value: float, **options: Any) -> None:
    """A run that commits some chunks and then ends."""
    with pytest.raises(sw.CollectorError):
        run(dataset, out, Constant(value, until=60), chunk_px=1 << 18, collector_credits=1, writer_credits=1, **options)
    assert json.loads((out / "report.json").read_text())["windows"] > 0


def values_in(path: Path) -> set[float]:
    return set(sw.read_pieces(path).values.tolist())


def test_a_run_under_way_cannot_be_overwritten(slow: list[object], undisturbed: Path, tmp_path: Path) -> None:
    process = begin(slow, tmp_path)
    command = [*map(str, slow[:-1]), "--overwrite", "--out", str(tmp_path)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2 and f"in use by another run (pid {process.pid} " in second.stderr
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert_same_files(tmp_path, undisturbed)
    assert [verdict.problems for verdict in sw.verify(tmp_path)] == [[], []]


@pytest.mark.parametrize("gone", ["nothing", "folder", "run.json"])
def test_one_folder_of_journals_may_serve_several_runs_and_outlive_them(
    one_patient: sw.Dataset, tmp_path: Path, gone: str
) -> None:
    shared = {"journal_dir": tmp_path / "journals"}
    broken_off(one_patient, tmp_path / "one", 1.0, **shared)
    other = tmp_path / "other"
    if gone != "nothing":
        other = tmp_path / "one"
        shutil.rmtree(other) if gone == "folder" else (other / "run.json").unlink()
    report = run(one_patient, other, Constant(2.0), **shared)
    assert values_in(other / "p.csv") == {2.0} and report.windows == WINDOWS
    if gone == "nothing":
        again = run(one_patient, tmp_path / "one", Constant(1.0), **shared)
        assert values_in(tmp_path / "one" / "p.csv") == {1.0} and 0 < again.windows < WINDOWS
        assert not (tmp_path / "journals").exists()


def test_journals_elsewhere_go_when_their_run_is_overwritten_and_those_of_others_stay(
    one_patient: sw.Dataset, tmp_path: Path
) -> None:
    shared = {"journal_dir": tmp_path / "journals"}
    broken_off(one_patient, tmp_path / "one", 1.0, **shared)
    broken_off(one_patient, tmp_path / "other", 3.0, **shared)
    run(one_patient, tmp_path / "one", Constant(2.0), overwrite=True, kernel_size=512)  # and journals lie in the folder now
    assert len(list((tmp_path / "journals").rglob("*.sqlite"))) == 1
    again = run(one_patient, tmp_path / "other", Constant(3.0), **shared)
    assert 0 < again.windows < WINDOWS and values_in(tmp_path / "other" / "p.csv") == {3.0}


def test_journals_that_lie_elsewhere_are_not_passed_over(one_patient: sw.Dataset, tmp_path: Path) -> None:
    broken_off(one_patient, tmp_path / "out", 1.0, journal_dir=tmp_path / "journals")
    with pytest.raises(sw.OutputError, match=rf"journals .* lie in {tmp_path / 'journals'}.*, not in {tmp_path / 'out'}"):
        run(one_patient, tmp_path / "out", Constant(1.0))
    assert 0 < run(one_patient, tmp_path / "out", Constant(1.0), journal_dir=tmp_path / "journals").windows < WINDOWS


def test_journals_without_the_run_they_are_of_are_refused(one_patient: sw.Dataset, interrupted: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(interrupted, tmp_path / "out"))
    (out / "run.json").unlink()
    with pytest.raises(sw.OutputError, match=r"holds journals, but no run\.json says whose"):
        run(one_patient, out, Constant(2.0))
    assert list(out.glob(".journal/*.sqlite"))


@pytest.mark.parametrize(("name", "options"), [("all.csv", {"one_file": True}), ("p.result", {})])
def test_no_file_that_is_not_this_runs_is_overwritten(
    one_patient: sw.Dataset, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    (tmp_path / name).write_text("mine")
    collector = Crashing() if name == "p.result" else Constant(1.0)
    with pytest.raises(sw.OutputError, match=rf"{name} is there already, and no run of streamwsi is known to have made it"):
        run(one_patient, tmp_path, collector, **options)
    assert (tmp_path / name).read_text() == "mine"


def test_nor_is_that_of_a_patient_who_was_added(copies: list[Path], finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / "copy1.csv").write_text("mine")
    with pytest.raises(sw.OutputError, match=r"copy1\.csv is there already"):
        run(sw.Dataset.from_paths(copies[:2]), out, Constant(1.0))
    assert (out / "copy1.csv").read_text() == "mine"


def test_a_file_whose_publisher_was_killed_before_its_record_can_be_overwritten(
    copies: list[Path], finished: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (record,) = out.glob(".published/*.json")
    record.unlink()
    (out / ".0123.part").touch()
    run(sw.Dataset.from_paths(copies[:1]), out, Constant(2.0), overwrite=True, kernel_size=512)
    assert values_in(out / "copy0.csv") == {2.0} and not list(out.glob(".*.part"))


# ---- datasets that change


def test_a_finished_patient_with_other_slides_is_refused(copies: list[Path], finished: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    for slides in ({"copy0": copies[0], "b": copies[1]}, {"b": copies[1]}):
        with pytest.raises(sw.OutputError, match=r"patient 'copy0' was finished with the slides \['copy0'\], the dataset has"):
            run(sw.Dataset([sw.Patient("copy0", slides)]), out, Constant(1.0))
    assert [verdict.problems for verdict in sw.verify(out)] == [[]], "what was refused has changed what was asked"


def test_no_patient_is_added_to_one_file_of_all_that_is_finished(copies: list[Path], tmp_path: Path) -> None:
    run(sw.Dataset.from_paths(copies[:2]), tmp_path, Constant(1.0), one_file=True)
    with pytest.raises(sw.OutputError, match=r"one file of 2 patients, which is finished; patient 'copy2' cannot be added"):
        run(sw.Dataset.from_paths(copies[:3]), tmp_path, Constant(1.0), one_file=True)
    assert run(sw.Dataset.from_paths(copies[:2]), tmp_path, Constant(1.0), one_file=True).windows == 0


def test_a_patient_is_added_to_one_file_of_all_that_is_not_finished(copies: list[Path], tmp_path: Path) -> None:
    broken_off(sw.Dataset.from_paths(copies[:1]), tmp_path, 1.0, one_file=True)
    report = run(sw.Dataset.from_paths(copies[:2]), tmp_path, Constant(1.0), one_file=True)
    assert WINDOWS < report.windows < 2 * WINDOWS and {patient.file for patient in report.patients} == {"all.csv"}


def test_a_slide_that_is_not_in_the_dataset_any_more_is_refused(copies: list[Path], tmp_path: Path) -> None:
    dataset = sw.Dataset([sw.Patient("p", {"a": copies[0], "b": copies[1]})])
    with pytest.raises(sw.CollectorError):
        run(dataset, tmp_path, StopAtSlide("b"), chunk_px=1 << 18)
    with pytest.raises(sw.OutputError, match=r"slide 'b' of patient 'p', which the dataset has no more"):
        run(sw.Dataset([sw.Patient("p", {"a": copies[0]})]), tmp_path, StopAtSlide("nowhere"))


class StopAtSlide(sw.StreamCollector):
    def __init__(self, slide: str) -> None:
        self.slide = slide

    def process(self, batch: sw.Batch) -> Any:
        if batch.slide.id == self.slide and batch.windows.index[-1] >= 60:
            raise ArithmeticError("far enough")
        return np.ones(len(batch))


def test_finished_patients_stay_known_when_others_are_run_in_their_folder(
    copies: list[Path], finished: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    run(sw.Dataset.from_paths([copies[1]]), out, Constant(1.0))
    assert [(verdict.patient, verdict.problems) for verdict in sw.verify(out)] == [("copy0", []), ("copy1", [])]
    (out / "copy0.csv").write_text("changed")
    assert [bool(verdict.problems) for verdict in sw.verify(out)] == [True, False]


class SlowFirst(sw.StreamCollector):
    """The first patient's last window comes long after all of the others'."""

    def process(self, batch: sw.Batch) -> Any:
        if batch.patient.id == "copy0" and WINDOWS - 1 in batch.windows.index:
            threading.Event().wait(2)
        return np.ones(len(batch))


def test_patients_of_one_file_stand_in_the_order_of_the_dataset(copies: list[Path], tmp_path: Path) -> None:
    run(sw.Dataset.from_paths(copies[:3]), tmp_path, SlowFirst(), one_file=True, collectors=2)
    lines = (tmp_path / "all.csv").read_text().splitlines()[1:]
    assert [line.partition(",")[0] for line in lines[::WINDOWS]] == ["copy0", "copy1", "copy2"]


def test_an_error_of_the_driver_itself_stands_in_the_report(
    one_patient: sw.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(driver, "make_address", full)
    with pytest.raises(OSError, match="Too many open files"):
        run(one_patient, tmp_path, Constant(1.0))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["state"] == "broken off" and "Too many open files" in report["error"]
