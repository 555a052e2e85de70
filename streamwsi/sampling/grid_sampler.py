"""Windows on a grid.

In: a Scene.  Out: the places of a sliding window, on the slide or in a region of it, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal

import numpy as np

from streamwsi.config import check_border, one_of, positive_pair
from streamwsi.errors import ConfigError, SamplingError
from streamwsi.geometry import Border, Int64Array, axis_starts
from streamwsi.sampling.apart import Apart, Taken, first_come
from streamwsi.sampling.area import Absent
from streamwsi.sampling.conditions import Field, conditions
from streamwsi.sampling.options import MOST_WINDOWS, RegionSampler
from streamwsi.sampling.regions import RegionSource
from streamwsi.sampling.sampler import Places
from streamwsi.sampling.scene import Scene

Origin = Literal["slide", "region"]


class GridSampler(RegionSampler):
    """The sliding window: windows on a grid, on the whole slide or where it covers a region.

    Parameters
    ----------
    stride
        An int or (x, y), in pixels of what is read. None: the window's size.
    border
        What happens at the end of the grid: ``pad``, ``edge``, ``squeeze``, ``adaptive`` or ``crop``; see
        :func:`streamwsi.geometry.axis_starts`. ``adaptive`` goes with the whole slide only, and in pictures: the windows of a
        sampler are all of one size, so that a :class:`WindowLoader` refuses it.
    origin
        Where the grid begins: at the ``slide``'s upper left corner, or at that of the box around the ``region``, in which it
        then ends too.
    region
        Where windows may lie; None: anywhere. What it may be is said with :class:`Annotated`.
    min_coverage
        Share of a window's own area that must be inside, above 0 and at most 1; with a region, by default 0.5. What of a window
        lies beyond the slide is not inside. 1: all of it, to the last bit, however small a hole is.
    include, exclude
        Labels of the regions that count, or of those that do not. One of the two.
    absent
        What happens on a slide that has no region of a label asked for: ``error``: it fails; ``ignore``: it goes on without.
    labelled
        Whether windows carry labels: that of the region that covers most of the window, against which its coverage is measured
        then; of regions that cover it alike, that of the smaller. None: they do where regions are seen to have labels, or
        labels are asked for; of a function that returns regions it cannot be seen.
    max_overlap
        Share of a window's area that it may share with any other, 0–1. 1: no limit. Windows come row by row, and one that
        shares more with one before it is left out.
    margin
        Context around each window, in pixels of what is read; kept for the reader.

    Nothing is drawn: there is no seed, and each epoch is alike. Where no window covers enough of the region there is none.

    Raises ConfigError for options that cannot work, or do not go together.
    """

    def __init__(
        self,
        stride: int | tuple[int, int] | None = None,
        border: Border = "pad",
        *,
        origin: Origin = "slide",
        region: RegionSource | None = None,
        min_coverage: float | None = None,
        include: Collection[str] | None = None,
        exclude: Collection[str] | None = None,
        absent: Absent = "error",
        labelled: bool | None = None,
        max_overlap: float = 1.0,
        margin: int = 0,
    ) -> None:
        super().__init__(conditions(region, min_coverage, include, exclude, labelled, absent), max_overlap, margin)
        self._stride = None if stride is None else positive_pair(stride, "stride")
        self.border = check_border(border)
        """As it was given."""
        self._origin: Origin = one_of(origin, ("slide", "region"), "origin")
        if region is None and origin == "region":
            raise ConfigError("origin='region' goes with region=, and there is none")
        if region is not None and border == "adaptive":
            raise ConfigError(
                "border='adaptive' cuts windows at the slide's edge: it goes with the whole slide, not with region="
            )

    def places(self, scene: Scene) -> Places:
        """See :meth:`Sampler.places`."""
        field = self._conditions.on(scene)
        stride = self._stride or scene.kernel
        xs, ys = self._axes(scene, field, stride)
        if len(xs) * len(ys) > MOST_WINDOWS:
            raise SamplingError(
                f"slide {scene.slide.id!r} has {len(xs)} × {len(ys)} windows, more than {MOST_WINDOWS}: take a larger stride"
            )
        start = np.column_stack([np.tile(xs, len(ys)), np.repeat(ys, len(xs))])
        enough, code, _ = field.judge(start)
        start, code = start[enough], code[enough]
        if self._max_overlap < 1:
            apart = Apart(scene.kernel, self._max_overlap)
            kept = first_come(start, apart, Taken(apart))
            start, code = start[kept], code[kept]
        return self._labelled(field, start, code, stride)

    def _axes(self, scene: Scene, field: Field, stride: tuple[int, int]) -> tuple[Int64Array, Int64Array]:
        """Left and upper edges of the grid's columns and rows, without those that lie beyond the region."""
        first, extent = (0, 0), scene.extent
        low, high = (-math.inf, -math.inf), (math.inf, math.inf)
        if field.area is not None:
            if field.bounds_l0 is None:
                return np.empty(0, np.int64), np.empty(0, np.int64)
            left, top, right, bottom = (edge / scene.downsample for edge in field.bounds_l0)
            low, high = (left, top), (right, bottom)
            if self._origin == "region":
                first = math.floor(left), math.floor(top)
                extent = math.ceil(right) - first[0], math.ceil(bottom) - first[1]
        axes = []
        for axis in range(2):
            starts = first[axis] + axis_starts(extent[axis], scene.kernel[axis], stride[axis], self.border)
            axes.append(starts[(starts + scene.kernel[axis] > low[axis]) & (starts < high[axis])])
        return axes[0], axes[1]

    def _own(self) -> dict[str, Any]:
        return {"stride": None if self._stride is None else list(self._stride), "border": self.border, "origin": self._origin}
