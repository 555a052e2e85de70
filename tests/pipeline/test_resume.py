"""The same command again: what goes on, what is warned of, what is refused, and what waits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import streamwsi as sw
from tests.pipeline.conftest import workers_of
from tests.pipeline.test_failures import (  # the fixtures are used by name
    ALL_WINDOWS,
    PROMPT_S,
    assert_same_files,
    begin,
    finish,
    slow,
    undisturbed,
)
from tests.pipeline.test_results import Cli, run

__all__ = ["slow", "undisturbed"]
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


def states(report: sw.Report) -> dict[str, str]:
    return {patient.id: patient.state for patient in report.patients}


def version(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_a_patient_added_to_the_dataset_is_processed_and_the_others_stay(copies: list[Path], tmp_path: Path) -> None:
    run(sw.Dataset.from_paths(copies[:1]), tmp_path / "out")
    before = version(tmp_path / "out" / "copy0.csv")
    report = run(sw.Dataset.from_paths(copies[:3]), tmp_path / "out")
    assert states(report) == {"copy0": "already done", "copy1": "done", "copy2": "done"}
    assert report.windows == 2 * WINDOWS and version(tmp_path / "out" / "copy0.csv") == before
    assert [verdict.problems for verdict in sw.verify(tmp_path / "out")] == [[], [], []]


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
    slow: list[object], undisturbed: Path, tmp_path: Path
) -> None:
    process = begin(slow, tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    (tmp_path / "notes.txt").write_text("mine")
    other = [64 if part == 4 else part for part in slow]
    refused = subprocess.run([*map(str, other), str(tmp_path)], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "its batch_size is 4, this one's is 64" in refused.stderr
    afresh = finish([*other[:-1], "--overwrite", "--out"], tmp_path)
    assert afresh["windows"] == ALL_WINDOWS and (tmp_path / "notes.txt").read_text() == "mine"
    assert_same_files(tmp_path, undisturbed)


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
