"""What every reader of slides does, and how one is chosen.

In: a path.  Out: a SlideReader.  Readers give the level's own pixels; nothing here knows of windows or chunks.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Protocol

import numpy as np

from streamwsi.chunks import UInt8Array
from streamwsi.dataset import SlideInfo
from streamwsi.errors import ConfigError

READERS = ("auto", "openslide")
"""Names that :func:`open_slide` knows."""


class SlideReader(Protocol):
    """An open slide. Reads may come from several threads at once. Closing twice is harmless."""

    @property
    def info(self) -> SlideInfo:
        """What the reader says of the slide."""
        ...

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8Array:
        """The level's own pixels: exactly ``level_image[y:y+height, x:x+width]``.

        Parameters
        ----------
        level
            0 is the finest.
        x, y, width, height
            In pixels of the level; may reach outside it, where pixels are the background colour.

        Returns
        -------
        (height, width, 3) uint8, RGB, writable; transparent pixels are composed over the background colour.

        Raises
        ------
        SlideError
            The slide has no such level.
        RegionError
            The region cannot be read, on a fresh handle too. Other regions still can: the reader reopens what it must.
        """
        ...

    def read_into(self, level: int, x: int, y: int, out: UInt8Array) -> None:
        """As `read_region`, into an array that is there already: no copy in between.

        Parameters
        ----------
        level, x, y
            As for `read_region`.
        out
            (height, width, 3) uint8, RGB; its last two axes contiguous, its rows anywhere. All of it is written, the
            background too.

        Raises
        ------
        SlideError, RegionError
            As `read_region`. What `out` then holds is undefined.
        """
        ...

    def resampled_px(self, level: int) -> float:
        """Largest shift, in pixels of the level, of what `read_region` gives against the level read whole; 0: exact."""
        ...

    def thumbnail(self, longest_px: int) -> UInt8Array:
        """(height, width, 3) uint8, RGB: the whole slide, its longer side `longest_px` pixels or its own, if smaller."""
        ...

    def close(self) -> None:
        """Release handles and memory."""
        ...

    def __enter__(self) -> SlideReader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_slide(
    path: str | os.PathLike[str], reader: str = "auto", background: tuple[int, int, int] = (255, 255, 255)
) -> SlideReader:
    """Open a slide with the reader called `reader` (``auto``: the one that fits).

    Raises SlideError when the slide is missing or cannot be opened, ConfigError for an unknown reader.
    """
    if reader not in READERS:
        raise ConfigError(f"reader must be one of {', '.join(READERS)}, got {reader!r}")
    from streamwsi.slides.openslide import OpenSlideReader

    return OpenSlideReader(path, background)


def blank(width: int, height: int, background: tuple[int, int, int]) -> UInt8Array:
    """(height, width, 3) uint8 of the background colour."""
    pixels = np.empty((height, width, 3), np.uint8)
    fill(pixels, background)
    return pixels


def fill(pixels: UInt8Array, background: tuple[int, int, int]) -> None:
    """Make all of `pixels`, (height, width, 3) uint8, the background colour."""
    for channel, value in enumerate(background):  # a fifth of the time that all channels at once take
        pixels[..., channel] = value
