from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamwsi.chunks import Status
from streamwsi.errors import MapError
from streamwsi.geometry import BORDERS, Border, Grid
from streamwsi.maps import raster
from streamwsi.maps.pieces import read_pieces, stream
from streamwsi.maps.raster import halved, place, rasterize, read_map
from tests.helpers import grid_windows
from tests.writing.fabricate import numbers, resolved_slide, write_patient


def pixel_by_pixel(grid: Grid, index: np.ndarray, values: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    """The map by its definition: every pixel sums the windows that cover it, every cell its pixels."""
    width, height = grid.extent
    sums, counts = np.zeros((height, width, values.shape[1])), np.zeros((height, width, 1))
    windows = grid_windows(grid.extent, grid.kernel, grid.stride, grid.border)
    for number, value in zip(index.tolist(), values, strict=True):
        x, y, w, h = windows[number]
        sums[y : y + h, x : x + w] += value
        counts[y : y + h, x : x + w] += 1
    rows, columns = -(-height // cell[1]), -(-width // cell[0])
    cells = np.empty((rows, columns, values.shape[1]))
    for row in range(rows):
        for column in range(columns):
            part = np.s_[row * cell[1] : (row + 1) * cell[1], column * cell[0] : (column + 1) * cell[0]]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                cells[row, column] = sums[part].sum(axis=(0, 1)) / counts[part].sum()
    return cells


pairs = st.tuples(st.integers(1, 25), st.integers(1, 25))


@pytest.mark.parametrize("border", BORDERS)
@given(
    extent=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kernel=pairs,
    stride=pairs,
    coarser=st.integers(1, 3),
    data=st.data(),
)
@example(extent=(40, 33), kernel=(25, 24), stride=(1, 2), coarser=1, data=None)  # hundreds of windows over a cell
@example(extent=(40, 33), kernel=(3, 2), stride=(25, 20), coarser=1, data=None)  # gaps between the windows
def test_every_cell_is_the_mean_of_its_pixels(
    border: Border, extent: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], coarser: int, data: Any
) -> None:
    grid = Grid(extent, kernel, stride, border, 1.0)
    random = np.random.default_rng(0 if data is None else data.draw(st.integers(0, 1 << 30)))
    chosen = (
        np.ones(len(grid), bool) if data is None else random.random(len(grid)) < data.draw(st.sampled_from([0, 0.3, 0.9, 1]))
    )
    index = np.flatnonzero(chosen)
    values = random.normal(size=(len(index), 2))
    if len(index) and data is not None and data.draw(st.booleans()):
        values[random.integers(len(index)), 1] = random.choice([np.nan, np.inf, -np.inf])
    cell = (stride[0] * coarser, stride[1] * coarser)
    np.testing.assert_allclose(
        rasterize(grid, index, values, cell), pixel_by_pixel(grid, index, values, cell), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("border", BORDERS)
@given(
    extent=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    kernel=pairs,
    stride=pairs,
    constant=st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
)
def test_a_constant_comes_back_as_that_constant(
    border: Border, extent: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], constant: float
) -> None:
    grid = Grid(extent, kernel, stride, border, 1.0)
    cells = rasterize(grid, np.arange(len(grid)), np.full((len(grid), 1), constant), stride)
    covered = ~np.isnan(cells)
    if border in ("pad", "edge", "squeeze", "adaptive") and kernel[0] >= stride[0] and kernel[1] >= stride[1]:
        assert covered.all()
    if abs(constant) > 1e-290 or constant == 0:
        np.testing.assert_allclose(cells[covered], constant, rtol=1e-12)


def test_a_constant_survives_very_many_overlaps() -> None:
    grid = Grid((200, 150), (64, 64), (1, 1), "pad", 1.0)
    cells = rasterize(grid, np.arange(len(grid)), np.full((len(grid), 1), 0.1), (1, 1))
    np.testing.assert_allclose(cells, 0.1, rtol=1e-12)


def test_the_largest_numbers_do_not_overflow() -> None:
    grid = Grid((1000, 1000), (256, 256), (64, 64), "pad", 1.0)
    largest = np.finfo(np.float64).max
    cells = rasterize(grid, np.arange(len(grid)), np.full((len(grid), 1), -largest), (64, 64))
    np.testing.assert_allclose(cells, -largest, rtol=1e-12)


def test_a_window_without_a_number_spoils_the_cells_that_it_touches_and_no_other() -> None:
    grid = Grid((100, 100), (20, 20), (10, 10), "crop", 1.0)
    values = np.ones((len(grid), 1))
    values[0] = np.nan
    cells = rasterize(grid, np.arange(len(grid)), values, (10, 10))[..., 0]
    np.testing.assert_array_equal(np.isnan(cells[:2, :2]), True)
    assert np.isnan(cells).sum() == 4
    np.testing.assert_array_equal(cells[~np.isnan(cells)], 1)


def test_many_channels_are_the_same_as_one_at_a_time() -> None:
    grid = Grid((90, 70), (20, 20), (13, 11), "edge", 1.0)
    values = np.random.default_rng(0).normal(size=(len(grid), 37))
    cells = rasterize(grid, np.arange(len(grid)), values, (13, 11))
    for channel in range(37):
        alone = rasterize(grid, np.arange(len(grid)), values[:, channel : channel + 1], (13, 11))
        np.testing.assert_array_equal(cells[..., channel : channel + 1], alone)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("kernel", [(9, 20), (3, 2)], ids=str)
def test_windows_may_come_in_parts_of_any_size(
    border: Border, kernel: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Grid((90, 70), kernel, (5, 4), border, 1.0)
    random = np.random.default_rng(1)
    index = np.flatnonzero(random.random(len(grid)) < 0.8)
    values = random.normal(size=(len(index), 2))
    values[5, 0] = np.nan
    whole = rasterize(grid, index, values, (10, 8))
    for windows_at_once, cuts in ((1, 1), (40, 3), (1 << 20, 7)):
        monkeypatch.setattr(raster, "_WINDOWS_AT_ONCE", windows_at_once)
        sums = raster._Sums(grid, (10, 8), 2)
        for part in np.array_split(np.arange(len(index)), cuts):
            sums.add(index[part], values[part])
        np.testing.assert_allclose(sums.means(), whole, rtol=1e-12)


# ---- from files


@pytest.mark.parametrize("format", ["csv", "hdf5"])
def test_a_file_read_in_parts_makes_the_same_map(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = resolved_slide(kernel=(20, 20), stride=(9, 7), border="edge")
    values = np.random.default_rng(0).normal(size=(len(slide.grid()), 3)).astype(np.float32)
    path = write_patient(tmp_path, [slide], [values], format=format)
    monkeypatch.setattr("streamwsi.maps.pieces._ROWS_AT_ONCE", 11)
    for coarser in (1, 2):
        whole = place(read_pieces(path), coarser)
        parts = place(stream(path, None, None, "value_1"), coarser)
        np.testing.assert_allclose(parts.values[..., 0], whole.values[..., 1], rtol=1e-12)
        assert parts.columns == ("value_1",)


def test_halved_cells_are_means_of_those_that_have_a_value(tmp_path: Path) -> None:
    status = np.zeros(35, np.uint8)
    status[[0, 1, 8]] = Status.NONE
    status[[5, 6, 12, 13]] = Status.NONE  # with the edge of the slide, all of a cell
    found = read_map(write_patient(tmp_path, [resolved_slide()], [np.arange(35.0)], [status]))
    half = halved(found)
    assert half.values.shape == (3, 4, 1)
    assert half.values[0, 0, 0] == 7  # of 0, 1, 7 and 8 alone
    assert half.values[1, 0, 0] == (14 + 15 + 21 + 22) / 4
    assert np.isnan(half.values[0, 3, 0])
    assert half.values[2, 0, 0] == (28 + 29) / 2
    np.testing.assert_array_equal(half.x_edges, [0, 32, 64, 96, 100])
    np.testing.assert_array_equal(half.y_edges, [0, 32, 64, 80])


@pytest.mark.parametrize("format", ["csv", "hdf5"])
def test_a_map_lies_on_the_slide(tmp_path: Path, format: str) -> None:
    slide = resolved_slide(
        kernel=(20, 20), stride=(30, 20), downsample=4.0058
    )  # 100 × 80 pixels at the level, 401 × 320 at level 0
    n = len(slide.grid())
    status = np.zeros(n, np.uint8)
    status[1] = Status.SKIPPED
    values = np.arange(n * 4, dtype=np.int16).reshape(n, 2, 2)
    found = read_map(write_patient(tmp_path, [slide], [values], [status], format=format))
    assert found.values.shape == (4, 4, 4)
    assert found.values.dtype == np.float64
    np.testing.assert_allclose(found.x_edges, [0, 30 * 4.0058, 60 * 4.0058, 90 * 4.0058, 401])
    np.testing.assert_allclose(found.y_edges, [0, 20 * 4.0058, 40 * 4.0058, 60 * 4.0058, 320])
    expected = values.reshape(4, 4, 4).astype(float)
    expected[0, 1] = np.nan
    np.testing.assert_array_equal(found.values, expected)
    assert (found.columns, found.patient, found.slide) == (("value_0", "value_1", "value_2", "value_3"), "p1", "s")


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32"])
def test_numbers_of_any_kind_are_placed(tmp_path: Path, dtype: str) -> None:
    values = np.arange(35).astype(dtype)
    found = read_map(write_patient(tmp_path, [resolved_slide()], [values]))
    np.testing.assert_array_equal(found.values[..., 0].ravel(), values.astype(np.float64))


def test_edges_never_pass_the_slide_nor_turn_back(tmp_path: Path) -> None:
    # OpenSlide's downsample is the mean of both axes', so that one axis may be longer than the slide by it
    slide = resolved_slide(extent=(100, 80), kernel=(1, 1), stride=(1, 1), downsample=4.0)
    wide = slide.info.level_downsamples
    slide = type(slide)(
        **{**{name: getattr(slide, name) for name in slide.__struct_fields__}, "info": _with_downsample(slide, 4.1)}
    )
    assert slide.downsample != wide[1]
    found = read_map(write_patient(tmp_path, [slide], [np.zeros(8000, np.int8)]))
    assert (found.x_edges[-1], found.y_edges[-1]) == (400, 320)
    assert (np.diff(found.x_edges) >= 0).all()
    assert found.x_edges.max() == 400


def _with_downsample(slide: Any, downsample: float) -> Any:
    fields = {name: getattr(slide.info, name) for name in slide.info.__struct_fields__}
    return type(slide.info)(**{**fields, "level_downsamples": (1.0, downsample)})


def test_a_map_of_nothing_is_empty_everywhere(tmp_path: Path) -> None:
    nothing = np.full(35, Status.NONE, np.uint8)
    found = read_map(write_patient(tmp_path, [resolved_slide()], [np.zeros(35)], [nothing]))
    assert found.values.shape == (5, 7, 1)
    assert np.isnan(found.values).all()


def test_a_slide_that_no_window_fits_has_a_map(tmp_path: Path) -> None:
    slide = resolved_slide(extent=(10, 10), border="crop")
    found = read_map(write_patient(tmp_path, [slide], [np.zeros(0)]))
    assert found.values.shape == (1, 1, 1)
    assert np.isnan(found.values).all()
    assert found.x_edges.tolist() == [0, 10]


def test_a_csv_file_alone_cannot_be_placed(tmp_path: Path) -> None:
    path = write_patient(tmp_path / "out", [resolved_slide()], [np.zeros(35)], format="csv")
    moved = path.rename(tmp_path / path.name)
    assert len(read_pieces(moved)) == 35
    with pytest.raises(MapError, match="without its record"):
        read_map(moved)


def test_coarser_cells_are_means_of_the_windows_in_them(tmp_path: Path) -> None:
    values = numbers("int16", (35,))
    pieces = read_pieces(write_patient(tmp_path, [resolved_slide(extent=(112, 80))], [values]))
    found = place(pieces, coarser=2)
    assert found.values.shape == (3, 4, 1)
    grid = values.reshape(5, 7).astype(float)
    np.testing.assert_allclose(found.values[0, 0, 0], grid[:2, :2].mean())
    np.testing.assert_allclose(found.values[2, 3, 0], grid[4, 6])
    assert found.x_edges.tolist() == [0, 32, 64, 96, 112]
