from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import openslide
import pytest
from click.testing import CliRunner
from PIL import Image

from streamwsi.cli import cli
from streamwsi.errors import ConfigError, MapError
from streamwsi.pipeline.report import SlideReport
from streamwsi.values import ValueSpec
from tests.slides.tiff_files import GREY, Page, write
from tests.writing.fabricate import resolved_slide, write_patient
from tests.writing.fabricate_run import write_report, write_run


@pytest.fixture
def deep_slide(tmp_path: Path) -> Path:
    return write(tmp_path / "deep.tiff", [Page((64, 48), (64, 48), [bytes(64 * 48 * 2)], photometric=GREY, samples=1, bits=16)])


def test_info_names_the_reader(bundled):
    done = CliRunner().invoke(cli, ["info", str(bundled)], catch_exceptions=False)
    assert "  reader   tiff\n" in done.output


def test_info_says_why_tiles_are_not_decoded_directly(deep_slide):
    done = CliRunner().invoke(cli, ["info", str(deep_slide)], catch_exceptions=False)
    assert "  reader   openslide: its tiles are not decoded directly: 16-bit samples" in done.output
    done = CliRunner().invoke(cli, ["info", "--json", str(deep_slide)], catch_exceptions=False)
    assert "16-bit samples" in json.loads(done.output)["reader_reason"]


# ---- pictures


def run_folder(folder: Path) -> Path:
    """A patient whose file is there, and one that has failed; their slides are not."""
    write_run(folder, {name: {name: f"/nowhere/{name}.svs"} for name in ("a", "b")}, ValueSpec("float64", (), ("density",)))
    slide = resolved_slide(patient="a", id="a", path="/nowhere/a.svs")
    write_patient(folder, [slide], [np.arange(35.0)], columns=("density",))
    failed = SlideReport(id="b", path="/nowhere/b.svs", state="failed", reason="it is torn")
    write_report(folder, [("b", failed)], state="some slides failed")
    return folder


def invoke(*arguments: object) -> list[str]:
    done = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0
    return done.output.splitlines()


def test_render_draws_the_map_alone(tmp_path: Path) -> None:
    file = run_folder(tmp_path) / "a.h5"
    options = ("--view", "map", "--channel", "density", "--threshold", "3", "--width", "300")
    assert invoke("render", file, *options) == [str(tmp_path / "a_density_map.png")]
    with Image.open(tmp_path / "a_density_map.png") as picture:
        assert picture.size[0] == 300


def test_render_makes_a_pyramid_of_every_map_in_a_folder(tmp_path: Path) -> None:
    assert invoke("render", run_folder(tmp_path), "--format", "tiff") == [str(tmp_path / "a_density.tiff")]
    with openslide.OpenSlide(tmp_path / "a_density.tiff") as slide:
        assert slide.dimensions == (100, 80)


def test_render_draws_a_contact_sheet(tmp_path: Path) -> None:
    pages = invoke("render", run_folder(tmp_path), "--contact-sheet", "--out", tmp_path / "sheet.jpg", "--width", "500")
    assert pages == [str(tmp_path / "sheet.jpg")]
    with Image.open(tmp_path / "sheet.jpg") as picture:
        assert picture.size[0] == 500


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--contact-sheet", "--view", "map"), "--view, --format and --weights do not go with --contact-sheet"),
        (("--slide", "a"), "--slide and --patient go with one patient's file, not with a folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_render_refuses_what_does_not_go_together(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        invoke("render", run_folder(tmp_path), *arguments)
    with pytest.raises(ConfigError, match=r"a\.h5 is not a folder; --contact-sheet takes the output folder of a run"):
        invoke("render", tmp_path / "a.h5", "--contact-sheet")


@pytest.mark.parametrize("channel", ["--5", "²", "-1", "7", "nuclei"])
@pytest.mark.parametrize("command", ["render", "geojson"])
def test_a_channel_that_is_not_there_is_an_error_that_names_it(tmp_path: Path, command: str, channel: str) -> None:
    with pytest.raises(MapError, match=f"has no channel '?{re.escape(channel)}'?; it has 1, from 0: 'density'"):
        invoke(command, run_folder(tmp_path) / "a.h5", f"--channel={channel}")
