"""Sums of weighted patches, in a type in which they are right however many overlap, and the means that they give.

In: patches, weights.  Out: weighted means.  Integers are summed as integers where all places weigh the same.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from streamwsi.arrays.sources import AnyArray
from streamwsi.errors import ArrayError

FEW = 8
"""So many overlapping windows can be summed in float32: each sum adds an error of at most 2⁻²⁴, 1e-6 has room for that."""
_SCRATCH = 1 << 15
"""Products are formed so many at a time, so that they stay in the processor's cache until they are added."""


class Sum(Protocol):
    """A sum of patches over one block."""

    @property
    def divisor_dtype(self) -> np.dtype[Any]:
        """The type in which sums of weights are wanted."""

    def add(self, where: tuple[slice, ...], patch: AnyArray, weights: AnyArray) -> None:
        """Add a part of a patch, times its weights, to a part of the block; all three have that part's shape."""

    def mean(self, divisor: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
        """The weighted mean. The sum cannot be used after it.

        `divisor` is the sum of the weights that were added, of :attr:`divisor_dtype`, and broadcasts against the block; where
        it is 0, the mean is any value. Rounded to the nearest, halves to even, where `dtype` is one of integers.
        """


class FloatSum:
    """Sums of floating-point or complex numbers, or of integers with weights that differ.

    They are kept in the array of zeros that is given, and so is their mean, if it is of the same type.
    """

    def __init__(self, zeros: AnyArray) -> None:
        self.values = zeros

    @property
    def divisor_dtype(self) -> np.dtype[Any]:
        return self.values.real.dtype

    def add(self, where: tuple[slice, ...], patch: AnyArray, weights: AnyArray) -> None:
        add_product(self.values[where], patch, weights)

    def mean(self, divisor: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = np.divide(self.values, divisor, out=self.values)
        found: AnyArray = mean.astype(dtype, copy=False) if dtype.kind in "fc" else rounded(mean, dtype)
        return found


class IntegerSum:
    """Exact sums of integers of up to 32 bits; weights are all 1."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.values: AnyArray = np.zeros(shape, dtype)

    @property
    def divisor_dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def add(self, where: tuple[slice, ...], patch: AnyArray, weights: AnyArray) -> None:
        self.values[where] += patch

    def mean(self, divisor: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
        count = np.maximum(divisor, 1)
        if dtype.kind in "fc":
            quotient: AnyArray = np.divide(self.values, count).astype(dtype)
            return quotient
        return _nearest(self.values, count).astype(dtype)


class WideIntegerSum:
    """Exact sums of integers of 64 bits, in two halves; weights are all 1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.high = np.zeros(shape, np.int64)
        self.low = np.zeros(shape, np.int64)

    @property
    def divisor_dtype(self) -> np.dtype[Any]:
        return self.low.dtype

    def add(self, where: tuple[slice, ...], patch: AnyArray, weights: AnyArray) -> None:
        self.high[where] += (patch >> 32).astype(np.int64)
        self.low[where] += (patch & 0xFFFFFFFF).astype(np.int64)

    def mean(self, divisor: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
        count = np.maximum(divisor, 1)
        if dtype.kind in "fc":
            return ((self.high * 2.0**32 + self.low) / count).astype(dtype)
        whole, rest = np.divmod(self.high, count)
        # rest < count, so that this fits as long as fewer than 2**30 windows overlap; the last step is exact modulo 2**64
        return ((whole << 32) + _nearest((rest << 32) + self.low, count)).astype(dtype)


def make_sum(shape: tuple[int, ...], dtype: np.dtype[Any], exact: bool, overlaps: int) -> Sum:
    """What to sum patches of `dtype` in, of which up to `overlaps` hold the same place.

    `exact`: patches are integers, and all weights are 1. Else weights are multiplied by :func:`unit` before they are added.
    """
    if exact:
        if dtype.itemsize == 8:
            return WideIntegerSum(shape)
        largest = max(np.iinfo(dtype).max, -int(np.iinfo(dtype).min)) if dtype.kind != "b" else 1
        return IntegerSum(shape, np.dtype(np.int32 if largest * overlaps < 2**31 else np.int64))
    return FloatSum(np.zeros(shape, sum_dtype(dtype, overlaps)))


def sum_dtype(dtype: np.dtype[Any], overlaps: int) -> np.dtype[Any]:
    """The type in which weighted patches of `dtype` are summed.

    Raises ArrayError when they are no numbers.
    """
    if dtype.kind not in "buifc":
        raise ArrayError(f"patches must be of numbers, got dtype {dtype}; convert them before they are appended")
    few = overlaps <= FEW and np.can_cast(dtype, np.float32)
    return np.dtype(np.float32) if few else np.result_type(dtype, np.float64)


def unit(overlaps: int) -> float:
    """The largest power of two by which weights of at most 1 can be multiplied for `overlaps` of them to be at most 1.

    With it, no sum is larger than the largest value, and none overflows.
    """
    return float(2.0 ** -(overlaps - 1).bit_length())


def add_product(into: AnyArray, patch: AnyArray, weights: AnyArray) -> None:
    """``into += patch * weights``, without a product of the whole; all have one shape, the product has `into`'s type."""
    rows = into.shape[0]
    per_row = into.size // rows if rows else 0
    if per_row > _SCRATCH and into.ndim > 1:
        for row in range(rows):
            add_product(into[row], patch[row], weights[row])
        return
    at_a_time = max(1, _SCRATCH // max(per_row, 1))
    for low in range(0, rows, at_a_time):
        some = slice(low, low + at_a_time)
        part = into[some]
        part += patch[some] * weights[some]


def rounded(values: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    """Floating-point values as the nearest of an integer type or bool, halves to even; NaN becomes 0."""
    if dtype.kind == "b":
        return np.asarray(values > 0.5)
    low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if high > np.iinfo(dtype).max:
        high = float(np.nextafter(high, 0))
    return np.clip(np.rint(np.nan_to_num(values.astype(np.float64))), low, high).astype(dtype)


def _nearest(values: AnyArray, count: AnyArray) -> AnyArray:
    """The quotients as the nearest integers, halves to even."""
    whole, rest = np.divmod(values, count)
    twice = 2 * rest.astype(np.int64)
    up: AnyArray = (twice > count) | ((twice == count) & (whole % 2 == 1))
    return np.asarray(whole + up)
