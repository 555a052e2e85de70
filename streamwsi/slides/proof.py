"""Whether tiles that are decoded directly have the pixels that OpenSlide gives.

In: an open slide.  Out: nothing, or an error that says where they differ.  Compares a few tiles of each level, at places where
OpenSlide copies pixels and does not resample them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, zip_longest

import numpy as np
import numpy.typing as npt

from streamwsi.errors import RegionError
from streamwsi.slides.openslide import is_exact
from streamwsi.slides.tiff import TiffReader, UndecodableError

_TILES = 3
"""Of each level, that are compared."""
_ATTEMPTS = 32
"""Tiles that are tried until so many could be compared: some cannot be read."""
_COMPARED_PX = 256
"""Side of what is compared of a tile, at most."""


class DifferingError(Exception):
    """The pixels are not OpenSlide's, or nothing could be compared."""


def prove(reader: TiffReader) -> None:
    """Compare tiles of each level with OpenSlide's pixels. Raises DifferingError where they differ, naming the place."""
    for number, level in enumerate(reader.levels):
        compared, trouble = 0, "it has no place that OpenSlide copies"
        for row, column, x, y in _places(reader, number):
            left, top = column * level.tile[0], row * level.tile[1]
            width = min(left + level.tile[0] - x, level.extent[0] - x, _COMPARED_PX)
            height = min(top + level.tile[1] - y, level.extent[1] - y, _COMPARED_PX)
            try:
                expected = reader.openslide.read_region(number, x, y, width, height)
                tile = reader.decode_tile(number, row, column)
            except (RegionError, UndecodableError) as error:  # a damaged tile proves nothing
                trouble = str(error)
                continue
            found = tile[y - top : y - top + height, x - left : x - left + width]
            if not np.array_equal(found, expected):
                most = int(np.abs(found.astype(np.int16) - expected).max())
                raise DifferingError(
                    f"pixels of level {number} at ({x}, {y}) differ from OpenSlide's by up to {most} grey levels"
                )
            compared += 1
            if compared == _TILES:
                break
        if not compared and not (level.empty | level.foreign).all():
            raise DifferingError(f"no tile of level {number} could be compared with OpenSlide's pixels: {trouble}")


def _places(reader: TiffReader, number: int) -> Iterator[tuple[int, int, int, int]]:
    """(row, column, x, y): tiles in which OpenSlide copies pixels, and from where on.

    One from each third of the level in turn, those of most bytes first: there is little to see where a tile is all background.
    """
    level, downsample = reader.levels[number], reader.info.level_downsamples[number]
    xs, ys = (_first_exact(*axis, downsample) for axis in zip(level.extent, level.tile, strict=True))
    tiles = np.argwhere(~level.empty & ~level.foreign & (xs >= 0) & (ys >= 0)[:, None])
    fullest = [
        third[_fullest_first(level.sizes[third[:, 0], third[:, 1]].sum(axis=1))] for third in np.array_split(tiles, _TILES)
    ]
    in_turn = chain.from_iterable(zip_longest(*(third[:_ATTEMPTS].tolist() for third in fullest)))
    for row, column in islice((tile for tile in in_turn if tile is not None), _ATTEMPTS):
        yield row, column, int(xs[column]), int(ys[row])


def _first_exact(extent_px: int, tile_px: int, downsample: float) -> npt.NDArray[np.int64]:
    """(tiles,): the first place of each tile along an axis at which OpenSlide copies pixels; -1 where it has none."""
    places = np.flatnonzero(is_exact(np.arange(extent_px, dtype=np.int64), downsample))
    starts = np.arange(0, extent_px, tile_px)
    found = places[np.minimum(np.searchsorted(places, starts), len(places) - 1)]
    return np.where((starts <= found) & (found < starts + tile_px), found, -1)


def _fullest_first(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Tiles in the order of their bytes; of equal ones those first that lie in the middle."""
    return np.lexsort((np.abs(np.arange(len(sizes)) - len(sizes) // 2), -sizes))
