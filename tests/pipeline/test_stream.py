"""Streams of windows into the user's own process: the right ones, each once, in order, and nothing is left behind."""

from __future__ import annotations

import gc
import itertools
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest

import streamwsi as sw
from streamwsi.pipeline.stream import Pass
from streamwsi.sampling.sampler import Places, Sampler
from streamwsi.sampling.scene import Scene
from tests.helpers import BAD_TILE, grid_windows, level_image, noise_levels, slide_file, write_tiff
from tests.pipeline.conftest import leftovers, workers_of
from tests.pipeline.shared_memory_collectors import lies_in_slot

FINE = {"chunk_px": 1 << 18}
"""Chunks of a few windows, so that there are many."""


def loader_of(dataset: sw.Dataset, kernel: int = 256, stride: int | None = None, **options: Any) -> sw.SlidingWindowLoader:
    return sw.SlidingWindowLoader(dataset, kernel, stride, **options)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> sw.Dataset:
    """Three patients, four slides of noise, of different sizes."""
    folder = tmp_path_factory.mktemp("noisy")
    paths = [
        write_tiff(folder / f"{number}.tif", noise_levels([(300 + 70 * number, 260 + 30 * number)], number))
        for number in range(4)
    ]
    return sw.Dataset(
        [
            sw.Patient("anna", {"a": paths[0]}, {"label": 1}),
            sw.Patient("bert", {"b": paths[1], "c": paths[2]}, {"label": 2}),
            sw.Patient("cara", {"d": paths[3]}, {"label": 3}),
        ]
    )


def keys(batches: Any) -> list[tuple[str, str, int]]:
    return [(small.patient.id, small.slide.id, small.window.index) for batch in batches for small in batch]


def contents(batches: Any) -> list[tuple[str, int, bytes]]:
    return [(small.slide.id, small.window.index, small.pixels.tobytes()) for batch in batches for small in batch]


def planned(dataset: sw.Dataset, kernel: int, stride: int | None = None, border: str = "pad") -> list[tuple[str, str, int]]:
    """What `keys` gives for all windows, in the order of the plan."""
    out = []
    for patient in dataset:
        for slide in patient.slides:
            with openslide.OpenSlide(slide.path) as opened:
                extent = opened.dimensions
            windows = grid_windows(extent, (kernel, kernel), (stride or kernel,) * 2, border)
            out += [(patient.id, slide.id, index) for index in range(len(windows))]
    return out


def check_pixels(batches: Any, kernel: int, stride: int, border: str = "pad") -> int:
    """Compare every window with the slide read whole; returns how many there were."""
    seen: set[tuple[Path, int]] = set()
    images: dict[Path, tuple[np.ndarray, list[tuple[int, int, int, int]]]] = {}
    for small in itertools.chain.from_iterable(batches):
        path = small.slide.path
        if path not in images:
            windows = grid_windows(small.slide.dimensions, (kernel, kernel), (stride, stride), border)
            images[path] = level_image(path, 0, margin=kernel), windows
        image, windows = images[path]
        x, y, width, height = windows[small.window.index]
        expected = image[kernel + y : kernel + y + height, kernel + x : kernel + x + width]
        np.testing.assert_array_equal(small.pixels, expected)
        assert (small.window.x, small.window.y) == (x, y)
        seen.add((small.slide.path, small.window.index))
    return len(seen)


# ---- the right windows


@pytest.mark.parametrize(
    ("kernel", "stride", "border", "options"),
    [
        (64, 64, "pad", {}),
        (100, 60, "adaptive", {"shuffle": 0}),
        (64, 80, "edge", {"transport": "ipc"}),
        (100, 60, "squeeze", {"transport": "tcp"}),
    ],
)
def test_batches_hold_the_pixels_of_their_windows(
    noisy: sw.Dataset, kernel: int, stride: int, border: str, options: dict[str, Any]
) -> None:
    stream = sw.stream(loader_of(noisy, kernel, stride, border=border), batch_size=7, chunk_px=1 << 16, **options)
    n_windows = 0
    for batch in stream:
        assert len(batch) <= 7 and batch.pixels.flags.writeable and batch.pixels.flags.c_contiguous
        assert {patient.id: patient for patient in noisy}[batch.patients[0].id] is batch.patients[0]
        n_windows += check_pixels([batch], kernel, stride, border)
    assert n_windows == len(planned(noisy, kernel, stride, border))
    assert stream.report.windows == n_windows and stream.report.transport == options.get("transport", "shm")


def test_a_real_slide_equals_a_direct_read(bundled: Path) -> None:
    stream = sw.stream(loader_of(sw.Dataset.from_paths([bundled]), 256, 200), chunk_px=1 << 20)
    assert check_pixels(stream, 256, 200) == 11 * 15


def test_slides_of_every_kind_stream(shared_slides: Path) -> None:
    names = ["dicom/bone", "tiff/wsipack_example.tif", "tiff/CMU-0-small.tiff"]
    dataset = sw.Dataset.from_paths([slide_file(shared_slides, name) for name in names])
    assert check_pixels(sw.stream(loader_of(dataset, 300)), 300, 300) == len(planned(dataset, 300))


def test_the_order_is_that_of_the_plan_whoever_reads(noisy: sw.Dataset) -> None:
    for options in ({}, {"loaders": 2, "threads": 3}):
        stream = sw.stream(loader_of(noisy, 64), chunk_px=1 << 16, **options)
        # chunks are blocks of neighbours: windows are in order within each, and chunks are
        found = [(batch.patient.id, batch.slide.id, batch.windows.index.tolist()) for batch in stream]
        if not options:
            first = found
    assert found == first and len(found) >= 10
    assert [patient for patient, _, _ in found] == sorted(patient for patient, _, _ in found)
    assert [slide for _, slide, _ in found] == sorted(slide for _, slide, _ in found)
    assert sorted((patient, slide, index) for patient, slide, indices in found for index in indices) == planned(noisy, 64)


def test_single_windows_know_their_slide_and_patient(noisy: sw.Dataset) -> None:
    windows = list(sw.stream(loader_of(noisy, 64)).windows())
    assert sorted((small.patient.id, small.slide.id, small.window.index) for small in windows) == planned(noisy, 64)
    assert windows[0].patient is noisy[0] and windows[0].slide.level_count == 1


# ---- windows of a sampler


class Drawn(Sampler):
    """Windows anywhere on the slide, with labels that are called otherwise on each slide, by the epoch."""

    carries_labels = True
    margin = 5
    ballast = b""

    def places(self, scene: Scene) -> Places:
        draws = np.random.default_rng([self.epoch, scene.extent[0]])
        start = np.unique(draws.integers(-40, np.array(scene.extent) - 30, (60, 2)), axis=0)
        return Places(draws.permutation(start), draws.integers(-1, 2, len(start)), (scene.slide.id, scene.slide.id * 2))

    def describe(self) -> dict[str, Any]:
        return {"sampler": "Drawn", "epoch": self.epoch}


@pytest.mark.parametrize("options", [{}, {"shuffle": 0, "new_draw": True}], ids=str)
def test_windows_of_a_sampler_come_with_margin_and_labels(noisy: sw.Dataset, options: dict[str, Any]) -> None:
    with sw.stream(sw.WindowLoader(noisy, 48, Drawn()), batch_size=16, chunk_px=1 << 16, **options) as stream:
        for epoch in range(2):
            found = {(small.slide.id, small.window.index): small for batch in stream for small in batch}
            assert len(found) == stream.report.windows == 240
            for patient in noisy:
                for slide in patient.slides:
                    image = level_image(slide.path, 0, margin=100)
                    opened = sw.Slide(slide.path, slide.id)
                    scene = Scene(opened, patient.id, (image.shape[1] - 200, image.shape[0] - 200), 1.0, (48, 48))
                    places = Drawn().at_epoch(epoch if "new_draw" in options else 0).places(scene)
                    for index, ((x, y), code) in enumerate(zip(places.start.tolist(), places.label.tolist(), strict=True)):
                        small = found[slide.id, index]
                        np.testing.assert_array_equal(small.pixels, image[y + 95 : y + 153, x + 95 : x + 153])
                        assert small.window.label == (None if code < 0 else places.names[code]) and small.margin == 5


def test_a_sampler_may_hold_more_than_a_pipe_does(noisy: sw.Dataset) -> None:
    sampler = Drawn()
    sampler.ballast = np.random.default_rng(0).bytes(1 << 20)
    assert len(list(sw.stream(sw.WindowLoader(noisy, 48, sampler)).windows())) == 240


# ---- shuffled


def test_a_shuffle_has_the_same_windows_in_an_order_of_its_own_each_pass(noisy: sw.Dataset) -> None:
    options = {"batch_size": 16, "pool_chunks": 3, "chunk_px": 1 << 16}
    with sw.stream(loader_of(noisy, 48, 40), shuffle=0, **options) as stream:
        first, second = list(stream), list(stream)
        assert keys(first) != keys(second) and sorted(keys(first)) == sorted(keys(second)) == planned(noisy, 48, 40)
        stream.epoch = 0
        assert contents(stream) == contents(first)
    again = sw.stream(loader_of(noisy, 48, 40), shuffle=0, loaders=2, transport="ipc", **options)
    again.epoch = 1
    assert contents(again) == contents(second)
    assert {len(batch) for batch in first[:-1]} == {16}
    assert sum(len({slide.id for slide in batch.slides}) > 1 for batch in first) > len(first) / 2
    assert all(isinstance(batch, sw.MixedBatch) for batch in first)


@pytest.mark.parametrize("shuffle", [None, 3])
def test_shards_have_every_window_once_between_them(noisy: sw.Dataset, shuffle: int | None) -> None:
    options = {"shuffle": shuffle, "chunk_px": 1 << 14}
    shards = [keys(sw.stream(loader_of(noisy, 48), shard=(rank, 2), **options)) for rank in range(2)]
    assert sorted(itertools.chain(*shards)) == planned(noisy, 48)
    assert min(map(len, shards)) > 0


# ---- what the user holds, and how slow it is


@pytest.mark.parametrize(("stride", "shuffle"), [(128, None), (100, None), (128, 0)])
def test_batches_that_are_held_stay_as_they_are(bundled: Path, stride: int, shuffle: int | None) -> None:
    """All of them, which are many more than there is shared memory for; after the stream is gone too."""
    loader = loader_of(sw.Dataset.from_paths([bundled]), 128, stride)
    stream = sw.stream(loader, batch_size=8, shuffle=shuffle, **FINE)
    held = list(stream)
    copies = [batch.pixels.copy() for batch in held]
    del stream
    gc.collect()
    assert len(held) > 40
    for batch, copy in zip(held, copies, strict=True):
        np.testing.assert_array_equal(batch.pixels, copy)
    assert check_pixels(held, 128, stride) == sum(map(len, held))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="looks at shared memory as Linux shows it")
def test_pixels_lie_in_shared_memory_while_there_is_some(bundled: Path) -> None:
    stream = sw.stream(loader_of(sw.Dataset.from_paths([bundled]), 128, 150), batch_size=8, threads=1, **FINE)
    assert all(lies_in_slot(batch.pixels) for batch in stream)
    in_slot = [lies_in_slot(batch.pixels) for batch in list(stream)]
    assert 3 <= sum(in_slot) < len(in_slot) / 2  # where all are held, the others come through a socket


def test_a_slow_user_slows_the_loader(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamwsi.pipeline.stream_crew import Crew

    ordered, read = [], Crew.read
    monkeypatch.setattr(Crew, "read", lambda crew, *args: (ordered.append(args), read(crew, *args)))
    chunks_ahead = 3
    stream = iter(sw.stream(loader_of(sw.Dataset.from_paths([bundled]), 128), chunks_ahead=chunks_ahead, **FINE))
    taken = {(batch.windows.index[0]) for batch in itertools.islice(stream, 5)}
    assert len(ordered) <= len(taken) + 1 + chunks_ahead  # the next is being cut already
    stream.close()


# ---- ends


@pytest.mark.parametrize("shuffle", [None, 0])
def test_threads_that_take_from_one_pass_have_every_window_once_between_them(noisy: sw.Dataset, shuffle: int | None) -> None:
    stream = sw.stream(loader_of(noisy, 48), shuffle=shuffle, chunk_px=1 << 14, batch_size=2)
    begun = iter(stream)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: keys(begun), range(4)))
    assert sorted(itertools.chain(*found)) == planned(noisy, 48)
    assert stream.report.windows == sum(map(len, found))


def stuck(stream: sw.Stream) -> Pass:
    """A pass whose loaders stand still: nothing more will come than is there."""
    begun = iter(stream)
    next(begun)
    for worker in workers_of(os.getpid(), "loader"):
        os.kill(worker.pid, signal.SIGSTOP)
    return begun


def test_a_signals_handler_may_close_a_stream_that_is_looking_for_a_batch(in_the_middle: Callable[..., sw.Stream]) -> None:
    before = leftovers()
    stream = in_the_middle(loaders=1)
    begun = stuck(stream)
    asked: list[str] = []

    def close(number: int, frame: object) -> None:
        if begun._inside is not None:
            with pytest.raises(sw.RunError, match="asked for a batch, by a signal's handler"):
                next(begun)
            asked.append("yes")
            stream.close()

    usual = signal.signal(signal.SIGALRM, close)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        with pytest.raises(sw.RunError, match="this pass was closed before it was through"):
            deque(begun)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    assert asked and leftovers() == before


def test_a_pass_can_be_closed_while_another_thread_waits_for_its_next_batch(in_the_middle: Callable[..., sw.Stream]) -> None:
    before = leftovers()
    stream = in_the_middle(loaders=1)
    begun = stuck(stream)
    waiting = threading.Event()

    def take() -> None:
        waiting.set()
        deque(begun)

    with ThreadPoolExecutor(1) as thread:
        taking = thread.submit(take)
        assert waiting.wait(30)
        stream.close()
        with pytest.raises(sw.RunError, match="this pass was closed before it was through"):
            taking.result(30)
    assert leftovers() == before


@pytest.fixture
def in_the_middle(bundled: Path) -> Callable[..., sw.Stream]:
    """Makes a stream that is long enough to be left before its end."""

    def make(**options: Any) -> sw.Stream:
        return sw.stream(loader_of(sw.Dataset.from_paths([bundled]), 64), **{**FINE, **options})

    return make


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_leaving_the_loop_leaves_nothing(in_the_middle: Callable[..., sw.Stream]) -> None:
    before, open_before = leftovers(), descriptors()
    for _batch in in_the_middle(loaders=2):
        assert len(leftovers() - before) == 3  # two loaders and the folder of the sockets
        break
    assert leftovers() == before
    del _batch
    assert descriptors() == open_before


def test_an_exception_in_the_loop_leaves_nothing(in_the_middle: Callable[..., sw.Stream]) -> None:
    before = leftovers()

    def loop() -> None:
        for batch in in_the_middle(shuffle=0):
            len(batch) / 0

    with pytest.raises(ZeroDivisionError):
        loop()
    assert leftovers() == before


def test_a_pass_that_is_forgotten_leaves_nothing(in_the_middle: Callable[..., sw.Stream]) -> None:
    before = leftovers()
    begun = iter(in_the_middle())
    next(begun)
    assert leftovers() != before
    del begun
    assert leftovers() == before


def test_closing_ends_all_passes_and_may_be_done_twice(in_the_middle: Callable[..., sw.Stream]) -> None:
    before = leftovers()
    stream = in_the_middle()
    one, two = iter(stream), iter(stream)
    assert keys([next(one)]) == keys([next(two)])
    stream.close()
    stream.close()
    assert leftovers() == before
    with pytest.raises(sw.RunError, match="closed before it was through"):
        next(one)
    one.close()
    assert len(keys(stream)) == 35 * 47  # it can be used again


def test_in_a_with_block_processes_are_kept_from_pass_to_pass(
    in_the_middle: Callable[..., sw.Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = leftovers()
    with in_the_middle() as stream:
        pids, passes = set(), []
        for _ in range(3):
            passes.append(contents(stream))
            pids |= {worker.pid for worker in workers_of(os.getpid(), "loader")}
        assert passes[0] == passes[1] == passes[2] and len(passes[0]) == 35 * 47 and len(pids) == 1
        for _ in stream:
            break  # one that is not through is ended
        assert leftovers() == before
        assert contents(stream) == passes[0]
        assert leftovers() != before
    assert leftovers() == before


def test_a_pass_that_is_through_stays_through(in_the_middle: Callable[..., sw.Stream]) -> None:
    begun = iter(in_the_middle())
    assert sum(len(batch) for batch in begun) == 35 * 47
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(begun)


SCRIPT = """
import os, signal, sys, time
import streamwsi as sw
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in a shell's background
dataset = sw.Dataset.from_paths([sys.argv[1]])
stream = sw.stream(sw.SlidingWindowLoader(dataset, 64), chunk_px=1 << 18)
begun = iter(stream)
next(begun)
print("going", flush=True)
"""


def script(bundled: Path, folder: Path, code: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + textwrap.dedent(code), str(bundled)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )


@pytest.mark.parametrize(
    ("number", "code", "expected"),
    [
        (signal.SIGINT, "for batch in begun: time.sleep(0.05)", -signal.SIGINT),
        (signal.SIGINT, "while True: time.sleep(0.05)", -signal.SIGINT),
        (signal.SIGKILL, "while True: time.sleep(0.05)", -signal.SIGKILL),
        (None, "", 0),
    ],
    ids=["Ctrl-C in a pass", "Ctrl-C beside a pass", "kill -9", "the end of the script"],
)
def test_the_end_of_the_users_process_leaves_nothing(
    bundled: Path, tmp_path: Path, number: signal.Signals | None, code: str, expected: int
) -> None:
    process = script(bundled, tmp_path / "t", code)
    try:
        assert process.stdout is not None and process.stdout.readline() == "going\n", process.communicate()[1]
        loaders = workers_of(process.pid, "loader") if number is not None else []
        if number is not None:
            assert loaders
            process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()  # where it did not end, it must not outlive the test
    assert process.returncode == expected, errors
    until = time.monotonic() + 10
    while any(loader.is_running() for loader in loaders) or list((tmp_path / "t").glob("streamwsi-*")):
        assert time.monotonic() < until, "something is left"
        time.sleep(0.02)
    assert "Traceback" not in errors or "KeyboardInterrupt" in errors


# ---- what goes wrong


@pytest.fixture
def with_missing(noisy: sw.Dataset, tmp_path: Path) -> sw.Dataset:
    return sw.Dataset([noisy[0], sw.Patient("nobody", {"gone": tmp_path / "gone.svs"}), noisy[1]])


@pytest.mark.parametrize("shuffle", [None, 0])
def test_a_slide_that_cannot_be_opened_is_an_error_that_names_it(with_missing: sw.Dataset, shuffle: int | None) -> None:
    before, found = leftovers(), []
    with pytest.raises(sw.SlideError, match=r"slide 'gone' of patient 'nobody'.*gone\.svs"):
        found.extend(sw.stream(loader_of(with_missing, 64), shuffle=shuffle, **FINE))
    assert leftovers() == before
    if shuffle is None:  # when its turn comes
        assert {patient for patient, _, _ in keys(found)} == {"anna"} and len(keys(found)) == 5 * 5


@pytest.mark.parametrize("shuffle", [None, 0])
def test_a_slide_that_cannot_be_opened_can_be_left_out(with_missing: sw.Dataset, shuffle: int | None) -> None:
    stream = sw.stream(loader_of(with_missing, 64), shuffle=shuffle, on_bad_slide="skip", **FINE)
    with pytest.warns(RuntimeWarning, match="slide 'gone' of patient 'nobody'"):
        found = keys(stream)
    assert sorted(found) == planned(sw.Dataset([with_missing[0], with_missing[2]]), 64)
    (bad,) = stream.report.bad_slides
    assert (bad.patient, bad.slide) == ("nobody", "gone") and "gone.svs" in bad.reason


def damaged(shared_slides: Path, bundled: Path) -> sw.Dataset:
    bad = shared_slides / BAD_TILE[0]
    return sw.Dataset([sw.Patient("bad", {"s": bad}), sw.Patient("good", {"s": bundled})])


def test_a_slide_of_which_something_cannot_be_read_fails_there(shared_slides: Path, bundled: Path) -> None:
    dataset = damaged(shared_slides, bundled)
    found = []
    with pytest.raises(sw.SlideError, match=r"slide 's' of patient 'bad'.*CMU-1-badtile67"):
        found.extend(sw.stream(loader_of(dataset, 240), chunk_px=1 << 18))
    assert 0 < len(keys(found)) < 10 * 13
    stream = sw.stream(loader_of(dataset, 240), chunk_px=1 << 18, on_bad_slide="skip", loaders=2)
    with pytest.warns(RuntimeWarning, match="CMU-1-badtile67"):
        batches = list(stream)
    assert keys(batches)[: len(keys(found))] == keys(found)
    assert [patient for patient, _, _ in keys(batches)].count("good") == 10 * 13
    assert len(keys(batches)) == len(keys(found)) + 10 * 13


@pytest.mark.parametrize("options", [{"shuffle": 0}, {"transport": "ipc"}], ids=str)
def test_windows_that_cannot_be_read_are_left_out(shared_slides: Path, bundled: Path, options: dict[str, Any]) -> None:
    dataset = sw.Dataset([damaged(shared_slides, bundled)[0]])
    stream = sw.stream(loader_of(dataset, 240, 120, on_bad_region="skip"), chunk_px=1 << 20, **options)
    indices = {index for _, _, index in keys(stream)}
    x, y, width, height = BAD_TILE[1]
    whole = grid_windows((2220, 2967), (240, 240), (120, 120), "pad")
    touch = {
        index
        for index, (left, top, _, _) in enumerate(whole)
        if left < x + width and left + 240 > x and top < y + height and top + 240 > y
    }
    assert indices == set(range(len(whole))) - touch
    assert stream.report.skipped == len(touch) == 9 and stream.report.windows == len(indices)


def test_a_level_callable_that_raises_ends_the_pass(noisy: sw.Dataset) -> None:
    def level(slide: sw.Slide) -> int:
        raise LookupError(f"no level for {slide.id}")

    with pytest.raises(sw.CollectorError, match="no level for"):
        list(sw.stream(loader_of(noisy, 64, level=level)))
    assert len(keys(sw.stream(loader_of(noisy, 64, level=lambda slide: 0)))) > 100


@pytest.mark.parametrize(
    ("stride", "options"), [(64, {}), (64, {"shuffle": 5}), (48, {"loaders": 2, "transport": "ipc"})], ids=str
)
def test_a_loader_that_is_killed_is_replaced_and_nothing_is_lost_or_doubled(
    bundled: Path, stride: int, options: dict[str, Any]
) -> None:
    dataset = sw.Dataset.from_paths([bundled])
    stream = sw.stream(loader_of(dataset, 64, stride), chunk_px=1 << 17, max_restarts=4, **options)
    found = []
    for number, batch in enumerate(stream):
        found.append(batch)
        if number in (3, 12):
            for worker in workers_of(os.getpid(), "loader"):
                worker.kill()
    assert sorted(keys(found)) == planned(dataset, 64, stride)
    assert check_pixels(found, 64, stride) == len(keys(found))
    assert stream.report.restarts == 2 * options.get("loaders", 1)


def test_loaders_that_die_too_often_end_the_pass(bundled: Path) -> None:
    before = leftovers()
    stream = sw.stream(loader_of(sw.Dataset.from_paths([bundled]), 64), chunk_px=1 << 17, max_restarts=1)

    def kill_all_the_time() -> None:
        for _ in stream:
            for worker in workers_of(os.getpid(), "loader"):
                worker.kill()

    with pytest.raises(sw.WorkerDied, match=r"loader 0 .*SIGKILL; 1 loaders were replaced already \(max_restarts\)"):
        kill_all_the_time()
    assert leftovers() == before


def test_without_shared_memory_it_says_so_and_uses_sockets(noisy: sw.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamwsi.wire.shared_memory.free_memory_bytes", lambda: 1 << 20)
    stream = sw.stream(loader_of(noisy, 64))
    with pytest.warns(RuntimeWarning, match="no shared memory: .*pixels go through ipc sockets"):
        assert check_pixels(stream, 64, 64) > 100
    assert stream.report.transport == "ipc"


# ---- forks, pickles


def in_a_fork(work: Callable[[], bool]) -> int:
    """The exit code of a child that was forked from this process: 0 where `work` returns true."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads; that is what is tested
        pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # it ends, whatever happens in it
        try:
            os._exit(0 if work() else 3)
        finally:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_process_has_passes_of_its_own_and_leaves_others_alone(noisy: sw.Dataset) -> None:
    stream = sw.stream(loader_of(noisy, 64), **FINE)
    begun = iter(stream)
    found = [next(begun)]
    expected = len(planned(noisy, 64))

    def passes() -> bool:
        return len(keys(stream)) == expected

    def goes_on() -> bool:
        with pytest.raises(sw.RunError, match="belongs to the process that began it"):
            next(begun)
        stream.close()
        return True

    assert in_a_fork(passes) == 0
    assert in_a_fork(goes_on) == 0
    assert len(keys(itertools.chain(found, begun))) == expected


def test_a_stream_can_be_pickled(noisy: sw.Dataset) -> None:
    with sw.stream(loader_of(noisy, 64), shuffle=0) as stream:
        expected = keys(stream)
        again = pickle.loads(pickle.dumps(stream))
        assert keys(stream) != expected
    again.epoch -= 1
    assert keys(again) == expected


# ---- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"shuffle": True}, "shuffle must be None or a seed"),
        ({"shuffle": -1}, "shuffle must be None or a seed"),
        ({"shard": (2, 2)}, r"shard must be \(rank, world\)"),
        ({"shard": (True, 2)}, r"shard must be \(rank, world\)"),
        ({"new_draw": "no"}, "new_draw must be one of False, True, got 'no'"),
        ({"shard": 2}, r"shard must be \(rank, world\)"),
        ({"on_bad_slide": "ignore"}, "on_bad_slide must be one of"),
        ({"transport": "pigeon"}, "transport must be one of"),
        ({"pool_chunks": 0}, "pool_chunks must be at least 1"),
        ({"loaders": 1.5}, "loaders must be an int"),
        ({"tile_cache_mb": 1e30}, "tile_cache_mb must be at most 1000000000"),
        ({"max_restarts": float("inf")}, "max_restarts must be an int, got inf"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_starts(
    noisy: sw.Dataset, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(sw.ConfigError, match=words):
        sw.stream(loader_of(noisy, 64), **options)


def test_a_dataset_is_no_loader(noisy: sw.Dataset) -> None:
    with pytest.raises(sw.ConfigError, match="loader must be a WindowLoader, got Dataset"):
        sw.stream(noisy)  # type: ignore[arg-type]


def test_an_empty_plan_has_no_batches(noisy: sw.Dataset) -> None:
    for shuffle in (None, 0):
        assert list(sw.stream(loader_of(noisy, 5000, border="crop"), shuffle=shuffle)) == []
