"""The benchmark measures what it says it does: on its own slides, and with its own arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest

simplejpeg = pytest.importorskip("simplejpeg")
pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")

from benchmarks import contestants, experiments, measure, simulation, slides  # noqa: E402
from benchmarks.measure import Outcome, Row, Spread, Timing  # noqa: E402
from tests.helpers import level_image  # noqa: E402

SIZE = (2560, 1920)
"""Whole tiles along neither axis of most levels."""


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slides.write_slide(tmp_path_factory.mktemp("slides") / "made.tif", *SIZE)


def test_a_made_slide_is_a_pyramid_of_jpeg_tiles(slide: Path) -> None:
    with openslide.OpenSlide(slide) as opened:
        assert opened.level_dimensions == ((2560, 1920), (640, 480), (160, 120))
        assert opened.properties["openslide.vendor"] == "generic-tiff"
        assert opened.properties["openslide.level[0].tile-width"] == "256"
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.499)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_made_slide_has_the_pixels_that_were_encoded(slide: Path, level: int) -> None:
    image = level_image(slide, level)
    tiles = slides.encoded_tiles(level)
    for y in range(0, len(image), slides.TILE_PX):
        for x in range(0, image.shape[1], slides.TILE_PX):
            tile = tiles[y // slides.TILE_PX % len(tiles)][x // slides.TILE_PX % len(tiles)]
            there = image[y : y + slides.TILE_PX, x : x + slides.TILE_PX]
            assert np.array_equal(there, simplejpeg.decode_jpeg(tile)[: there.shape[0], : there.shape[1]])


def test_tiles_of_a_made_slide_differ(slide: Path) -> None:
    assert len({tile for row in slides.encoded_tiles(0) for tile in row}) >= 64


def test_slides_are_built_once(tmp_path: Path) -> None:
    made = slides.Slides(tmp_path / "cache", 4096, 4096)
    path = made.eighth
    before = path.stat().st_mtime_ns
    assert made.eighth == path
    assert path.stat().st_mtime_ns == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_many_slides_have_the_area_of_the_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(slides, "write_slide", lambda path, *size: asked.append(size) or path.touch() or path)
    many = slides.Slides(tmp_path, 49152, 40960).many
    assert len(set(many)) == 40
    assert sum(width * height for width, height in asked) == 49152 * 40960


@pytest.mark.parametrize("size", ["1000x1000", "20000", "wide x high"])
def test_a_size_that_cannot_be_is_refused(size: str) -> None:
    with pytest.raises(ValueError):
        slides.parsed_size(size)


def test_tiles_are_shared_out_once_each(slide: Path) -> None:
    tiles = contestants.Tiles.of(slide)
    shares = tiles.shares(3)
    assert len(tiles.offsets) == 10 * 8
    assert sum((share.offsets for share in shares), ()) == tiles.offsets
    assert contestants.decode_in_threads(slide).unique_px == 10 * 8 * 256**2


def test_window_by_window_readers_get_whole_windows(slide: Path) -> None:
    windows = contestants.region_windows(slide, 512, 256, 20)
    assert windows[:2] == [(0, 0), (256, 0)] and windows[-1] == (2048, 256)
    timing = contestants.openslide_loop(slide, 512, 256, 20)
    assert (timing.windows, timing.unique_px) == (18, 2560 * 768)


def test_every_contestant_runs_in_turn_and_the_order_is_turned_round() -> None:
    ran: list[str] = []

    def contestant(name: str) -> Timing:
        ran.append(name)
        return Timing(1.0)

    taken = measure.interleaved({name: lambda name=name: contestant(name) for name in "abc"}, 3, lambda text: None)
    assert "".join(ran) == "abccbaabc"
    assert {name: len(timings) for name, timings in taken.items()} == dict.fromkeys("abc", 3)


def test_a_ratio_is_made_round_by_round() -> None:
    slow_machine = 10.0
    ours = [Timing(1.0, 100), Timing(2.0, 100), Timing(slow_machine, 100)]
    theirs = [Timing(4.0, 100), Timing(4.0, 100), Timing(3 * slow_machine, 100)]
    assert measure.ratio(ours, theirs) == Spread(3.0, 2.0, 4.0)


def test_what_a_run_over_nothing_takes_is_taken_off_in_the_same_round() -> None:
    steady = measure.without([Timing(3.0, 10), Timing(4.0, 10)], [Timing(1.0), Timing(2.0)])
    assert [timing.windows_per_s for timing in steady] == [5.0, 5.0]


def test_the_best_is_chosen_in_each_round() -> None:
    assert measure.best([Timing(1.0), Timing(4.0)], [Timing(2.0), Timing(3.0)]) == [Timing(1.0), Timing(3.0)]


def test_an_aim_is_met_by_the_median() -> None:
    spread = Spread.of([3.0, 1.0, 2.0])
    assert spread == Spread(2.0, 1.0, 3.0)
    assert Row("1", "a", spread, aim=2).met and not Row("1", "a", spread, aim=2.1).met
    assert Row("1", "a", spread, aim=2, at_most=True).met and not Row("1", "a", spread, aim=1.9, at_most=True).met
    assert Row("", "a", spread).met is None
    assert "NOT MET" in measure.table([Row("1", "a", spread, aim=9)])


def test_tiles_have_a_row_where_reports_count_them() -> None:
    counted = Timing(1.0, details={"tiles_decoded": 102, "tiles_distinct": 100})
    (row,) = experiments._tiles_row("256/64", [counted, counted])
    assert row.value == Spread(1.02, 1.02, 1.02) and row.met
    assert experiments._tiles_row("256/64", [Timing(1.0)]) == []


def test_an_outcome_is_plain_values() -> None:
    found = Outcome([Row("1", "a", Spread.of([2.0]), aim=1)], {"a": [Timing(2.0, 10, 0, {"more": 1})]}).as_json()
    assert found["rows"] == [
        {"number": "1", "what": "a", "median": 2.0, "low": 2.0, "high": 2.0, "unit": "", "aim": {"at_least": 1}, "met": True}
    ]
    assert found["timings"] == {"a": [{"seconds": 2.0, "windows": 10, "unique_px": 0, "windows_per_s": 5.0, "more": 1}]}


def test_simulated_slides_are_all_published() -> None:
    world = simulation._World(n_whole=1, n_slides=3)
    world.run_until(3)
    assert (world.published, world.committed) == (3, simulation.N_CHUNKS + 2 * simulation.LEFT_OVER)
