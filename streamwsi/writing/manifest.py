"""The manifest of a patient's images.

In: a patient's folder.  Out: what its manifest says, and what in the folder it does not name.  Never opens an image.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamwsi.geometry import Int64Array

MANIFEST = "manifest.csv"
MANIFEST_COLUMNS = (
    *("file", "patient", "slide", "index", "x", "y", "level", "width", "height", "label"),
    *("resolution", "comment", "bytes", "checksum"),
)
"""After ``shard``, where there are shards. The window's columns are those of a CSV file of values."""
_FIRST_LINES = tuple(",".join(columns).encode() + b"\n" for columns in (MANIFEST_COLUMNS, ("shard", *MANIFEST_COLUMNS)))


def holds_patch_set(folder: Path) -> bool:
    """Whether a folder is a patient's, made here: its manifest begins as ours do; others' may be called so too."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            first = file.readline(1 << 10)
    except OSError:  # not there, or no folder
        return False
    return first in _FIRST_LINES


@dataclass(frozen=True)
class Totals:
    """What a manifest adds up to."""

    images: int
    bytes: int


def totals_of(folder: Path) -> Totals:
    """What the manifest of a patient's folder adds up to."""
    images = size = 0
    for row in manifest_rows(folder):
        images, size = images + 1, size + int(row["bytes"])
    return Totals(images, size)


def manifest_rows(folder: Path) -> Iterator[dict[str, str]]:
    """The rows of a patient's manifest, one after the other."""
    with (folder / MANIFEST).open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        yield from csv.DictReader(file)


def strange_files(folder: Path) -> Iterator[str]:
    """Files below a patient's folder that its manifest does not name."""
    made = set()
    if holds_patch_set(folder):
        made = {MANIFEST} | {row.get("shard") or row["file"] for row in manifest_rows(folder)}
    for above, _, names in os.walk(folder):
        for name in names:
            path = Path(above, name).relative_to(folder).as_posix()
            if path not in made:
                yield path


def windows_in(folder: Path, slide: str) -> tuple[Int64Array, Int64Array, Int64Array]:
    """What the manifest says of the windows of a slide: (n,) their places in the plan, (n, 2) level-0 corners, (n, 2) sizes.

    Raises ValueError where there is no number in a row that should have one.
    """
    columns = ("index", "x", "y", "width", "height")
    rows = (row for row in manifest_rows(folder) if row["slide"] == slide and row["resolution"] == "0")
    table = np.array([[int(row[column]) for column in columns] for row in rows], np.int64).reshape(-1, len(columns))
    return table[:, 0], table[:, 1:3], table[:, 3:5]


def content_checksum(data: bytes) -> str:
    """BLAKE2b-128 of an image's file, hexadecimal; what stands in the manifest."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
