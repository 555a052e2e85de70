"""The collector's main loop.

In: big chunks.  Out: their pieces, sent straight to the patient's writer; and a word to the driver for each chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from streamwsi.chunks import Batch
from streamwsi.collecting.collector import StreamCollector
from streamwsi.collecting.rows import ChunkRows
from streamwsi.errors import PieceError
from streamwsi.geometry import Windows
from streamwsi.values import ValueSpec
from streamwsi.wire.channels import DataInput, DataOutputs, Poll
from streamwsi.wire.messages import (
    AskFinished,
    Chunk,
    ChunkCollected,
    EndpointGone,
    FinishedAnswer,
    Pieces,
    Stop,
    chunk_of,
    slide_of,
)
from streamwsi.wire.seat import Seat, UserCodeError


class CollectingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a collector process is asked to do."""

    batch_size: int
    columns: tuple[str, ...] | None
    device: str | None
    max_chunk_bytes: int
    """The largest frame that a chunk can have."""


def run_collector(seat: Seat, options: CollectingOptions, collector: StreamCollector) -> None:
    """Process chunks until the driver says stop."""
    data = DataInput(seat.context, seat.name, options.max_chunk_bytes)
    outputs = DataOutputs(seat.context)
    collector.device = options.device
    with _users("setup"):
        collector.setup()
    seat.ready(data.endpoint)
    poll = Poll(seat.control, data)
    spec: ValueSpec | None = None
    try:
        while True:
            with seat.clock.spending("wait_input"):
                poll.wait()
            for order in seat.control.receive():
                if isinstance(order, Stop):
                    with _users("teardown"):
                        collector.teardown()
                    return
                if isinstance(order, AskFinished):
                    seat.control.send(_ask(collector, order))
                elif isinstance(order, EndpointGone):
                    outputs.forget(order.endpoint)
            # One at a time: the driver is heard between any two.
            message, payload = next(data.receive(), (None, []))
            if isinstance(message, Chunk):
                with seat.clock.spending("busy"), seat.doing.chunk(message.lease):
                    rows = process_chunk(collector, message, payload, options, spec)
                    spec = rows.spec
                    outputs.send(message.writer, *pieces_message(message, rows))
                seat.control.send(ChunkCollected(message.lease, spec, seat.clock.read()))
    finally:
        outputs.close()


def process_chunk(
    collector: StreamCollector,
    message: Chunk,
    payload: list[memoryview],
    options: CollectingOptions,
    spec: ValueSpec | None,
) -> ChunkRows:
    """Run the collector over the batches of a chunk.

    Raises UserCodeError when it raises, or when what it returns cannot be stored.
    """
    big = chunk_of(message, payload)
    slide, patient = slide_of(message.slide), message.patient.patient()
    gathered = ChunkRows(big, spec, options.columns)
    for rows in big.batch_rows(options.batch_size):
        batch = Batch(big.stack(rows), big.windows.take(rows), slide, patient)
        where = f"{type(collector).__qualname__}.process, patient {patient.id!r}, slide {slide.id!r}, {_places(batch.windows)}"
        with _users(where):
            result = collector.process(batch)
        try:
            gathered.add(rows, result)
        except PieceError as error:
            raise PieceError(f"{where}: {error}") from error
    return gathered


def pieces_message(message: Chunk, rows: ChunkRows) -> tuple[Pieces, list[Any]]:
    """What became of a chunk's windows, as a message and its payload."""
    values = np.ascontiguousarray(rows.values())
    index = np.ascontiguousarray(rows.windows.index)
    header = Pieces(
        lease=message.lease,
        patient=message.slide.patient,
        slide=message.slide.slide,
        chunk=message.chunk,
        values=rows.spec or ValueSpec.of(values),
        windows=len(index),
        rows=len(values),
    )
    return header, [index, rows.status, values]


def _ask(collector: StreamCollector, order: AskFinished) -> FinishedAnswer:
    with _users(f"{type(collector).__qualname__}.is_finished, patient {order.patient.id!r}"):
        finished = bool(collector.is_finished(order.patient.patient(), order.windows_done))
    return FinishedAnswer(order.patient_index, order.windows_done, finished)


@contextmanager
def _users(what: str) -> Iterator[None]:
    """The user's code runs inside."""
    try:
        yield
    except Exception as error:
        raise UserCodeError(what) from error


def _places(windows: Windows) -> str:
    first, last = windows[0], windows[len(windows) - 1]
    if first.index == last.index:
        return f"window {first.index} at level-0 ({first.x}, {first.y})"
    return f"windows {first.index} to {last.index} at level-0 ({first.x}, {first.y}) to ({last.x}, {last.y})"
