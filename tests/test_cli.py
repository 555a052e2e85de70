from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from streamwsi.cli import cli
from tests.slides.tiff_files import GREY, Page, write


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
