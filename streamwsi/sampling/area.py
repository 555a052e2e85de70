"""A region of one slide, ready to be asked: by how much it covers windows, and with which label.

In: a mask, or regions somebody has drawn.  Out: shares of boxes.  Positions are in level-0 pixels. Polygons are asked
themselves, not a picture of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from streamwsi.errors import SamplingError
from streamwsi.regions.extra import needed
from streamwsi.regions.mask import BoolArray, Float64Array, Mask
from streamwsi.regions.polygon_mask import PolygonMask
from streamwsi.regions.region import Region
from streamwsi.sampling.pieces import Pieces

Absent = Literal["error", "ignore"]
Bounds = tuple[float, float, float, float]
"""(left, top, right, bottom), in level-0 pixels."""
_ROUNDING = 1e-6
_BLOCK = 1 << 17
"""Boxes that are looked at together."""


class Part(Protocol):
    """An area that is asked as one."""

    @property
    def bounds_l0(self) -> Bounds | None:
        """Of what is inside; None where nothing is."""
        ...

    @property
    def size(self) -> float:
        """How large it is, in squared level-0 pixels."""
        ...

    def coverage(self, xy: Float64Array, size: Float64Array) -> Float64Array:
        """Share of each box that is inside, as :meth:`streamwsi.Mask.coverage`; (n, 2) both. 1: all of it, to the last bit."""
        ...

    def contains(self, xy: npt.ArrayLike) -> BoolArray:
        """Which points are inside, (n,) bool, for (n, 2) positions."""
        ...

    def rings(self) -> list[Float64Array]:
        """The outlines, (k, 2) each; none where it is made of pixels."""
        ...


class Pixels:
    """What is inside of a mask, pixel by pixel."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask

    @cached_property
    def bounds_l0(self) -> Bounds | None:
        """See :class:`Part`."""
        columns, rows = (np.flatnonzero(self._mask.array.any(axis=axis)) for axis in (0, 1))
        if not len(columns):
            return None
        (x, y), (left, top) = self._mask.scale, self._mask.offset
        return left + columns[0] * x, top + rows[0] * y, left + (columns[-1] + 1) * x, top + (rows[-1] + 1) * y

    @property
    def size(self) -> float:
        """See :class:`Part`."""
        return float(self._mask.array.sum()) * self._mask.scale[0] * self._mask.scale[1]

    def coverage(self, xy: Float64Array, size: Float64Array) -> Float64Array:
        """See :class:`Part`."""
        shares = np.empty(len(xy))
        for start in range(0, len(xy), _BLOCK):
            rows = slice(start, start + _BLOCK)
            shares[rows] = self._mask.coverage(xy[rows], size[rows])
        return shares

    def contains(self, xy: npt.ArrayLike) -> BoolArray:
        """See :class:`Part`."""
        return self._mask.contains(xy)

    def rings(self) -> list[Float64Array]:
        """See :class:`Part`."""
        return []


class Polygons:
    """What is inside of polygons, and on the slide.

    Whether a box is inside whole, or not at all, is decided by the polygons themselves and exact; what it shares with them
    otherwise is computed with pieces of them.
    """

    def __init__(self, shapes: Sequence[Any], dimensions: tuple[int, int]) -> None:
        shapely = needed("shapely", "a region of polygons")
        area = shapes[0] if len(shapes) == 1 else shapely.union_all(shapes)
        whole = shapely.box(0, 0, *dimensions)
        if not whole.covers(area):
            area = _areas(whole.intersection(area))
        shapely.prepare(area)
        self._area, self._shapely = area, shapely

    @property
    def bounds_l0(self) -> Bounds | None:
        """See :class:`Part`."""
        return None if self._area.is_empty else self._area.bounds

    @property
    def size(self) -> float:
        """See :class:`Part`."""
        return float(self._area.area)

    def coverage(self, xy: Float64Array, size: Float64Array) -> Float64Array:
        """See :class:`Part`."""
        shares = np.zeros(len(xy))
        if self._area.is_empty:
            return shares
        left, top, right, bottom = self._area.bounds
        near: BoolArray = np.all((xy < (right, bottom)) & (xy + size > (left, top)), axis=1)
        for start in range(0, len(xy), _BLOCK):
            rows = start + np.flatnonzero(near[start : start + _BLOCK])
            shares[rows] = self._shares(xy[rows], size[rows])
        return shares

    def contains(self, xy: npt.ArrayLike) -> BoolArray:
        """See :class:`Part`."""
        inside: BoolArray = self._shapely.contains_xy(self._area, np.asarray(xy, np.float64))
        return inside

    def rings(self) -> list[Float64Array]:
        """See :class:`Part`."""
        shapely = self._shapely
        return [shapely.get_coordinates(ring) for part in shapely.get_parts(self._area) for ring in shapely.get_rings(part)]

    def _shares(self, xy: Float64Array, size: Float64Array) -> Float64Array:
        shapely = self._shapely
        boxes = shapely.box(*xy.T, *(xy + size).T)
        shares: Float64Array = shapely.contains_properly(self._area, boxes).astype(np.float64)
        edge = np.flatnonzero(shares == 0)
        edge = edge[shapely.intersects(self._area, boxes[edge])]
        if len(edge):
            shared = self._pieces.shared(xy[edge], size[edge]) / size[edge].prod(axis=1)
            # whether all of a box is inside takes long to tell exactly, and must not follow from numbers that are rounded
            nearly = np.flatnonzero(shared > 1 - _ROUNDING)
            whole = nearly[shapely.covers(self._area, boxes[edge[nearly]])]
            shares[edge] = np.clip(shared, 0, np.nextafter(1, 0))
            shares[edge[whole]] = 1
        return shares

    @cached_property
    def _pieces(self) -> Pieces:
        shapely = self._shapely
        rings = []
        for part in shapely.get_parts(self._area):
            # round which way a ring was drawn does not matter: the outer one adds, holes subtract
            outer, *holes = (shapely.get_coordinates(ring)[:-1] for ring in shapely.get_rings(part))
            rings += [_turned(outer, 1.0), *(_turned(hole, -1.0) for hole in holes)]
        return Pieces(rings)


def _turned(ring: Float64Array, sign: float) -> Float64Array:
    """A ring, (n, 2), begun at its first corner, in the direction in which :class:`Pieces` counts its area with this sign."""
    x, y = ring.T
    area = ((np.roll(x, -1) - x) * (np.roll(y, -1) + y)).sum()
    return ring if area * sign >= 0 else ring[::-1]


def _areas(shape: Any) -> Any:
    """What of a geometry has an area; polygons that only touch leave lines and points."""
    shapely = needed("shapely", "a region of polygons")
    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    return shapely.MultiPolygon([part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"])


@dataclass(frozen=True, eq=False)
class Area:
    """A region of a slide, by label."""

    parts: tuple[tuple[str | None, Part], ...]
    """What each label covers, the smaller first (of two labels that cover a window alike, it has that of the smaller area);
    None: what has no label."""
    whole: Part
    """All of it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its labels, in the order of the alphabet."""
        return tuple(sorted(label for label, _ in self.parts if label is not None))


def area_of(
    drawn: Mask | Sequence[Region],
    dimensions: tuple[int, int],
    include: Collection[str] | None = None,
    exclude: Collection[str] | None = None,
    absent: Absent = "error",
) -> Area:
    """The area that a mask or regions are on a slide of `dimensions`, of the labels that are asked for.

    Raises SamplingError where a label is not there (unless `absent` is ``ignore``), where there is no region at all, or none on
    the slide; MaskError where the mask does not lie on the slide.
    """
    if isinstance(drawn, Mask):
        check_labels((), include or exclude, absent)
        drawn.check_on(dimensions)
        part: Part = Polygons([drawn.area], dimensions) if isinstance(drawn, PolygonMask) else Pixels(drawn)
        return Area(((None, part),), part)
    if not drawn:
        raise SamplingError("there is no region")
    check_labels({region.label for region in drawn if region.label is not None}, include or exclude, absent)
    chosen = [
        region
        for region in drawn
        if (include is None or region.label in include) and (exclude is None or region.label not in exclude)
    ]
    whole = needed("shapely", "a region of polygons").box(0, 0, *dimensions)
    if chosen and not any(region.polygon.intersects(whole) for region in chosen):
        raise SamplingError(
            f"no region lies on the slide, which is {dimensions[0]} × {dimensions[1]} level-0 pixels: "
            f"{', '.join(map(str, chosen[:5]))}; are their coordinates level-0 pixels, and is it the slide they were drawn on?"
        )
    by_label: dict[str | None, list[Any]] = {}
    for region in chosen:
        by_label.setdefault(region.label, []).append(region.polygon)
    parts = [(label, Polygons(shapes, dimensions)) for label, shapes in by_label.items()]
    parts.sort(key=lambda part: (part[1].size, part[0] or ""))
    if len(parts) == 1:
        return Area(tuple(parts), parts[0][1])
    return Area(tuple(parts), Polygons([region.polygon for region in chosen], dimensions))


def check_labels(there: Collection[str], asked: Collection[str] | None, absent: Absent) -> None:
    """Raise SamplingError where a label that is asked for is not among those that are `there`."""
    unknown = sorted(set(asked or ()) - set(there))
    if unknown and absent == "error":
        have = f"it has {', '.join(map(repr, sorted(there)))}" if there else "it has none"
        raise SamplingError(f"the region has no label {', '.join(map(repr, unknown))}: {have}; absent='ignore' goes on without")
