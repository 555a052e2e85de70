"""What a sampler is told of a slide.

In: an open slide, and what the run asks for.  Out: the same in one place.  Reads no pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamwsi.dataset import Slide
from streamwsi.slides.reader import SlideReader


@dataclass(frozen=True)
class Scene:
    """The level that windows are placed on, and the slide itself where a region must look at it."""

    slide: Slide
    """With what its reader says."""
    patient_id: str
    extent: tuple[int, int]
    """(width, height) of what is read, in its pixels."""
    downsample: float
    """Level-0 pixels per pixel of what is read."""
    kernel: tuple[int, int]
    """(width, height) of a window, in pixels of what is read."""
    reader: SlideReader | None = None
    """The open slide, for regions that are found in its pixels."""
