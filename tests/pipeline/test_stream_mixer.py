"""Shuffled batches hold every window of the chunks once, whatever its size, and no more chunks than the pool has."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import numpy as np
from hypothesis import given, settings

from streamwsi.chunks import MixedBatch
from streamwsi.collecting.ahead import ChunkWork
from streamwsi.dataset import Patient, Slide
from streamwsi.pipeline.stream_mixer import Mixer
from streamwsi.pipeline.stream_order import random_of
from streamwsi.resolution import Resolution
from tests.writing.fabricate import resolved_slide

PATIENT = Patient("p", {"s": "/slide"})


def work(number: int, border: str = "pad", skip: int = 0, several: bool = False) -> ChunkWork:
    """A chunk of a slide of its own, whose pixels say what they are of."""
    resolved = resolved_slide(
        extent=(70 + number, 50), kernel=(16, 16), stride=(12, 16), block=(9, 9), border=border, id=f"s{number}"
    )
    if several:
        resolved = msgspec.structs.replace(resolved, coarser=(Resolution(0, 2.0),))
    chunk = resolved.blank_chunk(0)
    chunk.pixels[...] = np.random.default_rng(number).integers(0, 256, chunk.pixels.shape, np.uint8)
    chunk.skipped[:skip] = True
    return ChunkWork(number, 0, resolved, Slide(Path("/slide"), f"s{number}"), PATIENT, "", chunk)


def feed(mixer: Mixer, works: list[ChunkWork], patience: Callable[[], bool] = lambda: False) -> Callable[[], bool]:
    def more() -> bool:
        if not mixer.wants or patience():
            return False
        if works:
            mixer.add(works.pop(0))
        else:
            mixer.end()
        return True

    return more


def mixed(works: list[ChunkWork], batch_size: int, pool: int, patience: Callable[[], bool] = lambda: False) -> list[MixedBatch]:
    mixer = Mixer(batch_size, pool, random_of(7, 0, 0))
    more = feed(mixer, list(works), patience)
    batches = []
    while not mixer.done:
        batch = mixer.take(more)
        if batch is not None:
            batches.append(batch)
    assert mixer.take(more) is None
    mixer.close()
    return batches


def places(batches: list[MixedBatch]) -> list[tuple[str, int]]:
    return [(small.slide.id, small.window.index) for batch in batches for small in batch]


@settings(max_examples=30)
@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 4), st.sampled_from(["pad", "adaptive"]), st.booleans(), st.data())
def test_each_window_comes_once_with_its_pixels(
    n_chunks: int, batch_size: int, pool: int, border: str, several: bool, data: st.DataObject
) -> None:
    works = [work(number, border, skip=number, several=several) for number in range(n_chunks)]
    batches = mixed(works, batch_size, pool)
    expected = {(each.slide.id, int(i)): each for each in works for i in each.chunk.windows.index[~each.chunk.skipped]}
    assert sorted(places(batches)) == sorted(expected)
    for batch in batches:
        assert batch.pixels.flags.c_contiguous and batch.pixels.flags.writeable and batch.patients == (PATIENT,) * len(batch)
        for small in batch:
            own = expected[small.slide.id, small.window.index].chunk
            np.testing.assert_array_equal(small.pixels, own.pixels_of(own.windows.index.tolist().index(small.window.index)))
    assert places(mixed(works, batch_size, pool, lambda: data.draw(st.booleans()))) == places(batches)


def test_only_the_last_batch_is_short_where_windows_have_one_size() -> None:
    sizes = [len(batch) for batch in mixed([work(number) for number in range(9)], 32, 3)]
    assert set(sizes[:-1]) == {32} and len(sizes) > 5


def test_a_batch_has_windows_of_all_chunks_of_the_pool() -> None:
    batches = mixed([work(number) for number in range(8)], 24, 8)
    assert all(len(set(batch.slides)) >= 4 for batch in batches[:-1])


def test_no_more_chunks_are_held_than_the_pool_has_however_long_a_batch_is_in_filling() -> None:
    mixer = Mixer(10_000, 3, random_of(0, 0, 0))
    alive: list[weakref.ref[np.ndarray]] = []

    def more() -> bool:
        gc.collect()
        if len(alive) == 12:
            mixer.end()
            return True
        # what is drawn is copied in a thread; wait for that, so that what is counted is what is held
        mixer._thread.submit(int).result()
        assert sum(ref() is not None for ref in alive) <= 3
        made = work(len(alive), "adaptive")
        alive.append(weakref.ref(made.chunk.pixels))
        mixer.add(made)
        return True

    batches = 0
    while not mixer.done:
        batches += mixer.take(more) is not None
    mixer.close()
    assert batches > 1
