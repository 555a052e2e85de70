"""Runs at a physical resolution, and at several around one centre: pixels, places, files, and going on after a kill."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

import streamwsi as sw
from streamwsi.resolution import Resolution
from tests.helpers import BAD_TILE, UInt8Array, level_image, slide_file, write_tiff
from tests.pipeline.conftest import CLI
from tests.pipeline.test_failures import PROMPT_S, begin, finish
from tests.pipeline.test_results import arrays_of
from tests.pipeline.test_sampled_windows import Scattered
from tests.slides.test_tiff_reader import FAR_APART, foreign_and_odd_tiles

KERNEL = 64
COARSE = (0.499, 1.0, 2.9)
"""Of a slide of 0.499 µm per pixel: its level as it is, and two that are resampled."""
SIZE = (700, 500)


class Sums(sw.StreamCollector):
    """Sums of squares of each window, a row for each resolution: they tell one window from another."""

    def process(self, batch: sw.Batch) -> Any:
        for small, pixels in zip(batch, batch.pixels, strict=True):
            np.testing.assert_array_equal(small.pixels, pixels)
        return np.square(batch.pixels, dtype=np.int64).sum(axis=(-1, -2, -3))


@pytest.fixture(scope="module")
def small(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the bundled slide, as a file that does not say its resolution."""
    part = level_image(bundled, 0)[1000 : 1000 + SIZE[1], 600 : 600 + SIZE[0]]
    return write_tiff(tmp_path_factory.mktemp("small") / "small.tif", [part])


def run(slide: Path, out: Path, fmt: str = "csv", stride: int = KERNEL, **options: Any) -> sw.Report:
    dataset = sw.Dataset([sw.Patient("p", {"s": slide})])
    names = ("level", "mpp", "magnification", "missing_mpp", "mpps", "levels", "on_bad_region", "border")
    asked = {name: options.pop(name) for name in names if name in options}
    if slide.name == "small.tif":
        asked.setdefault("missing_mpp", 0.499)
    sampler = options.pop("sampler", None)
    if sampler is None:
        loader: sw.WindowLoader = sw.SlidingWindowLoader(dataset, KERNEL, stride, **asked)
    else:
        loader = sw.WindowLoader(dataset, KERNEL, sampler, **asked)
    writer = (sw.CSVStreamWriter if fmt == "csv" else sw.HDF5StreamWriter)(out)
    options = {"chunk_px": 1 << 18, "batch_size": 8} | options
    report = sw.Pipeline(loader, options.pop("collector", Sums()), writer, quiet=True, **options).run()
    assert isinstance(report, sw.Report)
    return report


def cut(image: UInt8Array, zoom: float, x: float, y: float, side: int) -> UInt8Array:
    """(side, side, 3): a window at (x, y) of a level, `image`, resampled by Pillow, its edges repeated; on white."""
    (rows, top), (columns, left) = _around(y, zoom, side, image.shape[0]), _around(x, zoom, side, image.shape[1])
    picture = Image.fromarray(image[rows][:, columns])
    box = left, 0, left + side * zoom, picture.height
    picture = picture.resize((side, picture.height), Image.Resampling.BICUBIC, box=box)
    window = np.array(picture.resize((side, side), Image.Resampling.BICUBIC, box=(0, top, side, top + side * zoom)))
    height, width = (max(round(extent / zoom), 1) for extent in image.shape[:2])
    across, down = x + np.arange(side) + 0.5, y + np.arange(side) + 0.5
    window[:, (across < 0) | (across >= width)] = 255
    window[(down < 0) | (down >= height)] = 255
    return window


def _around(place: float, zoom: float, side: int, extent: int) -> tuple[np.ndarray, float]:
    """Rows of a level that so much is made from, and the place among them where it begins."""
    start, beyond = round(place * zoom * 4096) / 4096, math.ceil(3 * zoom)
    first = math.floor(start) - beyond
    return np.clip(np.arange(first, math.ceil(start + side * zoom) + beyond), 0, extent - 1), start - first


def sum_of(window: UInt8Array) -> int:
    return int(np.square(window, dtype=np.int64).sum())


def test_a_run_at_a_resolution_has_the_pixels_of_the_level_resampled(bundled: Path, tmp_path: Path) -> None:
    resolution = Resolution.of(0, 1 / 0.499)
    for fmt in ("csv", "hdf5"):
        run(bundled, tmp_path / fmt, fmt, mpp=1.0)
        assert [verdict.problems for verdict in sw.verify(tmp_path / fmt)] == [[]]
    table = pd.read_csv(tmp_path / "csv" / "p.csv")
    image = level_image(bundled, 0)
    columns, rows = (math.ceil(round(side / resolution.zoom) / KERNEL) for side in image.shape[1::-1])
    assert len(table) == columns * rows
    assert set(table["level"]) == {0} and set(table["width"]) == {KERNEL}
    for index in (0, 1, columns - 1, columns + 3, 5 * columns + 7, len(table) - 1):
        x, y = index % columns * KERNEL, index // columns * KERNEL
        row = table.loc[index]
        assert (row["x"], row["y"]) == (math.floor(x * resolution.zoom), math.floor(y * resolution.zoom))
        assert row["value"] == sum_of(cut(image, resolution.zoom, x, y, KERNEL)), index
    with h5py.File(tmp_path / "hdf5" / "p.h5") as file:
        np.testing.assert_array_equal(file["features"][:], table["value"])
        attributes = file["s/coords"].attrs
        assert attributes["patch_size_level0"] == round(KERNEL * resolution.zoom)
        assert tuple(attributes["level_dim"]) == (round(2220 / resolution.zoom), round(2967 / resolution.zoom))
        assert attributes["zoom"] == resolution.zoom and attributes["downsample"][0] == resolution.zoom
        assert attributes["mpps"] == pytest.approx([1.0], rel=2e-4)
        assert attributes["target_magnification"] == pytest.approx(20 / resolution.zoom)
    heat = sw.read_map(tmp_path / "hdf5" / "p.h5")
    np.testing.assert_array_equal(heat.values[..., 0], table["value"].to_numpy().reshape(rows, columns))
    assert sw.render(tmp_path / "hdf5" / "p.h5").exists()


def test_overlapping_windows_are_the_same_however_they_are_cut_into_chunks(small: Path, tmp_path: Path) -> None:
    run(small, tmp_path / "a", mpp=2.0, stride=9)
    run(small, tmp_path / "b", mpp=2.0, stride=9, chunk_px=1 << 15, transport="ipc", threads=2, batch_size=5)
    a, b = ((tmp_path / name / "p.csv").read_bytes() for name in "ab")
    assert a == b


def resolutions() -> list[Resolution]:
    return [Resolution(0), Resolution.of(0, 1.0 / 0.499), Resolution.of(0, 2.9 / 0.499)]


def expected_sums(image: UInt8Array, start: tuple[int, int], margin: int = 0) -> list[int]:
    """Of a window at `start` of the finest resolution, with its margin, at each."""
    centre = start[0] + KERNEL / 2, start[1] + KERNEL / 2
    side = KERNEL + 2 * margin
    return [
        sum_of(cut(image, one.zoom, centre[0] / one.zoom - side / 2, centre[1] / one.zoom - side / 2, side))
        for one in resolutions()
    ]


@pytest.mark.parametrize(("transport", "stride"), [("shm", KERNEL * 2), ("ipc", 50)])
def test_windows_have_one_centre_at_every_resolution(small: Path, tmp_path: Path, transport: str, stride: int) -> None:
    """Packed, and where windows overlap; at the slide's edges, where most of what lies around a window is background."""
    seen = tmp_path / "shapes"

    class Shapes(Sums):
        def process(self, batch: sw.Batch) -> Any:
            assert batch.pixels.shape == (len(batch), 3, KERNEL, KERNEL, 3) and batch.pixels.flags.c_contiguous
            np.testing.assert_array_equal(batch.finest, batch.pixels[:, 0])
            seen.touch()
            return super().process(batch)

    report = run(small, tmp_path / "o", "hdf5", stride, mpps=COARSE, transport=transport, collector=Shapes())
    assert report.transport == transport and seen.exists()
    image = level_image(small, 0)
    with h5py.File(tmp_path / "o" / "p.h5") as file:
        features, coords = file["features"][:], file["coords"][:]
        attributes = dict(file["s/coords"].attrs)
    np.testing.assert_array_equal(attributes["resolutions"], [(one.level, one.zoom) for one in resolutions()])
    assert attributes["mpps"] == pytest.approx(COARSE, rel=2e-4) and attributes["zoom"] == 1
    random = np.random.default_rng(0)
    for index in [0, 1, len(coords) - 1, *random.integers(0, len(coords), 9).tolist()]:
        assert features[index].tolist() == expected_sums(image, tuple(coords[index].tolist())), index
    assert [verdict.problems for verdict in sw.verify(tmp_path / "o")] == [[]]


def test_windows_of_a_sampler_have_their_margin_at_every_resolution(small: Path, tmp_path: Path) -> None:
    sampler = Scattered(40, margin=5)
    run(small, tmp_path, sampler=sampler, mpps=COARSE)
    table = pd.read_csv(tmp_path / "p.csv")
    image = level_image(small, 0)
    for index in (0, 7, 39):
        row = table.loc[index]
        found = [row[f"value_{number}"] for number in range(3)]
        assert found == expected_sums(image, (row["x"], row["y"]), margin=5)


def test_levels_are_read_as_they_are_where_centres_allow_it(shared_slides: Path, tmp_path: Path) -> None:
    """Level 1 is half as fine: windows of 64 px every 64 px begin at whole pixels of it."""
    slide = slide_file(shared_slides, "tiff/wsipack_example.tif")
    run(slide, tmp_path, "hdf5", levels=[0, 1])
    levels = [
        np.pad(level_image(slide, level), ((KERNEL, 2 * KERNEL), (KERNEL, 2 * KERNEL), (0, 0)), constant_values=255)
        for level in (0, 1)
    ]
    with h5py.File(tmp_path / "p.h5") as file:
        for feature, (x, y) in zip(file["features"][:].tolist(), file["coords"][:].tolist(), strict=True):
            places = (x, y), ((x + 32) // 2 - 32, (y + 32) // 2 - 32)
            assert feature == [
                sum_of(image[y + KERNEL : y + 2 * KERNEL, x + KERNEL : x + 2 * KERNEL])
                for image, (x, y) in zip(levels, places, strict=True)
            ]


def test_what_cannot_be_read_costs_the_windows_that_need_it_at_any_resolution(shared_slides: Path, tmp_path: Path) -> None:
    name, (x, y, width, height) = BAD_TILE
    report = run(slide_file(shared_slides, name), tmp_path, stride=KERNEL * 2, mpps=COARSE, on_bad_region="skip")
    table = pd.read_csv(tmp_path / "p.csv")
    assert report.windows == len(table) + report.patients[0].slides[0].skipped
    reach = KERNEL * 2.9 / 0.499 / 2  # of the coarsest, from a centre; and the filter's 2 of its pixels, and 1 to be sure of
    centre_x, centre_y = table["x"] + KERNEL / 2, table["y"] + KERNEL / 2

    def touching(beyond: float) -> Any:
        return (
            (centre_x + reach + beyond > x)
            & (centre_x - reach - beyond < x + width)
            & (centre_y + reach + beyond > y)
            & (centre_y - reach - beyond < y + height)
        )

    assert not touching(0).any()
    columns, rows = math.ceil((2220 - KERNEL) / 128) + 1, math.ceil((2967 - KERNEL) / 128) + 1
    places = [(128 * i + KERNEL / 2, 128 * j + KERNEL / 2) for j in range(rows) for i in range(columns)]
    near = [
        abs(a - x - width / 2) < width / 2 + reach + 30 and abs(b - y - height / 2) < height / 2 + reach + 30 for a, b in places
    ]
    assert 0 < report.patients[0].slides[0].skipped <= sum(near)


def test_a_slide_of_an_absurd_resolution_fails_alone_unless_one_is_given_for_it(shared_slides: Path, tmp_path: Path) -> None:
    slide = slide_file(shared_slides, "tiff/boxes.tiff")
    report = run(slide, tmp_path / "refused", mpp=1.0)
    assert report.exit_code == 1
    assert "352.778" in report.to_json().decode() and "missing_mpp=" in report.to_json().decode()
    run(slide, tmp_path / "o", "hdf5", mpp=1.0, missing_mpp=lambda slide: 0.25 if slide.mpp else 1.0)
    with h5py.File(tmp_path / "o" / "p.h5") as file:
        attributes = file["s/coords"].attrs
        assert (attributes["patch_level"], tuple(attributes["mpp"])) == (2, (0.25, 0.25))  # 4.016 times level 0
        assert "zoom" not in attributes
    defining = json.loads((tmp_path / "o" / "run.json").read_text())["defining"]
    assert defining["mpp"] == 1.0 and defining["missing_mpp"].startswith("callable: ")


def test_another_resolution_than_the_one_begun_with_is_refused(small: Path, tmp_path: Path) -> None:
    run(small, tmp_path, mpp=1.0)
    with pytest.raises(sw.OutputError, match=r"mpp is 1\.0, this one's is 2\.0"):
        run(small, tmp_path, mpp=2.0)
    with pytest.raises(sw.OutputError, match=r"mpp is 1\.0, this one's is None"):
        run(small, tmp_path, level=0)


def test_a_folder_that_knows_nothing_of_resolutions_goes_on(small: Path, tmp_path: Path) -> None:
    run(small, tmp_path, level=0, missing_mpp="error")
    path = tmp_path / "run.json"
    written = json.loads(path.read_text())
    for name in ("mpp", "magnification", "levels", "mpps", "missing_mpp"):
        del written["defining"][name]
    path.write_text(json.dumps(written))
    assert run(small, tmp_path, missing_mpp="error").patients[0].state == "already done"


SLOW = """
import os, threading
import streamwsi as sw

class Slow(sw.StreamCollector):
    def process(self, batch):
        if "STREAMWSI_TEST_HURRY" not in os.environ:
            threading.Event().wait(0.03)
        return batch.pixels.mean(axis=(1, 2, 3, 4))
"""


def test_a_run_that_is_killed_goes_on_and_ends_as_one_that_was_not(small: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    command: list[object] = [
        *(*CLI, "heatmap", small, "--collector", f"{tmp_path / 'slow.py'}:Slow", "--format", "h5"),
        *("--mpps", "0.9,3", "--missing-mpp", 0.499, "--kernel-size", 64, "--stride", 16),
        *("--chunk-px", 1 << 17, "--batch-size", 4, "--out"),
    ]
    finish(command, tmp_path / "whole")
    process = begin(command, tmp_path / "out")
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(children, timeout=PROMPT_S)[1]
    report = finish(command, tmp_path / "out")
    whole, resumed = (arrays_of(tmp_path / name / "small.h5") for name in ("whole", "out"))
    assert 0 < report["windows"] < len(whole["index"])
    assert whole.keys() == resumed.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])


def test_a_stream_has_the_windows_of_every_resolution_shuffled_or_not(small: Path) -> None:
    dataset = sw.Dataset([sw.Patient("p", {"s": small})])
    loader = sw.SlidingWindowLoader(dataset, KERNEL, KERNEL * 2, mpps=COARSE, missing_mpp=0.499)
    image, passes = level_image(small, 0), []
    for options in ({}, {"shuffle": 1}):
        with sw.stream(loader, batch_size=7, chunk_px=1 << 17, **options) as stream:
            passes.append({one.window.index: one.pixels.copy() for batch in stream for one in batch})
    assert passes[0].keys() == passes[1].keys() and len(passes[0]) == 24
    for index, pixels in passes[0].items():
        np.testing.assert_array_equal(passes[1][index], pixels)
    start = 2 * KERNEL, KERNEL * 2
    assert [sum_of(one) for one in passes[0][7]] == expected_sums(image, start)


@pytest.mark.parametrize("kind", ["missing", "odd"])
def test_tiles_that_could_only_be_had_resampled_are_in_the_report(tmp_path: Path, kind: str) -> None:
    path = foreign_and_odd_tiles(tmp_path / "far.svs", FAR_APART, 0, [80], kind)
    loader = sw.SlidingWindowLoader(sw.Dataset.from_paths([path]), 48, level=1, border="crop")
    report = sw.MeanCollector().start_collecting(loader, sw.HDF5StreamWriter(tmp_path / "out"), quiet=True)
    (slide,) = report.patients[0].slides
    assert slide.reader == "tiff" and 0.1 < slide.resampled_px < 0.5
    (warning,) = (text for text in report.warnings if "shifted by up to 0." in text)
    assert ("tiles that could not be decoded directly" in warning) == (kind == "odd")
