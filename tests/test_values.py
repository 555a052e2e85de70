from __future__ import annotations

import math
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given

from streamwsi.errors import PieceError
from streamwsi.values import ValueSpec, as_rows, decode_result, encode_result, joined, parted

NUMERIC = ["bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float32", "float64"]
arrays = st.sampled_from(NUMERIC).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal to the bit, NaN included."""
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and one == other


# ---- values of windows


@given(arrays)
def test_numeric_arrays_stay_as_they_are(array: np.ndarray) -> None:
    assert same(as_rows(array), array)
    assert as_rows(array).flags.c_contiguous


@pytest.mark.parametrize("dtype", NUMERIC)
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_machines_byte_order_is_taken(dtype: str, order: str) -> None:
    rows = as_rows(np.array([0, 1, 1], np.dtype(dtype).newbyteorder(order)))
    assert rows.dtype == np.dtype(dtype)
    assert rows.dtype.isnative
    assert rows.tolist() == [0, 1, 1]


def test_arrays_that_do_not_lie_in_one_piece_are_made_so() -> None:
    array = np.arange(24).reshape(4, 6)[::2, ::3]
    rows = as_rows(array)
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(rows, array)


def test_numbers_stay_without_axes() -> None:
    assert as_rows(3).shape == as_rows(np.float32(3)).shape == ()


@pytest.mark.parametrize("value", [-(1 << 63), (1 << 63) - 1, (1 << 64) - 1, math.inf, -math.inf, 5e-324, -0.0])
def test_extreme_numbers_are_not_changed(value: float) -> None:
    assert as_rows([value]).tolist() == [value]
    assert math.copysign(1, as_rows([value]).tolist()[0]) == math.copysign(1, value)


@pytest.mark.parametrize(
    "value",
    [None, "a", b"a", 1j, object(), [1, None], [[1], [1, 2]], {"a": 1}, np.longdouble(1), np.array(["2020"], "M8[D]"), 1 << 70],
    ids=lambda value: repr(value).partition(" at 0x")[0][:20],
)
def test_what_is_not_numeric_is_refused_naming_its_type(value: Any) -> None:
    with pytest.raises(PieceError, match=type(value).__name__):
        as_rows(value)


def test_what_cannot_be_made_an_array_is_refused_with_the_reason() -> None:
    class Broken:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            raise RuntimeError("it lies on another device")

    with pytest.raises(PieceError, match="Broken: it lies on another device"):
        as_rows(Broken())


@pytest.mark.parametrize(
    ("shape", "names"), [((), ("value",)), ((1,), ("value_0",)), ((2, 2), ("value_0", "value_1", "value_2", "value_3"))]
)
def test_columns_are_numbered_unless_the_collector_names_them(shape: tuple[int, ...], names: tuple[str, ...]) -> None:
    spec = ValueSpec.of(np.zeros((5, *shape), np.float16))
    assert spec == ValueSpec("float16", shape)
    assert spec.column_names == names
    assert len(names) == spec.size
    assert ValueSpec.of(np.zeros((5, *shape)), ("a",) * spec.size).column_names == ("a",) * spec.size


def test_no_values_have_the_dtype_and_shape_of_some() -> None:
    empty = ValueSpec("uint8", (2, 3)).empty()
    assert (empty.dtype, empty.shape) == (np.uint8, (0, 2, 3))


# ---- results of gathering

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=10)
    | st.binary(max_size=10)
    | arrays
)
results = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.integers(0, 1 << 40), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(results)
def test_results_come_back_as_they_were(result: Any) -> None:
    assert same(decode_result(encode_result(result)), result)


@given(arrays)
def test_arrays_that_come_back_can_be_written_to(array: np.ndarray) -> None:
    again = decode_result(encode_result({"a": array}))["a"]
    assert again.flags.writeable and again.flags.owndata


@given(st.sampled_from(NUMERIC).flatmap(lambda dtype: hnp.arrays(dtype, ())))
def test_numpys_numbers_come_back_as_pythons(array: np.ndarray) -> None:
    number = array[()]
    again = decode_result(encode_result([number]))[0]
    assert same(again, number.item())


@pytest.mark.parametrize(
    ("result", "comes_back_as"),
    [
        ((1, (2.5, "x")), [1, [2.5, "x"]]),
        (np.str_("name"), "name"),
        (np.array([1, 2], ">i4"), np.array([1, 2], "i4")),
        (np.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3).T.copy()),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)),
        ({"mean": np.float32(0.5), np.int64(3): [True]}, {"mean": 0.5, 3: [True]}),
    ],
    ids=repr,
)
def test_what_is_nearly_a_number_an_array_or_a_list_comes_back_as_one(result: Any, comes_back_as: Any) -> None:
    assert same(decode_result(encode_result(result)), comes_back_as)


def test_a_large_array_comes_back() -> None:
    array = np.random.default_rng(0).normal(size=(1000, 512))
    assert same(decode_result(encode_result(array)), array)


def _endless() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize(
    "result",
    [
        object(),
        {"a": [object()]},
        lambda: None,
        1j,
        1 << 70,
        np.longdouble(1),
        np.clongdouble(1),
        np.array(["a"]),
        np.array([None]),
        np.array([1], "M8[s]"),
        "\ud800",
        _endless(),
    ],
    ids=lambda result: repr(result).partition(" at 0x")[0][:25],
)
def test_what_cannot_be_carried_is_refused(result: Any) -> None:
    with pytest.raises(PieceError, match="a result must be numbers, strings, arrays, and lists and dicts of them"):
        encode_result(result)


def test_a_refusal_names_the_type() -> None:
    class Histogram:
        pass

    with pytest.raises(PieceError, match="Histogram"):
        encode_result({"all": [Histogram()]})


def test_results_are_never_unpickled() -> None:
    strange = msgspec.msgpack.encode(msgspec.msgpack.Ext(7, b"\x80\x04."))
    with pytest.raises(PieceError, match="extension 7"):
        decode_result(strange)


# ---- bytes


@given(
    st.tuples(st.integers(0, 5), st.integers(0, 3)).flatmap(
        lambda shape: st.lists(st.binary(max_size=30), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
            lambda parts: (shape, parts)
        )
    )
)
def test_rows_of_bytes_come_back(case: tuple[tuple[int, int], list[bytes]]) -> None:
    shape, parts = case
    rows = np.empty(len(parts), object)
    rows[:] = parts
    lengths, data = joined(rows.reshape(shape))
    assert lengths.shape == shape and lengths.dtype == np.int64 and data == b"".join(parts)
    found = parted(lengths, data)
    assert found.shape == shape and [bytes(part) for part in found.ravel()] == parts
    assert ValueSpec.of(found) == ValueSpec("bytes", shape[1:]) and ValueSpec.of(found).holds_bytes


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=5), st.binary(max_size=20))
def test_lengths_that_do_not_add_up_are_refused(lengths: list[int], data: bytes) -> None:
    array = np.array(lengths, np.int64)
    if all(length >= 0 for length in lengths) and sum(lengths) == len(data):
        assert b"".join(parted(array, data).tolist()) == data
    else:
        with pytest.raises(ValueError, match="do not add up"):
            parted(array, data)
