"""Results as objects for QuPath."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwsi.chunks import Status
from streamwsi.errors import ConfigError, MapError
from streamwsi.maps.geojson import export_all, export_geojson
from streamwsi.maps.raster import read_map
from streamwsi.plan import Sample
from streamwsi.regions.annotations import read_annotations
from streamwsi.values import ValueSpec
from streamwsi.writing.hdf5_file import HDF5PieceFile
from tests.writing.fabricate import resolved_slide, write_patient


def features_of(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    found = json.loads(text)
    assert found["type"] == "FeatureCollection"
    return found["features"]


@pytest.mark.parametrize("format", ["csv", "hdf5"])
def test_each_window_with_a_value_is_a_detection_with_its_measurements(tmp_path: Path, format: str) -> None:
    slide = resolved_slide(downsample=4.0)
    n = len(slide.grid())
    values = np.stack([np.arange(n), -np.arange(n)], axis=1).astype(np.float32)
    values[3, 1] = np.nan
    status = np.zeros(n, np.uint8)
    status[5] = Status.NONE
    path = write_patient(tmp_path, [slide], [values], [status], format=format)
    written = export_geojson(path)
    assert written == tmp_path / "p1_windows.geojson"
    features = features_of(written)
    rows = np.flatnonzero(status == Status.WRITTEN)
    assert len(features) == len(rows) and len({feature["id"] for feature in features}) == len(rows)
    windows = slide.grid().windows(rows)
    for feature, window, row in zip(features, windows, rows.tolist(), strict=True):
        ring = feature["geometry"]["coordinates"][0]
        left, top, right, bottom = shapely.Polygon(ring).bounds
        assert (left, top) == (window.x, window.y)
        assert (right - left, bottom - top) == (64, 64) and ring[0] == ring[-1]
        assert feature["properties"]["objectType"] == "detection" and feature["properties"]["name"] == f"window {row}"
        expected = {"value_0": float(row)} | ({} if row == 3 else {"value_1": -float(row)})
        assert feature["properties"]["measurements"] == expected
    again = written.read_bytes()
    assert export_geojson(path).read_bytes() == again


def test_windows_below_the_threshold_are_left_out(tmp_path: Path) -> None:
    slide = resolved_slide()
    values = np.arange(len(slide.grid()), dtype=float)
    values[10] = np.nan
    path = write_patient(tmp_path, [slide], [values], format="hdf5")
    written = export_geojson(path, tmp_path / "high.geojson.gz", threshold=8.0, object_type="tile", label="high")
    assert [feature["properties"]["measurements"]["value"] for feature in features_of(written)] == [
        8,
        9,
        *range(11, len(values)),
    ]
    properties = [feature["properties"] for feature in features_of(written)]
    assert all(own["objectType"] == "tile" and own["classification"]["name"] == "high" for own in properties)


def test_a_windows_label_is_its_class(tmp_path: Path) -> None:
    start = np.array([[3, 4], [30, 40], [60, 8]])
    sample = Sample.of(start, np.zeros(3, np.int64), np.array([1, -1, 0]), ("stroma", "tumour"))
    slide = msgspec.structs.replace(resolved_slide(), sample=sample, stride=(0, 0))
    path = write_patient(tmp_path, [slide], [np.arange(3.0)], [np.zeros(3, np.uint8)], format="hdf5")
    classes = [feature["properties"].get("classification", {}).get("name") for feature in features_of(export_geojson(path))]
    assert classes == ["tumour", None, "stroma"]


@settings(max_examples=25)
@given(inside=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=4, max_size=4))
def test_regions_are_the_connected_cells_at_or_above_the_threshold(tmp_path_factory: Any, inside: list[list[bool]]) -> None:
    folder = tmp_path_factory.mktemp("regions")
    slide = resolved_slide(extent=(5 * 16 - 3, 4 * 16 - 5))  # cut at the edge
    values = np.where(np.array(inside).ravel(), 2.0, 1.0)
    path = write_patient(folder, [slide], [values], format="hdf5")
    written = export_geojson(path, objects="regions", threshold=2.0)
    heat = read_map(path)
    cells = [
        shapely.box(heat.x_edges[column], heat.y_edges[row], heat.x_edges[column + 1], heat.y_edges[row + 1])
        for row, column in np.argwhere(inside).tolist()
    ]
    polygons = [shapely.geometry.shape(feature["geometry"]) for feature in features_of(written)]
    assert all(polygon.is_valid and polygon.geom_type == "Polygon" for polygon in polygons)
    assert shapely.union_all(polygons).equals(shapely.union_all(cells))
    for first, polygon in enumerate(polygons):
        assert not any(polygon.intersection(other).area or polygon.intersection(other).length for other in polygons[:first])
    counts = [feature["properties"]["measurements"]["cells"] for feature in features_of(written)]
    assert sum(counts) == sum(map(sum, inside))
    regions = read_annotations(written) if polygons else []
    assert [region.label for region in regions] == ["value"] * len(polygons)


def test_the_measurements_of_a_region_are_those_of_its_cells(tmp_path: Path) -> None:
    slide = resolved_slide(extent=(64, 16))
    path = write_patient(tmp_path, [slide], [np.array([5.0, 7.0, 0.0, np.nan])], format="csv")
    (feature,) = features_of(export_geojson(path, objects="regions", threshold=5, label="nest"))
    assert feature["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "nest", "color": feature["properties"]["classification"]["color"]},
        "measurements": {"mean": 6.0, "min": 5.0, "max": 7.0, "cells": 2},
    }


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    path = write_patient(tmp_path, [resolved_slide()], [np.arange(35.0)], format="hdf5")
    with pytest.raises(ConfigError, match="give threshold="):
        export_geojson(path, objects="regions")
    with pytest.raises(ConfigError, match="object_type must be one of"):
        export_geojson(path, object_type="cell")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"must be called \.geojson"):
        export_geojson(path, tmp_path / "out.txt")
    with pytest.raises(MapError, match="no channel 4"):
        export_geojson(path, channel=4)
    with pytest.raises(MapError, match="holds no patient file"):
        export_all(tmp_path / "..", None)


def test_a_folder_gives_a_file_for_each_slide(tmp_path: Path) -> None:
    slides = [resolved_slide(id="H&E"), resolved_slide(id="NA", place=(0, 1))]
    write_patient(tmp_path, slides, [np.arange(35.0)] * 2, format="csv")
    assert [path.name for path in export_all(tmp_path)] == ["p1_H&E_windows.geojson", "p1_NA_windows.geojson"]


def test_memory_follows_a_part_of_the_windows(tmp_path: Path) -> None:
    n_windows = 400 * 250
    slide = resolved_slide(extent=(400, 250), kernel=(1, 1), stride=(1, 1), patient="p")
    path = tmp_path / "p.h5"
    file = HDF5PieceFile(path, ValueSpec("float32", ()))
    file.begin_slide(slide, n_windows)
    file.append(slide.grid().windows(np.arange(n_windows)), np.arange(n_windows, dtype=np.float32))
    file.end_slide([])
    file.close()
    tracemalloc.start()
    try:
        written = export_geojson(path, threshold=n_windows - 4_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written.stat().st_size > 1 << 20 and peak < 16 << 20
