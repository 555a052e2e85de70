"""The collector's main loop.

In: big chunks.  Out: their pieces, sent straight to the patient's writer; and a word to the driver for each chunk.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.chunks import Batch, Status, UInt8Array
from streamwsi.collecting.ahead import Ahead, ChunkWork, Step
from streamwsi.collecting.collector import StreamCollector
from streamwsi.collecting.image_rows import ImageRows
from streamwsi.collecting.rows import ChunkRows
from streamwsi.collecting.tensors import fetched_later
from streamwsi.errors import PieceError
from streamwsi.geometry import Windows
from streamwsi.images.encoding import ImageEncoding
from streamwsi.loading.transforms import TransformError, Transforms, transformed
from streamwsi.map_options import MapOptions
from streamwsi.values import ValueSpec, joined
from streamwsi.wire.channels import DataInput, DataOutputs, Poll, Wakeup
from streamwsi.wire.messages import (
    LARGEST_PIECES_BYTES,
    AskFinished,
    Chunk,
    ChunkCollected,
    EndpointGone,
    FinishedAnswer,
    Pieces,
    SlotReturned,
    Stop,
    TakeChunk,
    chunk_of,
    slide_of,
)
from streamwsi.wire.seat import USERS_ERRORS, Seat, Signs, UserCodeError
from streamwsi.wire.shared_memory import SharedSlots

if TYPE_CHECKING:
    from streamwsi.blending.chunk import Tile
    from streamwsi.collecting.map_rows import MapBlending


class CollectingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a collector process is asked to do."""

    batch_size: int
    columns: tuple[str, ...] | None
    device: str | None
    max_chunk_bytes: int
    """The largest frame that a chunk can have."""
    images: ImageEncoding | None = None
    """How images are encoded, for a writer that stores them; None: for one that stores numbers."""
    encode_threads: int = 1
    maps: MapOptions | None = None
    """How images are blended, for a writer that makes maps of them."""
    shares_slots: bool = False
    """Other collectors have the same chunks, in the same memory; what one does to it must not reach them."""
    transforms: bytes | None = None
    """What changes batches before the collector has them: encoded, as :class:`streamwsi.collecting.spec.Shipped`."""


_LISTEN_EVERY_S = 0.02
"""How often a collector hears what the driver has to say, between two batches of a chunk. Small batches take a millisecond."""


def run_collector(seat: Seat, options: CollectingOptions, collector: StreamCollector, slots: SharedSlots | None = None) -> None:
    """Process chunks until the driver says stop."""
    worker = _Collector(seat, options, collector, slots)
    try:
        worker.run()
    finally:
        worker.close()


@dataclass
class _Result:
    """What the collector gave for a batch."""

    step: Step
    windows: Windows | None
    """None: nothing of the chunk could be read, and there was no batch."""
    value: Any
    fetch: Callable[[], Any] | None = None
    """Gives the value, once it is there; None: it is."""


class _Collector:
    def __init__(self, seat: Seat, options: CollectingOptions, collector: StreamCollector, slots: SharedSlots | None) -> None:
        self._seat = seat
        self._options = options
        self._collector = collector
        self._slots = slots
        self._data = DataInput(seat.context, seat.name, options.max_chunk_bytes)
        self._outputs = DataOutputs(seat.context)
        self._wakeup = Wakeup()
        self._poll = Poll(seat.control, self._data, self._wakeup)
        self._ahead = Ahead(options.batch_size, always=options.device is not None)
        self._images = None if options.images is None else ImageRows(options.images, options.encode_threads)
        self._blending: MapBlending | None = None
        self._transforms: Transforms = {}
        self._spec: ValueSpec | None = None
        self._kept: dict[int, weakref.ref[UInt8Array]] = {}
        """Slots that the user's code holds views into, by lease."""
        self._returned: deque[int] = deque()
        """Those of them that it has let go of."""
        self._orders: deque[Any] = deque()
        """The driver's, heard while a chunk is processed; what they ask for waits until it is done."""
        self._listened = time.monotonic()
        self._stopped = False
        self._gone: set[str] = set()
        """Where writers were; what is still to be done for them is done again for others."""
        self._signs = Signs(seat)

    def run(self) -> None:
        self._collector.device = self._options.device
        with users_code("setup"):
            self._collector.setup()
        if self._options.maps is not None:
            from streamwsi.collecting.map_rows import MapBlending  # others have no use for it, and importing takes time

            with users_code("loading the weights"):
                self._blending = MapBlending(self._options.maps)
        if self._options.transforms is not None:
            from streamwsi.collecting.spec import Shipped, unship

            with users_code("loading the transforms"):
                self._transforms = unship(msgspec.msgpack.decode(self._options.transforms, type=Shipped))
        self._seat.ready(self._data.endpoint)
        coming: _Result | None = None  # a device is still at work on it: the next batch is begun before it is waited for
        while not self._stopped:
            step = self._ahead.take(self._hear)
            idle = step is None and coming is None
            result = None if step is None else self._process(step)
            if coming is not None:
                self._keep(coming)
                coming = None
            if result is not None and result.fetch is None:
                self._keep(result)
            else:
                coming = result
            del step, result  # they hold pixels
            if not idle:
                if time.monotonic() - self._listened > _LISTEN_EVERY_S:  # not only between chunks: a chunk may take long
                    self._listen()
            elif not self._stopped:  # which take may just have heard: then nothing else would come
                with self._seat.clock.spending("wait_input"):
                    self._poll.wait()
                self._hear()
            self._return_slots()
        with users_code("teardown"):
            self._collector.teardown()

    def close(self) -> None:
        self._ahead.close()
        if self._images is not None:
            self._images.close()
        self._outputs.close()
        self._wakeup.close()

    def _listen(self) -> None:
        """Take the driver's orders. What matters within a chunk is obeyed at once: who is gone, and its word to stop."""
        self._listened = time.monotonic()
        for order in self._seat.control.receive():
            if isinstance(order, Stop):
                self._stopped = True
            elif isinstance(order, EndpointGone):
                self._outputs.forget(order.endpoint)
                self._gone.add(order.endpoint)
            else:
                self._orders.append(order)

    def _hear(self) -> None:
        """Take what has arrived, and obey."""
        self._listen()
        while self._orders:
            order = self._orders.popleft()
            if isinstance(order, TakeChunk):
                self._add(self._in_slot(order))
            elif isinstance(order, AskFinished):
                self._seat.control.send(self._ask(order))
        for message, payload in self._data.receive():
            if isinstance(message, Chunk):
                slide, patient = slide_of(message.slide), message.patient.patient()
                big = chunk_of(message, payload)
                work = ChunkWork(message.lease, message.chunk, message.slide, slide, patient, message.writer, big)
                self._add(work)
        self._return_slots()

    def _add(self, work: ChunkWork) -> None:
        self._gone.discard(work.writer)  # a port may be given to another: who names it now means that one
        self._ahead.add(work)

    def _in_slot(self, order: TakeChunk) -> ChunkWork:
        if self._slots is None:
            raise RuntimeError(f"chunk {order.chunk} lies in slot {order.slot}, and this collector has no slots")
        memory = self._slots.slot(order.slot)
        if self._options.shares_slots:  # batches are copies then: the user's code may change them
            memory.flags.writeable = False
        big = order.slide.blank_chunk(order.chunk, memory)
        if order.skipped:
            big.skipped[...] = np.frombuffer(order.skipped, np.bool_)
        slide, patient = slide_of(order.slide), order.patient.patient()
        return ChunkWork(order.lease, order.chunk, order.slide, slide, patient, order.writer, big, memory)

    def _process(self, step: Step) -> _Result:
        """Run the collector over a batch. Raises UserCodeError when it raises."""
        work = step.work
        if not len(step.members):
            return _Result(step, None, None)
        with self._seat.clock.spending("busy"), self._seat.doing.chunk(work.lease):
            batch = step.batch()
            result = self._processed(work, batch)
            try:
                return _Result(step, batch.windows, result, fetched_later(result))
            except Exception as error:  # of the device, which may be that of a batch before
                raise UserCodeError(self._where(work, batch.windows)) from error

    def _processed(self, work: ChunkWork, batch: Batch) -> Any:
        try:
            batch = transformed(batch, self._transforms)
        except (TransformError, SystemExit, KeyboardInterrupt) as error:
            where = f"transforms, patient {work.patient.id!r}, slide {work.slide.id!r}, {_places(batch.windows)}"
            raise UserCodeError(where) from error.__cause__ or error
        try:
            return self._collector.process(batch)
        except USERS_ERRORS as error:
            raise UserCodeError(self._where(work, batch.windows)) from error

    def _keep(self, result: _Result) -> None:
        """Keep what a batch gave; with its last, a chunk is done.

        Raises PieceError when it cannot be stored, UserCodeError when it was not to be had.
        """
        step, work = result.step, result.step.work
        with self._seat.clock.spending("busy"), self._seat.doing.chunk(work.lease):
            if work.rows is None:
                work.rows = self._rows_of(work)
            self._signs.give()  # a chunk may take longer than a stall
            if result.windows is not None:
                try:
                    value = result.value if result.fetch is None else result.fetch()
                except Exception as error:  # what a device was given to do fails when it is waited for
                    raise UserCodeError(self._where(work, result.windows)) from error
                try:
                    work.rows.add(step.members, value)
                except PieceError as error:
                    raise PieceError(f"{self._where(work, result.windows)}: {error}") from error
                self._spec = work.rows.spec
                result.value = value = None  # it may be a view of the pixels, whose slot is free again
            if step.last and work.writer not in self._gone:
                header, payload = pieces_message(work)
                self._check_size(work, payload)
                self._outputs.send(work.writer, header, payload)
        if step.last:
            self._finish(work)

    def _check_size(self, work: ChunkWork, payload: list[Any]) -> None:
        largest = max(memoryview(part).nbytes for part in payload)
        if largest > LARGEST_PIECES_BYTES:  # its writer would not take it, and nobody would hear of it
            raise PieceError(
                f"{self._where(work, work.rows.windows if work.rows else work.chunk.windows)}: the values of the chunk take "
                f"{largest / 1e6:.0f} MB, expected at most {LARGEST_PIECES_BYTES / 1e6:.0f}: take a smaller chunk_px"
            )

    def _rows_of(self, work: ChunkWork) -> ChunkRows:
        if self._blending is not None:
            return self._blending.chunk(work.chunk, work.resolved, self._spec, self._options.columns)
        return ChunkRows(work.chunk, self._spec, self._options.columns, self._images)

    def _where(self, work: ChunkWork, windows: Windows) -> str:
        name = type(self._collector).__qualname__
        return f"{name}.process, patient {work.patient.id!r}, slide {work.slide.id!r}, {_places(windows)}"

    def _finish(self, work: ChunkWork) -> None:
        """Tell the driver that a chunk was processed, and whether its slot is free."""
        memory = work.let_go()
        held = None if memory is None else memory()
        self._seat.control.send(ChunkCollected(work.lease, held is not None, self._spec, self._seat.clock.read()))
        if held is not None:
            lease, returned, wakeup = work.lease, self._returned, self._wakeup

            def let_go(_: object) -> None:  # in whatever thread the last view dies
                returned.append(lease)
                wakeup.set()

            self._kept[lease] = weakref.ref(held, let_go)

    def _return_slots(self) -> None:
        while self._returned:
            lease = self._returned.popleft()
            del self._kept[lease]
            self._seat.control.send(SlotReturned(lease))

    def _ask(self, order: AskFinished) -> FinishedAnswer:
        with users_code(f"{type(self._collector).__qualname__}.is_finished, patient {order.patient.id!r}"):
            finished = bool(self._collector.is_finished(order.patient.patient(), order.windows_done))
        return FinishedAnswer(order.patient_index, order.windows_done, finished)


def pieces_message(work: ChunkWork) -> tuple[Pieces, list[Any]]:
    """What became of a chunk's windows, as a message and its payload."""
    rows = work.rows
    if rows is None:
        raise RuntimeError(f"chunk {work.number} was not processed")
    index = np.ascontiguousarray(rows.windows.index)
    tiles = rows.tiles()
    if tiles is not None:
        return _map_message(work, rows, index, tiles)
    values = rows.values()
    header = Pieces(
        lease=work.lease,
        patient=work.resolved.patient,
        slide=work.resolved.slide,
        chunk=work.number,
        values=rows.spec or ValueSpec.of(values),
        windows=len(index),
        rows=len(values),
    )
    payload = joined(values) if header.values.holds_bytes else (np.ascontiguousarray(values),)
    return header, [index, rows.status, *payload]


def _map_message(work: ChunkWork, rows: ChunkRows, index: npt.NDArray[np.int64], tiles: list[Tile]) -> tuple[Pieces, list[Any]]:
    """The same for a map: tiles of sums come in place of rows."""
    from streamwsi.blending.packing import packed

    header = Pieces(
        lease=work.lease,
        patient=work.resolved.patient,
        slide=work.resolved.slide,
        chunk=work.number,
        values=rows.spec or ValueSpec("float64", ()),
        windows=len(index),
        rows=int(np.count_nonzero(rows.status == Status.WRITTEN)),
        tiles=len(tiles),
    )
    table = np.array([(*tile.place, *tile.box) for tile in tiles], np.int64).reshape(-1, 6)
    sums = [packed(tile.sums) for tile in tiles]
    return header, [index, rows.status, table, *sums]


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """The user's code runs inside."""
    try:
        yield
    except USERS_ERRORS as error:
        raise UserCodeError(what) from error


def _places(windows: Windows) -> str:
    first, last = windows[0], windows[len(windows) - 1]
    if first.index == last.index:
        return f"window {first.index} at level-0 ({first.x}, {first.y})"
    return f"windows {first.index} to {last.index} at level-0 ({first.x}, {first.y}) to ({last.x}, {last.y})"
