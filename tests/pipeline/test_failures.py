"""What ends a run, and what does not: users' exceptions, bad slides, bad results, signals, deaths."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import streamwsi as sw
from streamwsi.loading.fingerprint import fingerprint
from tests.helpers import BAD_TILE
from tests.pipeline.conftest import CLI, workers_of
from tests.pipeline.test_results import Cli, run

PROMPT_S = 15.0
"""Within which a run that cannot go on must have ended: two seconds where nobody else uses the machine, five are promised."""


class Raising(sw.StreamCollector):
    def __init__(self, where: str) -> None:
        self.where = where

    def setup(self) -> None:
        if self.where == "setup":
            raise ValueError("no such model: resnet-1")

    def process(self, batch: sw.Batch) -> Any:
        if self.where == "process" and 50 in batch.windows.index:
            raise ZeroDivisionError("window fifty")
        return np.zeros(len(batch))

    def teardown(self) -> None:
        if self.where == "teardown":
            raise RuntimeError("cannot let go")

    def is_finished(self, patient: sw.Patient, windows_done: int) -> bool:
        if self.where == "is_finished":
            raise KeyError("label")
        return False


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("setup", "ValueError: no such model"),
        ("process", "ZeroDivisionError: window fifty"),
        ("is_finished", "KeyError: 'label'"),
        ("teardown", "RuntimeError: cannot let go"),
    ],
)
def test_an_exception_in_a_collector_ends_the_run_with_its_traceback(
    one_patient: sw.Dataset, tmp_path: Path, where: str, message: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(sw.CollectorError) as caught:
        run(one_patient, tmp_path, Raising(where), collectors=2 if where == "process" else 1)
    assert time.monotonic() - begun < PROMPT_S
    text = str(caught.value)
    assert message in text and f"in {where}" in text and "raise " in text and "streamwsi/collecting" not in text
    if where == "process":
        assert "slide 's'" in text and "windows" in text and "level-0" in text
    assert caught.value.exit_code == 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["state"] == "broken off" and report["restarts"] == 0


def test_an_exception_in_a_level_callable_ends_the_run(one_patient: sw.Dataset, tmp_path: Path) -> None:
    def level(slide: sw.Slide) -> int:
        raise LookupError(f"no level for {slide.id}")

    begun = time.monotonic()
    with pytest.raises(sw.CollectorError, match="no level for s") as caught:
        run(one_patient, tmp_path, level=level)
    assert time.monotonic() - begun < PROMPT_S and "in level" in str(caught.value)


@pytest.mark.parametrize("mode", ["accumulate", "collect"])
def test_an_exception_while_gathering_ends_the_run(one_patient: sw.Dataset, tmp_path: Path, mode: str) -> None:
    class Gathering(sw.StreamCollector):
        def process(self, batch: sw.Batch) -> Any:
            return np.zeros(len(batch))

        def accumulate(self, previous: Any, piece: sw.ProcessedPiece, patient: sw.Patient) -> Any:
            raise ArithmeticError("sum")

        def collate(self, patient: sw.Patient, pieces: list[sw.ProcessedPiece]) -> Any:
            raise ArithmeticError("all")

    collector = Gathering()
    collector.mode = mode  # type: ignore[assignment]
    with pytest.raises(sw.CollectorError, match="ArithmeticError"):
        run(one_patient, tmp_path, collector)


@pytest.mark.parametrize(
    ("result", "expected"),  # all others, and what is said of them: see tests/collecting/test_rows.py
    [
        (lambda batch: np.zeros(len(batch) + 1), r"windows? \d+.*shape \(\d+,\), expected one row for each of \d+ windows"),
        (lambda batch: np.zeros((len(batch), 2 if 0 in batch.windows.index else 3)), r"shape \((3|2),\).*shape \((3|2),\)"),
    ],
)
def test_a_result_that_cannot_be_stored_breaks_the_run_off(
    one_patient: sw.Dataset, tmp_path: Path, result: Callable[[sw.Batch], Any], expected: str
) -> None:
    class Wrong(sw.StreamCollector):
        def process(self, batch: sw.Batch) -> Any:
            return result(batch)

    with pytest.raises(sw.RunError, match=expected) as caught:
        run(one_patient, tmp_path, Wrong(), chunk_px=1 << 19)
    assert "patient 'p', slide 's'" in str(caught.value) and caught.value.exit_code == 3
    assert not (tmp_path / "p.csv").exists()


def test_collectors_that_disagree_break_the_run_off(one_patient: sw.Dataset, tmp_path: Path) -> None:
    class Fickle(sw.StreamCollector):
        def process(self, batch: sw.Batch) -> Any:
            return np.zeros(len(batch), f"f{self.device}")

    with pytest.raises(sw.RunError, match=r"float(32|64).*float(32|64)"):
        run(one_patient, tmp_path, Fickle(), devices=["4", "8"], chunk_px=70_000, collector_credits=1)


def test_good_slides_finish_beside_damaged_ones(shared_slides: Path, bundled: Path, tmp_path: Path, cli: Cli) -> None:
    slides = [
        *(shared_slides / "damaged").glob("*.*"),
        *(shared_slides / "unsupported").glob("*.*"),
        tmp_path / "missing.svs",
        bundled,
    ]
    done = cli("heatmap", *slides, "--out", tmp_path / "out", "--collector", "mean", "--format", "csv", "--json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    states = {patient["id"]: patient["state"] for patient in report["patients"]}
    assert states.pop("CMU-1-Small-Region") == "done" and set(states.values()) == {"failed"}
    assert (tmp_path / "out" / "CMU-1-Small-Region.csv").exists()
    assert [path.name for path in (tmp_path / "out").glob("*.csv")] == ["CMU-1-Small-Region.csv"]
    failed = [slide for patient in report["patients"] for slide in patient["slides"] if slide["state"] == "failed"]
    assert len(failed) == len(slides) - 1 and all(slide["reason"] for slide in failed)
    assert "does not exist" in next(slide["reason"] for slide in failed if slide["id"] == "missing")


def test_a_level_that_a_slide_does_not_have_fails_that_slide(shared_slides: Path, bundled: Path, tmp_path: Path) -> None:
    dataset = sw.Dataset.from_paths([bundled, shared_slides / "tiff/boxes.tiff"])
    report = run(dataset, tmp_path, level=1, kernel_size=64)
    assert report.exit_code == 1
    assert {patient.id: patient.state for patient in report.patients} == {"CMU-1-Small-Region": "failed", "boxes": "done"}
    assert "has no level 1: it has levels 0 to 0" in (report.failed_slides[0].reason or "")


def test_one_bad_tile_costs_the_windows_that_touch_it(shared_slides: Path, tmp_path: Path) -> None:
    name, (left, top, width, height) = BAD_TILE
    dataset = sw.Dataset([sw.Patient("p", {"s": shared_slides / name})])
    failed = run(dataset, tmp_path / "fail")
    assert failed.exit_code == 1 and "cannot be read" in (failed.failed_slides[0].reason or "")
    report = run(dataset, tmp_path / "skip", on_bad_region="skip", stride=128)
    pieces = sw.read_pieces(tmp_path / "skip" / "p.csv")
    grid = {(x, y) for x in range(0, 1964 + 128, 128) for y in range(0, 2711 + 128, 128)}
    touching = {(x, y) for x, y in grid if x < left + width and x + 256 > left and y < top + height and y + 256 > top}
    assert grid - {tuple(xy) for xy in pieces.coords.tolist()} == touching
    assert report.exit_code == 0 and report.patients[0].slides[0].skipped == len(touching) == 12


def test_a_patient_with_a_failed_slide_is_written_only_when_asked(bundled: Path, tmp_path: Path) -> None:
    dataset = sw.Dataset([sw.Patient("p", {"good": bundled, "bad": tmp_path / "missing.svs"})])
    assert run(dataset, tmp_path / "whole").patients[0].state == "failed"
    assert not (tmp_path / "whole" / "p.csv").exists()
    report = run(dataset, tmp_path / "partial", publish_partial=True)
    assert report.patients[0].state == "partial" and report.exit_code == 1
    assert len((tmp_path / "partial" / "p.partial.csv").read_text().splitlines()) == 109


# ---- signals and deaths, with a process that can be signalled

SLOW = """
import os, threading
import streamwsi as sw

class Slow(sw.StreamCollector):
    columns = ("mean",)
    def process(self, batch):
        if "STREAMWSI_TEST_HURRY" not in os.environ:
            threading.Event().wait(0.03)
        return batch.pixels.mean(axis=(1, 2, 3))
"""
ALL_WINDOWS = 2 * 17 * 23


@pytest.fixture(scope="module")
def slow(copies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The command line of a run that takes some seconds, less its output folder."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow.py").write_text(SLOW)
    return [
        *(*CLI, "heatmap", copies[0], copies[1], "--collector", f"{folder / 'slow.py'}:Slow", "--format", "csv"),
        *("--stride", 128, "--collectors", 2, "--chunk-px", 1 << 18, "--batch-size", 4, "--out"),
    ]


@pytest.fixture(scope="module")
def undisturbed(slow: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    finish(slow, out)
    return out


@pytest.fixture(scope="module")
def interrupted(slow: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that was interrupted after its first commits; never changed."""
    out = tmp_path_factory.mktemp("interrupted")
    process = begin(slow, out)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    return out


def finish(command: list[object], out: Path) -> dict[str, Any]:
    """Run to the end, without a pause where nothing is to happen meanwhile; returns the report."""
    hurried = {**os.environ, "STREAMWSI_TEST_HURRY": "1"}
    done = subprocess.run([*map(str, command), str(out)], capture_output=True, text=True, check=False, env=hurried)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def begin(command: list[object], out: Path) -> subprocess.Popen[str]:
    """Start the slow run, in a process group of its own; return once its first chunks are committed."""
    process = subprocess.Popen([*map(str, command), str(out)], stderr=subprocess.PIPE, text=True, start_new_session=True)
    # An empty journal's log is smaller than that
    wait_for(lambda: any(path.stat().st_size > 60_000 for path in out.glob(".journal/*.sqlite-wal")))
    return process


def wait_for(condition: Callable[[], Any], timeout_s: float = 30) -> None:
    """Poll until something that another process does has happened."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "what was waited for has not happened"
        time.sleep(0.01)


def assert_same_files(out: Path, expected: Path) -> None:
    for name in ("copy0.csv", "copy1.csv"):
        assert (out / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.parametrize(
    ("number", "code", "group"),  # as a terminal sends the one, and a batch system the other; SIGINT to the driver alone: below
    [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)],
    ids=["SIGINT-process-group", "SIGTERM-driver"],
)
def test_a_signal_stops_the_run_and_running_again_goes_on(
    slow: list[object], undisturbed: Path, tmp_path: Path, number: int, code: int, group: bool
) -> None:
    process = begin(slow, tmp_path)
    begun = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert time.monotonic() - begun < PROMPT_S and "Traceback" not in errors
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["state"] == "interrupted" and 0 < report["windows"] < ALL_WINDOWS
    assert finish(slow, tmp_path)["windows"] == ALL_WINDOWS - report["windows"]
    assert_same_files(tmp_path, undisturbed)


def test_a_worker_that_is_killed_is_replaced(slow: list[object], undisturbed: Path, tmp_path: Path) -> None:
    process = begin(slow, tmp_path)
    for role in ("loader", "collector", "writer"):
        begun = time.monotonic()
        workers_of(process.pid, role)[0].kill()
        until_line(process, "was killed by SIGKILL; it is replaced")
        assert time.monotonic() - begun < PROMPT_S
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads((tmp_path / "report.json").read_text())["restarts"] == 3
    assert_same_files(tmp_path, undisturbed)


class Leaving(sw.StreamCollector):
    """Ends its process in the middle of a window, as it is said for each slide, or already in setup."""

    def __init__(self, codes: dict[str, int], in_setup: bool = False) -> None:
        self.codes, self.in_setup = codes, in_setup

    def setup(self) -> None:
        if self.in_setup:
            os._exit(0)

    def process(self, batch: sw.Batch) -> Any:
        code = self.codes.get(batch.slide.id)
        if code is not None and 50 in batch.windows.index:
            os.kill(os.getpid(), -code) if code < 0 else os._exit(code)
        return batch.windows.index


def test_a_chunk_that_has_ended_three_workers_fails_its_slide_and_the_run_goes_on(copies: list[Path], tmp_path: Path) -> None:
    said = {
        "copy1": (0, "exit code 0, without"),
        "copy2": (1, "exit code 1"),
        "copy3": (-signal.SIGSEGV, "killed by SIGSEGV"),
    }
    collector = Leaving({slide: code for slide, (code, _) in said.items()})
    report = run(sw.Dataset.from_paths(copies), tmp_path, collector, max_restarts=0, chunk_px=70_000, collectors=2)
    assert [patient.state for patient in report.patients] == ["done", "failed", "failed", "failed"]
    assert report.exit_code == 1 and report.restarts == 3 * 3
    for slide in report.failed_slides:
        reason = slide.reason or ""
        assert "chunk 50 (1 windows at level-0 (1280, 1280) to (1280, 1280)) has ended 3 workers" in reason
        assert said[slide.id][1] in reason


def test_workers_that_die_over_nothing_use_up_the_restarts(one_patient: sw.Dataset, tmp_path: Path) -> None:
    with pytest.raises(sw.WorkerDied, match=r"collector 0 .*ended with exit code 0, without saying so.*max_restarts"):
        run(one_patient, tmp_path, Leaving({}, in_setup=True), max_restarts=2)


@pytest.mark.parametrize("role", ["loader", "collector", "writer"])
def test_a_stage_that_makes_no_progress_ends_the_run(slow: list[object], tmp_path: Path, role: str) -> None:
    command = [*map(str, slow[:-1]), "--stall-timeout", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(path.stat().st_size > 60_000 for path in tmp_path.glob(".journal/*.sqlite-wal")))
    for worker in workers_of(process.pid, role):
        worker.suspend()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    assert re.search(
        rf"the {role}s have made no progress for 1 s .* on chunk \d+ \(.*\) of slide 'copy\d' of patient 'copy\d'", errors
    )


def test_setting_up_is_not_a_stall(one_patient: sw.Dataset, tmp_path: Path) -> None:
    class Loading(sw.StreamCollector):
        def setup(self) -> None:
            threading.Event().wait(3)

        def process(self, batch: sw.Batch) -> Any:
            return np.zeros(len(batch))

    assert run(one_patient, tmp_path, Loading(), stall_timeout_s=1).exit_code == 0


def test_when_the_driver_is_killed_its_children_end_and_nothing_committed_is_lost(
    slow: list[object], undisturbed: Path, tmp_path: Path
) -> None:
    process = begin(slow, tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 5
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=PROMPT_S)
    assert not alive
    assert 0 < finish(slow, tmp_path)["windows"] < ALL_WINDOWS
    assert_same_files(tmp_path, undisturbed)


def test_two_runs_cannot_use_one_folder(slow: list[object], tmp_path: Path) -> None:
    process = begin(slow, tmp_path)
    second = subprocess.run([*map(str, slow), str(tmp_path)], capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "in use by another run" in second.stderr and f"pid {process.pid} on " in second.stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, cli: Cli, here: Cli, bundled: Path) -> None:
    arguments = ("heatmap", bundled, "--out", tmp_path, "--collector", "mean")
    assert cli(*arguments).returncode == 0
    before = fingerprint(tmp_path / "CMU-1-Small-Region.h5")
    again = here(*arguments)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    assert fingerprint(tmp_path / "CMU-1-Small-Region.h5") == before
    other = here(*arguments, "--kernel-size", 128)
    assert (
        other.returncode == 2 and "holds another run: its kernel_size is (256, 256), this one's is (128, 128)" in other.stderr
    )
    afresh = cli(*arguments, "--kernel-size", 128, "--overwrite")
    assert afresh.returncode == 0, afresh.stderr
    assert fingerprint(tmp_path / "CMU-1-Small-Region.h5") != before


def test_a_run_goes_on_with_chunks_of_another_size(
    slow: list[object], interrupted: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(interrupted, tmp_path / "out"))
    smaller = [1 << 16 if part == 1 << 18 else part for part in slow]
    assert smaller != slow and 0 < finish(smaller, out)["windows"] < ALL_WINDOWS
    assert_same_files(out, undisturbed)


def test_a_slide_that_changed_is_not_mixed_with_what_it_was(slow: list[object], copies: list[Path], tmp_path: Path) -> None:
    slide = tmp_path / "slide.svs"
    slide.write_bytes(copies[0].read_bytes())
    command = [slide if part == copies[0] else part for part in slow if part != copies[1]]
    process = begin(command, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    slide.write_bytes(copies[0].read_bytes() + b"more")
    again = subprocess.run([*map(str, command), str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "its fingerprint was" in again.stderr


def collector_file(folder: Path, body: str) -> str:
    """A file with a collector whose `process` has this body; returns what the command line calls it."""
    lines = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
    path = folder / "mine.py"
    path.write_text(
        f"import threading\nimport streamwsi as sw\n\nclass Mine(sw.StreamCollector):\n    def process(self, batch):\n{lines}\n"
    )
    return f"{path}:Mine"


def test_the_command_line_shows_the_users_traceback(bundled: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("heatmap", bundled, "--out", tmp_path / "out", "--collector", collector_file(tmp_path, "return 1 / 0"))
    assert done.returncode == 3
    for part in ("ZeroDivisionError: division by zero", "return 1 / 0", "in Mine.process, patient 'CMU-1-Small-Region'"):
        assert part in done.stderr
    assert re.search(r"windows \d+ to \d+ at level-0 \(\d+, \d+\)", done.stderr)
    assert f"{os.sep}streamwsi{os.sep}" not in done.stderr


def test_what_a_collector_prints_does_not_mix_with_the_json(bundled: Path, tmp_path: Path, cli: Cli) -> None:
    collector = collector_file(tmp_path, "print('hello')\nreturn [0] * len(batch)")
    done = cli("heatmap", bundled, "--out", tmp_path / "out", "--collector", collector, "--json")
    assert json.loads(done.stdout)["state"] == "done" and "hello" in done.stderr


def test_what_does_not_finish_in_the_time_of_grace_is_given_up(bundled: Path, tmp_path: Path) -> None:
    collector = collector_file(tmp_path, "print('stuck', flush=True)\nthreading.Event().wait()")
    command = [*CLI, "heatmap", bundled, "--out", tmp_path / "out", "--collector", collector, "--grace", "1"]
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    until_line(process, "stuck")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(1 + 2 * PROMPT_S) == 143
    assert time.monotonic() - begun > 1
    assert json.loads((tmp_path / "out" / "report.json").read_text())["state"] == "interrupted"


def test_the_second_interrupt_does_not_wait(bundled: Path, tmp_path: Path) -> None:
    collector = collector_file(tmp_path, "print('stuck', flush=True)\nthreading.Event().wait()")
    command = [*CLI, "heatmap", bundled, "--out", tmp_path / "out", "--collector", collector, "--grace", "60"]
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    until_line(process, "stuck")
    process.send_signal(signal.SIGINT)
    until_line(process, "stopping")
    process.send_signal(signal.SIGINT)
    assert process.wait(PROMPT_S) == 130


def until_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    assert any(text in line for line in process.stderr), f"the process ended without saying {text!r}"


def test_a_publication_that_goes_on_is_not_a_stall(one_patient: sw.Dataset, tmp_path: Path) -> None:
    class Thorough(sw.StreamCollector):
        mode = "accumulate"

        def process(self, batch: sw.Batch) -> Any:
            return np.ones(len(batch))

        def accumulate(self, previous: Any, piece: sw.ProcessedPiece, patient: sw.Patient) -> Any:
            threading.Event().wait(0.04)
            return (previous or 0) + 1

    report = run(one_patient, tmp_path, Thorough(), stall_timeout_s=2)
    assert report.seconds > 4 and report.results == {"p": 108}


def test_a_run_whose_words_nobody_reads_any_more_goes_on(slow: list[object], undisturbed: Path, tmp_path: Path) -> None:
    process = begin(slow, tmp_path)
    assert process.stderr is not None
    process.stderr.close()
    workers_of(process.pid, "collector")[0].kill()  # there is something to say
    assert process.wait(60) == 0
    assert json.loads((tmp_path / "report.json").read_text())["restarts"] == 1
    assert_same_files(tmp_path, undisturbed)


def test_an_error_that_nobody_has_thought_of_is_not_taken_for_a_slide_that_failed(bundled: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from streamwsi.pipeline import driver\n"
        "def broken(*arguments): raise LookupError('nobody has thought of this')\n"
        "driver.make_address = broken\n"
        "from streamwsi.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, script, "heatmap", bundled, "--out", tmp_path / "out", "--collector", "mean"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 3 and "LookupError: nobody has thought of this" in done.stderr and "Traceback" in done.stderr
