"""A mask made of polygons.

In: regions or polygons.  Out: a mask, whose pixels are inside where their centres are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamwsi.config import at_least
from streamwsi.errors import ConfigError, MaskError
from streamwsi.regions.extra import needed
from streamwsi.regions.facts import Sized, dimensions_of
from streamwsi.regions.mask import BoolArray, Mask
from streamwsi.regions.region import Region

if TYPE_CHECKING:
    from shapely import MultiPolygon, Polygon


class PolygonMask(Mask):
    """What lies in any of the polygons, and in none of their own holes.

    Parameters
    ----------
    polygons
        Regions, or shapely's Polygons and MultiPolygons, in level-0 pixels. What reaches beyond the slide is cut off.
    slide
        The slide, or (width, height) in level-0 pixels; the mask covers it.
    scale, max_px
        Its resolution, one of: level-0 pixels per pixel of the mask, or at most so many pixels along its longer side (by
        default 4096), of at least one level-0 pixel each.
    inverse
        Inside is what lies on the slide and in no polygon.

    A pixel of the mask is inside where its centre is, so that `coverage` is that of the polygons to within the pixels at their
    edges, and what is much smaller than a pixel may have none; `contains` asks the polygons themselves, and is exact.

    Raises MaskError where no polygon is on the slide, or the mask would be too large; AnnotationError for polygons that are
    none.
    """

    def __init__(
        self,
        polygons: Iterable[Region | Polygon | MultiPolygon],
        slide: Sized,
        *,
        scale: float | None = None,
        max_px: int | None = None,
        inverse: bool = False,
    ) -> None:
        shapely = needed("shapely", "a mask of polygons")
        if scale is not None and max_px is not None:
            raise ConfigError(f"give one of scale= and max_px=, got {scale!r} and {max_px!r}")
        width, height = dimensions_of(slide)
        side = (
            scale
            if scale is not None
            else max(max(width, height) / at_least(4096 if max_px is None else max_px, 16, "max_px"), 1.0)
        )
        if not (math.isfinite(side) and side > 0):
            raise ConfigError(f"scale must be above 0 level-0 pixels per pixel of the mask, got {scale!r}")
        rows, columns = math.ceil(height / side), math.ceil(width / side)
        if rows * columns > _LARGEST_MASK_PX:
            raise MaskError(f"a mask of {columns} × {rows} pixels has more than {_LARGEST_MASK_PX}: give a larger scale=")
        whole = shapely.box(0, 0, width, height)
        given = [each if isinstance(each, Region) else Region(each) for each in polygons]
        outside = [str(region) for region in given if not region.polygon.intersects(whole)]
        if given and len(outside) == len(given):
            raise MaskError(
                f"no region lies on the slide, which is {width} × {height} level-0 pixels: {', '.join(outside[:5])}; are their "
                "coordinates level-0 pixels, and is it the slide they were drawn on?"
            )
        area = shapely.union_all([region.polygon for region in given]) if given else shapely.MultiPolygon()
        area = whole.difference(area) if inverse else whole.intersection(area)
        shapely.prepare(area)
        self.area: Any = area
        """What is inside: shapely's geometry, in level-0 pixels."""
        self._slide, self._inverse, self._given = (width, height), inverse, given
        super().__init__(rasterised(area, (rows, columns), side), scale=side, offset=(0.0, 0.0))

    def contains(self, xy: npt.ArrayLike) -> BoolArray:
        """Which points are inside the polygons themselves: (n,) bool; those on an edge are not."""
        points = np.asarray(xy, np.float64)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ConfigError(f"points must be (n, 2), got {points.shape}")
        inside: BoolArray = needed("shapely", "a mask of polygons").contains_xy(self.area, points)
        return inside

    def inverse(self) -> PolygonMask:
        """What lies on the slide and is not inside of this one."""
        return PolygonMask(self._given, self._slide, scale=self.scale[0], inverse=not self._inverse)


_LARGEST_MASK_PX = 1 << 28


def rasterised(area: Any, shape: tuple[int, int], scale: float) -> BoolArray:
    """Pixels whose centres lie in an area, and not on its edge: (rows, columns) bool.

    `area` is a geometry of shapely that was prepared; pixels are of `scale` level-0 pixels from (0, 0).
    """
    contains_xy = needed("shapely", "a mask of polygons").contains_xy
    rows, columns = shape
    inside = np.zeros(shape, bool)
    if area.is_empty:
        return inside
    left, top, right, bottom = (edge / scale for edge in area.bounds)
    across = slice(max(math.floor(left), 0), min(math.ceil(right), columns))
    x = (np.arange(columns)[across] + 0.5) * scale
    for row in range(max(math.floor(top), 0), min(math.ceil(bottom), rows)):
        inside[row, across] = contains_xy(area, x, (row + 0.5) * scale)
    return inside
