"""What a worker is doing, noted where it outlives the worker.

In: the beginning and end of each piece of work.  Out: the work that was under way when its process ended, however it ended.

A note is written into a file without a name that driver and worker share, before the work begins: it is there when the worker
has no time for a last word. That takes a microsecond; nothing is synced, for a process's end does not touch the page cache.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_NOTE = struct.Struct("<qqq")
_CHUNK, _SLIDE = 1, 2


class Work(NamedTuple):
    """What was under way."""

    leases: tuple[int, ...] = ()
    """Chunks being read or processed."""
    slides: tuple[tuple[int, int], ...] = ()
    """(patient, slide) being opened."""


class BlackBox:
    """One worker's notes. Without a descriptor (Windows) nothing is noted."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
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
            self._write(slot, 0, 0, 0)
            with self._lock:
                self._free.append(slot)

    def _write(self, slot: int, *note: int) -> None:
        if self._descriptor is not None:
            os.pwrite(self._descriptor, _NOTE.pack(*note), slot * _NOTE.size)


def make_box() -> int | None:
    """A descriptor for a worker's notes; None where a child cannot inherit one."""
    if not hasattr(os, "pwrite"):
        return None
    if hasattr(os, "memfd_create"):
        return os.memfd_create("streamwsi-notes")  # in memory: a full disk is none of its business
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def read_box(descriptor: int | None) -> Work:
    """What a worker is doing, or was doing when it ended."""
    if descriptor is None:
        return Work()
    notes = list(_NOTE.iter_unpack(os.pread(descriptor, os.fstat(descriptor).st_size, 0)))
    return Work(
        tuple(lease for kind, lease, _ in notes if kind == _CHUNK),
        tuple((patient, slide) for kind, patient, slide in notes if kind == _SLIDE),
    )
