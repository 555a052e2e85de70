"""The loader's main loop.

In: slides to resolve, chunks to read (from the driver).  Out: what slides resolve to, and chunks: in their slots of the shared
memory, or sent straight to collectors.

The main thread speaks with the sockets; decode threads do the work and hand it over. A chunk that has no slot waits here until
the driver says who takes it.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from streamwsi.chunks import BigChunk, UInt8Array
from streamwsi.dataset import Slide
from streamwsi.errors import SlideError
from streamwsi.loading.read import read_chunk
from streamwsi.loading.resolution import ChoiceError
from streamwsi.loading.resolve import Choices, ReadingOptions, resolve_slide
from streamwsi.slides.reader import SlideReader, TilesRead, open_slide
from streamwsi.slides.tile_cache import TileCache
from streamwsi.wire.channels import DataOutputs, Poll, Wakeup
from streamwsi.wire.messages import (
    ChunkDropped,
    ChunkFailed,
    ChunkRead,
    CloseSlide,
    DropChunk,
    EndpointGone,
    Message,
    ReadChunk,
    ResolveSlide,
    SendChunk,
    SlideClosed,
    SlideFailed,
    SlideResolved,
    Stop,
    chunk_message,
)
from streamwsi.wire.seat import Seat, UserCodeError
from streamwsi.wire.shared_memory import SharedSlots

if TYPE_CHECKING:
    from streamwsi.loading.open_paired import OpenPaired


class _OpenSlide(NamedTuple):
    """A slide, and what is read with it."""

    reader: SlideReader
    paired: dict[str, OpenPaired]


class _OpenSlides:
    """Open slides, shared by the decode threads, each opened when first needed."""

    def __init__(self, options: ReadingOptions, choices: Choices) -> None:
        self._options, self._choices = options, choices
        self._cache = TileCache(options.tile_cache_bytes)
        self._lock = threading.Lock()
        self._open: dict[tuple[int, int], tuple[threading.Lock, list[_OpenSlide]]] = {}

    def get(self, key: tuple[int, int], slide: Slide, patient_id: str) -> _OpenSlide:
        """An open slide. Raises SlideError when it cannot be opened, or what is read with it, ChoiceError for user's code."""
        with self._lock:
            own_lock, held = self._open.setdefault(key, (threading.Lock(), []))
        with own_lock:  # opening takes long: others open theirs meanwhile
            if not held:
                reader = open_slide(slide.path, self._options.reader, self._options.background, self._cache)
                try:
                    paired = self._paired(slide, patient_id, reader)
                except BaseException:
                    reader.close()
                    raise
                held.append(_OpenSlide(reader, paired))
            return held[0]

    def _paired(self, slide: Slide, patient_id: str, reader: SlideReader) -> dict[str, OpenPaired]:
        if not self._choices.paired:
            return {}
        from streamwsi.loading.open_paired import open_paired  # others have no use for it, and importing takes time

        return open_paired(self._choices.paired, slide, patient_id, reader.info, self._cache)

    def close(self, key: tuple[int, int]) -> TilesRead | None:
        """Let go of a slide; returns what was decoded of it, if anything was and that is known."""
        with self._lock:
            _, held = self._open.pop(key, (None, []))
        for reader, paired in held:
            tiles = reader.tiles_read()
            reader.close()
            for image in paired.values():
                image.reader.close()
            return tiles
        return None

    def close_all(self) -> None:
        """Let go of every slide."""
        for key in list(self._open):
            self.close(key)


class _Throttle:
    """Lets threads pass at least `interval_s` apart, until it is opened."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._next = 0.0
        self._open = threading.Event()

    def wait(self) -> None:
        """Return when it is this thread's turn."""
        if not self._interval_s:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._interval_s
        self._open.wait(turn - now)

    def open(self) -> None:
        """Let all pass that wait, and that come."""
        self._open.set()


class _Done(NamedTuple):
    """A chunk that was read."""

    lease: int
    chunk: BigChunk
    in_slot: bool
    seconds: float


_SWITCH_S = 0.0005
"""How long a thread may keep Python's lock while others wait for it: between two tiles a decode thread needs it for some
microseconds, and should not wait for one that plans a chunk. On 16 processors 5 % faster than with Python's 5 ms."""


def run_loader(seat: Seat, options: ReadingOptions, choices: Choices, slots: SharedSlots | None = None) -> None:
    """Serve the driver until it says stop. Sets this process's switch interval."""
    sys.setswitchinterval(_SWITCH_S)
    _Loader(seat, options, choices, slots).run()


class _Loader:
    def __init__(self, seat: Seat, options: ReadingOptions, choices: Choices, slots: SharedSlots | None) -> None:
        self._seat = seat
        self._slots = slots
        self._options = options
        self._choices = choices
        self._slides = _OpenSlides(options, choices)
        self._throttle = _Throttle(options.min_chunk_interval_s)
        self._outputs = DataOutputs(seat.context)
        self._wakeup = Wakeup()
        self._done: queue.SimpleQueue[Message | _Done | BaseException] = queue.SimpleQueue()
        self._orders: dict[int, ReadChunk] = {}
        """Chunks being read or waiting here, by lease; one that is taken out is not wanted any more."""
        self._chunks: dict[int, BigChunk] = {}
        """Chunks that wait here to be sent: those that are in no slot."""

    def run(self) -> None:
        pool = ThreadPoolExecutor(self._options.threads, thread_name_prefix="decode")
        poll = Poll(self._seat.control, self._wakeup)
        self._seat.ready()
        try:
            while True:
                self._wait(poll)
                for message in self._seat.control.receive():
                    if isinstance(message, Stop):
                        return
                    self._obey(message, pool)
                while not self._done.empty():
                    self._report(self._done.get())
        except BaseException as error:
            # Told at once: threads may be at work for long
            self._seat.fail(error)
            raise
        finally:
            self._orders.clear()
            self._throttle.open()
            # Threads inside a native read cannot be ended; their results are not wanted any more.
            pool.shutdown(wait=True, cancel_futures=True)
            self._outputs.close()
            self._slides.close_all()
            self._wakeup.close()

    def _wait(self, poll: Poll) -> None:
        reading = len(self._orders) - len(self._chunks)
        if reading > 0:
            poll.wait()  # decode threads are at work and count their time themselves
        else:
            with self._seat.clock.spending("wait_output" if self._chunks else "wait_input"):
                poll.wait()

    def _obey(self, message: Any, pool: ThreadPoolExecutor) -> None:
        if isinstance(message, ReadChunk):
            self._orders[message.lease] = message
            pool.submit(self._guarded, self._read, message)
        elif isinstance(message, SendChunk):
            order, chunk = self._orders.get(message.lease), self._chunks.get(message.lease)
            if message.last:
                self._forget(message.lease)
            if order is not None and chunk is not None:
                self._outputs.send(
                    message.collector,
                    *chunk_message(message.lease, order.chunk, order.slide, message.patient, message.writer, chunk),
                )
        elif isinstance(message, DropChunk):
            self._forget(message.lease)
        elif isinstance(message, ResolveSlide):
            pool.submit(self._guarded, self._resolve, message)
        elif isinstance(message, CloseSlide):
            tiles = self._slides.close((message.patient, message.slide))
            if tiles is not None:
                self._seat.control.send(SlideClosed(message.patient, message.slide, *tiles))
        elif isinstance(message, EndpointGone):
            self._outputs.forget(message.endpoint)

    def _forget(self, lease: int) -> None:
        self._orders.pop(lease, None)
        self._chunks.pop(lease, None)

    def _report(self, done: Message | _Done | BaseException) -> None:
        if isinstance(done, BaseException):
            raise done
        if isinstance(done, Message):
            if isinstance(done, ChunkFailed):
                self._orders.pop(done.lease, None)
            self._seat.control.send(done)
            return
        self._seat.clock.add("busy", done.seconds / self._options.threads)
        if done.lease not in self._orders:
            self._seat.control.send(ChunkDropped(done.lease))
        elif done.in_slot:
            del self._orders[done.lease]
            skipped = done.chunk.skipped.tobytes() if done.chunk.skipped.any() else b""
            self._seat.control.send(ChunkRead(done.lease, True, skipped, self._seat.clock.read()))
        else:
            self._chunks[done.lease] = done.chunk
            self._seat.control.send(ChunkRead(done.lease, False, b"", self._seat.clock.read()))

    # ---- in the decode threads

    def _guarded(self, work: Callable[[Any], Message | _Done], order: Any) -> None:
        try:
            result: Any = work(order)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            result = error
        self._done.put(result)
        self._wakeup.set()

    def _resolve(self, order: ResolveSlide) -> Message:
        with self._seat.doing.opening(order.patient, order.slide):
            return self._resolved(order)

    def _resolved(self, order: ResolveSlide) -> Message:
        slide = Slide(Path(order.path), order.id)
        try:
            place = (order.patient, order.slide)
            reader, paired = self._slides.get(place, slide, order.patient_id)
            return SlideResolved(resolve_slide(reader, place, order.patient_id, slide, self._choices, self._options, paired))
        except ChoiceError as error:
            raise UserCodeError(str(error)) from error.__cause__
        except (SlideError, OSError) as error:
            return SlideFailed(order.patient, order.slide, str(error))

    def _read(self, order: ReadChunk) -> Message | _Done:
        if order.lease not in self._orders:
            return ChunkDropped(order.lease)
        self._throttle.wait()
        if order.lease not in self._orders:  # its slide may be closed by now
            return ChunkDropped(order.lease)
        begun = time.monotonic()
        slide = order.slide
        try:
            with self._seat.doing.chunk(order.lease):
                opened = Slide(Path(slide.path), slide.id)
                reader, paired = self._slides.get((slide.patient, slide.slide), opened, slide.patient_id)
                memory = self._slot_of(order)
                images = {name: image.reader for name, image in paired.items()}
                chunk = read_chunk(reader, slide, order.chunk, self._options.on_bad_region, memory, images)
        except ChoiceError as error:
            raise UserCodeError(str(error)) from error.__cause__
        except (SlideError, OSError) as error:
            return ChunkFailed(order.lease, str(error))
        return _Done(order.lease, chunk, memory is not None, time.monotonic() - begun)

    def _slot_of(self, order: ReadChunk) -> UInt8Array | None:
        """The memory that a chunk is to be read into; None for one of its own: no slot was free, or it is too large for any."""
        if order.slot is None or self._slots is None or order.slide.chunk_bytes(order.chunk) > self._slots.room_bytes:
            return None
        return self._slots.slot(order.slot)
