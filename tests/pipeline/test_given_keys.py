"""Runs over TCP with keys that the user gives; nothing here is reachable from another machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import streamwsi as sw
from tests.pipeline.conftest import CLI
from tests.pipeline.test_results import Cli, run

ISOLATED = """
import fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:  # the namespace's loopback is down at first
    up = struct.pack("16sH14s", b"lo", 0x1 | 0x40, b"")  # IFF_UP | IFF_RUNNING
    fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
from streamwsi.cli import main
main()
"""
"""The command line in a network of its own, in which there is nothing but loopback."""

LISTENING = """
import sys
import numpy as np
import streamwsi as sw

class Listening(sw.StreamCollector):
    def process(self, batch):
        with open("/proc/self/net/tcp") as table:
            rows = [line.split() for line in table][1:]
        listening = {row[1].partition(":")[0] for row in rows if row[3] == "0A"}
        assert listening == {"00000000"}, listening
        return np.zeros(len(batch))
"""


@pytest.fixture
def keys(tmp_path: Path, here: Cli) -> Path:
    made = here("keys", tmp_path / "keys")
    assert made.returncode == 0, made.stderr
    assert str(tmp_path / "keys") in made.stdout
    return tmp_path / "keys"


def test_the_result_is_that_of_any_other_transport(one_patient: sw.Dataset, tmp_path: Path, keys: Path) -> None:
    run(one_patient, tmp_path / "ipc")
    run(one_patient, tmp_path / "tcp", transport="tcp", tcp_host="127.0.0.2", key_dir=keys, collectors=2)
    assert (tmp_path / "tcp" / "p.csv").read_bytes() == (tmp_path / "ipc" / "p.csv").read_bytes()


def test_a_run_goes_on_with_other_keys_and_another_host(one_patient: sw.Dataset, tmp_path: Path, keys: Path) -> None:
    run(one_patient, tmp_path / "out", transport="tcp", tcp_host="127.0.0.2", key_dir=keys)
    assert run(one_patient, tmp_path / "out").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"transport": "tcp", "tcp_host": "0.0.0.0"},
            r"tcp_host '0\.0\.0\.0' is open to other machines.*streamwsi keys FOLDER",
        ),
        ({"transport": "tcp", "tcp_host": "node17"}, r"tcp_host 'node17' is open to other machines"),
        ({"transport": "tcp", "tcp_host": ""}, r"tcp_host must be an address or a name"),
        ({"transport": "ipc", "tcp_host": "127.0.0.2"}, r"tcp_host '127\.0\.0\.2' goes with transport 'tcp', got 'ipc'"),
        ({"key_dir": "keys"}, r"key_dir 'keys' goes with transport 'tcp', got 'auto'"),
    ],
)
def test_what_cannot_be_listened_on_is_refused(
    one_patient: sw.Dataset, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(sw.ConfigError, match=message):
        run(one_patient, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_address_of_another_machine_is_refused_before_anything_starts(
    one_patient: sw.Dataset, tmp_path: Path, keys: Path
) -> None:
    with pytest.raises(sw.ConfigError, match=r"'192\.0\.2\.1' is no address of this machine"):
        run(one_patient, tmp_path / "out", transport="tcp", tcp_host="192.0.2.1", key_dir=keys)
    assert not (tmp_path / "out").exists()


def test_the_command_line_refuses_keys_that_others_can_read(bundled: Path, tmp_path: Path, keys: Path, here: Cli) -> None:
    tcp = ("--transport", "tcp", "--key-dir", keys)
    (keys / "server_secret").chmod(0o644)
    done = here("heatmap", bundled, "--out", tmp_path / "out", "--collector", "mean", *tcp)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "server_secret holds secrets and has mode 0644" in done.stderr and f"chmod 600 {keys}" in done.stderr
    again = here("keys", keys)
    assert again.returncode == 2 and "is there already: no key is overwritten" in again.stderr


def test_a_run_may_listen_on_every_address(bundled: Path, tmp_path: Path, keys: Path) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network of its own can be had here, and in the machine's own others could reach the run")
    (tmp_path / "listening.py").write_text(LISTENING)
    command = [*alone, sys.executable, "-c", ISOLATED, *CLI[3:], "heatmap", bundled, "--out", tmp_path / "out"]
    command += ["--collector", f"{tmp_path / 'listening.py'}:Listening", "--format", "csv"]
    command += ["--transport", "tcp", "--tcp-host", "0.0.0.0", "--key-dir", keys]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["windows"] == 108
