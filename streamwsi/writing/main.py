"""The main loops of the writer, which owns journals, and of the publisher, which turns sealed ones into files.

In: pieces from collectors, orders from the driver.  Out: commits, acknowledged once they are on disk; final files.

Whatever has arrived is committed together, one transaction for each patient: a slow disk makes larger groups, not a queue.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.config import Durability, OutputOptions
from streamwsi.errors import WireError
from streamwsi.map_options import MapOptions
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import parted
from streamwsi.wire.channels import DataInput, Poll
from streamwsi.wire.messages import (
    LARGEST_PIECES_BYTES,
    AllPublished,
    ChunksCommitted,
    OpenPatient,
    PatientOpened,
    PatientPublished,
    PatientSealed,
    Pieces,
    PublishAll,
    PublishPatient,
    RecordSlide,
    SealPatient,
    SlideCounts,
)
from streamwsi.wire.messages import Stop as StopMessage
from streamwsi.wire.seat import USERS_ERRORS, Seat, Signs, UserCodeError
from streamwsi.writing.journal import ChunkPieces, ChunkTiles, Journal, Run, StoredTile
from streamwsi.writing.layout import Layout
from streamwsi.writing.publish import Gatherer, Stop, publish_all, publish_patient, read_record

_GROUP = 64
"""Chunks that are committed together, at most."""
_COMMIT_EVERY_S = 0.02
"""Commits are at least so far apart: what arrives meanwhile goes into one, which takes hardly longer than one chunk's."""


class WritingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What writers and publishers are asked to do."""

    output: OutputOptions
    durability: Durability


def run_writer(seat: Seat, options: WritingOptions) -> None:
    """Commit pieces until the driver says stop."""
    writer = _Writer(seat, options)
    try:
        writer.run()
    finally:
        writer.close()


class _Writer:
    def __init__(self, seat: Seat, options: WritingOptions) -> None:
        self._seat = seat
        self._options = options
        self._layout = Layout.of(options.output)
        self._data = DataInput(seat.context, seat.name, LARGEST_PIECES_BYTES)
        self._journals: dict[int, Journal] = {}
        self._slides: dict[tuple[int, int], ResolvedSlide] = {}
        self._never = threading.Event()
        self._next_commit = 0.0
        """No commit begins before that time."""
        self._early: list[tuple[Pieces, list[memoryview]]] = []
        """Pieces that came before the driver's word on their slide, which takes another way; the credits say how many."""

    def run(self) -> None:
        poll = Poll(self._seat.control, self._data)
        self._seat.ready(self._data.endpoint)
        while True:
            with self._seat.clock.spending("wait_input"):
                poll.wait()
            for order in self._seat.control.receive():
                if isinstance(order, StopMessage):
                    return
                self._obey(order)
            arrived = [*self._early, *islice(self._pieces(), _GROUP)]
            self._early = []
            if arrived and self._gather():
                arrived += islice(self._pieces(), _GROUP)
            with self._seat.clock.spending("busy"):
                self._commit(arrived)

    def _gather(self) -> bool:
        """After a commit, let a little time pass before the next one; returns whether it did."""
        now = time.monotonic()
        begun, self._next_commit = self._next_commit, max(now, self._next_commit) + _COMMIT_EVERY_S
        with self._seat.clock.spending("wait_input"):
            self._never.wait(max(0.0, begun - now))
        return begun > now

    def close(self) -> None:
        for journal in self._journals.values():
            journal.close()

    def _pieces(self) -> Any:
        return ((message, payload) for message, payload in self._data.receive() if isinstance(message, Pieces))

    def _obey(self, order: Any) -> None:
        if isinstance(order, OpenPatient):
            journal = self._journals[order.patient] = Journal(self._layout.journal(order.patient_id), self._options.durability)
            slides = journal.slides()
            self._seat.control.send(
                PatientOpened(
                    order.patient,
                    tuple(slides.values()),
                    journal.committed(),
                    {slide: journal.counts(slide) for slide in slides},
                    journal.spec,
                )
            )
        elif isinstance(order, RecordSlide):
            self._journals[order.slide.patient].record_slide(order.slide)
            self._slides[order.slide.patient, order.slide.slide] = order.slide
        elif isinstance(order, SealPatient):
            self._journals.pop(order.patient).close()
            self._slides = {key: slide for key, slide in self._slides.items() if key[0] != order.patient}
            self._seat.control.send(PatientSealed(order.patient))

    def _commit(self, arrived: list[tuple[Pieces, list[memoryview]]]) -> None:
        groups: dict[int, list[tuple[int, ChunkPieces]]] = {}
        for message, payload in arrived:
            slide = self._slides.get((message.patient, message.slide))
            if slide is None:
                # Known later, or its patient was sealed and the pieces come from a chunk that was processed twice
                if message.patient in self._journals:
                    self._early.append((message, payload))
                continue
            try:
                pieces = pieces_of(message, payload, slide, self._options.output.maps)
            except WireError:
                self._seat.context.refused += 1
                continue
            groups.setdefault(message.patient, []).append((message.lease, pieces))
        for patient, group in groups.items():
            self._journals[patient].commit(pieces for _, pieces in group)
            leases = tuple(lease for lease, _ in group)
            counts = tuple(pieces.counts() for _, pieces in group)
            self._seat.control.send(ChunksCommitted(leases, counts, self._seat.clock.read()))


def pieces_of(message: Pieces, payload: list[memoryview], slide: ResolvedSlide, maps: MapOptions | None = None) -> ChunkPieces:
    """The pieces that a message carries. Raises WireError when they are not those of the chunk it names."""
    try:
        index, status = np.frombuffer(payload[0], np.int64), np.frombuffer(payload[1], np.uint8)
        if (maps is None) != (message.tiles is None):
            raise ValueError(f"{message.tiles} tiles")
        values = _values_of(message, payload[2:]) if maps is None else np.empty((0,))
        tiles = None if maps is None else _tiles_of(message, payload[2:], slide, maps)
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise WireError(f"the parts of the pieces of chunk {message.chunk} do not fit their header: {error}") from error
    chunks = slide.chunks()
    if not 0 <= message.chunk < len(chunks) or not np.array_equal(index, chunks.indices(message.chunk)):
        raise WireError(f"pieces for windows that are not those of chunk {message.chunk} of slide {slide.id!r}")
    if len(status) != len(index) or status.max(initial=0) > 2 or np.count_nonzero(status == 0) != message.rows:
        raise WireError(f"the statuses of chunk {message.chunk} of slide {slide.id!r} do not fit its rows")
    return ChunkPieces(message.slide, message.chunk, index, status, values, message.values.columns, tiles)


def _tiles_of(message: Pieces, payload: list[memoryview], slide: ResolvedSlide, maps: MapOptions) -> ChunkTiles:
    """What a chunk adds to a map. Raises as :func:`_values_of` does."""
    from streamwsi.writing.map_tiles import tiles_of  # others have no use for it, and importing takes time

    return ChunkTiles(message.values, tiles_of(message, payload, slide, maps))


def _values_of(message: Pieces, payload: list[memoryview]) -> npt.NDArray[Any]:
    """A row for each written window. Raises ValueError, or another that NumPy has, where the payload is something else."""
    shape = (message.rows, *message.values.shape)
    if message.values.holds_bytes:
        lengths, data = payload
        values = parted(np.frombuffer(lengths, np.int64).reshape(shape), data.cast("B"))
    else:
        (numbers,) = payload
        values = np.frombuffer(numbers, message.values.dtype).reshape(shape)
    if values.shape != shape or values.dtype.kind not in "biufO":
        raise ValueError(f"values of {values.dtype} and {values.shape}, not {shape}")
    return values


def run_publisher(seat: Seat, options: WritingOptions, gatherer: Gatherer | None) -> None:
    """Publish sealed journals until the driver says stop."""
    layout = Layout.of(options.output)
    poll = Poll(seat.control)
    seat.ready()
    while True:
        with seat.clock.spending("wait_input"):
            poll.wait()
        for order in seat.control.receive():
            with seat.clock.spending("busy"):
                if isinstance(order, StopMessage):
                    return
                if isinstance(order, PublishPatient):
                    seat.control.send(_publish(order, layout, options, gatherer, seat))
                elif isinstance(order, PublishAll):
                    seat.control.send(_publish_all(order, layout, options, seat))


def _publish(
    order: PublishPatient, layout: Layout, options: WritingOptions, gatherer: Gatherer | None, seat: Seat
) -> PatientPublished:
    patient = order.patient.patient()
    record = read_record(layout, patient.id)
    signs = Signs(seat)
    with _WatchedJournal(layout.journal(patient.id), options.durability, signs) as journal:
        if record is None:  # else a publisher did it that died before it could say so, and may have removed the journal
            record = publish_patient(
                journal,
                patient,
                options.output,
                stop=Stop(*order.stop) if order.stop else None,
                partial=order.partial,
                gatherer=_Guarded(gatherer, patient.id, signs) if gatherer is not None else None,
            )
        if not order.keep_journal:
            journal.remove()
    counts = tuple(
        SlideCounts(slide.resolved.slide, slide.written, slide.none, slide.skipped, slide.stopped) for slide in record.slides
    )
    return PatientPublished(order.patient_index, record.file, counts, seat.clock.read())


def _publish_all(order: PublishAll, layout: Layout, options: WritingOptions, seat: Seat) -> AllPublished:
    signs = Signs(seat)

    def open_journal(patient_id: str) -> Journal:
        return _WatchedJournal(layout.journal(patient_id), options.durability, signs)

    found = [read_record(layout, patient_id) for patient_id in order.patients]
    records = [record for record in found if record is not None]
    if len(records) < len(found):  # else a publisher did it that died before it could say so
        stops = {patient_id: Stop(*stop) for patient_id, stop in order.stops.items()}
        records = publish_all(open_journal, list(order.patients), stops, options.output, order.partial)
    if not order.partial:
        for patient_id in order.patients:
            with open_journal(patient_id) as journal:
                journal.remove()
    return AllPublished(str(Path(records[0].file)) if records else "")


class _WatchedJournal(Journal):
    """A journal that gives a sign of life as it is read."""

    def __init__(self, path: Path, durability: Durability, signs: Signs) -> None:
        super().__init__(path, durability)
        self._signs = signs

    def runs(self, slide: int, with_values: bool = True) -> Iterator[Run]:
        """All runs of a slide, in window order, one in memory at a time."""
        for run in super().runs(slide, with_values):
            yield run
            self._signs.give()

    def tiles(self, slide: int, place: tuple[int, int], last_chunk: int | None = None) -> Iterator[StoredTile]:
        """The tiles of a block, in the chunks' order."""
        self._signs.give()
        yield from super().tiles(slide, place, last_chunk)


class _Guarded:
    """A gathering collector whose exceptions are known to be the user's."""

    def __init__(self, gatherer: Gatherer, patient_id: str, signs: Signs) -> None:
        self._gatherer = gatherer
        self._signs = signs
        self.mode = gatherer.mode
        self._where = f"of patient {patient_id!r}"

    def accumulate(self, previous: Any, piece: Any, patient: Any) -> Any:
        self._signs.give()
        try:
            return self._gatherer.accumulate(previous, piece, patient)
        except USERS_ERRORS as error:
            raise UserCodeError(f"accumulate, window {piece.window.index} {self._where}") from error

    def collate(self, patient: Any, pieces: Any) -> Any:
        try:
            return self._gatherer.collate(patient, pieces)
        except USERS_ERRORS as error:
            raise UserCodeError(f"collate {self._where}") from error
