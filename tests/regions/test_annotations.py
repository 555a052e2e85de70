from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

import streamwsi as sw
from streamwsi.errors import AnnotationError, ConfigError

SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]
HOLE = [[20, 20], [20, 40], [40, 40], [40, 20], [20, 20]]


def feature(geometry, **properties):
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation", **properties}}


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def asap(*annotations: str) -> str:
    return f"<?xml version='1.0'?><ASAP_Annotations><Annotations>{''.join(annotations)}</Annotations></ASAP_Annotations>"


def drawn(corners, kind="Polygon", group="Tumor", name="one") -> str:
    points = "".join(f'<Coordinate Order="{order}" X="{x}" Y="{y}" />' for order, (x, y) in enumerate(corners))
    return f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}"><Coordinates>{points}</Coordinates></Annotation>'


def sedeen(*graphics: str) -> str:
    return f"<session><image identifier='s.svs'><overlays>{''.join(graphics)}</overlays></image></session>"


def graphic(points, kind="polygon", name="Tumor", description="first") -> str:
    inner = "".join(f"<point>{x},{y}</point>" for x, y in points)
    return (
        f'<graphic type="{kind}" name="{name}" description="{description}"><pen color="#ff00ff00" width="3" />'
        f"<point-list>{inner}</point-list></graphic>"
    )


def test_a_real_asap_file_with_decimal_commas(shared_slides: Path):
    (region,) = sw.read_annotations(shared_slides / "annotations" / "wsipack_example.xml")
    assert (region.label, region.name, region.repaired) == (None, "Annotation 0", "")
    assert len(region.polygon.exterior.coords) == 43
    assert region.polygon.exterior.coords[0] == (543.020264, 335.044464)
    mask = sw.PolygonMask([region], shared_slides / "tiff" / "wsipack_example.tif", scale=1)
    assert mask.array.sum() == pytest.approx(region.polygon.area, rel=2e-3)


def test_a_real_asap_file_with_groups(shared_slides: Path):
    regions = sw.read_annotations(shared_slides / "annotations" / "camelyon17_patient_004_node_4.xml")
    assert [(region.label, region.name) for region in regions] == [("Tumor", f"Annotation {n}") for n in range(3)]
    assert [len(region.polygon.exterior.coords) for region in regions] == [9, 16, 13]
    assert regions[0].polygon.exterior.coords[0] == (12711.2998, 88778.1016)


def test_a_real_qupath_file(shared_slides: Path):
    regions = sw.read_annotations(shared_slides / "annotations" / "dlup_qupath05.geojson")
    assert [(region.label, region.name) for region in regions] == [(None, "UT"), (None, "I"), (None, "I")]
    assert [region.polygon.bounds[:2] for region in regions] == [(8837, 6277), (9441, 5833), (8184, 5424)]


def test_a_real_polygon_that_touches_itself_is_repaired_with_its_holes(shared_slides: Path, caplog):
    path = shared_slides / "annotations" / "CMU-1-Small-Region.tissues.geojson"
    (region,) = sw.read_annotations(path)
    assert region.polygon.is_valid and region.repaired.startswith("Self-intersection")
    assert "was repaired: Self-intersection" in caplog.text
    (given,) = (shapely.geometry.shape(each["geometry"]) for each in json.loads(path.read_text())["features"])
    assert region.polygon.area == pytest.approx(given.area, rel=1e-9)
    holes = [shapely.Polygon(ring) for ring in given.interiors]
    assert len(holes) == 41
    assert not any(region.polygon.contains(hole.representative_point()) for hole in holes)


def test_no_point_of_a_hole_is_inside(shared_slides: Path, bundled: Path):
    """In the polygons themselves; in the mask, no pixel whose centre is in a hole."""
    path = shared_slides / "annotations" / "CMU-1-Small-Region.tissues.geojson"
    mask = sw.PolygonMask(sw.read_annotations(path), bundled, scale=2)
    (given,) = (shapely.geometry.shape(each["geometry"]) for each in json.loads(path.read_text())["features"])
    holes = shapely.union_all([shapely.make_valid(shapely.Polygon(ring)) for ring in given.interiors])
    shapely.prepare(holes)
    points = np.random.default_rng(0).random((200_000, 2)) * (2220, 2967)
    in_hole = shapely.contains_xy(holes, points)
    assert in_hole.sum() > 1000
    assert not mask.contains(points[in_hole]).any()
    rows, columns = mask.shape
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) * 2 + 1.0
    centres = shapely.contains_xy(holes, x, y).reshape(rows, columns)
    assert centres.sum() > 1000 and not mask.array[centres].any()


SHAPES = {
    "FeatureCollection": lambda features: {"type": "FeatureCollection", "features": features},
    "list": lambda features: features,
    "Feature": lambda features: features[0],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pack", [False, True])
def test_geojson_comes_in_several_shapes(shape, pack, tmp_path: Path):
    text = json.dumps(SHAPES[shape]([feature(polygon(SQUARE, HOLE), classification={"name": "Tumor"}, name="a")])).encode()
    path = tmp_path / "drawn"
    path.write_bytes(gzip.compress(text) if pack else b"\xef\xbb\xbf" + text)
    (region,) = sw.read_annotations(path)
    assert (region.label, region.name) == ("Tumor", "a")
    assert region.polygon.area == 100 * 100 - 20 * 20


@pytest.mark.parametrize(
    ("classification", "label"),
    [
        ({"name": "Tumor", "color": [1, 2, 3]}, "Tumor"),
        ({"name": "Tumor: Positive", "colorRGB": -377282}, "Tumor: Positive"),
        ({"names": ["Tumor", "Positive"], "color": [1, 2, 3]}, "Tumor: Positive"),
        ("Tumor", "Tumor"),
        ({}, None),
        (None, None),
    ],
)
def test_labels_are_qupaths_classes(classification, label, tmp_path: Path):
    path = write(tmp_path / "a.geojson", [feature(polygon(SQUARE), classification=classification)])
    assert [region.label for region in sw.read_annotations(path)] == [label]


def test_multi_polygons_keep_parts_and_holes(tmp_path: Path):
    far = [[x + 200, y] for x, y in SQUARE]
    geometry = {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [far]]}
    (region,) = sw.read_annotations(write(tmp_path / "a.geojson", [feature(geometry)]))
    assert region.polygon.geom_type == "MultiPolygon"
    assert region.polygon.area == 2 * 100 * 100 - 20 * 20


def test_sedeen(tmp_path: Path):
    path = write(
        tmp_path / "s.session.xml",
        sedeen(graphic([(0, 0), (100, 0), (50.5, 80.25)]), graphic([(10, 20), (30, 60)], "rectangle", "Stroma", "")),
    )
    triangle, rectangle = sw.read_annotations(path)
    assert (triangle.label, triangle.name) == ("Tumor", "first")
    assert list(triangle.polygon.exterior.coords)[2] == (50.5, 80.25)
    assert (rectangle.label, rectangle.name, rectangle.polygon.bounds) == ("Stroma", "", (10, 20, 30, 60))
    with pytest.raises(AnnotationError, match=r"s\.xml: region 'first' is an ellipse"):
        sw.read_annotations(write(tmp_path / "s.xml", sedeen(graphic([(0, 0), (100, 50)], "ellipse"))))


def test_a_collection_is_one_region_of_all_its_areas(tmp_path: Path):
    inner = {"type": "GeometryCollection", "geometries": [polygon(SQUARE, HOLE), {"type": "Point", "coordinates": [1, 1]}]}
    far = [[x + 1000, y] for x, y in SQUARE]
    collection = {"type": "GeometryCollection", "geometries": [inner, {"type": "MultiPolygon", "coordinates": [[far]]}]}
    path = write(tmp_path / "a.geojson", [feature(collection, name="both"), feature(polygon(SQUARE))])
    with pytest.raises(AnnotationError, match="holds what is no area: 'both', a Point; areas_only=True"):
        sw.read_annotations(path)
    both, square = sw.read_annotations(path, areas_only=True)
    assert both.name == "both" and both.polygon.geom_type == "MultiPolygon"
    assert both.polygon.area == 2 * square.polygon.area - shapely.Polygon(HOLE).area
    empty = write(tmp_path / "b.geojson", [feature({"type": "GeometryCollection", "geometries": []}, name="none")])
    with pytest.raises(AnnotationError, match="holds what is no area: 'none', a GeometryCollection"):
        sw.read_annotations(empty)


def test_corners_stand_in_their_order_not_in_that_of_the_file(tmp_path: Path):
    text = drawn([(0, 0), (10, 0), (10, 10), (0, 10)])
    parts = text.replace("<Coordinates>", "|").replace("</Coordinates>", "|").split("|")
    points = parts[1].split("/>")[:-1]
    mixed = parts[0] + "<Coordinates>" + "".join(f"{points[n]}/>" for n in (2, 0, 3, 1)) + "</Coordinates>" + parts[2]
    (region,) = sw.read_annotations(write(tmp_path / "a.xml", asap(mixed)))
    assert region.polygon.area == 100 and region.repaired == ""


@pytest.mark.parametrize(
    "content",
    [
        asap(drawn([(1, 1)], "Dot", name="spot"), drawn(SQUARE[:4])),
        [feature({"type": "Point", "coordinates": [1, 1]}, name="spot"), feature(polygon(SQUARE))],
    ],
)
def test_what_is_no_area_is_refused_or_left_out_as_asked(content, tmp_path: Path):
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(AnnotationError, match=r"a\.txt holds what is no area: 'spot', a (Dot|Point); areas_only=True"):
        sw.read_annotations(path)
    assert len(sw.read_annotations(path, areas_only=True)) == 1


def test_a_hole_beside_its_polygon_does_not_become_an_area():
    hole, beside, across = ([[x, y] for x, y in shapely.box(*box).exterior.coords] for box in HOLES)
    region = sw.Region(shapely.Polygon(shapely.box(0, 0, 500, 500).exterior, [hole, beside, across]))
    assert region.polygon.bounds == (0, 0, 500, 500) and region.repaired
    assert region.polygon.area == 500**2 - 100**2 - 50 * 100
    bow = sw.Region(shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)], [[(7, 4), (8, 4), (8, 5)], [(4, 1), (6, 1), (5, 2)]]))
    assert bow.polygon.area == 50 - 0.5


HOLES = [(100, 100, 200, 200), (700, 700, 800, 800), (450, 300, 550, 400)]


def test_a_polygon_that_crosses_itself_is_repaired_and_said(caplog):
    bow = sw.Region(shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)]), "Tumor", "bow")
    assert bow.polygon.is_valid and bow.polygon.area == pytest.approx(50)
    assert bow.repaired == "Self-intersection[5 5]"
    assert "region 'bow' (Tumor) at (0, 0, 10, 10) was repaired: Self-intersection[5 5]" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "neither GeoJSON nor XML"),
        ("{", "not JSON"),
        ("[1]", "entry 0 is not a Feature"),
        ({"type": "FeatureCollection", "features": 3}, "neither a FeatureCollection"),
        ([feature(polygon([[0, 0], [1, 1], [2, 2], [0, 0]]), name="flat")], "region 'flat' has no area"),
        ([feature(polygon([[0, 0], [1, 1]]), name="two")], "region 'two' is no Polygon"),
        ([feature({"type": "Polygon"}, name="none")], "region 'none' is no Polygon"),
        ([feature(polygon([["a", 0], [1, 1], [2, 0]]), name="text")], "region 'text' is no Polygon"),
        ('[{"type":"Feature","properties":{},"geometry":{"type":"Polygon","coordinates":[[[0,0],[1e999,0],[1,1]]]}}]', "no"),
        ([feature(polygon(SQUARE), name=3)], "feature 0: its name must be text, got 3"),
        (asap(drawn([(0, 0), (1, 0)], name="line")), "region 'line' has 2 corners"),
        (asap(drawn([(0, 0), ("x", 0), (1, 1)], name="odd")), "region 'odd' has a coordinate 'x'"),
        ("<other/>", "begins with <other>"),
        ("<ASAP_Annotations>", "neither GeoJSON nor XML"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(content, message, tmp_path: Path):
    path = write(tmp_path / "bad.file", content)
    with pytest.raises(AnnotationError, match=rf"bad\.file: .*{message}"):
        sw.read_annotations(path)


def test_entities_are_refused(tmp_path: Path):
    """Nine lines that would be three gigabytes, and one that would be a file of this machine."""
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    for declared, used in (('<!ENTITY l0 "ha">' + laughs, "&l9;"), ('<!ENTITY f SYSTEM "file:///etc/hostname">', "&f;")):
        path = write(tmp_path / "a.xml", f"<!DOCTYPE r [{declared}]><ASAP_Annotations>{used}</ASAP_Annotations>")
        with pytest.raises(AnnotationError, match=r"a\.xml: its XML declares entities"):
            sw.read_annotations(path)


def test_the_format_can_be_said(tmp_path: Path):
    path = write(tmp_path / "a.xml", asap(drawn(SQUARE[:4])))
    assert len(sw.read_annotations(path, "asap")) == 1
    with pytest.raises(AnnotationError, match=r"begins with <ASAP_Annotations>, which is not sedeen"):
        sw.read_annotations(path, "sedeen")
    with pytest.raises(AnnotationError, match="not JSON"):
        sw.read_annotations(path, "geojson")
    with pytest.raises(ConfigError, match="format must be one of"):
        sw.read_annotations(path, "imagescope")  # type: ignore[arg-type]
    with pytest.raises(AnnotationError, match="cannot be read"):
        sw.read_annotations(tmp_path / "missing.xml")


labels = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def regions_of_boxes(draw):
    """A region of up to three parts, each with up to two holes."""
    parts = []
    for number in range(draw(st.integers(1, 3))):
        left, top = 1000 * number + draw(st.floats(-50, 50)), draw(st.floats(-1e5, 1e5))
        holes = [
            shapely.box(left + 100 + 300 * n, top + 50, left + 200 + 300 * n, top + 150) for n in range(draw(st.integers(0, 2)))
        ]
        parts.append(shapely.Polygon(shapely.box(left, top, left + 800, top + 300).exterior, [h.exterior for h in holes]))
    shape = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    return sw.Region(shape, draw(labels), draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=12)))


@given(st.lists(regions_of_boxes(), max_size=3), st.sampled_from(["a.geojson", "a.geojson.gz"]))
def test_what_is_written_comes_back(tmp_path_factory, regions, name):
    path = sw.write_geojson(regions, tmp_path_factory.mktemp("drawn") / name)
    assert sw.read_annotations(path) == regions
    first = path.read_bytes()
    assert sw.write_geojson(regions, path).read_bytes() == first


def test_written_annotations_have_what_qupath_reads(tmp_path: Path):
    path = sw.write_geojson(
        [sw.Region(shapely.box(0, 0, 9, 9), "Tumor", "a"), sw.Region(shapely.box(0, 0, 9, 9), "Tumor", "a")],
        tmp_path / "a.geojson",
    )
    content = json.loads(path.read_text())
    one, other = content["features"]
    assert content["type"] == "FeatureCollection" and one["type"] == "Feature"
    assert one["id"] != other["id"]  # QuPath keeps one object of each id
    assert one["properties"]["objectType"] == "annotation"
    assert one["properties"]["name"] == "a" and one["properties"]["classification"]["name"] == "Tumor"
    colour = one["properties"]["classification"]["color"]
    assert len(colour) == 3 and all(isinstance(value, int) and 55 <= value <= 255 for value in colour)
    with pytest.raises(ConfigError, match="must be called"):
        sw.write_geojson([], tmp_path / "a.xml")


def test_buffers_are_in_pixels_or_micrometres():
    region = sw.Region(shapely.box(100, 100, 200, 300), "Tumor", "a")
    assert region.buffered(10).polygon.bounds == (90, 90, 210, 310)
    assert region.buffered(10, mpp=0.5).polygon.bounds == pytest.approx((80, 80, 220, 320))
    assert region.buffered(10, mpp=(0.5, 0.25)).polygon.bounds == pytest.approx((80, 60, 220, 340))
    shrunk = region.buffered(-10)
    assert (shrunk.polygon.bounds, shrunk.label, shrunk.name) == ((110, 110, 190, 290), "Tumor", "a")
    with pytest.raises(AnnotationError, match=r"nothing is left of region 'a' \(Tumor\) when it is shrunk by 60 px"):
        region.buffered(-60)
    with pytest.raises(ConfigError, match="mpp above 0"):
        region.buffered(1, mpp=0)


def nested(*sides: float, label: str | None = "Tumor") -> list[sw.Region]:
    return [sw.Region(shapely.box(-side, -side, side, side), label, f"{side}") for side in sides]


def test_nested_regions_become_holes_and_islands_again():
    left = sw.nested_as_holes(nested(1, 4, 2, 3))
    assert [region.name for region in left] == ["4", "2"]
    assert [region.polygon.area for region in left] == [64 - 36, 16 - 4]
    other = sw.nested_as_holes([*nested(4), *nested(2, label="Stroma")])
    assert [region.polygon.area for region in other] == [64, 16]


def test_regions_of_some_labels_are_cut_out_of_all_others():
    left = sw.nested_as_holes([*nested(4), *nested(2, label="hole"), *nested(3, label="Stroma")], holes={"hole"})
    assert [(region.label, region.polygon.area) for region in left] == [("Tumor", 64 - 16), ("Stroma", 36 - 16)]
    with pytest.raises(AnnotationError, match=r"nothing is left of region '1' \(Tumor\)"):
        sw.nested_as_holes([*nested(1), *nested(2, label="hole")], holes={"hole"})


def test_only_areas_are_regions():
    with pytest.raises(AnnotationError, match="must be a Polygon or MultiPolygon, got Point"):
        sw.Region(shapely.Point(0, 0))  # type: ignore[arg-type]
    with pytest.raises(AnnotationError, match="is empty"):
        sw.Region(shapely.Polygon())
    assert not sw.Region(shapely.Polygon([(0, 0, 5), (1, 0, 5), (1, 1, 5)])).polygon.has_z
