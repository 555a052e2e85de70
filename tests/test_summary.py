from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import streamwsi as sw
from streamwsi.cli import cli
from streamwsi.pipeline.report import SlideReport
from streamwsi.summary import summarize
from streamwsi.values import ValueSpec
from streamwsi.writing.journal import Journal
from streamwsi.writing.publish import publish_patient
from tests.writing.fabricate import fill, patient_of, resolved_slide, write_patient
from tests.writing.fabricate_run import write_report, write_run

SPEC = ValueSpec("float32", (2,), ("red", "blue"))


def values_of(seed: int) -> Any:
    values = np.random.default_rng(seed).normal(size=(35, 2)).astype(np.float32)
    values[seed, 1] = np.nan
    return values


def write_two(folder: Path, format: str) -> None:
    """Two patients whose files are there, and one that has failed."""
    write_run(folder, {name: {"s": f"/nowhere/{name}.svs"} for name in ("a", "b", "c")}, SPEC, format=format)
    for seed, name in enumerate(("a", "b")):
        slide = resolved_slide(patient=name, path=f"/nowhere/{name}.svs")
        write_patient(folder, [slide], [values_of(seed)], columns=SPEC.columns, format=format)
    failed = SlideReport(id="s", path="/nowhere/c.svs", state="failed", reason="it is torn", expected=35, failed=35)
    write_report(
        folder, [("c", failed)], state="some slides failed", seconds=2.0, windows=70, windows_per_second=35.0,
        limiting_stage="loader",
    )  # fmt: skip


@pytest.mark.parametrize("format", ["csv", "hdf5"])
def test_values_of_all_files_are_summed_up(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamwsi.maps.pieces._ROWS_AT_ONCE", 9)
    write_two(tmp_path, format)
    together = np.concatenate([values_of(0), values_of(1)]).astype(np.float64)
    found = sw.summarize(tmp_path).columns
    assert [column.name for column in found] == ["red", "blue"]
    assert [(column.values, column.nan) for column in found] == [(70, 0), (68, 2)]
    for column, values in zip(found, together.T, strict=True):
        assert (column.min, column.max) == (np.nanmin(values), np.nanmax(values))
        assert column.mean == pytest.approx(np.nanmean(values))


def test_what_is_shown_names_everything(tmp_path: Path) -> None:
    write_two(tmp_path, "hdf5")
    done = CliRunner().invoke(cli, ["show", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert "Redness, hdf5; 3 patients: 2 done, 1 failed; 3 slides" in lines[0]
    assert lines[1] == "last run: some slides failed, 70 windows in 2.0 s (35/s); limiting stage: loader"
    assert [line.split() for line in lines[3:7]] == [
        ["patient", "slide", "state", "windows", "written", "none", "skipped", "stopped", "failed", "seconds"],
        ["a", "s", "done", "35", "35", "0", "0", "0", "0", "-"],
        ["b", "s", "done", "35", "35", "0", "0", "0", "0", "-"],
        ["c", "s", "failed", "35", "0", "0", "0", "0", "35", "-"],
    ]
    assert lines[8].split() == ["column", "values", "NaN", "min", "mean", "max"]
    assert lines[10].split()[:3] == ["blue", "68", "2"]
    assert lines[-1] == "c, slide s: failed: it is torn"


def test_the_json_holds_the_same(tmp_path: Path) -> None:
    write_two(tmp_path, "hdf5")
    done = CliRunner().invoke(cli, ["show", "--json", str(tmp_path)], catch_exceptions=False)
    found = json.loads(done.output)
    assert [patient["state"] for patient in found["outcome"]["patients"]] == ["done", "done", "failed"]
    assert found["outcome"]["last_run"]["limiting_stage"] == "loader"
    assert found["columns"][1]["nan"] == 2
    assert found["problems"] == []


def test_a_run_of_which_nothing_is_finished_can_be_shown(tmp_path: Path) -> None:
    write_run(tmp_path, {"a": {"s": "/nowhere/a.svs"}})
    text = str(summarize(tmp_path))
    assert "no run has ended here yet" in text
    assert "a, slide s: unfinished: the last run has not ended" in text


def test_a_damaged_file_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    write_two(tmp_path, "hdf5")
    (tmp_path / "a.h5").write_bytes(b"something else")
    found = summarize(tmp_path)
    assert found.columns[0].values == 35
    assert len(found.problems) == 1 and "a.h5 is not an HDF5 file" in found.problems[0]
    assert found.problems[0] in str(found)


def test_very_many_columns_are_not_all_shown(tmp_path: Path) -> None:
    spec = ValueSpec("uint8", (1000,))
    write_run(tmp_path, {"p1": {"s": "/nowhere/s.svs"}}, spec)
    write_patient(tmp_path, [resolved_slide()], [np.ones((35, 1000), np.uint8)])
    found = summarize(tmp_path)
    assert len(found.columns) == 1000
    assert "… and 980 columns more: --json has all" in str(found)
    assert (found.columns[999].name, found.columns[999].min, found.columns[999].mean) == ("value_999", 1, 1)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "uint64", "float16", "float64"])
def test_values_of_any_kind_are_summed_up(tmp_path: Path, dtype: str) -> None:
    write_run(tmp_path, {"p1": {"s": "/nowhere/s.svs"}}, ValueSpec(dtype, ()))
    write_patient(tmp_path, [resolved_slide()], [np.arange(35).astype(dtype)])
    (column,) = summarize(tmp_path).columns
    highest = 1 if dtype == "bool" else 34
    assert (column.min, column.max, column.values) == (0, highest, 35)


def test_infinite_values_are_shown_as_they_are(tmp_path: Path) -> None:
    write_run(tmp_path, {"p1": {"s": "/nowhere/s.svs"}}, ValueSpec("float64", ()))
    write_patient(tmp_path, [resolved_slide()], [np.r_[np.inf, -np.inf, np.zeros(33)]])
    found = summarize(tmp_path)
    assert (found.columns[0].min, found.columns[0].max) == (-math.inf, math.inf)
    assert math.isnan(found.columns[0].mean or 0)
    json.loads(found.to_json())


def test_memory_does_not_follow_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamwsi.maps.pieces._NUMBERS_AT_ONCE", 1 << 16)
    slide = resolved_slide(extent=(400, 400), kernel=(4, 4), stride=(4, 4), block=(50, 100))
    write_run(tmp_path, {"p1": {"s": "/nowhere/s.svs"}}, ValueSpec("float32", (64,)))
    path = write_patient(tmp_path, [slide], [np.ones((10_000, 64), np.float32)])
    summarize(tmp_path)
    tracemalloc.start()
    try:
        assert summarize(tmp_path).columns[0].values == 10_000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size
    finally:
        tracemalloc.stop()


# ---- gathered results


class Gatherer:
    mode = "accumulate"

    def __init__(self, result: Any) -> None:
        self.result = result

    def accumulate(self, previous: Any, piece: Any, patient: Any) -> Any:
        return self.result

    def collate(self, patient: Any, pieces: Any) -> Any:
        return self.result


def write_gathered(folder: Path, result: Any, mode: str = "accumulate") -> None:
    from streamwsi.config import OutputOptions

    write_run(folder, {"p1": {"s": "/nowhere/s.svs"}}, ValueSpec("float64", ()), mode=mode)
    gatherer = Gatherer(result)
    gatherer.mode = mode
    with Journal(folder / ".journal" / "p1.sqlite") as journal:
        fill(journal, resolved_slide(), np.arange(35.0))
        publish_patient(
            journal, patient_of([resolved_slide()]), OutputOptions(folder=str(folder), format="hdf5"), gatherer=gatherer
        )


@pytest.mark.parametrize("mode", ["accumulate", "collect"])
def test_gathered_results_are_shown(tmp_path: Path, mode: str) -> None:
    result = {"mean": 0.25, "name": "x", "few": np.arange(3), "many": np.linspace(0, 1, 100).reshape(10, 10), "list": [1, 2]}
    write_gathered(tmp_path, result, mode)
    found = summarize(tmp_path)
    np.testing.assert_array_equal(found.results["p1"]["many"], result["many"])
    assert found.columns == []
    (line,) = [line for line in str(found).splitlines() if line.startswith("p1: ")]
    assert line == "p1: mean: 0.25, name: x, few: [0, 1, 2], many: float64 10 × 10 (0 to 1, mean 0.5), list: [1, 2]"
    shown = json.loads(found.to_json())["results"]["p1"]
    assert shown["few"] == [0, 1, 2]
    assert (shown["many"]["shape"], shown["many"]["max"]) == ([10, 10], 1.0)
    assert "gathered" in str(found).splitlines()[0]


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    write_gathered(tmp_path, 1)
    (tmp_path / "p1.result").write_bytes(b"\xc1")
    found = summarize(tmp_path)
    assert found.results == {}
    assert "p1.result is not a result of streamwsi, or it is damaged" in found.problems[0]


def test_a_folder_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sw.OutputError, match="holds no run of streamwsi"):
        summarize(tmp_path)
