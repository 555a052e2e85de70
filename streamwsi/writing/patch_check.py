"""Whether a patient's images are what they were when they were published.

In: a patient's folder and the record of its publication.  Out: what is wrong.  Changes nothing.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path

from streamwsi.writing.manifest import MANIFEST, content_checksum, manifest_rows, strange_files, totals_of
from streamwsi.writing.publish import PublishedPatient, checksum_of

_MOST_NAMED = 5
"""Problems of a folder that are listed one by one."""
_Row = dict[str, str]


def folder_problems(folder: Path, record: PublishedPatient) -> list[str]:
    """What is wrong with a patient's folder: its manifest, the number of images, and the content of every file."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return [f"{folder.name}/{MANIFEST} is not there"]
    if checksum_of(manifest) != record.checksum:
        return [f"{folder.name}/{MANIFEST} has changed since its publication: its checksum differs"]
    problems = []
    totals, each = totals_of(folder), record.values.size if record.values else 1
    written = sum(slide.written for slide in record.slides) * each
    if not totals.images == record.images == written or totals.bytes != record.size_bytes:
        problems.append(
            f"{folder.name}/{MANIFEST} lists {totals.images} images of {totals.bytes} bytes, {written} were written, and at "
            f"publication there were {record.images} of {record.size_bytes} bytes"
        )
    wrong = _wrong_images(folder, manifest_rows(folder))
    problems += [f"{folder.name}/{what}" for what in islice(wrong, _MOST_NAMED)]
    if more := sum(1 for _ in wrong):
        problems.append(f"{folder.name}: {more} more are wrong")
    strange = next(strange_files(folder), None)
    if strange is not None:
        problems.append(f"{folder.name}/{strange} is not in the manifest")
    return problems


def _wrong_images(folder: Path, rows: Iterator[_Row]) -> Iterator[str]:
    """Images that are missing, or not what they were."""
    for shard, group in groupby(rows, key=lambda row: row.get("shard", "")):
        if shard:
            yield from _wrong_in_shard(folder / shard, group)
            continue
        for row in group:
            try:
                yield from _wrong_content(row["file"], (folder / row["file"]).read_bytes(), row)
            except OSError as error:
                yield f"{row['file']} cannot be read: {error.strerror or error}"


def _wrong_in_shard(shard: Path, rows: Iterable[_Row]) -> Iterator[str]:
    """Images of a shard that are missing, or not what they were."""
    left = {row["file"]: row for row in rows}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                row = left.pop(member.name, None)
                content = tar.extractfile(member)
                if row is not None and content is not None:
                    yield from _wrong_content(f"{shard.name}/{member.name}", content.read(), row)
                elif not member.name.endswith(".json"):
                    yield f"{shard.name}/{member.name} is not in the manifest, or there twice"
    except (OSError, tarfile.TarError) as error:
        yield f"{shard.name} cannot be read: {error}"
        return
    yield from (f"{shard.name}/{name} is not there" for name in left)


def _wrong_content(name: str, content: bytes, row: _Row) -> Iterator[str]:
    if len(content) != int(row["bytes"]):
        yield f"{name} has {len(content)} bytes, at publication it had {row['bytes']}"
    elif content_checksum(content) != row["checksum"]:
        yield f"{name} has changed since its publication: its checksum differs"
