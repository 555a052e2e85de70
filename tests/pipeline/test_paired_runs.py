"""Slides with labels and a mask in runs and streams: each window has what lies at its place, whatever it comes through."""

from __future__ import annotations

import csv
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

import streamwsi as sw
from tests.helpers import noise_levels, write_tiff
from tests.slides.zarr_files import write_array, write_image

SIDE = 64
SIZES = {"a": (600, 500), "b": (520, 700)}


class Case:
    """Two slides of noise: labels as fine as they are, of 4 bytes, and a mask that is 8 times coarser, as RGB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labels: dict[str, npt.NDArray[np.int32]] = {}
        self.masks: dict[str, npt.NDArray[np.uint8]] = {}
        self.pixels: dict[str, npt.NDArray[np.uint8]] = {}
        for number, (name, (width, height)) in enumerate(SIZES.items()):
            (self.pixels[name],) = noise_levels([(width, height)], seed=number)
            write_tiff(folder / f"{name}.tif", [self.pixels[name]])
            places = np.arange(height * width, dtype=np.int32).reshape(height, width)
            self.labels[name] = places + (number << 24)
            coarse = self.labels[name][::2, ::2]
            write_image(folder / f"{name}.zarr", [self.labels[name], coarse], "YX", (128, 128), [(1.0, 1.0), (2.0, 2.0)])
            self.masks[name] = noise_levels([(-(-width // 8), -(-height // 8))], seed=9 + number)[0]
            np.save(folder / f"{name}-mask.npy", self.masks[name])
        self.dataset = sw.Dataset.from_paths([folder / f"{name}.tif" for name in SIZES])
        self.paired = {
            "labels": str(folder / "{stem}.zarr"),
            "mask": sw.Paired(str(folder / "{stem}-mask.npy"), source_axes="YXC", axes="CYX", outside=255),
        }

    def check(self, batch: sw.Batch | sw.MixedBatch) -> None:
        """Compare each window's labels and mask with what lies there."""
        assert batch.labels.dtype == np.int32 and batch.mask.dtype == np.uint8
        for row, (window, slide) in enumerate(zip(batch.windows, batch.slides, strict=True)):
            for found, whole, scale, beyond in (
                (batch.labels[row], self.labels[slide.id], 1, 0),
                (batch.mask[row].transpose(1, 2, 0), self.masks[slide.id], 8, 255),
            ):
                side = SIDE // scale
                expected = np.full((side, side, *whole.shape[2:]), beyond, whole.dtype)
                part = whole[window.y // scale : window.y // scale + side, window.x // scale : window.x // scale + side]
                expected[: part.shape[0], : part.shape[1]] = part
                np.testing.assert_array_equal(found, expected, err_msg=f"{slide.id} {window}")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("paired"))


@pytest.mark.parametrize(("transport", "shuffle"), [("shm", None), ("ipc", 5), ("shm", 5)])
def test_a_stream_has_labels_and_masks_of_each_window(case: Case, transport: Any, shuffle: int | None) -> None:
    """With windows that overlap, of several slides mixed; a second pass has the same."""
    loader = sw.SlidingWindowLoader(case.dataset, SIDE, 48, paired=case.paired)
    with sw.stream(loader, batch_size=8, transport=transport, shuffle=shuffle, chunk_px=1 << 15) as stream:
        for _ in range(2):
            seen = []
            for batch in stream:
                case.check(batch)
                seen += [(slide.id, window.index) for window, slide in zip(batch.windows, batch.slides, strict=True)]
            assert len(seen) == len(set(seen)) == 13 * 11 + 11 * 15
        assert stream.report.transport == transport


def test_labels_at_the_scale_of_windows_and_single_windows_with_theirs(case: Case) -> None:
    """Scattered windows, so that each is packed by itself; twice as coarse, for which the pyramid's level is taken."""
    np.random.default_rng(1)
    sampler = sw.RandomSampler(12, seed=3)
    paired = {**case.paired, "labels": sw.Paired(case.paired["labels"], resolution="window")}
    coarse = sw.WindowLoader(case.dataset, SIDE, sampler, mpp=2.0, missing_mpp=1.0, paired=paired)
    windows = list(sw.stream(coarse, batch_size=5).windows())
    assert len(windows) == 24
    for small in windows:
        assert small.slide is not None
        y, x = 2 * small.window.start_y, 2 * small.window.start_x
        expected = case.labels[small.slide.id][y : y + 2 * SIDE : 2, x : x + 2 * SIDE : 2]
        np.testing.assert_array_equal(small.labels, expected)
        assert small.mask.shape == (3, 2 * SIDE // 8, 2 * SIDE // 8)


class Pairs(sw.StreamCollector):
    """The sums of what a batch holds."""

    columns = ("pixels", "labels", "mask")

    def process(self, batch: sw.Batch) -> Any:
        sums = [
            values.reshape(len(batch), -1).sum(axis=1, dtype=np.float64) for values in (batch.pixels, batch.labels, batch.mask)
        ]
        return np.stack(sums, axis=1)


def run(case: Case, out: Path, collector: sw.StreamCollector | None = None, **options: Any) -> sw.Report:
    loading = {name: options.pop(name) for name in ("paired", "transforms", "on_bad_region") if name in options}
    loader = sw.SlidingWindowLoader(case.dataset, SIDE, SIDE, **{"paired": case.paired, **loading})
    return sw.Pipeline(loader, collector or Pairs(), sw.CSVStreamWriter(out), quiet=True, **options).run()


def rows(out: Path, name: str) -> Iterator[tuple[tuple[int, int], list[float]]]:
    with (out / f"{name}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            yield (int(row["x"]), int(row["y"])), [float(row[column]) for column in Pairs.columns]


def halved(pixels: Any, labels: Any) -> tuple[Any, Any]:
    return pixels[:, ::2], labels[:, ::2]


def test_a_run_gives_collectors_all_three_as_transforms_make_them(case: Case, tmp_path: Path) -> None:
    report = run(case, tmp_path, transforms={("pixels", "labels"): halved, "mask": lambda mask: mask > 100})
    assert report.exit_code == 0
    for name in SIZES:
        found = dict(rows(tmp_path, name))
        assert len(found) == -(-SIZES[name][0] // SIDE) * -(-SIZES[name][1] // SIDE)
        for (x, y), (pixels, labels, mask) in found.items():
            here = [whole[y : y + SIDE : 2, x : x + SIDE] for whole in (case.pixels[name], case.labels[name])]
            assert labels == here[1].sum(dtype=np.int64)
            white = (SIDE // 2 * SIDE - here[1].size) * 3 * 255  # beyond the slide
            assert pixels == here[0].sum(dtype=np.int64) + white
            small = case.masks[name][y // 8 : (y + SIDE) // 8, x // 8 : (x + SIDE) // 8]
            assert mask == (small > 100).sum() + (8 * 8 * 3 - small.size)


class DiesOnce(Pairs):
    """Kills the loader, for good, in the midst of the run; then goes on."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks

    def process(self, batch: sw.Batch) -> Any:
        try:
            (self.marks / "mark").touch(exist_ok=False)
        except FileExistsError:
            return super().process(batch)
        driver = psutil.Process(os.getppid())
        (loader,) = [child for child in driver.children() if "streamwsi-loader" in child.cmdline()]
        os.kill(loader.pid, signal.SIGKILL)
        return super().process(batch)


def test_after_a_kill_another_loader_opens_them_again(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path / "whole")
    report = run(case, tmp_path / "killed", DiesOnce(tmp_path), chunk_px=1 << 15)
    assert report.exit_code == 0 and report.restarts == 1
    for name in SIZES:
        assert (tmp_path / "killed" / f"{name}.csv").read_bytes() == (tmp_path / "whole" / f"{name}.csv").read_bytes()


def test_a_slide_without_labels_fails_alone_until_it_has_some(case: Case, tmp_path: Path) -> None:
    stems = {name: np.full((height, width), 7, np.int32) for name, (width, height) in SIZES.items()}
    del stems["b"]
    report = run(case, tmp_path, paired={**case.paired, "labels": sw.Paired(stems)})
    assert report.exit_code == 1
    (failed,) = report.failed_slides
    assert failed.id == "b" and "there is none for 'b' or ('b', 'b') in the mapping" in (failed.reason or "")
    assert all(labels == 7 * SIDE * SIDE for (x, y), (_, labels, _) in rows(tmp_path, "a") if x < 500 and y < 400)
    stems["b"] = np.full(SIZES["b"][::-1], 8, np.int32)
    assert run(case, tmp_path, paired={**case.paired, "labels": sw.Paired(stems)}).exit_code == 0
    assert next(rows(tmp_path, "b"))[1][1] == 8 * SIDE * SIDE


def test_labels_that_have_changed_are_not_mixed_with_those_before(case: Case, tmp_path: Path) -> None:
    for name, (width, height) in SIZES.items():
        write_array(tmp_path / f"{name}.zarr", np.ones((height, width), np.int32), (128, 128))
    (tmp_path / "b.zarr" / "c" / "3" / "3").write_bytes(b"damaged")
    paired = {**case.paired, "labels": str(tmp_path / "{stem}.zarr")}
    report = run(case, tmp_path / "out", paired=paired, chunk_px=1 << 13)
    (failed,) = report.failed_slides
    assert failed.id == "b" and "b.zarr cannot be read at (384, 384)" in (failed.reason or "")
    # what of b was committed lies in its journal, made with labels that are 1
    write_array(tmp_path / "other" / "b.zarr", np.full(SIZES["b"][::-1], 2, np.int32), (128, 128))
    paired["labels"] = str(tmp_path / "other" / "{stem}.zarr")
    with pytest.raises(sw.OutputError, match="its labels are others than before: their content"):
        run(case, tmp_path / "out", paired=paired, chunk_px=1 << 13)


def test_a_transform_that_raises_ends_the_run_with_its_place(case: Case, tmp_path: Path) -> None:
    def raises(labels: Any) -> Any:
        raise ZeroDivisionError("no labels today")

    with pytest.raises(sw.CollectorError, match=r"no labels today") as caught:
        run(case, tmp_path, transforms={"labels": raises})
    assert re.search(r"in transforms, patient '(.)', slide '\1', windows \d+ to \d+ at level-0", str(caught.value))
    loader = sw.SlidingWindowLoader(case.dataset, SIDE, paired=case.paired, transforms={"labels": raises})
    with pytest.raises(sw.CollectorError, match="the transform for labels raised ZeroDivisionError"):
        next(iter(sw.stream(loader)))
