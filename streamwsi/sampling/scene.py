"""What a sampler is told of a slide.

In: an open slide and what is read of it.  Out: a Scene.  Decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamwsi.dataset import Slide, SlideInfo
from streamwsi.errors import ConfigError
from streamwsi.geometry import Int64Array
from streamwsi.regions.mask import Float64Array
from streamwsi.slides.reader import SlideReader


@dataclass(frozen=True)
class Scene:
    """What a sampler is told of a slide: the level that windows are placed on, and the slide where a region must look at it."""

    slide: Slide
    """The slide, with ``info``: dimensions, mpp or None, and so on."""
    patient_id: str
    """Whose slide it is."""
    extent: tuple[int, int]
    """(width, height) of what is read, in its pixels."""
    downsample: float
    """Level-0 pixels per pixel of what is read; any number above 0, also below 1."""
    kernel: tuple[int, int]
    """(width, height) of a window, in pixels of what is read."""
    reader: SlideReader | None = None
    """The open slide, for regions that are found by looking; None: where one must look, the slide is opened by its path."""

    @property
    def info(self) -> SlideInfo:
        """What the reader says of the slide."""
        if self.slide.info is None:
            raise ConfigError(f"slide {self.slide.id!r} must carry what its reader says of it: Slide(path, id, reader.info)")
        return self.slide.info

    @property
    def room(self) -> tuple[int, int]:
        """(x, y): how many places a window has along each axis without reaching beyond the slide; 0 or below: none."""
        return self.extent[0] - self.kernel[0] + 1, self.extent[1] - self.kernel[1] + 1

    def boxes_l0(self, first: Int64Array, last: Int64Array) -> tuple[Float64Array, Float64Array]:
        """What windows cover that start anywhere from `first` to `last`, (n, 2) each: corners and sizes, in level-0 pixels.

        Levels are rounded to whole pixels, so that the last one may end a fraction of it beyond the slide; a window that lies
        inside the level lies inside the slide, and ends with it.
        """
        low, end = first.astype(np.float64), last + np.array(self.kernel)
        high = end * self.downsample
        high = np.where(end <= self.extent, np.minimum(high, self.info.dimensions), high)
        low *= self.downsample
        return low, np.maximum(high - low, np.finfo(np.float64).tiny)
