"""Folders of sockets that killed runs have left, and those that are somebody's."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from streamwsi.wire.channels import Context, make_address, remove_address

DAY_AGO = time.time() - 86400


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of its own, with a short path."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def age(folder: Path) -> None:
    os.utime(folder, (DAY_AGO, DAY_AGO))


def test_what_killed_runs_have_left_is_removed_by_a_later_one(temporary: Path) -> None:
    left = Path(make_address("ipc").folder)
    (left / "driver").touch()
    for other in ("streamwsi-young", "somebody-elses"):
        (temporary / other).mkdir()
    (temporary / "streamwsi-file").touch()
    (temporary / "streamwsi-link").symlink_to(temporary / "somebody-elses")
    age(left)
    age(temporary / "somebody-elses")
    age(temporary / "streamwsi-file")
    address = make_address("ipc")
    assert sorted(path.name for path in temporary.iterdir()) == sorted(
        ["somebody-elses", "streamwsi-file", "streamwsi-link", "streamwsi-young", Path(address.folder).name]
    )


def test_a_folder_stays_for_as_long_as_any_process_of_its_run_lives(temporary: Path) -> None:
    address = make_address("ipc")
    folder = Path(address.folder)
    code = (
        "import sys, msgspec; from streamwsi.wire.channels import Address, Context\n"
        "with Context(msgspec.msgpack.decode(bytes.fromhex(sys.argv[1]), type=Address)):\n"
        "    print(flush=True); sys.stdin.read()"
    )
    told = msgspec.msgpack.encode(address).hex()
    child = subprocess.Popen([sys.executable, "-c", code, told], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline()
        with Context(address):
            age(folder)
            remove_address(make_address("ipc"))
            assert folder.is_dir()
        remove_address(make_address("ipc"))
        assert folder.is_dir()  # the child has it still
    finally:
        child.kill()
        child.wait()
    remove_address(make_address("ipc"))
    assert not folder.exists()
