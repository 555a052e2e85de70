"""``streamwsi doctor``: all is well here, and what is really broken is said."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from streamwsi import limits
from streamwsi.cli import cli
from streamwsi.cli.doctor import in_words, verdict
from streamwsi.doctor import folder as folder_module
from streamwsi.doctor import machine
from streamwsi.doctor.finding import Check, Finding, carry_out, note, ok, wrong
from streamwsi.doctor.folder import folder_checks, mounted_at, nearest
from streamwsi.doctor.machine import machine_checks

Findings = dict[str, Finding]


def found(checks: Iterator[Check]) -> Findings:
    return {finding.name: finding for finding in carry_out(checks)}


def doctor(*arguments: str, hidden: str | None = None, files: int | None = None) -> tuple[int, Findings]:
    """What the doctor finds in a process of its own, from which a module is hidden, or whose descriptors are limited."""
    code = f"import sys\n{f'sys.modules[{hidden!r}] = None' if hidden else ''}\nfrom streamwsi.cli import main\nmain()"

    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json", *arguments],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    assert not done.stderr, done.stderr
    groups = json.loads(done.stdout)
    return done.returncode, {entry["name"]: Finding(**entry) for group in groups.values() for entry in group}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts small file systems in memory, with options."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("needs root and mount, for file systems that are really full or read-only")
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"needs a file system of its own, which cannot be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    try:
        yield mount
    finally:
        for path in mounted:
            subprocess.run(["umount", path], check=True)


# all of it


def test_on_this_machine_nothing_is_wrong(tmp_path):
    out = tmp_path / "not" / "there"
    done = CliRunner().invoke(cli, ["doctor", "--json", "--out", str(out)], standalone_mode=False)
    groups = json.loads(done.stdout)
    assert [entry for group in groups.values() for entry in group if entry["state"] == "wrong"] == []
    assert done.return_value == 0
    assert {entry["name"] for entry in groups["software"]} >= {
        *("Python", "ZeroMQ", "HDF5", "OpenSlide", "decoding JPEG", "decoding JPEG 2000", "decoding LZW"),
        *("decoding Deflate", "decoding Zstandard", "reading a slide", "starting a process"),
    }
    assert {"processors", "memory", "shared memory", "open files", "sockets", "GPU"} <= {
        entry["name"] for entry in groups["machine"]
    }
    assert len(groups[str(out)]) == 7
    assert list(tmp_path.iterdir()) == []  # nothing is made, and nothing is left


def test_what_is_wrong_is_said_with_what_to_do():
    findings = carry_out(
        [
            Check("fine", lambda: ok("1.2"), ""),
            Check("odd", lambda: note("it is slow", "wait"), ""),
            Check("bad", lambda: wrong("it is full", "make room"), ""),
            Check("raises", lambda: {}["key"], "look it up"),
        ]
    )
    assert [finding.state for finding in findings] == ["ok", "note", "wrong", "wrong"]
    said = in_words("group", findings)
    assert "  WRONG  bad     it is full\n                 -> make room\n" in said
    assert "  WRONG  raises  KeyError: 'key'\n                 -> look it up" in said
    assert verdict(findings) == "2 will not work: bad, raises"
    assert verdict(findings[:2]) == "all is well; to be known: odd"
    assert verdict(findings[:1]) == "all is well"


# software


def test_a_codec_that_is_not_there_is_named():
    code, findings = doctor(hidden="imagecodecs")
    assert code == 1
    failed = {name for name, finding in findings.items() if finding.state == "wrong"}
    assert {"imagecodecs", "decoding JPEG 2000", "decoding LZW", "decoding Zstandard"} <= failed
    assert findings["decoding JPEG"].state == "ok" and findings["OpenSlide"].state == "ok"
    assert findings["imagecodecs"].remedy == (
        "install it anew in the environment of streamwsi: python -m pip install --force-reinstall imagecodecs"
    )


def test_a_library_that_is_not_there_is_named():
    code, findings = doctor(hidden="openslide")
    assert code == 1
    assert findings["OpenSlide"].state == findings["reading a slide"].state == "wrong"
    assert "openslide-bin" in str(findings["OpenSlide"].remedy)
    assert findings["decoding LZW"].state == "ok"


def test_a_decoder_that_gives_other_pixels_is_found(monkeypatch):
    from streamwsi.doctor import software
    from streamwsi.slides import tile_codecs

    def decode_wrongly(parts: Any, out: Any) -> None:
        out[...] = 0

    monkeypatch.setattr(tile_codecs, "decoder_of", lambda page: tile_codecs.CopyingDecoder(decode_wrongly))
    findings = found(check for check in software.software_checks() if check.name.startswith("decoding"))
    assert {finding.state for finding in findings.values()} == {"wrong"}
    assert re.search(r"mean difference \d+\.\d grey levels, at most 2 expected", findings["decoding JPEG"].said)


# the machine


def test_too_few_descriptors_are_wrong():
    code, findings = doctor(files=28)
    assert code == 1 and findings["open files"].state == "wrong"
    assert "28 at once in a process" in findings["open files"].said and findings["open files"].remedy


def test_few_descriptors_are_a_note(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, resource.RLIM_INFINITY))
    finding = found(machine_checks())["open files"]
    assert finding.state == "note" and "100 at once in a process (it may be raised to any number)" in finding.said


def test_a_control_group_that_allows_less_time_is_told(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(limits, "_folders", lambda controller: [tmp_path / "deeper", tmp_path])
    finding = found(machine_checks())["processors"]
    assert finding.state == "ok"
    assert finding.said == f"1 of {os.cpu_count()} may be used: a control group allows the work of 0.5"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert "control group" not in found(machine_checks())["processors"].said


def test_shared_memory_that_cannot_be_had_is_a_note(monkeypatch):
    for module in ("wire.shared_memory", "doctor.machine"):
        monkeypatch.setattr(f"streamwsi.{module}.free_memory_bytes", lambda: 10_000_000)
    findings = found(machine_checks())
    assert findings["shared memory"].state == "note"
    assert re.search(r"302 MB are more than half of the 10 MB that are free", findings["shared memory"].said)
    assert "through sockets" in str(findings["shared memory"].remedy)
    assert findings["memory"].state == "note" and "--chunk-px" in str(findings["memory"].remedy)


def test_descriptors_are_given_back():
    list(carry_out(machine_checks()))
    before = sorted(os.listdir("/proc/self/fd"))
    list(carry_out(machine_checks()))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_temporary_folder_that_cannot_hold_sockets_is_wrong(monkeypatch):
    from streamwsi.wire import channels

    monkeypatch.setattr(channels, "_LONGEST_SOCKET_PATH", 20)
    finding = found(machine_checks())["sockets"]
    assert finding.state == "wrong" and "no folder for sockets can be made" in finding.said
    assert "TMPDIR" in str(finding.remedy)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a tool of the graphics driver on the path, which does what it is told."""

    def install(script: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'", "GPU 0: NVIDIA H100; PyTorch is not installed"),
        ("echo 'no driver' >&2; exit 9", "nvidia-smi: no driver; PyTorch is not installed"),
    ],
)
def test_without_pytorch_the_driver_s_tool_is_asked(driver, monkeypatch, script, said):
    driver(script)
    monkeypatch.setattr(machine, "_pytorch_is_there", lambda: False)
    finding = found(machine_checks())["GPU"]
    assert (finding.state, finding.said) == ("note", said)


def test_a_gpu_that_pytorch_cannot_use_is_a_note(driver, monkeypatch):
    driver("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'")
    torch = SimpleNamespace(__version__="2.0", cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(machine, "_pytorch_is_there", lambda: True)
    finding = found(machine_checks())["GPU"]
    assert (finding.state, finding.said) == ("note", "GPU 0: NVIDIA H100, but PyTorch 2.0 can use none")


# a folder


def test_a_folder_that_is_not_there_yet_is_looked_at_where_it_will_be(tmp_path):
    assert nearest(tmp_path / "a" / "b") == tmp_path
    assert nearest(tmp_path) == tmp_path
    findings = found(folder_checks(tmp_path / "a" / "b"))
    assert findings["folder"].said == f"{tmp_path / 'a' / 'b'} can be made, in {tmp_path}"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        finding = found(folder_checks(out))["folder"]
        assert finding.state == "wrong" and finding.said == f"{tmp_path / 'file'} is not a folder"


def test_a_read_only_folder_is_wrong(disk):
    findings = found(folder_checks(disk("ro") / "out"))
    for name in ("folder", "write speed there", "rename there", "locks (flock) there", "SQLite there"):
        assert findings[name].state == "wrong" and "Read-only file system" in findings[name].said, name


def test_a_full_disk_is_wrong(disk):
    path = disk("size=64k")
    (path / "filler").write_bytes(bytes(64 * 1024))
    findings = found(folder_checks(path))
    assert findings["free space"].state == "wrong" and "it is full" in findings["free space"].said
    assert findings["write speed there"].state == "wrong" and f"{path} is full" in findings["write speed there"].said
    assert findings["SQLite there"].state == "wrong"


def test_a_small_disk_is_written_to_with_care(disk):
    path = disk("size=4m")
    findings = found(folder_checks(path))
    assert findings["write speed there"].state in ("ok", "note")
    assert "(2 MB written and synced)" in findings["write speed there"].said
    assert findings["free space"].state == "note"
    assert findings["file system"].state == "note" and "it lies in memory" in findings["file system"].said
    assert list(path.iterdir()) == []


def test_a_disk_without_room_for_another_file_is_wrong(disk):
    path = disk("size=4m,nr_inodes=2")
    (path / "one").touch()
    assert "no file can be added" in found(folder_checks(path))["free space"].said


def test_a_network_s_file_system_is_a_note_that_recommends_a_folder_for_journals(tmp_path, monkeypatch):
    for kind, said in {"nfs4": "nfs4, which is on a network", "fuse.sshfs": "fuse.sshfs, a program's own"}.items():
        monkeypatch.setattr(folder_module, "file_system_of", partial(lambda kind, folder: kind, kind))
        finding = found(folder_checks(tmp_path))["file system"]
        assert finding.state == "note" and finding.said == said
        assert "give --journal-dir a folder on a local disk" in str(finding.remedy)


def test_a_file_system_without_locks_is_a_note(tmp_path, monkeypatch):
    def no_locks(*arguments: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    finding = found(folder_checks(tmp_path))["locks (flock) there"]
    assert finding.state == "note" and finding.said == "there are none: No locks available"


def test_locks_that_do_not_hold_are_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *arguments: None)
    assert found(folder_checks(tmp_path))["locks (flock) there"].said == "two get the same lock"


def test_a_database_whose_locks_do_not_hold_is_wrong(tmp_path, monkeypatch):
    connect = sqlite3.connect

    def without_locks(path: Path, **options: Any) -> sqlite3.Connection:
        return connect(f"file:{path}?vfs=unix-none", uri=True, **options)

    monkeypatch.setattr(folder_module.sqlite3, "connect", without_locks)
    finding = found(folder_checks(tmp_path))["SQLite there"]
    assert finding.state == "wrong" and "--journal-dir" in str(finding.remedy)


names = st.lists(st.text("ab \\", min_size=1, max_size=3), min_size=0, max_size=4)


@given(st.lists(st.tuples(names, st.sampled_from(["ext4", "nfs4", "tmpfs"])), max_size=6), names)
def test_the_deepest_mount_says_what_a_folder_lies_on(mounts, folder):
    """By the definition: of all mounts at the folder or above it, the one with most parts; of equals, the last."""

    def escaped(parts: list[str]) -> str:
        return "/" + "/".join(parts).replace("\\", "\\134").replace(" ", "\\040")

    text = "".join(f"36 35 98:0 / {escaped(point)} rw shared:1 - {kind} source rw\n" for point, kind in mounts)
    above = [(len(point), number) for number, (point, _) in enumerate(mounts) if folder[: len(point)] == point]
    expected = mounts[max(above)[1]][1] if above else None
    assert mounted_at("/" + "/".join(folder), text) == expected
