"""Collectors that cost next to nothing, so that what is measured is the way to them and from them.

In: batches.  Out: a value per window.  Imports nothing heavy: collector processes import it.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import streamwsi as sw

CACHE_LINE = 64
N_FEATURES = 1024


def touch(pixels: np.ndarray) -> np.ndarray:
    """(n,) uint8 from (n, height, width, 3) uint8: the largest of one byte of each cache line, so that all of them are read."""
    largest: np.ndarray = pixels.reshape(len(pixels), -1)[:, ::CACHE_LINE].max(axis=1)
    return largest


class Touch(sw.StreamCollector):
    """Touches every pixel of every window, and no more."""

    def process(self, batch: sw.Batch) -> Any:
        """One number for each window."""
        return touch(batch.pixels)


class Device(sw.StreamCollector):
    """Stands for a model on a device: a batch takes it a fixed time, in which the processor is free."""

    arguments = ("step_s",)

    def __init__(self, step_s: float = 0.020) -> None:
        self.step_s = step_s

    def process(self, batch: sw.Batch) -> Any:
        """One number for each window, after a while."""
        time.sleep(self.step_s)
        return batch.pixels[:, 0, 0, 0]


class Features(sw.MeanCollector):
    """As many values as an encoder gives, for no more work than `MeanCollector`'s: its means, projected."""

    columns = None

    def setup(self) -> None:
        """Make up a projection."""
        self._projection = np.random.default_rng(0).standard_normal((3, N_FEATURES), np.float32)

    def process(self, batch: sw.Batch) -> Any:
        """(n, 1024) float32."""
        return super().process(batch).astype(np.float32) @ self._projection
