"""What a worker is doing, noted where it outlives the worker.

In: the beginning and end of each piece of work.  Out: the work that was under way when its process ended, however it ended.

A note is written into memory that driver and worker share, before the work begins: it is there when the worker has no time for
a last word. That takes less than a microsecond, and no call of the system; nothing is synced, for a process's end does not
touch what others share.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_NOTE, _KIND = struct.Struct("<qqq"), struct.Struct("<q")
_NOTHING, _CHUNK, _SLIDE = 0, 1, 2
_MOST_NOTES = 512
"""As many pieces of work at a time as are noted."""


class Work(NamedTuple):
    """What was under way."""

    leases: tuple[int, ...] = ()
    """Chunks being read or processed."""
    slides: tuple[tuple[int, int], ...] = ()
    """(patient, slide) being opened."""


class BlackBox:
    """One worker's notes. Without a descriptor (Windows) nothing is noted."""

    def __init__(self, descriptor: int | None) -> None:
        self._notes = None if descriptor is None else mmap.mmap(descriptor, _MOST_NOTES * _NOTE.size)
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._slots = 0

    @contextmanager
    def chunk(self, lease: int) -> Iterator[None]:
        """A chunk is being read or processed inside; from any thread."""
        with self._noted(_CHUNK, lease, 0):
            yield

    @contextmanager
    def opening(self, patient: int, slide: int) -> Iterator[None]:
        """A slide is being opened inside; from any thread."""
        with self._noted(_SLIDE, patient, slide):
            yield

    @contextmanager
    def _noted(self, *note: int) -> Iterator[None]:
        with self._lock:
            if not self._free:
                self._free.append(self._slots)
                self._slots += 1
            slot = self._free.pop()
        self._write(slot, *note)
        try:
            yield
        finally:
            self._write(slot, _NOTHING)
            with self._lock:
                self._free.append(slot)

    def _write(self, slot: int, kind: int, *what: int) -> None:
        if self._notes is None or slot >= _MOST_NOTES:
            return
        if kind != _NOTHING:
            _NOTE.pack_into(self._notes, slot * _NOTE.size, _NOTHING, *what)
        _KIND.pack_into(self._notes, slot * _NOTE.size, kind)  # last: a note is there when all of it is


def make_box() -> int | None:
    """A descriptor for a worker's notes; None where a child cannot inherit one, or there is no room for any."""
    if os.name == "nt":
        return None
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("streamwsi-notes")  # in memory: a full disk is none of its business
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.truncate(descriptor, _MOST_NOTES * _NOTE.size)
    except OSError:  # a limit on the size of files counts here too
        os.close(descriptor)
        return None
    return descriptor


def read_box(descriptor: int | None) -> Work:
    """What a worker is doing, or was doing when it ended."""
    if descriptor is None:
        return Work()
    notes = list(_NOTE.iter_unpack(os.pread(descriptor, os.fstat(descriptor).st_size, 0)))
    return Work(
        tuple(lease for kind, lease, _ in notes if kind == _CHUNK),
        tuple((patient, slide) for kind, patient, slide in notes if kind == _SLIDE),
    )
