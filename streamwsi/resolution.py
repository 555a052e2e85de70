"""A level of a slide, and how much coarser it is read: a virtual level.

In: what was chosen.  Out: its extent and downsample.  Never opens a slide or resamples.
"""

from __future__ import annotations

import msgspec

from streamwsi.dataset import SlideInfo

ZOOM_STEPS = 4096
"""A zoom is a whole number of 1/4096: then places in pixels of the level are exact in the arithmetic of whoever resamples, and
a pixel does not depend on what is read with it. It is less than 0.013 % from what was asked for, which no scanner is as exact
as."""

MOST_ZOOM = 800
"""A pixel of the virtual level is made of up to 5 times as many of the level to each side, which are resampled at once: more is
not exact any more, and takes memory with its square."""


class Resolution(msgspec.Struct, frozen=True):
    """A level and a zoom: the level's image, resampled in one step to a virtual level that is `zoom` times coarser."""

    level: int
    """The level read; 0 is the finest."""
    zoom: float = 1.0
    """Pixels of the level per pixel of what is read; 1: the level's own pixels. Use :meth:`of` for one that is not exact."""

    @classmethod
    def of(cls, level: int, zoom: float) -> Resolution:
        """A resolution with the nearest zoom that is exact."""
        return cls(level, max(round(zoom * ZOOM_STEPS), 1) / ZOOM_STEPS)

    def extent(self, info: SlideInfo) -> tuple[int, int]:
        """(width, height) of the virtual level, in its pixels."""
        width, height = info.level_dimensions[self.level]
        return (width, height) if self.zoom == 1 else (max(round(width / self.zoom), 1), max(round(height / self.zoom), 1))

    def downsample(self, info: SlideInfo) -> float:
        """Level-0 pixels per pixel of the virtual level."""
        return info.level_downsamples[self.level] * self.zoom
