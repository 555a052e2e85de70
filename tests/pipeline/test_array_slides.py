"""Runs over arrays give what runs over the slide that they are copies of give, to the last digit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import streamwsi as sw
from tests.slides.zarr_files import planes, write_image

Cli = Callable[..., object]


@pytest.fixture(scope="module")
def copy(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled slide as OME-Zarr, its resolution too."""
    with sw.open_slide(bundled) as slide:
        pixels = slide.read_region(0, 0, 0, *slide.info.dimensions)
        across, down = slide.info.mpp
    small = pixels[::2, ::2]
    scales = [(1, down, across), (1, 2 * down, 2 * across)]
    path = tmp_path_factory.mktemp("arrays") / "CMU-1-Small-Region.zarr"
    return write_image(path, list(map(planes, (pixels, small))), "CYX", (3, 240, 240), scales)


def run(dataset: sw.Dataset, out: Path, level: int = 0) -> sw.Report:
    loader = sw.SlidingWindowLoader(dataset, kernel_size=200, stride=150, level=level)
    return sw.Pipeline(loader, sw.MeanCollector(), sw.HDF5StreamWriter(out), quiet=True).run()


def test_a_copy_of_a_slide_gives_the_same_map(bundled: Path, copy: Path, tmp_path: Path) -> None:
    for path, name in ((bundled, "slide"), (copy, "array")):
        report = run(sw.Dataset([sw.Patient("p", {"s": path})]), tmp_path / name)
        assert report.exit_code == 0 and report.patients[0].slides[0].written == 300
    slide, array = (sw.read_pieces(tmp_path / name / "p.h5") for name in ("slide", "array"))
    np.testing.assert_array_equal(array.coords, slide.coords)
    np.testing.assert_array_equal(array.values, slide.values)
    maps = [sw.read_map(tmp_path / name / "p.h5") for name in ("slide", "array")]
    np.testing.assert_array_equal(maps[1].values, maps[0].values)
    assert maps[1].plan.mpp == maps[0].plan.mpp == (0.499, 0.499)
    slide_report = report.patients[0].slides[0]
    assert slide_report.tiles_distinct == 130 and slide_report.tiles_decoded < 1.3 * 130
    sw.render(tmp_path / "array" / "p.h5", tmp_path / "p.png")


def test_planes_of_a_folder_run_from_the_command_line(copy: Path, tmp_path: Path, cli: Cli, here: Cli) -> None:
    slides = tmp_path / "slides"
    shutil.copytree(copy, slides / "deep" / "a.zarr")
    volume = np.stack([np.full((300, 200), 10 * z, np.uint8) for z in range(3)])
    np.save(slides / "v.npy", volume)
    assert [patient.id for patient in sw.Dataset.from_folder(slides)] == ["a"]
    manifest = slides / "slides.csv"
    rows = [f"v,z{z},v.npy::axes=ZYX::z={z}" for z in range(3)]
    manifest.write_text("\n".join(["patient,slide,path", *rows, ""]))
    done = cli("heatmap", manifest, "--out", tmp_path / "out", "--collector", "mean", "--format", "csv", "--kernel-size", "100")
    assert done.returncode == 0, done.stderr
    values = sw.read_pieces(tmp_path / "out" / "v.csv", slide="z2").values
    assert len(values) == 6 and np.all(values == values[0]) and values.flat[0] > 0
    shown = here("info", f"{slides / 'v.npy'}::axes=ZYX::z=1", "--json")
    assert json.loads(shown.stdout)["level_dimensions"] == [[200, 300]]
    done = cli("heatmap", slides / "deep" / "a.zarr", "--out", tmp_path / "one", "--collector", "mean", "--level", "1")
    assert done.returncode == 0 and (tmp_path / "one" / "a.h5").is_file(), done.stderr
    assert here("verify", tmp_path / "one").returncode == 0
    assert here("render", tmp_path / "one", "--slide-path", slides / "deep").returncode == 0


def test_an_array_that_is_no_picture_fails_alone(copy: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((9, 20, 20), np.uint8))
    dataset = sw.Dataset([sw.Patient("a", {"s": tmp_path / "v.npy"}), sw.Patient("b", {"s": copy})])
    report = run(dataset, tmp_path / "out", level=1)
    assert report.exit_code == 1
    (failed,) = report.failed_slides
    assert "which axis is which is not known: say it, as by ::axes=YXC" in (failed.reason or "")
    assert (tmp_path / "out" / "b.h5").is_file()
