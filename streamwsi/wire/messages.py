"""Every message that crosses a socket, and how it becomes bytes.

In: typed messages and raw frames.  Out: the same on the other side, or a WireError.  Never pickles, never trusts a peer.

A message is ``[envelope, header, payload …]``. The header is MessagePack of one of the structures below (msgspec checks
every field's type). The envelope is 21 bytes: ``SWSI``, the protocol's version, and a keyed BLAKE2b-128 of version, header,
and the payload's lengths under the run's secret key. So what was not made by this run (another run, another version,
a stranger, a truncated frame) is told from what was before anything of it is decoded.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.chunks import BigChunk
from streamwsi.dataset import Patient, Slide
from streamwsi.errors import ChunkError, WireError
from streamwsi.geometry import Windows
from streamwsi.paired import PairedPixels
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec

LARGEST_PIECES_BYTES = 1 << 31
"""Of a frame of a chunk's pieces, at most: ZeroMQ drops larger ones, and whoever sent them."""
_MAGIC = b"SWSI"
_VERSION = 1
_MAC_BYTES = 16
_AXES = {3: "YXS", 4: "NYXS", 5: "NRYXS"}
_ENVELOPE_BYTES = len(_MAGIC) + 1 + _MAC_BYTES


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all messages."""


class Clock(msgspec.Struct, frozen=True, array_like=True):
    """Seconds that one worker has spent since its start, and what it has refused."""

    busy_s: float = 0.0
    wait_input_s: float = 0.0
    wait_output_s: float = 0.0
    refused: int = 0
    """Messages that were not of this run, or malformed."""


class PatientRef(msgspec.Struct, frozen=True, array_like=True):
    """A patient as workers know it."""

    id: str
    slides: tuple[tuple[str, str], ...]
    """(id, path) of each slide."""
    records: dict[str, Any]

    @classmethod
    def of(cls, patient: Patient) -> PatientRef:
        """The reference to a patient of the dataset."""
        return cls(patient.id, tuple((slide.id, str(slide.path)) for slide in patient.slides), dict(patient.records))

    def patient(self) -> Patient:
        """The patient again."""
        return Patient(self.id, dict(self.slides), self.records)


# ---- driver → any worker


class Stop(Message, frozen=True):
    """Finish and end."""


# ---- driver → loader


class ResolveSlide(Message, frozen=True):
    """Open a slide and say what it resolves to."""

    patient: int
    slide: int
    patient_id: str
    id: str
    path: str


class ReadChunk(Message, frozen=True):
    """Read a chunk and keep it until told where to send it."""

    lease: int
    slide: ResolvedSlide
    chunk: int
    slot: int | None
    """The slot of the shared memory that its pixels go to; None: none is to be had, keep them."""


class SendChunk(Message, frozen=True):
    """Send a chunk that was read to a collector, whose pieces go on to a writer."""

    lease: int
    collector: str
    """The collector's endpoint."""
    writer: str
    """The writer's endpoint."""
    patient: PatientRef
    last: bool = True
    """It is sent to nobody else, and can be forgotten."""


class DropChunk(Message, frozen=True):
    """Forget a chunk: nobody needs it any more."""

    lease: int


class CloseSlide(Message, frozen=True):
    """No more chunks of this slide will be asked for."""

    patient: int
    slide: int


class EndpointGone(Message, frozen=True):
    """Nobody listens there any more."""

    endpoint: str


# ---- driver → collector


class TakeChunk(Message, frozen=True):
    """Process the chunk in a slot of the shared memory, and send its pieces to a writer."""

    lease: int
    slot: int
    slide: ResolvedSlide
    chunk: int
    patient: PatientRef
    writer: str
    """The writer's endpoint."""
    skipped: bytes
    """A byte for each window: 1 where it could not be read; empty: all could."""


class AskFinished(Message, frozen=True):
    """Ask the user's ``is_finished``."""

    patient_index: int
    patient: PatientRef
    windows_done: int


# ---- driver → writer


class OpenPatient(Message, frozen=True):
    """Open a patient's journal and say what it holds."""

    patient: int
    patient_id: str


class RecordSlide(Message, frozen=True):
    """Keep what a slide was resolved to."""

    slide: ResolvedSlide


class SealPatient(Message, frozen=True):
    """Close the patient's journal: it is complete, or given up."""

    patient: int


# ---- driver → publisher


class PublishPatient(Message, frozen=True):
    """Turn a sealed journal into the final file."""

    patient_index: int
    patient: PatientRef
    stop: tuple[int, int] | None
    """(slide, chunk) after which the patient was stopped."""
    partial: bool
    keep_journal: bool
    """Slides have failed: a rerun will go on from the journal."""


class PublishAll(Message, frozen=True):
    """Turn all journals into one file."""

    patients: tuple[str, ...]
    stops: dict[str, tuple[int, int]]
    partial: bool


# ---- worker → driver


class Hello(Message, frozen=True):
    """A worker is ready."""

    pid: int
    endpoint: str
    """Where it takes data; empty for one that takes none."""


class SlideResolved(Message, frozen=True):
    """What a slide was resolved to."""

    slide: ResolvedSlide


class SlideFailed(Message, frozen=True):
    """A slide cannot be opened, or not be read on."""

    patient: int
    slide: int
    reason: str


class ChunkRead(Message, frozen=True):
    """A chunk was read and waits to be sent, or lies in its slot."""

    lease: int
    in_slot: bool
    """Its pixels are in the slot that was named; the loader has nothing to do with it any more."""
    skipped: bytes
    """Of a chunk in a slot: a byte for each window, 1 where it could not be read; empty: all could."""
    clock: Clock


class ChunkFailed(Message, frozen=True):
    """A chunk could not be read."""

    lease: int
    reason: str


class ChunkDropped(Message, frozen=True):
    """A chunk that was to be forgotten is not being read any more."""

    lease: int


class SlideClosed(Message, frozen=True):
    """A slide was closed; what was decoded of it, where that is counted."""

    patient: int
    slide: int
    tiles_decoded: int
    tiles_seen: bytes
    """A bit for each tile of each level: whether it was ever decoded."""
    shifted_px: float
    """Largest shift, in pixels of its level, of a tile that could only be had resampled."""


class ChunkCollected(Message, frozen=True):
    """A chunk was processed and its pieces are on their way to the writer."""

    lease: int
    kept: bool
    """The user's code still holds pixels of it: its slot comes back later."""
    values: ValueSpec | None
    clock: Clock


class SlotReturned(Message, frozen=True):
    """Nobody holds pixels of a chunk any more, in whose slot something was still held when it was collected."""

    lease: int


class FinishedAnswer(Message, frozen=True):
    """What ``is_finished`` said."""

    patient: int
    windows_done: int
    finished: bool


class PatientOpened(Message, frozen=True):
    """What a patient's journal holds."""

    patient: int
    slides: tuple[ResolvedSlide, ...]
    committed: dict[int, list[int]]
    """Committed chunks of each slide."""
    counts: dict[int, tuple[int, int, int]]
    """Windows written, none, skipped of each slide."""
    values: ValueSpec | None


class ChunksCommitted(Message, frozen=True):
    """Chunks are in the journal."""

    leases: tuple[int, ...]
    counts: tuple[tuple[int, int, int], ...]
    """Windows written, none, skipped of each."""
    clock: Clock


class PatientSealed(Message, frozen=True):
    """A patient's journal is closed."""

    patient: int


class SlideCounts(msgspec.Struct, frozen=True, array_like=True):
    """How a slide's windows ended."""

    slide: int
    written: int
    none: int
    skipped: int
    stopped: int


class StillAtWork(Message, frozen=True):
    """A worker has done a part of something that takes long."""

    clock: Clock


class PatientPublished(Message, frozen=True):
    """A patient's file has its final name."""

    patient: int
    file: str
    slides: tuple[SlideCounts, ...]
    clock: Clock


class AllPublished(Message, frozen=True):
    """The file of all patients has its final name."""

    file: str


class WorkerFailed(Message, frozen=True):
    """A worker cannot go on: user code raised, a disk is full, something unforeseen."""

    what: str
    """One line: what it was doing, with slide and windows."""
    error: str
    """One line: the exception."""
    traceback: str
    user_code: bool
    """The user's code raised, not ours."""


# ---- loader → collector, collector → writer


class Chunk(Message, frozen=True):
    """A big chunk; payload: pixels, table of windows, skipped flags; then the pixels of each paired image of the slide."""

    lease: int
    chunk: int
    slide: ResolvedSlide
    patient: PatientRef
    writer: str
    origin: tuple[int, int] | None
    shape: tuple[int, ...]
    dtype: str
    axes: str
    """``YXS``: one region; ``NYXS``: packed, one window after the other; ``NRYXS``: packed, of several resolutions each; S are
    samples (RGB)."""


class Pieces(Message, frozen=True):
    """What became of the windows of a chunk; payload: indices, statuses, values; of bytes first their lengths.

    Of a map: indices, statuses, a table of tiles, (n, 6) int64 of block row and column, top, left, bottom and right; and the
    sums of each, packed, or nothing where they are 0.
    """

    lease: int
    patient: int
    slide: int
    chunk: int
    values: ValueSpec
    windows: int
    rows: int
    """Windows that are written."""
    tiles: int | None = None
    """Of a map: how many come in place of rows."""


AnyMessage = (
    Stop
    | ResolveSlide
    | ReadChunk
    | SendChunk
    | DropChunk
    | CloseSlide
    | EndpointGone
    | TakeChunk
    | AskFinished
    | OpenPatient
    | RecordSlide
    | SealPatient
    | PublishPatient
    | PublishAll
    | Hello
    | SlideResolved
    | SlideFailed
    | ChunkRead
    | ChunkFailed
    | ChunkDropped
    | SlideClosed
    | ChunkCollected
    | SlotReturned
    | FinishedAnswer
    | PatientOpened
    | ChunksCommitted
    | PatientSealed
    | StillAtWork
    | PatientPublished
    | AllPublished
    | WorkerFailed
    | Chunk
    | Pieces
)


class Codec:
    """Messages to frames and back, under the run's secret key (32 random bytes)."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)

    def pack(self, message: Message, payload: Sequence[Any] = ()) -> list[Any]:
        """The frames of a message; `payload` are buffers, which are not copied."""
        header = self._encoder.encode(message)
        sizes = [memoryview(part).nbytes for part in payload]
        return [_MAGIC + bytes([_VERSION]) + self._mac(header, sizes), header, *payload]

    def unpack(self, frames: Sequence[Any]) -> tuple[AnyMessage, list[memoryview]]:
        """The message and its payload, views into the frames.

        Raises WireError when it is not a message of this run and version, or not well-formed.
        """
        views = [memoryview(frame) for frame in frames]
        if len(views) < 2 or views[0].nbytes != _ENVELOPE_BYTES or bytes(views[0][:4]) != _MAGIC:
            raise WireError(f"not a message: {len(views)} frames, the first of {views[0].nbytes if views else 0} bytes")
        if views[0][4] != _VERSION:
            raise WireError(f"protocol version {views[0][4]}, expected {_VERSION}")
        expected = self._mac(views[1], [view.nbytes for view in views[2:]])
        if not hmac.compare_digest(bytes(views[0][5:]), expected):
            raise WireError("not made by this run: its code does not match")
        try:
            return self._decoder.decode(views[1]), views[2:]
        except msgspec.MsgspecError as error:
            raise WireError(f"malformed header: {error}") from error

    def _mac(self, header: Any, payload_sizes: list[int]) -> bytes:
        digest = hashlib.blake2b(header, key=self._key, digest_size=_MAC_BYTES, person=b"streamwsi-%02d" % _VERSION)
        digest.update(repr(payload_sizes).encode())
        return digest.digest()


def chunk_message(
    lease: int, chunk: int, slide: ResolvedSlide, patient: PatientRef, writer: str, big: BigChunk
) -> tuple[Chunk, list[Any]]:
    """A big chunk as a message and its payload; the pixels are not copied."""
    message = Chunk(
        lease=lease,
        chunk=chunk,
        slide=slide,
        patient=patient,
        writer=writer,
        origin=big.origin,
        shape=big.pixels.shape,
        dtype=big.pixels.dtype.name,
        axes=_AXES[big.pixels.ndim],
    )
    parts = (big.pixels, big.windows.table(), big.skipped, *(image.values for image in big.paired.values()))
    return message, [np.ascontiguousarray(part) for part in parts]


def chunk_of(message: Chunk, payload: Sequence[memoryview]) -> BigChunk:
    """The big chunk that a message carries: views into the payload. Raises WireError when the parts do not fit."""
    expected = 3 + len(message.slide.paired)
    if len(payload) != expected or message.dtype != "uint8":
        raise WireError(f"a chunk has {expected} parts, of uint8 pixels, got {len(payload)} of {message.dtype}")
    try:
        pixels: npt.NDArray[np.uint8] = np.frombuffer(payload[0], np.uint8).reshape(message.shape)
        if pixels.shape != message.shape:
            raise ValueError(f"{message.shape} is no shape")
        windows = Windows.from_table(np.frombuffer(payload[1], np.int64).reshape(-1, 8), message.slide.label_names)
        layouts = message.slide.paired_layouts(windows, packed=message.origin is None)
        paired = {
            name: PairedPixels(layout, np.frombuffer(part, layout.image.dtype).reshape(layout.shape))
            for (name, layout), part in zip(layouts.items(), payload[3:], strict=True)
        }
        return BigChunk(windows, pixels, message.origin, np.frombuffer(payload[2], np.bool_), message.slide.margin, paired)
    except (ValueError, ChunkError) as error:
        raise WireError(f"the parts of chunk {message.chunk} do not fit its header: {error}") from error


def slide_of(resolved: ResolvedSlide) -> Slide:
    """The slide of the dataset, with what its reader said."""
    from pathlib import Path

    return Slide(Path(resolved.path), resolved.id, resolved.info)
