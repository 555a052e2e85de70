"""A run that listens, and peers that mean it no good: its result is that of a run left alone, and its memory stays flat.

Nobody but the run's own processes can make a message that it takes, so replays and pieces for the wrong windows are given to a
writer by a driver and collectors that the test plays itself.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import resource
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import psutil
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from zmq.utils import z85

import streamwsi as sw
from streamwsi.chunks import Status
from streamwsi.config import OutputOptions
from streamwsi.errors import WireError
from streamwsi.values import ValueSpec
from streamwsi.wire import messages
from streamwsi.wire.channels import Address, Context, ControlServer, DataOutputs, Poll, make_address, remove_address
from streamwsi.wire.keys import RunKeys, read_keys, write_keys
from streamwsi.wire.messages import Codec, Hello, Pieces, Stop
from streamwsi.wire.seat import Seat
from streamwsi.writing.journal import Journal
from streamwsi.writing.layout import Layout
from streamwsi.writing.main import WritingOptions, pieces_of, run_writer
from tests.pipeline.conftest import CLI, workers_of
from tests.pipeline.test_failures import wait_for
from tests.pipeline.test_results import run
from tests.writing.fabricate import resolved_slide

FLAT_MB = 60
"""What the processes that listen may grow by together while they are attacked."""
SILENT = 200
PATIENCE_S = 30

SLOW = """
import os, threading
import streamwsi as sw

class Slow(sw.StreamCollector):
    columns = ("mean",)
    def __init__(self, until):
        self.until = until
    def process(self, batch):
        at_the_end = batch.windows.index[-1] > 1300
        threading.Event().wait(0 if os.path.exists(self.until) else 0.1)
        while at_the_end and not os.path.exists(self.until):
            threading.Event().wait(0.02)
        return batch.pixels.mean(axis=(1, 2, 3))
"""


# ---- a run under attack


@pytest.fixture(scope="module")
def slow(copies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A run that is slow, and does not end, until a file is there: its command line less folder and options, and the file."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow.py").write_text(SLOW)
    command = [*CLI, "heatmap", copies[0], "--collector", f"{folder / 'slow.py'}:Slow", "--arg", f"until={folder / 'now'}"]
    command += ["--stride", 64, "--chunk-px", 1 << 17, "--batch-size", 4, "--format", "csv", "--collectors", 2]
    return [str(part) for part in command], folder / "now"


@pytest.fixture(scope="module")
def undisturbed(slow: tuple[list[str], Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    command, now = slow
    out = tmp_path_factory.mktemp("undisturbed")
    now.touch()
    subprocess.run([*command, "--out", str(out), "--quiet"], check=True)
    now.unlink()
    return (out / "copy0.csv").read_bytes()


class Target(NamedTuple):
    """A socket that a process of the run listens on."""

    role: str
    family: int
    address: Any

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.address}" if self.family == socket.AF_UNIX else "tcp://{}:{}".format(*self.address)


def listening(process: subprocess.Popen[str], transport: str, folder: Path) -> list[Target]:
    """All sockets that a run listens on."""
    if transport == "ipc":
        return [Target(path.name.partition("-")[0], socket.AF_UNIX, str(path)) for path in folder.glob("streamwsi-*/*")]
    found = []
    for child in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        role = next((word[10:] for word in child.cmdline() if word.startswith("streamwsi-")), "driver")
        for connection in child.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.append(Target(role, socket.AF_INET, tuple(connection.laddr)))
    return found


def greeting(mechanism: bytes) -> bytes:
    """How ZMTP 3.0 begins. Source: https://rfc.zeromq.org/spec/23/"""
    return b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + mechanism.ljust(20, b"\0") + b"\0" + bytes(31)


GREETING = greeting(b"NULL")


def ready(kind: bytes) -> bytes:
    """The ZMTP command that ends a handshake."""
    body = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    return b"\x04" + bytes([len(body)]) + body


def raw_bytes(chance: random.Random) -> Iterator[bytes]:
    """What a stranger may write to a socket that expects ZMTP."""
    yield b""
    yield chance.randbytes(100_000)
    yield b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    yield GREETING[:20]
    yield GREETING[:-1]
    yield GREETING + chance.randbytes(10_000)
    hello = b"\x05HELLO\x01\x00" + bytes(72)
    yield greeting(b"CURVE") + b"\x04\xc8" + hello + chance.randbytes(200 - len(hello))
    yield greeting(b"CURVE") + ready(b"DEALER")
    yield greeting(b"PLAIN") + b"\x04\x0a\x05HELLO\x01a\x01b"
    for kind in (b"PUSH", b"DEALER"):
        yield GREETING + ready(kind)
        yield GREETING + ready(kind) + b"\x02" + struct.pack(">Q", 1 << 62) + bytes(1000)  # a frame of 4 EiB
        yield GREETING + ready(kind) + b"\x02" + struct.pack(">Q", (1 << 64) - 1) + bytes(1000)
        yield GREETING + ready(kind) + b"\x03" + struct.pack(">Q", 1 << 27) + bytes(1000)  # one that may be, and does not come
        yield GREETING + ready(kind) + b"\x00\xff" + bytes(100)  # truncated
        yield GREETING + ready(kind) + b"\x00\x05hello" * 3000


def foreign_messages(chance: random.Random) -> Iterator[list[bytes]]:
    """Well-formed ZeroMQ messages that are not of this run."""
    slide = resolved_slide(patient="copy0", id="copy0")
    other = Codec(chance.randbytes(32))
    index = slide.chunks().indices(0)
    pieces = Pieces(1, 0, 0, 0, ValueSpec("float64", ()), len(index), len(index))
    payload = [index.tobytes(), bytes(len(index)), np.ones(len(index)).tobytes()]
    own = [
        other.pack(Hello(1, "ipc:///nowhere")),
        other.pack(Stop()),
        other.pack(messages.WorkerFailed("", "none of your business", "", True)),
        other.pack(messages.ChunksCommitted((1, 2, 3), ((1, 0, 0),) * 3, messages.Clock())),
        other.pack(messages.PatientPublished(0, "copy0.csv", (), messages.Clock())),
        other.pack(pieces, payload),
    ]
    yield from own
    for frames in own:
        envelope, header, *parts = [bytes(frame) for frame in frames]
        yield [envelope[:4] + bytes([2]) + envelope[5:], header, *parts]  # another version
        yield [envelope[:5] + chance.randbytes(16), header, *parts]
        yield [envelope[:-1], header, *parts]
        yield [envelope, header[:-1], *parts]
        yield [envelope]
        yield [header, *parts]
    yield [b""]
    yield [b""] * 3
    yield [b"SWSI"]
    yield [chance.randbytes(21), chance.randbytes(1000)]
    yield [bytes(21)] * 2000
    yield [chance.randbytes(21), chance.randbytes(1 << 20)]


def attack(targets: list[Target], encrypted: bool, held: contextlib.ExitStack) -> int:
    """Do what can be done from outside to each socket; returns how many messages ZeroMQ lets through, to be refused by us."""
    chance = random.Random(0)
    for target in targets:
        for data in [*raw_bytes(chance), *[b""] * SILENT]:
            peer = held.enter_context(socket.socket(target.family, socket.SOCK_STREAM))
            peer.connect(target.address)  # waits while others are let in
            peer.settimeout(PATIENCE_S)
            with contextlib.suppress(ConnectionError):
                peer.sendall(data)
    through = 0
    with zmq.Context() as context:
        for target in targets:
            for number, name in enumerate((b"collector-0.1", b"stranger", b"\xff\xfe", b"")):
                # a ROUTER that knows the collector already does not listen to others of its name
                unheard = encrypted or (target.role == "driver" and name == b"collector-0.1")
                with context.socket(zmq.DEALER if target.role == "driver" else zmq.PUSH) as peer:
                    peer.setsockopt(zmq.LINGER, 0 if unheard else PATIENCE_S * 1000)
                    peer.setsockopt(zmq.SNDHWM, 0)
                    if name:
                        peer.setsockopt(zmq.ROUTING_ID, name)
                    if encrypted and number % 2:  # keys, but not the run's
                        peer.curve_publickey, peer.curve_secretkey = zmq.curve_keypair()
                        peer.curve_serverkey = zmq.curve_keypair()[0]
                    peer.connect(target.endpoint)
                    flood = [[chance.randbytes(21), chance.randbytes(1 << 16)]] * 50
                    for frames in [*foreign_messages(chance), *flood]:
                        try:
                            peer.send_multipart(frames, zmq.NOBLOCK)
                        except zmq.Again:  # it was shown the door
                            assert encrypted
                            break
                        through += not unheard
    return through


@pytest.mark.parametrize(("transport", "host"), [("ipc", ""), ("tcp", "127.0.0.1"), ("tcp", "127.0.0.2")])
def test_a_run_under_attack_gives_what_it_gives_when_left_alone(
    slow: tuple[list[str], Path], undisturbed: bytes, tmp_path: Path, transport: str, host: str
) -> None:
    command, now = slow
    if host == "127.0.0.2":  # as beyond loopback, without leaving this machine
        write_keys(tmp_path / "keys")
        command = [*command, "--tcp-host", host, "--key-dir", str(tmp_path / "keys")]
    out = tmp_path / "out"
    with tempfile.TemporaryDirectory(dir="/tmp") as own, contextlib.ExitStack() as held:
        process = subprocess.Popen(
            [*command, "--out", str(out), "--transport", transport],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": own},
        )
        held.callback(process.wait)
        held.callback(process.kill)
        held.callback(now.unlink, missing_ok=True)
        # an empty journal's log is smaller than that
        wait_for(lambda: any(path.stat().st_size > 60_000 for path in out.glob(".journal/*.sqlite-wal")), PATIENCE_S)
        targets = listening(process, transport, Path(own))
        assert sorted(target.role for target in targets) == ["collector", "collector", "driver", "writer"]
        assert all(target.family == socket.AF_UNIX or target.address[0] == host for target in targets)
        held.enter_context(many_files())
        with measured(process.pid) as samples_mb:
            through = attack(targets, transport == "tcp", held)
        assert process.poll() is None, "the run was over before the attack was"
        now.touch()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert not list(Path(own).iterdir())
    assert (out / "copy0.csv").read_bytes() == undisturbed
    report = json.loads((out / "report.json").read_text())
    assert report["restarts"] == 0 and report["state"] == "done" and report["warnings"] == []
    assert max(samples_mb) - samples_mb[0] < FLAT_MB, [round(sample) for sample in samples_mb]
    if transport == "tcp":  # nothing gets past CURVE
        assert report["refused_messages"] == through == 0
    else:
        assert report["refused_messages"] >= through > 1000


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Let this process have as many files open as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def measured(pid: int) -> Iterator[list[float]]:
    """What the driver, the collectors and the writers of a run hold together, again and again; first before the block runs.

    The loader listens to nobody; its cache of tiles fills meanwhile.
    """
    processes = [psutil.Process(pid), *workers_of(pid, "collector"), *workers_of(pid, "writer")]

    def resident_mb() -> float:
        return sum(process.memory_info().rss for process in processes) / 1e6

    samples = [resident_mb()]
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            samples.append(resident_mb())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield samples
        samples.append(resident_mb())
    finally:
        over.set()
        sampler.join()


# ---- a writer whose driver and collectors the test plays


class Stage:
    """A writer in a thread, with the driver's end of its control channel and a collector's end of its data channel."""

    def __init__(self, folder: Path, address: Address, context: Context) -> None:
        self.output = OutputOptions(folder=str(folder), format="csv")
        self.control = ControlServer(context)
        self.outputs = DataOutputs(context)
        self.poll = Poll(self.control)
        self.address = Address(address.transport, address.folder, address.keys, self.control.endpoint)
        self.thread = threading.Thread(target=self._write)
        self.thread.start()
        self.endpoint = self.heard(Hello).endpoint

    def _write(self) -> None:
        with Seat(self.address, "writer-0.1") as seat:
            run_writer(seat, WritingOptions(output=self.output, durability="process"))

    def tell(self, message: messages.Message) -> None:
        assert self.control.send("writer-0.1", message)

    def give(self, message: Pieces, payload: list[Any]) -> None:
        self.outputs.send(self.endpoint, message, payload)

    def heard(self, kind: type) -> Any:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            for _, message in self.control.receive():
                assert isinstance(message, kind), message
                return message
            self.poll.wait(1)
        raise AssertionError(f"no {kind.__name__} has come")


SLIDE = resolved_slide()
VALUES = np.random.default_rng(0).random((len(SLIDE.grid()), 3))


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Stage]:
    address = make_address("ipc")
    try:
        with Context(address) as context:
            stage = Stage(tmp_path, address, context)
            try:
                stage.tell(messages.OpenPatient(0, "p1"))
                stage.heard(messages.PatientOpened)
                stage.tell(messages.RecordSlide(SLIDE))
                yield stage
            finally:
                stage.tell(Stop())
                stage.thread.join(PATIENCE_S)
                stage.outputs.close()
            assert not stage.thread.is_alive()
    finally:
        remove_address(address)


def pieces(lease: int, chunk: int, values: np.ndarray = VALUES, **changed: Any) -> tuple[Pieces, list[Any]]:
    """What a collector sends of a chunk."""
    index = SLIDE.chunks().indices(chunk)
    message = Pieces(lease, 0, 0, chunk, ValueSpec("float64", (3,)), len(index), len(index))
    payload = [index, np.zeros(len(index), np.uint8), np.ascontiguousarray(values[index])]
    return msgspec.structs.replace(message, **changed), payload


def refused_pieces() -> Iterator[tuple[Pieces, list[Any]]]:
    """Pieces that are not those of the chunk they say they are."""
    message, payload = pieces(9, 1)
    index, status, values = payload
    for chunk in (0, 2, -1, 10**6, 1 << 62):
        yield msgspec.structs.replace(message, chunk=chunk), payload
    yield message, [index + 1, status, values]
    yield message, [index[::-1].copy(), status, values]
    yield message, [np.repeat(index[:1], len(index)), status, values]
    yield message, [index + (1 << 40), status, values]
    yield message, [index[:-1], status[:-1], values[:-1]]
    yield message, [index, status + 3, values]
    yield message, [index, status + 1, values]
    yield message, [index, status[:-1], values]
    yield message, [index, status, values[:-1]]
    yield message, [index, status]
    yield message, []
    yield message, [*payload, values]
    for spec in (("float32", (3,)), ("float64", (2,)), ("float64", (-1,)), ("float64", (1 << 63,)), ("no dtype", ())):
        yield msgspec.structs.replace(message, values=ValueSpec(*spec)), payload
    for dtype in ("object", "V8", "M8[s]", "S8", "U2"):
        yield msgspec.structs.replace(message, values=ValueSpec(dtype, (3,))), payload
    for rows in (-1, 0, 1 << 62):
        yield msgspec.structs.replace(message, rows=rows), payload


def test_a_writer_refuses_pieces_of_windows_that_are_not_the_chunks(writer: Stage) -> None:
    wrong = list(refused_pieces())
    for message, payload in wrong:
        writer.give(message, payload)
    writer.give(*pieces(1, 3))
    committed = writer.heard(messages.ChunksCommitted)
    assert committed.leases == (1,) and committed.clock.refused == len(wrong)
    # of another patient, of another slide: nobody has opened them, and nothing comes of them
    writer.give(*pieces(10, 1, patient=7))
    writer.give(*pieces(11, 1, slide=1))
    writer.give(*pieces(2, 4))
    assert writer.heard(messages.ChunksCommitted).leases == (2,)
    assert committed_rows(writer) == sorted([*SLIDE.chunks().indices(3).tolist(), *SLIDE.chunks().indices(4).tolist()])


def test_pieces_that_come_before_the_word_on_their_slide_are_kept_however_many_they_are(writer: Stage) -> None:
    slide = msgspec.structs.replace(SLIDE, slide=1)
    early = 200
    for lease in range(early):
        writer.give(*pieces(lease, lease % len(SLIDE.chunks()), slide=1))
    writer.give(*pieces(early, 0))
    assert writer.heard(messages.ChunksCommitted).leases == (early,)  # the others had come before
    writer.tell(messages.RecordSlide(slide))
    leases: list[int] = []
    while len(leases) < early:
        leases.extend(writer.heard(messages.ChunksCommitted).leases)
    assert sorted(leases) == list(range(early))


def test_pieces_that_come_again_change_nothing(writer: Stage) -> None:
    frames = [bytes(frame) for frame in Codec(writer.address.keys.message_key).pack(*pieces(1, 2))]
    with zmq.Context() as context, context.socket(zmq.PUSH) as replaying:
        replaying.connect(writer.endpoint)
        replaying.send_multipart(frames)
        assert writer.heard(messages.ChunksCommitted).leases == (1,)
        for _ in range(50):
            replaying.send_multipart(frames)
        writer.give(*pieces(2, 2, values=-VALUES))  # the same chunk, by another collector that had it too
        writer.give(*pieces(3, 0))
        leases: list[int] = []
        while len(leases) < 52:
            leases.extend(writer.heard(messages.ChunksCommitted).leases)
        assert sorted(leases) == [1] * 50 + [2, 3]
        rows = committed_rows(writer)
        assert rows == sorted([*SLIDE.chunks().indices(2).tolist(), *SLIDE.chunks().indices(0).tolist()])
        # once the patient is sealed they are nobody's
        replaying.send_multipart(frames)
        writer.tell(messages.OpenPatient(1, "p2"))
        writer.heard(messages.PatientOpened)
    with Journal(Layout.of(writer.output).journal("p1")) as journal:
        values = np.concatenate([run.values for run in journal.runs(0)])
    np.testing.assert_array_equal(values, VALUES[rows])


def committed_rows(writer: Stage) -> list[int]:
    """Seal the patient; the windows that its journal holds."""
    writer.tell(messages.SealPatient(0))
    writer.heard(messages.PatientSealed)
    with Journal(Layout.of(writer.output).journal("p1")) as journal:
        return [window for run in journal.runs(0) for window in range(run.first, run.first + len(run.status))]


@settings(max_examples=200)
@given(
    chunk=st.integers(-(1 << 63), (1 << 64) - 1),
    dtype=st.sampled_from(["float64", "float32", "bool", "int8", "uint64", "bytes", "object", "V8", "U4", "<f8", "", "f8,f8"])
    | st.text(),
    shape=st.lists(st.integers(-(1 << 63), (1 << 64) - 1) | st.integers(0, 4), max_size=4),
    rows=st.integers(-(1 << 63), (1 << 64) - 1) | st.integers(0, 8),
    payload=st.lists(st.binary(max_size=200), max_size=4),
)
def test_no_header_and_no_payload_are_too_much_for_a_writer(
    chunk: int, dtype: str, shape: list[int], rows: int, payload: list[bytes]
) -> None:
    message = Pieces(1, 0, 0, chunk, ValueSpec(dtype, tuple(shape)), 6, rows)
    with contextlib.suppress(WireError):
        found = pieces_of(message, [memoryview(part) for part in payload], SLIDE)
        assert found.chunk == chunk and np.array_equal(found.index, SLIDE.chunks().indices(chunk))
        assert len(found.values) == rows == np.count_nonzero(found.status == Status.WRITTEN)


# ---- secrets


def shapes_of(secret: bytes) -> list[bytes]:
    """How a secret might be written."""
    return [
        secret,
        secret.hex().encode(),
        base64.b64encode(secret),
        base64.urlsafe_b64encode(secret),
        repr(secret)[2:-1].encode(),
    ]


class Failing(sw.StreamCollector):
    def process(self, batch: sw.Batch) -> Any:
        raise ValueError(f"not {batch.patient.id}")


@pytest.mark.parametrize(("transport", "given"), [("ipc", False), ("tcp", False), ("tcp", True)])
def test_secrets_show_nowhere(
    one_patient: sw.Dataset,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    transport: str,
    given: bool,
) -> None:
    keys: list[RunKeys] = []
    make, of_one_run = RunKeys.make, RunKeys.of_one_run

    def kept(made: RunKeys) -> RunKeys:
        keys.append(made)
        return made

    options: dict[str, Any] = {"transport": transport}
    if given:
        options |= {"tcp_host": "127.0.0.2", "key_dir": tmp_path_factory.mktemp("given") / "keys"}
        write_keys(options["key_dir"])
        monkeypatch.setattr(RunKeys, "of_one_run", lambda given: kept(of_one_run(given)))
    else:
        monkeypatch.setattr(RunKeys, "make", lambda curve: kept(make(curve)))
    seen: dict[str, bytes] = {}
    with watched(seen):
        run(one_patient, tmp_path / "good", sw.MeanCollector(), **options)
        with pytest.raises(sw.CollectorError) as caught:
            run(one_patient, tmp_path / "bad", Failing(), **options)
    assert {"loader", "collector", "writer", "publisher"} <= {name.partition(" ")[0] for name in seen}
    shown = {
        **{str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()},
        **seen,
        "standard error": "".join(capfd.readouterr()).encode(),
        "exception": str(caught.value).encode(),
    }
    assert any(name.endswith("run.json") for name in shown) and any(name.endswith("report.json") for name in shown)
    assert len(keys) == 2 and len({key.message_key for key in keys}) == 2
    if given:
        keys.append(read_keys(options["key_dir"]))
    secrets = [key.message_key for key in keys]
    if transport == "tcp":
        secrets += [
            secret for key in keys for text in (key.server_secret, key.client_secret) for secret in (text, z85.decode(text))
        ]
    assert all(len(secret) >= 32 for secret in secrets)
    for name, content in shown.items():
        assert not any(shape in content for secret in secrets for shape in shapes_of(secret)), name


@contextlib.contextmanager
def watched(seen: dict[str, bytes]) -> Iterator[None]:
    """Note what `ps` shows of this process's children while the block runs."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    words = child.cmdline()
                    role = next((word[10:] for word in words if word.startswith("streamwsi-")), None)
                    if role is not None:
                        shown = [*words, *(f"{name}={value}" for name, value in child.environ().items())]
                        seen[f"{role} {child.pid}"] = "\n".join(shown).encode("utf-8", "surrogateescape")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
