"""Collectors that look where their pixels lie, keep them, and take their time.

In: batches of windows that do not overlap, so that they are views of what the chunk lies in.  Out: a checksum of each window.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import streamwsi as sw

NAME = "memfd:streamwsi-slots"
"""What /proc calls the memory."""


def lies_in_slot(pixels: np.ndarray) -> bool:
    """Whether an array of this process lies in the shared memory."""
    address = pixels.ctypes.data
    with open("/proc/self/maps") as maps:
        places = [line.split()[0].split("-") for line in maps if NAME in line]
    return any(int(first, 16) <= address < int(end, 16) for first, end in places)


class Sums(sw.StreamCollector):
    """A number for each window in which every byte of it counts."""

    batch_size = 4

    def process(self, batch: sw.Batch) -> Any:
        return [zlib.crc32(np.ascontiguousarray(small.pixels)) for small in batch]


class Keeping(Sums):
    """Keeps a view of every batch, and lets go of all, in another thread, when it has so many.

    At the end it notes of each batch whether it lay in a slot.
    """

    def __init__(self, view: Callable[[np.ndarray], Any], lets_go_after: int, note: Path) -> None:
        self.view, self.lets_go_after, self.note = view, lets_go_after, note

    def setup(self) -> None:
        self.kept: list[Any] = []
        self.copies: list[np.ndarray] = []
        self.in_slot: list[bool] = []

    def process(self, batch: sw.Batch) -> Any:
        self.in_slot.append(lies_in_slot(batch.pixels))
        self.kept.append(self.view(batch.pixels))
        self.copies.append(np.array(self.kept[-1], copy=True))
        if len(self.kept) == self.lets_go_after:
            self.compare()
            self.copies.clear()
            thread = threading.Thread(target=self.kept.clear)
            thread.start()
            thread.join()
        return super().process(batch)

    def compare(self) -> None:
        for number, (view, copy) in enumerate(zip(self.kept, self.copies, strict=True)):
            if not np.array_equal(np.asarray(view), copy):
                raise RuntimeError(f"batch {number} has changed")

    def teardown(self) -> None:
        self.compare()
        self.note.write_text(json.dumps(self.in_slot))


class Slow(Sums):
    """Takes its time over a batch, and then writes into a file whether it lay in a slot (1) or not (0)."""

    def setup(self) -> None:
        self.log = os.open(os.environ["STREAMWSI_TEST_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.pause_s = float(os.environ["STREAMWSI_TEST_PAUSE_S"])
        self.never = threading.Event()

    def process(self, batch: sw.Batch) -> Any:
        self.never.wait(self.pause_s)
        os.write(self.log, b"1" if lies_in_slot(batch.pixels) else b"0")
        return super().process(batch)
