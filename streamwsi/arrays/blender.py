"""How patches of one shape and type become finished blocks: everything but the state of the blocks.

In: sums of weighted patches.  Out: blocks as they are written.  Knows neither outputs nor threads.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from streamwsi.arrays.blocks import Blocks, Place
from streamwsi.arrays.grid import FloatArray, PatchGrid, Window, written
from streamwsi.arrays.sources import AnyArray, as_numpy
from streamwsi.arrays.sums import FloatSum, Sum, make_sum, rounded, sum_dtype, unit
from streamwsi.arrays.weights import Weights
from streamwsi.errors import ArrayError
from streamwsi.geometry import Int64Array

Postprocess = Callable[[AnyArray, Int64Array], Any]

_CACHED_BYTES = 64 * 2**20
"""So much is kept of sums of weights."""
_FEW_CHANNELS = 32
"""Up to so many values behind the last spatial axis, divisors are repeated for each."""


@dataclass(frozen=True)
class Finished:
    """A block as it is written."""

    values: AnyArray
    spatial: tuple[int, ...]
    """Which of its axes are spatial."""


@dataclass(frozen=True, eq=False)
class Total:
    """The sum of weights over a block."""

    divisor: AnyArray
    """By what sums are divided; broadcasts against them."""
    empty: AnyArray | None
    """Of the block's spatial size, bool: where nothing weighs; None where that is nowhere."""


class Blender:
    """How patches of one shape and type become blocks: everything but the state of the blocks."""

    def __init__(
        self,
        grid: PatchGrid,
        weights: Weights,
        axes: tuple[int, ...],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        blocks: Blocks,
        reduce: str | None,
        axis: int | None,
        postprocess: Postprocess | None,
        dtype_asked: np.dtype[Any] | None,
        fill_asked: float | None,
    ) -> None:
        self.grid, self.blocks = grid, blocks
        self._weights, self._axes, self._shape, self._dtype = weights, axes, shape, dtype
        self._reduce, self._axis, self._postprocess = reduce, axis, postprocess
        self._dtype_asked, self._fill_asked = dtype_asked, fill_asked
        self._in_front = axes == tuple(range(len(axes)))
        self._overlaps = grid.max_overlaps
        self._sum_dtype = sum_dtype(dtype, self._overlaps)
        self._exact = weights.alike and dtype.kind in "bui"
        self._unit = unit(self._overlaps)
        self._expanded: dict[tuple[int, ...], AnyArray] = {}
        self._totals: OrderedDict[Any, Total] = OrderedDict()
        self._lock = threading.Lock()
        """Held while totals are looked up or put away."""
        self._axis_totals = [self._axis_total(number) for number in range(len(grid.axes))]

    def weights_for(self, patch: AnyArray, window: Window) -> AnyArray:
        """By what a window's patch is to be multiplied; as large as the patch.

        Raises ArrayError when it has not its box's size, or differs from the first one in other axes or its type.
        """
        weights = self._expanded.get(window.size)
        if weights is None:
            weights = self._expanded[window.size] = self._weights_of(window.size)
        if patch.shape != weights.shape or patch.dtype != self._dtype:
            box = f"the patch for box {written(self.grid.box(window.number))}"
            if patch.shape != weights.shape:
                raise ArrayError(f"{box} must be {weights.shape} (spatial axes {self._axes}), got {patch.shape}")
            raise ArrayError(f"{box} has dtype {patch.dtype}, the first one had {self._dtype}")
        return weights

    def fill_value(self, needed: bool) -> Any:
        """What stands where nothing is.

        Raises ArrayError when that is needed, not given, and the type has no NaN.
        """
        if self._fill_asked is not None:
            return self._fill_asked
        dtype = self._blended_dtype()
        if dtype.kind in "fc":
            return math.nan
        if needed:
            raise ArrayError(f"some places have no window, and {dtype} has no NaN to say so: give a fill_value")
        return 0

    def _weights_of(self, size: tuple[int, ...]) -> AnyArray:
        """The weights of a patch of a spatial size, in the patch's whole shape and the type of sums."""
        shape = self._shape_for(size)
        narrow = [extent if axis in self._axes else 1 for axis, extent in enumerate(shape)]
        if self._exact:
            return np.broadcast_to(np.ones((), np.int8), shape)
        weights = (self._weights.of(size) * self._unit).astype(self._sum_dtype.type(0).real.dtype)
        # in full, as NumPy is slow where the last axis is short and repeated
        return np.ascontiguousarray(np.broadcast_to(weights.reshape(narrow), shape))

    def zeros(self) -> AnyArray:
        """An array as large as the result and of the type of sums, for sums that are kept in the result."""
        return np.zeros(self._shape_for(self.grid.extent), self._sum_dtype)

    def new_sum(self, place: Place, result: AnyArray | None) -> Sum:
        """An empty sum for a block; in the result, where sums are kept there."""
        if result is not None:
            return FloatSum(result[self._around(self.blocks.slices(place))])
        size = [stop - start for start, stop in self.blocks.spans(place)]
        return make_sum(self._shape_for(size), self._dtype, self._exact, self._overlaps)

    def cut(self, window: Window) -> Iterator[tuple[Place, tuple[slice, ...], tuple[slice, ...]]]:
        """The blocks that a window touches, where it lies in each, and which part of its patch that is."""
        for shares in self.blocks.shares(window.place):
            block, inside, part = zip(*shares, strict=True)
            yield (block, inside, part) if self._in_front else (block, self._around(inside), self._around(part))

    def _shape_for(self, size: Sequence[int]) -> tuple[int, ...]:
        """The shape of a patch of a spatial size."""
        shape = list(self._shape)
        for axis, extent in zip(self._axes, size, strict=True):
            shape[axis] = extent
        return tuple(shape)

    def _around(self, spatial: Sequence[slice]) -> tuple[slice, ...]:
        """Slices of the spatial axes as slices of a patch."""
        slices = [slice(None)] * len(self._shape)
        for axis, one in zip(self._axes, spatial, strict=True):
            slices[axis] = one
        return tuple(slices)

    def total(self, place: Place, summed: Sum) -> Total:
        """The sum of the weights of all windows over a block."""
        spans = self.blocks.spans(place)
        relative = tuple(
            tuple((axis.starts[along] - span[0], axis.stops[along] - span[0]) for along in windows)
            for axis, span, windows in zip(self.grid.axes, spans, self.blocks.window_ranges(place), strict=True)
        )
        key = (relative, tuple(stop - start for start, stop in spans))
        with self._lock:
            found = self._totals.get(key)  # blocks in the midst of the array are alike
        if found is None:
            vectors = [
                vector[one]
                for vector, one in zip(self._axis_totals, self.blocks.slices(place), strict=True)
                if vector is not None
            ]
            if len(vectors) == len(place):
                found = self._product_total(vectors, summed)
            else:
                found = self._as_total(self._sum_weights(place, self.blocks.windows(place)), summed)
            with self._lock:
                self._totals[key] = found
                while sum(total.divisor.nbytes for total in self._totals.values()) > _CACHED_BYTES:
                    self._totals.popitem(last=False)
        return found

    def total_of(self, place: Place, summed: Sum, received: AnyArray) -> Total:
        """The sum of the weights of those windows over a block that were received."""
        windows = (index for index in self.blocks.windows(place) if received[index])
        return self._as_total(self._sum_weights(place, windows), summed)

    def _product_total(self, vectors: list[FloatArray], summed: Sum) -> Total:
        """Sums of weights that are the product of one along each axis."""
        empty = reduce(np.multiply.outer, vectors) == 0 if any(vector.min() == 0 for vector in vectors) else None
        repeated = [*vectors[:-1], np.repeat(vectors[-1], self._trailing) * (1 if self._exact else self._unit)]
        divisor = reduce(np.multiply.outer, [vector.astype(summed.divisor_dtype) for vector in repeated])
        return Total(divisor.reshape(self._narrow([len(vector) for vector in vectors])), empty)

    def _as_total(self, weights: FloatArray, summed: Sum) -> Total:
        """Sums of weights as sums of patches are divided by them; `weights` has a block's spatial size."""
        divisor = (weights if self._exact else weights * self._unit).astype(summed.divisor_dtype)
        empty = weights == 0
        return Total(
            np.repeat(divisor, self._trailing, axis=-1).reshape(self._narrow(weights.shape)), empty if empty.any() else None
        )

    @property
    def _trailing(self) -> int:
        """How often a divisor is repeated: NumPy is slow where the last axis is short and broadcast."""
        behind = math.prod(self._shape[self._axes[-1] + 1 :])
        return behind if behind <= _FEW_CHANNELS else 1

    def _narrow(self, size: Sequence[int]) -> tuple[int, ...]:
        """The shape of a divisor, which broadcasts against a block of this spatial size."""
        shape = [1] * len(self._shape)
        for axis, extent in zip(self._axes, size, strict=True):
            shape[axis] = extent
        behind = self._axes[-1] + 1
        return (*shape[:behind], *self._shape[behind:]) if self._trailing > 1 else tuple(shape)

    def finished(self, place: Place, summed: Sum, total: Total) -> Finished:
        """A block as it is to be written."""
        blended = self._blended_dtype() if self._reduce is None else self._float_dtype()
        values, axes = summed.mean(total.divisor, blended), self._axes
        if self._axis is not None:
            if self._reduce == "argmax":
                values = values.argmax(axis=self._axis)
                axes = tuple(axis - (axis > self._axis) for axis in axes)
            else:
                with np.errstate(invalid="ignore"):
                    values = np.exp(values - values.max(axis=self._axis, keepdims=True))
                    values /= values.sum(axis=self._axis, keepdims=True)
            wanted = self._blended_dtype()
            values = (
                values.astype(wanted, copy=False)
                if wanted.kind in "fc" or values.dtype.kind in "ui"
                else rounded(values, wanted)
            )
        if total.empty is not None:
            np.moveaxis(values, axes, range(len(axes)))[total.empty] = self.fill_value(needed=True)
        return self._postprocessed(place, values, axes)

    def _postprocessed(self, place: Place, values: AnyArray, axes: tuple[int, ...]) -> Finished:
        if self._postprocess is None:
            return Finished(values, axes)
        box = self.blocks.box(place)
        result = as_numpy(self._postprocess(values, box))
        found = same_axes(axes, values.ndim, result.ndim)
        if found is None:
            raise ArrayError(
                f"postprocess made {result.ndim} axes of {values.ndim}, and which are spatial is not clear (they were {axes}); "
                f"keep the axes, or have the spatial ones first or last"
            )
        size = tuple((box[:, 1] - box[:, 0]).tolist())
        if tuple(result.shape[axis] for axis in found) != size:
            raise ArrayError(
                f"postprocess of block {written(box)} must keep the size {size} of axes {found}, got shape {result.shape}"
            )
        if self._dtype_asked is not None and result.dtype != self._dtype_asked:
            result = result.astype(self._dtype_asked)
        return Finished(result, found)

    def _blended_dtype(self) -> np.dtype[Any]:
        """The type of a block before it is postprocessed."""
        if self._dtype_asked is not None and self._postprocess is None:
            return self._dtype_asked
        if self._reduce == "argmax" and self._axis is not None:
            return np.min_scalar_type(self._shape[self._axis] - 1)
        return np.result_type(self._dtype, np.float32) if self._reduce == "softmax" else self._dtype

    def _float_dtype(self) -> np.dtype[Any]:
        """The type in which a block is reduced."""
        return np.dtype(np.float64) if self._exact else self._sum_dtype

    def _axis_total(self, number: int) -> FloatArray | None:
        """The sum of the weights of all windows along one axis, where those of a patch are products."""
        axis = self.grid.axes[number]
        if self._weights.alike:
            return axis.overlaps.astype(np.float64)
        vectors = {}
        for size in set(axis.sizes):
            vector = self._weights.along(size)
            if vector is None:
                return None
            vectors[size] = vector / vector.max()
        total = np.zeros(axis.extent)
        for start, size in zip(axis.starts, axis.sizes, strict=True):
            part = total[start : start + size]
            part += vectors[size][: len(part)]
        return total

    def _sum_weights(self, place: Place, windows: Iterator[int]) -> FloatArray:
        spans = self.blocks.spans(place)
        total = np.zeros([stop - start for start, stop in spans])
        by_size: dict[tuple[int, ...], FloatArray] = {}
        for index in windows:
            box = self.grid.box(index)
            size = tuple((box[:, 1] - box[:, 0]).tolist())
            if size not in by_size:
                by_size[size] = self._weights.of(size)
            inside, part = [], []
            for (first, last), (start, stop) in zip(spans, box.tolist(), strict=True):
                low, high = max(first, start), min(last, stop)
                inside.append(slice(low - first, high - first))
                part.append(slice(low - start, high - start))
            total[tuple(inside)] += by_size[size][tuple(part)]
        return total


def same_axes(axes: tuple[int, ...], ndim: int, other_ndim: int) -> tuple[int, ...] | None:
    """Which axes of an array of `other_ndim` are those of one of `ndim`, where they are its first or last; else None."""
    if ndim == other_ndim:
        return axes
    n_axes = len(axes)
    if other_ndim >= n_axes and axes == tuple(range(n_axes)):
        return axes
    if other_ndim >= n_axes and axes == tuple(range(ndim - n_axes, ndim)):
        return tuple(range(other_ndim - n_axes, other_ndim))
    return None
