"""Runs whose pixels go through shared memory: the same files as through sockets, whoever keeps, is killed, or has no room."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import streamwsi as sw
from tests.helpers import BAD_TILE
from tests.pipeline.conftest import CLI, workers_of
from tests.pipeline.shared_memory_collectors import NAME, Keeping, Sums
from tests.pipeline.test_results import run

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="looks at shared memory as Linux shows it")

HERE = Path(__file__).parent
DENSE = {"kernel_size": 256, "stride": 128}
PACKED = {"kernel_size": 128, "stride": 150}
FEW_SLOTS = {"collectors": 1, "threads": 1, "batch_size": 4, "chunk_px": 4 * 128 * 128, "loader_credits": 2}
"""A batch to each chunk, and five slots."""
SLOTS = 5
ENDING_S = 10.0
HANGING_S = 60.0


@pytest.mark.parametrize(
    ("case", "transports"),  # sockets of either kind take what they are given
    [("dense", ["shm", "ipc", "tcp", "auto"]), ("packed", ["shm", "tcp"]), ("skipped", ["shm", "ipc"])],
)
def test_files_are_the_same_whatever_pixels_go_through(
    request: pytest.FixtureRequest, bundled: Path, tmp_path: Path, case: str, transports: list[str]
) -> None:
    slide, options = bundled, {"dense": DENSE, "packed": PACKED, "skipped": {**DENSE, "on_bad_region": "skip"}}[case]
    if case == "skipped":
        slide = request.getfixturevalue("shared_slides") / BAD_TILE[0]
    dataset = sw.Dataset([sw.Patient("p", {"s": slide})])
    files = {}
    for asked in transports:
        report = run(dataset, tmp_path / asked, Sums(), collectors=2, chunk_px=1 << 19, transport=asked, **options)
        assert report.transport == ("shm" if asked == "auto" else asked) and not report.warnings
        assert (report.patients[0].slides[0].skipped > 0) == (case == "skipped")
        files[asked] = (tmp_path / asked / "p.csv").read_bytes()
    assert len(set(files.values())) == 1 and files["shm"].count(b"\n") > 200


# ---- users who keep pixels


def as_array(pixels: np.ndarray) -> Any:
    return pixels[:, 1:, ::2]


def as_memoryview(pixels: np.ndarray) -> Any:
    return memoryview(pixels)


def as_torch(pixels: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(pixels).permute(0, 3, 1, 2)[:, 1:]


@pytest.fixture(scope="module")
def packed(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a run makes of whose pixels nobody keeps anything, and which go through sockets."""
    folder = tmp_path_factory.mktemp("packed")
    run(sw.Dataset([sw.Patient("p", {"s": bundled})]), folder, Sums(), transport="ipc", **PACKED)
    return (folder / "p.csv").read_bytes()


@pytest.mark.parametrize("view", [as_array, as_memoryview, as_torch])
def test_pixels_that_a_collector_keeps_stay_as_they_are_even_if_it_keeps_all(
    one_patient: sw.Dataset,
    packed: bytes,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    view: Callable[[np.ndarray], Any],
) -> None:
    if view is as_torch:
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'streamwsi[torch]'")
    keeping = Keeping(view, -1, tmp_path / "note")
    report = run(one_patient, tmp_path / "kept", keeping, **PACKED, **FEW_SLOTS)
    assert report.transport == "shm" and report.exit_code == 0
    assert (tmp_path / "kept" / "p.csv").read_bytes() == packed
    in_slot = json.loads((tmp_path / "note").read_text())
    assert len(in_slot) > 50 and sum(in_slot) == SLOTS  # each slot once, then sockets
    assert capfd.readouterr().err == ""


def test_batches_of_windows_that_overlap_are_copies_and_stay_as_they_are(one_patient: sw.Dataset, tmp_path: Path) -> None:
    """Their memory is used again, unless somebody has it."""
    window = {"kernel_size": 256, "stride": 200}
    keeping = Keeping(as_array, -1, tmp_path / "note")
    report = run(one_patient, tmp_path / "kept", keeping, **window, **{**FEW_SLOTS, "chunk_px": 456 * 456})
    run(one_patient, tmp_path / "not", Sums(), transport="ipc", **window)
    assert (tmp_path / "kept" / "p.csv").read_bytes() == (tmp_path / "not" / "p.csv").read_bytes()
    in_slot = json.loads((tmp_path / "note").read_text())
    assert report.transport == "shm" and in_slot.count(False) > 40


def test_slots_come_back_when_a_collector_lets_go(one_patient: sw.Dataset, tmp_path: Path) -> None:
    keeping = Keeping(as_array, 25, tmp_path / "note")
    report = run(one_patient, tmp_path / "kept", keeping, **PACKED, **FEW_SLOTS)
    in_slot = json.loads((tmp_path / "note").read_text())
    assert report.exit_code == 0
    assert [sum(in_slot[first : first + 25]) for first in (0, 25, 50)] == [SLOTS] * 3


# ---- no room


def transport_of(out: Path) -> str:
    report = json.loads((out / "report.json").read_text())
    assert report["state"] == "done" and report["windows"] == 108
    return str(report["transport"])


def warnings_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return re.findall(r"warning: (.*)", done.stderr)


def test_memory_that_the_kernel_refuses_is_done_without(bundled: Path, tmp_path: Path) -> None:
    command = [*CLI, "heatmap", bundled, "--out", tmp_path, "--collector", "mean"]
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    (warning,) = warnings_of(done)
    assert re.fullmatch(r"no shared memory: \d+ MB cannot be had: File too large; pixels go through ipc sockets", warning)
    assert transport_of(tmp_path) == "ipc"
    assert json.loads((tmp_path / "report.json").read_text())["warnings"] == [warning]


@pytest.fixture
def small_memory_folder() -> list[str]:
    """What comes before a command that is to find a /dev/shm of 1 MB."""
    prefix = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" "$@"']
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    pytest.skip("no file system can be mounted in a namespace of its own: that takes the privilege to")


NO_MEMFD = "import os; del os.memfd_create; "
SEEMS_LARGE = "s = os.statvfs; os.statvfs = lambda path: os.statvfs_result((*s(path)[:4], 1 << 30, *s(path)[5:])); "


@pytest.mark.parametrize(
    ("before", "transport", "warning"),
    [
        ("", "shm", None),
        (NO_MEMFD, "ipc", r"/dev/shm has 1 MB left, \d+ are needed"),
        (NO_MEMFD + SEEMS_LARGE, "ipc", r"\d+ MB cannot be had: No space left on device"),
    ],
    ids=["memory that is in no folder", "the folder is too small", "the folder is too small when it is used"],
)
def test_a_small_folder_for_shared_memory_does_no_harm(
    bundled: Path, tmp_path: Path, small_memory_folder: list[str], before: str, transport: str, warning: str | None
) -> None:
    code = f"{before}from streamwsi.cli import main; main()"
    command = [*small_memory_folder, sys.executable, "-c", code, "heatmap", bundled, "--out", tmp_path, "--collector", "mean"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    found = warnings_of(done)
    assert len(found) == (warning is not None)
    if warning is not None:
        assert re.fullmatch(rf"no shared memory: {warning}; pixels go through ipc sockets", found[0])
    assert transport_of(tmp_path) == transport


# ---- kills


class Slow:
    """A run with a collector that takes its time, in a process group of its own."""

    def __init__(self, bundled: Path, folder: Path, pause_s: float) -> None:
        self.out, self._log = folder / "out", folder / "log"
        (folder / "t").mkdir(exist_ok=True)
        command = [
            *CLI,
            "heatmap",
            bundled,
            "--out",
            self.out,
            "--collector",
            f"{HERE / 'shared_memory_collectors.py'}:Slow",
            "--format",
            "csv",
        ]
        command += shlex.split("--kernel-size 64 --stride 70 --chunk-px 16384 --max-restarts 1000 --transport shm")
        environment = {
            "STREAMWSI_TEST_LOG": str(self._log),
            "STREAMWSI_TEST_PAUSE_S": str(pause_s),
            "TMPDIR": str(folder / "t"),
        }
        self._errors = folder / "errors"
        with self._errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [*map(str, command)], stderr=errors, env={**os.environ, **environment}, start_new_session=True
            )

    def wait_for_batches(self, more: int) -> None:
        """Return when so many more batches were processed."""
        wanted = len(self.in_slot) + more
        wait_for(lambda: len(self.in_slot) >= wanted or self.process.poll() is not None, self.words)
        assert self.process.poll() is None, self.words()

    def processes(self) -> list[psutil.Process]:
        """The driver and its children."""
        driver = psutil.Process(self.process.pid)
        return [driver, *driver.children(recursive=True)]

    def end(self) -> dict[str, Any]:
        """Wait for its end; returns the report."""
        assert self.process.wait(HANGING_S) == 0, self.words()
        report: dict[str, Any] = json.loads((self.out / "report.json").read_text())
        assert (report["state"], report["transport"]) == ("done", "shm")
        return report

    def words(self) -> str:
        return self._errors.read_text()

    @property
    def in_slot(self) -> list[bool]:
        """Of each batch that was processed, whether it lay in a slot."""
        return [mark == ord("1") for mark in self._log.read_bytes()] if self._log.exists() else []


@contextmanager
def slow(bundled: Path, folder: Path, pause_s: float) -> Iterator[Slow]:
    run = Slow(bundled, folder, pause_s)
    try:
        yield run
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()


def wait_for(condition: Callable[[], bool], words: Callable[[], str], timeout_s: float = HANGING_S) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, words()
        time.sleep(0.01)


def slots_of(pid: int) -> set[int]:
    """The inodes of the shared memory that a process has open or mapped."""
    found = set()
    with contextlib.suppress(OSError):
        found |= {int(line.split()[4]) for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if NAME in line}
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if NAME in os.readlink(f"/proc/{pid}/fd/{descriptor}"):
                    found.add(os.stat(f"/proc/{pid}/fd/{descriptor}").st_ino)
    return found


@pytest.fixture(scope="module")
def undisturbed(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a run makes that is left alone, and whose pixels go through sockets."""
    folder = tmp_path_factory.mktemp("undisturbed")
    dataset = sw.Dataset([sw.Patient("CMU-1-Small-Region", {"CMU-1-Small-Region": bundled})])
    run(dataset, folder, Sums(), kernel_size=64, stride=70, transport="ipc")
    return (folder / "CMU-1-Small-Region.csv").read_bytes()


def test_memory_goes_with_its_processes_when_all_are_killed_at_once(bundled: Path, tmp_path: Path, undisturbed: bytes) -> None:
    with slow(bundled, tmp_path, pause_s=0.05) as begun:
        begun.wait_for_batches(10)
        holders = {process.pid: slots_of(process.pid) for process in begun.processes()}
        (inode,) = set.union(*holders.values())
        assert sum(bool(inodes) for inodes in holders.values()) == 3  # driver, loader, collector; not the writers
        os.killpg(begun.process.pid, signal.SIGKILL)
        begun.process.wait()
        wait_for(lambda: not any(inode in slots_of(pid) for pid in psutil.pids()), begun.words, ENDING_S)
        assert not [name for name in os.listdir("/dev/shm") if "streamwsi" in name]
    with slow(bundled, tmp_path, pause_s=0.0) as again:
        again.end()
    assert (again.out / "CMU-1-Small-Region.csv").read_bytes() == undisturbed


def test_loaders_and_collectors_that_are_killed_give_their_slots_back(
    bundled: Path, tmp_path: Path, undisturbed: bytes
) -> None:
    with slow(bundled, tmp_path, pause_s=0.01) as begun:
        for role in ("loader", "collector") * 3:
            begun.wait_for_batches(20)
            workers_of(begun.process.pid, role)[0].kill()
        begun.wait_for_batches(20)
        killed = len(begun.in_slot)
        assert begun.end()["restarts"] == 6
    assert len(begun.in_slot) > killed + 30 and all(begun.in_slot[killed:])
    assert (begun.out / "CMU-1-Small-Region.csv").read_bytes() == undisturbed
