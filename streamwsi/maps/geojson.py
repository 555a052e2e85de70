"""Results as GeoJSON that QuPath opens.

In: a patient file.  Out: its windows, or the areas where a value is high, with their values, one feature after the other into a
file.  Memory follows the map, and a part of the windows. Coordinates are level-0 pixels, y downwards.

Source: RFC 7946; https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html; what QuPath 0.4 and later
read of a Feature: ``qupath.lib.io.PathObjectTypeAdapters``.
"""

from __future__ import annotations

import gzip
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.config import one_of
from streamwsi.errors import ConfigError, MapError
from streamwsi.geometry import Int64Array
from streamwsi.maps.pieces import Pieces, PieceStream, SlidePlan, flattened, refuse_images, slides_in, stream
from streamwsi.maps.raster import Map, coarser_for, place, plan_of
from streamwsi.regions.extra import needed
from streamwsi.regions.geojson import colour_of
from streamwsi.writing.layout import as_file_name, renamed_when_whole

Objects = Literal["windows", "regions"]
OBJECTS: tuple[Objects, ...] = get_args(Objects)
ObjectType = Literal["detection", "annotation", "tile"]
OBJECT_TYPES: tuple[ObjectType, ...] = get_args(ObjectType)
_SUFFIXES = (".geojson", ".json", ".gz")
_CELLS_AT_MOST = (4096, 4096)
"""Columns and rows of the map that regions are taken from: of a larger one, cells are joined."""
_STRAIGHT = 1e-9
"""Corners that lie so near to the line between their neighbours, in level-0 pixels, are none."""


def export_geojson(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    slide: str | None = None,
    *,
    patient: str | None = None,
    objects: Objects = "windows",
    channel: int | str | None = None,
    threshold: float | None = None,
    object_type: ObjectType | None = None,
    label: str | None = None,
) -> Path:
    """Write the results of one slide as objects that QuPath opens; returns the file's path.

    Parameters
    ----------
    path, slide, patient
        As for :func:`~streamwsi.maps.pieces.read_pieces`.
    target
        The file, ``.geojson`` or ``.json``, gzipped where it ends in ``.gz``, or a folder for it. By default
        ``<patient>[_<slide>]_<objects>.geojson`` beside `path`, with the slide where the patient has several.
    objects
        ``"windows"``: each window that has a value is a rectangle with its values as measurements, and its label as class.
        ``"regions"``: each connected area of the map where the value is at least `threshold` is a polygon, with holes; its
        measurements are the mean, the least and the greatest value of its cells and its area in cells. Cells that meet at a
        corner only are not connected.
    channel
        Which of the flattened values: its number, from 0, or its column's name. None: all of them for windows, the first for
        regions.
    threshold
        Values below it are left out, NaN too; windows by their first value, or by that of `channel`. None: no window is.
    object_type
        What QuPath makes of them: ``"detection"`` (many, quick to show; by default for windows), ``"annotation"`` (to be
        edited; by default for regions) or ``"tile"``.
    label
        The class of all objects; by default the label of a window, and the name of the value for regions.

    The same results make the same file. Measurements that are no finite numbers are left out, for JSON has none. Raises
    ConfigError for an option that cannot work, MapError when the pieces cannot be read back.
    """
    one_of(objects, OBJECTS, "objects")
    kind = one_of(object_type or ("detection" if objects == "windows" else "annotation"), OBJECT_TYPES, "object_type")
    if objects == "regions" and threshold is None:
        raise ConfigError("regions are where a value is at least a threshold: give threshold=")
    if threshold is not None and not math.isfinite(threshold):
        raise ConfigError(f"threshold must be a finite number, got {threshold!r}")
    path = Path(path)
    chosen = 0 if channel is None and objects == "regions" else channel
    pieces = stream(path, slide, patient, chosen)
    plan = plan_of(pieces)
    final = _target(path, target, pieces, objects)
    if objects == "windows":
        features = _windows(pieces, plan, threshold, kind, label)
    else:
        heat = place(pieces, coarser_for(plan, _CELLS_AT_MOST))
        features = _regions(heat, float(threshold or 0), kind, label if label is not None else pieces.columns[0])
    with renamed_when_whole(final) as temporary, _opened(temporary, final) as file:
        file.write(b'{"type":"FeatureCollection","features":[')
        for number, feature in enumerate(features):
            file.write((b",\n" if number else b"\n") + msgspec.json.encode(feature))
        file.write(b"\n]}\n")
    return final


def export_all(folder: str | os.PathLike[str], target: str | os.PathLike[str] | None = None, **options: Any) -> list[Path]:
    """A file for each patient and slide of an output folder, beside the patient files or in the folder `target`.

    `options` are those of :func:`export_geojson`. Raises MapError when the folder has no patient file.
    """
    folder = Path(folder)
    if target is not None and not Path(target).is_dir():
        raise MapError(
            f"{target} is not a folder; one for the files of {folder} was expected: make it, or name one patient's file there"
        )
    refuse_images(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".h5", ".csv") and not path.name.startswith("."))
    written = [
        export_geojson(path, target, slide, patient=patient, **options) for path in files for patient, slide in slides_in(path)
    ]
    if not written:
        raise MapError(f"{folder} holds no patient file with a slide (<patient>.h5 or <patient>.csv)")
    return written


def _target(path: Path, target: str | os.PathLike[str] | None, pieces: PieceStream, objects: str) -> Path:
    chosen = path.parent if target is None else Path(target)
    if chosen.is_dir():
        several = len([own for own, _ in slides_in(path) if own == pieces.patient]) > 1
        partial = ["partial"] if path.stem.endswith(".partial") else []
        parts = [pieces.patient, *([pieces.slide] if several else []), objects, *partial]
        chosen = chosen / f"{as_file_name('_'.join(parts))}.geojson"
    if chosen.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"a GeoJSON file must be called .geojson, .json, or either with .gz, got {chosen}")
    return chosen


@contextmanager
def _opened(temporary: Path, final: Path) -> Iterator[IO[bytes]]:
    with temporary.open("wb") as file:
        if final.suffix.lower() != ".gz":
            yield file
            return
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
            yield packed  # type: ignore[misc]  # it writes bytes as a file does


def _windows(
    pieces: PieceStream, plan: SlidePlan, threshold: float | None, kind: ObjectType, label: str | None
) -> Iterator[dict[str, Any]]:
    for part in pieces:
        values = flattened(part.values)
        kept = np.arange(len(part)) if threshold is None else np.flatnonzero(values[:, 0] >= threshold)
        corners = _corners(part, plan, kept)
        for row, (left, top, right, bottom), numbers in zip(kept.tolist(), corners, values[kept].tolist(), strict=True):
            own = label if label is not None else (part.labels[row] or None) if part.labels is not None else None
            ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
            yield _feature(
                f"{pieces.patient}/{pieces.slide}/{part.index[row]}",
                {"type": "Polygon", "coordinates": [ring]},
                kind,
                own,
                f"window {part.index[row]}",
                dict(zip(pieces.columns, numbers, strict=True)),
            )


def _corners(part: Pieces, plan: SlidePlan, rows: Int64Array) -> list[list[float]]:
    """Left, top, right, bottom of windows, in level-0 pixels."""
    low = part.coords[rows]
    corners: list[list[float]] = np.concatenate([low, low + part.size[rows] * plan.downsample], axis=1).round(2).tolist()
    return corners


def _regions(heat: Map, threshold: float, kind: ObjectType, label: str) -> Iterator[dict[str, Any]]:
    """The connected areas of a map, from the top."""
    measure = needed("skimage.measure", "regions of results")
    values = heat.values[..., 0]
    with np.errstate(invalid="ignore"):
        inside = values >= threshold
    named, count = measure.label(inside, connectivity=1, return_num=True)
    places = measure.regionprops(named)
    for number in range(count):
        rows, columns = places[number].slice
        own = named[rows, columns] == number + 1
        polygon = _outline(own, heat.x_edges[columns.start : columns.stop + 1], heat.y_edges[rows.start : rows.stop + 1])
        found = values[rows, columns][own]
        yield _feature(
            f"{heat.patient}/{heat.slide}/{heat.columns[0]}/{threshold!r}/{number}",
            polygon,
            kind,
            label,
            "",
            {"mean": float(found.mean()), "min": float(found.min()), "max": float(found.max()), "cells": int(own.sum())},
        )


def _outline(inside: npt.NDArray[np.bool_], x_edges: npt.NDArray[np.float64], y_edges: npt.NDArray[np.float64]) -> Any:
    """The polygon of connected cells, with its holes: GeoJSON's geometry."""
    shapely = needed("shapely", "regions of results")
    padded = np.zeros((inside.shape[0], inside.shape[1] + 2), np.int8)
    padded[:, 1:-1] = inside
    steps = np.diff(padded, axis=1)
    rows, first = np.nonzero(steps == 1)  # a run of cells in a row is one box
    stop = np.nonzero(steps == -1)[1]
    boxes = shapely.box(x_edges[first], y_edges[rows], x_edges[stop], y_edges[rows + 1])
    # where boxes met along a straight edge, their corners are still in the outline
    union = shapely.normalize(shapely.simplify(shapely.union_all(boxes), _STRAIGHT))
    return msgspec.json.decode(shapely.to_geojson(union))


def _feature(
    key: str, geometry: Any, kind: ObjectType, label: str | None, name: str, measurements: dict[str, float]
) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": kind}
    if name:
        properties["name"] = name
    if label is not None:
        properties["classification"] = {"name": label, "color": colour_of(label)}
    properties["measurements"] = {own: value for own, value in measurements.items() if math.isfinite(value)}
    return {"type": "Feature", "id": str(uuid.uuid5(uuid.NAMESPACE_OID, key)), "geometry": geometry, "properties": properties}
