"""The values that collectors return: made into arrays, described, and carried as bytes.

In: whatever a collector returned.  Out: arrays of one dtype and shape, or typed bytes.  Never pickles.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.errors import PieceError

_ARRAY_EXT = 1
BYTES = "bytes"
"""The dtype of values that are bytes."""


class ValueSpec(msgspec.Struct, frozen=True):
    """dtype and shape of one window's value; the same for every window of a run."""

    dtype: str
    """NumPy's name, ``float32``; one of bool, int8–int64, uint8–uint64, float16–float64. Or ``bytes``, of any length: the
    contents of files."""
    shape: tuple[int, ...]
    """Of one window's value; () for a number, or for one file."""
    columns: tuple[str, ...] | None = None
    """Names of the flattened values, where the collector gives them."""

    @property
    def size(self) -> int:
        """How many numbers one window's value holds."""
        return math.prod(self.shape)

    @property
    def holds_bytes(self) -> bool:
        """Values are bytes; their rows are arrays of objects."""
        return self.dtype == BYTES

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the flattened values: the collector's, or ``value``, or ``value_0``, ``value_1``, …"""
        if self.columns is not None:
            return self.columns
        return ("value",) if not self.shape else tuple(f"value_{n}" for n in range(self.size))

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"

    @classmethod
    def of(cls, rows: npt.NDArray[Any], columns: tuple[str, ...] | None = None) -> ValueSpec:
        """The spec of an array (n, ...) with one row per window."""
        return cls(BYTES if rows.dtype == object else _name_of(rows.dtype), rows.shape[1:], columns)

    def empty(self) -> npt.NDArray[Any]:
        """(0, ...) of this dtype and shape."""
        return self.blank(0)

    def blank(self, n: int) -> npt.NDArray[Any]:
        """(n, ...) of this dtype and shape, to be filled."""
        return np.empty((n, *self.shape), object) if self.holds_bytes else np.zeros((n, *self.shape), self.dtype)


@cache
def _name_of(dtype: np.dtype[Any]) -> str:
    """NumPy makes up a name anew each time that it is asked."""
    return str(dtype.name)


def as_rows(result: Any) -> npt.NDArray[Any]:
    """What a collector returned, as an array in the machine's byte order.

    Accepts whatever NumPy can make an array of, and tensors that must first leave their device (``detach().cpu()``).
    Raises PieceError when that is not boolean, integer or floating (up to 64 bits).
    """
    if hasattr(result, "detach") and hasattr(result, "cpu"):
        result = result.detach().cpu()
    if _is_masked(result) or (isinstance(result, (list, tuple)) and any(map(_is_masked, result))):
        raise PieceError("got a masked array, what is masked in it would be a value: fill it, with filled(numpy.nan), say")
    try:
        rows = np.asarray(result)
    except (ValueError, TypeError, RuntimeError) as error:
        raise PieceError(f"expected numbers of one shape, got {type(result).__name__}: {error}") from error
    if not _holds_numbers(rows.dtype):
        hint = "; bytes go to an ImageStreamWriter" if rows.dtype.kind in "SO" and _has_bytes(rows) else ""
        raise PieceError(
            f"expected booleans, integers or floats of at most 64 bits, got dtype {rows.dtype} from "
            f"{type(result).__name__}{hint}"
        )
    return np.ascontiguousarray(rows, rows.dtype.newbyteorder("=")).reshape(rows.shape)


def _is_masked(value: Any) -> bool:
    return hasattr(value, "mask") and hasattr(value, "filled")


def _has_bytes(rows: npt.NDArray[Any]) -> bool:
    return rows.dtype.kind == "S" or any(isinstance(value, (bytes, bytearray, memoryview)) for value in rows.ravel().tolist())


def joined(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], bytes]:
    """Rows of bytes as their lengths, (n, ...) int64, and all of them, one after the other."""
    flat = rows.ravel().tolist()
    lengths = np.fromiter(map(len, flat), np.int64, len(flat)).reshape(rows.shape)
    return lengths, b"".join(flat)


def parted(lengths: npt.NDArray[np.int64], data: bytes | memoryview) -> npt.NDArray[Any]:
    """The inverse of :func:`joined`: (n, ...) objects, views of `data`. Raises ValueError when the lengths are not those."""
    ends = np.cumsum(lengths, dtype=np.int64)
    if (lengths < 0).any() or (lengths > len(data)).any() or (int(ends[-1]) if len(ends) else 0) != len(data):
        raise ValueError(f"{lengths.size} lengths do not add up to {len(data)} bytes")
    view, rows = memoryview(data), np.empty(lengths.size, object)
    for row, (start, stop) in enumerate(pairwise([0, *ends.tolist()])):  # NumPy would look into views that it is given together
        rows[row] = view[start:stop]
    return rows.reshape(lengths.shape)


def _holds_numbers(dtype: np.dtype[Any]) -> bool:
    """Whether values of this dtype can be stored: booleans, integers, floats, of at most 64 bits."""
    return dtype.kind in "biuf" and dtype.itemsize <= 8


def encode_result(result: Any) -> bytes:
    """Numbers, strings, arrays, and lists and dicts of them, as typed bytes.

    Raises PieceError naming the type that cannot be carried.
    """
    try:
        return msgspec.msgpack.encode(result, enc_hook=_encode_array)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PieceError(f"a result must be numbers, strings, arrays, and lists and dicts of them: {error}") from error


def decode_result(data: bytes) -> Any:
    """The inverse of :func:`encode_result`; tuples come back as lists, NumPy's numbers as Python's."""
    return msgspec.msgpack.decode(data, ext_hook=_decode_array, strict=False)


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.generic) and (_holds_numbers(value.dtype) or isinstance(value, np.str_)):
        return value.item()
    array = as_rows(value)
    header = msgspec.msgpack.encode((array.dtype.str, array.shape))
    return msgspec.msgpack.Ext(_ARRAY_EXT, len(header).to_bytes(4, "little") + header + array.tobytes())


def _decode_array(code: int, data: memoryview) -> Any:
    if code != _ARRAY_EXT:
        raise PieceError(f"unknown extension {code} in a result")
    length = int.from_bytes(data[:4], "little")
    dtype, shape = msgspec.msgpack.decode(data[4 : 4 + length])
    return np.frombuffer(data[4 + length :], dtype).reshape(shape).copy()
