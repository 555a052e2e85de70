"""Memory depends on the options, not on how much is streamed or which stage is slow."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.pipeline.conftest import CLI, workers_of

CHUNK_PX = 256 * 256
CHUNKS = 32 * 44
STREAMED_MB = CHUNKS * CHUNK_PX * 3 / 1e6
"""What passes from the loader to the collectors, one window of 256 px in each chunk: 277 MB."""
FLAT_MB = 40
"""What the sum of all processes may grow by, once all have seen some chunks: OpenSlide's cache of tiles (32 MB) fills."""

COLLECTOR = """
import threading
import streamwsi as sw

class Resting(sw.StreamCollector):
    def __init__(self, rest_s):
        self.rest_s = rest_s
    def process(self, batch):
        threading.Event().wait(self.rest_s)
        return batch.pixels.mean(axis=(1, 2))
"""


@contextmanager
def stopped(worker: psutil.Process) -> Iterator[None]:
    worker.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()


def resident_mb(pid: int) -> float:
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total / 1e6


@pytest.mark.parametrize("slow", ["collector", "writer"])
def test_memory_is_flat_over_a_thousand_chunks_whatever_is_slow(bundled: Path, tmp_path: Path, slow: str) -> None:
    (tmp_path / "resting.py").write_text(COLLECTOR)
    command = [
        *(*CLI, "heatmap", bundled, "--out", tmp_path / "out", "--collector", f"{tmp_path / 'resting.py'}:Resting"),
        *("--stride", 64, "--chunk-px", CHUNK_PX, "--format", "csv", "--arg", f"rest_s={0.005 if slow == 'collector' else 0}"),
    ]
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
    samples = []
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.poll() is None:
            writers = workers_of(process.pid, "writer")
            with stopped(writers[0]) if writers and slow == "writer" else contextlib.nullcontext():
                # The writer sleeps three quarters of the time
                _pause(process, 0.06)
            samples.append(resident_mb(process.pid))
            _pause(process, 0.02)
    assert process.wait() == 0, process.stderr.read() if process.stderr else ""
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["windows"] == CHUNKS and report["patients"][0]["slides"][0]["written"] == CHUNKS
    assert len(samples) > 30
    # The first third: processes start and see their first chunks. The last samples: they end.
    early, late = samples[len(samples) // 3 : len(samples) // 2], samples[len(samples) // 2 : -3]
    assert max(late) - max(early) < FLAT_MB < STREAMED_MB / 6, [round(sample) for sample in samples]


def _pause(process: subprocess.Popen[str], seconds: float) -> None:
    """Let the run go on for a while, or until it ends."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
