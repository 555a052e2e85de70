"""Read one big chunk.

In: an open slide, what it was resolved to, a chunk's number.  Out: a BigChunk.  Never opens a slide or a socket.
"""

from __future__ import annotations

import numpy as np

from streamwsi.chunks import BigChunk
from streamwsi.config import OnBadRegion
from streamwsi.errors import RegionError
from streamwsi.geometry import Windows
from streamwsi.resolved import ResolvedSlide
from streamwsi.slides.reader import SlideReader


def read_chunk(reader: SlideReader, resolved: ResolvedSlide, number: int, on_bad_region: OnBadRegion = "fail") -> BigChunk:
    """The windows of chunk `number` with their pixels, as one region or packed, whichever is smaller.

    Raises RegionError when something cannot be read and `on_bad_region` is ``"fail"``; with ``"skip"``, windows that
    cannot be read on their own are flagged instead.
    """
    windows = resolved.grid().windows(resolved.chunks().indices(number))
    origin, extent = _bounding_box(windows)
    dense = extent[0] * extent[1] <= int(windows.size.prod(axis=1).sum())
    if dense:
        try:
            pixels = reader.read_region(resolved.level, *origin, *extent)
        except RegionError:
            if on_bad_region == "fail":
                raise
        else:
            return BigChunk(windows, pixels, origin, np.zeros(len(windows), bool))
    width, height = windows.size.max(axis=0).tolist()
    empty = np.zeros((extent[1], extent[0], 3) if dense else (len(windows), height, width, 3), np.uint8)
    chunk = BigChunk(windows, empty, origin if dense else None, np.zeros(len(windows), bool))
    _read_each(reader, resolved.level, chunk, on_bad_region)
    return chunk


def _read_each(reader: SlideReader, level: int, chunk: BigChunk, on_bad_region: OnBadRegion) -> None:
    """Read the windows of a chunk one by one into its pixels; flag those that cannot be read."""
    for row, window in enumerate(chunk.windows):
        try:
            chunk.pixels_of(row)[...] = reader.read_region(level, window.start_x, window.start_y, window.width, window.height)
        except RegionError:
            if on_bad_region == "fail":
                raise
            chunk.skipped[row] = True


def _bounding_box(windows: Windows) -> tuple[tuple[int, int], tuple[int, int]]:
    """(x, y) and (width, height) of the smallest region that holds all windows, in pixels of the level read."""
    first = windows.start.min(axis=0)
    x, y = first.tolist()
    width, height = ((windows.start + windows.size).max(axis=0) - first).tolist()
    return (x, y), (width, height)
