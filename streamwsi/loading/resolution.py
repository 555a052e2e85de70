"""The resolutions that a slide is read at.

In: what is asked for (levels, micrometres per pixel, a magnification), an open slide.  Out: levels, and how much coarser they
are read.  Reads no pixels.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import msgspec

from streamwsi.config import at_least
from streamwsi.dataset import Slide, SlideInfo
from streamwsi.errors import CollectorError, ConfigError, SlideError
from streamwsi.loading.level_at_mpp import LevelAtMpp
from streamwsi.microns import GREATEST_MPP, LEAST_MPP, mpp_of_power, why_not_believed
from streamwsi.resolution import MOST_ZOOM, Resolution

Level = int | Callable[[Slide], int]
MissingMpp = float | Callable[[Slide], float] | Literal["error"]
TOLERANCE = 0.05
"""A level whose resolution is this near to the one asked for, as a share of it, is read as it is: slides of one scanner differ
by 1 or 2 % (0.2525 for 0.25), and what is not resampled is exact; 0.2265, which some scanners call 40× too, is resampled."""
_GIVE_MISSING = "give missing_mpp= micrometres per level-0 pixel, or level= a number"


class ChoiceError(CollectorError):
    """The user's code that chooses the level, the resolution or the windows raised; the cause is its exception."""


@dataclass(frozen=True)
class Wanted:
    """The resolutions that are asked for, in one of five ways; :meth:`of` checks them."""

    level: Level | None = None
    mpp: float | None = None
    magnification: float | None = None
    levels: tuple[int, ...] | None = None
    mpps: tuple[float, ...] | None = None
    missing_mpp: MissingMpp = "error"

    @classmethod
    def of(
        cls,
        level: Any = None,
        mpp: Any = None,
        magnification: Any = None,
        levels: Any = None,
        mpps: Any = None,
        missing_mpp: Any = "error",
    ) -> Wanted:
        """What a user asks for, checked; of nothing, level 0. Raises ConfigError naming the value that cannot work."""
        given = {"level": level, "mpp": mpp, "magnification": magnification, "levels": levels, "mpps": mpps}
        named = [f"{name}={value!r}" for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise ConfigError(f"give one of level=, mpp=, magnification=, levels= and mpps=, got {' and '.join(named)}")
        return cls(
            level=0 if not named else None if level is None else _check_level(level, "level"),
            mpp=None if mpp is None else _above_0(mpp, "mpp"),
            magnification=None if magnification is None else _above_0(magnification, "magnification"),
            levels=None if levels is None else _ascending(levels, "levels", _check_number),
            mpps=None if mpps is None else _ascending(mpps, "mpps", _above_0),
            missing_mpp=_check_missing_mpp(missing_mpp),
        )

    @property
    def count(self) -> int:
        """How many resolutions there are for each window."""
        return len(self.levels or self.mpps or (None,))

    @property
    def is_several(self) -> bool:
        """Windows have an axis of resolutions, of one of them too."""
        return self.levels is not None or self.mpps is not None

    def believed(self, info: SlideInfo, slide: Slide) -> SlideInfo:
        """What the reader says of a slide, with `missing_mpp` where its resolution is missing or cannot be believed, and
        without an objective power that contradicts it.

        Raises SlideError when a callable gives what cannot be, or says with one that the slide is not to be used; ChoiceError
        when it raises anything else.
        """
        why = _why_not(info)
        if why is None or self.missing_mpp == "error":
            return info
        mpp = self.missing_mpp
        if callable(mpp):
            try:
                mpp = _possible(_of_callable(mpp, Slide(slide.path, slide.id, info), "missing_mpp"), "what missing_mpp gives")
            except ConfigError as error:
                raise SlideError(f"{slide.path} {why}; {error}") from None
        contradicted = why_not_believed((mpp, mpp), None, info.power) is not None
        return msgspec.structs.replace(info, mpp=(mpp, mpp), power=None if contradicted else info.power)

    def choose(self, info: SlideInfo, slide: Slide, tolerance: float = TOLERANCE) -> tuple[Resolution, ...]:
        """The resolutions of a slide, the finest first; `info` is what :meth:`believed` gives.

        Of a level that is within `tolerance` of a resolution, as a share of it, its own pixels are read; else the coarsest
        level that is finer is resampled.

        Raises SlideError when the slide does not have what is asked for, or a callable says so with one; ChoiceError when a
        callable raises anything else.
        """
        if self.levels is not None:
            return tuple(Resolution(_existing(level, slide, info)) for level in self.levels)
        if self.level is not None:
            return (Resolution(_level(self.level, Slide(slide.path, slide.id, info), info)),)
        if self.magnification is not None:
            # powers are the inverse of resolutions: a level of 40× is like one of 1/40 µm, wherever the power is from
            return (_at(info, slide, 1 / _power(info, slide), 1 / self.magnification, "×", tolerance),)
        own = _mpp(info, slide)
        wanted = self.mpps or (() if self.mpp is None else (self.mpp,))
        return tuple(_at(info, slide, own, mpp, "µm/px", tolerance) for mpp in wanted)

    def describe(self) -> dict[str, Any]:
        """The fields that decide what is read, as they stand in ``run.json``, but for those that nobody has given."""
        described: dict[str, Any] = {"level": 0 if self.level is None else _level_name(self.level)}
        for name in ("mpp", "magnification", "levels", "mpps"):
            if (value := getattr(self, name)) is not None:
                described[name] = value
        if self.missing_mpp != "error":
            described["missing_mpp"] = source_of(self.missing_mpp) if callable(self.missing_mpp) else self.missing_mpp
        return described


def _check_level(value: Any, name: str) -> Level:
    return value if callable(value) else _check_number(value, name)


def _check_number(value: Any, name: str) -> int:
    at_least(value, 0, name)
    if not isinstance(value, int):
        raise ConfigError(f"{name} must be an int or a callable, got {value!r}")
    return value


def _above_0(value: Any, name: str) -> float:
    if at_least(value, 0, name) == 0:
        raise ConfigError(f"{name} must be above 0, got {value!r}")
    return float(value)


def _ascending(values: Any, name: str, check: Callable[[Any, str], Any]) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ConfigError(f"{name} must be a list of numbers, got {values!r}")
    checked = tuple(check(value, f"each of {name}") for value in values)
    if any(one >= other for one, other in pairwise(checked)):
        raise ConfigError(f"{name} must be different, the finest first, as {sorted(set(checked))}, got {values!r}")
    return checked


def _check_missing_mpp(value: Any) -> MissingMpp:
    if value == "error" or callable(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, str):
        raise ConfigError(f"missing_mpp must be 'error', micrometres per level-0 pixel, or a callable, got {value!r}")
    return _possible(value, "missing_mpp")


def _possible(mpp: Any, name: str) -> float:
    if not LEAST_MPP <= _above_0(mpp, name) <= GREATEST_MPP:
        raise ConfigError(f"{name} must be micrometres per level-0 pixel, from {LEAST_MPP:g} to {GREATEST_MPP:g}, got {mpp!r}")
    return float(mpp)


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
    if wanted / levels[level] > MOST_ZOOM:
        asked, has = (wanted, levels[level]) if unit != "×" else (1 / wanted, 1 / levels[level])
        raise SlideError(
            f"{slide.path} is not read at {asked:g} {unit}: that is more than {MOST_ZOOM} times as coarse as its level {level}"
            f", of {has:.4g} {unit}"
        )
    return Resolution.of(level, wanted / levels[level])


def _why_not(info: SlideInfo) -> str | None:
    """Why a slide's resolution cannot be used; None: it can."""
    why = why_not_believed(info.mpp, info.dimensions, info.power)
    if why is None and info.mpp is not None and max(info.mpp) > (1 + TOLERANCE) * min(info.mpp):
        return f"says that its pixels are not square, {info.mpp[0]:g} × {info.mpp[1]:g} µm"
    return why


def _mpp(info: SlideInfo, slide: Slide) -> float:
    """Micrometres per level-0 pixel."""
    why = _why_not(info)
    if why is not None or info.mpp is None:
        raise SlideError(f"{slide.path} {why}: {_GIVE_MISSING}")
    return math.sqrt(info.mpp[0] * info.mpp[1])


def _power(info: SlideInfo, slide: Slide) -> float:
    """The magnification of level 0: the slide's objective power; else by the convention, from its resolution."""
    power = info.power
    possible = why_not_believed(info.mpp, info.dimensions) is None
    # a resolution that can be, but not with this power: which of the two is wrong nobody knows
    contradicted = possible and why_not_believed(info.mpp, info.dimensions, power) is not None
    if power is not None and 0 < power < math.inf and not contradicted:
        return power
    return mpp_of_power(_mpp(info, slide))


def _level(level: Level, slide: Slide, info: SlideInfo) -> int:
    chosen: Any = _of_callable(level, slide, "level") if callable(level) else level
    try:
        return _existing(operator.index(chosen), slide, info)
    except TypeError:
        raise SlideError(f"slide {slide.id!r}: level must be an int, the callable gave {chosen!r}") from None


def _existing(level: int, slide: Slide, info: SlideInfo) -> int:
    if not 0 <= level < info.level_count:
        raise SlideError(f"{slide.path} has no level {level}: it has levels 0 to {info.level_count - 1}")
    return level


def _of_callable(function: Callable[[Slide], Any], slide: Slide, name: str) -> Any:
    try:
        return function(slide)
    except SlideError:  # the slide has nothing that fits: it fails, the others do not
        raise
    except Exception as error:
        raise ChoiceError(f"the {name} callable raised for slide {slide.id!r}") from error


def _level_name(level: Level) -> int | str:
    """What stands for the level in ``run.json``: itself, or the source of the callable that chooses it."""
    if not callable(level):
        return level
    return str(level) if isinstance(level, LevelAtMpp) else source_of(level)


def source_of(function: Callable[..., Any]) -> str:
    """What stands for a callable in ``run.json``: its source, or its name where that is not to be had."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = repr(getattr(function, "__qualname__", type(function).__name__))
    return f"callable: {' '.join(source.split())}"
