"""Descriptions are equal where the windows are, and only there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

import streamwsi as sw
from streamwsi.sampling.description import description_of

BOX = sw.Region(shapely.box(0, 0, 50, 50), "a")
MASK = sw.Mask(np.eye(4, dtype=bool), scale=10, offset=(0, 0))


def chosen(slide):
    return [BOX]


def test_each_option_that_decides_windows_changes_the_description():
    samplers = [
        sw.GridSampler(),
        sw.GridSampler(8),
        sw.GridSampler((8, 9)),
        sw.GridSampler(border="edge"),
        sw.GridSampler(max_overlap=0.5),
        sw.GridSampler(margin=3),
        sw.GridSampler(region=MASK),
        sw.GridSampler(region=MASK, origin="region"),
        sw.GridSampler(region=MASK, min_coverage=0.25),
        sw.GridSampler(region=MASK.inverse()),
        sw.GridSampler(region=sw.Mask(MASK.array, scale=11, offset=(0, 0))),
        sw.GridSampler(region=sw.Mask(MASK.array, scale=10, offset=(1, 0))),
        sw.GridSampler(region=[BOX]),
        sw.GridSampler(region=[BOX], labelled=False),
        sw.GridSampler(region=[BOX], include=["a"]),
        sw.GridSampler(region=[BOX], exclude=["a"]),
        sw.GridSampler(region=[BOX], include=["a"], absent="ignore"),
        sw.GridSampler(region=[sw.Region(BOX.polygon, "b")]),
        sw.GridSampler(region=[sw.Region(shapely.box(0, 0, 50, 51), "a")]),
        sw.GridSampler(region={"s": [BOX]}),
        sw.GridSampler(region={"t": [BOX]}),
        sw.GridSampler(region=sw.Annotated([BOX])),
        sw.GridSampler(region=sw.Annotated([BOX], buffer=3)),
        sw.GridSampler(region=sw.Annotated([BOX], buffer=3, unit="px")),
        sw.GridSampler(region=sw.Annotated([BOX], inverse=True)),
        sw.GridSampler(region=sw.Annotated([BOX], nested_as_holes=True)),
        sw.GridSampler(region=sw.Annotated([BOX], nested_as_holes=["a"])),
        sw.GridSampler(region=sw.Annotated([BOX], areas_only=True)),
        sw.GridSampler(region=sw.Tissue()),
        sw.GridSampler(region=sw.Tissue(method="lab")),
        sw.GridSampler(region=sw.Tissue(mpp=4)),
        sw.GridSampler(region=chosen),
        sw.GridSampler(region=lambda slide: [BOX]),
        sw.RandomSampler(5),
        sw.RandomSampler(6),
        sw.RandomSampler(5, seed=1),
        sw.RandomSampler(5, epoch=1),
        sw.RandomSampler(5, max_overlap=0.5),
        sw.RandomSampler(per_label={"a": 5}, region=[BOX]),
        sw.RandomSampler(per_label={"a": 6}, region=[BOX]),
        sw.PoissonDiskSampler(5),
        sw.PoissonDiskSampler(5, "um"),
        sw.PoissonDiskSampler(6),
        sw.PoissonDiskSampler(5, n=3),
        sw.PointSampler([(1, 2)]),
        sw.PointSampler([(1, 3)]),
        sw.PointSampler([(1, 2)], ["a"]),
        sw.PointSampler([(1, 2)], ["b"]),
        sw.PointSampler([(1, 2)], ["b"], include=["b"]),
        sw.PointSampler([(1, 2)], [None]),
        sw.PointSampler([(1, 2)], outside="drop"),
        sw.PointSampler({"s": [(1, 2)]}),
    ]
    descriptions = [sampler.describe() for sampler in samplers]
    for row, one in enumerate(descriptions):
        assert [other for other in descriptions if other == one] == [one], samplers[row]


def test_how_the_same_is_written_does_not_matter(tmp_path: Path):
    pairs = [
        (sw.GridSampler(8), sw.GridSampler((8, 8))),
        (sw.GridSampler(region=MASK), sw.GridSampler(region=sw.Mask(MASK.array, scale=(10, 10), offset=(0.0, 0.0)))),
        (sw.GridSampler(region=MASK), sw.GridSampler(region=MASK, min_coverage=0.5)),
        (sw.RandomSampler(3, region=[BOX], include=["b", "a"]), sw.RandomSampler(3, region=[BOX], include=["a", "b", "a"])),
        (
            sw.RandomSampler(per_label={"a": 1, "b": 2}, region=[BOX]),
            sw.RandomSampler(per_label={"b": 2, "a": 1}, region=[BOX]),
        ),
        (sw.RandomSampler(3, region={"s": MASK, "t": [BOX]}), sw.RandomSampler(3, region={"t": [BOX], "s": MASK})),
        (sw.PointSampler([(1, 2)]), sw.PointSampler(np.array([[1.0, 2.0]], np.float32))),
        (sw.RandomSampler(3), sw.RandomSampler(3).at_epoch(4).at_epoch(0)),
    ]
    for one, other in pairs:
        assert one.describe() == other.describe()


def test_files_may_be_moved_and_not_changed(tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        sw.write_geojson([BOX], folder / "s.geojson")
        (folder / "notes.txt").write_text(str(folder))
    for path in (".", "s.geojson"):
        before = sw.GridSampler(region=one / path).describe()
        assert before == sw.GridSampler(region=other / path).describe()
    sw.write_geojson([sw.Region(BOX.polygon, "b")], other / "s.geojson")
    for path in (".", "s.geojson"):
        assert sw.GridSampler(region=one / path).describe() != sw.GridSampler(region=other / path).describe()
    sampler = sw.GridSampler(region=other / "s.geojson")
    (other / "s.geojson").unlink()
    with pytest.raises(sw.ConfigError, match=r"s\.geojson cannot be read"):
        sampler.describe()


class Own(sw.Sampler):
    def __init__(self, description):
        self.description = description

    def describe(self):
        return self.description


def test_what_a_sampler_of_ones_own_says_is_the_same_when_it_comes_back_from_a_file():
    found = description_of(Own({"pair": (1, np.int64(2)), "share": np.float32(0.5), "labels": {"b", "a"}, "n": None}))
    assert found == {"pair": [1, 2], "share": 0.5, "labels": ["a", "b"], "n": None}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("description", [None, [], {3: 4}, {"slides": Path("a")}, {"places": np.zeros(3)}], ids=str)
def test_what_no_file_holds_is_refused(description):
    with pytest.raises(sw.ConfigError, match=r"Own\.describe must return a dict of numbers, strings, lists and dicts"):
        description_of(Own(description))
