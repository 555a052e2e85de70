"""Maps and paired images from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

import streamwsi as sw
from streamwsi.cli.execute import loader_of
from streamwsi.cli.job_file import read_job
from streamwsi.cli.main import cli

COLLECTOR = """
import streamwsi as sw

class Shades(sw.StreamCollector):
    def process(self, batch):
        return batch.pixels[:, ::4, ::4, 0] * (batch.labels > 0)
"""


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
    if isinstance(result.exception, sw.StreamwsiError):
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None, result.exception
    return int(result.return_value or 0), result.output


def test_a_map_of_what_labels_leave(bundled: Path, tmp_path: Path) -> None:
    with sw.open_slide(bundled) as slide:
        width, height = slide.info.dimensions
        pixels = slide.read_region(0, 0, 0, width, height)
    labels = np.zeros((742, 555), np.uint8)
    labels[200:, 100:] = 3
    np.save(tmp_path / f"{bundled.stem}.npy", labels)
    (tmp_path / "shades.py").write_text(COLLECTOR)
    options = ["--collector", f"{tmp_path / 'shades.py'}:Shades", "--format", "ome-tiff", "--reduction", "4"]
    options += ["--kernel-size", "256", "--paired", f"labels={tmp_path / '{stem}.npy'}", "--quiet"]
    assert invoke("heatmap", bundled, "--out", tmp_path / "out", *options) == (0, "")
    folder = tmp_path / "out" / bundled.stem
    (entry,) = json.loads((folder / "maps.json").read_text())["maps"]
    with tifffile.TiffFile(folder / entry["file"]) as file:
        found = file.series[0].levels[0].asarray()
    np.testing.assert_array_equal(found, pixels[::4, ::4, 0] * (labels > 0))
    assert invoke("run", tmp_path / "out" / "job.toml")[0] == 0


def test_a_job_file_says_more_of_a_paired_image(bundled: Path, tmp_path: Path) -> None:
    text = f"""
        slides = {str(bundled)!r}
        out = "out"
        collector = "mean"
        [paired]
        plain = "labels/{{stem}}.png"
        [paired.mask]
        source = "{{folder}}/{{stem}}.zarr"
        resolution = "window"
        axes = "YXC"
        at = {{ T = 1, C = [0, 2] }}
        scale = 4.0
        offset = [10.0, 20.0]
        """
    (tmp_path / "job.toml").write_text(text)
    loader = loader_of(read_job(tmp_path / "job.toml"), 64, {})
    assert loader.paired == {
        "plain": sw.Paired(f"{tmp_path}/labels/{{stem}}.png"),
        "mask": sw.Paired(
            "{folder}/{stem}.zarr", "window", axes="YXC", at={"T": 1, "C": slice(0, 2)}, scale=4.0, offset=(10.0, 20.0)
        ),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "gaussian"], "weights goes with maps, format ome-zarr, ome-tiff, map-h5; got format h5"),
        (["--format", "csv", "--reduction", "2"], "reduction goes with maps"),
        (["--format", "ome-tiff", "--one-file"], "one_file goes with h5 and csv: maps, ome-tiff here"),
        (["--format", "ome-tiff", "--quality", "3"], "quality goes with images"),
        (["--format", "ome-tiff", "--reduction", "7"], "is no multiple of reduction=7"),
        (["--paired", "labels"], "--paired takes NAME=VALUE, got 'labels'"),
        (["--paired", "labels={case}.png"], r"there is no {case}, only {slide}, {patient}, {stem}, {folder}"),
        (["--paired", 'labels={"source": "a.png", "resolution": "slide"}'], "expected one of 'own', 'window', got 'slide'"),
        (["--paired", 'labels={"source": "a", "scale": [1]}'], "--paired labels: scale: expected"),
        (["--paired", 'labels={"source": "a", "at": {"X": [0, 64, 1]}}'], "--paired labels: at: expected"),
        (["--paired", 'labels={"sorce": "a"}'], "--paired labels: sorce: there is no such field; did you mean source?"),
        (["--paired", "pixels=a.png"], "must be called by a name like 'labels'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_refused(bundled: Path, tmp_path: Path, options: list[str], message: str) -> None:
    code, said = invoke("heatmap", bundled, "--out", tmp_path / "out", "--collector", "mean", *options)
    assert code == 2 and message in said
    assert not (tmp_path / "out").exists()
