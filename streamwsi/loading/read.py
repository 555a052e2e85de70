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


def read_chunk(reader: SlideReader, resolved: ResolvedSlide, chunk: int, on_bad_region: OnBadRegion = "fail") -> BigChunk:
    """The windows of chunk number `chunk` with their pixels, as one region or packed, whichever is smaller.

    Raises RegionError when something cannot be read and `on_bad_region` is ``"fail"``; with ``"skip"``, windows that
    cannot be read on their own are flagged instead.
    """
    windows = resolved.grid().windows(resolved.chunks().indices(chunk))
    origin, extent = _bounding_box(windows)
    if extent[0] * extent[1] > int(windows.size.prod(axis=1).sum()):
        return _read_packed(reader, resolved, windows, on_bad_region)
    try:
        pixels = reader.read_region(resolved.level, *origin, *extent)
    except RegionError:
        if on_bad_region == "fail":
            raise
        return _read_packed(reader, resolved, windows, on_bad_region)
    return BigChunk(windows, pixels, origin, np.zeros(len(windows), bool))


def _read_packed(reader: SlideReader, resolved: ResolvedSlide, windows: Windows, on_bad_region: OnBadRegion) -> BigChunk:
    width, height = windows.size.max(axis=0).tolist()
    pixels = np.zeros((len(windows), height, width, 3), np.uint8)
    skipped = np.zeros(len(windows), bool)
    for row, window in enumerate(windows):
        try:
            pixels[row, : window.height, : window.width] = reader.read_region(
                resolved.level, window.start_x, window.start_y, window.width, window.height
            )
        except RegionError:
            if on_bad_region == "fail":
                raise
            skipped[row] = True
    return BigChunk(windows, pixels, None, skipped)


def _bounding_box(windows: Windows) -> tuple[tuple[int, int], tuple[int, int]]:
    """(x, y) and (width, height) of the smallest region that holds all windows, in pixels of the level read."""
    first = windows.start.min(axis=0)
    x, y = first.tolist()
    width, height = ((windows.start + windows.size).max(axis=0) - first).tolist()
    return (x, y), (width, height)
