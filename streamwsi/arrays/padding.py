"""What stands in a patch beyond the end of the array: a value, or what ``numpy.pad`` would put there.

In: a source, a box.  Out: the patch.  Reads no more of the array than the patch needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamwsi.arrays.grid import Axis
from streamwsi.arrays.sources import AnyArray
from streamwsi.errors import ConfigError
from streamwsi.geometry import Int64Array

REPEATED = ("edge", "reflect", "symmetric", "wrap")
"""Modes whose every index beyond the end is one within."""
COMPUTED = ("linear_ramp", "maximum", "mean", "median", "minimum")
"""Modes that compute from whole lines of the array."""
PAD_MODES = ("constant", *REPEATED, *COMPUTED)

Read = Callable[[tuple[slice, ...]], AnyArray]


@dataclass(frozen=True)
class Padding:
    """How to fill what lies beyond the end of the array."""

    mode: str = "constant"
    value: float = 0

    def __post_init__(self) -> None:
        if self.mode not in PAD_MODES:
            raise ConfigError(f"pad_mode must be one of {', '.join(PAD_MODES)}, got {self.mode!r}")
        if self.value and self.mode not in ("constant", "linear_ramp"):
            raise ConfigError(f"pad_value is for pad_mode 'constant' and 'linear_ramp', got {self.value!r} with {self.mode!r}")

    def span(self, axis: Axis, along: int) -> tuple[int, int]:
        """First and last index + 1 of the array that window `along` of an axis needs."""
        start, stop = axis.spans[along]
        if stop <= axis.extent or self.mode == "constant":
            return start, min(stop, axis.extent)
        if self.mode in COMPUTED:
            return 0, axis.extent
        within = indices_within(start, stop, axis.extent, self.mode)
        return int(within.min()), int(within.max()) + 1

    def reaches_far(self, axis: Axis, along: int) -> bool:
        """Whether the window needs what lies far from it."""
        return axis.stops[along] > axis.extent and self.mode in ("wrap", *COMPUTED)

    def patch(self, read: Read, ndim: int, axes: Sequence[Axis], spatial: Sequence[int], place: Sequence[int]) -> AnyArray:
        """The patch at `place`, whole; `read` gives what lies within the array, `spatial` are the axes' numbers in it.

        Equal to ``numpy.pad(array, …, mode)[box]``, but the array is not padded.
        """
        where = [slice(None)] * ndim
        beyond = []
        for axis, number, along in zip(axes, spatial, place, strict=True):
            start, stop = axis.spans[along]
            if stop > axis.extent:
                beyond.append((axis, number, along))
                start, stop = self.span(axis, along)
            where[number] = slice(start, stop)
        patch = read(tuple(where))
        if not beyond:
            return patch
        if self.mode in REPEATED:
            for axis, number, along in beyond:
                within = indices_within(axis.starts[along], axis.stops[along], axis.extent, self.mode)
                patch = patch.take(within - within.min(), axis=number)
            return patch
        widths = [(0, 0)] * ndim
        crop = [slice(None)] * ndim
        for axis, number, along in beyond:
            widths[number] = (0, (axis.stops[along] if self.mode == "constant" else axis.stops[-1]) - axis.extent)
            if self.mode != "constant":  # the whole line was read
                crop[number] = slice(axis.starts[along], axis.stops[along])
        mode: Any = self.mode
        values = {"constant": {"constant_values": self.value}, "linear_ramp": {"end_values": self.value}}
        padded: AnyArray = np.pad(patch, widths, mode, **values.get(self.mode, {}))
        return padded[tuple(crop)]


def indices_within(start: int, stop: int, extent: int, mode: str) -> Int64Array:
    """Which index of an axis stands at each of ``start … stop - 1``, some of them beyond its end; (stop - start,) int64.

    Source: the definitions of ``numpy.pad``, which repeats a reflected axis with period 2 (extent - 1), a symmetric one
    with period 2 extent.
    """
    at = np.arange(start, stop, dtype=np.int64)
    if mode == "edge":
        return np.minimum(at, extent - 1)
    if mode == "wrap":
        return at % extent
    if mode == "symmetric":
        at %= 2 * extent
        return np.minimum(at, 2 * extent - 1 - at)
    period = max(2 * (extent - 1), 1)  # an axis of one index has nothing to reflect
    at %= period
    return np.minimum(at, period - at)
