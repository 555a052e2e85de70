"""Several collectors on one stream: read once, the same files as runs of each alone, each going on by itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamwsi as sw
from streamwsi.pipeline.lock import FolderLock
from tests.helpers import BAD_TILE, slide_file
from tests.pipeline.conftest import workers_of
from tests.pipeline.test_failures import until_line, wait_for
from tests.pipeline.test_results import Cli, CountRed, arrays_of


class Corners(sw.StreamCollector):
    """Other values, another batch size, and windows without a row."""

    batch_size = 7
    columns = ("upper_left", "lower_right")

    def process(self, batch: sw.Batch) -> Any:
        values = np.stack([batch.pixels[:, 0, 0, 1], batch.pixels[:, -1, -1, 1]], axis=1)
        return [
            sw.ProcessedPiece(window, value) for window, value in zip(batch.windows, values, strict=True) if window.index % 5
        ]


class Seldom(sw.MeanCollector):
    """Fails at a window."""

    def process(self, batch: sw.Batch) -> Any:
        if 50 in batch.windows.index:
            raise ZeroDivisionError("window fifty")
        return super().process(batch)


class Few(sw.MeanCollector):
    """Has enough after some windows."""

    def is_finished(self, patient: sw.Patient, windows_done: int) -> bool:
        return windows_done >= 30


BOTH: dict[str, sw.StreamCollector] = {"mean": sw.MeanCollector(), "corners": Corners()}


def several(
    dataset: sw.Dataset, out: Path, collector: Mapping[str, sw.StreamCollector] | sw.StreamCollector, **options: Any
) -> Any:
    """A run with several collectors, or with one."""
    loader = sw.SlidingWindowLoader(dataset, 256, 128, on_bad_region=options.pop("on_bad_region", "fail"))
    kind = sw.HDF5StreamWriter if options.pop("h5", False) else sw.CSVStreamWriter
    writer = kind(out, one_file=options.pop("one_file", False))
    return sw.Pipeline(loader, collector, writer, quiet=True, **options).run()


@pytest.fixture(scope="module")
def alone(three_patients: sw.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of BOTH writes in a run of its own, with its windows per slide."""
    out = tmp_path_factory.mktemp("alone")
    for name, collector in BOTH.items():
        several(three_patients, out / name, collector)
    return out


def assert_same(out: Path, expected: Path, patients: tuple[str, ...] = ("anna", "bert", "cara")) -> None:
    for name in BOTH:
        for patient in patients:
            assert (out / name / f"{patient}.csv").read_bytes() == (expected / name / f"{patient}.csv").read_bytes()


@pytest.mark.parametrize("transport", ["shm", "ipc", "tcp"])
def test_each_writes_what_it_writes_alone_and_every_tile_is_decoded_once(
    three_patients: sw.Dataset, alone: Path, tmp_path: Path, transport: str
) -> None:
    reports = several(
        three_patients, tmp_path, BOTH, transport=transport, collectors={"corners": 2}, chunk_px=1 << 19, loaders=1
    )
    assert list(reports) == ["mean", "corners"]
    assert_same(tmp_path, alone)
    for name, report in reports.items():
        assert (report.exit_code, report.transport, report.warnings) == (0, transport, [])
        for patient in report.patients:
            assert (patient.state, patient.file) == ("done", f"{patient.id}.csv")
            for slide in patient.slides:
                assert slide.tiles_decoded == slide.tiles_distinct == 130
                assert slide.written + slide.none == slide.expected and bool(slide.none) == (name == "corners")
    assert [reports[name].stages["collector"].workers for name in reports] == [1, 2]
    verdicts = sw.verify(tmp_path)
    assert {(verdict.collector, verdict.patient) for verdict in verdicts} == {
        (name, patient.id) for name in BOTH for patient in three_patients
    }
    assert not any(verdict.problems for verdict in verdicts)


class Blackens(sw.StreamCollector):
    """Changes the pixels that it is given, and says so."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def process(self, batch: sw.Batch) -> Any:
        batch.pixels[...] = 0
        batch.paired["labels"][...] = 0
        (self.notes / str(batch.windows.index[0])).touch()
        return np.zeros(len(batch))


class Afterwards(sw.StreamCollector):
    """Looks at its pixels when the other has changed its own."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def process(self, batch: sw.Batch) -> Any:
        note = self.notes / str(batch.windows.index[0])
        wait_for(note.exists)
        both = batch.pixels.mean(axis=(1, 2, 3)), batch.paired["labels"].mean(axis=(1, 2))
        return np.stack(both, axis=1)


@pytest.mark.parametrize("transport", ["shm", "ipc"])
def test_what_one_does_to_its_pixels_is_not_seen_by_another(one_patient: sw.Dataset, tmp_path: Path, transport: str) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    labels = tmp_path / "labels.npy"
    np.save(labels, np.ones((2967, 2220), np.uint8))
    loader = sw.SlidingWindowLoader(one_patient, 256, paired={"labels": labels})
    both = {"first": Blackens(notes), "second": Afterwards(notes)}
    sw.Pipeline(loader, both, sw.CSVStreamWriter(tmp_path / "out"), quiet=True, transport=transport).run()
    found = sw.read_pieces(tmp_path / "out" / "second" / "p.csv").values
    sw.Pipeline(loader, sw.MeanCollector(), sw.CSVStreamWriter(tmp_path / "alone"), quiet=True).run()
    np.testing.assert_allclose(found[:, 0], sw.read_pieces(tmp_path / "alone" / "p.csv").values.mean(axis=1))
    assert (found[:, 1] > 0).all()


def test_hdf5_files_are_those_of_runs_apart(one_patient: sw.Dataset, tmp_path: Path) -> None:
    several(one_patient, tmp_path / "both", BOTH, h5=True, one_file=True)
    for name, collector in BOTH.items():
        several(one_patient, tmp_path / name, collector, h5=True, one_file=True)
        both, single = (arrays_of(folder / "all.h5") for folder in (tmp_path / "both" / name, tmp_path / name))
        assert both.keys() == single.keys() and all(np.array_equal(both[key], single[key]) for key in both)


def test_one_may_gather_and_one_may_stop_early_beside_one_that_writes(one_patient: sw.Dataset, tmp_path: Path) -> None:
    collectors = {"mean": sw.MeanCollector(), "sum": CountRed("accumulate"), "few": Few()}
    reports = several(one_patient, tmp_path, collectors, chunk_px=1 << 19)
    windows = reports["mean"].windows
    assert reports["sum"].results["p"]["order"] == list(range(windows))
    (few,) = reports["few"].patients[0].slides
    assert 30 <= few.written < windows and few.stopped == windows - few.written
    assert reports["mean"].patients[0].slides[0].written == windows


def test_options_go_to_the_collector_that_is_named(one_patient: sw.Dataset, tmp_path: Path) -> None:
    class Device(sw.StreamCollector):
        def process(self, batch: sw.Batch) -> Any:
            return np.full(len(batch), 10 * int((self.device or "none-9")[-1]) + (len(batch.pixels) <= 4))

    options: dict[str, Any] = {"devices": {"b": ["gpu-3", "gpu-3"]}, "batch_size": {"b": 4}}
    several(one_patient, tmp_path, {"a": Device(), "b": Device()}, **options)
    values = {name: set(sw.read_pieces(tmp_path / name / "p.csv").values.ravel().tolist()) for name in ("a", "b")}
    assert values["b"] == {31}
    assert {value // 10 for value in values["a"]} == {9}


@pytest.mark.parametrize(
    ("collector", "options", "message"),
    [
        ({}, {}, "empty"),
        ({"a/b": sw.MeanCollector()}, {}, "name of its folder.*'a/b'"),
        ({"..": sw.MeanCollector()}, {}, "name of its folder"),
        ({"a": sw.MeanCollector}, {}, "collector 'a' must be a StreamCollector, got the class MeanCollector"),
        ({"a": sw.MeanCollector()}, {"batch_size": {"b": 3}}, "batch_size names 'b'"),
        ({"a": sw.MeanCollector()}, {"devices": {"a": ["x", "y"]}, "collectors": {"a": 1}}, "more than the 1 collectors"),
        (sw.MeanCollector(), {"collectors": {"a": 1}}, "collectors names 'a'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    one_patient: sw.Dataset, tmp_path: Path, collector: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(sw.ConfigError, match=message):
        several(one_patient, tmp_path / "out", collector, **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_one_collector_is_not_made_one_of_several(three_patients: sw.Dataset, alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone / "mean", tmp_path / "out")
    with pytest.raises(sw.OutputError, match="holds a run of one collector"):
        several(three_patients, tmp_path / "out", BOTH)


def test_where_the_folder_of_one_is_refused_nothing_is_left_of_the_others(
    three_patients: sw.Dataset, alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(alone / "mean", tmp_path / "out" / "corners")
    with pytest.raises(sw.OutputError, match="its collector is"):
        several(three_patients, tmp_path / "out", BOTH)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["corners"]


@pytest.mark.parametrize("why", ["in use", "not made by"])
def test_where_the_folder_of_one_is_refused_the_results_of_another_are_not_overwritten(
    three_patients: sw.Dataset, alone: Path, tmp_path: Path, why: str
) -> None:
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    with ExitStack() as stack:
        if why == "in use":
            stack.enter_context(closing(FolderLock(tmp_path / "corners" / ".lock")))
        else:  # a file of that name is nobody's: no run is known that has made it
            for name in ("run.json", "report.json"):
                (tmp_path / "corners" / name).unlink()
        with pytest.raises(
            sw.OutputError, match="in use by another run" if why == "in use" else "no run of streamwsi is known"
        ):
            several(three_patients, tmp_path, BOTH, overwrite=True)
    assert_same(tmp_path, alone)
    assert (tmp_path / "mean" / "run.json").read_bytes() == (alone / "mean" / "run.json").read_bytes()


def test_the_command_line_has_several_and_the_job_it_leaves_goes_on_with_them(
    three_patients: sw.Dataset, tmp_path: Path, cli: Cli, here: Cli
) -> None:
    slide = next(iter(three_patients)).slides[0].path
    given = ("heatmap", slide, "--out", tmp_path / "out", "--stride", 128, "--format", "csv", "--json")
    done = cli(*given, "--collector", "mean", "--collector", "t=tissue", "--arg", "t.threshold=20", "--batch-size", "t=5")
    assert done.returncode == 0, done.stderr
    assert {name: report["windows"] for name, report in json.loads(done.stdout).items()} == {"mean": 391, "t": 391}
    again = here("run", tmp_path / "out" / "job.toml", "--json")
    assert {name: report["windows"] for name, report in json.loads(again.stdout).items()} == {"mean": 0, "t": 0}
    changed = (tmp_path / "out" / "job.toml").read_text().replace("threshold = 20", "threshold = 30")
    (tmp_path / "changed.toml").write_text(changed)
    refused = here("run", tmp_path / "changed.toml")
    assert refused.returncode == 2 and "threshold" in refused.stderr
    assert here("verify", tmp_path / "out").returncode == 0
    shown = here("show", tmp_path / "out", "--json")
    assert {name: summary["columns"][0]["name"] for name, summary in json.loads(shown.stdout).items()} == {
        "mean": "mean_r",
        "t": "tissue",
    }
    pictures = here("render", tmp_path / "out", "--width", 300).stdout.splitlines()
    assert sorted(Path(picture).parent.name for picture in pictures) == ["mean", "t"]


# ---- failures


def test_the_error_of_one_ends_the_run_and_says_whose_it_is_and_both_go_on_later(
    three_patients: sw.Dataset, alone: Path, tmp_path: Path
) -> None:
    with pytest.raises(sw.CollectorError, match="window fifty") as caught:
        several(three_patients, tmp_path, {**BOTH, "seldom": Seldom()}, chunk_px=1 << 19)
    assert "collector of 'seldom'" in str(caught.value)
    for name in ("mean", "corners", "seldom"):
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["state"] == "broken off" and "window fifty" in report["error"]
    several(three_patients, tmp_path, BOTH, chunk_px=1 << 19)  # without the one that fails
    assert_same(tmp_path, alone)


def test_one_that_an_earlier_run_has_finished_is_left_as_it_is_and_the_other_is_done(
    three_patients: sw.Dataset, alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(alone / "mean", tmp_path / "mean")
    before = (tmp_path / "mean" / "anna.csv").stat().st_mtime_ns
    reports = several(three_patients, tmp_path, BOTH)
    assert [patient.state for patient in reports["mean"].patients] == ["already done"] * 3
    assert reports["mean"].windows == 0 and reports["corners"].windows == 4 * 17 * 23
    assert (tmp_path / "mean" / "anna.csv").stat().st_mtime_ns == before
    assert_same(tmp_path, alone)


def test_a_bad_slide_fails_for_all_and_says_why(shared_slides: Path, tmp_path: Path) -> None:
    bad = slide_file(shared_slides, BAD_TILE[0])
    dataset = sw.Dataset.from_paths([bad, slide_file(shared_slides, "tiff/CMU-0-small.tiff")])
    reports = several(dataset, tmp_path, BOTH)
    for report in reports.values():
        assert report.exit_code == 1
        assert [patient.state for patient in report.patients] == ["failed", "done"]
        assert "1680" in (report.failed_slides[0].reason or "")
    skipped = several(dataset, tmp_path / "skip", BOTH, on_bad_region="skip")
    counts = [report.patients[0].slides[0].skipped for report in skipped.values()]
    assert counts[0] == counts[1] > 0


SCRIPT = """
import os, sys, threading
import streamwsi as sw
from tests.pipeline.test_several_collectors import Corners

class Slow(sw.MeanCollector):
    def process(self, batch):
        if "STREAMWSI_TEST_HURRY" not in os.environ:
            threading.Event().wait(0.02)
        return super().process(batch)

dataset = sw.Dataset.from_csv(sys.argv[1])
loader = sw.SlidingWindowLoader(dataset, 256, 128)
pipeline = sw.Pipeline(
    loader, {"mean": Slow(), "corners": Corners()}, sw.CSVStreamWriter(sys.argv[2]),
    batch_size={"mean": 8}, chunk_px=1 << 18, max_restarts=20,
)
pipeline.run()
"""


@pytest.fixture(scope="module")
def command(three_patients: sw.Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A run of some seconds with two collectors, less its output folder."""
    folder = tmp_path_factory.mktemp("several")
    lines = [f"{patient.id},{slide.id},{slide.path}" for patient in list(three_patients)[:2] for slide in patient.slides]
    (folder / "slides.csv").write_text("\n".join(["patient,slide,path", *lines]) + "\n")
    (folder / "several.py").write_text(textwrap.dedent(SCRIPT))
    return [sys.executable, folder / "several.py", folder / "slides.csv"]


def begun(command: list[object], out: Path) -> subprocess.Popen[str]:
    """The run, once both collectors have committed something."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [*map(str, command), str(out)], stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    for name in ("mean", "corners"):
        wait_for(lambda name=name: any(path.stat().st_size > 60_000 for path in out.glob(f"{name}/.journal/*.sqlite-wal")))
    return process


def finished(command: list[object], out: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "STREAMWSI_TEST_HURRY": "1"}
    done = subprocess.run([*map(str, command), str(out)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def workers_of_all_roles(process: subprocess.Popen[str]) -> None:
    """Kill the loader, the collector of the fast one, the writer of the slow one: of two the first is that of 'mean'."""
    for role, number in (("loader", 0), ("collector", 1), ("writer", 0)):
        workers_of(process.pid, role)[number].kill()
        until_line(process, "is replaced")


def the_driver(process: subprocess.Popen[str]) -> None:
    """Its children notice, and end."""
    process.kill()


@pytest.mark.parametrize("kill", [workers_of_all_roles, the_driver], ids=["workers", "driver"])
def test_after_a_kill_both_have_what_they_would_have_had(
    command: list[object], alone: Path, tmp_path: Path, kill: Callable[[subprocess.Popen[str]], None]
) -> None:
    process = begun(command, tmp_path)
    kill(process)
    _, errors = process.communicate(timeout=100)
    if kill is the_driver:
        assert process.returncode == -signal.SIGKILL
        finished(command, tmp_path)
        windows = [json.loads((tmp_path / name / "report.json").read_text())["windows"] for name in BOTH]
        assert all(0 < count < 3 * 17 * 23 for count in windows), f"each went on from what it had committed: {windows}"
    else:
        assert process.returncode == 0, errors
    assert_same(tmp_path, alone, ("anna", "bert"))
