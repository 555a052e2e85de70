from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamwsi.chunks import Batch, BigChunk
from streamwsi.dataset import Patient
from streamwsi.errors import ChunkError
from streamwsi.geometry import BORDERS, Border, Grid


def big_chunk(
    extent: tuple[int, int] = (40, 30),
    kernel: tuple[int, int] = (9, 7),
    stride: tuple[int, int] = (5, 4),
    border: Border = "adaptive",
    packed: bool = False,
    skipped: tuple[int, ...] = (),
    seed: int = 0,
) -> BigChunk:
    """All windows of a small level of noise, as one region that begins at (3, 2), or packed."""
    grid = Grid((extent[0], extent[1]), kernel, stride, border, 1.0)
    windows = grid.windows(np.arange(len(grid), dtype=np.int64))
    corner_x, corner_y = 3, 2
    windows.start[...] += (corner_x, corner_y)
    flags = np.isin(np.arange(len(windows)), skipped)
    width, height = ((windows.start + windows.size).max(axis=0) - (corner_x, corner_y)).tolist()
    region = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    as_region = BigChunk(windows, region, (corner_x, corner_y), flags)
    if not packed:
        return as_region
    pixels = np.zeros((len(windows), kernel[1], kernel[0], 3), np.uint8)
    for row, window in enumerate(windows):
        pixels[row, : window.height, : window.width] = as_region.pixels_of(row)
    return BigChunk(windows, pixels, None, flags)


def of_several(**options) -> BigChunk:
    """The same packed chunk at three resolutions, of which the others are as noisy."""
    packed = big_chunk(packed=True, **options)
    others = np.random.default_rng(1).integers(0, 256, (len(packed.windows), 2, *packed.pixels.shape[1:]), np.uint8)
    return BigChunk(packed.windows, np.concatenate([packed.pixels[:, None], others], axis=1), None, packed.skipped)


@given(st.sampled_from(["pad", "adaptive"]), st.lists(st.integers(0, 40)).map(tuple), st.integers(1, 20))
def test_windows_of_several_resolutions_are_cut_and_stacked_with_all_of_them(border, skipped, batch_size):
    chunk, finest = (make(border=border, skipped=skipped) for make in (of_several, lambda **o: big_chunk(packed=True, **o)))
    for small, one in zip(chunk.small_chunks(), finest.small_chunks(), strict=True):
        assert small.pixels.shape == (3, small.window.height, small.window.width, 3)
        np.testing.assert_array_equal(small.pixels[0], one.pixels)
    for rows in chunk.batch_rows(batch_size):
        width, height = chunk.windows.size[rows[0]].tolist()
        stacked = chunk.stack(rows)
        assert stacked.shape == (len(rows), 3, height, width, 3) and stacked.flags.c_contiguous
        np.testing.assert_array_equal(stacked, chunk.pixels[rows, :, :height, :width])
        view = chunk.as_stacked(rows)
        assert view is None or (np.shares_memory(view, chunk.pixels) and np.array_equal(view, stacked))
        batch = Batch(stacked, chunk.windows.take(rows), None, None)
        np.testing.assert_array_equal(batch.finest, finest.stack(rows))
        assert all(np.array_equal(small.pixels, pixels) for small, pixels in zip(batch, stacked, strict=True))


chunks = st.builds(
    big_chunk,
    extent=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    border=st.sampled_from([border for border in BORDERS if border != "crop"]),
    packed=st.booleans(),
    skipped=st.lists(st.integers(0, 60)).map(tuple),
)
batch_sizes = st.integers(1, 20)


@given(chunks, batch_sizes)
def test_every_readable_window_is_in_one_batch(chunk, batch_size):
    rows = [row for batch in chunk.batch_rows(batch_size) for row in batch.tolist()]
    assert sorted(rows) == np.flatnonzero(~chunk.skipped).tolist()


@given(chunks, batch_sizes)
def test_a_batch_holds_windows_of_one_size_in_order_and_not_too_many(chunk, batch_size):
    for rows in chunk.batch_rows(batch_size):
        assert 1 <= len(rows) <= batch_size
        assert np.all(np.diff(rows) > 0)
        assert len(np.unique(chunk.windows.size[rows], axis=0)) == 1


@given(chunks, batch_sizes)
def test_only_the_last_batch_of_a_size_is_short(chunk, batch_size):
    lengths: dict[tuple[int, ...], list[int]] = {}
    for rows in chunk.batch_rows(batch_size):
        lengths.setdefault(tuple(chunk.windows.size[rows[0]].tolist()), []).append(len(rows))
    for of_one_size in lengths.values():
        assert all(length == batch_size for length in of_one_size[:-1])


@given(chunks, batch_sizes)
def test_a_chunk_is_cut_the_same_way_again(chunk, batch_size):
    again = BigChunk(chunk.windows, np.zeros_like(chunk.pixels), chunk.origin, chunk.skipped.copy())
    first, second = ([rows.tolist() for rows in it.batch_rows(batch_size)] for it in (chunk, again))
    assert first == second


def test_windows_of_full_size_come_before_those_cut_at_the_edge():
    chunk = big_chunk(border="adaptive")
    sizes = [tuple(chunk.windows.size[rows[0]].tolist()) for rows in chunk.batch_rows(1000)]
    assert sizes[0] == (9, 7)
    assert sorted(sizes[1:]) == [(5, 6), (5, 7), (9, 6)]


def test_a_chunk_of_which_nothing_could_be_read_has_no_batch():
    chunk = big_chunk(skipped=tuple(range(200)))
    assert list(chunk.batch_rows(4)) == []
    assert list(chunk.small_chunks()) == []


@given(chunks, batch_sizes)
def test_a_stack_holds_the_pixels_of_its_windows(chunk, batch_size):
    for rows in chunk.batch_rows(batch_size):
        stacked = chunk.stack(rows)
        assert stacked.flags.c_contiguous and stacked.dtype == np.uint8
        for pixels, row in zip(stacked, rows.tolist(), strict=True):
            np.testing.assert_array_equal(pixels, chunk.pixels_of(row), strict=True)


def test_rows_that_do_not_follow_each_other_are_stacked_in_the_order_asked_for():
    chunk = big_chunk(border="pad", packed=True)
    stacked = chunk.stack(np.array([4, 1, 2]))
    np.testing.assert_array_equal(stacked, chunk.pixels[[4, 1, 2]])


@pytest.mark.parametrize("border", BORDERS)
def test_packed_windows_equal_those_of_a_region(border):
    region, packed = big_chunk(border=border), big_chunk(border=border, packed=True)
    assert region.origin is not None and packed.origin is None
    for one, other in zip(region.small_chunks(), packed.small_chunks(), strict=True):
        assert one.window == other.window
        np.testing.assert_array_equal(one.pixels, other.pixels, strict=True)


def test_the_pixels_of_a_window_are_cut_from_where_it_lies_without_copying():
    chunk = big_chunk()
    window = chunk.windows[9]
    x, y = window.start_x - 3, window.start_y - 2
    np.testing.assert_array_equal(chunk.pixels_of(9), chunk.pixels[y : y + window.height, x : x + window.width])
    assert all(np.shares_memory(small.pixels, chunk.pixels) for small in chunk.small_chunks())


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_pixels_of_all_windows_are_those_of_each(border, packed):
    chunk = big_chunk(border=border, packed=packed)
    for row, pixels in enumerate(chunk.pixels_of_all()):
        np.testing.assert_array_equal(pixels, chunk.pixels_of(row), strict=True)
        assert np.shares_memory(pixels, chunk.pixels)


def test_small_chunks_leave_out_what_could_not_be_read():
    chunk = big_chunk(skipped=(0, 5))
    indices = [small.window.index for small in chunk.small_chunks()]
    assert indices == [index for index in range(len(chunk.windows)) if index not in (0, 5)]


@pytest.mark.parametrize(
    ("shape", "origin", "flags"),
    [((10, 10, 3), None, 2), ((2, 10, 10, 3), (0, 0), 2), ((10, 10, 4), (0, 0), 2), ((10, 10, 3), (0, 0), 1)],
    ids=["region without a place", "packed with a place", "four channels", "too few flags"],
)
def test_a_big_chunk_that_does_not_fit_together_is_refused(shape, origin, flags):
    windows = big_chunk().windows.take(slice(0, 2))
    with pytest.raises(ChunkError, match="of 2 windows must have"):
        BigChunk(windows, np.zeros(shape, np.uint8), origin, np.zeros(flags, bool))


def test_a_batch_gives_its_windows_one_by_one():
    chunk = big_chunk(border="pad")
    patient = Patient("p1", {"H&E": "a.svs"})
    rows = next(iter(chunk.batch_rows(4)))
    batch = Batch(chunk.stack(rows), chunk.windows.take(rows), patient.slides[0], patient)
    assert len(batch) == 4
    for small, row in zip(batch, rows.tolist(), strict=True):
        assert small.window == chunk.windows[row]
        np.testing.assert_array_equal(small.pixels, chunk.pixels_of(row))
