"""The level of a given resolution: the nearest there is, or an error that says what there is."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamwsi as sw
from streamwsi.dataset import SlideInfo
from streamwsi.errors import ConfigError
from tests.helpers import slide_file


def slide(mpp: tuple[float, float] | None, *downsamples: float) -> sw.Slide:
    """An open slide of which only the resolution matters."""
    levels = len(downsamples)
    info = SlideInfo(
        level_dimensions=((1000, 1000),) * levels,
        level_downsamples=downsamples,
        mpp=mpp,
        power=None,
        vendor="none",
        tile_sizes=(None,) * levels,
        associated_images=(),
        reader="none",
    )
    return sw.Slide(Path("/slides/a.svs"), "a", info)


@pytest.mark.parametrize(("mpp", "level"), [(0.25, 0), (0.26, 0), (0.95, 1), (1.0, 1), (4.3, 2)])
def test_the_nearest_level_is_taken(mpp: float, level: int) -> None:
    assert sw.LevelAtMpp(mpp)(slide((0.25, 0.25), 1.0, 4.0, 16.003)) == level


@given(
    st.floats(0.1, 1.0),
    st.lists(st.floats(1.0, 64.0), min_size=1, max_size=6),
    st.floats(0.1, 64.0),
    st.floats(0.001, 0.9),
)
def test_what_is_taken_is_within_the_tolerance_and_nothing_is_nearer(
    own: float, downsamples: list[float], mpp: float, tolerance: float
) -> None:
    one = slide((own, own), *sorted(downsamples))
    off = [abs(own * downsample - mpp) / mpp for downsample in sorted(downsamples)]
    try:
        assert off[sw.LevelAtMpp(mpp, tolerance)(one)] == pytest.approx(min(off), abs=1e-9)
        assert min(off) <= tolerance + 1e-9
    except sw.SlideError:
        assert min(off) > tolerance - 1e-9


def test_both_axes_must_be_near() -> None:
    with pytest.raises(sw.SlideError, match=r"no level within 10 % of 0\.5 µm/px; it has level 0 0\.5 × 0\.6 µm/px"):
        sw.LevelAtMpp(0.5)(slide((0.5, 0.6), 1.0))


def test_without_one_the_slide_its_levels_and_the_way_out_are_named() -> None:
    with pytest.raises(sw.SlideError) as failure:
        sw.LevelAtMpp(0.5, 0.05)(slide((0.25, 0.25), 1.0, 4.0))
    assert str(failure.value) == (
        "/slides/a.svs has no level within 5 % of 0.5 µm/px; it has level 0 0.25, level 1 1 µm/px: "
        "give level= a number, a larger tolerance, or let the loader resample it, with mpp= in place of level="
    )


@pytest.mark.parametrize("mpp", [(0.0, 0.0), (-0.5, 0.5), (float("inf"), 0.5), (float("nan"), float("nan"))])
def test_a_resolution_that_cannot_be_is_refused(mpp: tuple[float, float]) -> None:
    with pytest.raises(sw.SlideError, match=r"which is hardly true of level 0.*: give level= a number"):
        sw.LevelAtMpp(0.5)(slide(mpp, 1.0))


def test_a_slide_that_says_none_is_refused() -> None:
    with pytest.raises(sw.SlideError, match=r"a\.svs does not say how many micrometres.*give level= a number"):
        sw.LevelAtMpp(0.5)(slide(None, 1.0))


@pytest.mark.parametrize(
    ("name", "mpp", "found"),
    [
        ("aperio/CMU-1-Small-Region.svs", 0.5, 0),
        ("tiff/wsipack_example.tif", 1.0, 0),
        ("tiff/wsipack_example.tif", 2.0, 1),
        ("tiff/wsipack_example.tif", 4.0, 2),
        ("tiff/wsipack_example.tif", 0.5, r"it has level 0 0\.9872, level 1 1\.97., level 2 3\.95. µm/px"),
        ("tiff/CMU-1-Small-Region.jpeg.tiff", 0.5, "hardly true of level 0"),
        ("tiff/yb10kx5k.zstd.tiff", 0.5, "hardly true of level 0"),
    ],
)
def test_real_slides(shared_slides: Path, name: str, mpp: float, found: int | str) -> None:
    path = slide_file(shared_slides, name)
    with sw.open_slide(path) as reader:
        one = sw.Slide(path, "s", reader.info)
    if isinstance(found, int):
        assert sw.LevelAtMpp(mpp)(one) == found
    else:
        with pytest.raises(sw.SlideError, match=found):
            sw.LevelAtMpp(mpp)(one)


def test_it_says_what_it_is_and_travels() -> None:
    level = sw.LevelAtMpp(0.5)
    assert str(level) == "level nearest to 0.5 µm/px, within 10 %"
    assert pickle.loads(pickle.dumps(level)) == level != sw.LevelAtMpp(0.5, 0.2)


@pytest.mark.parametrize("arguments", [(0,), (-1,), ("0.5",), (float("nan"),), (float("inf"),), (0.5, -0.1), (0.5, 1), (True,)])
def test_values_that_cannot_work_are_refused(arguments: tuple) -> None:
    with pytest.raises(ConfigError, match=r"mpp must|tolerance must"):
        sw.LevelAtMpp(*arguments)
