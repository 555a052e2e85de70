"""Whether a run can have its output in a folder.

In: a folder, which need not exist.  Out: checks of it, or of the nearest folder above it that exists.  They write into a folder
of their own there, and remove it.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from streamwsi.doctor.finding import Check, Looked, note, ok, wrong

_HAS_FLOCK = importlib.util.find_spec("fcntl") is not None
"""Windows has not."""
_NETWORK = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "lustre", "beegfs", "gpfs", "panfs", "ceph", "glusterfs", "orangefs")
)
"""Kinds of file systems, as the kernel calls them, whose files lie on other machines."""
_IN_MEMORY = frozenset(("tmpfs", "ramfs"))
_TRIAL_BYTES = 64 << 20
_LEAST_TRIAL_BYTES = 1 << 20
_BLOCK = bytes(range(256)) * 4096
_LITTLE_BYTES = 1 << 30
_SLOW_MB_PER_S = 20.0
"""Below it is a note: HDF5 files of 1024-value features at 1000 windows/s come at 4 MB/s, twice (journal, file), and synced."""
_JOURNALS = "give --journal-dir a folder on a local disk"


def folder_checks(out: Path) -> Iterator[Check]:
    """Of a folder that is to be `--out`."""
    near = nearest(out)
    yield Check("folder", partial(_folder, out, near), f"choose another folder, or have {near} made writable")
    for name, look in {
        "file system": _file_system,
        "free space": _free_space,
    }.items():
        yield Check(name, partial(look, near), f"choose another folder than {out}")
    trials: dict[str, Callable[[Path], Looked]] = {
        "write speed": _write_speed,
        "rename": _rename,
        "locks (flock)": _flock,
        "SQLite": _sqlite,
    }
    for name, trial in trials.items():
        remedy = f"{_JOURNALS}" if trial is _sqlite else f"choose another folder, or have {near} made writable"
        yield Check(f"{name} there", partial(_in_own_folder, trial, near), remedy)


def nearest(folder: Path) -> Path:
    """The folder itself, if it exists, or the nearest one above it that does."""
    folder = Path(os.path.abspath(folder))
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder


def _in_own_folder(trial: Callable[[Path], Looked], near: Path) -> Looked:
    try:
        with tempfile.TemporaryDirectory(prefix=".streamwsi-doctor-", dir=near) as own:
            return trial(Path(own))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return wrong(
                f"{near} is full, or your share of it is: {error.strerror}", "free some space, or choose another folder"
            )
        raise


def _folder(out: Path, near: Path) -> Looked:
    if not near.is_dir():
        return wrong(f"{near} is not a folder", "choose another folder")
    with tempfile.TemporaryFile(dir=near):
        pass
    return ok(f"{out} can be written" if near == Path(os.path.abspath(out)) else f"{out} can be made, in {near}")


def _file_system(near: Path) -> Looked:
    kind = file_system_of(near)
    if kind is None:
        return note("its kind is not known", "if it is on a network, " + _JOURNALS)
    if kind in _NETWORK:
        return note(f"{kind}, which is on a network", f"{_JOURNALS}: SQLite's journals are safest and fastest there")
    if kind.startswith("fuse"):  # sshfs, s3fs, rclone, …, and some that are local
        return note(f"{kind}, a program's own", f"if it is on a network: {_JOURNALS}")
    if kind in _IN_MEMORY:
        return note(f"{kind}: it lies in memory", "what is there is lost when the machine stops, and takes memory from the run")
    return ok(kind)


def file_system_of(folder: Path) -> str | None:
    """The kind of file system that a folder lies on, as the kernel calls it; None where that is not known."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return None
    return mounted_at(os.path.realpath(folder), mounts)


def mounted_at(path: str, mounts: str) -> str | None:
    """The kind of file system at an absolute path, from what the kernel says of mounts: the deepest, and of those the last.

    Source: proc(5), ``/proc/pid/mountinfo``.
    """
    deepest, kind = -1, None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= deepest:
            deepest, kind = len(point), after.split()[0]
    return kind


def _free_space(near: Path) -> Looked:
    there = os.statvfs(near)
    free = there.f_bavail * there.f_frsize
    said = f"{free / 1e9:.1f} GB" + (f", {there.f_favail} files" if there.f_files else "")
    if there.f_files and there.f_favail == 0:
        return wrong(f"{said}: no file can be added", "remove files, or choose another folder")
    if free < _LEAST_TRIAL_BYTES:
        return wrong(f"{said}: it is full", "free some space, or choose another folder")
    return (
        ok(said)
        if free >= _LITTLE_BYTES
        else note(said, "see that it is enough: values of a window take 4 bytes and more, twice")
    )


def _write_speed(own: Path) -> Looked:
    """Blocks are written and synced, as many as there is room for."""
    there = os.statvfs(own)
    blocks = min(_TRIAL_BYTES, there.f_bavail * there.f_frsize // 2) // len(_BLOCK)
    if not blocks:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    began = time.perf_counter()
    with open(own / "blocks", "wb") as file:
        for _ in range(blocks):
            file.write(_BLOCK)
        file.flush()
        os.fsync(file.fileno())
    mb = blocks * len(_BLOCK) / 1e6
    speed = mb / max(time.perf_counter() - began, 1e-9)
    said = f"{speed:.0f} MB/s ({mb:.0f} MB written and synced)"
    if speed < _SLOW_MB_PER_S:
        return note(said, f"where that is the limiting stage, choose a faster disk; {_JOURNALS}")
    return ok(said)


def _rename(own: Path) -> Looked:
    """A file takes another one's place, as finished files do."""
    new, final = own / ".final.part", own / "final"
    final.write_bytes(b"old")
    new.write_bytes(b"new")
    with open(final, "rb") as held:
        os.replace(new, final)
        before = held.read()
    if final.read_bytes() != b"new" or new.exists() or before != b"old":
        return wrong(
            "a file that takes another's place is not whole", "choose another folder: finished files would not be safe there"
        )
    return ok("a file takes another's place at once")


def _flock(own: Path) -> Looked:
    """Of two that want a lock, one gets it."""
    if not _HAS_FLOCK:
        return note("this system has none", "do not start two runs on one folder")
    import fcntl

    with open(own / "lock", "w") as first, open(own / "lock", "w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return note(
                f"there are none: {error.strerror}",
                "runs are kept apart by the age of a file instead: do not start one within a minute after another was killed",
            )
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ok("of two that want one, one gets it")
    return wrong("two get the same lock", "do not start two runs on one folder, or choose another")


def _sqlite(own: Path) -> Looked:
    """A journal is opened as runs open theirs; a second one must not get it, and what was committed is there afterwards."""
    path = own / "journal.sqlite"
    journal = sqlite3.connect(path, isolation_level=None, timeout=0)
    try:
        journal.execute("PRAGMA locking_mode=EXCLUSIVE")
        journal.execute("PRAGMA journal_mode=WAL")
        journal.execute("CREATE TABLE pieces (number INTEGER PRIMARY KEY)")
        journal.execute("INSERT INTO pieces VALUES (7)")
        if not _is_locked(path):
            return wrong("its locks do not hold: a second one may write into an open journal", _JOURNALS)
    finally:
        journal.close()
    again = sqlite3.connect(path)
    try:
        found = again.execute("SELECT number FROM pieces").fetchall()
    finally:
        again.close()
    return ok("journals work, and are locked") if found == [(7,)] else wrong("what was committed is gone", _JOURNALS)


def _is_locked(path: Path) -> bool:
    other = sqlite3.connect(path, isolation_level=None, timeout=0)
    try:
        other.execute("INSERT INTO pieces VALUES (8)")
    except sqlite3.OperationalError as error:
        return "locked" in str(error)
    finally:
        other.close()
    return False
