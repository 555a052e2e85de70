"""Slides are recognised by what they hold, not by time stamps.

In: a slide's path.  Out: a hash of samples.  Never reads a slide whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from streamwsi.addresses import ZARR_METADATA, split_address

_METADATA = ZARR_METADATA | {".zattrs", ".zmetadata"}
_CHUNKS = 8
"""Of each array in a folder, so many files are looked at."""


class _Node(msgspec.Struct):
    """What is in a ``zarr.json``."""

    node_type: str


def fingerprint(path: str | os.PathLike[str], samples: int = 8, sample_bytes: int = 1 << 16) -> str:
    """A hash of a slide's content: for each of its files, the size and `samples` parts, the first and the last among them.

    Of a Zarr folder, its metadata and some files of each array; what of an array is meant (``::z=3``) counts too.

    Returns 32 hexadecimal digits. Raises OSError where the slide is not there.
    """
    digest = hashlib.blake2b(digest_size=16)
    file, inside = split_address(path)
    if inside:
        digest.update(f"{inside};".encode())
    for part in _files_of(file):
        if file.is_dir():
            digest.update(f"{part.relative_to(file).as_posix()};".encode())
        size = part.stat().st_size
        digest.update(f"{size};".encode())
        last = max(size - sample_bytes, 0)
        with part.open("rb") as opened:
            for offset in sorted({last * number // (samples - 1) for number in range(samples)}):
                opened.seek(offset)
                digest.update(opened.read(sample_bytes))
    return digest.hexdigest()


def _files_of(path: Path) -> list[Path]:
    """The files that a slide may consist of: a DICOM series lies in one folder, a MIRAX slide has one beside it."""
    suffix = path.suffix.lower()
    if suffix == ".dcm":
        return sorted(other for other in path.parent.iterdir() if other.suffix.lower() == ".dcm")
    if suffix == ".mrxs" and path.with_suffix("").is_dir():
        return [path, *sorted(other for other in path.with_suffix("").iterdir() if other.is_file())]
    return list(_zarr_files(path)) if path.is_dir() else [path]


def _zarr_files(folder: Path) -> Iterator[Path]:
    """All metadata below a folder, and of the chunks of each array some, the first and the last among them."""
    entries = sorted(folder.iterdir())
    metadata = [entry for entry in entries if entry.name in _METADATA]
    yield from metadata
    others = [entry for entry in entries if entry.name not in _METADATA]
    if any(_is_of_array(file) for file in metadata):
        yield from _samples(others, _CHUNKS)
    else:
        for part in others:
            if part.is_dir():
                yield from _zarr_files(part)


def _is_of_array(metadata: Path) -> bool:
    """Whether a folder with this file is an array, and what else is in it are chunks."""
    if metadata.name != "zarr.json":
        return metadata.name == ".zarray"
    try:
        return msgspec.json.decode(metadata.read_bytes(), type=_Node).node_type == "array"
    except msgspec.DecodeError:
        return False  # whoever opens it will say so


def _samples(entries: list[Path], wanted: int) -> Iterator[Path]:
    """So many files among entries and below them, spread evenly."""
    taken = min(wanted, len(entries))
    last = len(entries) - 1
    for number in range(taken):
        entry = entries[last * number // max(taken - 1, 1)]
        if entry.is_dir():
            yield from _samples(sorted(entry.iterdir()), max(wanted // taken, 1))
        else:
            yield entry
