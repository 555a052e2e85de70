"""Windows that a sampler has chosen, through the whole pipeline: pixels, files, records, maps, resume."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

import streamwsi as sw
from streamwsi.errors import PlanError
from streamwsi.loading.resolution import ChoiceError
from streamwsi.sampling.sampler import Places, Sampler
from streamwsi.sampling.scene import Scene
from tests.helpers import level_image
from tests.loading.test_read_parity import resolve
from tests.pipeline.test_results import arrays_of

KERNEL = 96
NAMES = ("tumour", "stroma, dense")


class Scattered(Sampler):
    """Windows anywhere on the slide, some beyond its edge, some on others, in no order."""

    carries_labels = True

    def __init__(self, n: int, margin: int = 0, seed: int = 0) -> None:
        self.n, self.margin, self.seed = n, margin, seed

    def places(self, scene: Scene) -> Places:
        draws = np.random.default_rng(self.seed)
        start = draws.integers(-40, np.array(scene.extent) - 30, (2 * self.n, 2))
        start = start[np.sort(np.unique(start, axis=0, return_index=True)[1])][: self.n]
        return Places(start, draws.integers(-1, 2, self.n), NAMES)

    def describe(self) -> dict[str, Any]:
        return {"sampler": "Scattered", "n": self.n, "margin": self.margin, "seed": self.seed}


class Corners(sw.StreamCollector):
    """Sums of a window's four quarters: they tell where it lies; and how many labels its batch has."""

    columns = ("a", "b", "c", "d")

    def process(self, batch: sw.Batch) -> Any:
        assert batch.windows.labels == [window.label for window in batch.windows]
        height, width = batch.pixels.shape[1:3]
        halves = (slice(0, height // 2), slice(height // 2, height)), (slice(0, width // 2), slice(width // 2, width))
        parts = [batch.pixels[:, down, across] for down in halves[0] for across in halves[1]]
        return np.stack([part.sum(axis=(1, 2, 3), dtype=np.int64) for part in parts], axis=1)


def run(slide: Path, out: Path, sampler: Sampler, fmt: str = "csv", **options: Any) -> sw.Report:
    dataset = sw.Dataset([sw.Patient("p", {"s": slide})])
    loader = sw.WindowLoader(dataset, KERNEL, sampler, options.pop("level", 0))
    writer = (sw.CSVStreamWriter if fmt == "csv" else sw.HDF5StreamWriter)(out)
    options = {"chunk_px": 1 << 18, "batch_size": 16} | options
    report = sw.Pipeline(loader, options.pop("collector", Corners()), writer, quiet=True, **options).run()
    assert isinstance(report, sw.Report)
    return report


def expected(slide: Path, sampler: Scattered, level: int = 0) -> tuple[Places, np.ndarray]:
    image = level_image(slide, level)
    with sw.open_slide(slide) as reader:
        scene = Scene(sw.Slide(slide, "s", reader.info), "p", image.shape[1::-1], 1.0, (KERNEL, KERNEL))
        places = sampler.places(scene)
    beyond = 2 * KERNEL
    image = np.pad(image, ((beyond, beyond), (beyond, beyond), (0, 0)), constant_values=255)
    size = KERNEL + 2 * sampler.margin
    rows = []
    for x, y in (places.start - sampler.margin + beyond).tolist():
        window, half = image[y : y + size, x : x + size].astype(np.int64), size // 2
        rows.append(
            [part.sum() for part in (window[:half, :half], window[:half, half:], window[half:, :half], window[half:, half:])]
        )
    return places, np.array(rows)


@pytest.mark.parametrize(
    ("transport", "margin"),  # a margin is part of the windows before anything is sent
    [("shm", 8), ("ipc", 0), ("tcp", 8)],
)
def test_each_window_has_the_pixels_at_its_place_and_its_label(
    bundled: Path, tmp_path: Path, transport: str, margin: int
) -> None:
    sampler = Scattered(150, margin)
    places, values = expected(bundled, sampler)
    report = run(bundled, tmp_path, sampler, transport=transport)
    assert report.windows == 150
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False)
    assert list(table.columns[:9]) == ["slide", "label", "index", "x", "y", "level", "width", "height", "a"]
    np.testing.assert_array_equal(table["index"], np.arange(150))
    np.testing.assert_array_equal(table[["x", "y"]], places.start)
    np.testing.assert_array_equal(table[list("abcd")], values)
    assert places.label is not None
    assert table["label"].tolist() == [(*NAMES, "")[code] for code in places.label.tolist()]
    assert [verdict.problems for verdict in sw.verify(tmp_path)] == [[]]


@pytest.fixture(scope="module")
def both_formats(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs in both formats, of 60 windows."""
    folder = tmp_path_factory.mktemp("formats")
    for fmt in ("csv", "hdf5"):
        run(bundled, folder / fmt, Scattered(60), fmt)
    return folder


def test_files_of_both_formats_are_read_back_with_labels(both_formats: Path) -> None:
    csv, hdf5 = sw.read_pieces(both_formats / "csv" / "p.csv"), sw.read_pieces(both_formats / "hdf5" / "p.h5")
    assert csv.labels is not None and hdf5.labels is not None
    assert csv.labels.tolist() == hdf5.labels.tolist() and set(csv.labels) == {*NAMES, ""}
    for name in ("index", "coords", "size", "values"):
        np.testing.assert_array_equal(getattr(csv, name), getattr(hdf5, name))
    pd.testing.assert_frame_equal(csv.to_dataframe(), hdf5.to_dataframe())
    assert csv.to_dataframe().columns[:3].tolist() == ["slide", "label", "index"]
    with h5py.File(both_formats / "hdf5" / "p.h5") as file:
        attributes = file["s/coords"].attrs
        assert attributes["sampled_windows"] == 60 and "grid_shape" not in attributes and "overlap" not in attributes
        assert [*file["label"].attrs["names"]] == list(NAMES)
    assert [verdict.problems for verdict in sw.verify(both_formats / "hdf5")] == [[]]


def test_the_map_is_the_mean_of_the_windows_by_area(bundled: Path, both_formats: Path) -> None:
    places, values = expected(bundled, Scattered(60))
    height, width = level_image(bundled, 0).shape[:2]
    sums, areas = np.zeros((height, width)), np.zeros((height, width))
    for (x, y), value in zip(places.start.tolist(), values[:, 0].tolist(), strict=True):
        here = slice(max(y, 0), y + KERNEL), slice(max(x, 0), x + KERNEL)
        sums[here] += value
        areas[here] += 1
    cell = KERNEL // 4
    down, across = np.arange(0, height, cell), np.arange(0, width, cell)
    sums, areas = (np.add.reduceat(np.add.reduceat(table, down, axis=0), across, axis=1) for table in (sums, areas))
    with np.errstate(invalid="ignore"):
        dense = sums / areas
    for fmt, name in (("csv", "p.csv"), ("hdf5", "p.h5")):
        heat = sw.read_map(both_formats / fmt / name)
        np.testing.assert_allclose(heat.values[..., 0], dense, rtol=1e-12)
    assert np.isnan(dense).any() and sw.render(both_formats / "hdf5" / "p.h5").exists()


class EndsAfter(Corners):
    """Raises once, at some window."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def process(self, batch: sw.Batch) -> Any:
        if not self.flag.exists() and 75 in batch.windows.index:
            self.flag.touch()
            raise ValueError("once")
        return super().process(batch)


def test_a_run_that_was_broken_off_goes_on_and_ends_as_one_that_was_not(bundled: Path, tmp_path: Path) -> None:
    sampler, flag = Scattered(150), tmp_path / "flag"
    run(bundled, tmp_path / "whole", sampler, "hdf5")
    with pytest.raises(sw.CollectorError):
        run(bundled, tmp_path / "out", sampler, "hdf5", collector=EndsAfter(flag))
    with pytest.raises(sw.OutputError, match="sampler"):
        run(bundled, tmp_path / "out", Scattered(150, seed=1), "hdf5", collector=EndsAfter(flag))
    # cut into other chunks, it goes on with those that it was begun with
    report = run(bundled, tmp_path / "out", sampler, "hdf5", collector=EndsAfter(flag), chunk_px=1 << 19)
    assert 0 < report.windows < 150
    whole, resumed = (arrays_of(tmp_path / name / "p.h5") for name in ("whole", "out"))
    assert whole.keys() == resumed.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])


def test_another_plan_than_the_one_begun_with_is_refused(bundled: Path, tmp_path: Path) -> None:
    class Changing(Scattered):
        def describe(self) -> dict[str, Any]:
            return {"sampler": "Changing"}

    flag = tmp_path / "flag"
    with pytest.raises(sw.CollectorError):
        run(bundled, tmp_path / "out", Changing(150), collector=EndsAfter(flag))
    with pytest.raises(sw.OutputError, match="150 windows are not the 149 that the sampler chooses now"):
        run(bundled, tmp_path / "out", Changing(149), collector=EndsAfter(flag))


class Bad(Scattered):
    def __init__(self, places: Places) -> None:
        self.given = places

    def places(self, scene: Scene) -> Places:
        return self.given

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (Places(np.array([[1, 2], [3, 4], [1, 2]])), r"the window at \(1, 2\) is given 2 times"),
        (Places(np.zeros((2, 3), np.int64)), r"places must be \(n, 2\) int64"),
        (Places(np.array([[1, 2]]), np.array([2]), ("a",)), "labels must be"),
    ],
)
def test_a_sampler_of_the_users_own_that_gives_no_plan_is_told_so(bundled: Path, places: Places, message: str) -> None:
    with sw.open_slide(bundled) as reader, pytest.raises(ChoiceError) as caught:
        resolve(reader, bundled, kernel=KERNEL, sampler=Bad(places))
    assert isinstance(caught.value.__cause__, PlanError) and re.search(message, str(caught.value.__cause__))


def test_a_sampler_of_the_users_own_that_gives_no_plan_ends_the_run(bundled: Path, tmp_path: Path) -> None:
    with pytest.raises(sw.CollectorError, match=r"places must be \(n, 2\) int64"):
        run(bundled, tmp_path, Bad(Places(np.zeros((2, 3), np.int64))))


def test_a_slide_without_windows_is_said_to_have_none(bundled: Path, tmp_path: Path) -> None:
    report = run(bundled, tmp_path, Bad(Places(np.empty((0, 2), np.int64))))
    assert report.windows == 0 and any("the sampler chooses none" in warning for warning in report.warnings)
    assert (tmp_path / "p.csv").read_text().startswith("slide,label,index")
    assert [verdict.problems for verdict in sw.verify(tmp_path)] == [[]]


def test_only_the_tiles_under_the_windows_are_decoded(bundled: Path, tmp_path: Path) -> None:
    shutil.copy(bundled, tmp_path / "slide.svs")

    class Two(Scattered):
        def places(self, scene: Scene) -> Places:
            return Places(np.array([[10, 10], [1000, 1000]]), np.array([0, 1]), NAMES)

    report = run(tmp_path / "slide.svs", tmp_path / "out", Two(2))
    (slide,) = report.patients[0].slides
    with sw.open_slide(bundled) as reader:
        tile_w, tile_h = reader.info.tile_sizes[0] or (0, 0)
    touched = {
        (column, row)
        for x, y in ((10, 10), (1000, 1000))
        for column in range(x // tile_w, (x + KERNEL - 1) // tile_w + 1)
        for row in range(y // tile_h, (y + KERNEL - 1) // tile_h + 1)
    }
    assert slide.tiles_decoded == slide.tiles_distinct == len(touched)


def test_windows_outside_the_tissue_are_neither_read_nor_written(shared_slides: Path, bundled: Path, tmp_path: Path) -> None:
    mask = sw.read_mask(shared_slides / "annotations" / "CMU-1-Small-Region.tissue-mask.npy", slide=bundled)
    sampler = sw.GridSampler(region=mask, min_coverage=0.05)
    dataset = sw.Dataset([sw.Patient("p", {"s": bundled})])
    for name, loader in (
        ("tissue", sw.WindowLoader(dataset, 240, sampler)),
        ("all", sw.SlidingWindowLoader(dataset, 240)),
    ):
        report = sw.Pipeline(loader, sw.MeanCollector(), sw.HDF5StreamWriter(tmp_path / name), quiet=True).run()
        assert isinstance(report, sw.Report)
        if name == "tissue":
            (slide,) = report.patients[0].slides
    tissue, whole = (sw.read_pieces(tmp_path / name / "p.h5") for name in ("tissue", "all"))
    kept = mask.coverage(whole.coords, 240) >= 0.05
    assert 0 < kept.sum() < len(whole)
    np.testing.assert_array_equal(tissue.coords, whole.coords[kept])
    np.testing.assert_array_equal(tissue.values, whole.values[kept])
    # tiles of 240 px: one for each window
    assert slide.tiles_decoded == slide.tiles_distinct == kept.sum()
    heat, full = sw.read_map(tmp_path / "tissue" / "p.h5"), sw.read_map(tmp_path / "all" / "p.h5")
    there = kept.reshape(full.values.shape[:2])
    np.testing.assert_array_equal(np.isnan(heat.values[..., 0]), ~there)
    np.testing.assert_allclose(heat.values[there], full.values[there], rtol=1e-12)


def test_a_random_sample_is_the_same_whatever_reads_it(bundled: Path, tmp_path: Path) -> None:
    sampler = sw.RandomSampler(70, max_overlap=0.5, seed=0)
    run(bundled, tmp_path / "one", sampler)
    run(bundled, tmp_path / "two", sampler, loaders=2, collectors=2, writers=2, transport="ipc", chunk_px=1 << 16)
    assert (tmp_path / "one" / "p.csv").read_bytes() == (tmp_path / "two" / "p.csv").read_bytes()
    with sw.open_slide(bundled) as reader:
        plans = [resolve(reader, bundled, kernel=KERNEL, sampler=sampler.at_epoch(epoch)).plan() for epoch in (0, 1)]
    now, then = (plan.windows(np.arange(70)) for plan in plans)
    assert [(window.x, window.y) for window in now] != [(window.x, window.y) for window in then]


def test_a_slide_without_room_fails_and_says_how_many_fit(bundled: Path, tmp_path: Path) -> None:
    report = run(bundled, tmp_path, sw.RandomSampler(100_000, max_overlap=0))
    (slide,) = report.patients[0].slides
    assert report.exit_code == 1 and slide.state == "failed"
    assert "has no room for 100000 windows: " in (slide.reason or "") and " were placed at random" in (slide.reason or "")


def test_a_border_that_cuts_windows_is_refused_for_they_are_of_one_size(bundled: Path) -> None:
    dataset = sw.Dataset([sw.Patient("p", {"s": bundled})])
    with pytest.raises(sw.ConfigError, match=r"all of one size.*SlidingWindowLoader has it"):
        sw.WindowLoader(dataset, KERNEL, sw.GridSampler(border="adaptive"))
