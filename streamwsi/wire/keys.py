"""The secrets of a run.

In: nothing.  Out: keys made for this run alone, handed to children through their standard input.  They are in no file, no
log and no argument list.
"""

from __future__ import annotations

import secrets

import msgspec
import zmq


class RunKeys(msgspec.Struct, frozen=True):
    """What the processes of one run share, and nobody else knows."""

    message_key: bytes
    """32 random bytes: the key of the codes on messages."""
    server_public: bytes = b""
    server_secret: bytes = b""
    client_public: bytes = b""
    client_secret: bytes = b""
    """CURVE key pairs (Z85) of all binding and all connecting sockets of the run; empty where sockets are ``ipc``."""

    def __repr__(self) -> str:
        return "RunKeys(…)"

    @classmethod
    def make(cls, curve: bool) -> RunKeys:
        """New keys; with CURVE pairs if `curve`."""
        key = secrets.token_bytes(32)
        if not curve:
            return cls(key)
        return cls(key, *zmq.curve_keypair(), *zmq.curve_keypair())
