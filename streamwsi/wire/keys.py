"""The secrets of a run.

In: nothing, or a folder of key files.  Out: keys, handed to children through their standard input.  They are in no log, no
argument list, and no file but those that the user asks for.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import struct
from pathlib import Path

import msgspec
import zmq
from zmq.utils import z85

from streamwsi.errors import ConfigError

_KEY_BYTES = 32
_READ_BYTES = 4096
"""More than a key file can hold."""
_OTHERS = 0o077


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
        key = secrets.token_bytes(_KEY_BYTES)
        if not curve:
            return cls(key)
        return cls(key, *zmq.curve_keypair(), *zmq.curve_keypair())

    def of_one_run(self) -> RunKeys:
        """The same CURVE pairs with a message key that only one run has: runs with the same key files stay strangers."""
        salt = secrets.token_bytes(_KEY_BYTES)
        own = hashlib.blake2b(salt, key=self.message_key, digest_size=_KEY_BYTES, person=b"streamwsi-run").digest()
        return msgspec.structs.replace(self, message_key=own)


def write_keys(folder: Path) -> None:
    """Make new keys, each in a file of its own (Z85, mode 0600) in a folder of mode 0700, which is made if it is not there.

    Raises ConfigError where there are keys already, where others may look into the folder, or where it cannot be written.
    """
    keys = RunKeys.make(curve=True)
    made: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_open(folder, folder.stat().st_mode, 0o700)
        for name, path in _files(folder).items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            made.append(path)
            with os.fdopen(descriptor, "wb") as file:
                key = getattr(keys, name)
                file.write((z85.encode(key) if name == "message_key" else key) + b"\n")
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise ConfigError(f"{error.filename} is there already: no key is overwritten; choose another folder") from error
        raise ConfigError(f"keys cannot be written to {folder}: {error.strerror or error}") from error


def read_keys(folder: Path) -> RunKeys:
    """The keys of a folder that :func:`write_keys` has filled.

    Raises ConfigError when one is missing, is no key, does not fit its other half, or when others than its owner can read it.
    """
    try:
        _refuse_open(folder, folder.stat().st_mode, 0o700)
        found = {name: _read_key(path) for name, path in _files(folder).items()}
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be read: {error.strerror or error}; 'streamwsi keys FOLDER' makes a folder of keys"
        ) from error
    for pair in ("server", "client"):
        if zmq.curve_public(found[f"{pair}_secret"]) != found[f"{pair}_public"]:
            raise ConfigError(f"{folder / pair}_public is not the public half of {pair}_secret beside it")
    return RunKeys(**{**found, "message_key": z85.decode(found["message_key"])})


def _files(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in RunKeys.__struct_fields__}


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        _refuse_open(path, os.fstat(file.fileno()).st_mode, 0o600)
        text = file.read(_READ_BYTES).strip()
    try:
        length = len(z85.decode(text))
    except (ValueError, KeyError, struct.error):
        length = 0
    if length != _KEY_BYTES:
        raise ConfigError(f"{path} holds no key: {len(text)} bytes, expected {_KEY_BYTES} bytes as 40 characters of Z85")
    return text


def _refuse_open(path: Path, mode: int, expected: int) -> None:
    if os.name == "posix" and mode & _OTHERS:
        raise ConfigError(
            f"{path} holds secrets and has mode {stat.S_IMODE(mode):04o}, which lets others in, expected {expected:04o}: "
            f"chmod {expected:o} {path}"
        )
