"""One run at a time on a folder."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from streamwsi.errors import OutputError, RunError
from streamwsi.pipeline import lock as lock_module
from streamwsi.pipeline.lock import STALE_S, FolderLock

HOLD = "import sys, os; os.set_inheritable({fd}, False); print('held', flush=True); sys.stdin.read()"


def child_holding(lock: FolderLock) -> subprocess.Popen[bytes]:
    assert lock.descriptor is not None
    command = [sys.executable, "-c", HOLD.format(fd=lock.descriptor)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(lock.descriptor,))
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    return child


def end(child: subprocess.Popen[bytes]) -> None:
    child.communicate()


def test_a_process_that_the_holder_forks_off_does_not_hold_it(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / ".lock")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(write)
        os.read(read, 1)  # until the parent is done
        os._exit(lock.descriptor is not None)
    try:
        with pytest.raises(OutputError, match="in use by another run"):
            FolderLock(tmp_path / ".lock")  # the parent has it still
        lock.close()
        FolderLock(tmp_path / ".lock").close()
    finally:
        os.close(write)
        assert os.waitpid(child, 0)[1] == 0
        os.close(read)


def test_a_second_holder_is_refused_naming_the_first(tmp_path: Path) -> None:
    first = FolderLock(tmp_path / ".lock")
    with pytest.raises(OutputError, match=rf"in use by another run \(pid {os.getpid()} on {socket.gethostname()}"):
        FolderLock(tmp_path / ".lock")
    first.close()
    first.close()
    FolderLock(tmp_path / ".lock").close()


def test_the_children_of_a_driver_that_is_gone_are_waited_for(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / ".lock")
    child = child_holding(lock)
    lock.close()
    # as a driver leaves it that was killed
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / ".lock").write_text(f"pid {gone.pid} on {socket.gethostname()}\n")
    with pytest.raises(OutputError, match=rf"children of it have not ended in 0 s: pid {child.pid}\)"):
        FolderLock(tmp_path / ".lock", ending_s=0.2)
    ending = threading.Timer(0.2, end, (child,))
    ending.start()
    FolderLock(tmp_path / ".lock", ending_s=30).close()
    ending.join()


def test_a_lock_is_never_on_a_file_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, flock = FolderLock(tmp_path / ".lock"), lock_module.fcntl.flock

    def just_removed(file: object, operation: int) -> None:
        monkeypatch.setattr(lock_module.fcntl, "flock", flock)
        first.remove()  # the second one has opened the file already
        flock(file, operation)

    monkeypatch.setattr(lock_module.fcntl, "flock", just_removed)
    second = FolderLock(tmp_path / ".lock")
    with pytest.raises(OutputError, match="in use by another run"):
        FolderLock(tmp_path / ".lock")
    second.remove()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has none."""

    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock_module.fcntl, "flock", flock)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_age_of_the_file_decides(tmp_path: Path) -> None:
    first = FolderLock(tmp_path / ".lock")
    with pytest.raises(OutputError, match=rf"pid {os.getpid()} .* was touched 0 s ago; after 60 s without a sign it is free"):
        FolderLock(tmp_path / ".lock")
    old = os.stat(tmp_path / ".lock").st_mtime - STALE_S - 1
    os.utime(tmp_path / ".lock", (old, old))
    second = FolderLock(tmp_path / ".lock")
    second.close()
    first.close()
    FolderLock(tmp_path / ".lock").close()


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_holder_that_slept_too_long_ends_and_leaves_the_next_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FolderLock(tmp_path / ".lock")
    os.utime(tmp_path / ".lock", (0, 0))
    (tmp_path / ".lock").write_text("pid 1 on another-host\n")  # who found the file old, and took it over
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", -1)
    with pytest.raises(RunError, match=r"another run \(pid 1 on another-host\) has taken .* over"):
        first.heartbeat()
    first.close()
    assert (tmp_path / ".lock").read_text() == "pid 1 on another-host\n"


def test_a_holder_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = FolderLock(tmp_path / ".lock")
    os.utime(tmp_path / ".lock", (0, 0))
    lock.heartbeat()
    assert os.stat(tmp_path / ".lock").st_mtime == 0
    monkeypatch.setattr(lock_module, "HEARTBEAT_S", -1)
    lock.heartbeat()
    assert os.stat(tmp_path / ".lock").st_mtime > 0
    lock.close()
