from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

import streamwsi as sw
from streamwsi.regions.overlay import EDGE

BLUE, ORANGE = (0, 70, 255), (230, 100, 0)


def boxes(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(h, w) bool: pixels of a colour."""
    return (picture == colour).all(axis=2)


def test_boxes_lie_at_the_coordinates(bundled: Path, tmp_path: Path):
    """At the slide's own size, so that a pixel is a pixel: 2220 × 2967."""
    path = tmp_path / "points.png"
    sampler = sw.PointSampler([(300, 400), (1500, 2000)], ["a", "b"])
    picture = sampler.preview(bundled, (100, 60), path=path, longest_px=2967)
    assert picture.shape[1] == 2220 and picture.shape[0] > 2967  # a legend below
    assert (np.asarray(Image.open(path)) == picture).all()
    for (x, y), colour in (((250, 370), BLUE), ((1450, 1970), ORANGE)):
        found = boxes(picture[:2967], colour)
        assert (found.any(axis=0).nonzero()[0][[0, -1]] == [x, x + 99]).all()
        assert (found.any(axis=1).nonzero()[0][[0, -1]] == [y, y + 59]).all()
        assert not found[y + 10 : y + 50, x + 10 : x + 90].any()
    with sw.open_slide(bundled) as reader:
        untouched = ~(boxes(picture[:2967], BLUE) | boxes(picture[:2967], ORANGE))
        assert (picture[:2967][untouched] == reader.thumbnail(2967)[untouched]).all()


def test_the_region_is_shown(bundled: Path):
    ring = sw.Region(shapely.box(200, 200, 1200, 1200).difference(shapely.box(600, 600, 700, 700)))
    with sw.open_slide(bundled) as reader:
        picture = sw.RandomSampler(5, region=[ring]).preview(sw.Slide(bundled, "s", reader.info), 64, longest_px=2967)
        plain = reader.thumbnail(2967)
    edge = boxes(picture, EDGE)
    assert edge[195:206, 700].any() and edge[650, 595:606].any()  # of the hole too
    assert (picture[50, 50] < plain[50, 50]).all() and (picture[650, 650] < plain[650, 650]).all()  # greyed
    inside = np.zeros(edge.shape, bool)
    inside[300:500, 300:1100] = True
    inside &= ~boxes(picture, BLUE)
    assert (picture[inside] == plain[inside]).all()
    of_mask = sw.GridSampler(256, region=sw.Tissue(max_px=300)).preview(bundled, 256, longest_px=400)
    assert boxes(of_mask, EDGE).any() and of_mask.shape == (400, 299, 3)


def test_the_windows_are_those_of_a_run(bundled: Path):
    """Draws depend on ids: of a path, those that Dataset.from_folder gives it."""
    sampler = sw.RandomSampler(3, seed=4)
    (patient,) = sw.Dataset.from_paths([bundled])
    by_path = sampler.preview(bundled, 300, longest_px=300)
    assert (by_path == sampler.preview(patient.slides[0], 300, patient_id=patient.id, longest_px=300)).all()
    assert (by_path != sampler.preview(bundled, 300, patient_id="another", longest_px=300)).any()
    for options in ({"level": 1}, {"path": "picture.gif"}, {"longest_px": 3}):
        with pytest.raises(sw.ConfigError):
            sampler.preview(bundled, 300, **options)
