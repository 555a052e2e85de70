"""A patient's images: a folder of them, or of tar shards, with a manifest.

In: windows and the contents of image files, in order.  Out: files, and ``manifest.csv``, a row for each image.  Knows nothing
of journals or runs.

In shards a window is a sample as WebDataset reads it: files next to each other whose names are the same up to the first dot,
``key.png`` and ``key.json``; the bytes of a shard depend on nothing but what is in it.
Source: https://github.com/webdataset/webdataset, "The WebDataset Format".
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamwsi.dataset import Dataset
from streamwsi.errors import ConfigError, OutputError
from streamwsi.geometry import Windows
from streamwsi.images.comments import with_comment
from streamwsi.images.names import FIELDS, fields_of, filled, fit, quoted, unfit
from streamwsi.images.options import ImageOptions
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec
from streamwsi.writing.csv_rows import csv_rows
from streamwsi.writing.manifest import MANIFEST, MANIFEST_COLUMNS, content_checksum, manifest_rows

UNLABELLED = "unlabelled"
"""Where the images of windows without a label lie, where there is a folder for each label."""
_FOLDERS_OWN = ("run.json", "report.json", "job.toml")
_SYNCING_THREADS = 8
"""Files are synced by several at once: the disk's own syncs then serve many."""


@dataclass(frozen=True)
class _Sample:
    """The images of one window."""

    key: str
    """Their name, without what tells them apart, and without the format's suffix; below the folder of their label."""
    names: list[str]
    """Of each, whole."""
    contents: list[bytes]
    about: dict[str, Any]
    """What is known of the window."""
    comment: str


@dataclass(frozen=True)
class _Stored:
    """Where an image has gone."""

    shard: str
    """Empty where there are none."""
    size: int
    checksum: str


class _Store(Protocol):
    """Where images go."""

    def store(self, samples: list[_Sample]) -> Iterator[list[_Stored]]:
        """Write samples; where their images are, in order."""
        ...

    def close(self) -> None:
        """Finish; everything is on disk."""
        ...


def check_names(options: ImageOptions, dataset: Dataset) -> None:
    """Raise ConfigError where a dataset's images cannot be called so, as far as that is known before slides are opened."""
    named = fields_of(options.name, "name")
    for patient in dataset:
        if patient.id.lower() in _FOLDERS_OWN:
            raise ConfigError(f"patient {patient.id!r} cannot have a folder of images: a file of the run is called so")
        if len(patient.slides) > 1 and "slide" not in named:
            raise ConfigError(
                f"name {options.name!r} would be the same for windows of slides {patient.slides[0].id!r} and "
                f"{patient.slides[1].id!r} of patient {patient.id!r}: add {{slide}} to it"
            )
        of_file = {"patient": patient.id, **dict.fromkeys(("index", "x", "y"), 10**9)}
        folded: dict[str, str] = {}
        for slide in patient.slides:
            why = unfit(filled(options.name, {**FIELDS, **of_file, "slide": slide.id}) + ".r0" + options.encoding.suffix)
            if why:
                raise ConfigError(f"name {options.name!r}: images of slide {slide.id!r} cannot be called so: {why}")
            key = slide.id.casefold()
            other = folded.setdefault(key.replace(".", "_") if options.sharded else key, slide.id)
            if other != slide.id:
                raise ConfigError(
                    f"images of slides {other!r} and {slide.id!r} of patient {patient.id!r} would be called the same, where "
                    "case does not count" + (" and dots become _" if options.sharded else "") + ": rename one of the slides"
                )


class PatchSetFile:
    """A patient's images while they are written; see :class:`streamwsi.writing.formats.PieceFile`."""

    def __init__(self, folder: Path, spec: ValueSpec, options: ImageOptions) -> None:
        self._options = options
        self._several = bool(spec.shape)
        self._tells_resolution = "resolution" in fields_of(options.name, "name")
        self._store: _Store = _Shards(folder, options) if options.sharded else _Files(folder)
        self._folder = folder
        self._manifest = (folder / MANIFEST).open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._rows = csv_rows(self._manifest)
        self._rows.writerow((*(("shard",) if options.sharded else ()), *MANIFEST_COLUMNS))
        self._slide: ResolvedSlide | None = None
        self._names = array("Q")
        """A hash of each name: eight bytes, for there may be millions."""

    def begin_slide(self, resolved: ResolvedSlide, n_rows: int) -> None:
        """Begin a slide."""
        self._slide = resolved

    def append(self, windows: Windows, values: npt.NDArray[Any]) -> None:
        """Write the images of these windows: `values` are (n,) or (n, resolutions) bytes."""
        of_each = values if self._several else values[:, None]
        samples = [self._sample(about, row) for about, row in zip(self._about(windows), of_each, strict=True)]
        for sample, stored in zip(samples, self._store.store(samples), strict=True):
            for resolution, (name, place) in enumerate(zip(sample.names, stored, strict=True)):
                self._names.append(_hashed(name))
                about = {**sample.about, "file": name, "resolution": resolution, "comment": sample.comment}
                about |= {"bytes": place.size, "checksum": place.checksum}
                shard = (place.shard,) if self._options.sharded else ()
                self._rows.writerow((*shard, *(about[column] for column in MANIFEST_COLUMNS)))

    def end_slide(self, not_written: list[tuple[int, int, int]]) -> None:
        """End the slide. Raises OutputError where two images are called the same, on a file system that ignores case too."""
        self._slide = None
        names = np.sort(np.frombuffer(self._names, np.uint64)) if self._names else np.empty(0, np.uint64)
        twice = set(names[1:][names[1:] == names[:-1]].tolist())
        if twice:
            self._manifest.flush()
            _refuse_same_names(self._folder, twice, self._options.name)

    def close(self) -> None:
        """Finish; everything but the entries of folders is on disk."""
        try:
            self._store.close()
        finally:
            with self._manifest:
                self._manifest.flush()
                os.fsync(self._manifest.fileno())

    def _about(self, windows: Windows) -> Iterator[dict[str, Any]]:
        """What names, comments and the manifest tell of each window."""
        slide = self._slide
        if slide is None:
            raise RuntimeError("append before begin_slide")
        places = np.column_stack([windows.index, windows.xy, windows.size]).tolist()
        for (index, x, y, width, height), label in zip(places, windows.labels, strict=True):
            yield {
                "patient": slide.patient_id,
                "slide": slide.id,
                "index": index,
                "x": x,
                "y": y,
                "level": slide.level,
                "width": width,
                "height": height,
                "label": label or "",
            }

    def _sample(self, about: dict[str, Any], contents: Iterable[Any]) -> _Sample:
        options, suffix = self._options, self._options.encoding.suffix
        folder = f"{self._fit(quoted(about['label']) or UNLABELLED, about)}/" if options.by_label else ""
        comment = "" if options.comment is None else options.comment.format(**{**about, "resolution": 0})
        data = [bytes(content) for content in contents]
        if comment:
            data = [with_comment(content, options.encoding.format, comment) for content in data]
        names = []
        for resolution in range(len(data)):
            own = filled(options.name, {**about, "resolution": resolution})
            if options.sharded:
                own = own.replace(".", "_")  # a sample's name ends at its first dot
            if self._several and not self._tells_resolution:
                own += f".r{resolution}"
            names.append(folder + self._fit(own + suffix, about))
        key = folder + (filled(options.name, {**about, "resolution": 0}).replace(".", "_") if options.sharded else "")
        return _Sample(key, names, data, about, comment)

    def _fit(self, name: str, about: dict[str, Any]) -> str:
        return fit(name, f"window {about['index']} of slide {about['slide']!r}")


class _Files:
    """Each image is a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = {""}
        self._pool = ThreadPoolExecutor(_SYNCING_THREADS, thread_name_prefix="write")

    def store(self, samples: list[_Sample]) -> Iterator[list[_Stored]]:
        """Write samples."""
        for sample in samples:
            for name in sample.names:
                folder = name.rpartition("/")[0]
                if folder not in self._made:
                    (self._folder / folder).mkdir()
                    self._made.add(folder)
        files = [(name, data) for sample in samples for name, data in zip(sample.names, sample.contents, strict=True)]
        stored = self._pool.map(self._write, files)
        for sample in samples:
            yield [next(stored) for _ in sample.names]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _write(self, file: tuple[str, bytes]) -> _Stored:
        name, data = file
        with open(self._folder / name, "wb", buffering=0) as target:
            _write_all(target, data)
            os.fsync(target.fileno())
        return _Stored("", len(data), content_checksum(data))


class _Shards:
    """Tar files, one after the other, each with so many samples."""

    def __init__(self, folder: Path, options: ImageOptions) -> None:
        self._folder = folder
        self._most_samples, self._most_bytes = options.shard_images, options.shard_bytes
        self._shard: _Shard | None = None
        """The one that is being written."""
        self._begun = 0

    def store(self, samples: list[_Sample]) -> Iterator[list[_Stored]]:
        """Write samples."""
        for sample in samples:
            shard = self._shard_for(sample.about["patient"])
            stored = [shard.add(name, data) for name, data in zip(sample.names, sample.contents, strict=True)]
            about = {**sample.about, **({"comment": sample.comment} if sample.comment else {})}
            shard.end_sample(sample.key, about)
            yield stored

    def close(self) -> None:
        """Finish the last shard."""
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.close()

    def _shard_for(self, patient: str) -> _Shard:
        if self._shard is not None and self._shard.is_full(self._most_samples, self._most_bytes):
            self.close()
        if self._shard is None:
            self._shard = _Shard(self._folder / shard_name(patient, self._begun))
            self._begun += 1
        return self._shard


class _Shard:
    """One tar file while it is written. Its members have no time and no owner: the same images make the same shard."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = path.open("wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)
        self._samples = self._bytes = 0

    def add(self, name: str, data: bytes) -> _Stored:
        """Add an image."""
        self._add(name, data)
        self._bytes += len(data)
        return _Stored(self._name, len(data), content_checksum(data))

    def end_sample(self, key: str, about: dict[str, Any]) -> None:
        """Add what is known of the window whose images came last."""
        self._add(f"{key}.json", json.dumps(about, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogateescape"))
        self._samples += 1

    def is_full(self, most_samples: int | None, most_bytes: int | None) -> bool:
        """Whether it has as much as it is to have."""
        full = most_samples is not None and self._samples >= most_samples
        return full or (most_bytes is not None and self._bytes >= most_bytes)

    def close(self) -> None:
        """Finish the file; it is on disk."""
        with self._file:
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._tar.addfile(info, io.BytesIO(data))


def shard_name(patient: str, number: int) -> str:
    """The name of a shard."""
    return f"{patient}-{number:06}.tar"


def _write_all(target: Any, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[target.write(left) :]


def _hashed(name: str) -> int:
    folded = name.casefold().encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(folded, digest_size=8).digest(), "little")


def _refuse_same_names(folder: Path, twice: set[int], template: str) -> None:
    """Raise OutputError naming two windows whose images are called the same."""
    first: dict[str, tuple[str, str, str]] = {}
    for row in manifest_rows(folder):
        here = (row["file"], row["slide"], row["index"])
        if _hashed(here[0]) not in twice:
            continue
        other = first.setdefault(here[0].casefold(), here)
        if other is not here:
            raise OutputError(
                f"name {template!r} calls two images the same: {other[0]!r} of window {other[2]} of slide {other[1]!r}, and "
                f"{here[0]!r} of window {here[2]} of slide {here[1]!r}; add a field to it, {{index}} say, or put something "
                "between two of them"
            )
