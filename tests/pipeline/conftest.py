"""Slides, collectors and watchers for runs with real processes."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import streamwsi as sw
from streamwsi.cli import main

CLI = [sys.executable, "-m", "streamwsi.cli"]


@pytest.fixture(scope="session")
def copies(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four slides: copies of the bundled one."""
    folder = tmp_path_factory.mktemp("slides")
    return [Path(shutil.copy(bundled, folder / f"copy{number}.svs")) for number in range(4)]


@pytest.fixture(scope="session")
def three_patients(copies: list[Path]) -> sw.Dataset:
    """Three patients, the second with two slides."""
    return sw.Dataset(
        [
            sw.Patient("anna", {"H&E": copies[0]}, {"label": 1}),
            sw.Patient("bert", {"H&E": copies[1], "second": copies[2]}, {"label": 2}),
            sw.Patient("cara", {"H&E": copies[3]}, {"label": 3}),
        ]
    )


@pytest.fixture
def one_patient(bundled: Path) -> sw.Dataset:
    return sw.Dataset([sw.Patient("p", {"s": bundled})])


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sockets of these runs lie apart from those of any other run on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process, socket folder or shared-memory block outlives a test."""
    before = leftovers()
    yield
    left = leftovers() - before
    assert not left, f"left behind: {left}"


def leftovers() -> set[str]:
    """What runs leave behind when they do not clean up."""
    processes = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "streamwsi-" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                processes.add(f"process {child.pid}")
    folders = {str(path) for path in Path(tempfile.gettempdir()).glob("streamwsi-*")}
    blocks = {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")} if os.path.isdir("/dev/shm") else set()
    return processes | folders | {block for block in blocks if "streamwsi" in block or "psm_" in block}


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own."""

    def run(*arguments: object, timeout: float = 100) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*CLI, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in this process, which does not have to start for it: for what is read, shown or refused."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = ["streamwsi", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", command)
        said, wrong = io.BytesIO(), io.BytesIO()
        out, errors = (io.TextIOWrapper(stream, encoding="utf-8", write_through=True) for stream in (said, wrong))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(command, ended.value.code, said.getvalue().decode(), wrong.getvalue().decode())

    return run


def workers_of(pid: int, role: str) -> list[psutil.Process]:
    """The worker processes of one role below a process."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if f"streamwsi-{role}" in child.cmdline():
                found.append(child)
    return found
