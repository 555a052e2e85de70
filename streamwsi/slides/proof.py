"""Whether tiles that are decoded directly have the pixels that OpenSlide gives.

In: an open slide.  Out: nothing, or an error that says where they differ.  Compares a few tiles of each level, at places where
OpenSlide copies pixels and does not resample them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from streamwsi.errors import RegionError
from streamwsi.slides.openslide import is_exact
from streamwsi.slides.tiff import TiffReader

_TILES = 3
"""Of each level, that are compared."""
_ATTEMPTS = 32
"""Tiles that are tried until so many could be compared: some cannot be read, or hold no place that is exact."""
_COMPARED_PX = 256
"""Side of what is compared of a tile, at most."""


class DifferingError(Exception):
    """The pixels are not OpenSlide's, or nothing could be compared."""


def prove(reader: TiffReader) -> None:
    """Compare tiles of each level with OpenSlide's pixels. Raises DifferingError where they differ, naming the place."""
    for level in range(reader.info.level_count):
        compared = 0
        for x, y, width, height in _places(reader, level):
            try:
                expected = reader.openslide.read_region(level, x, y, width, height)
                found = reader.read_region(level, x, y, width, height)
            except RegionError:
                continue  # a damaged tile proves nothing
            if not np.array_equal(found, expected):
                most = int(np.abs(found.astype(np.int16) - expected).max())
                raise DifferingError(
                    f"pixels of level {level} at ({x}, {y}) differ from OpenSlide's by up to {most} grey levels"
                )
            compared += 1
            if compared == _TILES:
                break
        if not compared:
            raise DifferingError(f"none of the tiles of level {level} could be compared with OpenSlide's pixels")
    reader.count_afresh()


def _places(reader: TiffReader, number: int) -> Iterator[tuple[int, int, int, int]]:
    """(x, y, width, height) of what can be compared, in tiles all over the level."""
    level, downsample = reader.levels[number], reader.info.level_downsamples[number]
    tiles = np.argwhere(~level.empty & ~level.foreign)
    some = range(0, len(tiles), -(-len(tiles) // _ATTEMPTS) or 1)
    for row, column in tiles[_from_all_over([*some[:-1], len(tiles) - 1] if some else [])].tolist():
        left, top = column * level.tile[0], row * level.tile[1]
        right, bottom = min(left + level.tile[0], level.extent[0]), min(top + level.tile[1], level.extent[1])
        xs, ys = (_exact(first, last, downsample) for first, last in ((left, right), (top, bottom)))
        if len(xs) and len(ys):
            x, y = int(xs[0]), int(ys[0])
            yield x, y, min(right - x, _COMPARED_PX), min(bottom - y, _COMPARED_PX)


def _exact(first: int, last: int, downsample: float) -> npt.NDArray[np.int64]:
    places = np.arange(first, last, dtype=np.int64)
    return places[is_exact(places, downsample)]


def _from_all_over(left: list[int]) -> list[int]:
    """The middle first, then both ends, then what lies between."""
    picked: list[int] = []
    while left:
        picked.append(left.pop((len(left) // 2, -1, 0)[len(picked) % 3]))
    return picked
