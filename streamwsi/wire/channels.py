"""Sockets: control between driver and workers, data from worker to worker.

In: typed messages.  Out: typed messages, in order, from peers of this run only.  What is refused is counted.

Nothing here blocks a sender: how much may be under way is decided by credits, not by high-water marks. No socket lingers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec
import zmq

from streamwsi.errors import ConfigError, WireError
from streamwsi.wire import hosts
from streamwsi.wire.folders import hold, make_folder
from streamwsi.wire.keys import RunKeys
from streamwsi.wire.messages import AnyMessage, Codec, Message

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

_LONGEST_SOCKET_PATH = zmq.IPC_PATH_MAX_LEN or 103
"""Bytes: 107 on Linux, 103 on macOS. Source: unix(7), sockaddr_un."""
_LONGEST_SOCKET_NAME = 24
"""Bytes of ``/collector-12.3`` and the like."""
_SHORT_PARENT = "/tmp"
"""Where the sockets' folder is made if the system's temporary folder is too long a path."""
_CONTROL_MAX_BYTES = 1 << 28
_QUEUED_CHUNKS = 16
"""Of one peer, in a data socket: about what credits let be under way. What is more waits where it comes from."""
_REFUSED_AT_ONCE = 100
"""What is refused must not keep its receiver from other things."""


class Address(msgspec.Struct, frozen=True):
    """How the processes of a run find each other, and what they share."""

    transport: str
    """``ipc`` or ``tcp``."""
    folder: str
    """Private folder of the ``ipc`` sockets; empty for ``tcp``."""
    keys: RunKeys
    driver: str = ""
    """Endpoint of the driver."""
    host: str = hosts.LOOPBACK
    """Where ``tcp`` sockets listen, in numbers."""


def make_address(transport: str, host: str = hosts.LOOPBACK, keys: RunKeys | None = None) -> Address:
    """A new address: a private folder (mode 0700) for ``ipc``, keys for either.

    ``auto`` and ``shm`` are ``ipc`` where the system has it. `host` and `keys` are those of ``tcp``, by default this machine's
    loopback and keys made for the run. Raises ConfigError when no folder can be made whose path is short enough, when nothing
    can listen on the host, and when others could reach it and no keys are given.
    """
    if transport in ("auto", "shm"):
        transport = "ipc" if zmq.has("ipc") and sys.platform != "win32" else "tcp"
    if transport == "tcp":
        if not zmq.has("curve"):
            raise ConfigError("transport 'tcp' needs a ZeroMQ built with CURVE; this one has none: use 'ipc'")
        hosts.refuse_open_host(host, keys is not None)
        of_run = RunKeys.make(curve=True) if keys is None else keys.of_one_run()
        return Address("tcp", "", of_run, host=hosts.bindable(host))
    refusals = []
    for parent in (None, _SHORT_PARENT):
        try:
            folder = make_folder(parent)
        except OSError as error:
            refusals.append(str(error))
            continue
        length = len(os.fsencode(folder)) + _LONGEST_SOCKET_NAME
        if length <= _LONGEST_SOCKET_PATH:
            return Address("ipc", folder, RunKeys.make(curve=False))
        os.rmdir(folder)
        refusals.append(f"in {folder} paths would have {length} bytes, a socket's has at most {_LONGEST_SOCKET_PATH}")
    raise ConfigError(
        f"no folder for sockets can be made ({'; '.join(refusals)}): set TMPDIR to a short path that can be written to, "
        "or choose transport 'tcp'"
    )


def remove_address(address: Address) -> None:
    """Remove the folder of the sockets, if it is still there."""
    if address.folder:
        shutil.rmtree(address.folder, ignore_errors=True)


class Context:
    """One process's sockets. Leaving it closes them all, at once."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.codec = Codec(address.keys.message_key)
        self._zmq = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        self._held = hold(address.folder) if address.folder else None
        self.refused = 0
        """Messages that were not of this run, or malformed. (ZeroMQ itself drops the peer that sends an oversized frame.)"""

    def __enter__(self) -> Context:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close every socket; what was not sent is dropped."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._zmq.destroy(linger=0)
        self._let_go()

    def finish(self) -> None:
        """End once everything that was sent has left, or a socket's time to linger is over."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._zmq.destroy(linger=2000)
        self._let_go()

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def until_refused(self, times: int) -> Iterator[None]:
        """Goes on until so many more messages were refused."""
        limit = self.refused + times
        while self.refused < limit:
            yield

    def bind(self, kind: int, name: str, max_bytes: int) -> tuple[zmq.Socket[bytes], str]:
        """A bound socket and its endpoint."""
        bound = self._zmq.socket(kind)
        bound.setsockopt(zmq.MAXMSGSIZE, max_bytes)
        bound.setsockopt(zmq.LINGER, 0)
        bound.setsockopt(zmq.SNDHWM, 0)  # like all that concerns connections, it must be set before there can be any
        if kind == zmq.PULL:
            bound.setsockopt(zmq.RCVHWM, _QUEUED_CHUNKS)
        if self.address.transport == "ipc":
            endpoint = f"ipc://{self.address.folder}/{name}"
            bound.bind(endpoint)
            return bound, endpoint
        self._admit_only_own_clients()
        keys = self.address.keys
        bound.curve_server = True
        bound.curve_secretkey = keys.server_secret
        bound.curve_publickey = keys.server_public
        bound.setsockopt(zmq.ZAP_DOMAIN, b"streamwsi")
        host = self.address.host
        bound.setsockopt(zmq.IPV6, ":" in host)
        port = bound.bind_to_random_port(hosts.endpoint(host))
        return bound, hosts.endpoint(hosts.reachable(host), port)

    def connect(self, kind: int, endpoint: str, name: str = "") -> zmq.Socket[bytes]:
        """A connected socket; `name` is what a ROUTER knows it by."""
        connected = self._zmq.socket(kind)
        connected.setsockopt(zmq.SNDHWM, 0)
        connected.setsockopt(zmq.RCVHWM, 0)
        if name:
            connected.setsockopt(zmq.ROUTING_ID, name.encode())
        if self.address.transport == "tcp":
            keys = self.address.keys
            connected.curve_serverkey = keys.server_public
            connected.curve_publickey = keys.client_public
            connected.curve_secretkey = keys.client_secret
            connected.setsockopt(zmq.IPV6, "[" in endpoint)
        connected.connect(endpoint)
        return connected

    def _admit_only_own_clients(self) -> None:
        if self._authenticator is None:
            from zmq.auth.thread import ThreadAuthenticator  # brings asyncio, which sockets of the file system do without

            self._authenticator = ThreadAuthenticator(self._zmq)
            self._authenticator.start()
            own = _OwnClients(self.address.keys.client_public)
            self._authenticator.configure_curve_callback("streamwsi", credentials_provider=own)


class _OwnClients:
    """Admits the holders of one public key (Z85)."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._public


class ControlServer:
    """The driver's end: hears every worker, speaks to each by name."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._socket, self.endpoint = context.bind(zmq.ROUTER, "driver", _CONTROL_MAX_BYTES)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)

    def send(self, worker: str, message: Message) -> bool:
        """Send to a worker; False when it is gone (its end is noticed elsewhere)."""
        try:
            self._socket.send_multipart([worker.encode(), *self._context.codec.pack(message)])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def receive(self) -> Iterator[tuple[str, AnyMessage]]:
        """What has arrived, with the names of the senders; does not wait."""
        for _ in self._context.until_refused(_REFUSED_AT_ONCE):
            try:
                sender, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message, _ = self._context.codec.unpack(frames)
                yield sender.decode(), message
            except (WireError, UnicodeDecodeError):
                self._context.refused += 1

    @property
    def socket(self) -> Any:
        """What a Poll waits on."""
        return self._socket


class ControlClient:
    """A worker's end of the control channel."""

    def __init__(self, context: Context, name: str) -> None:
        self._context = context
        self._socket = context.connect(zmq.DEALER, context.address.driver, name)
        self._socket.setsockopt(zmq.LINGER, 2000)  # a worker's last words must reach the driver

    def send(self, message: Message) -> None:
        """Send to the driver."""
        self._socket.send_multipart(self._context.codec.pack(message))

    def receive(self) -> Iterator[AnyMessage]:
        """What has arrived; does not wait. Raises WireError for what is not the driver's: nobody else is at the other end."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield self._context.codec.unpack(frames)[0]

    def close(self) -> None:
        """Close, after what was sent has left."""
        self._socket.close()

    @property
    def socket(self) -> Any:
        """What a Poll waits on."""
        return self._socket


class DataInput:
    """Where a collector or a writer takes data from any peer of the run."""

    def __init__(self, context: Context, name: str, max_bytes: int) -> None:
        self._context = context
        self._socket, self.endpoint = context.bind(zmq.PULL, name, max_bytes)

    def receive(self) -> Iterator[tuple[AnyMessage, list[memoryview]]]:
        """What has arrived, payloads as views into the received frames; does not wait."""
        for _ in self._context.until_refused(_REFUSED_AT_ONCE):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                yield self._context.codec.unpack([frame.buffer for frame in frames])
            except WireError:
                self._context.refused += 1

    @property
    def socket(self) -> Any:
        """What a Poll waits on."""
        return self._socket


class DataOutputs:
    """Where a loader or a collector sends data: one socket for each endpoint, made when first used."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._sockets: dict[str, zmq.Socket[bytes]] = {}

    def send(self, endpoint: str, message: Message, payload: Sequence[Any]) -> None:
        """Send without copying the payload, which must not be changed afterwards."""
        if endpoint not in self._sockets:
            self._sockets[endpoint] = self._context.connect(zmq.PUSH, endpoint)
        self._sockets[endpoint].send_multipart(self._context.codec.pack(message, payload), copy=False)

    def forget(self, endpoint: str) -> None:
        """Close the socket to an endpoint that is gone, and drop what it held."""
        gone = self._sockets.pop(endpoint, None)
        if gone is not None:
            gone.close(linger=0)

    def close(self) -> None:
        """Close all, after what was sent has left or two seconds have passed."""
        while self._sockets:
            _, output = self._sockets.popitem()
            output.close(linger=2000)


class Wakeup:
    """Lets any thread end a Poll."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def set(self) -> None:
        """End the Poll that waits, or the next one."""
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is set already; closed: nobody waits any more
            self._sender.send(b"\0")

    def clear(self) -> None:
        """Forget what was set."""
        with contextlib.suppress(BlockingIOError):
            while self._receiver.recv(4096):
                pass

    def close(self) -> None:
        """Close both ends."""
        self._receiver.close()
        self._sender.close()

    @property
    def socket(self) -> Any:
        """What a Poll waits on."""
        return self._receiver


class Poll:
    """Waits until one of several channels has something."""

    def __init__(self, *channels: ControlServer | ControlClient | DataInput | Wakeup) -> None:
        self._poller = zmq.Poller()
        self._wakeups = {channel.socket.fileno(): channel for channel in channels if isinstance(channel, Wakeup)}
        for channel in channels:
            self._poller.register(channel.socket, zmq.POLLIN)

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when something has arrived, or after `timeout_s` seconds (None: never before)."""
        for found, _ in self._poller.poll(None if timeout_s is None else max(0, round(timeout_s * 1000))):
            if isinstance(found, int):  # what is no ZeroMQ socket comes back as its descriptor
                self._wakeups[found].clear()


def folder_of(address: Address) -> Path | None:
    """The folder of the sockets, or None."""
    return Path(address.folder) if address.folder else None
