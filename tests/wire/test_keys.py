"""Keys that the user gives: files that nobody else can read, and that are what they say."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from streamwsi.errors import ConfigError
from streamwsi.wire.keys import RunKeys, read_keys, write_keys

FILES = ["client_public", "client_secret", "message_key", "server_public", "server_secret"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_keys(tmp_path / "keys")
    return tmp_path / "keys"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_keys_come_back_as_they_were_written(folder: Path) -> None:
    keys = read_keys(folder)
    assert len(keys.message_key) == 32
    assert all(len(getattr(keys, name)) == 40 for name in FILES if name != "message_key")
    assert sorted(contents(folder)) == FILES
    assert read_keys(folder) == keys


def test_no_two_folders_hold_the_same_keys(folder: Path, tmp_path: Path) -> None:
    write_keys(tmp_path / "other")
    assert len({*contents(folder).values(), *contents(tmp_path / "other").values()}) == 10


@pytest.mark.skipif(os.name != "posix", reason="files have modes as POSIX has them")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_their_owner_can_read_them_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_keys(tmp_path / "keys")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").iterdir()} == {0o600}


@pytest.mark.parametrize("name", FILES)
def test_a_key_is_never_overwritten_and_nothing_is_left_beside_it(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    (folder / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"{name} is there already: no key is overwritten"):
        write_keys(folder)
    assert contents(folder) == {name: b"mine"}


@pytest.mark.skipif(os.name != "posix", reason="files have modes as POSIX has them")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644, 0o777])
@pytest.mark.parametrize("name", FILES)
def test_a_key_that_others_can_get_at_is_refused(folder: Path, name: str, mode: int) -> None:
    (folder / name).chmod(mode)
    with pytest.raises(ConfigError, match=rf"{name} holds secrets and has mode {mode:04o}, .* chmod 600 .*{name}"):
        read_keys(folder)


@pytest.mark.skipif(os.name != "posix", reason="files have modes as POSIX has them")
def test_a_folder_that_others_can_get_into_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.chmod(0o750)
    with pytest.raises(ConfigError, match=r"has mode 0750, .* chmod 700 "):
        read_keys(folder)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(ConfigError, match=r"has mode 0755, .* chmod 700 "):
        write_keys(tmp_path / "open")
    assert not contents(tmp_path / "open")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[:-6],
        lambda text: text[:-1] + b"00000",
        lambda text: b"#" * 40,
        lambda text: b'"' + text[1:],
        lambda text: b"\xff" * 40,
        lambda text: text.hex().encode(),
        lambda text: bytes(100_000),
    ],
    ids=["empty", "short", "long", "too-large", "no-z85", "no-text", "hexadecimal", "huge"],
)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_key_is_refused_without_showing_it(folder: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    text = (folder / name).read_bytes()
    (folder / name).write_bytes(damage(text))
    with pytest.raises(ConfigError, match=rf"{name} holds no key: \d+ bytes, expected 32 bytes as 40 characters") as caught:
        read_keys(folder)
    assert text[:20].decode() not in str(caught.value)


@pytest.mark.parametrize("pair", ["server", "client"])
def test_halves_that_do_not_belong_together_are_refused(folder: Path, tmp_path: Path, pair: str) -> None:
    write_keys(tmp_path / "other")
    (folder / f"{pair}_public").write_bytes((tmp_path / "other" / f"{pair}_public").read_bytes())
    with pytest.raises(ConfigError, match=rf"{pair}_public is not the public half of {pair}_secret"):
        read_keys(folder)


def test_a_missing_key_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere cannot be read: No such file .* 'streamwsi keys FOLDER'"):
        read_keys(tmp_path / "nowhere")
    (folder / "client_secret").unlink()
    with pytest.raises(ConfigError, match=r"client_secret cannot be read: No such file"):
        read_keys(folder)


def test_a_place_that_takes_no_keys_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "keys"):
        with pytest.raises(ConfigError, match=r"file"):
            write_keys(place)


def test_each_run_has_a_message_key_of_its_own() -> None:
    keys = RunKeys.make(curve=True)
    one, other = keys.of_one_run(), keys.of_one_run()
    assert len({keys.message_key, one.message_key, other.message_key}) == 3 and len(one.message_key) == 32
    assert msgspec.structs.replace(one, message_key=keys.message_key) == keys
