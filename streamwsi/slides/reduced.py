"""A level, shrunk by a whole number, and the picture of a slide that is made so.

In: an open slide.  Out: a picture.  Memory follows the picture, not the level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from streamwsi.chunks import UInt8Array

if TYPE_CHECKING:
    from streamwsi.slides.reader import SlideReader

_BLOCK_PX = 2048
"""Side of the blocks that are read at once, about."""


def read_reduced(reader: SlideReader, level: int, factor: int) -> UInt8Array:
    """Means of blocks of factor × factor pixels of a level: (⌈height / factor⌉, ⌈width / factor⌉, 3) uint8, RGB.

    The last column and row are means of what is left of the level. Read block by block: a level of a slide without small ones
    may not fit into memory.

    Raises SlideError when the slide has no such level, RegionError when a part of it cannot be read.
    """
    width, height = reader.info.level_dimensions[level]
    step = max(_BLOCK_PX // factor, 1) * factor
    picture = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    for y in range(0, height, step):
        for x in range(0, width, step):
            block = reader.read_region(level, x, y, min(step, width - x), min(step, height - y))
            small = np.asarray(Image.fromarray(block).reduce(factor))
            picture[y // factor : y // factor + small.shape[0], x // factor : x // factor + small.shape[1]] = small
    return picture


def thumbnail_of(reader: SlideReader, longest_px: int) -> UInt8Array:
    """The whole slide, small; see :meth:`streamwsi.slides.reader.SlideReader.thumbnail`."""
    info = reader.info
    level = max(n for n, d in enumerate(info.level_downsamples) if d <= max(max(info.dimensions) / longest_px, 1))
    width, height = info.level_dimensions[level]
    picture = Image.fromarray(read_reduced(reader, level, max(max(width, height) // (2 * longest_px), 1)))
    picture.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    return np.array(picture)
