"""The resolution that a slide is read at.

In: what is asked for (a level, micrometres per pixel, a magnification), an open slide.  Out: a level, and how much coarser
it is read.  Reads no pixels.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Literal

from streamwsi.config import at_least
from streamwsi.dataset import Slide, SlideInfo
from streamwsi.errors import CollectorError, ConfigError, SlideError
from streamwsi.microns import GREATEST_MPP, LEAST_MPP, mpp_of_power, why_not_believed
from streamwsi.resolution import Resolution

Level = int | Callable[[Slide], int]
MissingMpp = float | Callable[[Slide], float] | Literal["error"]
TOLERANCE = 0.05
"""A level whose resolution is this near to the one asked for, as a share of it, is read as it is: slides of one scanner differ
by 1 or 2 % (0.2525 for 0.25), and what is not resampled is exact; 0.2265, which some scanners call 40× too, is resampled."""


class ChoiceError(CollectorError):
    """The user's code that chooses the level, the resolution or the windows raised; the cause is its exception."""


def choose_resolution(
    info: SlideInfo,
    slide: Slide,
    *,
    level: Level | None = None,
    mpp: float | None = None,
    magnification: float | None = None,
    missing_mpp: MissingMpp = "error",
    tolerance: float = TOLERANCE,
) -> Resolution:
    """The level that is read, and how much coarser: of a level that is near enough its own pixels, else of the next finer one.

    Parameters
    ----------
    info, slide
        What the reader says, and the slide, for messages and callables.
    level
        A level, or a callable that is given the opened slide and returns one.
    mpp
        Micrometres per pixel: the level nearest to it within `tolerance` is read as it is; else the coarsest level that is
        finer is resampled.
    magnification
        As `mpp`, by the slide's objective power; where it says none, by the convention that 10 / mpp is the magnification.
    missing_mpp
        What counts where the slide does not say its resolution, or one that cannot be believed: micrometres per level-0
        pixel, or a callable that is given the opened slide and returns them; ``"error"``: the slide fails.
    tolerance
        As a share of the resolution asked for: 0.05 is 5 %.

    Raises ConfigError unless exactly one of level, mpp and magnification is given; SlideError when the slide does not have
    it, or a callable says so with one; ChoiceError when a callable raises anything else.
    """
    given = {"level": level, "mpp": mpp, "magnification": magnification}
    if sum(value is not None for value in given.values()) != 1:
        raise ConfigError(f"give one of level=, mpp= and magnification=, got {given}")
    opened = Slide(slide.path, slide.id, info)
    if level is not None:
        return Resolution(_level(level, opened, info))
    if mpp is not None:
        return _at(info, opened, _mpp_of(info, opened, missing_mpp), mpp, "µm/px", tolerance)
    # powers and resolutions are each other's inverse: a level of 40× is like one of 1/40 µm, wherever the power is from
    own = 1 / _power_of(info, opened, missing_mpp)
    return _at(info, opened, own, 1 / above_0(magnification, "magnification"), "×", tolerance)


def above_0(value: Any, name: str) -> float:
    """`value` if it is a finite number above 0; else ConfigError."""
    if not math.isfinite(at_least(value, 0, name)) or value == 0:
        raise ConfigError(f"{name} must be above 0, got {value!r}")
    return float(value)


def check_missing_mpp(value: Any) -> MissingMpp:
    """``"error"``, a callable, or micrometres per level-0 pixel that a slide can have; else ConfigError."""
    if value == "error" or callable(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, str):
        raise ConfigError(f"missing_mpp must be 'error', micrometres per pixel, or a callable, got {value!r}")
    return _possible(above_0(value, "missing_mpp"), "missing_mpp")


def _possible(mpp: float, name: str) -> float:
    if not LEAST_MPP <= mpp <= GREATEST_MPP:
        raise ConfigError(f"{name} must be micrometres per level-0 pixel, from {LEAST_MPP:g} to {GREATEST_MPP:g}, got {mpp!r}")
    return mpp


def _at(info: SlideInfo, slide: Slide, own: float, wanted: float, unit: str, tolerance: float) -> Resolution:
    """The resolution `wanted` of a slide whose level 0 has `own`, both in micrometres per pixel, or the inverse of `unit`."""
    levels = [own * downsample for downsample in info.level_downsamples]
    off = [abs(side / wanted - 1) for side in levels]
    nearest = off.index(min(off))
    if off[nearest] <= tolerance:
        return Resolution(nearest)
    finer = [number for number, side in enumerate(levels) if side < wanted]
    if not finer:
        asked, has = (wanted, own) if unit != "×" else (1 / wanted, 1 / own)
        raise SlideError(
            f"{slide.path} has nothing as fine as {asked:g} {unit}: its level 0 has {has:.4g} {unit}, and pixels are not made "
            "up; ask for a coarser resolution, or give level= a number"
        )
    level = max(finer, key=lambda number: levels[number])
    return Resolution.of(level, wanted / levels[level])


def _mpp_of(info: SlideInfo, slide: Slide, missing_mpp: MissingMpp) -> float:
    """Micrometres per level-0 pixel: the slide's own where they can be believed, else those given for it."""
    why = why_not_believed(info.mpp, info.dimensions, info.power)
    if why is None and info.mpp is not None:
        x, y = info.mpp
        if abs(x - y) <= TOLERANCE * min(x, y):
            return math.sqrt(x * y)
        why = f"says that its pixels are not square, {x:g} × {y:g} µm"
    if missing_mpp == "error":
        raise SlideError(f"{slide.path} {why}: give missing_mpp= micrometres per level-0 pixel, or level= a number")
    if not callable(missing_mpp):
        return float(missing_mpp)
    given = _of_callable(missing_mpp, slide, "missing_mpp")
    try:
        return _possible(above_0(given, "missing_mpp"), "what the callable gives")
    except ConfigError as error:
        raise SlideError(f"{slide.path} {why}; {error}") from None


def _power_of(info: SlideInfo, slide: Slide, missing_mpp: MissingMpp) -> float:
    """The magnification of level 0: the slide's objective power; else by the convention, from its resolution."""
    power = info.power
    alone = info.mpp is not None and why_not_believed(info.mpp, info.dimensions) is None
    # a resolution that can be, but not with this power: nobody knows which of the two is wrong
    contradicted = alone and why_not_believed(info.mpp, info.dimensions, power) is not None
    if power is not None and 0 < power < math.inf and not contradicted:
        return power
    return mpp_of_power(_mpp_of(info, slide, missing_mpp))


def _level(level: Level, slide: Slide, info: SlideInfo) -> int:
    chosen: Any = _of_callable(level, slide, "level") if callable(level) else level
    try:
        number = operator.index(chosen)
    except TypeError:
        raise SlideError(f"slide {slide.id!r}: level must be an int, the callable gave {chosen!r}") from None
    if not 0 <= number < info.level_count:
        raise SlideError(f"{slide.path} has no level {number}: it has levels 0 to {info.level_count - 1}")
    return number


def _of_callable(function: Callable[[Slide], Any], slide: Slide, name: str) -> Any:
    try:
        return function(slide)
    except SlideError:  # the slide has nothing that fits: it fails, the others do not
        raise
    except Exception as error:
        raise ChoiceError(f"the {name} callable raised for slide {slide.id!r}") from error
