"""Processes that the user's code starts end when it tells them to, and keep nothing of the run's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamwsi as sw


class Starts(sw.StreamCollector):
    """Starts processes in both ways, tells them to end, and waits until they have: how they ended is the value."""

    def process(self, batch: sw.Batch) -> Any:
        executed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        executed.terminate()
        forked = os.fork()
        if not forked:
            while True:
                signal.pause()
        os.kill(forked, signal.SIGTERM)
        ends = [executed.wait(60), -os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])]
        return np.tile([-ends[0], ends[1]], (len(batch), 1))


class Leaves(sw.StreamCollector):
    """Leaves a process behind that waits for whoever opens a pipe, and goes wrong once."""

    arguments = ("pipe",)

    def __init__(self, pipe: Path) -> None:
        self.pipe = pipe

    def process(self, batch: sw.Batch) -> Any:
        if self.pipe.with_suffix(".left").exists():
            return np.zeros(len(batch))
        self.pipe.with_suffix(".left").touch()
        if not os.fork():
            self.pipe.read_text()
            os._exit(0)
        raise ZeroDivisionError


class Exits(sw.StreamCollector):
    """Ends its process, or tries to."""

    def process(self, batch: sw.Batch) -> Any:
        sys.exit("the model is not there")


def run(dataset: sw.Dataset, out: Path, collector: sw.StreamCollector) -> sw.Report:
    loader = sw.SlidingWindowLoader(dataset, 512, border="crop")
    return collector.start_collecting(loader, sw.HDF5StreamWriter(out), quiet=True)


def test_they_end_when_they_are_told_to(one_patient: sw.Dataset, tmp_path: Path) -> None:
    assert run(one_patient, tmp_path, Starts()).exit_code == 0
    (file,) = tmp_path.glob("*.h5")
    assert (sw.read_pieces(file).values == signal.SIGTERM).all()


def test_one_that_outlives_the_run_does_not_keep_its_folder(one_patient: sw.Dataset, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(sw.CollectorError, match="ZeroDivisionError"):
        run(one_patient, tmp_path / "out", Leaves(pipe))
    assert run(one_patient, tmp_path / "out", Leaves(pipe)).exit_code == 0
    pipe.write_text("")  # it is still there: else nobody would read


def test_code_that_exits_is_the_users_error(one_patient: sw.Dataset, tmp_path: Path) -> None:
    with pytest.raises(sw.CollectorError, match=r"SystemExit: the model is not there\n  in Exits.process, patient"):
        run(one_patient, tmp_path, Exits())
