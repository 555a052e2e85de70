"""Images of windows, through the whole pipeline: pixels, names, labels, resume, refusals."""

from __future__ import annotations

import csv
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import streamwsi as sw
from streamwsi.cli import cli as streamwsi_command
from streamwsi.loading.window_loader import WindowLoader
from tests.helpers import level_image
from tests.pipeline.conftest import CLI
from tests.pipeline.test_failures import begin, finish
from tests.pipeline.test_results import Cli
from tests.pipeline.test_sampled_windows import KERNEL, NAMES, Scattered

SIDE = 512
WINDOWS = 5 * 6
"""Of that side, of the bundled slide."""


def run(
    dataset: sw.Dataset,
    out: Path,
    collector: sw.StreamCollector | None = None,
    loader: WindowLoader | None = None,
    **options: Any,
) -> sw.Report:
    of_run = {name: options.pop(name) for name in ("collectors", "transport", "overwrite", "chunk_px") if name in options}
    writer = sw.ImageStreamWriter(out, **options)
    loader = loader or sw.SlidingWindowLoader(dataset, SIDE)
    report = sw.Pipeline(loader, collector or sw.Patches(), writer, quiet=True, **of_run).run()
    assert isinstance(report, sw.Report)
    return report


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def versions(folder: Path) -> dict[str, tuple[int, int]]:
    found = {path: path.stat() for path in folder.rglob("*")}
    return {path.relative_to(folder).as_posix(): (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


@pytest.fixture(scope="module")
def written(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run; its patient is p."""
    out = tmp_path_factory.mktemp("written")
    assert run(sw.Dataset([sw.Patient("p", {"s": bundled})]), out, chunk_px=1 << 20).windows == WINDOWS
    return out


def test_images_have_the_pixels_of_their_windows(written: Path, bundled: Path) -> None:
    image = level_image(bundled, 0, margin=SIDE)
    rows = manifest(written / "p")
    assert [int(row["index"]) for row in rows] == list(range(WINDOWS))
    for row in rows:
        x, y = int(row["x"]) + SIDE, int(row["y"]) + SIDE
        assert row["file"] == f"s_x{row['x']}_y{row['y']}.png"
        np.testing.assert_array_equal(pixels(written / "p" / row["file"]), image[y : y + SIDE, x : x + SIDE])
    (verdict,) = sw.verify(written)
    assert (verdict.problems, verdict.file, verdict.written) == ([], "p", WINDOWS)


def test_files_do_not_depend_on_the_processes(written: Path, one_patient: sw.Dataset, tmp_path: Path) -> None:
    run(one_patient, tmp_path / "out", collectors=2, transport="tcp", chunk_px=1 << 22)
    assert files_below(tmp_path / "out" / "p") == files_below(written / "p")


def test_a_second_run_changes_nothing(written: Path, one_patient: sw.Dataset) -> None:
    before = versions(written / "p")
    report = run(one_patient, written)
    assert (report.windows, report.patients[0].state) == (0, "already done") and versions(written / "p") == before


def test_other_names_are_another_run_which_may_overwrite(written: Path, one_patient: sw.Dataset, tmp_path: Path) -> None:
    out = Path(shutil.copytree(written, tmp_path / "out"))
    with pytest.raises(
        sw.OutputError, match=r"its images is \{'name': .*_x\{x\}_y\{y\}'\}, this one's is \{'name': '\{index\}'\}"
    ):
        run(one_patient, out, name="{index}")
    (out / "p" / "notes.txt").write_text("mine")
    with pytest.raises(sw.OutputError, match=r"p/notes\.txt was not made by streamwsi: move it"):
        run(one_patient, out, name="{index}", overwrite=True)
    assert {**files_below(written / "p"), "notes.txt": b"mine"} == files_below(out / "p")
    (out / "p" / "notes.txt").unlink()
    run(one_patient, out, name="{index}", overwrite=True, shards=20)
    assert sorted(files_below(out / "p")) == ["manifest.csv", "p-000000.tar", "p-000001.tar"]
    assert [verdict.problems for verdict in sw.verify(out)] == [[]]


@pytest.mark.parametrize(("chunk_px", "most"), [(1 << 20, 16), (1 << 10, 1)])
def test_chunks_of_images_that_overlap_are_bounded(one_patient: sw.Dataset, tmp_path: Path, chunk_px: int, most: int) -> None:
    loader = sw.SlidingWindowLoader(one_patient, SIDE, 8)
    of_images = sw.Pipeline(loader, sw.Patches(), sw.ImageStreamWriter(tmp_path), chunk_px=chunk_px)
    of_values = sw.Pipeline(loader, sw.MeanCollector(), sw.CSVStreamWriter(tmp_path), chunk_px=chunk_px)
    assert (of_images._loader_startup().reading.max_windows, of_values._loader_startup().reading.max_windows) == (most, 8192)


def test_the_margin_counts_where_images_that_overlap_are_bounded(one_patient: sw.Dataset, tmp_path: Path) -> None:
    loader = sw.WindowLoader(one_patient, SIDE, sw.GridSampler(8, margin=SIDE // 2))
    of_images = sw.Pipeline(loader, sw.Patches(), sw.ImageStreamWriter(tmp_path), chunk_px=1 << 20)
    assert of_images._loader_startup().reading.max_windows == 4


class Mirrored(sw.StreamCollector):
    """Two images of some windows: as it is, and mirrored and grey at half the size."""

    def process(self, batch: sw.Batch) -> Any:
        return [
            sw.ProcessedPiece(small.window, [small.pixels, np.ascontiguousarray(small.pixels[::2, ::-2, 1])])
            for small in batch
            if small.window.index % 3 == 0
        ]


def test_a_collector_may_give_other_images_of_some_windows_in_folders_by_label(bundled: Path, tmp_path: Path) -> None:
    sampler = Scattered(20)
    dataset = sw.Dataset([sw.Patient("p", {"s": bundled})])
    loader = sw.WindowLoader(dataset, KERNEL, sampler, 0)
    run(dataset, tmp_path, Mirrored(), loader, by_label=True, comment="{label}!")
    rows = manifest(tmp_path / "p")
    assert [int(row["index"]) for row in rows] == [index for index in range(0, 20, 3) for _ in range(2)]
    assert {row["label"] for row in rows} == {"", *NAMES}
    for whole, half in zip(rows[::2], rows[1::2], strict=True):
        folder = whole["label"] or "unlabelled"
        assert whole["file"] == f"{folder}/s_x{whole['x']}_y{whole['y']}.r0.png" and whole["comment"] == f"{whole['label']}!"
        first, second = (pixels(tmp_path / "p" / row["file"]) for row in (whole, half))
        np.testing.assert_array_equal(second, first[::2, ::-2, 1])
    (verdict,) = sw.verify(tmp_path)
    assert (verdict.problems, verdict.written, verdict.none) == ([], 7, 13)


def test_each_resolution_of_a_window_is_an_image(bundled: Path, tmp_path: Path) -> None:
    dataset = sw.Dataset([sw.Patient("p", {"s": bundled})])
    loader = sw.SlidingWindowLoader(dataset, SIDE, mpps=(0.499, 1.996), border="crop")
    run(dataset, tmp_path, loader=loader, shards="1GB")
    image = level_image(bundled, 0)
    with tarfile.open(tmp_path / "p" / "p-000000.tar") as shard:
        assert len(shard.getnames()) == 3 * 4 * 5
        for row in manifest(tmp_path / "p"):
            found = shard.extractfile(row["file"])
            assert found is not None and row["file"] == f"s_x{row['x']}_y{row['y']}.r{row['resolution']}.png"
            with Image.open(found) as picture:
                got = np.asarray(picture)
            assert got.shape == (SIDE, SIDE, 3)
            if row["resolution"] == "0":
                x, y = int(row["x"]), int(row["y"])
                np.testing.assert_array_equal(got, image[y : y + SIDE, x : x + SIDE])
    (verdict,) = sw.verify(tmp_path)
    assert (verdict.problems, verdict.written) == ([], 4 * 5)


class Wrong(sw.StreamCollector):
    def process(self, batch: sw.Batch) -> Any:
        return [b"no picture"] * len(batch)


def test_what_does_not_go_together_is_refused(one_patient: sw.Dataset, tmp_path: Path) -> None:
    class Gathering(sw.StreamCollector):
        mode = "collect"

        def process(self, batch: sw.Batch) -> Any:
            return batch.pixels

        def collate(self, patient: sw.Patient, pieces: list[sw.ProcessedPiece]) -> Any:
            return len(pieces)

    loader = sw.SlidingWindowLoader(one_patient, SIDE)
    with pytest.raises(sw.ConfigError, match="Patches gives images: use it with an ImageStreamWriter"):
        sw.Pipeline(loader, sw.Patches(), sw.HDF5StreamWriter(tmp_path))
    with pytest.raises(sw.ConfigError, match="mode 'collect' gives no images to files"):
        sw.Pipeline(loader, Gathering(), sw.ImageStreamWriter(tmp_path))
    with pytest.raises(sw.ConfigError, match="must hold"):
        sw.ImageStreamWriter(tmp_path, name="{slide}")
    assert not list(tmp_path.iterdir())
    with pytest.raises(sw.StreamwsiError, match=r"bytes go to an ImageStreamWriter"):
        sw.Pipeline(loader, Wrong(), sw.CSVStreamWriter(tmp_path / "csv"), quiet=True).run()
    with pytest.raises(sw.StreamwsiError, match=r"window 0: 10 bytes that are not those of a jpeg file"):
        run(one_patient, tmp_path / "jpeg", Wrong(), format="jpeg")


# ---- kills

SLOW = """
import os, threading
import streamwsi as sw

class Slow(sw.StreamCollector):
    def process(self, batch):
        if "STREAMWSI_TEST_HURRY" not in os.environ:
            threading.Event().wait(0.05)
        return batch.pixels
"""


def test_a_run_that_was_killed_goes_on_and_makes_the_same_files(copies: list[Path], tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    command: list[object] = [*CLI, "extract", *copies[:2], "--batch-size", 4, "--chunk-px", 1 << 18]
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    n = finish([*command, "--out"], undisturbed)["windows"]
    command += ["--collector", f"{tmp_path / 'slow.py'}:Slow", "--out"]
    process = begin(command, out)
    process.kill()
    process.communicate()
    assert 0 < finish(command, out)["windows"] < n == 2 * 108
    for patient in ("copy0", "copy1"):
        assert files_below(out / patient) == files_below(undisturbed / patient)
    before = versions(out / "copy0")
    assert finish(command, out)["windows"] == 0 and versions(out / "copy0") == before


# ---- the command line


def command(*arguments: object) -> Result:
    return CliRunner().invoke(streamwsi_command, [*map(str, arguments)], standalone_mode=False)


def test_extract_writes_images_and_its_job_can_be_run_again(bundled: Path, tmp_path: Path, cli: Cli, here: Cli) -> None:
    out = tmp_path / "out"
    options = ["--kernel-size", 1024, "--format", "jpeg", "--quality", 80, "--image-name", "{index:03}", "--comment", "{slide}"]
    done = cli("extract", bundled, "--out", out, *options, "--quiet")
    assert done.returncode == 0, done.stderr
    patient = out / bundled.stem
    assert sorted(path.name for path in patient.iterdir()) == [*(f"{number:03}.jpg" for number in range(9)), "manifest.csv"]
    with Image.open(patient / "004.jpg") as image:
        assert image.size == (1024, 1024) and image.info["comment"] == bundled.stem.encode()
    before = versions(patient)
    assert here("run", out / "job.toml", "--quiet").returncode == 0 and versions(patient) == before
    assert command("verify", out).return_value == 0 and "patches, images" in command("show", out).output
    for arguments in (("render", out), ("render", patient), ("render", "--contact-sheet", out), ("geojson", out)):
        with pytest.raises(sw.MapError, match="images, of which there is no map"):
            raise command(*arguments).exception
    (patient / "004.jpg").write_bytes(b"")
    wrong = command("verify", out)
    assert wrong.return_value == 1 and f"{patient.name}/004.jpg has 0 bytes, at publication it had" in wrong.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("heatmap", "--format", "csv", "--by-label"), "by_label goes with images, format png, jpeg, webp; got format csv"),
        (("heatmap", "--format", "png", "--one-file"), "one_file goes with h5 and csv"),
        (("extract", "--quality", "80"), "quality 80 goes with 'jpeg' or 'webp'"),
        (("extract", "--shards", "many"), "got 'many'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    bundled: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    name, *more = options
    collector = ("--collector", "patches") if name == "heatmap" else ()
    with pytest.raises(sw.ConfigError, match=said):
        raise command(name, bundled, "--out", tmp_path / "out", *collector, *more).exception
    assert not (tmp_path / "out").exists()
