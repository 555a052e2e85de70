"""The command line watched from outside: how long until something happens, how much memory and processor time it takes.

In: a command.  Out: what was seen of it and its children.  Imports nothing of streamwsi: it sees what a user's system sees.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SAMPLE_EVERY_S = 0.02
_POLL_S = 0.002
_STOP_TIMEOUT_S = 10.0


def streamwsi_command() -> list[str]:
    """The console script of this interpreter's environment, or the module where there is none."""
    script = Path(sys.executable).with_name("streamwsi")
    return [str(script)] if script.exists() else [sys.executable, "-m", "streamwsi.cli"]


def heatmap_command(slide: Path, out: Path, *options: object) -> list[str]:
    """``streamwsi heatmap`` with defaults, but for `options`."""
    return [*streamwsi_command(), "heatmap", str(slide), "--out", str(out), "--quiet", *map(str, options)]


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command that has ended when the block is left. Raises RuntimeError when it fails, and shows what it says."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
        if process.wait():
            raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    finally:
        if process.poll() is None:
            process.terminate()  # it ends its children
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def help_seconds() -> float:
    """Wall time of ``streamwsi --help``."""
    begun = time.perf_counter()
    subprocess.run([*streamwsi_command(), "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


# ---- the first window


def first_commit_seconds(slide: Path) -> float:
    """From starting ``streamwsi heatmap`` until the first window stands in the patient's journal.

    The journal's owner holds its lock, so a copy of it and of its log is looked into whenever the log has grown: a reader who
    came after a crash at that moment would find just that.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out, copy = Path(folder, "out"), Path(folder, "copy")
        copy.mkdir()
        begun = time.perf_counter()
        with running(heatmap_command(slide, out, "--collector", "mean")) as process:
            seen = -1
            while process.poll() is None:
                log = next((out / ".journal").glob("*.sqlite-wal"), None)
                size = _size(log)
                if log is not None and size > seen:
                    seen, looked_at = size, time.perf_counter()
                    if _committed_windows(log, copy):
                        return looked_at - begun
                if any(out.glob("*.h5")):
                    break  # published before the look at its journal: what follows is an upper bound
                time.sleep(_POLL_S)
        return time.perf_counter() - begun


def _size(path: Path | None) -> int:
    try:
        return -1 if path is None else path.stat().st_size
    except FileNotFoundError:
        return -1


def _committed_windows(log: Path, folder: Path) -> int:
    """Windows in a journal, as its files stand now."""
    copy = folder / "journal.sqlite"
    try:
        shutil.copyfile(log.with_name(log.name.removesuffix("-wal")), copy)
        shutil.copyfile(log, folder / "journal.sqlite-wal")
        with contextlib.closing(sqlite3.connect(copy)) as db:
            return int(db.execute("SELECT ifnull(sum(written), 0) FROM chunks").fetchone()[0])
    except (FileNotFoundError, sqlite3.Error):  # it has no tables yet, or was just published and removed
        return 0


# ---- memory and processor time


@dataclass
class Seen:
    """What a run took, by role: driver, loader, collector, writer, publisher."""

    seconds: float = 0.0
    peak_mb: float = 0.0
    """The most that all processes held together at one time; what they share is counted once (PSS)."""
    at_peak_mb: dict[str, float] = field(default_factory=dict)
    user_s: dict[str, float] = field(default_factory=dict)
    system_s: dict[str, float] = field(default_factory=dict)


def watch(command: list[str], memory: bool = False) -> Seen:
    """Run a command to its end, looking at it and its children fifty times a second.

    Processor time is that of the last look at each process. Memory is looked at only when asked for, since that takes time.
    """
    seen = Seen()
    spent: dict[int, tuple[str, float, float]] = {}
    begun = time.perf_counter()
    with running(command) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            held: dict[str, float] = {}
            for each in _tree(root):
                with contextlib.suppress(psutil.Error, OSError):  # it has just ended
                    role = _role(each, root)
                    times = each.cpu_times()
                    spent[each.pid] = (role, times.user, times.system)
                    if memory:
                        held[role] = held.get(role, 0.0) + _pss_mb(each.pid)
            if sum(held.values()) > seen.peak_mb:
                seen.peak_mb, seen.at_peak_mb = sum(held.values()), held
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_EVERY_S)
    seen.seconds = time.perf_counter() - begun
    for role, user_s, system_s in spent.values():
        seen.user_s[role] = seen.user_s.get(role, 0.0) + user_s
        seen.system_s[role] = seen.system_s.get(role, 0.0) + system_s
    return seen


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _role(process: psutil.Process, root: psutil.Process) -> str:
    if process.pid == root.pid:
        return "driver"
    names = (word.removeprefix("streamwsi-") for word in process.cmdline() if word.startswith("streamwsi-"))
    return next(names, "other")


def _pss_mb(pid: int) -> float:
    """A process's share of the memory it uses: what n processes share counts as an n-th. Linux only."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def repeated(measure: Callable[[], float], times: int) -> list[float]:
    """A measurement several times, after one that does not count: it finds nothing in any cache."""
    measure()
    return [measure() for _ in range(times)]
