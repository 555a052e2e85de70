"""Real sockets, all in this process: what crosses them, and what does not."""

from __future__ import annotations

import os
import select
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import psutil
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from streamwsi.chunks import BigChunk
from streamwsi.errors import ConfigError, WireError
from streamwsi.geometry import Grid
from streamwsi.values import ValueSpec
from streamwsi.wire import channels, hosts
from streamwsi.wire.channels import (
    Address,
    Context,
    ControlClient,
    ControlServer,
    DataInput,
    DataOutputs,
    Poll,
    Wakeup,
    folder_of,
    make_address,
    remove_address,
)
from streamwsi.wire.keys import RunKeys
from streamwsi.wire.messages import (
    AskFinished,
    Chunk,
    Codec,
    DropChunk,
    EndpointGone,
    Hello,
    PatientRef,
    Pieces,
    Stop,
    chunk_message,
    chunk_of,
)
from tests.wire.test_messages import RESOLVED

AT_MOST_S = 20.0
"""How long something may take that takes milliseconds; never waited for."""
MAX_BYTES = 1 << 20
PIECES = Pieces(lease=7, patient=3, slide=1, chunk=2, values=ValueSpec("float32", (2,)), windows=4, rows=3)
PAYLOAD = [np.arange(4, dtype=np.int64), np.zeros(4, np.uint8), np.ones((3, 2), np.float32)]
Arrived = TypeVar("Arrived")


@pytest.fixture(params=["ipc", "tcp"])
def address(request: pytest.FixtureRequest) -> Iterator[Address]:
    made = make_address(request.param)
    yield made
    remove_address(made)
    assert folder_of(made) is None or not folder_of(made).exists()


@pytest.fixture
def ipc() -> Iterator[Address]:
    made = make_address("ipc")
    yield made
    remove_address(made)


@pytest.fixture(params=["made", "given"])
def tcp(request: pytest.FixtureRequest) -> Address:
    """With keys made for the run; with given ones, on another address, as beyond loopback."""
    return make_address("tcp") if request.param == "made" else make_address("tcp", "127.0.0.2", RunKeys.make(curve=True))


class Driver:
    """A driver's sockets, and workers that know where to find it."""

    def __init__(self, address: Address, stack: ExitStack) -> None:
        self.stack = stack
        self.context = stack.enter_context(Context(address))
        self.control = ControlServer(self.context)
        self.address = msgspec.structs.replace(address, driver=self.control.endpoint)

    def worker(self, name: str) -> ControlClient:
        """A worker that has said hello and was heard."""
        client = ControlClient(self.stack.enter_context(Context(self.address)), name)
        client.send(Hello(1, ""))
        assert arrivals(self.control) == [(name, Hello(1, ""))]
        return client


@contextmanager
def driver_at(address: Address) -> Iterator[Driver]:
    with ExitStack() as stack:
        yield Driver(address, stack)


def arrivals(channel: Any, count: int = 1) -> list[Any]:
    """The next things that arrive at a channel."""
    poll, found = Poll(channel), []
    until = time.monotonic() + AT_MOST_S
    while len(found) < count:
        assert time.monotonic() < until, f"only {len(found)} of {count} have arrived"
        poll.wait(until - time.monotonic())
        found += channel.receive()
    assert len(found) == count
    return found


def receive_until(channel: Any, holds: Callable[[], bool]) -> list[Any]:
    """What arrives at a channel until something holds."""
    poll, found = Poll(channel), []
    until = time.monotonic() + AT_MOST_S
    while not holds():
        assert time.monotonic() < until
        poll.wait(0.05)
        found += channel.receive()
    return found


@contextmanager
def stranger(kind: int, endpoint: str, **options: Any) -> Iterator[tuple[zmq.Socket, zmq.Socket]]:
    """A socket of another program, and its monitor."""
    context = zmq.Context()
    try:
        raw = context.socket(kind)
        for name, value in options.items():
            setattr(raw, name, value)
        monitor = raw.get_monitor_socket()
        raw.connect(endpoint)
        yield raw, monitor
        raw.disable_monitor()
    finally:
        context.destroy(linger=0)


def wait_for_event(monitor: zmq.Socket, events: int) -> int:
    """Wait until one of these events befalls a socket."""
    until = time.monotonic() + AT_MOST_S
    while monitor.poll(max(0, round((until - time.monotonic()) * 1000))):
        event = recv_monitor_message(monitor)["event"]
        if event & events:
            return int(event)
    raise AssertionError("the event has not come")


# ---- control


def test_control_messages_go_both_ways_and_in_order(address: Address) -> None:
    with driver_at(address) as driver:
        workers = {name: driver.worker(name) for name in ("loader-0.1", "collector-0.1")}
        for lease in range(50):
            for name, worker in workers.items():
                assert driver.control.send(name, DropChunk(lease))
                worker.send(Hello(lease, name))
        heard = arrivals(driver.control, 100)
        for name, worker in workers.items():
            assert arrivals(worker, 50) == [DropChunk(lease) for lease in range(50)]
            assert [message for sender, message in heard if sender == name] == [Hello(lease, name) for lease in range(50)]
        assert driver.context.refused == 0


def test_a_message_to_a_worker_that_is_not_there_is_not_sent(address: Address) -> None:
    with driver_at(address) as driver:
        assert driver.control.send("loader-7.1", Stop()) is False


def test_a_worker_that_reads_nothing_does_not_hold_the_driver_up(address: Address) -> None:
    question = AskFinished(0, PatientRef("p", (("s", "/" + "s" * 1000),), {}), 1)
    with driver_at(address) as driver:
        worker = driver.worker("collector-0.1")
        for _ in range(5000):
            assert driver.control.send("collector-0.1", question)
        assert len(arrivals(worker, 5000)) == 5000


def test_last_words_of_a_worker_that_ends_reach_the_driver(address: Address) -> None:
    with driver_at(address) as driver:
        context = Context(driver.address)
        client = ControlClient(context, "loader-0.1")
        for number in range(100):
            client.send(Hello(number, "x" * 1000))
        client.close()
        context.finish()
        assert [message.pid for _, message in arrivals(driver.control, 100)] == list(range(100))


def test_everything_may_be_closed_twice(address: Address) -> None:
    with driver_at(address) as driver:
        client = driver.worker("loader-0.1")
        outputs = DataOutputs(driver.context)
        outputs.forget("ipc://nobody")
        for thing in (client, outputs, driver.context, driver.context):
            thing.close()
            thing.close()
        driver.context.finish()


# ---- data


def test_a_big_chunk_crosses_without_being_copied_on_arrival(address: Address) -> None:
    grid = Grid((2048, 2048), (256, 256), (256, 256), "pad", 1.0)
    windows = grid.windows(np.arange(64, dtype=np.int64))
    pixels = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), np.uint8)
    big = BigChunk(windows, pixels, (0, 0), np.zeros(64, bool))
    patient = PatientRef("p", (("s", "/s.svs"),), {})
    with Context(address) as context, Context(address) as other:
        data = DataInput(context, "collector-0.1", 1 << 24)
        DataOutputs(other).send(data.endpoint, *chunk_message(1, 0, RESOLVED, patient, "ipc://writer", big))
        ((message, payload),) = arrivals(data)
        assert isinstance(message, Chunk)
        again = chunk_of(message, payload)
        assert not again.pixels.flags.owndata
        assert np.shares_memory(again.pixels, np.frombuffer(payload[0], np.uint8))
        np.testing.assert_array_equal(again.pixels, pixels)
        np.testing.assert_array_equal(again.windows.table(), windows.table())


def test_parts_of_no_bytes_cross_too(address: Address) -> None:
    with Context(address) as context, Context(address) as other:
        data = DataInput(context, "writer-0.1", MAX_BYTES)
        DataOutputs(other).send(data.endpoint, PIECES, [PAYLOAD[0], PAYLOAD[1], np.empty((0, 2), np.float32)])
        ((message, payload),) = arrivals(data)
        assert message == PIECES
        assert [part.nbytes for part in payload] == [32, 4, 0]


def test_what_several_peers_send_arrives_in_each_ones_order(address: Address) -> None:
    with ExitStack() as stack:
        data = DataInput(stack.enter_context(Context(address)), "writer-0.1", MAX_BYTES)
        # kept: what a closed peer had sent beyond the receiver's high-water mark is lost with it
        peers = [DataOutputs(stack.enter_context(Context(address))) for _ in range(3)]
        for peer, outputs in enumerate(peers):
            for lease in range(40):
                outputs.send(data.endpoint, msgspec.structs.replace(PIECES, lease=lease, patient=peer), PAYLOAD)
        received = [message for message, _ in arrivals(data, 120)]
        for peer in range(3):
            assert [message.lease for message in received if message.patient == peer] == list(range(40))


def test_sending_to_an_endpoint_that_is_gone_neither_blocks_nor_keeps_the_others_from_getting_theirs(ipc: Address) -> None:
    with Context(ipc) as died:
        gone = DataInput(died, "collector-0.1", MAX_BYTES).endpoint
    with Context(ipc) as context, Context(ipc) as sender:
        data, outputs = DataInput(context, "collector-1.1", MAX_BYTES), DataOutputs(sender)
        for _ in range(2000):
            outputs.send(gone, PIECES, PAYLOAD)
        outputs.send(data.endpoint, PIECES, PAYLOAD)
        assert len(arrivals(data)) == 1
        outputs.forget(gone)
        outputs.forget(gone)


# ---- strangers


def garbage(run: RunKeys) -> list[list[bytes]]:
    """Messages that are none of this run's."""
    genuine = [bytes(memoryview(frame)) for frame in Codec(run.message_key).pack(Hello(1, ""))]
    foreign = [bytes(memoryview(frame)) for frame in Codec(bytes(32)).pack(Hello(1, ""))]
    return [
        [b""],
        [b"", b"", b""],
        [b"GET / HTTP/1.1\r\n\r\n"],
        [os.urandom(21), os.urandom(100)],
        foreign,
        genuine[:1],
        genuine[::-1],
        [*genuine, b"more"],
        [genuine[0], genuine[1][:-1]],
        [genuine[0][:4] + b"\x02" + genuine[0][5:], genuine[1]],
    ]


def test_foreign_messages_to_the_driver_are_refused_and_counted(ipc: Address) -> None:
    with driver_at(ipc) as driver:
        worker = driver.worker("loader-0.1")
        with stranger(zmq.DEALER, driver.control.endpoint, linger=0) as (raw, _):
            for frames in garbage(ipc.keys):
                raw.send_multipart(frames)
            assert receive_until(driver.control, lambda: driver.context.refused == len(garbage(ipc.keys))) == []
            worker.send(Hello(2, ""))
            assert arrivals(driver.control) == [("loader-0.1", Hello(2, ""))]
            assert driver.control.send("loader-0.1", Stop())
            assert arrivals(worker) == [Stop()]
            assert not raw.poll(0)


def test_foreign_messages_to_a_data_socket_are_refused_and_counted(ipc: Address) -> None:
    with Context(ipc) as context, Context(ipc) as own:
        data = DataInput(context, "collector-0.1", MAX_BYTES)
        with stranger(zmq.PUSH, data.endpoint, linger=0) as (raw, _):
            for frames in garbage(ipc.keys):
                raw.send_multipart(frames)
            assert receive_until(data, lambda: context.refused == len(garbage(ipc.keys))) == []
            DataOutputs(own).send(data.endpoint, PIECES, PAYLOAD)
            ((message, _),) = arrivals(data)
            assert message == PIECES


def test_a_run_does_not_listen_to_another_run(ipc: Address) -> None:
    other = msgspec.structs.replace(ipc, keys=RunKeys.make(curve=False))
    with driver_at(ipc) as driver, Context(msgspec.structs.replace(other, driver=driver.control.endpoint)) as foreign:
        ControlClient(foreign, "loader-0.1").send(Hello(1, ""))
        assert receive_until(driver.control, lambda: driver.context.refused == 1) == []


def test_a_worker_takes_no_orders_from_another_run(ipc: Address) -> None:
    other = msgspec.structs.replace(ipc, keys=RunKeys.make(curve=False))
    with driver_at(other) as impostor, Context(msgspec.structs.replace(ipc, driver=impostor.control.endpoint)) as context:
        client = ControlClient(context, "loader-0.1")
        client.send(Hello(1, ""))
        receive_until(impostor.control, lambda: impostor.context.refused == 1)
        assert impostor.control.send("loader-0.1", Stop())
        with pytest.raises(WireError):
            arrivals(client)


def test_a_peer_whose_name_is_no_text_is_refused(ipc: Address) -> None:
    with driver_at(ipc) as driver, stranger(zmq.DEALER, driver.control.endpoint, routing_id=b"\xff\xfe") as (raw, _):
        raw.send_multipart(Codec(ipc.keys.message_key).pack(Hello(1, "")))
        assert receive_until(driver.control, lambda: driver.context.refused == 1) == []


def test_two_hundred_peers_that_say_nothing_do_no_harm(ipc: Address) -> None:
    with driver_at(ipc) as driver, ExitStack() as stack:
        crowd = zmq.Context()
        stack.callback(crowd.destroy, linger=0)
        for _ in range(200):
            crowd.socket(zmq.DEALER).connect(driver.control.endpoint)
        worker = driver.worker("loader-0.1")
        assert driver.control.send("loader-0.1", Stop())
        assert arrivals(worker) == [Stop()]
        assert driver.context.refused == 0


@pytest.mark.parametrize("frames", [[bytes(2 * MAX_BYTES)], [b"small", bytes(2 * MAX_BYTES)]])
def test_an_oversized_frame_ends_its_senders_connection_and_no_other(ipc: Address, frames: list[bytes]) -> None:
    with Context(ipc) as context, Context(ipc) as own:
        data = DataInput(context, "collector-0.1", MAX_BYTES)
        outputs = DataOutputs(own)
        outputs.send(data.endpoint, PIECES, PAYLOAD)
        assert len(arrivals(data)) == 1
        with stranger(zmq.PUSH, data.endpoint, linger=0) as (raw, monitor):
            raw.send_multipart(frames)
            wait_for_event(monitor, zmq.EVENT_DISCONNECTED)
            outputs.send(data.endpoint, PIECES, PAYLOAD)
            ((message, _),) = arrivals(data)
            assert message == PIECES


def test_what_is_not_zeromq_at_all_does_no_harm(tcp: Address) -> None:
    with driver_at(tcp) as driver:
        host, port = driver.control.endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port)), timeout=AT_MOST_S) as plain, suppress(ConnectionError):
            plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            while plain.recv(4096):  # until the other side hangs up
                pass
        driver.worker("loader-0.1")
        assert driver.context.refused == 0


FAILED_HANDSHAKE = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
)


def _curve_clients() -> Iterator[Any]:
    def none(keys: RunKeys) -> dict[str, bytes]:
        return {}

    def strangers(keys: RunKeys) -> dict[str, bytes]:
        public, secret = zmq.curve_keypair()
        return {"curve_serverkey": keys.server_public, "curve_publickey": public, "curve_secretkey": secret}

    def wrong_server(keys: RunKeys) -> dict[str, bytes]:
        public, _ = zmq.curve_keypair()
        return {"curve_serverkey": public, "curve_publickey": keys.client_public, "curve_secretkey": keys.client_secret}

    def public_part_only(keys: RunKeys) -> dict[str, bytes]:
        _, secret = zmq.curve_keypair()
        return {"curve_serverkey": keys.server_public, "curve_publickey": keys.client_public, "curve_secretkey": secret}

    return (pytest.param(make, id=make.__name__) for make in (none, strangers, wrong_server, public_part_only))


@pytest.mark.parametrize("keys", [*_curve_clients()])
def test_a_client_without_the_runs_curve_keys_gets_nothing_in_or_out(
    tcp: Address, keys: Callable[[RunKeys], dict[str, bytes]]
) -> None:
    with driver_at(tcp) as driver:
        options = {"routing_id": b"spy", "linger": 0, **keys(tcp.keys)}
        with stranger(zmq.DEALER, driver.control.endpoint, **options) as (raw, monitor):
            raw.send_multipart(Codec(tcp.keys.message_key).pack(Hello(1, "")))  # even one that has the other key
            wait_for_event(monitor, FAILED_HANDSHAKE)
            driver.worker("loader-0.1")  # hears this hello, and no other
            assert driver.control.send("spy", Stop()) is False
            assert not raw.poll(0)
            assert driver.context.refused == 0


def test_a_data_socket_is_closed_to_clients_without_the_runs_curve_keys(tcp: Address) -> None:
    with Context(tcp) as context, Context(tcp) as own:
        data = DataInput(context, "collector-0.1", MAX_BYTES)
        with stranger(zmq.PUSH, data.endpoint, linger=0) as (_, monitor):
            wait_for_event(monitor, FAILED_HANDSHAKE)
        DataOutputs(own).send(data.endpoint, PIECES, PAYLOAD)
        assert [message for message, _ in arrivals(data)] == [PIECES]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_tcp_sockets_listen_where_they_are_told_and_nowhere_else(host: str) -> None:
    if host == "::1" and not any(found.address == host for of_one in psutil.net_if_addrs().values() for found in of_one):
        pytest.skip("this machine has no IPv6 loopback")
    with driver_at(make_address("tcp", host, RunKeys.make(curve=True))) as driver:
        driver.worker("loader-0.1")
        listening = [at for at in psutil.Process().net_connections("tcp") if at.status == psutil.CONN_LISTEN]
        assert {at.laddr.ip for at in listening} == {host}
        assert driver.control.endpoint == hosts.endpoint(host, listening[0].laddr.port)


def test_tcp_sockets_listen_on_loopback_unless_told_otherwise() -> None:
    with driver_at(make_address("tcp")) as driver:
        assert driver.control.endpoint.startswith("tcp://127.0.0.1:")


def test_without_given_keys_nothing_listens_beyond_loopback() -> None:
    with pytest.raises(ConfigError, match=r"'0\.0\.0\.0' is open to other machines"):
        make_address("tcp", "0.0.0.0")


def test_runs_with_the_same_key_files_stay_strangers() -> None:
    keys = RunKeys.make(curve=True)
    with driver_at(make_address("tcp", keys=keys)) as one, driver_at(make_address("tcp", keys=keys)) as other:
        lost = ControlClient(
            other.stack.enter_context(Context(msgspec.structs.replace(other.address, driver=one.control.endpoint))), "a"
        )
        lost.send(Hello(1, ""))
        receive_until(one.control, lambda: one.context.refused == 1)


# ---- addresses


def test_the_folder_of_the_sockets_is_private_and_goes_with_the_run() -> None:
    address = make_address("ipc")
    folder = folder_of(address)
    assert folder is not None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with Context(address) as context:
        ControlServer(context)
        DataInput(context, "collector-0.1", MAX_BYTES)
        assert sorted(path.name for path in folder.iterdir()) == ["collector-0.1", "driver"]
    remove_address(address)
    remove_address(address)
    assert not folder.exists()


def test_two_runs_share_neither_folder_nor_keys() -> None:
    one, other = make_address("ipc"), make_address("ipc")
    try:
        assert one.folder != other.folder
        assert one.keys.message_key != other.keys.message_key
    finally:
        remove_address(one)
        remove_address(other)
    assert len({key for _ in range(2) for key in msgspec.structs.astuple(make_address("tcp").keys)}) == 10


def test_secrets_do_not_show_when_keys_are_printed(tcp: Address) -> None:
    keys = tcp.keys
    for text in (repr(keys), str(keys), repr(tcp), f"{tcp}"):
        for secret in (keys.message_key, keys.server_secret, keys.client_secret):
            assert repr(secret)[2:-1] not in text


@pytest.fixture
def long_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder whose path is too long for sockets, as TMPDIR would set it."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_where_the_temporary_folder_is_too_long_a_path_a_shorter_one_is_taken(long_folder: Path) -> None:
    address = make_address("ipc")
    try:
        folder = folder_of(address)
        assert folder is not None and long_folder not in folder.parents
        with driver_at(address) as driver:
            driver.worker("collector-12.3")
    finally:
        remove_address(address)
    assert not list(long_folder.iterdir())


def test_where_no_folder_is_short_enough_the_run_is_refused_and_nothing_is_left(
    long_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = long_folder / "no shorter"
    other.mkdir()
    monkeypatch.setattr(channels, "_SHORT_PARENT", str(other))
    with pytest.raises(ConfigError, match="TMPDIR"):
        make_address("ipc")
    assert list(long_folder.iterdir()) == [other] and not list(other.iterdir())


def test_where_no_folder_can_be_made_the_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    monkeypatch.setattr(tempfile, "tempdir", str(missing))
    monkeypatch.setattr(channels, "_SHORT_PARENT", str(missing))
    with pytest.raises(ConfigError, match=r"missing.*TMPDIR"):
        make_address("ipc")


def test_the_longest_path_that_is_let_through_can_be_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = len("/streamwsi-12345678")
    longest = channels._LONGEST_SOCKET_PATH - channels._LONGEST_SOCKET_NAME - own
    with tempfile.TemporaryDirectory() as short:
        parent = Path(short) / ("y" * (longest - len(short) - 1))
        parent.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(parent))
        address = make_address("ipc")
        assert folder_of(address).parent == parent
        with Context(address) as context:
            DataInput(context, "collector-99999.999", MAX_BYTES)


def test_auto_is_a_transport_that_this_system_has() -> None:
    address = make_address("auto")
    try:
        assert address.transport in ("ipc", "tcp")
        with driver_at(address) as driver:
            driver.worker("loader-0.1")
    finally:
        remove_address(address)


# ---- waiting


def test_a_wakeup_from_another_thread_ends_a_poll() -> None:
    wakeup = Wakeup()
    poll = Poll(wakeup)
    thread = threading.Thread(target=wakeup.set)
    begun = time.monotonic()
    thread.start()
    poll.wait(10 * AT_MOST_S)
    thread.join()
    assert time.monotonic() - begun < AT_MOST_S
    assert is_clear(wakeup)
    wakeup.close()


def test_a_wakeup_before_the_poll_is_not_lost_and_ends_one_only() -> None:
    wakeup = Wakeup()
    for _ in range(100_000):  # more than any socket's buffer holds
        wakeup.set()
    begun = time.monotonic()
    Poll(wakeup).wait(10 * AT_MOST_S)
    assert time.monotonic() - begun < AT_MOST_S
    assert is_clear(wakeup)
    wakeup.close()


def test_a_wakeup_that_is_closed_may_still_be_set() -> None:
    wakeup = Wakeup()
    wakeup.close()
    wakeup.close()
    wakeup.set()


def test_a_poll_ends_when_any_of_its_channels_has_something(address: Address) -> None:
    with driver_at(address) as driver:
        worker = driver.worker("collector-0.1")
        wakeup = Wakeup()
        data = DataInput(driver.context, "collector-0.1", MAX_BYTES)
        poll = Poll(worker, data, wakeup)
        begun = time.monotonic()
        driver.control.send("collector-0.1", EndpointGone("x"))
        poll.wait(10 * AT_MOST_S)
        assert list(worker.receive()) == [EndpointGone("x")]
        DataOutputs(driver.context).send(data.endpoint, PIECES, PAYLOAD)
        poll.wait(10 * AT_MOST_S)
        assert len(list(data.receive())) == 1
        wakeup.set()
        poll.wait(10 * AT_MOST_S)
        assert time.monotonic() - begun < AT_MOST_S
        wakeup.close()


def test_a_poll_ends_without_anything_when_its_time_is_over(ipc: Address) -> None:
    with driver_at(ipc) as driver:
        Poll(driver.control).wait(0.01)
        Poll(driver.control).wait(0)
        Poll(driver.control).wait(-1)
        assert list(driver.control.receive()) == []


def is_clear(wakeup: Wakeup) -> bool:
    ready: Iterable[Any] = select.select([wakeup.socket], [], [], 0)[0]
    return not ready
