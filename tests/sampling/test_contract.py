"""What every sampler promises, for every one of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import cloudpickle
import msgspec
import numpy as np
import pytest
import shapely

import streamwsi as sw
from tests.sampling.helpers import scene

HALF = np.tile(np.arange(20) < 10, (15, 1))
MASK = sw.Mask(HALF, scale=20, offset=(0, 0))
REGIONS = [sw.Region(shapely.box(0, 0, 200, 300), "left"), sw.Region(shapely.Point(300, 150).buffer(90), "right")]
POINTS = [(60.0, 60.0), (150.5, 100.0), (300.0, 150.0), (399.0, 0.0)]

SAMPLERS: dict[str, Callable[[], sw.Sampler]] = {
    "grid": lambda: sw.GridSampler(13, "edge"),
    "grid of a mask": lambda: sw.GridSampler(13, "squeeze", region=MASK, max_overlap=0.3),
    "grid of a region": lambda: sw.GridSampler((9, 30), origin="region", border="crop", region=REGIONS, exclude=["right"]),
    "random": lambda: sw.RandomSampler(40),
    "random in a mask": lambda: sw.RandomSampler(20, region=MASK, max_overlap=0.1, min_coverage=1),
    "random by label": lambda: sw.RandomSampler(per_label={"left": 5, "right": 7}, region=REGIONS),
    "random of a function": lambda: sw.RandomSampler(9, region=lambda slide: REGIONS, include=["right"]),
    "poisson": lambda: sw.PoissonDiskSampler(31.5),
    "poisson in regions": lambda: sw.PoissonDiskSampler(12, "um", region=sw.Annotated(REGIONS, buffer=5), seed=3, margin=4),
    "poisson, a few": lambda: sw.PoissonDiskSampler(20, n=6, region=MASK),
    "points": lambda: sw.PointSampler(POINTS, ["a", None, "b", "a"], outside="drop"),
    "points in regions": lambda: sw.PointSampler({"s": POINTS}, region=REGIONS, outside="drop", min_coverage=0.1),
}
DRAWN = [name for name in SAMPLERS if name.startswith(("random", "poisson"))]


def same(one: sw.Places, other: sw.Places) -> bool:
    labels = (one.label is None) == (other.label is None) and (
        one.label is None or other.label is None or np.array_equal(one.label, other.label)
    )
    return np.array_equal(one.start, other.start) and labels and one.names == other.names and one.stride == other.stride


@pytest.mark.parametrize("downsample", [1.0, 1.7])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_keeps_the_contract(name, downsample):
    sampler, where = SAMPLERS[name](), scene(400, 300, (24, 16), downsample)
    places = sampler.places(where)
    assert places.start.dtype == np.int64 and places.start.shape == (len(places), 2) and len(places) > 0
    assert len(np.unique(places.start, axis=0)) == len(places)
    assert (places.start >= 0).all() and (places.start < where.room).all()  # these ones do not pad
    assert (places.label is not None) == sampler.carries_labels
    if places.label is not None:
        assert places.label.dtype == np.int64 and places.label.shape == (len(places),)
        assert places.label.min() >= -1 and places.label.max() < len(places.names)
    # what is drawn depends on nothing but the sampler and the ids
    assert same(places, SAMPLERS[name]().places(where))
    description = sampler.describe()
    assert msgspec.json.decode(msgspec.json.encode(description)) == description == SAMPLERS[name]().describe()
    sent = pickle.loads(cloudpickle.dumps(sampler))
    assert same(places, sent.places(where))
    assert sampler.epoch == 0 and sampler.at_epoch(2).epoch == 2 and sampler.at_epoch(2).margin == sampler.margin


@pytest.mark.parametrize("name", DRAWN)
def test_epochs_seeds_and_slides_draw_anew(name):
    sampler, where = SAMPLERS[name](), scene(400, 300, (24, 16))
    first = sampler.places(where).start.tolist()
    again = sampler.at_epoch(1)
    assert again.places(where).start.tolist() != first and again.describe() != sampler.describe()
    assert again.at_epoch(0).describe() == sampler.describe()
    for other in (scene(400, 300, (24, 16), patient="q"), scene(400, 300, (24, 16), slide="t")):
        assert sampler.places(other).start.tolist() != first


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in DRAWN])
def test_what_is_not_drawn_is_the_same_in_each_epoch(name):
    sampler = SAMPLERS[name]()
    assert same(sampler.at_epoch(4).places(scene(400, 300, (24, 16))), sampler.places(scene(400, 300, (24, 16))))
    assert sampler.at_epoch(4).describe() == sampler.describe()


@pytest.mark.parametrize(
    "make", [lambda: sw.RandomSampler(1), lambda: sw.PoissonDiskSampler(5), lambda: sw.PointSampler([(3, 3)])]
)
def test_a_slide_smaller_than_the_window_fails_with_both_sizes(make):
    with pytest.raises(sw.SamplingError, match="7 × 90 pixels of what is read, the window 8 × 8"):
        make().places(scene(7, 90))
    assert issubclass(sw.SamplingError, sw.SlideError) and issubclass(sw.SamplingError, ValueError)


def test_the_windows_of_a_seed_are_these():
    """Whatever the machine, and the version of NumPy: a run goes on only if they are."""
    where = scene(1000, 800, (50, 40), 1.25, patient="patient 1", slide="H&E")
    mask = sw.Mask(np.tile(HALF, (2, 1)), scale=25, offset=(13.5, 2.25))
    drawn = {
        "random": sw.RandomSampler(4).places(where),
        "random in a mask": sw.RandomSampler(4, region=mask, max_overlap=0, seed=5, epoch=1).places(where),
        "poisson": sw.PoissonDiskSampler(200).places(where),
        "poisson in a mask": sw.PoissonDiskSampler(60, "um", region=mask, min_coverage=0.9).places(where),
        "by label": sw.RandomSampler(per_label={"left": 2, "right": 2}, region=REGIONS, min_coverage=0.8).places(where),
    }
    assert {name: (len(places), places.start[:4].tolist()) for name, places in drawn.items()} == {
        "random": (4, [[309, 415], [420, 69], [228, 582], [742, 542]]),
        "random in a mask": (4, [[11, 364], [4, 145], [19, 571], [151, 173]]),
        "poisson": (17, [[309, 415], [420, 69], [228, 582], [742, 542]]),
        "poisson in a mask": (11, [[29, 394], [35, 64], [22, 557], [11, 225]]),
        "by label": (4, [[198, 136], [50, 146], [195, 113], [8, 24]]),
    }
