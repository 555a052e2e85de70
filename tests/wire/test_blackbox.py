"""Notes of what a worker is doing outlive it."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from streamwsi.wire.blackbox import _MOST_NOTES, BlackBox, Work, make_box, read_box


@pytest.fixture
def box() -> Iterator[int]:
    descriptor = make_box()
    assert descriptor is not None
    yield descriptor
    os.close(descriptor)


def test_what_is_under_way_is_noted_and_what_is_done_is_not(box: int) -> None:
    notes = BlackBox(box)
    assert read_box(box) == Work()
    with notes.chunk(7), notes.opening(2, 1):
        assert read_box(box) == Work((7,), ((2, 1),))
        with notes.chunk(0):
            assert sorted(read_box(box).leases) == [0, 7]
    assert read_box(box) == Work()


def test_threads_have_their_own_notes(box: int) -> None:
    notes, all_in, seen = BlackBox(box), threading.Barrier(5), threading.Event()

    def work(lease: int) -> None:
        with notes.chunk(lease):
            all_in.wait()
            seen.wait()

    threads = [threading.Thread(target=work, args=(lease,)) for lease in range(4)]
    for thread in threads:
        thread.start()
    all_in.wait()
    assert sorted(read_box(box).leases) == [0, 1, 2, 3]
    seen.set()
    for thread in threads:
        thread.join()
    assert read_box(box) == Work()


def test_notes_outlive_a_process_that_is_killed(box: int) -> None:
    code = f"""
import os, signal
from streamwsi.wire.blackbox import BlackBox
with BlackBox({box}).chunk(42):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], pass_fds=(box,), check=False).returncode == -9
    assert read_box(box) == Work((42,))


def test_where_there_is_no_room_nothing_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, size: int) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "truncate", refused)
    before = os.listdir("/proc/self/fd")
    assert make_box() is None
    assert os.listdir("/proc/self/fd") == before


def test_more_at_a_time_than_there_is_room_for_is_not_noted(box: int) -> None:
    notes = BlackBox(box)
    with contextlib.ExitStack() as stack:
        for lease in range(_MOST_NOTES + 3):
            stack.enter_context(notes.chunk(lease))
        assert read_box(box) == Work(tuple(range(_MOST_NOTES)))
    assert read_box(box) == Work()


def test_without_a_descriptor_nothing_is_noted() -> None:
    with BlackBox(None).chunk(1):
        assert read_box(None) == Work()
