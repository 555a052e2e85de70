"""Processes that the user's code starts end when it tells them to, and keep nothing of the run's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamwsi as sw
from tests.pipeline.conftest import CLI
from tests.pipeline.test_failures import wait_for


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


class Forks(sw.StreamCollector):
    """Forks off a process that opens files, of whatever numbers are free, and forks in turn."""

    def process(self, batch: sw.Batch) -> Any:
        child = os.fork()
        if not child:
            files = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
            grandchild = os.fork()
            if not grandchild:
                with contextlib.suppress(OSError):
                    os._exit(sum(len(os.read(file, 1)) for file in files))
                os._exit(9)  # one was closed
            os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
        return np.full(len(batch), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


class Waits(sw.StreamCollector):
    """Runs a program in the run's own group, which a signal to the whole job ends."""

    arguments = ("begun",)

    def __init__(self, begun: str) -> None:
        self.begun = begun

    def process(self, batch: sw.Batch) -> Any:
        waits = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpgrp())); time.sleep(600)"
        subprocess.run([sys.executable, "-c", waits, self.begun], check=True)


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


def test_they_keep_the_files_that_they_open_when_they_fork_in_turn(one_patient: sw.Dataset, tmp_path: Path) -> None:
    assert run(one_patient, tmp_path, Forks()).exit_code == 0
    (file,) = tmp_path.glob("*.h5")
    assert (sw.read_pieces(file).values == 0).all()


def test_what_a_signal_to_the_whole_job_ends_does_not_fail_the_run(bundled: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    command = [*CLI, "heatmap", bundled, "--out", tmp_path / "out", "--kernel-size", "512", "--quiet"]
    collector = ["--collector", f"{__file__}:Waits", "--arg", f"begun={begun}"]
    started = subprocess.Popen([*command, *collector], stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: begun.exists() and begun.read_text() == str(started.pid))
    os.killpg(started.pid, signal.SIGTERM)
    said = started.communicate(timeout=60)[1]
    assert started.returncode == 128 + signal.SIGTERM, said


def test_one_that_outlives_the_run_does_not_keep_its_folder(one_patient: sw.Dataset, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(sw.CollectorError, match="ZeroDivisionError"):
        run(one_patient, tmp_path / "out", Leaves(pipe))
    assert run(one_patient, tmp_path / "out", Leaves(pipe)).exit_code == 0
    pipe.write_text("")  # it is still there: else nobody would read


def leave(_: Any) -> Any:
    """A transform that ends its process, or tries to."""
    sys.exit("no stain to go by")


def test_a_transform_that_exits_is_the_users_error(one_patient: sw.Dataset, tmp_path: Path) -> None:
    loader = sw.SlidingWindowLoader(one_patient, 512, border="crop", transforms={"pixels": leave})
    with pytest.raises(sw.CollectorError, match=r"SystemExit: no stain to go by\n  in transforms, patient"):
        sw.MeanCollector().start_collecting(loader, sw.HDF5StreamWriter(tmp_path), quiet=True)


def test_code_that_exits_is_the_users_error(one_patient: sw.Dataset, tmp_path: Path) -> None:
    with pytest.raises(sw.CollectorError, match=r"SystemExit: the model is not there\n  in Exits.process, patient"):
        run(one_patient, tmp_path, Exits())
