"""Whether a patient's maps are what they were when they were published.

In: a patient's folder, the record of its publication, how much smaller than the windows their images are.  Out: what is
wrong.  Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from streamwsi.writing.map_manifest import MANIFEST, MapEntry, holds_maps, measured, read_manifest, strange_in_maps
from streamwsi.writing.map_set import Expected
from streamwsi.writing.publish import PublishedPatient, checksum_of


def map_problems(folder: Path, record: PublishedPatient, reduction: int) -> Iterator[str]:
    """What is wrong with a patient's folder: its manifest, the sizes of its maps, and the content of every file."""
    if not holds_maps(folder):
        yield f"{folder.name}/{MANIFEST} is not there"
        return
    if checksum_of(folder / MANIFEST) != record.checksum:
        yield f"{folder.name}/{MANIFEST} has changed since its publication: its checksum differs"
        return
    entries = {entry.slide: entry for entry in read_manifest(folder).maps}
    for slide in record.slides:
        entry = entries.get(slide.resolved.id)
        if entry is None:
            yield f"slide {slide.resolved.id!r} has no map"
            continue
        expected = Expected.of(slide.resolved, reduction, record.values)
        if entry.shape != expected.shape or entry.downsample != expected.downsample:
            yield (
                f"{folder.name}/{entry.file} is {entry.shape} at downsample {entry.downsample:g}, the plan has "
                f"{expected.shape} at {expected.downsample:g}"
            )
        yield from (f"{folder.name}/{entry.file}{what}" for what in _content_problems(folder / entry.file, entry))
    yield from (f"{folder.name}/{name} is none of the maps" for name in strange_in_maps(folder))


def _content_problems(path: Path, entry: MapEntry) -> Iterator[str]:
    if not path.exists():
        yield " is not there"
        return
    files, size, checksum = measured(path)
    if (files, size) != (entry.files, entry.size_bytes):
        yield f" has {files} files of {size} bytes, at publication there were {entry.files} of {entry.size_bytes}"
    elif checksum != entry.checksum:
        yield " has changed since its publication: its checksum differs"
