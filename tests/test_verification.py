"""`verify` finds whatever is missing, doubled, moved or changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import streamwsi as sw
from streamwsi.cli import cli
from streamwsi.config import OutputOptions
from streamwsi.writing.layout import Layout
from streamwsi.writing.publish import PublishedPatient, checksum_of
from tests.helpers import BUNDLED


class Index(sw.StreamCollector):
    def process(self, batch: sw.Batch) -> object:
        return [sw.ProcessedPiece(small.window, small.window.index) for small in batch if small.window.index % 5]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders, csv and h5, of a run on a copy of the bundled slide; some windows have no row."""
    folder = tmp_path_factory.mktemp("finished")
    slide = Path(shutil.copy(BUNDLED, folder / "slide.svs"))
    dataset = sw.Dataset([sw.Patient("p", {"s": slide}), sw.Patient("q", {"s": BUNDLED})])
    loader = sw.SlidingWindowLoader(dataset, 256)
    for writer in (sw.CSVStreamWriter(folder / "csv"), sw.HDF5StreamWriter(folder / "h5")):
        sw.Pipeline(loader, Index(), writer, quiet=True).run()
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage; its slide lies where it lay."""
    for name in ("csv", "h5"):
        shutil.copytree(finished / name, tmp_path / name)
    return tmp_path


def problems(out: Path) -> list[str]:
    first, second = sw.verify(out)
    assert not second.problems
    return first.problems


def forge(out: Path) -> None:
    """Make the record fit the damaged file, so that only its rows can tell."""
    layout = Layout.of(OutputOptions(folder=str(out), format="csv"))
    record = msgspec.json.decode(layout.published("p").read_bytes(), type=PublishedPatient)
    path = out / record.file
    record = msgspec.structs.replace(record, size_bytes=path.stat().st_size, checksum=checksum_of(path))
    layout.published("p").write_bytes(msgspec.json.encode(record))


@pytest.mark.parametrize("fmt", ["csv", "h5"])
def test_a_whole_run_is_found_whole(folder: Path, fmt: str) -> None:
    for verdict in sw.verify(folder / fmt):
        assert not verdict.problems and not verdict.unchecked
        assert (verdict.expected, verdict.written, verdict.none, verdict.skipped, verdict.stopped) == (108, 86, 22, 0, 0)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("fmt", ["csv", "h5"])
@pytest.mark.parametrize(
    ("damage", "message"), [(truncate, "at publication it had"), (flip, "its checksum differs"), (Path.unlink, "not finished")]
)
def test_a_damaged_file_is_found(folder: Path, fmt: str, damage: Callable[[Path], None], message: str) -> None:
    damage(folder / fmt / f"p.{fmt}")
    (problem,) = problems(folder / fmt)
    assert message in problem


def drop(lines: list[str]) -> list[str]:
    return lines[:10] + lines[11:]


def double(lines: list[str]) -> list[str]:
    return [*lines[:10], lines[9], *lines[10:]]


def swap(lines: list[str]) -> list[str]:
    return [*lines[:9], lines[10], lines[9], *lines[11:]]


def move(lines: list[str]) -> list[str]:
    return [*lines[:9], lines[9].replace(",256,256,", ",256,255,"), *lines[10:]]


@pytest.mark.parametrize("change", [drop, double, swap, move])
def test_rows_are_compared_with_the_plan_though_the_checksum_fits(
    folder: Path, change: Callable[[list[str]], list[str]]
) -> None:
    path = folder / "csv" / "p.csv"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    forge(folder / "csv")
    assert problems(folder / "csv")


def test_a_window_that_has_another_status_in_the_file_is_found(folder: Path) -> None:
    with h5py.File(folder / "h5" / "p.h5", "r+") as file:
        index = file["s/index"][:]
        index[0] = 0  # window 0 has no row; window 1 has
        file["s/index"][:] = index
        file["s/coords"][0] = (0, 0)
    forge(folder / "h5")
    assert "window 1 is missing" in problems(folder / "h5")[0]


def test_a_slide_that_changed_is_found_and_one_that_is_gone_is_said_not_to_be_checked(folder: Path, finished: Path) -> None:
    slide = finished / "slide.svs"
    content = slide.read_bytes()
    try:
        slide.write_bytes(content[:-1] + b"x")
        assert "its content differs" in problems(folder / "csv")[0]
        slide.unlink()
        first, _ = sw.verify(folder / "csv")
        assert not first.problems and "not at hand" in first.unchecked[0]
    finally:
        slide.write_bytes(content)


def test_gathered_results_are_verified(bundled: Path, tmp_path: Path) -> None:
    class Sum(Index):
        mode = "collect"

        def collate(self, patient: sw.Patient, pieces: list[sw.ProcessedPiece]) -> object:
            return int(np.sum([piece.value for piece in pieces]))

    loader = sw.SlidingWindowLoader(sw.Dataset([sw.Patient("p", {"s": bundled})]), 256)
    Sum().start_collecting(loader, sw.CSVStreamWriter(tmp_path), quiet=True)
    (verdict,) = sw.verify(tmp_path)
    assert not verdict.problems and verdict.file == "p.result"
    flip(tmp_path / "p.result")
    assert sw.verify(tmp_path)[0].problems


def unreadable(path: Path) -> None:
    """Cut off in the middle of its rows."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_file(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("fmt", ["csv", "h5"])
@pytest.mark.parametrize("damage", [unreadable, no_file])
def test_a_file_that_cannot_be_read_to_its_end_is_found_though_the_checksum_fits(
    folder: Path, fmt: str, damage: Callable[[Path], None]
) -> None:
    damage(folder / fmt / f"p.{fmt}")
    forge(folder / fmt)
    assert problems(folder / fmt)


def add(path: Path) -> None:
    """A row more than there are windows."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1].replace(",107,", ",108,")]))


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (lambda path: None, 0, "2 of 2 patients are whole"),
        (truncate, 1, "1 of 2 patients are whole"),
        (flip, 1, "p: p.csv has changed since its publication"),
        (add, 1, "p: p.csv has "),
        (Path.unlink, 1, "p: not finished"),
    ],
    ids=["whole", "truncated", "flipped", "row-added", "missing"],
)
def test_the_command_says_what_is_wrong_and_ends_with_0_only_if_nothing_is(
    folder: Path, damage: Callable[[Path], None], code: int, message: str
) -> None:
    damage(folder / "csv" / "p.csv")
    done = CliRunner().invoke(cli, ["verify", str(folder / "csv")], standalone_mode=False)
    assert done.return_value == code and message in done.output
    assert [line.split()[-1] for line in done.output.splitlines()[1:3]] == ["WRONG" if code else "ok", "ok"]
    as_json = CliRunner().invoke(cli, ["verify", str(folder / "csv"), "--json"], standalone_mode=False)
    assert as_json.return_value == code
    assert [bool(verdict["problems"]) for verdict in json.loads(as_json.output)] == [bool(code), False]


def test_a_row_that_no_window_has_is_found_though_the_checksum_fits(folder: Path) -> None:
    add(folder / "csv" / "p.csv")
    forge(folder / "csv")
    assert problems(folder / "csv")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sw.OutputError, match="holds no run of streamwsi"):
        sw.verify(tmp_path)
