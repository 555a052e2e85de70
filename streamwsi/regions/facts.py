"""What is known of the slide that a mask or a region lies on.

In: a slide, however it is given.  Out: its size and resolution.  Opens it only where it is given as a path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from streamwsi.dataset import Slide, SlideInfo
from streamwsi.errors import ConfigError
from streamwsi.microns import why_not_believed
from streamwsi.slides.reader import SlideReader, open_slide

SlideLike: TypeAlias = "str | os.PathLike[str] | Slide | SlideReader"
"""A slide's path, a slide of a dataset, or one that is open."""
Sized: TypeAlias = "SlideLike | SlideInfo | tuple[int, int]"
"""What says how large a slide is: the slide, what its reader says, or (width, height) in level-0 pixels."""


@contextmanager
def opened(slide: SlideLike) -> Iterator[SlideReader]:
    """The open slide; it is closed again where it was opened here."""
    if isinstance(slide, (str, os.PathLike)):
        with open_slide(slide) as reader:
            yield reader
    elif isinstance(slide, Slide):
        with open_slide(slide.path) as reader:
            yield reader
    elif hasattr(slide, "read_region"):
        yield slide
    else:
        raise ConfigError(f"a slide must be a path, a Slide, or one from open_slide, got {type(slide).__name__} {slide!r}")


def dimensions_of(slide: Sized) -> tuple[int, int]:
    """(width, height) of level 0."""
    if isinstance(slide, tuple):
        if len(slide) != 2 or not all(isinstance(side, int) and side > 0 for side in slide):
            raise ConfigError(f"the size of a slide must be (width, height) in level-0 pixels, both above 0, got {slide!r}")
        return slide
    if isinstance(slide, SlideInfo):
        return slide.dimensions
    if isinstance(slide, Slide) and slide.info is not None:
        return slide.info.dimensions
    with opened(slide) as reader:
        return reader.info.dimensions


def checked_mpp(info: SlideInfo, whose: str, way_out: str) -> tuple[float, float]:
    """(x, y) micrometres per level-0 pixel, if they can be believed; else ConfigError, with `way_out`."""
    why = why_not_believed(info.mpp, info.dimensions, info.power)
    if why is not None or info.mpp is None:
        raise ConfigError(f"{whose} {why}: {way_out}")
    return info.mpp
