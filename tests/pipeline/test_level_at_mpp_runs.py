"""A run at a resolution: slides that have it are read there, one that does not fails alone, a resume must ask for the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import streamwsi as sw
from tests.helpers import noise_levels, write_tiff


def test_a_slide_without_the_resolution_fails_alone_and_a_resume_asks_for_the_same(bundled: Path, tmp_path: Path) -> None:
    silent = write_tiff(tmp_path / "silent.tif", noise_levels([(300, 200)]))
    dataset = sw.Dataset([sw.Patient("says", {"s": bundled}), sw.Patient("silent", {"s": silent})])

    def pipeline(mpp: float) -> sw.Pipeline:
        loader = sw.SlidingWindowLoader(dataset, 512, level=sw.LevelAtMpp(mpp))
        return sw.Pipeline(loader, sw.TissueCollector(), sw.CSVStreamWriter(tmp_path / "out"), quiet=True)

    report = pipeline(0.5).run()
    assert report.exit_code == 1
    assert (tmp_path / "out" / "says.csv").exists() and not (tmp_path / "out" / "silent.csv").exists()
    assert "silent.tif does not say how many micrometres a pixel is" in report.to_json().decode()
    defining = json.loads((tmp_path / "out" / "run.json").read_text())["defining"]
    assert defining["level"] == "level nearest to 0.5 µm/px, within 10 %"
    with pytest.raises(
        sw.OutputError, match=r"level is 'level nearest to 0\.5 µm/px, within 10 %', this one's is 'level nearest to 1 µ"
    ):
        pipeline(1.0).run()
