from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streamwsi.chunks import BigChunk, ProcessedPiece, SmallChunk, Status
from streamwsi.collecting.rows import ChunkRows
from streamwsi.errors import PieceError
from streamwsi.geometry import Grid, Window
from streamwsi.values import ValueSpec

FIRST = 30
"""The chunk's first window: they are 30 to 37."""
WRITTEN, NONE, SKIPPED = int(Status.WRITTEN), int(Status.NONE), int(Status.SKIPPED)


def big_chunk(skipped: tuple[int, ...] = ()) -> BigChunk:
    """Eight windows in a row."""
    windows = Grid((400, 8), (8, 8), (8, 8), "crop", 1.0).windows(np.arange(FIRST, FIRST + 8, dtype=np.int64))
    return BigChunk(windows, np.zeros((8, 64, 3), np.uint8), (FIRST * 8, 0), np.isin(np.arange(8), skipped))


def gathered(spec: ValueSpec | None = None, columns: tuple[str, ...] | None = None, skipped: tuple[int, ...] = ()) -> ChunkRows:
    return ChunkRows(big_chunk(skipped), spec, columns)


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.intp)


def pieces(chunk: ChunkRows, values: dict[int, Any]) -> list[ProcessedPiece]:
    """Pieces for the windows at these rows."""
    return [ProcessedPiece(chunk.windows[row], value) for row, value in values.items()]


# ---- one row per window


def test_rows_stand_in_the_order_of_the_windows_whatever_the_order_of_the_batches() -> None:
    chunk = gathered()
    chunk.add(rows(4, 5, 6, 7), np.array([4.0, 5.0, 6.0, 7.0]))
    chunk.add(rows(0, 2), np.array([0.0, 2.0]))
    chunk.add(rows(1, 3), np.array([1.0, 3.0]))
    np.testing.assert_array_equal(chunk.values(), np.arange(8.0))
    assert chunk.status.tolist() == [WRITTEN] * 8


def test_rows_of_any_shape_are_kept() -> None:
    chunk = gathered()
    values = np.arange(8 * 6, dtype=np.int16).reshape(8, 2, 3)
    chunk.add(rows(*range(8)), values)
    np.testing.assert_array_equal(chunk.values(), values)
    assert chunk.spec == ValueSpec("int16", (2, 3))


def test_an_array_that_the_collector_uses_again_is_copied() -> None:
    chunk = gathered()
    buffer = np.zeros(4)
    for first in (0, 4):
        buffer[:] = range(first, first + 4)
        chunk.add(rows(*range(first, first + 4)), buffer)
    np.testing.assert_array_equal(chunk.values(), np.arange(8.0))


@pytest.mark.parametrize(
    ("result", "dtype"),
    [
        ([1, 2], "int64"),
        ((1.5, 2), "float64"),
        ([True, False], "bool"),
        (np.array([1, 2], ">i2"), "int16"),
        (np.array([1, 2], np.float16), "float16"),
        (np.array([1, 2], np.uint64), "uint64"),
        ([np.float32(1), np.float32(2)], "float32"),
        (range(2), "int64"),
    ],
)
def test_whatever_numpy_makes_numbers_of_is_taken(result: Any, dtype: str) -> None:
    chunk = gathered()
    chunk.add(rows(0, 1), result)
    assert chunk.spec == ValueSpec(dtype, ())
    assert chunk.values().tolist() == list(result)


class Tensor:
    """What PyTorch's tensors look like from here: no array before it has left its device and its graph."""

    def __init__(self, values: Any, steps: tuple[str, ...] = ()) -> None:
        self._values, self._steps = values, steps

    def detach(self) -> Tensor:
        return Tensor(self._values, (*self._steps, "detach"))

    def cpu(self) -> Tensor:
        return Tensor(self._values, (*self._steps, "cpu"))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if set(self._steps) != {"detach", "cpu"}:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        return np.array(self._values, np.float32)


def test_tensors_are_taken_from_their_device() -> None:
    chunk = gathered()
    chunk.add(rows(0, 1), Tensor([[1, 2], [3, 4]]))
    chunk.add(rows(2), [ProcessedPiece(chunk.windows[2], Tensor([5, 6]))])
    np.testing.assert_array_equal(chunk.values(), np.array([[1, 2], [3, 4], [5, 6]], np.float32))


@pytest.mark.parametrize(
    ("result", "shape"),
    [
        (np.zeros(3), r"\(3,\)"),
        (np.zeros((1, 2)), r"\(1, 2\)"),
        (np.zeros((0, 2)), r"\(0, 2\)"),
        (np.float64(1), r"\(\)"),
        (0.5, r"\(\)"),
        ([1, 2, 3], r"\(3,\)"),
    ],
)
def test_a_wrong_number_of_rows_is_refused_naming_windows_and_both_shapes(result: Any, shape: str) -> None:
    with pytest.raises(PieceError, match=rf"windows 32 to 33: .*{shape}.*\(2, …\)"):
        gathered().add(rows(2, 3), result)


def test_a_wrong_number_of_rows_for_one_window_names_it() -> None:
    with pytest.raises(PieceError, match=r"window 32: .*\(2,\)"):
        gathered().add(rows(2), [1, 2])


@pytest.mark.parametrize(
    "result",
    [
        ["a", "b"],
        np.array(["a", "b"]),
        np.array([1 + 2j, 3]),
        np.array([None, 1]),
        [None, None],
        np.array([1, 2], "datetime64[s]"),
        np.array([1, 2], np.longdouble),
        np.array([(1, 2), (3, 4)], "i4,i4"),
        {"a": 1},
        {1, 2},
        "ab",
        b"ab",
        object(),
        (value for value in (1, 2)),
        [[1, 2], [3]],
        [1 << 70, 1],
        [Tensor([1]), Tensor([2])],
    ],
    ids=lambda result: repr(result).partition(" at 0x")[0][:30],
)
def test_what_is_not_numeric_is_refused_naming_the_windows(result: Any) -> None:
    with pytest.raises(PieceError, match="windows 30 to 31: expected"):
        gathered().add(rows(0, 1), result)


def test_what_may_be_returned_is_said_where_texts_are() -> None:
    with pytest.raises(PieceError, match="windows 30 to 31: expected booleans, integers or floats"):
        gathered().add(rows(0, 1), ["a"] * 2)


def test_values_without_numbers_are_refused_before_all_is_computed() -> None:
    with pytest.raises(PieceError, match=r"windows 30 to 31: a value holds no number: its shape is \(0,\)"):
        gathered().add(rows(0, 1), np.zeros((2, 0)))


@pytest.mark.parametrize("mask", [[False, True], False])
def test_a_mask_is_not_lost_without_a_word(mask: Any) -> None:
    with pytest.raises(PieceError, match=r"windows 30 to 31: got a masked array, .* fill it, with filled"):
        gathered().add(rows(0, 1), np.ma.masked_array([1.0, 2.0], mask=mask))


def test_returning_nothing_is_refused_saying_what_to_return() -> None:
    with pytest.raises(PieceError, match=r"windows 30 to 31: process returned None; return one row per window, or .*\[\]"):
        gathered().add(rows(0, 1), None)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (np.zeros((2, 3)), "float64 of shape (3,), those before it were float64 of shape ()"),
        (np.zeros(2, np.float32), "float32 of shape (), those before it were float64 of shape ()"),
        (np.zeros(2, bool), "bool of shape (), those before it were float64 of shape ()"),
        ([1, 2], "int64 of shape (), those before it were float64 of shape ()"),
    ],
)
def test_another_shape_or_dtype_than_before_is_refused_naming_windows_and_both(second: Any, says: str) -> None:
    chunk = gathered()
    chunk.add(rows(0, 1), np.zeros(2))
    with pytest.raises(PieceError) as caught:
        chunk.add(rows(2, 3), second)
    assert str(caught.value) == f"windows 32 to 33: a value is {says}"


def test_values_must_be_those_of_earlier_chunks_too() -> None:
    with pytest.raises(
        PieceError, match=r"windows 30 to 31: a value is float64 of shape \(\), those before it were int8 of shape"
    ):
        gathered(spec=ValueSpec("int8", ())).add(rows(0, 1), np.zeros(2))


# ---- pieces


def test_windows_without_a_piece_get_none() -> None:
    chunk = gathered()
    chunk.add(rows(0, 1, 2, 3), pieces(chunk, {2: 20.0, 0: 0.5}))
    assert chunk.status.tolist() == [WRITTEN, NONE, WRITTEN, NONE, NONE, NONE, NONE, NONE]
    assert chunk.values().tolist() == [0.5, 20.0]


def test_pieces_may_hold_arrays() -> None:
    chunk = gathered()
    chunk.add(rows(0, 1), pieces(chunk, {1: np.array([[1, 2]], np.uint8), 0: [[3, 4]]})[:1])
    assert chunk.spec == ValueSpec("uint8", (1, 2))
    assert chunk.values().tolist() == [[[1, 2]]]


def test_no_pieces_at_all_give_none_everywhere_and_settle_nothing() -> None:
    chunk = gathered()
    chunk.add(rows(0, 1, 2), [])
    assert chunk.status.tolist() == [NONE] * 8
    assert chunk.spec is None
    assert chunk.values().shape == (0,)


def test_a_chunk_without_values_has_none_of_the_known_dtype_and_shape() -> None:
    chunk = gathered(spec=ValueSpec("int16", (3,)))
    chunk.add(rows(0, 1, 2), [])
    assert (chunk.values().dtype, chunk.values().shape) == (np.int16, (0, 3))


def test_pieces_and_rows_may_be_mixed_within_a_chunk() -> None:
    chunk = gathered()
    chunk.add(rows(0, 1), [])
    chunk.add(rows(2, 3), np.array([2.0, 3.0]))
    chunk.add(rows(4, 5), pieces(chunk, {5: 5.0}))
    assert chunk.values().tolist() == [2.0, 3.0, 5.0]


def _strange_pieces() -> Iterator[Any]:
    def elsewhere(chunk: ChunkRows) -> list[ProcessedPiece]:
        return pieces(chunk, {0: 1.0, 5: 1.0})

    def twice(chunk: ChunkRows) -> list[ProcessedPiece]:
        return pieces(chunk, {0: 1.0, 1: 1.0}) + pieces(chunk, {1: 2.0})

    def moved(chunk: ChunkRows) -> list[ProcessedPiece]:
        return [ProcessedPiece(replace(chunk.windows[1], x=7), 1.0)]

    def small_chunk(chunk: ChunkRows) -> list[ProcessedPiece]:
        window = chunk.windows[1]
        small: Any = SmallChunk(window, np.zeros((window.height, window.width, 3), np.uint8))
        return [ProcessedPiece(small, 1.0)]

    def index_only(chunk: ChunkRows) -> list[ProcessedPiece]:
        window: Any = 31
        return [ProcessedPiece(window, 1.0)]

    yield pytest.param(elsewhere, r"not in the batch: \[35\]", id="of another batch")
    yield pytest.param(twice, r"given twice: \[31\]", id="twice")
    yield pytest.param(moved, r"not in the batch: \[31\]", id="moved")
    yield pytest.param(small_chunk, r"a SmallChunk, expected one of batch\.windows", id="a small chunk")
    yield pytest.param(index_only, r"a int, expected one of batch\.windows", id="an index")


@pytest.mark.parametrize(("make", "says"), [*_strange_pieces()])
def test_pieces_for_windows_that_are_not_the_batchs_own_are_refused(
    make: Callable[[ChunkRows], list[ProcessedPiece]], says: str
) -> None:
    chunk = gathered()
    with pytest.raises(PieceError, match=f"windows 30 to 32: .*{says}"):
        chunk.add(rows(0, 1, 2), make(chunk))
    assert chunk.status.tolist() == [NONE] * 8


def test_pieces_of_one_batch_that_differ_are_refused_naming_both_windows() -> None:
    chunk = gathered()
    with pytest.raises(PieceError, match=r"window 31: a value is int64 of shape \(2,\), window 30's was float64 of shape \(\)"):
        chunk.add(rows(0, 1), pieces(chunk, {0: 1.0, 1: [1, 2]}))


@pytest.mark.parametrize("value", [None, "a", 1j, object(), [[1], [1, 2]]])
def test_a_piece_that_holds_no_number_is_refused_naming_its_window(value: Any) -> None:
    chunk = gathered()
    with pytest.raises(PieceError, match="window 31: expected"):
        chunk.add(rows(0, 1), pieces(chunk, {0: 1.0, 1: value}))


def test_a_list_of_pieces_and_other_things_is_refused() -> None:
    chunk = gathered()
    with pytest.raises(PieceError, match="windows 30 to 31"):
        chunk.add(rows(0, 1), [*pieces(chunk, {0: 1.0}), 2.0])


# ---- columns, skipped windows


@pytest.mark.parametrize(
    ("columns", "result"), [(("one",), np.zeros(2)), (("a", "b"), np.zeros((2, 2))), (tuple("abcdef"), np.zeros((2, 2, 3)))]
)
def test_columns_name_the_flattened_values(columns: tuple[str, ...], result: np.ndarray) -> None:
    chunk = gathered(columns=columns)
    chunk.add(rows(0, 1), result)
    assert chunk.spec is not None and chunk.spec.column_names == columns


@pytest.mark.parametrize(("columns", "result"), [(("a", "b"), np.zeros(2)), (("a",), np.zeros((2, 3)))])
def test_a_wrong_number_of_columns_is_refused(columns: tuple[str, ...], result: np.ndarray) -> None:
    with pytest.raises(
        PieceError, match=rf"windows 30 to 31: the collector names {len(columns)} columns .* {result[0].size} numbers"
    ):
        gathered(columns=columns).add(rows(0, 1), result)


def test_skipped_windows_keep_their_status_and_have_no_row() -> None:
    chunk = gathered(skipped=(1, 7))
    assert chunk.status.tolist() == [NONE, SKIPPED, NONE, NONE, NONE, NONE, NONE, SKIPPED]
    chunk.add(rows(0, 2, 3), np.array([0, 2, 3]))
    chunk.add(rows(4, 5, 6), pieces(chunk, {6: 6}))
    assert chunk.status.tolist() == [WRITTEN, SKIPPED, WRITTEN, WRITTEN, NONE, NONE, WRITTEN, SKIPPED]
    assert chunk.values().tolist() == [0, 2, 3, 6]


def test_a_chunk_of_which_nothing_could_be_read_has_no_rows() -> None:
    chunk = gathered(skipped=tuple(range(8)))
    assert chunk.status.tolist() == [SKIPPED] * 8
    assert len(chunk.values()) == 0


def test_a_window_that_was_made_anew_is_known_by_its_place() -> None:
    chunk = gathered()
    window = chunk.windows[3]
    again = Window(window.index, window.x, window.y, window.start_x, window.start_y, window.width, window.height)
    chunk.add(rows(2, 3), [ProcessedPiece(again, 1)])
    assert chunk.status.tolist()[3] == WRITTEN
