"""The windows that a sampler has chosen: kept as bytes, cut into chunks."""

from __future__ import annotations

import gc
import math
import weakref

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamwsi.errors import ConfigError
from streamwsi.plan import Sample, cut_sample
from tests.writing.fabricate import labelled_slide

KERNEL = (7, 5)


@st.composite
def samples(draw: st.DrawFn) -> tuple[Sample, np.ndarray, np.ndarray, list[str | None]]:
    starts = draw(st.lists(st.tuples(st.integers(-20, 3000), st.integers(-20, 3000)), max_size=60, unique=True))
    start = np.array(starts, np.int64).reshape(-1, 2)
    names = tuple(draw(st.lists(st.text(min_size=1, max_size=5), max_size=3, unique=True)))
    code = np.array([draw(st.integers(-1, len(names) - 1)) for _ in starts], np.int64)
    chunk = cut_sample(start, KERNEL, draw(st.integers(1, 9)), draw(st.integers(1, 2000)))
    sample = Sample.of(start, chunk, code if names else None, names)
    return sample, start, chunk, [names[number] if number >= 0 else None for number in code.tolist()]


@given(samples())
def test_a_sample_gives_its_windows_back(given_sample):
    sample, start, chunk, labels = given_sample
    sample = msgspec.msgpack.decode(msgspec.msgpack.encode(sample), type=Sample)
    plan = sample.decoded(KERNEL, 2.5)
    windows = plan.windows(np.arange(len(plan)))
    np.testing.assert_array_equal(windows.start, start)
    np.testing.assert_array_equal(windows.xy, np.floor(start * 2.5))
    assert windows.labels == labels and [window.label for window in windows] == labels
    np.testing.assert_array_equal(windows.size, np.tile(KERNEL, (len(start), 1)))
    chunks = plan.chunks()
    np.testing.assert_array_equal(chunks.chunk_of(windows.index), chunk)
    found = [chunks.indices(number) for number in range(len(chunks))]
    assert [len(index) for index in found] == [chunks.n_windows(number) for number in range(len(chunks))]
    assert all(len(index) and np.all(np.diff(index) > 0) for index in found)
    assert sorted(np.concatenate([*found, []]).tolist()) == list(range(len(start)))


@given(samples(), st.data())
def test_a_sample_cut_to_a_chunk_knows_its_windows_and_no_others(given_sample, data):
    sample, *_ = given_sample
    whole = sample.decoded(KERNEL, 1.0)
    if not len(whole):
        return
    number = data.draw(st.integers(0, sample.chunks - 1))
    cut = msgspec.msgpack.decode(msgspec.msgpack.encode(whole.cut_to(number)), type=Sample).decoded(KERNEL, 1.0)
    index = whole.chunks().indices(number)
    assert len(cut) == len(whole) and len(cut.chunks()) == len(whole.chunks())
    np.testing.assert_array_equal(cut.chunks().indices(number), index)
    np.testing.assert_array_equal(cut.windows(index).table(), whole.windows(index).table())
    np.testing.assert_array_equal(cut.chunks().chunk_of(index), number)
    others = np.setdiff1d(np.arange(len(whole)), index)
    if len(others):
        with pytest.raises(ValueError, match=f"not in chunk {number}"):
            cut.windows(others[:1])


@given(
    starts=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 4000)), min_size=1, max_size=200, unique=True),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    batch_size=st.integers(1, 40),
    chunk_px=st.integers(1, 1 << 20),
    tile=st.none() | st.tuples(st.integers(1, 512), st.integers(1, 512)),
    cache_px=st.integers(0, 1 << 22),
    resolutions=st.none() | st.integers(1, 4),
)
def test_every_window_is_in_one_chunk_that_is_not_too_large(starts, size, batch_size, chunk_px, tile, cache_px, resolutions):
    start = np.array(starts, np.int64)
    chunk = cut_sample(start, size, batch_size, chunk_px, tile, cache_px, resolutions)
    window_px = math.prod(size) * (resolutions or 1)
    assert set(chunk.tolist()) == set(range(chunk.max() + 1))
    whole = window_px * batch_size <= chunk_px
    counts = np.bincount(chunk)
    for number, count in enumerate(counts.tolist()):
        own = start[chunk == number]
        region_px = np.prod(own.max(axis=0) + size - own.min(axis=0))
        held_px = count * window_px if resolutions is not None else min(region_px, count * window_px)
        assert count == 1 or held_px <= chunk_px
        if whole and number < len(counts) - 1:
            assert count % batch_size == 0


def test_neighbours_are_in_one_chunk():
    x, y = np.meshgrid(np.arange(0, 8192, 256), np.arange(0, 8192, 256))
    start = np.stack([x.ravel(), y.ravel()], axis=1)
    shuffled = np.random.default_rng(0).permutation(start)
    chunk = cut_sample(shuffled, (256, 256), 16, 1 << 22, (256, 256))
    spans = [np.prod(np.ptp(shuffled[chunk == number], axis=0) + 256) for number in range(chunk.max() + 1)]
    assert np.median(spans) <= 2 * (1 << 22)


def test_overlapping_windows_make_chunks_as_large_as_the_region():
    x, y = np.meshgrid(np.arange(0, 4096, 32), np.arange(0, 4096, 32))
    start = np.stack([x.ravel(), y.ravel()], axis=1)
    chunk = cut_sample(start, (256, 256), 32, 1 << 22, (256, 256))
    assert np.bincount(chunk).max() > 20 * (1 << 22) // 256**2


def test_a_chunk_has_no_more_windows_than_it_may():
    start = np.random.default_rng(0).integers(0, 500, (300, 2))
    assert np.bincount(cut_sample(start, (64, 64), 8, 1 << 22)).max() > 20
    assert np.bincount(cut_sample(start, (64, 64), 8, 1 << 22, max_windows=20)).max() == 16


def test_a_window_too_far_out_is_refused():
    with pytest.raises(ConfigError, match="too far out"):
        Sample.of(np.array([[1 << 31, 0]]), np.zeros(1, np.int64))


def test_damaged_bytes_are_no_sample():
    sample = Sample.of(np.array([[3, 4], [5, 6]]), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="no table"):
        msgspec.structs.replace(sample, table=b"nothing").decoded(KERNEL, 1.0)
    with pytest.raises(ValueError, match="3 windows with 2 places"):
        msgspec.structs.replace(sample, count=3).decoded(KERNEL, 1.0)


def test_the_tables_of_a_slide_s_windows_go_with_it():
    slide = labelled_slide(["a", None])
    tables = weakref.ref(slide.plan())
    assert tables() is slide.plan() and slide.chunks().n_windows(0) == 2
    copied = msgspec.structs.replace(slide)
    del slide
    gc.collect()
    assert tables() is None and len(copied.plan()) == 2
