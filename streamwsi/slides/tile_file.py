"""The bytes of tiles, from a file.

In: offsets and sizes.  Out: bytes.  Knows nothing of what they mean.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

_KEPT_BYTES = 5 << 20
"""Of memory for what is read, by each thread, at most."""


class TileFile:
    """A file that is closed when the last thread has let go of it: a number in use must not come to mean another file."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        self._size = os.fstat(self._descriptor).st_size
        self._seeking = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes. Raises EOFError where the file holds fewer; asks for no memory that it could not fill."""
        data = self._read(offset, size) if offset + size <= self._size else b""
        if len(data) != size:
            raise EOFError(f"the file ends within {size} bytes from {offset}")
        return data

    def read_behind(self, room: int, offset: int, size: int) -> bytearray:
        """As :meth:`read`, behind `room` bytes in memory of this thread's: it may write there until it reads again."""
        if offset + size > self._size or not hasattr(os, "preadv"):
            return bytearray(room) + self.read(offset, size)
        buffer = _buffer_of_thread(room + size)
        if os.preadv(self._descriptor, [memoryview(buffer)[room : room + size]], offset) != size:
            raise EOFError(f"the file ends within {size} bytes from {offset}")
        return buffer

    def _read(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, offset)
        with self._seeking:  # Windows
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.read(self._descriptor, size)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


_of_thread = threading.local()


def _buffer_of_thread(n_bytes: int) -> bytearray:
    """At least so many bytes: the thread's own, whatever file it reads, as far as it suffices."""
    if n_bytes > _KEPT_BYTES:
        return bytearray(n_bytes)
    buffer: bytearray | None = getattr(_of_thread, "buffer", None)
    if buffer is None:
        buffer = _of_thread.buffer = bytearray(_KEPT_BYTES)
    return buffer
