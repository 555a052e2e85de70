"""Regions as GeoJSON, as QuPath writes and opens it.

In: text, or regions.  Out: regions, or a file.  Coordinates are level-0 pixels, y downwards.
Source: RFC 7946; https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html
"""

from __future__ import annotations

import gzip
import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from streamwsi.errors import AnnotationError, ConfigError
from streamwsi.regions.extra import needed
from streamwsi.regions.files import renamed_when_written
from streamwsi.regions.region import Region

_AREAS = ("Polygon", "MultiPolygon")


def from_geojson(text: bytes) -> tuple[list[Region], list[str]]:
    """Regions of a FeatureCollection, a Feature, or a list of them; and, in words, what is no area.

    Raises AnnotationError where it is no GeoJSON, and naming the region that cannot be used.
    """
    shapely = needed("shapely", "reading annotations")
    try:
        given = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise AnnotationError(f"it is not JSON: {error}") from error
    features = given
    if isinstance(given, dict):
        features = given.get("features") if given.get("type") == "FeatureCollection" else [given]
    if not isinstance(features, list):
        raise AnnotationError("it is neither a FeatureCollection, nor a Feature, nor a list of features")
    regions, others = [], []
    for number, feature in enumerate(features):
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise AnnotationError(f"entry {number} is not a Feature")
        properties = feature.get("properties") or {}
        geometry = feature.get("geometry") or {}
        if not isinstance(properties, dict) or not isinstance(geometry, dict):
            raise AnnotationError(f"feature {number}: properties and geometry must be objects")
        label, name = _label(properties, number), _text(properties.get("name"), "name", number)
        called = name or label or f"feature {number}"
        polygons: list[Any] | None = None
        for one in _simple(geometry):
            kind = one.get("type")
            if kind not in _AREAS:
                others.append(f"{called!r}, a {kind or 'thing without geometry'}")
                continue
            try:
                parts = [one["coordinates"]] if kind == "Polygon" else one["coordinates"]
                polygons = [*(polygons or ()), *(shapely.Polygon(rings[0], rings[1:]) for rings in parts)]
            except (KeyError, IndexError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
                raise AnnotationError(f"region {called!r} is no {kind}: {error!r}") from error
        if polygons is not None:
            shape = polygons[0] if geometry.get("type") == "Polygon" else shapely.MultiPolygon(polygons)
            regions.append(Region(shape, label, name))
    return regions, others


def _simple(geometry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The geometries that a collection consists of, those of collections in it included; another geometry as it is."""
    left = [geometry]
    while left:
        one = left.pop()
        members = one.get("geometries")
        if one.get("type") == "GeometryCollection" and isinstance(members, list) and members:
            left += [member if isinstance(member, dict) else {} for member in reversed(members)]
        else:
            yield one


def write_geojson(regions: Iterable[Region], path: str | os.PathLike[str]) -> Path:
    """Write regions as annotations that QuPath opens, with their holes, labels (as classifications) and names.

    Gzipped where the name of `path` ends in .gz. The same regions make the same file; a label has the same colour in every
    file. The file appears whole or not at all. Raises OutputError where it cannot be written.
    """
    final = Path(path)
    if final.suffix.lower() not in (".geojson", ".json", ".gz"):
        raise ConfigError(f"a GeoJSON file must be called .geojson, .json, or either with .gz, got {final}")
    features = [_feature(region, number) for number, region in enumerate(regions)]
    text = msgspec.json.encode({"type": "FeatureCollection", "features": features})
    with renamed_when_written(final) as temporary:
        temporary.write_bytes(gzip.compress(text, mtime=0) if final.suffix.lower() == ".gz" else text)
    return final


def _feature(region: Region, number: int) -> dict[str, Any]:
    geometry = msgspec.json.decode(needed("shapely", "writing annotations").to_geojson(region.polygon))
    properties: dict[str, Any] = {"objectType": "annotation"}
    if region.name:
        properties["name"] = region.name
    if region.label is not None:
        properties["classification"] = {"name": region.label, "color": colour_of(region.label)}
    told_apart_by = msgspec.json.encode([number, geometry, properties]).decode()
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, told_apart_by)),
        "geometry": geometry,
        "properties": properties,
    }


def _label(properties: dict[str, Any], number: int) -> str | None:
    """The name of QuPath's class: a text, or an object with `name`, or with the `names` that one of several parts has."""
    given = properties.get("classification")
    if isinstance(given, dict):
        names = given.get("names")
        given = ": ".join(names) if isinstance(names, list) and all(isinstance(n, str) for n in names) else given.get("name")
    return _text(given, "classification", number) or None


def _text(value: Any, what: str, number: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise AnnotationError(f"feature {number}: its {what} must be text, got {value!r}")
    return value


def colour_of(label: str) -> list[int]:
    """(R, G, B), 0–255, neither dark nor pale, that follows from the label."""
    return [55 + byte * 200 // 255 for byte in hashlib.blake2b(label.encode(), digest_size=3).digest()]
