"""Memory that the processes of a run share: slots, each of which holds one big chunk's pixels.

In: how many slots, of what size.  Out: a descriptor that children inherit, and views into the slots.  Who may use which slot is
said elsewhere, over sockets.

The memory has no name: it is a file that exists in memory only (``memfd_create``), or one whose name is removed as soon as it
is open. It goes with the last process that has it, however that ends; there is nothing to clean up, and no other process can
find it. All of it is had before it is used: what the system does not have is refused when it is made, and no write into it can
fail later with a bus error, as in a ``/dev/shm`` that is too small. (``multiprocessing.shared_memory`` has neither property:
its blocks outlive a killed run, and before Python 3.13 the first child that ends removes those of the others.)
"""

from __future__ import annotations

import mmap
import os
import tempfile

import msgspec
import numpy as np

from streamwsi.chunks import UInt8Array
from streamwsi.config import Transport
from streamwsi.limits import free_memory_bytes
from streamwsi.memory import BEGIN

_SHARE_OF_FREE = 0.5
"""Of the memory that is free, what a run may take for its slots."""
_MEMORY_FOLDER = "/dev/shm"
"""Where a file without a name is made, where there is no ``memfd_create``, if there is such a place."""


class SlotsError(Exception):
    """The memory cannot be had; the message says why."""


class SlotsSpec(msgspec.Struct, frozen=True):
    """What a child is told of the slots."""

    descriptor: int
    count: int
    slot_bytes: int
    """Of one slot, and what lies before it."""


class SharedSlots:
    """The slots, mapped into this process for as long as this object or a view into a slot lives."""

    def __init__(self, spec: SlotsSpec) -> None:
        self.spec = spec
        self._map = mmap.mmap(spec.descriptor, spec.count * spec.slot_bytes)

    @property
    def room_bytes(self) -> int:
        """What a slot holds."""
        return self.spec.slot_bytes - BEGIN

    def slot(self, number: int) -> UInt8Array:
        """(room_bytes,) uint8, writable: one slot. All views into what is returned keep it alive, and it alone."""
        if not 0 <= number < self.spec.count:
            raise IndexError(f"there is no slot {number}: there are {self.spec.count}")
        start = number * self.spec.slot_bytes  # a page's
        # through a memoryview, so that NumPy does not look through it: whoever holds a view holds this array
        return np.frombuffer(memoryview(self._map)[start + BEGIN : start + self.spec.slot_bytes], np.uint8)


def can_be_shared(transport: Transport) -> bool:
    """Whether pixels go through shared memory here, where there is enough of it, if they are to go through `transport`."""
    return transport in ("auto", "shm") and hasattr(os, "posix_fallocate")


def make_slots(count: int, room_bytes: int) -> SlotsSpec:
    """`count` slots with room for at least `room_bytes` each, to be filled by `reserve_slots` before it is used.

    Raises SlotsError saying what is in the way.
    """
    slot_bytes = -(-(room_bytes + BEGIN) // mmap.PAGESIZE) * mmap.PAGESIZE
    size = count * slot_bytes
    free = free_memory_bytes()
    if free is not None and size > free * _SHARE_OF_FREE:
        raise SlotsError(f"{size / 1e6:.0f} MB are more than half of the {free / 1e6:.0f} MB that are free")
    descriptor = _nameless_file(size)
    try:
        os.truncate(descriptor, size)
    except OSError as error:
        os.close(descriptor)
        raise SlotsError(f"{size / 1e6:.0f} MB cannot be had: {error.strerror}") from error
    return SlotsSpec(descriptor, count, slot_bytes)


def reserve_slots(spec: SlotsSpec) -> None:
    """Have all the memory of slots, which others may have mapped already. Raises SlotsError where there is too little."""
    size = spec.count * spec.slot_bytes
    try:
        os.posix_fallocate(spec.descriptor, 0, size)
    except OSError as error:
        raise SlotsError(f"{size / 1e6:.0f} MB cannot be had: {error.strerror}") from error


def _nameless_file(size: int) -> int:
    try:
        if hasattr(os, "memfd_create"):
            return os.memfd_create("streamwsi-slots", os.MFD_CLOEXEC)
        folder = _MEMORY_FOLDER if os.path.isdir(_MEMORY_FOLDER) else tempfile.gettempdir()
        there = os.statvfs(folder)
        if there.f_bavail * there.f_frsize < size:
            raise SlotsError(f"{folder} has {there.f_bavail * there.f_frsize / 1e6:.0f} MB left, {size / 1e6:.0f} are needed")
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.dup(file.fileno())
    except (OSError, AttributeError) as error:
        raise SlotsError(f"no file in memory can be made: {error}") from error
