"""The level of a slide that has a given resolution.

In: an open slide.  Out: the number of a level.  Never resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamwsi.config import at_least
from streamwsi.dataset import Slide
from streamwsi.errors import ConfigError, SlideError
from streamwsi.microns import why_not_believed


@dataclass(frozen=True)
class LevelAtMpp:
    """Chooses the level whose resolution is nearest to the one asked for: ``SlidingWindowLoader(level=LevelAtMpp(0.5))``.

    Parameters
    ----------
    mpp
        Micrometres per pixel, above 0: 0.25 is what is called 40×, 0.5 20×, 1.0 10×.
    tolerance
        How far off the level may be, as a share of `mpp`, in x and in y: 0.1 is 10 %.

    Windows are pixels of that level, as they are: nothing is resampled, which ``mpp=`` of the loader does. A slide none of
    whose levels is near enough fails, with what its levels have; the others go on.

    Raises ConfigError naming the value that cannot work.
    """

    mpp: float
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if at_least(self.mpp, 0, "mpp") == 0:
            raise ConfigError(f"mpp must be above 0 micrometres per pixel, got {self.mpp!r}")
        if not at_least(self.tolerance, 0, "tolerance") < 1:
            raise ConfigError(f"tolerance must be a share below 1 (0.1 is 10 %), got {self.tolerance!r}")

    def __str__(self) -> str:
        return f"level nearest to {self.mpp:g} µm/px, within {100 * self.tolerance:g} %"

    def __call__(self, slide: Slide) -> int:
        """The level; the finer one of two that are equally near. Raises SlideError where there is none."""
        way_out = "give level= a number"
        why = why_not_believed(slide.mpp, slide.dimensions, slide.power)
        if why is not None:
            raise SlideError(f"{slide.path} {why}, so that no level of {self.mpp:g} µm/px can be found: {way_out}")
        x, y = slide.mpp
        off = [max(abs(x * down / self.mpp - 1), abs(y * down / self.mpp - 1)) for down in slide.level_downsamples]
        nearest = off.index(min(off))
        if off[nearest] > self.tolerance:
            sides = (x,) if f"{x:.4g}" == f"{y:.4g}" else (x, y)
            levels = ", ".join(
                f"level {number} {' × '.join(f'{side * down:.4g}' for side in sides)}"
                for number, down in enumerate(slide.level_downsamples)
            )
            raise SlideError(
                f"{slide.path} has no level within {100 * self.tolerance:g} % of {self.mpp:g} µm/px; it has {levels} µm/px: "
                f"{way_out}, a larger tolerance, or let the loader resample it, with mpp= in place of level="
            )
        return nearest
