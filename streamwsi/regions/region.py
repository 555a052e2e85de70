"""Regions that people have drawn.

In: polygons, as files or code give them.  Out: regions, valid, in level-0 pixels.  Never drops one, never mends one unsaid.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from streamwsi.errors import AnnotationError, ConfigError
from streamwsi.regions.extra import needed

if TYPE_CHECKING:
    from shapely import MultiPolygon, Polygon

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Region:
    """An area of a slide, with what it was called.

    A polygon that is not valid (one that crosses itself, say) is repaired; `repaired` says why, and so does the log. Raises
    AnnotationError naming the region where nothing can be made of it that has an area.
    """

    polygon: Polygon | MultiPolygon
    """Shapely's Polygon or MultiPolygon, valid, with its holes, in level-0 pixels."""
    label: str | None = None
    """Its class (QuPath's classification, ASAP's group); None where it has none."""
    name: str = ""
    """What it is called by itself."""
    repaired: str = field(default="", compare=False)
    """What was wrong with the polygon that was given; empty where nothing was."""

    def __post_init__(self) -> None:
        shapely = needed("shapely", "a region")
        given = self.polygon
        if getattr(given, "geom_type", None) not in ("Polygon", "MultiPolygon"):
            raise AnnotationError(f"{self} must be a Polygon or MultiPolygon, got {getattr(given, 'geom_type', type(given))}")
        coordinates = shapely.get_coordinates(given)
        if not len(coordinates) or not all(map(math.isfinite, coordinates.sum(axis=0))):
            raise AnnotationError(f"{self} is empty, or has coordinates that are no numbers")
        if given.has_z:
            object.__setattr__(self, "polygon", shapely.force_2d(given))
        if not shapely.is_valid(self.polygon):
            self._repair(shapely)
        if not self.polygon.area > 0:
            raise AnnotationError(f"{self} has no area")

    def __str__(self) -> str:
        called = f"region {self.name!r}" if self.name else "a region"
        return called + (f" ({self.label})" if self.label is not None else "")

    def buffered(self, distance: float, *, mpp: float | tuple[float, float] | None = None) -> Region:
        """The region grown by a distance, or shrunk where that is below 0.

        `distance` is in level-0 pixels, or in micrometres where `mpp`, (x, y) micrometres per level-0 pixel, is given. Raises
        AnnotationError where nothing is left.
        """
        affinity = needed("shapely.affinity", "a region")
        x, y = (1.0, 1.0) if mpp is None else mpp if isinstance(mpp, tuple) else (mpp, mpp)
        if not (math.isfinite(distance) and 0 < x < math.inf and 0 < y < math.inf):
            raise ConfigError(f"distance and mpp must be finite, mpp above 0, got {distance!r} and {mpp!r}")
        grown = affinity.scale(self.polygon, x, y, origin=(0, 0)).buffer(distance)
        if grown.is_empty:
            unit = "px" if mpp is None else "µm"
            raise AnnotationError(f"nothing is left of {self} when it is shrunk by {-distance:g} {unit}")
        return replace(self, polygon=affinity.scale(grown, 1 / x, 1 / y, origin=(0, 0)))

    def _repair(self, shapely: Any) -> None:
        why = shapely.is_valid_reason(self.polygon)
        drawn = shapely.MultiPolygon([_with_holes_inside(shapely, part) for part in shapely.get_parts(self.polygon)])
        made = shapely.make_valid(drawn, method="structure", keep_collapsed=False)
        parts = [part for part in shapely.get_parts(made) if part.geom_type == "Polygon" and part.area > 0]
        if not parts:
            raise AnnotationError(f"{self} has no area: {why}")
        mended = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
        place = ", ".join(f"{edge:.0f}" for edge in mended.bounds)
        _log.warning(
            "%s at (%s) was repaired: %s; its area was %.6g and is %.6g", self, place, why, self.polygon.area, mended.area
        )
        object.__setattr__(self, "polygon", mended)
        object.__setattr__(self, "repaired", why)


def _with_holes_inside(shapely: Any, polygon: Any) -> Any:
    """Without holes that lie beside it, which a repair would make areas of."""
    filled = _filled(shapely, polygon.exterior)
    holes = [hole for hole in polygon.interiors if _filled(shapely, hole).intersects(filled)]
    return shapely.Polygon(polygon.exterior, holes)


def _filled(shapely: Any, ring: Any) -> Any:
    return shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False)


def nested_as_holes(regions: Iterable[Region], holes: Collection[str] | None = None) -> list[Region]:
    """Regions with those that lie in them cut out, for programs that know no holes.

    Parameters
    ----------
    regions
        In any order; that of what is left stays.
    holes
        Labels that mean a hole: such regions are cut out of every other, and are no regions themselves. None: a region that
        lies in one of its own label is a hole in it, and one in that hole is a region again, and so on.

    Raises AnnotationError naming the region of which nothing is left.
    """
    own = list(regions)
    if holes is not None:
        cutters = [region for region in own if region.label in holes]
        return [_cut(region, cutters) for region in own if region.label not in holes]
    around = _around(own)
    left = []
    for number, region in enumerate(own):
        if len(around[number]) % 2 == 0:
            deeper = len(around[number]) + 1
            inner = [own[other] for other, outer in enumerate(around) if len(outer) == deeper and number in outer]
            left.append(_cut(region, inner))
    return left


def _around(regions: Sequence[Region]) -> list[set[int]]:
    """For each region, the places of those of its label that it lies in."""
    shapely = needed("shapely", "a region")
    around: list[set[int]] = [set() for _ in regions]
    shapes = [region.polygon for region in regions]
    for inner, outer in zip(*shapely.STRtree(shapes).query(shapes, predicate="covered_by").tolist(), strict=True):
        if regions[inner].label == regions[outer].label and regions[outer].polygon.area > regions[inner].polygon.area:
            around[inner].add(outer)
    return around


def _cut(region: Region, holes: Sequence[Region]) -> Region:
    if not holes:
        return region
    shapely = needed("shapely", "a region")
    left = region.polygon.difference(shapely.union_all([hole.polygon for hole in holes]))
    parts = [part for part in shapely.get_parts(left) if part.geom_type == "Polygon" and part.area > 0]
    if not parts:
        raise AnnotationError(f"nothing is left of {region} once the regions in it are cut out")
    return replace(region, polygon=parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts))
