"""What resolution a slide is read at: by level, micrometres per pixel or magnification, and where the slide does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamwsi as sw
from streamwsi.dataset import SlideInfo
from streamwsi.errors import ConfigError, SlideError
from streamwsi.loading.resolution import TOLERANCE, ChoiceError, Wanted
from streamwsi.resolution import Resolution
from tests.helpers import slide_file

SLIDE = sw.Slide(Path("/slides/a.svs"), "a")


def info(
    mpp: float | tuple[float, float] | None, *downsamples: float, power: float | None = None, side: int = 1000
) -> SlideInfo:
    """An open slide of which only the resolution matters."""
    downsamples = downsamples or (1.0,)
    return SlideInfo(
        level_dimensions=tuple((int(side / down), int(side / down)) for down in downsamples),
        level_downsamples=downsamples,
        mpp=(mpp, mpp) if isinstance(mpp, float) else mpp,
        power=power,
        vendor="none",
        tile_sizes=(None,) * len(downsamples),
        associated_images=(),
        reader="none",
    )


def all_chosen(own: SlideInfo, tolerance: float = TOLERANCE, slide: sw.Slide = SLIDE, **asked: Any) -> tuple[Resolution, ...]:
    wanted = Wanted.of(**asked)
    return wanted.choose(wanted.believed(own, slide), slide, tolerance)


def chosen(own: SlideInfo, tolerance: float = TOLERANCE, slide: sw.Slide = SLIDE, **asked: Any) -> Resolution:
    (resolution,) = all_chosen(own, tolerance, slide, **asked)
    return resolution


@pytest.mark.parametrize(
    ("mpp", "level", "zoom"),
    [
        (0.25, 0, 1.0),
        (0.26, 0, 1.0),  # within the tolerance: as it is
        (0.5, 0, 2.0),
        (0.97, 1, 1.0),
        (2.0, 1, 2.0),
        (4.0, 2, 1.0),  # 4.00075
        (10.0, 2, 2.4995),
    ],
)
def test_a_level_that_is_near_is_read_as_it_is_and_else_the_next_finer_one_is_resampled(
    mpp: float, level: int, zoom: float
) -> None:
    found = chosen(info(0.25, 1.0, 4.0, 16.003), mpp=mpp)
    assert (found.level, found.zoom) == (level, pytest.approx(zoom, abs=1e-3))
    assert (found.zoom == 1) == (zoom == 1)


def test_the_tolerance_can_be_none() -> None:
    assert chosen(info(0.25), mpp=0.26, tolerance=0.0) == Resolution.of(0, 0.26 / 0.25)


@given(st.floats(0.1, 1.0), st.lists(st.floats(1.0, 64.0), max_size=5), st.floats(1.0, 64.0))
def test_what_is_read_has_the_resolution_asked_for(own: float, coarser: list[float], times: float) -> None:
    downs = [1.0, *sorted(coarser)]
    slide = info(own, *downs)
    found = chosen(slide, mpp=own * times)
    read = own * found.downsample(slide)
    if found.zoom == 1:
        assert read == pytest.approx(own * times, rel=0.051)
    else:
        assert read == pytest.approx(own * times, rel=1.3e-4)
        assert found.zoom > 1
        assert not any(downs[found.level] < down < times for down in downs)


@pytest.mark.parametrize(
    ("own", "magnification", "zoom"),
    [
        (info(0.499, power=20.0), 10, 2.0),
        (info(0.499, power=20.0), 20, 1.0),
        (info(0.25, power=40.0), 20.0, 2.0),
        (info(0.2425, power=20.0), 20, 1.0),  # the power counts, where there is one
        (info(None, power=40.0), 10, 4.0),
        (info(352.9, power=40.0), 10, 4.0),
        (info(0.25), 10, 4.0),  # 10 / mpp
        (info(0.5, 1.0, 2.0), 5, 2.0),
    ],
)
def test_a_magnification_is_that_of_the_objective_or_by_convention(own: SlideInfo, magnification: float, zoom: float) -> None:
    assert chosen(own, magnification=magnification).zoom == pytest.approx(zoom, abs=1e-3)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (info(None), r"a\.svs does not say how many micrometres a pixel is: give missing_mpp="),
        (info(0.0), r"0 × 0 µm, which is hardly true of level 0.*give missing_mpp="),
        (info(352.9, power=20.0), r"352\.9 × 352\.9 µm.*objective power is 20×.*about 0\.5 µm.*give missing_mpp="),
        (info(5.0, power=20.0), r"5 × 5 µm.*objective power is 20×"),
        (info(10.0, side=100_000), r"10 × 10 µm.*1000 mm long"),
        (info((0.25, 0.5)), r"its pixels are not square, 0\.25 × 0\.5 µm: give missing_mpp="),
    ],
)
def test_a_resolution_that_is_not_known_is_refused_or_replaced(own: SlideInfo, message: str) -> None:
    with pytest.raises(SlideError, match=message):
        chosen(own, mpp=1.0)
    assert chosen(own, mpp=1.0, missing_mpp=0.5).zoom == 2.0
    seen = []

    def of_slide(slide: sw.Slide) -> float:
        seen.append((slide.path, slide.info))
        return 0.25

    assert chosen(own, mpp=1.0, missing_mpp=of_slide).zoom == 4.0
    assert seen == [(SLIDE.path, own)]


def test_a_power_that_the_resolution_contradicts_is_no_power() -> None:
    with pytest.raises(SlideError, match="objective power is 40×"):
        chosen(info(5.0, power=40.0), magnification=10)
    # the word on the resolution tells that it was the one that was wrong; or that it was the power
    assert chosen(info(5.0, power=40.0), magnification=10, missing_mpp=0.5).zoom == 4.0
    assert chosen(info(5.0, power=40.0), magnification=2, missing_mpp=1.9).zoom == pytest.approx(10 / 1.9 / 2, abs=1e-3)


def test_missing_mpp_does_not_replace_what_the_slide_says() -> None:
    assert chosen(info(0.25), mpp=1.0, missing_mpp=0.5).zoom == 4.0


def test_pixels_are_not_made_up() -> None:
    with pytest.raises(SlideError, match=r"nothing as fine as 0\.25 µm/px: its level 0 has 0\.5 µm/px"):
        chosen(info(0.5), mpp=0.25)
    with pytest.raises(SlideError, match="nothing as fine as 40 ×: its level 0 has 20 ×"):
        chosen(info(0.5, power=20.0), magnification=40)


def test_a_slide_is_not_read_at_what_makes_a_dot_of_it() -> None:
    assert chosen(info(0.5, 1.0, 4.0), mpp=1600).zoom == 800
    with pytest.raises(SlideError, match=r"at 1601 µm/px: that is more than 800 times as coarse as its level 1, of 2 µm/px"):
        chosen(info(0.5, 1.0, 4.0), mpp=1601)
    with pytest.raises(SlideError, match=r"at 0\.02 ×: that is more than 800 times as coarse as its level 0, of 20 ×"):
        chosen(info(0.5, power=20.0), magnification=0.02)


def test_levels_are_as_before() -> None:
    own = info(0.25, 1.0, 4.0)
    assert chosen(own, level=1) == chosen(own, level=lambda slide: slide.level_count - 1) == Resolution(1)
    assert chosen(own, level=sw.LevelAtMpp(1.0)) == Resolution(1)
    with pytest.raises(SlideError, match="has no level 2: it has levels 0 to 1"):
        chosen(own, level=2)
    with pytest.raises(SlideError, match=r"level must be an int, the callable gave 1\.5"):
        chosen(own, level=lambda slide: 1.5)


@pytest.mark.parametrize("name", ["level", "missing_mpp"])
def test_a_callable_that_raises_is_the_users_error_unless_it_speaks_of_the_slide(name: str) -> None:
    def broken(slide: sw.Slide) -> float:
        raise KeyError("x")

    def no(slide: sw.Slide) -> float:
        raise SlideError("not this one")

    asked: dict[str, Any] = {} if name == "level" else {"mpp": 1.0}
    with pytest.raises(ChoiceError, match=f"the {name} callable raised for slide 'a'") as failure:
        chosen(info(None), **asked, **{name: broken})
    assert isinstance(failure.value.__cause__, KeyError)
    with pytest.raises(SlideError, match="not this one"):
        chosen(info(None), **asked, **{name: no})


@pytest.mark.parametrize("given_for_it", [0, -1.0, float("nan"), 352.9, None])
def test_what_a_callable_gives_must_be_possible_too(given_for_it: Any) -> None:
    message = "does not say how many micrometres a pixel is; what missing_mpp gives must be"
    with pytest.raises(SlideError, match=message):
        chosen(info(None), mpp=1.0, missing_mpp=lambda slide: given_for_it)


@pytest.mark.parametrize("asked", [{"level": 0, "mpp": 0.5}, {"mpp": 0.5, "magnification": 20}, {"levels": [0], "mpps": [1.0]}])
def test_one_at_most_is_given(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give one of level=, mpp=, magnification=, levels= and mpps=, got "):
        Wanted.of(**asked)
    assert Wanted.of() == Wanted(level=0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mpp": 0}, "mpp must be above 0, got 0"),
        ({"mpp": "0.5"}, "mpp must be at least 0, got '0.5'"),
        ({"mpp": float("inf")}, "mpp must be finite, got inf"),
        ({"magnification": -20}, "magnification must be at least 0, got -20"),
        ({"level": -1}, "level must be at least 0"),
        ({"level": 0.5}, "level must be an int or a callable"),
        ({"mpps": []}, "mpps must be a list of numbers"),
        ({"mpps": 0.5}, "mpps must be a list of numbers"),
        ({"mpps": [2.0, 0.5]}, r"mpps must be different, the finest first, as \[0\.5, 2\.0\], got \[2\.0, 0\.5\]"),
        ({"mpps": [0.5, 0.5]}, "mpps must be different"),
        ({"mpps": [0.5, 0]}, "each of mpps must be above 0"),
        ({"levels": [1, 0]}, "levels must be different, the finest first"),
        ({"levels": [0, 1.5]}, "each of levels must be an int"),
        ({"levels": "01"}, "levels must be a list of numbers"),
    ],
)
def test_what_cannot_work_is_refused_by_name(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Wanted.of(**asked)


def test_several_are_chosen_each_for_itself() -> None:
    own = info(0.25, 1.0, 4.0)
    assert all_chosen(own, mpps=[0.5, 1.0, 4.0]) == (Resolution(0, 2.0), Resolution(1), Resolution(1, 4.0))
    assert all_chosen(own, levels=(0, 1)) == (Resolution(0), Resolution(1))
    with pytest.raises(SlideError, match="has no level 2"):
        all_chosen(own, levels=[0, 2])
    assert [Wanted.of(mpps=[0.5]).is_several, Wanted.of(mpp=0.5).is_several, Wanted.of(levels=[0, 1]).count] == [True, False, 2]


def test_missing_mpp_is_what_a_level_callable_sees() -> None:
    assert chosen(info(None, 1.0, 4.0), level=sw.LevelAtMpp(1.0), missing_mpp=0.25) == Resolution(1)


def test_what_is_written_of_it_names_what_was_given() -> None:
    assert Wanted.of().describe() == {"level": 0}
    assert Wanted.of(level=sw.LevelAtMpp(0.5)).describe() == {"level": "level nearest to 0.5 µm/px, within 10 %"}
    assert Wanted.of(mpp=0.5, missing_mpp=0.25).describe() == {"level": 0, "mpp": 0.5, "missing_mpp": 0.25}
    assert Wanted.of(mpps=[0.5, 2]).describe() == {"level": 0, "mpps": (0.5, 2.0)}
    described = Wanted.of(magnification=20, missing_mpp=lambda slide: 10 / slide.power).describe()
    assert described["missing_mpp"].startswith("callable: ") and "10 / slide.power" in described["missing_mpp"]


@pytest.mark.parametrize("value", [0, -1, "none", 352.9, True, None, float("inf")])
def test_a_missing_mpp_that_cannot_be_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="missing_mpp must be"):
        Wanted.of(missing_mpp=value)


@pytest.mark.parametrize(
    ("name", "mpp", "found"),
    [
        ("aperio/CMU-1-Small-Region.svs", 0.5, (0, 1.0)),
        ("aperio/CMU-1-Small-Region.svs", 1.0, (0, 2.004)),
        ("tiff/wsipack_example.tif", 3.0, (1, 1.519)),
        ("tiff/CMU-0-small.tiff", 12.8, (2, 1.0)),
        ("dicom/bone", 30.0, (0, 1.787)),
        ("tiff/CMU-1-Small-Region.jpeg.tiff", 0.5, "0.00499"),
        ("tiff/yb10kx5k.zstd.tiff", 1.0, "352.858"),
    ],
)
def test_real_slides(shared_slides: Path, name: str, mpp: float, found: tuple[int, float] | str) -> None:
    path = slide_file(shared_slides, name)
    with sw.open_slide(path) as reader:
        own = reader.info
    if isinstance(found, str):
        with pytest.raises(SlideError, match=f"{found}.*hardly true of level 0"):
            chosen(own, slide=sw.Slide(path, "s"), mpp=mpp)
    else:
        resolution = chosen(own, slide=sw.Slide(path, "s"), mpp=mpp)
        assert (resolution.level, pytest.approx(resolution.zoom, abs=1e-3)) == found
