"""Windows in the user's own process: batches to iterate over, as often as one likes, without a collector or files.

In: a loader as users describe it.  Out: batches, in an order that does not depend on who read them when.  Never decodes a pixel
here: loader processes do, and put the pixels into memory that they share with this one.

A pass takes what has arrived whenever the user asks for the next batch. Between two of those the loaders go on with what was
ordered ahead, and no further: a slow user slows them.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from streamwsi.chunks import Batch, BigChunk, MixedBatch, SmallChunk
from streamwsi.collecting.ahead import Ahead, ChunkWork
from streamwsi.config import (
    MOST_CHUNK_PX,
    MOST_NUMBER,
    SMALL_CHUNK_PX,
    TILE_CACHE_BYTES,
    Transport,
    at_least,
    count,
    one_of,
)
from streamwsi.dataset import Patient
from streamwsi.errors import CollectorError, ConfigError, RunError, SlideError, StreamwsiError, WorkerDied
from streamwsi.loading.transforms import TransformError, transformed
from streamwsi.loading.window_loader import WindowLoader
from streamwsi.pipeline.decisions import DEATHS_OF_POISON, CloseSlide, Read, Resolve, SlideKey
from streamwsi.pipeline.processes import Worker, describe_exit
from streamwsi.pipeline.reading import chunk_bytes, loader_sizes, loader_startup
from streamwsi.pipeline.stream_crew import Crew, CrewOptions
from streamwsi.pipeline.stream_mixer import Mixer
from streamwsi.pipeline.stream_order import Draw, random_of
from streamwsi.pipeline.stream_schedule import Failed, Ready, StreamSchedule
from streamwsi.resolved import ResolvedSlide
from streamwsi.wire import messages
from streamwsi.wire.messages import PatientRef, chunk_of

OPEN_SLIDES = 64
"""Slides that the chunks of a shuffled stream are drawn from at a time."""
_CUT_AHEAD = 2
"""Chunks that are being cut into batches: the one that the user has, and the next."""
_LAST_WORDS_S = 1.0
"""How long the last words of a loader that has failed may be on their way."""
_EXIT_FAILED = 1
_OF_SLIDES, _OF_CHUNKS, _OF_WINDOWS = range(3)
"""What the random generators of one pass are for."""


@dataclass(frozen=True)
class BadSlide:
    """A slide that a stream could not read, or not to its end."""

    patient: str
    """The patient's id."""
    slide: str
    """The slide's id."""
    reason: str
    """Why, in one line."""


@dataclass(frozen=True)
class StreamReport:
    """What a pass over a stream has done so far."""

    epoch: int
    """The pass's number."""
    windows: int = 0
    """Windows given out."""
    skipped: int = 0
    """Windows left out because their pixels could not be read (``on_bad_region="skip"``)."""
    bad_slides: tuple[BadSlide, ...] = ()
    """Slides left out, from where they could not be read (``on_bad_slide="skip"``)."""
    restarts: int = 0
    """Loaders that have ended and were replaced."""
    transport: str = ""
    """What pixels go through: ``shm``, ``ipc`` or ``tcp``."""


def stream(
    loader: WindowLoader,
    *,
    batch_size: int = 32,
    shuffle: int | None = None,
    pool_chunks: int = 8,
    new_draw: bool = False,
    shard: tuple[int, int] | None = None,
    on_bad_slide: str = "raise",
    loaders: int | None = None,
    threads: int | None = None,
    chunk_px: int = SMALL_CHUNK_PX,
    chunks_ahead: int | None = None,
    tile_cache_mb: float = TILE_CACHE_BYTES / 1e6,
    max_restarts: int = 5,
    transport: Transport = "auto",
) -> Stream:
    """The windows of a loader in this process, as batches to iterate over.

    >>> for batch in sw.stream(loader, batch_size=32):        # doctest: +SKIP
    ...     model(torch.from_numpy(batch.pixels))

    Parameters
    ----------
    loader
        What is read.
    batch_size
        Windows in a batch, at most. Without `shuffle`, a batch is of one big chunk of neighbouring windows, and the last of a
        chunk may be shorter; with it, only the last of a pass (and those of windows that an ``adaptive`` border has cut) is.
    shuffle
        None: windows come in the order of the plan, slide after slide. A seed (0 is one): chunks come in a random order, across
        slides, and windows are drawn from `pool_chunks` of them. Each pass has an order of its own, with the same windows.
    pool_chunks
        How many chunks those are: more mix better, and take more memory.
    new_draw
        A sampler that draws windows at random draws anew for each pass (``sampler.at_epoch`` of the pass's number).
    shard
        (rank, world): only every world-th chunk, from number rank on, so that `world` processes share the windows out. All must
        be given the same options. Their numbers of windows differ, by the windows of a chunk or more.
    on_bad_slide
        A slide that cannot be opened, or of which something cannot be read: ``"raise"`` SlideError when its turn comes, or
        ``"skip"`` what is left of it, with a warning.
    loaders, threads
        Processes that read, and decode threads of each; by default a process for every four processors, with a thread
        for each, and one more where there is one process.
    chunk_px
        Pixels of a big chunk, about.
    chunks_ahead
        Chunks that are read before they are asked for; by default one more than each loader has processors, or `threads`, for
        each of them, and one.
    tile_cache_mb
        Decoded tiles that a loader keeps for other chunks, in MB.
    max_restarts
        Loaders that may be replaced in one pass before it is broken off.
    transport
        How pixels come here: ``"shm"`` (shared memory, where there is enough; else as ``"ipc"``), ``"ipc"`` or ``"tcp"``
        (sockets). ``"auto"`` is the first of them that there is.

    Returns a :class:`Stream`. Nothing is started before it is iterated over.

    Pixels that the user holds are never overwritten. Memory: the chunks ahead, those of the pool, and those that the user
    holds pixels of, three bytes for each pixel of a chunk; whoever holds many batches at once holds that memory.

    Raises ConfigError naming the value that cannot work.
    """
    if not isinstance(loader, WindowLoader):
        raise ConfigError(f"loader must be a WindowLoader, got {type(loader).__name__}")
    sizes = loader_sizes(loaders, threads)
    return Stream(
        loader,
        StreamOptions(
            batch_size=count(batch_size, "batch_size"),
            shuffle=None if shuffle is None else _seed(shuffle),
            pool_chunks=count(pool_chunks, "pool_chunks"),
            new_draw=bool(one_of(new_draw, (False, True), "new_draw")),
            shard=_shard(shard),
            skip_bad_slides=one_of(on_bad_slide, ("raise", "skip"), "on_bad_slide") == "skip",
            loaders=sizes.loaders,
            threads=sizes.threads,
            loader_credits=sizes.credits,
            chunk_px=count(chunk_px, "chunk_px", most=MOST_CHUNK_PX),
            chunks_ahead=sizes.loaders * sizes.credits + 1 if chunks_ahead is None else count(chunks_ahead, "chunks_ahead"),
            tile_cache_bytes=int(at_least(tile_cache_mb, 0, "tile_cache_mb", MOST_NUMBER) * 1e6),
            max_restarts=count(max_restarts, "max_restarts", least=0),
            transport=one_of(transport, ("auto", "shm", "ipc", "tcp"), "transport"),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a stream is read."""

    batch_size: int
    shuffle: int | None
    pool_chunks: int
    new_draw: bool
    shard: tuple[int, int]
    skip_bad_slides: bool
    loaders: int
    threads: int
    loader_credits: int
    chunk_px: int
    chunks_ahead: int
    tile_cache_bytes: int
    max_restarts: int
    transport: Transport

    @property
    def n_slots(self) -> int:
        """Slots of shared memory: for each chunk that is ahead, or being cut into batches."""
        return self.chunks_ahead + (_CUT_AHEAD if self.shuffle is None else self.pool_chunks + 1)


class Stream:
    """Windows to iterate over, as often as one likes; made by :func:`streamwsi.stream`.

    Each ``iter(…)`` is a new pass from the beginning. A pass has loader processes of its own, which end with it: when it is
    through, when the loop is left, when an exception ends it, or when the last reference to it is gone. In a ``with`` block
    they are kept from one pass to the next, until the block is left, which saves their start.

    Several threads may take batches from one pass: each batch goes to one of them. :meth:`close` may be called from any thread.

    A forked process may iterate over a stream that it has inherited, not go on with a pass. The `loader` and the `options` that
    it was made with can be looked at, not changed.
    """

    def __init__(self, loader: WindowLoader, options: StreamOptions) -> None:
        self.loader = loader
        self.options = options
        self.epoch = 0
        """The number of the next pass, which counts up. A shuffled stream has the same order in passes of the same number: set
        it to go on where another process was."""
        self._passes: weakref.WeakSet[Pass] = weakref.WeakSet()
        self._tally = _Tally(0)
        self._keeps = False
        self._idle: deque[Crew] = deque()
        """A crew that waits for the next pass, if there is one."""

    def __iter__(self) -> Pass:
        """Begin a pass."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        crew = self._kept()
        if crew is None or not crew.is_open:
            crew = Crew(self._crew_options(epoch))
        self._tally = _Tally(epoch)
        try:
            begun = Pass(self.loader, self.options, crew, self._tally, weakref.WeakMethod(self._keep))
        except BaseException:
            crew.close()
            raise
        self._passes.add(begun)
        return begun

    def windows(self) -> Iterator[SmallChunk]:
        """A pass over single windows, each with its slide and patient; their pixels are views into the batches'."""
        for batch in self:
            yield from batch

    @property
    def report(self) -> StreamReport:
        """What the latest pass has done so far."""
        return self._tally.report()

    def close(self) -> None:
        """End all passes and their processes. Batches that the user holds stay as they are; the stream can be used again."""
        for each in self._begun():
            each.close()
        while (crew := self._kept()) is not None:
            crew.close()

    def _begun(self) -> list[Pass]:
        while True:
            with contextlib.suppress(RuntimeError):  # another thread has just begun one
                return list(self._passes)

    def _kept(self) -> Crew | None:
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        return None

    def __enter__(self) -> Stream:
        self._keeps = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._keeps = False
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.loader, self.options, self.epoch)  # passes and processes stay where they are

    def _keep(self, crew: Crew) -> bool:
        """Take the crew of a pass that is through, for the next one; False where none is to be kept."""
        if not self._keeps or self.options.new_draw or self._idle or not crew.is_open:
            return False
        self._idle.append(crew)
        return True

    def _crew_options(self, epoch: int) -> CrewOptions:
        options = self.options
        return CrewOptions(
            loaders=options.loaders,
            startup=loader_startup(
                self.loader,
                batch_size=options.batch_size,
                chunk_px=options.chunk_px,
                threads=options.threads,
                tile_cache_bytes=options.tile_cache_bytes,
                epoch=epoch if options.new_draw else None,
            ),
            transport=options.transport,
            n_slots=options.n_slots,
            chunk_bytes=chunk_bytes(self.loader, options.chunk_px),
        )


@dataclass
class _Tally:
    """What a pass counts; the stream can see it without holding the pass."""

    epoch: int
    windows: int = 0
    skipped: int = 0
    bad_slides: list[BadSlide] = field(default_factory=list)
    restarts: int = 0
    transport: str = ""

    def report(self) -> StreamReport:
        return StreamReport(self.epoch, self.windows, self.skipped, tuple(self.bad_slides), self.restarts, self.transport)


_CLOSED = "this pass was closed before it was through: begin another over the stream"


class Pass(Iterator["Batch | MixedBatch"]):
    """One pass over a stream: an iterator of batches. Threads that take one wait for each other."""

    def __init__(
        self,
        loader: WindowLoader,
        options: StreamOptions,
        crew: Crew,
        tally: _Tally,
        keep: Callable[[], Callable[[Crew], bool] | None],
    ) -> None:
        self._dataset = loader.dataset
        self._transforms = loader.transforms
        self._options = options
        self._crew = crew
        self._tally = tally
        self._keep = keep
        """Gives the crew back to the stream, if that still lives and wants it."""
        slides = [(place, number) for place, patient in enumerate(loader.dataset) for number in range(len(patient.slides))]
        self._cutter: Ahead | Mixer
        if options.shuffle is None:
            draw: Draw[SlideKey] = Draw(1)
            self._cutter = Ahead(options.batch_size)
        else:
            order, chunks, windows = (
                random_of(options.shuffle, tally.epoch, what) for what in (_OF_SLIDES, _OF_CHUNKS, _OF_WINDOWS)
            )
            slides = [slides[place] for place in order.permutation(len(slides)).tolist()]
            draw = Draw(OPEN_SLIDES, chunks)
            self._cutter = Mixer(options.batch_size, options.pool_chunks, windows)
        self._schedule = StreamSchedule(slides, draw, options.chunks_ahead, options.loader_credits, crew.leases, options.shard)
        self._resolved: dict[SlideKey, ResolvedSlide] = {}
        self._arrived: dict[int, ChunkWork] = {}
        self._error: Exception | None = None
        """What ends the pass, once what comes before it was given out."""
        self._deaths = 0
        """Ends of loaders that count against `max_restarts`."""
        self._through = False
        self._lock = threading.RLock()  # a signal's handler may come where it is taken, and wants it too
        self._inside: int | None = None
        """The thread that takes a batch, and has the lock."""
        self._closing = False
        """Whoever takes a batch is to let go of it."""
        self._end = weakref.finalize(self, _end, crew, self._cutter)
        tally.transport = crew.transport
        for name in crew.ready:
            self._schedule.loader_came(name)
        if crew.warning is not None:
            warnings.warn(crew.warning, RuntimeWarning, stacklevel=3)
            crew.warning = None

    def __next__(self) -> Batch | MixedBatch:
        """The next batch; waits until it is there. Raises SlideError, CollectorError or RunError where that cannot be."""
        if self._through:
            raise StopIteration
        if not self._crew.is_ours:
            raise RunError("this pass belongs to the process that began it, before a fork: begin one here, over the stream")
        if self._inside == threading.get_ident():
            raise RunError("this pass is asked for a batch, by a signal's handler, say, while it looks for one")
        with self._lock:
            self._inside = threading.get_ident()
            try:
                batch = self._next_or_end()
            finally:
                self._inside = None
        try:
            return transformed(batch, self._transforms)
        except TransformError as error:
            self.close()
            slides = ", ".join(sorted({slide.id for slide in batch.slides}))
            raise CollectorError(f"{error}; windows {batch.windows.index.tolist()} of {slides}") from error.__cause__

    def close(self) -> None:
        """End the pass and its processes; what the user holds stays. May be done twice, and from anywhere."""
        if not self._crew.is_ours or not self._end.alive:
            self._end()
            return
        self._closing = True
        self._crew.wake()
        if self._inside == threading.get_ident():
            return  # from a signal's handler: what it has interrupted ends the pass
        with self._lock:
            self._end()

    def _next_or_end(self) -> Batch | MixedBatch:
        if self._through:
            raise StopIteration
        if not self._end.alive:
            raise RunError(_CLOSED)
        try:
            batch = self._next()
        except BaseException:
            self._end()
            raise
        if batch is None:
            self._finish()
            raise StopIteration
        if self._closing:
            self._end()
        self._tally.windows += len(batch)
        return batch

    def _finish(self) -> None:
        """Everything was given out: the crew has nothing to do, and may serve another pass."""
        self._through = True
        keep = self._keep()
        if keep is not None and keep(self._crew):
            self._end.detach()
            self._cutter.close()
        else:
            self._end()

    # ---- the loop

    def _next(self) -> Batch | MixedBatch | None:
        while True:
            if self._closing:
                raise RunError(_CLOSED)
            self._hear()
            batch = self._take()
            if batch is not None:
                return batch
            if self._error is not None:
                raise self._error
            if self._schedule.done:
                return None
            self._crew.wait()

    def _take(self) -> Batch | MixedBatch | None:
        """A batch of what is there."""
        if isinstance(self._cutter, Mixer):
            return self._cutter.take(self._more)
        while (step := self._cutter.take(self._more)) is not None:
            if len(step.members):
                return step.batch()
        return None

    def _more(self) -> bool:
        """Hand the next chunk on, if it is there; or tell that there is none any more. False: neither."""
        self._hear()
        while self._error is None:
            item = self._schedule.take()
            self._carry_out()  # there is room for another
            if isinstance(item, Ready):
                work = self._arrived.pop(item.lease)
                self._tally.skipped += int(work.chunk.skipped.sum())
                self._cutter.add(work)
                return True
            if item is None:
                return self._tell_the_end()
            self._slide_failed(item)
        return False

    def _tell_the_end(self) -> bool:
        if isinstance(self._cutter, Mixer) and self._schedule.done and self._cutter.wants:
            self._cutter.end()
            return True
        return False

    def _slide_failed(self, failed: Failed) -> None:
        patient = self._patient(failed.slide)
        slide = patient.slides[failed.slide[1]]
        text = f"slide {slide.id!r} of patient {patient.id!r} cannot be read: {failed.reason}"
        if not self._options.skip_bad_slides:
            self._error = SlideError(text)
            return
        self._tally.bad_slides.append(BadSlide(patient.id, slide.id, failed.reason))
        warnings.warn(f"{text}; what is left of it is left out", RuntimeWarning, stacklevel=2)

    def _patient(self, slide: SlideKey) -> Patient:
        return self._dataset[slide[0]]

    # ---- decisions

    def _carry_out(self) -> None:
        crew = self._crew
        for decision in self._schedule.decisions():
            if isinstance(decision, Read):
                crew.read(decision.loader, decision.lease, self._resolved[decision.slide], decision.chunk)
            elif isinstance(decision, Resolve):
                patient = self._patient(decision.slide)
                slide = patient.slides[decision.slide[1]]
                crew.tell(decision.loader, messages.ResolveSlide(*decision.slide, patient.id, slide.id, str(slide.path)))
            elif isinstance(decision, CloseSlide):
                crew.tell_all(messages.CloseSlide(*decision.slide))
                self._resolved.pop(decision.slide, None)
            elif self._arrived.pop(decision.lease, None) is None:
                crew.drop(decision.loader, decision.lease)

    # ---- what loaders say

    def _hear(self) -> None:
        ended = self._crew.ended()
        for worker, message in self._crew.hear():
            self._handle(worker, message)
        for message, payload in self._crew.chunks():
            place = self._schedule.place_of(message.lease)
            if self._schedule.chunk_arrived(message.lease) and place is not None:
                big = chunk_of(message, payload)
                self._arrived[message.lease] = self._work(message.lease, place, big)
        for worker, code in ended:
            if code == _EXIT_FAILED:
                self._wait_for_last_words()
            self._loader_ended(worker, code)
        self._carry_out()

    def _handle(self, worker: Worker, message: Any) -> None:
        schedule = self._schedule
        if isinstance(message, messages.ChunkRead):
            self._chunk_read(worker, message)
        elif isinstance(message, messages.Hello):
            schedule.loader_came(worker.name)
        elif isinstance(message, messages.SlideResolved):
            slide = message.slide
            self._resolved[slide.patient, slide.slide] = slide
            schedule.slide_resolved((slide.patient, slide.slide), len(slide.chunks()))
        elif isinstance(message, messages.SlideFailed):
            schedule.slide_failed((message.patient, message.slide), message.reason)
            self._crew.tell_all(messages.CloseSlide(message.patient, message.slide))  # it may be open, and of no use
        elif isinstance(message, messages.ChunkFailed):
            self._crew.not_read(message.lease)
            schedule.chunk_failed(message.lease, message.reason)
        elif isinstance(message, messages.ChunkDropped):
            self._crew.not_read(message.lease)
            schedule.chunk_failed(message.lease, "it was not wanted any more")
        elif isinstance(message, messages.WorkerFailed):
            self._error = self._error or _failure(worker, message)

    def _chunk_read(self, worker: Worker, message: messages.ChunkRead) -> None:
        place = self._schedule.place_of(message.lease)
        if place is None:
            self._crew.not_read(message.lease)
            self._schedule.chunk_arrived(message.lease)
            return
        key, chunk = place
        if not message.in_slot:
            self._crew.send(worker.name, message.lease, PatientRef.of(self._patient(key)))
        elif self._schedule.chunk_arrived(message.lease):
            big = self._crew.in_slot(message, self._resolved[key], chunk)
            self._arrived[message.lease] = self._work(message.lease, place, big)

    def _work(self, lease: int, place: tuple[SlideKey, int], big: BigChunk) -> ChunkWork:
        key, chunk = place
        resolved = self._resolved[key]
        return ChunkWork(lease, chunk, resolved, messages.slide_of(resolved), self._patient(key), "", big)

    def _wait_for_last_words(self) -> None:
        until = time.monotonic() + _LAST_WORDS_S
        while self._error is None and time.monotonic() < until:
            for worker, message in self._crew.hear():
                self._handle(worker, message)
            if self._error is None:
                self._crew.wait(until - time.monotonic())

    def _loader_ended(self, worker: Worker, code: int) -> None:
        self._crew.remove(worker)
        if self._error is not None:
            return
        work = worker.last_work
        poison = self._schedule.loader_went(worker.name, work.leases, work.slides)
        self._tally.restarts += 1
        self._deaths += 1 - DEATHS_OF_POISON * len(poison)
        if self._deaths > self._options.max_restarts:
            self._error = WorkerDied(
                f"loader {worker.number} (pid {worker.pid}) {describe_exit(code)}; {self._options.max_restarts} loaders were "
                "replaced already (max_restarts): the pass ends"
            )
            return
        self._crew.replace(worker)


def _failure(worker: Worker, message: messages.WorkerFailed) -> StreamwsiError:
    if message.user_code:
        return CollectorError(f"{message.error}\n  in {message.what}\n\n{message.traceback}")
    return RunError(f"loader {worker.number} cannot go on: {message.error}\n\n{message.traceback}")


def _end(crew: Crew, cutter: Ahead | Mixer) -> None:
    """End what a pass has begun, unless it was another process that began it."""
    if crew.is_ours:
        crew.close()
        cutter.close()


def _again(loader: WindowLoader, options: StreamOptions, epoch: int) -> Stream:
    stream = Stream(loader, options)
    stream.epoch = epoch
    return stream


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"shuffle must be None or a seed, an int from 0 on, got {value!r}")
    return value


def _shard(value: Any) -> tuple[int, int]:
    if value is None:
        return 0, 1
    pair = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(pair) != 2 or not all(type(number) is int for number in pair) or not 0 <= pair[0] < pair[1]:
        raise ConfigError(f"shard must be (rank, world) with 0 <= rank < world, got {value!r}")
    return pair[0], pair[1]
