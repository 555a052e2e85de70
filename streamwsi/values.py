"""The values that collectors return: made into arrays, described, and carried as bytes.

In: whatever a collector returned.  Out: arrays of one dtype and shape, or typed bytes.  Never pickles.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.errors import PieceError

_ARRAY_EXT = 1


class ValueSpec(msgspec.Struct, frozen=True):
    """dtype and shape of one window's value; the same for every window of a run."""

    dtype: str
    """NumPy's name, ``float32``; one of bool, int8–int64, uint8–uint64, float16–float64."""
    shape: tuple[int, ...]
    """Of one window's value; () for a number."""
    columns: tuple[str, ...] | None = None
    """Names of the flattened values, where the collector gives them."""

    @property
    def size(self) -> int:
        """How many numbers one window's value holds."""
        return math.prod(self.shape)

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
        return cls(rows.dtype.name, rows.shape[1:], columns)

    def empty(self) -> npt.NDArray[Any]:
        """(0, ...) of this dtype and shape."""
        return np.empty((0, *self.shape), self.dtype)


def as_rows(result: Any) -> npt.NDArray[Any]:
    """What a collector returned, as an array in the machine's byte order.

    Accepts whatever NumPy can make an array of, and tensors that must first leave their device (``detach().cpu()``).
    Raises PieceError when that is not boolean, integer or floating (up to 64 bits).
    """
    if hasattr(result, "detach") and hasattr(result, "cpu"):
        result = result.detach().cpu()
    try:
        rows = np.asarray(result)
    except (ValueError, TypeError, RuntimeError) as error:
        raise PieceError(f"expected numbers of one shape, got {type(result).__name__}: {error}") from error
    if not _holds_numbers(rows.dtype):
        raise PieceError(
            f"expected booleans, integers or floats of at most 64 bits, got dtype {rows.dtype} from {type(result).__name__}"
        )
    return np.ascontiguousarray(rows, rows.dtype.newbyteorder("=")).reshape(rows.shape)


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
