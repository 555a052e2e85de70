"""Annotation files: which program's they are, and what they hold.

In: files of ASAP, QuPath and Sedeen.  Out: regions, in level-0 pixels.  XML is read without entities.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from streamwsi.config import one_of
from streamwsi.errors import AnnotationError
from streamwsi.regions.extra import needed
from streamwsi.regions.geojson import from_geojson
from streamwsi.regions.region import Region

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Format = Literal["asap", "geojson", "sedeen"]
FORMATS: tuple[Format, ...] = get_args(Format)
_GZIP = b"\x1f\x8b"


def read_annotations(path: str | os.PathLike[str], format: Format | None = None, *, areas_only: bool = False) -> list[Region]:
    """The regions in the annotation file `path`, in its order.

    ==============  =====================================================================================================
    format          label and name of a region
    ==============  =====================================================================================================
    ``asap``        XML of ASAP: its group (``None``: no label) and its name; decimal commas are read too
    ``geojson``     GeoJSON of QuPath, gzipped or not: its classification and its name
    ``sedeen``      XML of Sedeen: its name and its description
    ==============  =====================================================================================================

    `format` None: what the file itself looks like. Polygons that are not valid are repaired, see :class:`Region`. Of a cell,
    the outline is read and the nucleus is not.

    Points and lines are no regions: a file that holds some is refused, unless `areas_only` says that they may be left out.

    Raises AnnotationError naming the file, and the region, if one cannot be used.
    """
    if format is not None:
        one_of(format, FORMATS, "format")
    source = Path(path)
    try:
        data = source.read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise AnnotationError(f"{source} cannot be read: {error}") from error
    text = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    try:
        if format == "geojson" or (format is None and text[:1] in (b"{", b"[")):
            regions, others = from_geojson(text)
        else:
            regions, others = _from_xml(text, format)
    except AnnotationError as error:
        raise AnnotationError(f"{source}: {error}") from error
    if others and not areas_only:
        some = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise AnnotationError(f"{source} holds what is no area: {some}; areas_only=True leaves that out")
    return regions


def _from_xml(text: bytes, format: Format | None) -> tuple[list[Region], list[str]]:
    """Regions, and what is none. Entities are refused: a file of a few lines can make gigabytes of them."""
    parsing = needed("defusedxml.ElementTree", "reading XML")
    common = needed("defusedxml.common", "reading XML")
    try:
        root = parsing.fromstring(text, forbid_dtd=False, forbid_entities=True, forbid_external=True)
    except common.DefusedXmlException as error:
        raise AnnotationError(f"its XML declares entities, which no annotation needs: {error}") from error
    except (parsing.ParseError, ValueError, LookupError) as error:
        raise AnnotationError(f"it is neither GeoJSON nor XML: {error}") from error
    kind: str | None = {"ASAP_Annotations": "asap", "session": "sedeen"}.get(root.tag)
    if kind is None or format not in (None, kind):
        expected = format or "ASAP's (ASAP_Annotations) nor Sedeen's (session)"
        raise AnnotationError(f"its XML begins with <{root.tag}>, which is not {expected}")
    return _from_asap(root) if kind == "asap" else _from_sedeen(root)


def _from_asap(root: Element) -> tuple[list[Region], list[str]]:
    """Source: https://github.com/computationalpathologygroup/ASAP, ``XmlRepository``."""
    regions, others = [], []
    for number, drawn in enumerate(root.iterfind("./Annotations/Annotation")):
        kind, name = drawn.get("Type", ""), drawn.get("Name") or f"annotation {number}"
        group = drawn.get("PartOfGroup")
        if kind not in ("Polygon", "Rectangle", "Spline"):
            others.append(f"{name!r}, a {kind or 'thing without a type'}")
            continue
        points = [
            (_whole(point.get("Order"), name), _number(point.get("X"), name), _number(point.get("Y"), name))
            for point in drawn.iterfind("./Coordinates/Coordinate")
        ]
        corners = [(x, y) for _, x, y in sorted(points, key=lambda point: point[0])]
        regions.append(Region(_polygon(corners, name), None if group in (None, "None", "") else group, name))
    return regions, others


def _from_sedeen(root: Element) -> tuple[list[Region], list[str]]:
    """Graphics of a session. A rectangle has four corners, or two that are opposite; an ellipse's points are not documented."""
    regions, others = [], []
    for number, drawn in enumerate(root.iterfind("./image/overlays/graphic")):
        kind, label = drawn.get("type", ""), drawn.get("name") or None
        name = drawn.get("description") or ""
        called = name or label or f"graphic {number}"
        if kind == "ellipse":
            raise AnnotationError(f"region {called!r} is an ellipse, whose form the file does not tell: draw it as a polygon")
        if kind not in ("polygon", "rectangle"):
            others.append(f"{called!r}, a {kind or 'thing without a type'}")
            continue
        corners = []
        for point in drawn.iterfind("./point-list/point"):
            x, comma, y = (point.text or "").partition(",")
            if not comma:
                raise AnnotationError(f"region {called!r} has a point {point.text!r}, expected x,y")
            corners.append((_number(x, called), _number(y, called)))
        if kind == "rectangle" and len(corners) == 2:
            (left, top), (right, bottom) = corners
            corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        regions.append(Region(_polygon(corners, called), label, name))
    return regions, others


def _number(text: str | None, name: str) -> float:
    """A coordinate; where the program ran in a language that writes decimals with commas, so does the file."""
    try:
        return float((text or "").strip().replace(",", "."))
    except ValueError as error:
        raise AnnotationError(f"region {name!r} has a coordinate {text!r}, expected a number") from error


def _whole(text: str | None, name: str) -> int:
    try:
        return int(text or "")
    except ValueError as error:
        raise AnnotationError(f"region {name!r} has a point of order {text!r}, expected a whole number") from error


def _polygon(corners: Sequence[tuple[float, float]], name: str) -> Any:
    if len(corners) < 3:
        raise AnnotationError(f"region {name!r} has {len(corners)} corners: an area has at least 3")
    return needed("shapely", "a region").Polygon(corners)
