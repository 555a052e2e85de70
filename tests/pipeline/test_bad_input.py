"""What cannot work is refused before anything starts, naming the value, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamwsi as sw
from streamwsi.pipeline import folder as folder_module
from streamwsi.pipeline.folder import OutputFolder
from streamwsi.pipeline.lock import FolderLock
from streamwsi.writing.layout import Layout
from streamwsi.writing.run_file import RunFile
from tests.pipeline.test_results import Cli


class Fine(sw.StreamCollector):
    def process(self, batch: sw.Batch) -> Any:
        return [0] * len(batch)


class Holding(Fine):
    def __init__(self) -> None:
        self.model_lock = threading.Lock()


class Unfinished(sw.StreamCollector):
    pass


class Gathering(Fine):
    mode = "collect"


def loader(dataset: sw.Dataset, **options: Any) -> sw.SlidingWindowLoader:
    return sw.SlidingWindowLoader(dataset, **{"kernel_size": 256, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 0}, "kernel_size must be at least 1 pixel, got 0"),
        ({"kernel_size": 1 << 31}, "kernel_size must be at most 2147483647 pixels, got 2147483648"),
        ({"kernel_size": 2.5}, r"kernel_size must be an int or \(width, height\), got 2.5"),
        ({"stride": (1, 0)}, r"stride must be at least 1 pixel, got \(1, 0\)"),
        ({"stride": -1}, "stride must be at least 1 pixel, got -1"),
        ({"border": "wrap"}, "border must be one of 'pad', 'edge', 'squeeze', 'adaptive', 'crop', got 'wrap'"),
        ({"background": (0, 0, 256)}, r"background must be \(R, G, B\) with each from 0 to 255, got \(0, 0, 256\)"),
        ({"on_bad_region": "ignore"}, "on_bad_region must be one of 'fail', 'skip', got 'ignore'"),
        ({"reader": "vips"}, "reader must be one of 'auto', 'openslide', 'tiff', 'array', got 'vips'"),
        ({"level": "finest"}, "level must be at least 0, got 'finest'"),
        ({"level": -1}, "level must be at least 0, got -1"),
    ],
)
def test_a_window_that_cannot_slide(one_patient: sw.Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(sw.ConfigError, match=message) as caught:
        loader(one_patient, **options)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("collector", "options", "message"),
    [
        (Fine, {}, "collector must be a StreamCollector, got the class Fine, not an object of it"),
        (Unfinished(), {}, "Unfinished has mode 'stream' and must define process"),
        (Gathering(), {}, "Gathering has mode 'collect' and must define collate"),
        (Fine(), {"collectors": 0}, "collectors must be at least 1, got 0"),
        (Fine(), {"collectors": 1, "devices": ["cuda:0", "cuda:1"]}, "devices .* are more than the 1 collectors"),
        (Fine(), {"devices": [1]}, r"devices must be names as torch has them, 'cuda:0', got \[1\]"),
        (Fine(), {"devices": [" "]}, "devices must be names"),
        (Fine(), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (Fine(), {"threads": 1.5}, "threads must be an int, got 1.5"),
        (Fine(), {"transport": "udp"}, "transport must be one of 'auto', 'shm', 'ipc', 'tcp', got 'udp'"),
        (Fine(), {"min_chunk_interval_s": -1}, "min_chunk_interval_s must be at least 0, got -1"),
        (Fine(), {"stall_timeout_s": float("inf")}, "stall_timeout_s must be at most 1000000000, got inf"),
        (Fine(), {"grace_s": float("inf")}, "grace_s must be at most 1000000000, got inf"),
        (Fine(), {"grace_s": float("nan")}, "grace_s must be at least 0, got nan"),
        (Fine(), {"tile_cache_mb": 1e30}, "tile_cache_mb must be at most 1000000000, got 1e\\+30"),
        (Fine(), {"max_restarts": 1.5}, "max_restarts must be an int, got 1.5"),
        (Fine(), {"max_restarts": -1}, "max_restarts must be at least 0, got -1"),
        (Fine(), {"batch_size": 1 << 70}, "batch_size must be at most 2147483647, got"),
        (Fine(), {"chunk_px": (1 << 40) + 1}, "chunk_px must be at most 1099511627776, got"),
    ],
)
def test_a_pipeline_that_cannot_run(
    one_patient: sw.Dataset, tmp_path: Path, collector: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(sw.ConfigError, match=message):
        sw.Pipeline(loader(one_patient), collector, sw.CSVStreamWriter(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_a_collector_that_cannot_be_serialised_is_refused_naming_the_attribute(one_patient: sw.Dataset, tmp_path: Path) -> None:
    pipeline = sw.Pipeline(loader(one_patient), Holding(), sw.CSVStreamWriter(tmp_path / "out"))
    with pytest.raises(
        sw.ConfigError, match=r"attribute 'model_lock' \(lock\) cannot be serialised .* create such things in setup"
    ):
        pipeline.run()
    assert not (tmp_path / "out").exists()


def test_gathering_does_not_go_with_one_file(one_patient: sw.Dataset, tmp_path: Path) -> None:
    class Gatherer(Fine):
        mode = "collect"

        def collate(self, patient: sw.Patient, pieces: list[sw.ProcessedPiece]) -> int:
            return len(pieces)

    with pytest.raises(sw.ConfigError, match="one_file goes with mode 'stream'"):
        sw.Pipeline(loader(one_patient), Gatherer(), sw.CSVStreamWriter(tmp_path / "out", one_file=True))


def test_a_folder_that_cannot_be_written_is_refused(one_patient: sw.Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(sw.OutputError, match=r"output folder .* cannot be written"):
            Fine().start_collecting(loader(one_patient), sw.CSVStreamWriter(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_not_this_runs_is_not_overwritten(one_patient: sw.Dataset, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("mine")
    with pytest.raises(sw.OutputError, match=r"p\.csv is there already"):
        Fine().start_collecting(loader(one_patient), sw.CSVStreamWriter(tmp_path))
    assert (tmp_path / "p.csv").read_text() == "mine"
    assert not (tmp_path / "run.json").exists()


def test_another_run_is_refused_naming_the_field_and_both_values(one_patient: sw.Dataset, tmp_path: Path) -> None:
    Fine().start_collecting(loader(one_patient), sw.CSVStreamWriter(tmp_path), quiet=True)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"}
    with pytest.raises(sw.OutputError, match=r"its stride is \(256, 256\), this one's is \(128, 128\)"):
        Fine().start_collecting(loader(one_patient, stride=128), sw.CSVStreamWriter(tmp_path), quiet=True)
    with pytest.raises(sw.OutputError, match=r"its format is 'csv', this one's is 'hdf5'"):
        Fine().start_collecting(loader(one_patient), sw.HDF5StreamWriter(tmp_path), quiet=True)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("first_ends", [False, True])
def test_of_two_runs_that_begin_together_the_one_that_is_refused_leaves_the_other_alone(
    one_patient: sw.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_ends: bool
) -> None:
    def run_of(stride: int) -> RunFile:
        pipeline = sw.Pipeline(loader(one_patient, stride=stride), Fine(), writer)
        return RunFile.of(pipeline._defining(pipeline._parts[0]), pipeline._execution, None, one_patient)

    writer = sw.CSVStreamWriter(tmp_path / "new" / "out")
    layout = Layout.of(writer.options)
    first: list[OutputFolder] = []

    def late(path: Path, **options: Any) -> FolderLock:
        monkeypatch.setattr(folder_module, "FolderLock", FolderLock)  # the second has made the folder, and the first is faster
        first.append(OutputFolder(layout, run_of(256)))
        first[0].begin()
        if first_ends:
            first[0].close()
        return FolderLock(path, **options)

    monkeypatch.setattr(folder_module, "FolderLock", late)
    with pytest.raises(sw.OutputError, match="its stride is" if first_ends else "in use by another run"):
        OutputFolder(layout, run_of(128))
    assert RunFile.read(layout) is not None and (layout.folder / ".lock").exists()
    if not first_ends:
        with pytest.raises(sw.OutputError, match="in use by another run"):
            OutputFolder(layout, run_of(256))
    first[0].close()


def csv(text: str) -> Callable[[Path], list[object]]:
    def make(folder: Path) -> list[object]:
        (folder / "manifest.csv").write_text(text)
        return [folder / "manifest.csv"]

    return make


@pytest.mark.parametrize(
    ("slides", "options", "message"),
    [
        (["SLIDE"], ["--kernel-size", "0"], "--kernel-size: expected a whole number >= 1, got 0"),
        (["SLIDE"], ["--stall-timeout", "inf"], "--stall-timeout: expected a number <= 1000000000.0, got inf"),
        (["SLIDE"], ["--chunk-px", "9" * 30], "--chunk-px: expected a whole number <= 1099511627776, got 999"),
        (["SLIDE"], ["--kernel-size", "big"], "'big' is neither a number of pixels nor two"),
        (
            ["SLIDE"],
            ["--collector", "nuclei"],
            "there is no collector 'nuclei'; there are focus, hematoxylin, mean",
        ),
        (["SLIDE"], ["--collector", "nowhere.py:Mine"], "there is no file nowhere.py"),
        (["SLIDE"], ["--collector", f"{__file__}:Nothing"], "has no subclass of StreamCollector called 'Nothing'; it has Fine"),
        (["SLIDE", "SLIDE"], [], "stands in the dataset twice"),
        (["EMPTY"], [], "holds no slide"),
        (csv("patient,slide\np,s\n"), [], "column 'path' is missing"),
        (csv("patient,slide,path\n../x,s,a.svs\n"), [], "line 2: patient id '../x' cannot name a file: it holds '/'"),
        (csv("patient,slide,path\np,coords,a.svs\n"), [], "'coords' is reserved"),
    ],
)
def test_the_command_line_ends_with_2_and_leaves_nothing(
    bundled: Path, tmp_path: Path, here: Cli, slides: Any, options: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    named = slides(tmp_path) if callable(slides) else [{"SLIDE": bundled, "EMPTY": tmp_path / "empty"}[name] for name in slides]
    collector = [] if "--collector" in options else ["--collector", "mean"]
    done: subprocess.CompletedProcess[str] = here("heatmap", *named, "--out", tmp_path / "out", *collector, *options)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not os.path.exists(tmp_path / "out")
