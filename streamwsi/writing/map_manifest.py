"""What a patient's folder of maps says of itself.

In: a folder.  Out: its maps, and what in it is not theirs.  Never opens a map.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from streamwsi.errors import OutputError
from streamwsi.writing.layout import write_whole

MANIFEST = "maps.json"


class MapEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One slide's map."""

    slide: str
    file: str
    """Its name in the folder; of OME-Zarr, of a folder."""
    shape: tuple[int, ...]
    """(height, width) or (height, width, channels)."""
    dtype: str
    columns: tuple[str, ...] | None
    """Names of the channels, where the collector gives them."""
    downsample: float
    """Level-0 pixels per pixel of the map."""
    mpp: tuple[float, float] | None
    """(x, y) micrometres per pixel of the map; None where the slide does not say, or cannot be believed."""
    level: int
    """The level read."""
    files: int
    size_bytes: int
    """Of all of them."""
    checksum: str
    """See :func:`measured`."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All maps of a patient."""

    patient: str
    weights: str
    maps: list[MapEntry]

    def write(self, folder: Path) -> None:
        """Write it; it appears whole."""
        write_whole(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(self), indent=2))


def holds_maps(folder: Path) -> bool:
    """Whether a folder is a patient's, made here."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a patient's folder. Raises OutputError where it cannot be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise OutputError(f"{folder / MANIFEST} cannot be read: {error}") from error


def files_of(path: Path) -> Iterator[Path]:
    """The files of a map, in the order of their names: itself, or all below it."""
    if not path.is_dir():
        yield path
        return
    for above, folders, names in os.walk(path):
        folders.sort()
        yield from (Path(above, name) for name in sorted(names))


def measured(path: Path, sync: bool = False) -> tuple[int, int, str]:
    """(files, bytes, checksum) of a map; with `sync`, its files are on disk afterwards.

    The checksum is BLAKE2b-128, hexadecimal, of each file's name below `path`, size and content.
    """
    digest = hashlib.blake2b(digest_size=16)
    count = size = 0
    for file in files_of(path):
        n_bytes = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}\0{n_bytes}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
            if sync:
                os.fsync(content.fileno())
        count, size = count + 1, size + n_bytes
    return count, size, digest.hexdigest()


def strange_in_maps(folder: Path) -> Iterator[str]:
    """What lies in a patient's folder of maps and is none of them."""
    made = {MANIFEST, *(entry.file for entry in read_manifest(folder).maps)}
    yield from sorted(path.name for path in folder.iterdir() if path.name not in made)
