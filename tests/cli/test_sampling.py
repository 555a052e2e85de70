"""Where to look, from the command line: samplers, regions, previews."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from click.testing import CliRunner
from PIL import Image

import streamwsi as sw
from streamwsi.cli import cli
from streamwsi.cli.heatmap import heatmap
from streamwsi.cli.job import Job, anchored, job_of
from streamwsi.cli.job_file import read_job, written
from streamwsi.cli.options import job_from_options
from streamwsi.cli.sampling import sampler_of


def job(**values: Any) -> Job:
    return job_of({"slides": "slides/", "out": "out/", "collector": "mean", **values}, ".".join)


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    regions = [
        sw.Region(shapely.box(900, 900, 1300, 1900), label="tumour"),
        sw.Region(shapely.box(600, 2000, 1500, 2900), label="stroma"),
    ]
    return sw.write_geojson(regions, tmp_path / "drawn.geojson")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"region": "tissue"}, lambda: sw.GridSampler(64, region=sw.Tissue())),
        (
            {"region": "tissue:lab", "origin": "region"},
            lambda: sw.GridSampler(64, region=sw.Tissue(method="lab"), origin="region"),
        ),
        ({"margin": 3}, lambda: sw.GridSampler(64, margin=3)),
        (
            {"sampler": "random", "windows": 9, "region": "tissue", "inverse": True, "seed": 4, "max_overlap": 0.25},
            lambda: sw.RandomSampler(9, region=sw.Annotated(sw.Tissue(), inverse=True), seed=4, max_overlap=0.25),
        ),
        (
            {"sampler": "poisson", "spacing": 80, "windows": 5, "epoch": 2, "region": "tissue", "min_coverage": 0.75},
            lambda: sw.PoissonDiskSampler(80, "um", n=5, epoch=2, region=sw.Tissue(), min_coverage=0.75),
        ),
    ],
)
def test_options_make_the_sampler_that_they_name(options: dict[str, Any], expected: Any) -> None:
    stride = 64 if options.get("sampler", "grid") == "grid" else None
    made = sampler_of(job(**options, **({"stride": stride} if stride else {})), stride)
    assert made is not None and made.describe() == expected().describe() and made.margin == expected().margin


def test_without_any_the_sliding_window_is_what_it_was() -> None:
    assert sampler_of(job(stride=64, border="adaptive"), 64) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "random"}, "windows or per_label"),
        ({"sampler": "poisson"}, "give how far apart"),
        ({"sampler": "points"}, "give the file of points"),
        ({"sampler": "random", "windows": 4, "stride": 64}, "stride goes with sampler grid, got sampler random"),
        ({"spacing": 4.0}, "spacing goes with sampler poisson"),
        ({"seed": 4}, "seed goes with sampler random and poisson"),
        ({"include": ["tumour"], "inverse": True}, "include, inverse without region"),
        ({"region": "nowhere.png"}, "nowhere.png' does not exist"),
        ({"region": "tissue:red"}, "method must be one of"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(sw.ConfigError, match=message):
        sampler_of(job(**options), options.get("stride"))


def test_a_job_file_holds_what_the_options_said(tmp_path: Path, drawn: Path) -> None:
    options = [
        "--sampler",
        "random",
        "--per-label",
        "tumour=3",
        "--per-label",
        "a=b=4",
        "--region",
        str(drawn),
        "--include",
        "x",
    ]

    context = heatmap.make_context("heatmap", ["slide.svs", "--out", "out", "--collector", "mean", *options])
    asked = job_from_options({name: value for name, value in context.params.items() if name in Job.__struct_fields__})
    assert (asked.per_label, asked.include, asked.region) == ({"tumour": 3, "a=b": 4}, ["x"], str(drawn))
    path = tmp_path / "job.toml"
    path.write_bytes(written(anchored(asked, str(tmp_path)), "again"))
    assert read_job(path) == anchored(asked, str(tmp_path))
    assert anchored(job(region="tissue:otsu"), "/folder").region == "tissue:otsu"
    assert anchored(job(region="drawn/"), "/folder").region == "/folder/drawn/"


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False)
    assert not result.return_value, result.output
    return result.output


def test_a_run_reads_the_windows_that_the_options_ask_for(bundled: Path, drawn: Path, tmp_path: Path) -> None:
    asked = ["--kernel-size", "128", "--sampler", "random", "--per-label", "tumour=6", "--per-label", "stroma=9"]
    asked += ["--region", drawn, "--min-coverage", "1"]
    invoke("heatmap", bundled, "--out", tmp_path / "out", "--collector", "mean", *asked, "--quiet")
    pieces = sw.read_pieces(tmp_path / "out" / f"{bundled.stem}.h5")
    assert pieces.labels is not None and sorted(pieces.labels) == ["stroma"] * 9 + ["tumour"] * 6
    boxes = {"tumour": (900, 900, 1300, 1900), "stroma": (600, 2000, 1500, 2900)}
    for (x, y), label in zip(pieces.coords.tolist(), pieces.labels, strict=True):
        left, top, right, bottom = boxes[label]
        assert left <= x <= right - 128 and top <= y <= bottom - 128
    # the job file beside the results says the same again: nothing is left to do
    before = (tmp_path / "out" / f"{bundled.stem}.h5").stat().st_mtime_ns
    invoke("run", tmp_path / "out" / "job.toml", "--quiet")
    assert (tmp_path / "out" / f"{bundled.stem}.h5").stat().st_mtime_ns == before


def test_a_preview_shows_the_windows_of_that_run(bundled: Path, drawn: Path, tmp_path: Path) -> None:
    asked = ["--kernel-size", "128", "--sampler", "random", "--per-label", "tumour=6", "--region", drawn, "--min-coverage", "1"]
    output = invoke("preview", bundled, "--out", tmp_path / "windows.png", *asked, "--width", "800")
    assert output.split() == [str(tmp_path / "windows.png")]
    sampler = sw.RandomSampler(per_label={"tumour": 6}, region=drawn, min_coverage=1)
    expected = sampler.preview(bundled, 128, longest_px=800)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "windows.png")), expected)
    invoke("preview", bundled, "--out", tmp_path / "folder", "--mpp", "2", "--kernel-size", "64")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [f"{bundled.stem}_windows.png"]


def test_points_come_from_a_file(bundled: Path, tmp_path: Path) -> None:
    points = tmp_path / "nuclei.csv"
    points.write_text("x,y,label\n500,600,lymphocyte\n1500.5,900,\n700,2000,tumour\n")
    invoke(
        "heatmap", bundled, "--out", tmp_path / "out", "--collector", "mean", "--kernel-size", "64", "--sampler", "points",
        "--points", points, "--format", "csv", "--quiet",
    )  # fmt: skip
    table = sw.read_pieces(tmp_path / "out" / f"{bundled.stem}.csv").to_dataframe()
    assert table["label"].tolist() == ["lymphocyte", "", "tumour"]
    assert table[["x", "y"]].to_numpy().tolist() == [[468, 568], [1469, 868], [668, 1968]]
