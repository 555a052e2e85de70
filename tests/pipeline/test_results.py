"""What runs write: the right values, whatever the number of processes."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest

import streamwsi as sw
from tests.helpers import level_image

Cli = Callable[..., subprocess.CompletedProcess[str]]


def run(
    dataset: sw.Dataset, out: Path, collector: sw.StreamCollector | None = None, fmt: str = "csv", **options: Any
) -> sw.Report:
    window = {
        name: options.pop(name) for name in ("kernel_size", "stride", "level", "border", "on_bad_region") if name in options
    }
    loader = sw.SlidingWindowLoader(dataset, window.pop("kernel_size", 256), **window)
    folder = {name: options.pop(name) for name in ("one_file", "publish_partial", "journal_dir") if name in options}
    writer = (sw.CSVStreamWriter if fmt == "csv" else sw.HDF5StreamWriter)(out, **folder)
    return sw.Pipeline(loader, collector or sw.MeanCollector(), writer, quiet=True, **options).run()


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


class CountRed(sw.StreamCollector):
    """Gathers instead of writing files."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def process(self, batch: sw.Batch) -> Any:
        return batch.pixels[..., 0].mean(axis=(1, 2)).astype(np.float32)

    def accumulate(self, previous: Any, piece: sw.ProcessedPiece, patient: sw.Patient) -> Any:
        previous = previous or {"sum": 0.0, "order": [], "label": patient.records.get("label")}
        return {
            "sum": previous["sum"] * 0.5 + float(piece.value),
            "order": [*previous["order"], piece.window.index],
            "label": previous["label"],
        }

    def collate(self, patient: sw.Patient, pieces: list[sw.ProcessedPiece]) -> Any:
        return {
            "values": np.array([piece.value for piece in pieces]),
            "slides": [piece.slide.id for piece in pieces if piece.slide],
        }


@pytest.mark.parametrize(
    ("kernel", "stride", "border", "fmt"),
    [
        ((256, 256), (128, 256), "pad", "csv"),
        ((300, 200), (301, 99), "squeeze", "h5"),
        ((512, 700), (512, 700), "adaptive", "h5"),
    ],
)
def test_values_through_processes_equal_the_level_read_whole(
    one_patient: sw.Dataset, bundled: Path, tmp_path: Path, kernel: Any, stride: Any, border: Any, fmt: str
) -> None:
    run(one_patient, tmp_path, fmt=fmt, kernel_size=kernel, stride=stride, border=border)
    level = level_image(bundled, 0)
    canvas = np.full((level.shape[0] + 1000, level.shape[1] + 1000, 3), 255, np.uint8)
    canvas[: level.shape[0], : level.shape[1]] = level
    pieces = sw.read_pieces(tmp_path / f"p.{fmt}")
    for (x, y), value in zip(pieces.coords, pieces.values, strict=True):
        width, height = kernel
        if border == "adaptive":
            width, height = min(width, level.shape[1] - x), min(height, level.shape[0] - y)
        assert np.array_equal(value, canvas[y : y + height, x : x + width].mean(axis=(0, 1), dtype=np.float64))
    assert np.array_equal(pieces.index, np.arange(len(pieces.index)))


def test_the_command_line_gives_the_same_as_the_api(one_patient: sw.Dataset, bundled: Path, tmp_path: Path, cli: Cli) -> None:
    run(one_patient, tmp_path / "api", kernel_size=(300, 200), stride=(300, 100))
    manifest = tmp_path / "slides.csv"
    manifest.write_text(f"patient,slide,path\np,s,{bundled}\n")
    window = ("--kernel-size", "300x200", "--stride", "300x100", "--format", "csv")
    done = cli("heatmap", manifest, "--out", tmp_path / "cli", "--collector", "mean", *window, "--collectors", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cli" / "p.csv").read_bytes() == (tmp_path / "api" / "p.csv").read_bytes()


class Plain(NamedTuple):
    """A run of one process for each stage: where its files lie, and what it says."""

    folder: Path
    report: sw.Report


@pytest.fixture(scope="module")
def plain(three_patients: sw.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Plain]:
    """A run of three patients in a format; made once, to compare others with."""

    @functools.cache
    def of(fmt: str) -> Plain:
        folder = tmp_path_factory.mktemp(fmt)
        return Plain(folder, run(three_patients, folder, fmt=fmt, loaders=1, collectors=1, writers=1))

    return of


MANY = {"loaders": 2, "collectors": 3, "writers": 2}


@pytest.mark.parametrize(
    ("fmt", "options"),  # each with either format; what is written does not come to know of the other options
    [
        ("csv", {"chunk_px": 70_000}),
        ("csv", {**MANY, "transport": "tcp"}),
        ("csv", {**MANY, "chunk_px": 1 << 19}),
        ("h5", {**MANY, "chunk_px": 70_000, "transport": "tcp"}),
        ("h5", {"chunk_px": 1 << 19}),
    ],
)
def test_files_do_not_depend_on_processes_or_chunk_sizes(
    three_patients: sw.Dataset, plain: Callable[[str], Plain], tmp_path: Path, fmt: str, options: dict[str, Any]
) -> None:
    report = run(three_patients, tmp_path, fmt=fmt, **{"loaders": 1, "collectors": 1, "writers": 1} | options)
    assert [patient.state for patient in (*plain(fmt).report.patients, *report.patients)] == ["done"] * 6
    for patient in three_patients:
        first, this = (folder / f"{patient.id}.{fmt}" for folder in (plain(fmt).folder, tmp_path))
        if fmt == "csv":
            assert first.read_bytes() == this.read_bytes()
        else:
            expected, found = arrays_of(first), arrays_of(this)
            assert expected.keys() == found.keys()
            assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_a_report_accounts_for_every_window(plain: Callable[[str], Plain]) -> None:
    folder, report = plain("csv")
    assert report.exit_code == 0 and report.windows == 4 * 108
    slides = [slide for patient in report.patients for slide in patient.slides]
    assert all((slide.state, slide.expected, slide.written) == ("done", 108, 108) for slide in slides)
    assert set(report.stages) == {"loader", "collector", "writer", "publisher"}
    assert report.limiting_stage in report.stages
    assert b'"limiting_stage"' in (folder / "report.json").read_bytes()
    assert not (folder / ".journal").exists()


@pytest.mark.parametrize(
    ("mode", "workers"),  # both with several; pieces are gathered from the journal, whoever made them
    [
        ("accumulate", {**MANY, "chunk_px": 70_000}),
        ("collect", {**MANY, "chunk_px": 70_000}),
        ("accumulate", {"collectors": 1}),
    ],
)
def test_gathering_gives_what_a_serial_loop_gives(
    three_patients: sw.Dataset, copies: list[Path], tmp_path: Path, mode: str, workers: dict[str, int]
) -> None:
    report = run(three_patients, tmp_path, CountRed(mode), **workers)
    level = level_image(copies[0], 0)
    canvas = np.full((12 * 256, 9 * 256, 3), 255, np.uint8)
    canvas[: level.shape[0], : level.shape[1]] = level
    tiles = canvas[..., 0].reshape(12, 256, 9, 256).transpose(0, 2, 1, 3).reshape(108, 256, 256)
    values = tiles.mean(axis=(1, 2)).astype(np.float32)
    for patient in three_patients:
        n_slides = len(patient.slides)
        result = report.results[patient.id]
        if mode == "collect":
            assert np.array_equal(result["values"], np.tile(values, n_slides))
            assert result["slides"] == [slide.id for slide in patient.slides for _ in range(108)]
        else:
            serial: Any = None
            for _ in range(n_slides):
                for index, value in enumerate(values):
                    piece = sw.ProcessedPiece(sw.Window(index, 0, 0, 0, 0, 256, 256), value)
                    serial = CountRed(mode).accumulate(serial, piece, patient)
            assert result == serial
    again = run(three_patients, tmp_path, CountRed(mode))
    assert again.windows == 0 and [patient.state for patient in again.patients] == ["already done"] * 3
    assert again.results.keys() == report.results.keys()


class FirstRows(sw.StreamCollector):
    """Stops each patient after its first windows."""

    def process(self, batch: sw.Batch) -> Any:
        return batch.windows.index

    def is_finished(self, patient: sw.Patient, windows_done: int) -> bool:
        return windows_done >= 40


@pytest.mark.parametrize("workers", [{}, {"collectors": 3, "loaders": 2, "writers": 2}])
def test_a_finished_patient_is_stopped_at_the_same_window(
    three_patients: sw.Dataset, tmp_path: Path, workers: dict[str, int]
) -> None:
    report = run(three_patients, tmp_path, FirstRows(), fmt="h5", chunk_px=256 * 256 * 9, batch_size=9, **workers)
    for patient in report.patients:
        first = patient.slides[0]
        assert (first.written, first.stopped) == (45, 63)
        assert all((slide.written, slide.stopped) == (0, 108) for slide in patient.slides[1:])
    with h5py.File(tmp_path / "bert.h5") as file:
        assert np.array_equal(np.sort(file["H&E/features"][:]), file["H&E/index"][:])
        assert len(file["second/coords"]) == 0 and file["second/not_written"][:].tolist() == [[0, 107, 3]]


class Sparse(sw.StreamCollector):
    """Gives something for every third window only."""

    def process(self, batch: sw.Batch) -> Any:
        return [
            sw.ProcessedPiece(small.window, np.float32(small.window.index)) for small in batch if small.window.index % 3 == 0
        ]


def test_windows_without_a_piece_have_no_row_and_are_nan_on_the_map(one_patient: sw.Dataset, tmp_path: Path) -> None:
    report = run(one_patient, tmp_path, Sparse())
    (slide,) = report.patients[0].slides
    assert (slide.written, slide.none) == (36, 72)
    assert sw.read_pieces(tmp_path / "p.csv").values.ravel().tolist() == list(range(0, 108, 3))
    values = sw.read_map(tmp_path / "p.csv").values[..., 0]
    assert np.isnan(values).sum() == 72 and values.ravel()[3] == 3


class Device(sw.StreamCollector):
    def process(self, batch: sw.Batch) -> Any:
        assert self.device is not None
        return np.full(len(batch), int(self.device.rpartition(":")[2]))


@pytest.mark.parametrize(("devices", "collectors", "expected"), [("cuda:7", 2, {7}), (["cuda:0", "cuda:1"], None, {0, 1})])
def test_devices_are_dealt_to_the_collectors(
    three_patients: sw.Dataset, tmp_path: Path, devices: Any, collectors: int | None, expected: set[int]
) -> None:
    run(three_patients, tmp_path, Device(), devices=devices, collectors=collectors, chunk_px=70_000)
    found = {value for patient in three_patients for value in _all_values(tmp_path / f"{patient.id}.csv", patient)}
    assert found == expected


def _all_values(path: Path, patient: sw.Patient) -> list[int]:
    return [int(value) for slide in patient.slides for value in sw.read_pieces(path, slide=slide.id).values]


@pytest.mark.parametrize("fmt", ["csv", "h5"])
def test_one_file_holds_every_patient(
    three_patients: sw.Dataset, plain: Callable[[str], Plain], tmp_path: Path, fmt: str
) -> None:
    report = run(three_patients, tmp_path / "one", fmt=fmt, one_file=True, collectors=2)
    assert {patient.file for patient in report.patients} == {f"all.{fmt}"} and report.exit_code == 0
    for patient in three_patients:
        for slide in patient.slides:
            alone = sw.read_pieces(plain(fmt).folder / f"{patient.id}.{fmt}", slide=slide.id)
            together = sw.read_pieces(tmp_path / "one" / f"all.{fmt}", slide=slide.id, patient=patient.id)
            assert np.array_equal(alone.values, together.values) and np.array_equal(alone.coords, together.coords)
    again = run(three_patients, tmp_path / "one", fmt=fmt, one_file=True)
    assert again.windows == 0


def test_a_level_may_be_chosen_by_a_lambda(shared_slides: Path, tmp_path: Path) -> None:
    dataset = sw.Dataset.from_paths([shared_slides / "tiff/wsipack_example.tif", shared_slides / "tiff/boxes.tiff"])
    loader = sw.SlidingWindowLoader(dataset, 64, level=lambda slide: slide.level_count - 1)
    report = sw.Pipeline(loader, sw.MeanCollector(), sw.CSVStreamWriter(tmp_path), quiet=True).run()
    assert {patient.id: patient.slides[0].level for patient in report.patients} == {"wsipack_example": 2, "boxes": 3}


class Records(sw.StreamCollector):
    def process(self, batch: sw.Batch) -> Any:
        assert batch.slide.mpp == (0.499, 0.499) and batch.slide.id in [slide.id for slide in batch.patient.slides]
        return np.full(len(batch), batch.patient.records["label"], np.int16)


def test_a_collector_sees_its_patient_and_slide(three_patients: sw.Dataset, tmp_path: Path) -> None:
    run(three_patients, tmp_path, Records())
    pieces = sw.read_pieces(tmp_path / "cara.csv")
    assert pieces.values.dtype == np.int16 and set(pieces.values.tolist()) == {3}


def test_a_shared_disk_can_be_spared(one_patient: sw.Dataset, tmp_path: Path) -> None:
    report = run(one_patient, tmp_path, chunk_px=1 << 20, min_chunk_interval_s=0.1)
    assert report.seconds > 0.1 * 6 and report.windows == 108
