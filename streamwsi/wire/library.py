"""Which ZeroMQ this is.

In: nothing.  Out: versions, and what it was built with.
"""

from __future__ import annotations

import msgspec
import zmq


class ZeroMQ(msgspec.Struct, frozen=True):
    """What the library under the sockets is."""

    pyzmq: str
    libzmq: str
    curve: bool
    """It encrypts: ``tcp`` needs it."""
    ipc: bool
    """It has sockets of the file system."""


def zeromq() -> ZeroMQ:
    """The library that is installed."""
    return ZeroMQ(zmq.pyzmq_version(), zmq.zmq_version(), zmq.has("curve"), zmq.has("ipc"))
