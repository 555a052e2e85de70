from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamwsi.errors import ConfigError
from streamwsi.geometry import (
    BORDERS,
    Border,
    ChunkGrid,
    Grid,
    Window,
    Windows,
    axis_sizes,
    axis_starts,
    cut_chunks,
)
from tests.helpers import axis_windows, grid_windows

borders = st.sampled_from(BORDERS)
extents = st.integers(1, 5000)
kernels = st.integers(1, 800)
strides = st.integers(1, 1600)


def a_grid(
    extent: tuple[int, int] = (2220, 2967),
    kernel: tuple[int, int] = (256, 256),
    stride: tuple[int, int] = (256, 256),
    border: Border = "pad",
    downsample: float = 1.0,
) -> Grid:
    return Grid(extent, kernel, stride, border, downsample)


# one axis


@pytest.mark.parametrize("border", BORDERS)
def test_windows_of_an_axis_are_those_of_the_table(border):
    for kernel in range(1, 61):
        for stride in range(1, 2 * kernel + 1):
            for extent in range(1, 61):
                starts = axis_starts(extent, kernel, stride, border)
                sizes = axis_sizes(starts, extent, kernel, border)
                found = list(zip(starts.tolist(), sizes.tolist(), strict=True))
                expected = axis_windows(extent, kernel, stride, border)
                assert found == expected, f"S={extent} k={kernel} s={stride}"


@pytest.mark.parametrize(
    ("border", "starts", "sizes"),
    [
        ("pad", [0, 4, 8], [5, 5, 5]),
        ("edge", [0, 4, 6], [5, 5, 5]),
        ("squeeze", [0, 3, 6], [5, 5, 5]),
        ("adaptive", [0, 4, 8], [5, 5, 3]),
        ("crop", [0, 4], [5, 5]),
    ],
)
def test_eleven_pixels_in_windows_of_five_every_four(border, starts, sizes):
    found = axis_starts(11, 5, 4, border)
    assert found.tolist() == starts
    assert axis_sizes(found, 11, 5, border).tolist() == sizes


@pytest.mark.parametrize("border", BORDERS)
def test_a_slide_as_large_as_the_window_has_one(border):
    assert axis_starts(7, 7, 3, border).tolist() == [0]


@pytest.mark.parametrize("border", ["pad", "edge", "squeeze"])
def test_a_slide_smaller_than_the_window_has_one_padded_window(border):
    starts = axis_starts(5, 7, 3, border)
    assert starts.tolist() == [0]
    assert axis_sizes(starts, 5, 7, border).tolist() == [7]


def test_a_slide_smaller_than_the_window_is_cut_by_adaptive_and_left_out_by_crop():
    assert axis_sizes(axis_starts(5, 7, 3, "adaptive"), 5, 7, "adaptive").tolist() == [5]
    assert axis_starts(5, 7, 3, "crop").tolist() == []


@given(extents, kernels, strides, borders)
def test_starts_ascend_without_duplicates_and_lie_on_the_slide(extent, kernel, stride, border):
    starts = axis_starts(extent, kernel, stride, border)
    assert starts.dtype == np.int64
    assert np.all(np.diff(starts) > 0)
    assert np.all((starts >= 0) & (starts < extent))


@given(extents, kernels, strides, st.sampled_from(["pad", "edge", "squeeze", "adaptive"]))
def test_every_pixel_is_covered_where_windows_touch(extent, kernel, stride, border):
    assume(stride <= kernel)
    starts = axis_starts(extent, kernel, stride, border)
    ends = starts + axis_sizes(starts, extent, kernel, border)
    assert starts[0] == 0 and ends[-1] >= extent
    assert np.all(starts[1:] <= ends[:-1])


@given(extents, kernels, strides)
def test_the_last_window_reaches_the_edge_where_the_border_says_so(extent, kernel, stride):
    assume(extent >= kernel)
    for border in ("edge", "squeeze"):
        assert axis_starts(extent, kernel, stride, border)[-1] == extent - kernel
    adaptive = axis_starts(extent, kernel, stride, "adaptive")
    assert adaptive[-1] + axis_sizes(adaptive, extent, kernel, "adaptive")[-1] <= extent


@given(extents, kernels, strides)
def test_squeezed_windows_are_spread_evenly_and_no_further_apart_than_the_stride(extent, kernel, stride):
    assume(extent > kernel)
    starts = axis_starts(extent, kernel, stride, "squeeze")
    gaps = np.diff(starts)
    assert len(starts) == math.ceil((extent - kernel) / stride) + 1
    assert np.ptp(gaps) <= 1
    assert gaps.max() <= stride


@pytest.mark.parametrize(
    ("extent", "kernel", "stride", "named"), [(0, 1, 1, "extent"), (9, 0, 1, "kernel"), (9, 1, -3, "stride")]
)
@pytest.mark.parametrize("border", BORDERS)
def test_sizes_below_one_are_refused_by_name(extent, kernel, stride, named, border):
    with pytest.raises(ConfigError, match=f"{named} must be at least 1 pixel, got {min(extent, kernel, stride)}"):
        axis_starts(extent, kernel, stride, border)


def test_an_unknown_border_is_refused_and_the_known_ones_named():
    with pytest.raises(ConfigError, match="pad, edge, squeeze, adaptive, crop, got 'mirror'"):
        axis_starts(9, 3, 3, "mirror")


# the grid


@given(
    extent=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    kernel=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    stride=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    border=borders,
    downsample=st.floats(1, 200),
)
def test_the_windows_of_a_grid_come_row_by_row(extent, kernel, stride, border, downsample):
    grid = Grid(extent, kernel, stride, border, downsample)
    windows = grid.windows(np.arange(len(grid), dtype=np.int64))
    found = [(w.start_x, w.start_y, w.width, w.height) for w in windows]
    assert found == grid_windows(extent, kernel, stride, border)
    assert len(grid) == math.prod(grid.shape) == len(found)
    assert [w.index for w in windows] == list(range(len(grid)))
    for window in windows:
        assert window.x == math.floor(window.start_x * downsample)
        assert window.y == math.floor(window.start_y * downsample)


def test_windows_can_be_asked_for_in_any_order():
    grid = a_grid()
    windows = grid.windows(np.array([grid.shape[1] + 2, 0], dtype=np.int64))
    assert windows[0] == Window(11, 512, 256, 512, 256, 256, 256)
    assert windows[1] == Window(0, 0, 0, 0, 0, 256, 256)


def test_level_0_coordinates_are_rounded_down():
    grid = a_grid(extent=(179, 128), kernel=(10, 10), stride=(7, 11), downsample=4.013399092178771)
    window = grid.windows(np.array([len(grid) - 1], dtype=np.int64))[0]
    assert (window.start_x, window.start_y) == (175, 121)
    assert (window.x, window.y) == (702, 485)  # 702.34…, 485.62…


def test_a_grid_without_windows_has_none():
    grid = a_grid(extent=(100, 2967), border="crop")
    assert grid.shape == (11, 0) and len(grid) == 0
    assert len(grid.windows(np.empty(0, np.int64))) == 0
    assert len(cut_chunks(grid, 32, 1 << 21)) == 0


def test_a_table_of_windows_gives_the_windows_back():
    grid = a_grid(border="adaptive", downsample=2.5)
    windows = grid.windows(np.arange(len(grid), dtype=np.int64))
    table = windows.table()
    assert table.shape == (len(grid), 8) and table.dtype == np.int64
    assert list(Windows.from_table(table)) == list(windows)


def test_rows_are_taken_from_a_table_of_windows_by_number_and_by_slice():
    windows = a_grid().windows(np.arange(20, dtype=np.int64))
    assert list(windows.take(np.array([3, 1]))) == [windows[3], windows[1]]
    assert list(windows.take(slice(4, 6))) == [windows[4], windows[5]]


# cutting it into chunks


@given(
    shape=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    block=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    band=st.integers(0, 12),
)
def test_chunks_hold_every_window_once(shape, block, band):
    chunks = ChunkGrid(shape, block, band)
    indices = [chunks.indices(chunk) for chunk in range(len(chunks))]
    assert sorted(np.concatenate([np.empty(0, np.int64), *indices]).tolist()) == list(range(math.prod(shape)))
    for chunk, index in enumerate(indices):
        assert 1 <= len(index) == chunks.n_windows(chunk) <= math.prod(block)
        assert np.all(np.diff(index) > 0)
        assert np.all(chunks.chunk_of(index) == chunk)


def test_chunks_are_numbered_row_by_row_within_a_band():
    chunks = ChunkGrid(shape=(2, 5), block=(1, 1), band=2)
    assert [chunks.bounds(chunk)[::2] for chunk in range(10)] == [
        *((0, 0), (0, 1), (1, 0), (1, 1)),
        *((0, 2), (0, 3), (1, 2), (1, 3)),
        *((0, 4), (1, 4)),
    ]


def test_the_windows_of_a_chunk_are_neighbours():
    chunks = ChunkGrid(shape=(5, 7), block=(2, 3))
    assert chunks.indices(4).tolist() == [17, 18, 19, 24, 25, 26]
    assert chunks.bounds(8) == (4, 5, 6, 7)


@given(
    extent=st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)),
    kernel=st.tuples(st.integers(1, 800), st.integers(1, 800)),
    stride=st.tuples(st.integers(64, 1000), st.integers(64, 1000)),
    border=borders,
    batch_size=st.integers(1, 64),
    chunk_px=st.integers(1, 1 << 23),
    resolutions=st.none() | st.integers(1, 4),
)
def test_chunks_keep_to_the_budget_and_are_whole_batches_where_they_can_be(
    extent, kernel, stride, border, batch_size, chunk_px, resolutions
):
    grid = Grid(extent, kernel, stride, border, 1.0)
    assume(len(grid) > 0)
    chunks = cut_chunks(grid, batch_size, chunk_px, resolutions=resolutions)

    def pixels(rows: int, columns: int) -> int:
        region = ((columns - 1) * stride[0] + kernel[0]) * ((rows - 1) * stride[1] + kernel[1])
        packed = rows * columns * kernel[0] * kernel[1]
        return min(region, packed) if resolutions is None else packed * resolutions

    rows, columns = chunks.block
    assert 1 <= rows <= grid.shape[0] and 1 <= columns <= grid.shape[1]
    assert pixels(rows, columns) <= chunk_px or chunks.block == (1, 1)
    if rows * columns % batch_size:
        wholes = [
            (down, batch_size * part // down)
            for part in (1, 2)
            for down in range(1, batch_size * part + 1)
            if batch_size * part % down == 0
        ]
        for down, across in wholes:
            fits = down <= grid.shape[0] and across <= grid.shape[1]
            assert not fits or pixels(down, across) > chunk_px


@given(batch_size=st.integers(1, 64), max_windows=st.integers(1, 500))
def test_chunks_hold_no_more_windows_than_allowed(batch_size, max_windows):
    chunks = cut_chunks(a_grid(stride=(4, 4)), batch_size, 1 << 21, max_windows=max_windows)
    assert 1 <= math.prod(chunks.block) <= max_windows


@pytest.mark.parametrize(("kernel", "stride", "tile"), [(256, 256, 256), (256, 128, 256), (512, 256, 256), (256, 64, 256)])
def test_chunks_are_cut_along_tiles_where_the_stride_allows_it(kernel, stride, tile):
    grid = a_grid(extent=(100_000, 80_000), kernel=(kernel, kernel), stride=(stride, stride))
    chunks = cut_chunks(grid, 16, 1 << 21, (tile, tile))
    assert all(windows * stride % tile == 0 for windows in chunks.block)


@given(
    columns=st.integers(1, 3000),
    kernel=st.integers(1, 600),
    stride=st.integers(1, 600),
    tile=st.sampled_from([16, 240, 256, 1024]),
    cache_px=st.integers(1, 1 << 26),
)
def test_what_a_row_of_chunks_shares_with_the_next_fits_into_the_cache(columns, kernel, stride, tile, cache_px):
    grid = Grid((kernel + (columns - 1) * stride, 50_000), (kernel, kernel), (stride, stride), "crop", 1.0)
    assume(len(grid) > 0)
    chunks = cut_chunks(grid, 32, 1 << 21, (tile, tile), cache_px)
    starts, block = grid.ys, chunks.block[0]
    ends = starts[block - 1 :: block][: len(starts[block::block])] + kernel
    shared = max(((ends - 1) // tile - starts[block::block] // tile + 1).tolist(), default=0)
    band_px = (chunks.band or chunks.chunks_shape[1]) * chunks.block[1] * stride
    assert max(0, shared) * tile * band_px <= cache_px or chunks.band == 1 or chunks.chunks_shape[1] == 1
    assert 0 <= chunks.band < max(2, chunks.chunks_shape[1])


def test_a_window_larger_than_the_budget_is_a_chunk_of_its_own():
    assert cut_chunks(a_grid(), batch_size=32, chunk_px=1000).block == (1, 1)


def test_a_grid_of_millions_of_windows_is_cut_too():
    grid = a_grid(extent=(200_000, 150_000), stride=(32, 32))
    chunks = cut_chunks(grid, batch_size=64, chunk_px=1 << 21)
    assert math.prod(chunks.block) % 64 == 0
    assert math.prod(chunks.block) >= 64
