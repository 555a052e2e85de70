"""Batches come in order, each made ready before it is asked for, and keep their pixels for as long as anyone has them."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings

from streamwsi.chunks import Batch, BigChunk
from streamwsi.collecting import ahead as ahead_module
from streamwsi.collecting import main as collecting_main
from streamwsi.collecting.ahead import Ahead, BatchMemory, ChunkWork
from streamwsi.collecting.collector import StreamCollector
from streamwsi.collecting.main import CollectingOptions, run_collector
from streamwsi.collecting.ready_made import MeanCollector
from streamwsi.dataset import Patient, Slide
from streamwsi.errors import PieceError
from streamwsi.memory import BEGIN, CACHE_LINE, idle
from streamwsi.wire import seat as seat_module
from streamwsi.wire.channels import Context, ControlServer, Poll, make_address, remove_address
from streamwsi.wire.messages import ChunkCollected, EndpointGone, StillAtWork, Stop
from streamwsi.wire.seat import Seat
from tests.writing.fabricate import resolved_slide

PATIENT = Patient("p", {"s": "/slide"})


def work(number: int, kernel: int = 16, stride: int = 8, slot: np.ndarray | None = None) -> ChunkWork:
    """A chunk of noise, in a slot or in memory of its own."""
    resolved = resolved_slide(extent=(400, 300), kernel=(kernel, kernel), stride=(stride, stride), block=(4, 6))
    chunk = resolved.blank_chunk(number, slot)
    chunk.pixels[...] = np.random.default_rng(number).integers(0, 256, chunk.pixels.shape, np.uint8)
    return ChunkWork(number, number, resolved, Slide(Path("/slide"), "s"), PATIENT, "writer", chunk, slot)


def expected(chunk: BigChunk, batch_size: int) -> list[np.ndarray]:
    return [np.stack([chunk.pixels_of(row) for row in rows.tolist()]) for rows in chunk.batch_rows(batch_size)]


def nothing() -> None:
    pass


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.sampled_from([5, 16, 170]),
    stride=st.sampled_from([3, 16, 40]),
    batch_size=st.integers(1, 30),
    skipped=st.lists(st.booleans(), min_size=24, max_size=24),
)
def test_batches_are_those_of_the_chunks_in_order(kernel: int, stride: int, batch_size: int, skipped: list[bool]) -> None:
    works = [work(number, kernel, stride) for number in range(3)]
    for each in works:
        each.chunk.skipped[...] = skipped[: len(each.chunk.skipped)]
    wanted = [(each.lease, pixels) for each in works for pixels in expected(each.chunk, batch_size) or [None]]
    ahead = Ahead(batch_size)
    for each in works:
        ahead.add(each)
    found, lasts = [], []
    while (step := ahead.take(nothing)) is not None:
        found.append((step.work.lease, step.batch().pixels if len(step.members) else None))
        lasts.append(step.last)
    ahead.close()
    leases = [lease for lease, _ in found]
    assert leases == [lease for lease, _ in wanted]
    assert lasts == [lease != after for lease, after in zip(leases, [*leases[1:], None], strict=True)]
    for (_, pixels), (_, right) in zip(found, wanted, strict=True):
        assert (pixels is None) == (right is None)
        if pixels is not None:
            assert pixels.flags.c_contiguous and pixels.flags.writeable
            np.testing.assert_array_equal(pixels, right)


def test_what_is_not_there_yet_is_asked_for_before_there_is_nothing_left() -> None:
    ahead, coming = Ahead(100), [work(1), work(2)]

    def more() -> None:
        if coming:
            ahead.add(coming.pop(0))

    leases = []
    while (step := ahead.take(more)) is not None:
        leases.append((step.work.lease, len(coming)))
    ahead.close()
    assert leases == [(1, 0), (2, 0)]  # while the first is processed, the second is there


@pytest.mark.parametrize(("kernel", "stride"), [(170, 40), (16, 16), (16, 4)])
@pytest.mark.parametrize("waits", [False, True])
def test_batches_that_are_kept_keep_their_pixels(kernel: int, stride: int, waits: bool) -> None:
    ahead = Ahead(3, always=not waits, clock=itertools.count().__next__)
    kept = []
    if waits:
        ahead.add(work(0, kernel, stride))
        while ahead.take(nothing) is not None:
            pass
    for number in range(2):
        ahead.add(work(number, kernel, stride))
    while (step := ahead.take(nothing)) is not None:
        pixels = step.batch().pixels
        kept.append((pixels[::2], pixels[::2].copy()))
        del pixels
    ahead.close()
    assert len(kept) > 8
    for view, copy in kept:
        np.testing.assert_array_equal(view, copy)


def test_memory_of_batches_is_used_again() -> None:
    ahead = Ahead(2)
    ahead.add(work(0, 170, 40))
    places = []
    while (step := ahead.take(nothing)) is not None:
        places.append(step.batch().pixels.__array_interface__["data"][0])
    ahead.close()
    assert len(places) == 12 and len(set(places)) <= 3


class Bench:
    """An `Ahead` under a clock of the test's, and where the batches of each chunk are copied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, always: bool) -> None:
        self.now = 0.0
        self.ahead = Ahead(100, always, clock=lambda: self.now)
        self.copied: dict[int, str] = {}
        stack = BigChunk.stack

        def seen(chunk: BigChunk, *arguments: Any) -> np.ndarray:
            self.copied[self.lease] = threading.current_thread().name.partition("_")[0]
            return stack(chunk, *arguments)

        monkeypatch.setattr(BigChunk, "stack", seen)
        self.lease = -1

    def process(self, waits_s: float, takes_s: float) -> str:
        """Wait so long for a chunk of one batch, and process it for so long; returns the thread that copied it."""
        self.lease += 1
        if waits_s:
            assert self.ahead.take(nothing) is None
            self.now += waits_s
        self.ahead.add(work(self.lease))
        step = self.ahead.take(nothing)
        assert step is not None and step.work.lease == self.lease
        step.batch()
        self.now += takes_s
        return self.copied[self.lease]


def test_who_limits_has_batches_copied_by_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, always=False)
    assert [bench.process(0.0, 1.0) for _ in range(20)] == ["batch"] * 20
    bench.ahead.close()


def test_who_waits_for_chunks_copies_batches_and_no_longer_once_it_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, always=False)
    waiting = [bench.process(0.5, 0.5) for _ in range(20)]
    limiting = [bench.process(0.0, 1.0) for _ in range(60)]
    bench.ahead.close()
    here = threading.current_thread().name
    assert waiting[0] == "batch" and set(waiting[2:]) == {here}
    assert limiting[0] == here and limiting[-1] == "batch"
    assert limiting == sorted(limiting, key=lambda name: name == "batch")  # it changes once


def test_for_a_device_batches_are_copied_by_another_thread_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, always=True)
    assert {bench.process(0.5, 0.5) for _ in range(20)} == {"batch"}
    bench.ahead.close()


@pytest.mark.parametrize("device", [None, "cuda:1"])
def test_a_collector_stops_that_is_told_so_while_it_looks_for_chunks(
    monkeypatch: pytest.MonkeyPatch, device: str | None
) -> None:
    """And if it has a device, its batches are copied by another thread."""
    made: list[bool] = []
    seats: list[Seat] = []

    class Noted(Ahead):
        def take(self, more: Callable[[], object]) -> Any:
            Poll(seats[0].control).wait(30)  # the word is there, and is heard in what follows
            return super().take(more)

    def noted(batch_size: int, always: bool) -> Ahead:
        made.append(always)
        return Noted(batch_size, always)

    monkeypatch.setattr(collecting_main, "Ahead", noted)
    with serving(MeanCollector(), seats, device) as server:
        server.send("collector-0", Stop())
    assert made == [device is not None]


def test_a_collector_stops_that_is_told_so_in_the_middle_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    seats: list[Seat] = []
    begun = threading.Event()

    class Slow(StreamCollector):
        def process(self, batch: Batch) -> Any:
            begun.set()
            Poll(seats[0].control).wait(30)  # the word comes meanwhile
            done.append(len(batch))
            return np.zeros(len(batch))

        def teardown(self) -> None:
            done.append("teardown")

    monkeypatch.setattr(collecting_main, "Ahead", with_a_chunk)
    monkeypatch.setattr(collecting_main, "_LISTEN_EVERY_S", -1.0)
    with serving(Slow(), seats) as server:
        assert begun.wait(30)
        server.send("collector-0", Stop())
    assert done == [4, "teardown"]


def with_a_chunk(batch_size: int, always: bool) -> Ahead:
    ahead = Ahead(batch_size, always)
    ahead.add(work(0))
    return ahead


def test_a_collector_gives_signs_of_life_within_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    seats: list[Seat] = []
    ready, heard = threading.Event(), threading.Event()
    numbers = itertools.count()

    class Slow(StreamCollector):
        def process(self, batch: Batch) -> Any:
            assert ready.wait(30)
            if next(numbers) == 1:
                assert heard.wait(30)
                Poll(seats[0].control).wait(30)  # the word to stop comes
            return np.zeros(len(batch))

    monkeypatch.setattr(collecting_main, "Ahead", with_a_chunk)
    monkeypatch.setattr(collecting_main, "_LISTEN_EVERY_S", -1.0)
    monkeypatch.setattr(seat_module, "_SIGN_EVERY_S", -1.0)
    with serving(Slow(), seats) as server:
        ready.set()
        Poll(server).wait(30)
        assert [type(message) for _, message in server.receive()] == [StillAtWork]
        heard.set()
        server.send("collector-0", Stop())


def test_what_a_writer_that_is_gone_was_to_have_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    seats: list[Seat] = []
    begun = threading.Event()

    class Slow(StreamCollector):
        def process(self, batch: Batch) -> Any:
            if not begun.is_set():
                begun.set()
                Poll(seats[0].control).wait(30)  # the word comes meanwhile
            return np.zeros(len(batch))

    monkeypatch.setattr(collecting_main, "Ahead", with_a_chunk)
    monkeypatch.setattr(collecting_main, "_LISTEN_EVERY_S", -1.0)
    with serving(Slow(), seats) as server:
        assert begun.wait(30)
        server.send("collector-0", EndpointGone("writer"))  # as the chunk's is called; sent to, it would be an error
        Poll(server).wait(30)
        assert [type(message) for _, message in server.receive()] == [ChunkCollected]
        server.send("collector-0", Stop())


def test_values_that_no_message_holds_are_an_error_that_names_the_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting_main, "Ahead", with_a_chunk)
    monkeypatch.setattr(collecting_main, "LARGEST_PIECES_BYTES", 24 * 8 * 3 - 1)
    said = r"windows 0 to \d+ at .*: the values of the chunk take 0 MB, expected at most 0: take a smaller chunk_px"
    with pytest.raises(PieceError, match=said), serving(MeanCollector(), []):
        pass


@contextlib.contextmanager
def serving(collector: StreamCollector, seats: list[Seat], device: str | None = None) -> Iterator[ControlServer]:
    """A collector's main loop, ready, in another thread, on a seat that is put into `seats`; ends when it has ended."""
    options = CollectingOptions(batch_size=4, columns=None, device=device, max_chunk_bytes=1 << 20)
    address = make_address("ipc")
    try:
        with Context(address) as context:
            server = ControlServer(context)
            with (
                Seat(msgspec.structs.replace(address, driver=server.endpoint), "collector-0") as seat,
                ThreadPoolExecutor(1) as thread,
            ):
                seats.append(seat)
                run = thread.submit(run_collector, seat, options, collector)
                Poll(server).wait(30)
                assert [name for name, _ in server.receive()] == ["collector-0"]
                yield server
                run.result(30)
    finally:
        remove_address(address)


def test_batches_begin_where_chunks_do() -> None:
    """In a cache line: so both sides of a copy are aligned alike."""
    memory = BatchMemory()
    held = [memory.take(size) for size in (1, 1000, 1 << 20)]
    starts = [batch.__array_interface__["data"][0] for batch in held]
    del held
    again = memory.take(500).__array_interface__["data"][0]
    assert again in starts  # memory that is used again
    assert {start % CACHE_LINE for start in starts} == {BEGIN}


def test_threads_do_not_get_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = BatchMemory()
    memory.take(1000)  # a block that both could have
    both = threading.Barrier(2)

    def found(blocks: Sequence[np.ndarray]) -> list[bool]:
        free = idle(blocks)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # for another thread to find the same, if it can
        return free

    monkeypatch.setattr(ahead_module, "idle", found)
    with ThreadPoolExecutor(2) as threads:
        taken = [each.result() for each in [threads.submit(memory.take, 1000) for _ in range(2)]]
    assert not np.shares_memory(*taken)


def test_a_slot_is_free_once_nobody_holds_pixels_of_it() -> None:
    slot = np.frombuffer(memoryview(bytearray(1 << 20)), np.uint8)
    alive = weakref.ref(slot)
    ahead = Ahead(100)
    ahead.add(work(0, 16, 16, slot))
    del slot
    step = ahead.take(nothing)
    assert step is not None and step.last
    kept = step.batch().pixels[3]
    left = step.work.let_go()
    del step
    ahead.take(nothing)
    assert left is not None and left() is alive() is not None
    del kept
    assert left() is None
    ahead.close()
