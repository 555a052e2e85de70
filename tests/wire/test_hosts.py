"""Which hosts are this machine alone. Nothing here listens beyond loopback."""

from __future__ import annotations

import socket

import psutil
import pytest

from streamwsi.errors import ConfigError
from streamwsi.wire.hosts import bindable, endpoint, is_loopback, reachable, refuse_open_host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert is_loopback(host)
    refuse_open_host(host, keys_given=False)


@pytest.mark.parametrize(
    "host",
    [
        *("0.0.0.0", "::", "192.168.0.1", "10.0.0.7", "8.8.8.8", "fe80::1", "128.0.0.1", "1.0.0.127"),
        *("localhost.example.org", "LOCALHOST.", "node17", "lo", "*", "127.0.0.1.nip.io", "127.1", "127.0.0.1:80"),
    ],
)
def test_whatever_is_not_certainly_loopback_takes_keys(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match=r"is open to other machines.*'streamwsi keys FOLDER'.*key_dir.*127\.0\.0\.1"):
        refuse_open_host(host, keys_given=False)
    refuse_open_host(host, keys_given=True)


def test_the_addresses_that_this_machine_has_are_told_apart() -> None:
    for addresses in psutil.net_if_addrs().values():
        for found in addresses:
            if found.family == socket.AF_INET:
                assert is_loopback(found.address) == found.address.startswith("127.")


def test_a_host_is_bound_by_its_address() -> None:
    assert bindable("127.0.0.1") == bindable("localhost") == "127.0.0.1"
    assert bindable("127.0.0.2") == "127.0.0.2"


@pytest.mark.parametrize("host", ["192.0.2.1", "\udcff", "a" * 64 + ".b", "a\0b"])
def test_what_this_machine_cannot_listen_on_is_named(host: str) -> None:  # 192.0.2.0/24 is nobody's (RFC 5737)
    with pytest.raises(ConfigError, match=r"is no address of this machine that can be listened on"):
        bindable(host)


def test_a_name_that_nobody_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match=r"'node17' is no address of this machine .*: Name or service not known"):
        bindable("node17")


@pytest.mark.parametrize(
    ("listening", "told"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("127.0.0.2", "127.0.0.2"), ("10.0.0.7", "10.0.0.7")]
)
def test_what_listens_on_every_address_is_found_at_loopback(listening: str, told: str) -> None:
    assert reachable(listening) == told


def test_endpoints_are_written_as_zeromq_reads_them() -> None:
    assert endpoint("127.0.0.1", 5555) == "tcp://127.0.0.1:5555" and endpoint("::1") == "tcp://[::1]"
