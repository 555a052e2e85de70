"""Turn a patient's complete journal into its final file, or into what a gathering collector makes of it.

In: a sealed journal.  Out: a file under its final name, and a record of what is in it.  Never publishes a hole: a window
that is missing or stands there twice is an error that names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.chunks import ProcessedPiece, Status
from streamwsi.config import OutputOptions
from streamwsi.dataset import Patient, Slide
from streamwsi.errors import JournalError, OutputError, PieceError
from streamwsi.geometry import Windows
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec, encode_result
from streamwsi.writing.formats import create_piece_file
from streamwsi.writing.journal import Journal, Run
from streamwsi.writing.layout import (
    ALL_PATIENTS,
    Layout,
    disk_errors,
    folder_renamed_when_whole,
    make_folder,
    remove_output,
    renamed_when_whole,
    write_whole,
)
from streamwsi.writing.manifest import MANIFEST, holds_patch_set, totals_of
from streamwsi.writing.map_manifest import MANIFEST as MAP_MANIFEST
from streamwsi.writing.map_manifest import holds_maps, read_manifest

_ROWS_AT_ONCE = 4096
_BYTES_AT_ONCE = 1 << 23
"""Of images."""
_NOTHING = ValueSpec("float64", ())
"""What a file without a single value is written as."""


class Stop(msgspec.Struct, frozen=True):
    """Where ``is_finished`` stopped a patient: the last chunk that counts, in the order of the plan."""

    slide: int
    chunk: int


class PublishedSlide(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one slide's windows."""

    resolved: ResolvedSlide
    written: int
    none: int
    skipped: int
    stopped: int
    not_written: list[tuple[int, int, int]]
    """(first window, last window, status) of those without a row."""


class PublishedPatient(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a published patient."""

    patient_id: str
    file: str
    """Name of its file in the output folder."""
    size_bytes: int
    """Of the file; of all images or maps together, where it is a folder of them."""
    checksum: str
    """BLAKE2b-128 of the file, hexadecimal; of a folder's manifest, in which those of the images or maps stand."""
    values: ValueSpec | None
    slides: list[PublishedSlide]
    images: int | None = None
    """How many there are in the folder; None: it holds none."""
    maps: int | None = None
    """The same for maps."""


class Gatherer(Protocol):
    """The part of a collector that gathers a patient's pieces instead of having them written."""

    mode: str

    def accumulate(self, previous: Any, piece: ProcessedPiece, patient: Patient) -> Any:
        """The result so far, with one more piece."""

    def collate(self, patient: Patient, pieces: list[ProcessedPiece]) -> Any:
        """The result of all pieces."""


@dataclass(frozen=True)
class _Block:
    """Some windows of a slide in window order, with their rows."""

    windows: Windows
    values: npt.NDArray[Any]


class SlideRows:
    """The windows of one slide as a journal holds them: rows in window order, then what became of the others."""

    def __init__(self, journal: Journal, resolved: ResolvedSlide, stop: Stop | None, with_values: bool = True) -> None:
        """Without values, as in the journal of a map, there are no rows to be had, only what became of each window."""
        self._journal = journal
        self.resolved = resolved
        self._plan = resolved.plan()
        self._chunks = resolved.chunks()
        self.last_chunk: int | None = None
        """The last chunk that counts; None: all do."""
        if stop is not None and resolved.slide >= stop.slide:
            self.last_chunk = stop.chunk if resolved.slide == stop.slide else -1
        self.n_rows = journal.written_rows(resolved.slide, self.last_chunk)
        self._with_values = with_values
        self.counts = [0, 0, 0, 0]
        self.not_written: list[tuple[int, int, int]] = []

    def blocks(self) -> Iterator[_Block]:
        """Rows in window order, some thousand at a time.

        Raises JournalError when a window is missing or stands there twice.
        """
        spec = self._journal.spec or _NOTHING
        indices: list[npt.NDArray[np.int64]] = []
        values: list[npt.NDArray[Any]] = []
        held = held_bytes = 0
        for first, status, rows in self._statuses():
            self._count(first, status)
            if len(rows):
                indices.append(first + np.flatnonzero(status == Status.WRITTEN))
                values.append(rows)
                held += len(rows)
                held_bytes += sum(map(len, rows.ravel().tolist())) if spec.holds_bytes else 0
            if held >= _ROWS_AT_ONCE or held * spec.size > 1 << 22 or held_bytes > _BYTES_AT_ONCE:
                yield _Block(self._plan.windows(np.concatenate(indices)), np.concatenate(values))
                indices, values, held, held_bytes = [], [], 0, 0
        if held:
            yield _Block(self._plan.windows(np.concatenate(indices)), np.concatenate(values))

    def complete(self) -> bool:
        """Whether every chunk that counts was committed."""
        last = len(self._chunks) - 1 if self.last_chunk is None else self.last_chunk
        committed = self._journal.committed().get(self.resolved.slide, [])
        return sum(chunk <= last for chunk in committed) == last + 1

    def published(self) -> PublishedSlide:
        """The record of the slide, once all blocks were taken."""
        written, none, skipped, stopped = self.counts
        return PublishedSlide(
            resolved=msgspec.structs.replace(self.resolved),  # one that does not hold the tables of its windows
            written=written,
            none=none,
            skipped=skipped,
            stopped=stopped,
            not_written=self.not_written,
        )

    def _statuses(self) -> Iterator[tuple[int, npt.NDArray[np.uint8], npt.NDArray[Any]]]:
        """(first window, statuses, rows) of every window of the plan, in order, each exactly once."""
        expected = 0
        for run in self._journal.runs(self.resolved.slide, self._with_values):
            if run.first < expected:
                raise JournalError(f"{self._name()}: window {run.first} stands in the journal twice")
            yield from self._gap(expected, run.first)
            yield self._counted(run)
            expected = run.first + len(run.status)
        if expected > len(self._plan):
            raise JournalError(f"{self._name()}: the journal holds window {expected - 1}, the plan has {len(self._plan)}")
        yield from self._gap(expected, len(self._plan))

    def _counted(self, run: Run) -> tuple[int, npt.NDArray[np.uint8], npt.NDArray[Any]]:
        if self.last_chunk is not None and run.chunk > self.last_chunk:
            return run.first, np.full(len(run.status), Status.STOPPED, np.uint8), run.values[:0]
        return run.first, run.status, run.values

    def _gap(self, first: int, stop: int) -> Iterator[tuple[int, npt.NDArray[np.uint8], npt.NDArray[Any]]]:
        """Windows without an entry: they may only lie behind the place where the patient was stopped."""
        for start in range(first, stop, 1 << 20):
            index = np.arange(start, min(stop, start + (1 << 20)), dtype=np.int64)
            last = len(self._chunks) if self.last_chunk is None else self.last_chunk
            missing = index[self._chunks.chunk_of(index) <= last]
            if len(missing):
                raise JournalError(
                    f"{self._name()}: {len(missing)} windows are missing from the journal, the first is {missing[0]}"
                )
            yield start, np.full(len(index), Status.STOPPED, np.uint8), np.empty((0,))

    def _count(self, first: int, status: npt.NDArray[np.uint8]) -> None:
        for number, count in enumerate(np.bincount(status, minlength=4).tolist()):
            self.counts[number] += count
        if not status.any():
            return
        changes = np.flatnonzero(np.diff(status)) + 1
        for part in np.split(np.arange(len(status)), changes):
            kind, begin, end = int(status[part[0]]), first + int(part[0]), first + int(part[-1])
            if kind == Status.WRITTEN:
                continue
            if self.not_written and self.not_written[-1][1] == begin - 1 and self.not_written[-1][2] == kind:
                begin = self.not_written.pop()[0]
            self.not_written.append((begin, end, kind))

    def _name(self) -> str:
        return f"slide {self.resolved.id!r} of patient {self.resolved.patient_id!r}"


def publish_patient(
    journal: Journal,
    patient: Patient,
    output: OutputOptions,
    *,
    stop: Stop | None = None,
    partial: bool = False,
    gatherer: Gatherer | None = None,
) -> PublishedPatient:
    """Write the final file of one patient, then its record; where a collector gathers, what it made of the patient.

    `partial` leaves out the slides that are not complete, and names the file so; :func:`read_record` does not find it, and a
    rerun tries the failed slides again. The whole file takes a partial one's place.
    Raises JournalError for a missing or doubled window or a missing slide, DiskError when the disk does not take it, and
    whatever a gathering collector raises.
    """
    layout = Layout.of(output)
    slides = _slides(journal, stop, partial, with_values=output.maps is None)
    _check_slides(slides, patient, stop, partial)
    if gatherer is not None:
        final = layout.result_file(patient.id, partial)
        result = _gather(journal, slides, patient, gatherer)
        try:
            encoded = encode_result(result)
        except PieceError as error:
            made = "collate" if gatherer.mode == "collect" else "accumulate"
            raise PieceError(f"what {made} returns for patient {patient.id!r} cannot be stored: {error}") from error
        write_whole(final, encoded)
        outdated = layout.result_file(patient.id, partial=True)
    else:
        final = layout.final_file(patient.id, partial)
        with _whole(final, output) as path:
            if output.maps is None:
                _write(path, journal.spec or _NOTHING, output, slides)
            else:
                _write_maps(path, patient.id, journal, output, slides)
        outdated = layout.final_file(patient.id, partial=True)
    with disk_errors(final):
        record = _record(patient.id, final, journal.spec, slides)
    _keep(layout, record, outdated, partial)
    return record


def _whole(final: Path, output: OutputOptions) -> AbstractContextManager[Path]:
    """A path for a patient's file, or a folder for images or maps, that gets its final name when the block ends well."""
    if output.images is None and output.maps is None:
        return renamed_when_whole(final)
    if final.exists() and not (holds_patch_set(final) if output.maps is None else holds_maps(final)):
        raise OutputError(f"{final} is in the way of a patient's {output.format}, and was not made by streamwsi: move it")
    return folder_renamed_when_whole(final)


def publish_all(
    open_journal: Callable[[str], Journal],
    patient_ids: list[str],
    stops: dict[str, Stop],
    output: OutputOptions,
    partial: bool,
) -> list[PublishedPatient]:
    """Write one file for all patients, in the order given; returns a record of each.

    The records come first: as long as their file is not there they count for nothing, and it appears for all of them at once.

    Raises as :func:`publish_patient` does, and PieceError when the values of two patients differ in dtype or shape.
    """
    layout = Layout.of(output)
    final = layout.final_file(ALL_PATIENTS, partial)
    kept: list[tuple[str, list[PublishedSlide]]] = []
    spec: ValueSpec | None = None
    for patient_id in patient_ids:
        with open_journal(patient_id) as journal:
            spec = _same_spec(spec, journal.spec, patient_id)
    with renamed_when_whole(final) as path:
        file = create_piece_file(path, spec or _NOTHING, output)
        try:
            for patient_id in patient_ids:
                with open_journal(patient_id) as journal:
                    slides = _slides(journal, stops.get(patient_id), partial)
                    _append(file, slides)
                kept.append((patient_id, [rows.published() for rows in slides]))
        finally:
            file.close()
        size, checksum = path.stat().st_size, checksum_of(path)
        records = [
            PublishedPatient(
                patient_id=patient_id, file=final.name, size_bytes=size, checksum=checksum, values=spec, slides=published
            )
            for patient_id, published in kept
        ]
        for record in records:
            _keep(layout, record, layout.final_file(ALL_PATIENTS, partial=True), partial)
    return records


def read_record(layout: Layout, patient_id: str, partial: bool = False) -> PublishedPatient | None:
    """The record of a patient that was published (as `partial` says) and whose file is there; None for any other."""
    try:
        record = msgspec.json.decode(layout.published(patient_id, partial).read_bytes(), type=PublishedPatient)
    except FileNotFoundError:
        return None
    return record if (layout.folder / record.file).exists() else None


def checksum_of(path: Path) -> str:
    """BLAKE2b-128 of a file, hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _slides(journal: Journal, stop: Stop | None, partial: bool, with_values: bool = True) -> list[SlideRows]:
    slides = [SlideRows(journal, resolved, stop, with_values) for resolved in journal.slides().values()]
    return [rows for rows in slides if not partial or rows.complete()]


def _check_slides(slides: list[SlideRows], patient: Patient, stop: Stop | None, partial: bool) -> None:
    there = {rows.resolved.slide for rows in slides}
    for place, slide in enumerate(patient.slides):
        if not partial and place not in there and (stop is None or place <= stop.slide):
            raise JournalError(f"slide {slide.id!r} of patient {patient.id!r} is missing from the journal")


def _same_spec(spec: ValueSpec | None, other: ValueSpec | None, patient_id: str) -> ValueSpec | None:
    if spec is not None and other is not None and (spec.dtype, spec.shape) != (other.dtype, other.shape):
        raise PieceError(f"a value of patient {patient_id!r} is {other}, those of the patients before were {spec}")
    return spec or other


def _keep(layout: Layout, record: PublishedPatient, outdated: Path, partial: bool) -> None:
    """Remove the partial file that a whole one takes the place of, and write the record: with that, a publication is done."""
    make_folder(layout.published_dir)
    if not partial:
        with disk_errors(outdated):
            remove_output(outdated)
            layout.published(record.patient_id, partial=True).unlink(missing_ok=True)
    write_whole(layout.published(record.patient_id, partial), msgspec.json.encode(record))


def _write(path: Path, spec: ValueSpec, output: OutputOptions, slides: list[SlideRows]) -> None:
    file = create_piece_file(path, spec, output)
    try:
        _append(file, slides)
    finally:
        file.close()


def _write_maps(folder: Path, patient: str, journal: Journal, output: OutputOptions, slides: list[SlideRows]) -> None:
    from streamwsi.writing.map_set import write_maps  # others have no use for it, and importing takes time

    for rows in slides:
        for _ in rows.blocks():  # each window is there, once
            raise JournalError(f"slide {rows.resolved.id!r} of patient {patient!r}: the journal of a map holds values")
    write_maps(folder, patient, journal, [(rows.resolved, rows.last_chunk) for rows in slides], output)


def _append(file: Any, slides: list[SlideRows]) -> None:
    for rows in slides:
        file.begin_slide(rows.resolved, rows.n_rows)
        for block in rows.blocks():
            file.append(block.windows, block.values)
        file.end_slide(rows.not_written)


def _gather(journal: Journal, slides: list[SlideRows], patient: Patient, gatherer: Gatherer) -> Any:
    pieces = _pieces(slides, patient)
    if gatherer.mode == "collect":
        return gatherer.collate(patient, list(pieces))
    result: Any = None
    for piece in pieces:
        result = gatherer.accumulate(result, piece, patient)
    return result


def _pieces(slides: list[SlideRows], patient: Patient) -> Iterator[ProcessedPiece]:
    for rows in slides:
        resolved = rows.resolved
        slide = Slide(Path(resolved.path), resolved.id, resolved.info)
        for block in rows.blocks():
            for window, value in zip(block.windows, block.values, strict=True):
                yield ProcessedPiece(window, value, slide)


def _record(patient_id: str, final: Path, spec: ValueSpec | None, slides: list[SlideRows]) -> PublishedPatient:
    size, summed, images, maps = final.stat().st_size, final, None, None
    if holds_maps(final):
        entries = read_manifest(final).maps
        size, summed, maps = sum(entry.size_bytes for entry in entries), final / MAP_MANIFEST, len(entries)
    elif final.is_dir():
        totals = totals_of(final)
        size, summed, images = totals.bytes, final / MANIFEST, totals.images
    return PublishedPatient(
        patient_id=patient_id,
        file=final.name,
        size_bytes=size,
        checksum=checksum_of(summed),
        values=spec,
        slides=[rows.published() for rows in slides],
        images=images,
        maps=maps,
    )
