"""Where TCP sockets listen: which hosts are this machine alone, and which are open to others.

In: a host as users name it.  Out: an address to bind, and one to connect to.  Never sends anything.
"""

from __future__ import annotations

import ipaddress
import socket

from streamwsi.errors import ConfigError

LOOPBACK = "127.0.0.1"
_REACHABLE = {"0.0.0.0": LOOPBACK, "::": "::1"}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name other than ``localhost`` counts as open, whatever it stands for."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open_host(host: str, keys_given: bool) -> None:
    """Raise ConfigError for a host that others can reach, unless keys were given: those made for a run are for loopback."""
    if not keys_given and not is_loopback(host):
        raise ConfigError(
            f"tcp_host {host!r} is open to other machines, which takes keys of your own: make them with "
            f"'streamwsi keys FOLDER' and give that folder as key_dir, or listen on {LOOPBACK}"
        )


def bindable(host: str) -> str:
    """The numeric address that `host` stands for. Raises ConfigError when it is none that this machine can listen on."""
    if host == "localhost":
        return LOOPBACK
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
    except (OSError, UnicodeError) as error:  # a name that no network can have is a UnicodeError
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"tcp_host {host!r} is no address of this machine that can be listened on: {reason}") from error
    return str(place[0])


def reachable(address: str) -> str:
    """The address at which workers on this machine find what listens on `address`: loopback, where that means all of them."""
    return _REACHABLE.get(address, address)


def endpoint(address: str, port: int | None = None) -> str:
    """An address as ZeroMQ writes it, with its port if that is known."""
    text = f"tcp://[{address}]" if ":" in address else f"tcp://{address}"
    return text if port is None else f"{text}:{port}"
