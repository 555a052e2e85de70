"""How the images of windows are weighted and summed, and what sums are divided by.

In: the type of the images, weights, how many windows may overlap.  Out: sums and weights.  Knows no places.

Source of the sums' types: :mod:`streamwsi.arrays.sums`; the same images give the same map as through an Aggregator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.arrays.sources import AnyArray
from streamwsi.arrays.sums import FloatSum, IntegerSum, make_sum, unit
from streamwsi.arrays.weights import Weights

FloatArray = npt.NDArray[np.float64]
Size = tuple[int, int]
"""(height, width)."""
_FEW_CHANNELS = 32
"""Up to so many, weights are repeated for each."""


class Blend:
    """How images of one dtype and number of channels are blended."""

    def __init__(self, dtype: np.dtype[Any], channels: int, weights: Weights, overlaps: int) -> None:
        self.dtype, self.channels = dtype, channels
        self._weights, self._overlaps = weights, overlaps
        self._exact = weights.alike and dtype.kind in "bui"
        self._unit = 1.0 if self._exact else unit(overlaps)
        self._plain: dict[Size, FloatArray] = {}
        self._expanded: dict[Size, AnyArray] = {}

    def new_sum(self, size: Size) -> IntegerSum | FloatSum:
        """An empty sum of (height, width, channels)."""
        return _sum_of((*size, self.channels), self.dtype, self._exact, self._overlaps)

    def weights_of(self, size: Size) -> AnyArray:
        """(height, width, channels): by what a window of this size is multiplied before it is added."""
        found = self._expanded.get(size)
        if found is None:
            shape = (*size, self.channels)
            if self._exact:
                found = np.broadcast_to(np.ones((), np.int8), shape)
            else:
                scaled = (self.plain_weights_of(size) * self._unit).astype(self.new_sum((0, 0)).divisor_dtype)
                found = np.broadcast_to(scaled[..., None], shape)
                if self.channels <= _FEW_CHANNELS:  # in full, as NumPy is slow where the last axis is short and repeated
                    found = np.ascontiguousarray(found)
            self._expanded[size] = found
        return found

    def plain_weights_of(self, size: Size) -> FloatArray:
        """(height, width) float64: the weights of a window of this size, at most 1."""
        found = self._plain.get(size)
        if found is None:
            found = self._plain[size] = self._weights.of(size)
        return found

    def mean(self, summed: IntegerSum | FloatSum, total: FloatArray, dtype: np.dtype[Any]) -> AnyArray:
        """(height, width, channels) of `dtype`: the weighted means; any value where `total`, the sum of the weights, is 0."""
        divisor = (total if self._exact else total * self._unit).astype(summed.divisor_dtype)
        return summed.mean(divisor[..., None], dtype)


def sum_dtype_of(dtype: np.dtype[Any], alike: bool, overlaps: int) -> np.dtype[Any]:
    """The type in which images of `dtype` are summed."""
    return _sum_of((0,), dtype, alike and dtype.kind in "bui", overlaps).values.dtype


def _sum_of(shape: tuple[int, ...], dtype: np.dtype[Any], exact: bool, overlaps: int) -> IntegerSum | FloatSum:
    made = make_sum(shape, dtype, exact, overlaps)
    if not isinstance(made, IntegerSum | FloatSum):
        raise TypeError(f"sums of {dtype} are not kept in one array: such images are refused before")
    return made
