"""Images of windows blended to maps, through the whole pipeline: pixels, processes, kills, resume, refusals."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openslide
import pytest
import tifffile

import streamwsi as sw
from streamwsi.config import CHUNK_PX
from streamwsi.loading.window_loader import WindowLoader
from streamwsi.sampling.scene import Scene
from tests.helpers import level_image
from tests.pipeline.conftest import workers_of
from tests.pipeline.test_failures import begin, finish, until_line
from tests.pipeline.test_sampled_windows import Scattered

EXTENT = (2220, 2967)
"""(width, height) of the bundled slide."""


def run(
    dataset: sw.Dataset,
    out: Path,
    collector: sw.StreamCollector | None = None,
    loader: WindowLoader | None = None,
    **options: Any,
) -> sw.Report:
    of_run = {
        name: options.pop(name)
        for name in ("collectors", "transport", "overwrite", "chunk_px", "batch_size", "writers")
        if name in options
    }
    writer = sw.MapStreamWriter(out, **{"output": "hdf5", "block_px": 256} | options)
    loader = loader or sw.SlidingWindowLoader(dataset, 256, 128)
    report = sw.Pipeline(loader, collector or sw.Patches(), writer, quiet=True, **of_run).run()
    assert isinstance(report, sw.Report)
    return report


def data(out: Path, slide: str = "s", patient: str = "p") -> np.ndarray:
    with h5py.File(out / patient / f"{slide}.h5") as file:
        return np.asarray(file["data"])


class Darkness(sw.StreamCollector):
    """How dark and how blue every second pixel is, as float32: images of half the windows' size."""

    columns = ("dark", "blue")

    def process(self, batch: sw.Batch) -> Any:
        seen = batch.pixels[:, ::2, ::2] / np.float32(255)
        return np.stack([1 - seen[..., 0], seen[..., 2]], axis=-1)


def through_aggregator(image: np.ndarray, weights: Any, extent: tuple[int, int]) -> np.ndarray:
    """What an Aggregator makes of Darkness's images: of windows of 256 px, every 128 px, beyond the edge with white."""
    width, height = extent
    grid = sw.ArraySampler(np.zeros((height, width)), (128, 128), 64, border="pad")
    into = sw.Aggregator(grid, weights=weights, spatial_axes="first")
    collector = Darkness()
    for _, box in grid:
        (top, bottom), (left, right) = (2 * box).tolist()
        pixels = image[top:bottom, left:right][None]
        into.append(collector.process(sw.Batch(pixels, None, None, None))[0], box)  # type: ignore[arg-type]
    return np.asarray(into.get_output())


def test_maps_equal_those_of_an_aggregator_whatever_the_processes(
    one_patient: sw.Dataset, bundled: Path, tmp_path: Path
) -> None:
    weights = 1.0 + np.arange(128 * 128).reshape(128, 128) % 7
    white = level_image(bundled, 0, margin=256)[256:, 256:]
    expected = through_aggregator(white, weights, (EXTENT[0] // 2, -(-EXTENT[1] // 2)))
    options: dict[str, Any] = {"reduction": 2, "weights": weights, "batch_size": 8, "chunk_px": 1 << 20}
    run(one_patient, tmp_path / "one", Darkness(), **options)
    found = data(tmp_path / "one")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    with h5py.File(tmp_path / "one" / "p" / "s.h5") as file:
        assert list(file["data"].attrs["columns"]) == ["dark", "blue"] and file["data"].attrs["downsample"] == 2
    run(one_patient, tmp_path / "two", Darkness(), collectors=2, transport="ipc", **options)
    np.testing.assert_array_equal(data(tmp_path / "two"), found)


class Some(sw.StreamCollector):
    """The windows' own pixels, without their margin, of some of them; stops when it is told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    def process(self, batch: sw.Batch) -> Any:
        inner = slice(batch.margin, -batch.margin or None)
        return [sw.ProcessedPiece(small.window, small.pixels[inner, inner]) for small in batch if small.window.index % 5 != 3]

    def is_finished(self, patient: sw.Patient, windows_done: int) -> bool:
        return self.stop_at is not None and windows_done >= self.stop_at


def test_windows_anywhere_with_a_margin_leave_holes_where_none_is(
    one_patient: sw.Dataset, bundled: Path, tmp_path: Path
) -> None:
    loader = sw.WindowLoader(one_patient, 96, Scattered(60, margin=8), 0)
    run(one_patient, tmp_path, Some(), loader, dtype="uint8", fill_value=7, chunk_px=1 << 16, batch_size=4, output="hdf5")
    places = Scattered(60).places(Scene(None, "p", EXTENT, 1.0, (96, 96), None))  # type: ignore[arg-type]
    covered = np.zeros((EXTENT[1], EXTENT[0]), bool)
    for index, (x, y) in enumerate(places.start.tolist()):
        if index % 5 != 3:
            covered[max(y, 0) : y + 96, max(x, 0) : x + 96] = True
    image = level_image(bundled, 0)
    assert 0.05 < covered.mean() < 0.2
    np.testing.assert_array_equal(data(tmp_path), np.where(covered[..., None], image, 7))
    (verdict,) = sw.verify(tmp_path)
    assert (verdict.problems, verdict.written, verdict.none) == ([], 48, 12)


def test_cut_windows_of_a_virtual_level(one_patient: sw.Dataset, tmp_path: Path) -> None:
    loader = sw.SlidingWindowLoader(one_patient, 200, 150, mpp=1.3, border="adaptive")
    run(one_patient, tmp_path / "map", loader=loader, batch_size=4)
    whole = sw.SlidingWindowLoader(one_patient, (2048, 2048), mpp=1.3, border="adaptive")
    run(one_patient, tmp_path / "whole", loader=whole)
    found = data(tmp_path / "map")
    assert found.shape == (1139, 852, 3)
    np.testing.assert_array_equal(found, data(tmp_path / "whole"))
    with h5py.File(tmp_path / "map" / "p" / "s.h5") as file:
        np.testing.assert_allclose(file["data"].attrs["mpp"], [1.3, 1.3], rtol=2e-4)


def test_a_patient_that_is_stopped_has_a_map_of_what_counts(copies: list[Path], tmp_path: Path) -> None:
    dataset = sw.Dataset([sw.Patient("p", {"one": copies[0], "two": copies[1]})])
    loader = sw.SlidingWindowLoader(dataset, 256)
    report = run(dataset, tmp_path, Some(40), loader, chunk_px=1 << 18, batch_size=4)
    slides = report.patients[0].slides
    assert slides[0].stopped > 0 and slides[0].written > 0
    found = data(tmp_path, "one")
    stopped_at = found.any(axis=(1, 2)).nonzero()[0].max()
    assert 500 < stopped_at < 2000
    assert [verdict.problems for verdict in sw.verify(tmp_path)] == [[]]


def test_windows_own_pixels_come_back_as_a_slide_and_a_second_run_changes_nothing_or_overwrites(
    one_patient: sw.Dataset, bundled: Path, tmp_path: Path
) -> None:
    assert run(one_patient, tmp_path, output="tiff", block_px=512).windows == 17 * 23
    path = tmp_path / "p" / "s.ome.tiff"
    with tifffile.TiffFile(path) as file:
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(2967, 2220, 3), (1484, 1110, 3), (742, 555, 3), (371, 278, 3)]
        np.testing.assert_array_equal(levels[0].asarray(), level_image(bundled, 0))
        assert file.is_ome and 'PhysicalSizeX="0.499"' in str(file.ome_metadata)
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == EXTENT
    (verdict,) = sw.verify(tmp_path)
    assert (verdict.problems, verdict.file, verdict.written) == ([], "p", 17 * 23)
    assert sorted(found.name for found in tmp_path.glob("[!.]*")) == ["p", "report.json", "run.json"]
    assert sw.summarize(tmp_path).columns == []
    with pytest.raises(sw.MapError, match="holds maps already"):
        sw.render_all(tmp_path)

    before = path.stat().st_ino, path.stat().st_mtime_ns
    report = run(one_patient, tmp_path, output="tiff", block_px=512)
    assert report.windows == 0 and (path.stat().st_ino, path.stat().st_mtime_ns) == before
    with pytest.raises(sw.OutputError, match=r"its maps is \{'weights': 'mean'\}, this one's is \{'weights': 'gaussian'\}"):
        run(one_patient, tmp_path, output="tiff", block_px=512, weights="gaussian")
    (tmp_path / "p" / "notes.txt").write_text("mine")
    with pytest.raises(sw.OutputError, match=r"p/notes\.txt was not made by streamwsi: move it"):
        run(one_patient, tmp_path, output="tiff", block_px=512, weights="gaussian", overwrite=True)
    assert path.exists()
    (tmp_path / "p" / "notes.txt").unlink()
    pytest.importorskip("zarr")
    run(one_patient, tmp_path, Darkness(), reduction=2, weights="gaussian", overwrite=True, output="zarr")
    assert sorted(found.name for found in (tmp_path / "p").iterdir()) == ["maps.json", "s.ome.zarr"]
    chunk = next(file for file in (tmp_path / "p" / "s.ome.zarr").rglob("*") if file.is_file() and file.name.isdigit())
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    (verdict,) = sw.verify(tmp_path)
    assert verdict.problems == ["p/s.ome.zarr has changed since its publication: its checksum differs"]


# ---- refusals


def test_what_does_not_go_together_is_refused_before_anything_starts(one_patient: sw.Dataset, tmp_path: Path) -> None:
    class Gathering(sw.StreamCollector):
        mode = "collect"

        def process(self, batch: sw.Batch) -> Any:
            return batch.pixels

        def collate(self, patient: sw.Patient, pieces: list[sw.ProcessedPiece]) -> Any:
            return len(pieces)

    out = tmp_path / "out"
    loader = sw.SlidingWindowLoader(one_patient, 256, 128)
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: sw.MapStreamWriter(out, output="png"), "output must be one of"),  # type: ignore[arg-type]
        (lambda: sw.MapStreamWriter(out, dtype="float64"), "dtype must be one of uint8, uint16, float32, got 'float64'"),
        (lambda: sw.MapStreamWriter(out, weights="median"), "got 'median'"),
        (lambda: sw.MapStreamWriter(out, fill_value=300, dtype="uint8"), "a whole number that uint8 holds, got 300"),
        (lambda: sw.MapStreamWriter(out, block_px=100), "a multiple of 16, got 100"),
        (lambda: sw.Pipeline(loader, Gathering(), sw.MapStreamWriter(out)), "mode 'collect' gives no images to maps"),
        (lambda: run(one_patient, out, weights=np.ones((3, 3))), r"the patch's spatial size \(256, 256\), got \(3, 3\)"),
        (lambda: run(one_patient, out, reduction=3), r"kernel_size \(256, 256\) is no multiple of reduction=3"),
        (
            lambda: run(one_patient, out, loader=sw.SlidingWindowLoader(one_patient, 256, 102), reduction=4),
            r"stride \(102, 102\) is no multiple of reduction=4",
        ),
    ]
    for attempt, said in refused:
        with pytest.raises(sw.ConfigError, match=said):
            attempt()
    assert not out.exists()


@pytest.mark.parametrize(("reduction", "batch_size", "most_px"), [(1, 32, 1 << 22), (4, 32, CHUNK_PX), (1, 100, 100 << 16)])
def test_chunks_are_no_larger_than_their_sums_may_be(
    one_patient: sw.Dataset, tmp_path: Path, reduction: int, batch_size: int, most_px: int
) -> None:
    writer = sw.MapStreamWriter(tmp_path, reduction=reduction, output="tiff")
    made = sw.Pipeline(sw.SlidingWindowLoader(one_patient, 256), Darkness(), writer, batch_size=batch_size)
    assert made._loader_startup().reading.chunk_px == most_px
    assert made._loader_startup().reading.starts_at_multiples_of == reduction


# ---- kills

SCRIPT = """
import os, sys, threading
import numpy as np
import streamwsi as sw

class Slow(sw.StreamCollector):
    def process(self, batch):
        if "STREAMWSI_TEST_HURRY" not in os.environ:
            threading.Event().wait(0.06)
        return batch.pixels[..., :2].astype(np.float32)

dataset = sw.Dataset([sw.Patient("p", {{"s": {0!r}}})])
loader = sw.SlidingWindowLoader(dataset, 256, 128)
writer = sw.MapStreamWriter(sys.argv[1], output="hdf5", weights=lambda size: 1 + np.arange(size[0] * size[1]).reshape(size) % 3)
report = sw.Pipeline(loader, Slow(), writer, collectors=2, chunk_px=1 << 18, batch_size=4).run()
"""
ALL_WINDOWS = 17 * 23


@pytest.fixture(scope="module")
def slow(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    path = tmp_path_factory.mktemp("slow") / "maps.py"
    path.write_text(textwrap.dedent(SCRIPT).format(str(bundled)))
    return [sys.executable, path]


@pytest.fixture(scope="module")
def undisturbed(slow: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    finish(slow, out)
    return out


def assert_same_maps(out: Path, expected: Path) -> None:
    assert (out / "p" / "s.h5").read_bytes() == (expected / "p" / "s.h5").read_bytes()
    assert [verdict.problems for verdict in sw.verify(out)] == [[]]


def test_a_run_that_was_killed_goes_on_and_counts_no_window_twice(
    slow: list[object], undisturbed: Path, tmp_path: Path
) -> None:
    process = begin(slow, tmp_path)
    process.kill()
    process.communicate()
    assert 0 < finish(slow, tmp_path)["windows"] < ALL_WINDOWS
    assert_same_maps(tmp_path, undisturbed)


def test_workers_that_are_killed_are_replaced_and_the_maps_are_the_same(
    slow: list[object], undisturbed: Path, tmp_path: Path
) -> None:
    process = begin(slow, tmp_path)
    for role in ("collector", "writer", "loader"):
        workers_of(process.pid, role)[0].kill()
        until_line(process, "was killed by SIGKILL; it is replaced")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads((tmp_path / "report.json").read_text())["restarts"] == 3
    assert_same_maps(tmp_path, undisturbed)
