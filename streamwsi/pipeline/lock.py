"""One run at a time on a folder.

In: a file to lock.  Out: the lock, or a refusal that names who holds it.

The lock is the kernel's (flock), held by the driver and, through the descriptor they inherit, by its children: it ends when the
last of them has ended, however they end, and no process outlives a lock that another run already has. Where a file system has
no locks, the file's age decides: its holder touches it all the time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import IO

from streamwsi.errors import OutputError, RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ENDING_S = 10.0
"""How long the children of a driver that is gone may take to end: they notice at once, and finish a commit."""
HEARTBEAT_S = 5.0
"""How often a holder touches the file."""
STALE_S = 60.0
"""Without locks: a file that was not touched for so long has lost its holder."""


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for lock in list(_held):
        lock.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class FolderLock:
    """The lock on a run's folder. Closing it twice is harmless."""

    def __init__(self, path: Path, ending_s: float = ENDING_S) -> None:
        """Take the lock; waits for the children of a driver that is gone, for `ending_s` seconds at most.

        Raises OutputError naming process and host of the run that has it.
        """
        self._path = path
        self._name = f"pid {os.getpid()} on {socket.gethostname()}"
        self._file: IO[str] | None = None
        self._taking: IO[str] | None = None
        """The file while it is not locked yet."""
        _held.add(self)
        while self._file is None:
            self._file = self._take(ending_s)
        self._touched = time.monotonic()

    def leave_to_parent(self) -> None:
        """In a process that was forked off: it is not the one that runs, and does not keep others out."""
        file, self._file = self._file, None
        for each in (file, self._taking):
            if each is not None:
                each.close()

    @property
    def descriptor(self) -> int | None:
        """What children inherit; None once it is closed."""
        return None if self._file is None else self._file.fileno()

    def heartbeat(self) -> None:
        """Show that the holder is alive, now and then.

        Raises RunError where another run has taken the folder over, as it may without locks from a process that stood still.
        """
        if self._file is not None and time.monotonic() - self._touched > HEARTBEAT_S:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):  # a full or read-only disk is noticed where it matters
                if not self._is_ours():
                    raise RunError(
                        f"another run ({self._holder() or 'ended since'}) has taken {self._path.parent} over, while this one "
                        f"gave no sign of life for {STALE_S:.0f} s"
                    )
                os.utime(self._path)

    def close(self) -> None:
        """Let go of the lock (children that are still there hold it on)."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                if self._is_ours():
                    file.truncate(0)  # nobody's any more, which matters where there are no locks
            file.close()

    def remove(self) -> None:
        """Let go of the lock for good: its file is removed, while it is still locked."""
        with contextlib.suppress(OSError):
            if self._file is not None and self._is_ours():
                self._path.unlink()
        self.close()

    def _take(self, ending_s: float) -> IO[str] | None:
        """The file, locked and signed; None where it was removed by a run that had it before."""
        path = self._path
        existed = path.exists()
        age_s = time.time() - path.stat().st_mtime if existed else STALE_S
        file = self._taking = path.open("a+")
        try:
            if self._lock(file, ending_s):
                if not self._lies_there(file):
                    file.close()
                    return None
            elif existed and age_s < STALE_S and self._holder():
                raise self._refusal(f"{path} was touched {age_s:.0f} s ago; after {STALE_S:.0f} s without a sign it is free")
            file.truncate(0)
            file.write(f"{self._name}\n")
            file.flush()
        except BaseException:
            file.close()
            raise
        finally:
            self._taking = None
        return file

    def _lies_there(self, file: IO[str]) -> bool:
        """The file is the one that others find; one that was removed keeps nobody out."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _lock(self, file: IO[str], ending_s: float) -> bool:
        """Take the kernel's lock; False where there are none."""
        if not hasattr(fcntl, "flock"):  # Windows
            return False
        until = time.monotonic() + ending_s
        pause = threading.Event()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._holder_is_alive():
                    raise self._refusal("it is under way") from None
                if time.monotonic() > until:
                    who = ", ".join(f"pid {process}" for process in _others_with(file))
                    raise self._refusal(
                        f"its driver is gone, but children of it have not ended in {ending_s:.0f} s{who and ': '}{who}"
                    ) from None
                pause.wait(0.05)
            except OSError:
                return False
            else:
                return True

    def _holder(self) -> str:
        return self._path.read_text().strip()

    def _is_ours(self) -> bool:
        return self._holder() == self._name

    def _holder_is_alive(self) -> bool:
        try:
            words = self._holder().split()
        except FileNotFoundError:
            return False  # it is removing its folder this moment
        if len(words) != 4 or words[3] != socket.gethostname():
            return bool(words)  # of another host it cannot be told; of nobody, it is being taken or let go this moment
        try:
            os.kill(int(words[1]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def _refusal(self, why: str) -> OutputError:
        return OutputError(
            f"{self._path.parent} is in use by another run ({self._holder() or 'unknown process'}; {why}): wait until it has "
            f"ended, or choose another folder"
        )


def _others_with(file: IO[str]) -> list[int]:
    """Processes that have a file open; none where the system does not show that."""
    ours, found = os.fstat(file.fileno()), []
    for process in Path("/proc").glob("[0-9]*"):
        descriptors: list[Path] = []
        with contextlib.suppress(OSError):  # it is another user's, or has just ended
            descriptors = list((process / "fd").iterdir())
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                if os.path.samestat(ours, descriptor.stat()):
                    found.append(int(process.name))
                    break
    return sorted(set(found) - {os.getpid()})
