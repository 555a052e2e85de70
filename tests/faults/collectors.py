"""Collectors of the kill suite: each tells, in a file, what it begins to process, and takes its time over it.

In, from the environment: the siege's folder, where a line is added to the file `processed` for each batch; the number of the
run, which stands in it; a pause.  Out: values that depend on nothing but the window, and none for some windows. Named by file
path, as users' collectors are.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

import streamwsi as sw


class Mean(sw.StreamCollector):
    columns = ("mean", "spread")

    def setup(self) -> None:
        log = Path(os.environ["STREAMWSI_TEST_FOLDER"], "processed")
        self.file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.run = os.environ["STREAMWSI_TEST_RUN"]
        self.pause_s = float(os.environ["STREAMWSI_TEST_PAUSE_S"])
        self.never = threading.Event()

    def process(self, batch: sw.Batch) -> Any:
        line = f"{self.run}\t{batch.patient.id}\t{batch.slide.id}\t{batch.windows.index[0]}\n"
        os.write(self.file, line.encode())  # one write, so that lines of several processes do not mix
        self.never.wait(self.pause_s)
        return [
            sw.ProcessedPiece(window, np.array([seen.mean(), seen.std()], np.float32))
            for window, seen in zip(batch.windows, batch.pixels[:, ::4, ::4], strict=True)
            if window.index % 7 != 3
        ]


class Sum(Mean):
    """A result in which every window and their order count."""

    mode = "accumulate"

    def accumulate(self, previous: Any, piece: sw.ProcessedPiece, patient: sw.Patient) -> Any:
        before = previous or {"sum": 0.0, "windows": 0}
        return {"sum": before["sum"] * 0.9 + float(piece.value[0]), "windows": before["windows"] + 1}


class Table(Mean):
    mode = "collect"

    def collate(self, patient: sw.Patient, pieces: list[sw.ProcessedPiece]) -> Any:
        return {
            "index": np.array([piece.window.index for piece in pieces]),
            "values": np.stack([piece.value for piece in pieces]),
            "slides": [piece.slide.id for piece in pieces if piece.slide],
        }


class Pictures(Mean):
    """Images of the windows, of half the size."""

    def process(self, batch: sw.Batch) -> Any:
        super().process(batch)
        return [sw.ProcessedPiece(small.window, small.pixels[::2, ::2]) for small in batch if small.window.index % 7 != 3]


class Labelled(Mean):
    """What a label image has where the windows lie, too."""

    columns = ("mean", "labels")

    def process(self, batch: sw.Batch) -> Any:
        super().process(batch)
        return np.stack([values.reshape(len(batch), -1).mean(axis=1) for values in (batch.pixels, batch.labels)], axis=1)


class Shades(Mean):
    """Images of a quarter of the size, to be blended to a map."""

    columns = None

    def process(self, batch: sw.Batch) -> Any:
        super().process(batch)
        return batch.pixels[:, ::4, ::4]


class Few(Mean):
    """Stops each patient after its first windows."""

    def is_finished(self, patient: sw.Patient, windows_done: int) -> bool:
        return windows_done >= 60
