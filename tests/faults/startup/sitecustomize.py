"""Kills a run's processes at points inside the commit and the publication, and notes which processes are in there.

Python imports this at the start of each process whose PYTHONPATH names this folder. It looks at the package from outside,
where that meets SQLite and the file system: it wraps `sqlite3.connect`, `os.replace`, `os.fsync` and `Path.unlink`, and the
package knows nothing of it.

In, from the environment: STREAMWSI_TEST_FOLDER, where notes and marks are kept; STREAMWSI_TEST_POINTS, a JSON list of
[role, point, n, victim]. Each process arms the first point of its role that has no mark, unless one of the driver's without a
mark comes before it in the list: then it arms none. When it comes to its point for the n-th time, it leaves the mark, so that
each point kills once, and SIGKILLs the victim: itself ("self"), the driver ("driver") or the whole process group ("all"). At
the points that are "torn" the kernel ends the process in the middle of a write(2), by its limit on the size of files.

Points, each "before …" or "after …":

    writer     CREATE TABLE chunks | COMMIT of tables | COMMIT of slide | BEGIN | INSERT second chunk | INSERT pieces |
               COMMIT of chunks                            and "torn COMMIT of chunks"
    publisher  fsync of file | replace of file | fsync of record | replace of record | unlink of journal |
               unlink of journal-wal | unlink of journal-shm         and "torn file"
    driver     replace of run file | replace of report
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("STREAMWSI_TEST_FOLDER")
POINTS = "STREAMWSI_TEST_POINTS"
TORN_FILE_BYTES = 2000
"""Of a patient's file, when its writing is torn."""
PILE_UP_S = 0.2
"""How long a commit waits for others to come after it, where one of several chunks is wanted."""


def role_of(arguments: list[str]) -> str:
    """What a process is, by its command line."""
    for argument in arguments:
        if argument.startswith("streamwsi-"):
            return argument.removeprefix("streamwsi-")
    return "driver" if "heatmap" in arguments else "other"


class Points:
    """The armed point of this process, and the note on where it is."""

    def __init__(self, folder: Path, role: str) -> None:
        self._note = os.open(folder / "inside" / str(os.getpid()), os.O_RDWR | os.O_CREAT)
        self._mark = folder / "marks"
        self._times = 0
        self._name: str | None = None
        self._at, self._victim = 0, "self"
        for number, (whose, name, at, victim) in enumerate(json.loads(os.environ.get(POINTS, "[]"))):
            mark = folder / "marks" / str(number)
            if mark.exists():
                continue
            if whose == role:
                self._mark, self._name, self._at, self._victim = mark, name, at, victim
            if whose in (role, "driver"):
                break

    def is_armed(self, name: str) -> bool:
        """Whether this is the point at which this process is to kill."""
        return name == self._name

    def reached(self, name: str) -> bool:
        """Whether this is the point, and this the time; says so once, and to one process only."""
        self._times += name == self._name
        if name != self._name or self._times != self._at:
            return False
        try:
            os.close(os.open(self._mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:  # another process of the role was there first
            return False
        return True

    def passed(self, name: str) -> None:
        """Kill here if it is time to."""
        if self.reached(name):
            driver = os.getpgrp()  # it leads the group; not the parent, which is another once the driver is dead
            if self._victim == "all":
                os.killpg(driver, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(driver if self._victim == "driver" else os.getpid(), signal.SIGKILL)

    def tear(self, name: str, largest_bytes: int) -> None:
        """Have this process ended, if it is time to, in the middle of the write that makes a file larger than that."""
        if not self.reached(name):
            return
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, largest_bytes))

    def inside(self, what: str) -> None:
        """Note what this process is in: "commit", "publication", or nothing."""
        os.pwrite(self._note, what.ljust(16).encode(), 0)


def watch_sqlite(points: Points, role: str) -> None:
    """Know of each statement before and after it is executed."""
    connect = sqlite3.connect

    class Connection(sqlite3.Connection):
        path = ""
        changes = ""
        """What the transaction under way has changed."""
        chunks = 0
        """How many chunks are in it."""

        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            name = self._name(statement)
            if name == "BEGIN":
                self.changes, self.chunks = "", 0
                points.inside("commit")
            points.passed(f"before {name}")
            if name == "COMMIT of chunks":
                if points.is_armed("before INSERT second chunk"):
                    threading.Event().wait(PILE_UP_S)
                points.tear("torn COMMIT of chunks", os.path.getsize(f"{self.path}-wal") + 1000)
            cursor = super().execute(statement, *values)
            points.passed(f"after {name}")
            if name.startswith("COMMIT"):
                points.inside("")
            return cursor

        def executemany(self, statement: str, rows: Any) -> sqlite3.Cursor:
            points.passed("before INSERT pieces")
            cursor = super().executemany(statement, rows)
            points.passed("after INSERT pieces")
            return cursor

        def _name(self, statement: str) -> str:
            words = " ".join(statement.split())
            if words.startswith("COMMIT"):
                return f"COMMIT of {self.changes}"
            if words.startswith("BEGIN"):
                return "BEGIN"
            if words.startswith("CREATE TABLE"):
                self.changes = "tables"
                return words.partition(" (")[0]
            if "INTO slides" in words:
                self.changes = "slide"
            elif "INTO chunks" in words:
                self.changes = "chunks"
                self.chunks += 1
                return "INSERT second chunk" if self.chunks == 2 else "INSERT chunk"
            return words[:20]

    def watched(path: Any, **options: Any) -> sqlite3.Connection:
        if role == "publisher":
            points.inside("publication")
            points.tear("torn file", TORN_FILE_BYTES)
        connection = connect(path, factory=Connection, **options)
        connection.path = os.fspath(path)
        return connection

    sqlite3.connect = watched


def watch_files(points: Points, role: str) -> None:
    """Know of each file before and after it is synced, renamed and removed."""
    replace, fsync, unlink = os.replace, os.fsync, Path.unlink
    syncs = {"publisher": 0}

    def kind(path: Any) -> str:
        path = Path(path)
        names = {"run.json": "run file", "report.json": "report"}
        return "record" if path.parent.name == ".published" else names.get(path.name, "file")

    def watched_replace(source: Any, target: Any) -> None:
        points.passed(f"before replace of {kind(target)}")
        replace(source, target)
        points.passed(f"after replace of {kind(target)}")

    def watched_fsync(descriptor: int) -> None:
        # In this order each time: the file, its folder, the record, its folder
        what = ("file", "folder", "record", "folder")[syncs["publisher"] % 4]
        syncs["publisher"] += role == "publisher"
        points.passed(f"before fsync of {what}")
        fsync(descriptor)
        points.passed(f"after fsync of {what}")

    def watched_unlink(path: Path, missing_ok: bool = False) -> None:
        _, dot, suffix = path.name.partition(".sqlite")
        what = f"journal{suffix}" if dot else "file"
        points.passed(f"before unlink of {what}")
        unlink(path, missing_ok)
        points.passed(f"after unlink of {what}")
        if suffix == "-shm":
            points.inside("")

    os.replace, os.fsync, Path.unlink = watched_replace, watched_fsync, watched_unlink  # type: ignore[assignment]


def watch() -> None:
    """Begin to watch this process, if it is one of a run."""
    role = role_of(sys.orig_argv)
    if FOLDER is not None and role != "other":
        points = Points(Path(FOLDER), role)
        watch_sqlite(points, role)
        watch_files(points, role)


watch()
