"""Disks that are full, read-only, or limit the size of files: a clear end, nothing lost, and the next run finishes.

The disks are real: small file systems in memory, mounted for a test. The limit on the size of files is the kernel's.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from streamwsi.verification import verify
from tests.pipeline.conftest import CLI
from tests.pipeline.test_results import arrays_of

COLLECTORS = """
import os, subprocess
import numpy as np
import streamwsi as sw

class Wide(sw.StreamCollector):
    def process(self, batch):
        return np.outer(batch.pixels.mean(axis=(1, 2, 3)), np.arange(1, 301))

class Pictures(sw.StreamCollector):
    def process(self, batch):
        return batch.pixels

class Spoiling(Wide):
    # does something to a disk, the first time only
    def __init__(self, disk):
        self.disk = disk
    def once(self, what, *arguments):
        if not os.path.exists(self.disk + ".spoilt"):
            open(self.disk + ".spoilt", "x").close()
            what(*arguments)
    def fill(self, pages):
        with open(os.path.join(self.disk, "filler"), "wb", buffering=0) as file:
            while os.statvfs(self.disk).f_bavail > pages:
                file.write(bytes(4096))
    def make_read_only(self):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", self.disk], check=True)

class FullFromTheStart(Spoiling):
    def setup(self):
        self.once(self.fill, 0)

class FullAtTheEnd(Spoiling):
    mode = "collect"
    def collate(self, patient, pieces):
        self.once(self.fill, 3)  # room for the result and the patient's record, not for the report
        return len(pieces)

class ReadOnlyAtTheEnd(Spoiling):
    mode = "collect"
    def collate(self, patient, pieces):
        self.once(self.make_read_only)
        return len(pieces)
"""
PATIENTS = ("copy0", "copy1")
ALL_WINDOWS = 2 * 108
FULL = r"(No space left on device|database or disk is full)"


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path, size: str) -> None:
        self.path = path
        path.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, text=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"needs a file system of its own, which cannot be mounted here: {mounted.stderr.strip()}")

    def now(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)

    def make_room(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)
        self.now("size=64m")

    def unmount(self) -> None:
        while os.path.ismount(self.path):
            subprocess.run(["umount", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Disk]]:
    """Makes disks of a size, which are gone after the test."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("needs root and mount, for file systems that are really full")
    disks: list[Disk] = []

    def make(size: str) -> Disk:
        path = tmp_path / f"disk{len(disks)}"
        disks.append(Disk(path, size))
        return disks[-1]

    try:
        yield make
    finally:
        for made in disks:
            made.unmount()


@pytest.fixture(scope="module")
def collectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("collectors") / "collectors.py"
    path.write_text(COLLECTORS)
    return path


@pytest.fixture
def heatmap(copies: list[Path], collectors: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run two patients; no process is left afterwards."""

    def run(
        out: Path, *options: object, collector: str = "Wide", file_limit: int | None = None, slides: list[Path] | None = None
    ) -> subprocess.CompletedProcess[str]:
        slides = copies[:2] if slides is None else slides
        command = [*CLI, "heatmap", *slides, "--out", out, "--collector", f"{collectors}:{collector}", "--quiet"]
        command += ["--chunk-px", 1 << 18, "--batch-size", 4, *options]

        def limit() -> None:
            if file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        process = subprocess.Popen(
            [*map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=limit,
        )
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            left = [found for found in psutil.process_iter() if session_of(found.pid) == process.pid]
            for found in left:
                found.kill()
        assert not left, f"processes are left: {left}"
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    return run


def session_of(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid)
    return None


Heatmap = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, copies: list[Path], collectors: Path) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    for format in ("csv", "h5"):
        command = [*CLI, "heatmap", *copies[:2], "--out", out / format, "--collector", f"{collectors}:Wide", "--quiet"]
        subprocess.run([*map(str, command), "--format", format], check=True)
    return out


def assert_same(out: Path, undisturbed: Path, format: str) -> None:
    for patient in PATIENTS:
        found, expected = out / f"{patient}.{format}", undisturbed / format / f"{patient}.{format}"
        if format == "csv":
            assert found.read_bytes() == expected.read_bytes()
        else:
            arrays, others = arrays_of(found), arrays_of(expected)
            assert arrays.keys() == others.keys()
            assert all(np.array_equal(arrays[name], others[name]) for name in arrays)


def assert_clear(done: subprocess.CompletedProcess[str], code: int, *parts: object) -> None:
    """One line that says what, why, and, where a run was broken off, what to do."""
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("streamwsi: error: ") and all(str(part) in line for part in parts), line
    if code == 3:
        assert "cannot be written: " in line and "run the same command again" in line


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def half_written(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*.part")]


def final_files(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.suffix in (".csv", ".h5", ".result"))


# ---- while a run is under way


def test_a_disk_that_is_full_of_journals_ends_the_run_and_loses_nothing(
    disk: Callable[[str], Disk], heatmap: Heatmap, undisturbed: Path, tmp_path: Path
) -> None:
    small, out = disk("300k"), tmp_path / "out"
    command = (out, "--journal-dir", small.path / "journals", "--format", "csv")
    done = heatmap(*command)
    assert_clear(done, 3, small.path / "journals", ".sqlite", "database or disk is full")
    first = report_of(out)
    assert first["state"] == "broken off" and "disk is full" in first["error"] and first["windows"] > 0
    assert final_files(out) == [] and not half_written(out, small.path)
    # as long as there is no room it ends the same way, and still loses nothing
    again = heatmap(*command)
    assert again.returncode in (2, 3) and small.path.name in again.stderr and len(again.stderr.splitlines()) == 1
    small.make_room()
    done = heatmap(*command)
    assert done.returncode == 0, done.stderr
    assert 0 < report_of(out)["windows"] <= ALL_WINDOWS - first["windows"]
    assert_same(out, undisturbed, "csv")


@pytest.mark.parametrize(("format", "one_file"), [("csv", False), ("h5", True)])  # and HDF5 on its own, at the end
def test_a_disk_that_is_full_at_publication_ends_the_run_and_leaves_nothing_half_written(
    disk: Callable[[str], Disk], heatmap: Heatmap, undisturbed: Path, tmp_path: Path, format: str, one_file: bool
) -> None:
    small = disk("200k")
    out = small.path / "out"
    command = (out, "--journal-dir", tmp_path / "journals", "--format", format, *(("--one-file",) if one_file else ()))
    done = heatmap(*command)
    assert_clear(done, 3, out / ("all" if one_file else "copy"), f".{format} cannot", "No space left on device")
    assert final_files(out) == [] and not half_written(small.path)
    assert not list(out.glob(".published/*"))
    first = report_of(out)
    assert first["state"] == "broken off" and first["windows"] >= ALL_WINDOWS // 2
    small.make_room()
    done = heatmap(*command)
    assert done.returncode == 0, done.stderr
    assert report_of(out)["windows"] <= ALL_WINDOWS - first["windows"]
    assert not (tmp_path / "journals").exists()
    if one_file:
        arrays = arrays_of(out / "all.h5")
        for patient in PATIENTS:
            expected = arrays_of(undisturbed / "h5" / f"{patient}.h5")
            assert np.array_equal(arrays[f"{patient}/{patient}/features"], expected[f"{patient}/features"])
    else:
        assert_same(out, undisturbed, format)


def test_a_disk_that_is_full_of_images_ends_the_run_and_leaves_no_folder(
    disk: Callable[[str], Disk], heatmap: Heatmap, tmp_path: Path
) -> None:
    small = disk("1m")
    out = small.path / "out"
    command = (out, "--journal-dir", tmp_path / "journals", "--format", "jpeg", "--quality", 100)
    done = heatmap(*command, collector="Pictures")
    assert_clear(done, 3, out / "copy", "cannot be written", "No space left on device")
    assert not half_written(small.path) and not any((out / patient).exists() for patient in PATIENTS)
    small.make_room()
    done = heatmap(*command, collector="Pictures")
    assert done.returncode == 0, done.stderr
    assert [len(list((out / patient).iterdir())) for patient in PATIENTS] == [109, 109]
    assert [verdict.problems for verdict in verify(out)] == [[], []]


def test_a_disk_that_has_no_room_for_run_json_any_more_ends_the_run(
    disk: Callable[[str], Disk], heatmap: Heatmap, undisturbed: Path, tmp_path: Path
) -> None:
    small = disk("1m")
    out = small.path / "out"
    command = (out, "--journal-dir", tmp_path / "journals", "--format", "csv", "--arg", f"disk={small.path}")
    done = heatmap(*command, collector="FullFromTheStart")
    assert_clear(done, 3, out / "run.json", "No space left on device")
    assert final_files(out) == [] and not half_written(small.path)
    json.loads((out / "run.json").read_text())
    small.make_room()
    done = heatmap(*command, collector="FullFromTheStart")
    assert done.returncode == 0, done.stderr
    assert_same(out, undisturbed, "csv")


def test_a_disk_that_has_no_room_for_the_report_is_an_error_and_the_results_stay(
    disk: Callable[[str], Disk], heatmap: Heatmap, copies: list[Path], tmp_path: Path
) -> None:
    small = disk("1m")
    out = small.path / "out"
    missing = [tmp_path / f"{'long-' * 20}{number}.svs" for number in range(30)]
    command = (out, "--journal-dir", tmp_path / "journals", "--arg", f"disk={small.path}")
    done = heatmap(*command, collector="FullAtTheEnd", slides=[copies[0], *missing])
    assert_clear(done, 3, out / "report.json", "No space left on device")
    assert final_files(out) == ["copy0.result"] and not half_written(small.path)
    assert not (out / "report.json").exists()
    small.make_room()
    done = heatmap(*command, collector="FullAtTheEnd", slides=[copies[0], *missing])
    assert done.returncode == 1, done.stderr
    report = report_of(out)
    assert report["windows"] == 0 and report["patients"][0]["state"] == "already done"
    assert len([patient for patient in report["patients"] if patient["state"] == "failed"]) == len(missing)


def test_a_folder_that_becomes_read_only_ends_the_run(disk: Callable[[str], Disk], heatmap: Heatmap, tmp_path: Path) -> None:
    own = disk("64m")
    out = own.path / "out"
    out.mkdir()
    command = (out, "--journal-dir", tmp_path / "journals", "--arg", f"disk={out}")
    try:
        done = heatmap(*command, collector="ReadOnlyAtTheEnd")
        assert_clear(done, 3, out / "copy", ".result cannot", "Read-only file system")
    finally:
        subprocess.run(["umount", str(out)], check=True)
    assert final_files(out) == [] and not half_written(out)
    done = heatmap(*command, collector="ReadOnlyAtTheEnd")
    assert done.returncode == 0, done.stderr
    assert final_files(out) == ["copy0.result", "copy1.result"] and report_of(out)["windows"] <= ALL_WINDOWS // 2


# ---- a limit on the size of files


@pytest.mark.parametrize(
    ("limit", "where", "why"),
    [
        (200_000, ".journal", "disk I/O error (a limit on the size of files"),
        (450_000, "copy", ".csv cannot be written: File too large"),
    ],
    ids=["journal", "publication"],
)
def test_a_limit_on_the_size_of_files_ends_the_run_and_loses_nothing(
    heatmap: Heatmap, undisturbed: Path, tmp_path: Path, limit: int, where: str, why: str
) -> None:
    out = tmp_path / "out"
    chunk_px = 1 << 18 if where == ".journal" else 1 << 23  # one large commit has the smallest log
    done = heatmap(out, "--format", "csv", "--chunk-px", chunk_px, file_limit=limit)
    assert_clear(done, 3, out / where, why)
    first = report_of(out)
    assert first["windows"] > 0 and final_files(out) == [] and not half_written(out)
    done = heatmap(out, "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert report_of(out)["windows"] <= ALL_WINDOWS - first["windows"]
    assert_same(out, undisturbed, "csv")


# ---- before anything starts


@pytest.mark.parametrize("which", ["out", "journals"])
def test_a_folder_without_any_room_is_refused_and_nothing_is_left(
    disk: Callable[[str], Disk], heatmap: Heatmap, tmp_path: Path, which: str
) -> None:
    small = disk("8k")
    folders = {"out": tmp_path / "out", "journals": tmp_path / "journals", which: small.path / which}
    done = heatmap(folders["out"], "--journal-dir", folders["journals"])
    assert_clear(done, 2, folders[which], "cannot be written: No space left on device")
    assert not any(folder.exists() for folder in folders.values())


@pytest.mark.parametrize("which", ["out", "journals"])
def test_a_read_only_folder_is_refused_and_what_is_in_it_stays(
    disk: Callable[[str], Disk], heatmap: Heatmap, undisturbed: Path, tmp_path: Path, which: str
) -> None:
    own = disk("64m")
    folders = {"out": tmp_path / "out", "journals": tmp_path / "journals", which: own.path / which}
    command = (folders["out"], "--journal-dir", folders["journals"], "--format", "csv")
    assert heatmap(*command, file_limit=200_000).returncode == 3
    first = report_of(folders["out"])
    own.now("ro")
    done = heatmap(*command)
    assert_clear(done, 2, folders[which], "cannot be written: Read-only file system")
    own.now("rw")
    done = heatmap(*command)
    assert done.returncode == 0, done.stderr
    assert 0 < report_of(folders["out"])["windows"] <= ALL_WINDOWS - first["windows"]
    assert_same(folders["out"], undisturbed, "csv")


# ---- HDF5, which crashes when it cannot close a file

HDF5_CHILD = """
import sys
from pathlib import Path
import numpy as np
from streamwsi.values import ValueSpec
from streamwsi.writing.hdf5_file import HDF5PieceFile
from tests.writing.fabricate import resolved_slide

slide = resolved_slide(extent=(16 * 100, 16 * 20), block=(3, 7))
grid = slide.grid()
values = np.random.default_rng(0).random((len(grid), 20))
file = HDF5PieceFile(Path(sys.argv[1]), ValueSpec("float64", (20,)), compression=sys.argv[2] or None)
try:
    file.begin_slide(slide, len(grid))
    for first in range(0, len(grid), 250):
        index = np.arange(first, first + 250)
        file.append(grid.windows(index), values[index])
    file.end_slide([])
finally:
    file.close()
"""


@pytest.mark.parametrize("compression", ["", "gzip"])
def test_hdf5_on_a_full_disk_is_an_error_like_any_other(disk: Callable[[str], Disk], compression: str) -> None:
    small = disk("4k")
    for size_kb in (4, 60, 200, 300):
        small.now(f"size={size_kb}k")
        done = subprocess.run(
            [sys.executable, "-c", HDF5_CHILD, str(small.path / "file.h5"), compression],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, (size_kb, done.returncode, done.stderr)
        assert "Exception ignored" not in done.stderr
        assert done.stderr.splitlines()[-1] == "OSError: [Errno 28] No space left on device"
        (small.path / "file.h5").unlink()
