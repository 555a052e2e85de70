"""Names, links, manifests and values that nobody hoped for, through whole runs.

Which names are allowed, and what a manifest may look like, is tested without runs beside the dataset.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import streamwsi as sw
from tests.helpers import noise_levels, write_tiff
from tests.pipeline.test_results import Cli, run
from tests.writing.fabricate import assert_same, numbers

LONG = "é" * 125  # 250 bytes
NAMES = [
    "two words .tif",
    "new\nline.tif",
    "tab\tand 'quotes' and \"more\".tif",
    "日本語 ünïcode 🔬.tif",
    f"{LONG}x.tif",  # 255 bytes, the most that a name may have
    f"{LONG}y.tif",
    "-rf.tif",
    "%s{0}$HOME`id`.tif",
    "comma,semicolon;.tif",
    "coords.tif",
    "con.tif",
    "#&=+~.tif",
]


def slide_files(folder: Path, names: list[str]) -> list[Path]:
    """Small slides, each with noise of its own."""
    folder.mkdir()
    return [write_tiff(folder / name, noise_levels([(200, 150)], seed)) for seed, name in enumerate(names)]


@pytest.mark.parametrize("format", ["csv", "h5"])
def test_files_of_any_name_are_read_and_their_patients_written(tmp_path: Path, format: str) -> None:
    plain = slide_files(tmp_path / "plain", [f"slide{number:02}.tif" for number in range(len(NAMES))])
    strange = slide_files(tmp_path / "strange\n folder é", NAMES)
    expected = run(sw.Dataset.from_folder(plain[0].parent), tmp_path / "expected", fmt=format, kernel_size=64)
    out = tmp_path / ("out " + "ü\n" * 60)
    dataset = sw.Dataset.from_folder(strange[0].parent)
    report = run(dataset, out, fmt=format, kernel_size=64, collectors=2)
    assert report.exit_code == expected.exit_code == 0
    assert not any(verdict.problems or verdict.unchecked for verdict in sw.verify(out))
    by_path = {patient.slides[0].path: patient for patient in dataset}
    assert set(by_path) == set(strange)
    for plain_path, path in zip(plain, strange, strict=True):
        name = by_path[path].id
        assert (out / f"{name}.{format}").parent == out and len(os.fsencode(f"{name}.partial.result")) <= 255
        found = sw.read_pieces(out / f"{name}.{format}")
        known = sw.read_pieces(tmp_path / "expected" / f"{plain_path.stem}.{format}")
        assert_same(found.values, known.values)
        assert_same(found.coords, known.coords)
    assert run(dataset, out, fmt=format, kernel_size=64).windows == 0


def test_the_command_line_takes_names_as_the_shell_gives_them(tmp_path: Path, cli: Cli, here: Cli) -> None:
    slides = slide_files(tmp_path / "in", NAMES)
    folder = tmp_path / "my models\n"
    folder.mkdir()
    (folder / "mödel 1.py").write_text(
        "import streamwsi as sw\nclass Mine(sw.StreamCollector):\n"
        "    columns = ('a,b', 'say \"x\"\\nthen y', 'ümlaut 🔬')\n"
        "    def process(self, batch):\n        return batch.pixels.mean(axis=(1, 2))\n"
    )
    out = tmp_path / "-out put\n"
    collector = f"{folder / 'mödel 1.py'}:Mine"
    done = cli("heatmap", *slides, "--out", out, "--collector", collector, "--kernel-size", 64, "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("*.csv"))) == len(slides)
    with (out / "comma,semicolon;.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0][7:] == ["a,b", 'say "x"\nthen y', "ümlaut 🔬"] and len(rows) == 13 and {len(row) for row in rows} == {10}
    verified = here("verify", out)
    assert verified.returncode == 0, verified.stdout


def test_links_to_slides_are_slides_and_broken_ones_fail_alone(tmp_path: Path) -> None:
    (real,) = slide_files(tmp_path / "real", ["real.tif"])
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "good.tif").symlink_to(real)
    (folder / "broken.tif").symlink_to(tmp_path / "nowhere.tif")
    (folder / "round.tif").symlink_to(folder / "round.tif")
    (folder / "folder.tif").symlink_to(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").symlink_to(elsewhere)
    dataset = sw.Dataset([sw.Patient(path.stem, {"s": path}) for path in sorted(folder.iterdir())])
    report = run(dataset, tmp_path / "out", kernel_size=64)
    assert {patient.id: patient.state for patient in report.patients} == {
        "broken": "failed",
        "folder": "failed",
        "good": "done",
        "round": "failed",
    }
    assert all(slide.reason and str(slide.path) in slide.reason for slide in report.failed_slides)
    known = run(sw.Dataset.from_paths([real]), tmp_path / "known", kernel_size=64)
    assert known.exit_code == 0
    assert_same(sw.read_pieces(elsewhere / "good.csv").values, sw.read_pieces(tmp_path / "known" / "real.csv").values)


def test_a_link_in_the_output_folder_is_not_written_through(one_patient: sw.Dataset, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "p.csv").symlink_to(tmp_path / "not there yet")
    (tmp_path / "out" / "report.json").symlink_to(precious)
    report = run(one_patient, tmp_path / "out")
    assert report.exit_code == 0
    assert precious.read_text() == "mine" and not (tmp_path / "not there yet").exists()
    assert not (tmp_path / "out" / "p.csv").is_symlink() and not (tmp_path / "out" / "report.json").is_symlink()


@pytest.mark.parametrize("bad", ["../escaped", "/escaped", "a/../../escaped", "..\\escaped", "C:\\escaped", "..", "a\0b"])
@pytest.mark.parametrize("column", ["patient", "slide"])
def test_no_id_leaves_the_output_folder(bundled: Path, tmp_path: Path, here: Cli, bad: str, column: str) -> None:
    row = {"patient": "p", "slide": "s", "path": str(bundled), column: bad}
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f'patient,slide,path\n"{row["patient"]}","{row["slide"]}","{row["path"]}"\n')
    with pytest.raises(sw.DatasetError):
        sw.Dataset.from_csv(manifest)
    if bad == "../escaped" and column == "patient":
        done = here("heatmap", manifest, "--out", tmp_path / "out", "--collector", "mean")
        assert done.returncode == 2 and "cannot name a file" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]


def test_a_manifest_of_a_hundred_thousand_rows_is_read(tmp_path: Path) -> None:
    rows = 100_000
    lines = [f'patient {number // 2},slide-{number % 2},"sub dir/{number}.svs",{number % 7}' for number in range(rows)]
    manifest = tmp_path / "manifest.csv"
    manifest.write_bytes("\r\n".join(["patient,slide,path,label", *lines, ""]).encode("utf-8-sig"))
    dataset = sw.Dataset.from_csv(manifest)
    assert len(dataset) == rows // 2 and sum(len(patient.slides) for patient in dataset) == rows
    last = dataset[-1]
    assert last.id == f"patient {rows // 2 - 1}" and last.slides[1].path == tmp_path / "sub dir" / f"{rows - 1}.svs"
    assert dataset[0].records["label"] == ["0", "1"]
    far_apart = ["patient,slide,path,label", *lines[:10_000], "patient 7,slide-0,again.svs,0", ""]
    manifest.write_text("\r\n".join(far_apart))
    with pytest.raises(sw.DatasetError, match="patient 'patient 7' has two slides called 'slide-0'"):
        sw.Dataset.from_csv(manifest)


class Numbers(sw.StreamCollector):
    """Gives each window its row of a table with the extremes of a dtype in it."""

    def __init__(self, dtype: str, shape: list[int]) -> None:
        self.dtype, self.shape = dtype, shape

    def process(self, batch: sw.Batch) -> Any:
        return table(self.dtype, self.shape)[batch.windows.index]


def table(dtype: str, shape: list[int]) -> npt.NDArray[Any]:
    return numbers(dtype, (108, *shape))


@pytest.mark.parametrize(
    ("format", "kinds"),  # each dtype in each format: see the formats' own tests
    [
        ("csv", [("float64", []), ("float16", [2, 2]), ("uint64", []), ("bool", [3])]),
        ("h5", [("float64", []), ("float32", [3]), ("int64", [2]), ("int8", [1])]),
    ],
)
def test_values_come_back_exactly(
    one_patient: sw.Dataset, tmp_path: Path, format: str, kinds: list[tuple[str, list[int]]]
) -> None:
    loader = sw.SlidingWindowLoader(one_patient, 256)
    writer = (sw.CSVStreamWriter if format == "csv" else sw.HDF5StreamWriter)(tmp_path)
    collectors = {dtype: Numbers(dtype, shape) for dtype, shape in kinds}
    reports = sw.Pipeline(loader, collectors, writer, quiet=True, collectors={kinds[0][0]: 2}, chunk_px=1 << 20).run()
    assert isinstance(reports, dict)
    for dtype, shape in kinds:
        assert reports[dtype].exit_code == 0 and reports[dtype].windows == 108
        expected = table(dtype, shape)
        if dtype.startswith("float"):
            limits = np.finfo(dtype)
            extremes = {np.inf, -np.inf, limits.max, limits.smallest_subnormal}
            assert np.isnan(expected).any() and extremes <= set(expected.ravel())
        elif dtype != "bool":
            assert {np.iinfo(dtype).min, np.iinfo(dtype).max} <= set(expected.ravel().tolist())
        assert_same(sw.read_pieces(tmp_path / dtype / f"p.{format}").values.reshape(expected.shape), expected)
    assert [verdict.problems for verdict in sw.verify(tmp_path)] == [[]] * len(kinds)
