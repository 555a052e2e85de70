"""Where the tiles of a TIFF slide lie in its file.

In: a file, and what OpenSlide says of its levels.  Out: for each level the places of its tiles, and how they are decoded.
Reads directories, no pixels. The levels are OpenSlide's: a directory that it does not take for a level is none here either.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from streamwsi.dataset import SlideInfo
from streamwsi.slides.tile_codecs import TileDecoder, UnfitError, decoder_of

_VENDORS = ("aperio", "generic-tiff")
"""Formats, as OpenSlide calls them, whose levels are plain directories of a TIFF file."""


@dataclass(frozen=True, eq=False)
class TiffLevel:
    """One level: a grid of tiles."""

    extent: tuple[int, int]
    """(width, height) in pixels."""
    tile: tuple[int, int]
    """(width, height) of a tile in pixels; those at the edge reach beyond the level."""
    offsets: npt.NDArray[np.int64]
    """(rows, columns, parts): where in the file each part of a tile begins; parts is 1, or 3 where colours are kept apart."""
    sizes: npt.NDArray[np.int64]
    """(rows, columns, parts): bytes of each part."""
    empty: npt.NDArray[np.bool_]
    """(rows, columns): tiles without data, which are background."""
    foreign: npt.NDArray[np.bool_]
    """(rows, columns): tiles that OpenSlide makes from another level."""
    decode: TileDecoder

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        return self.empty.shape[0], self.empty.shape[1]


def tiff_levels(path: Path, info: SlideInfo) -> list[TiffLevel]:
    """The levels of a slide that OpenSlide has opened.

    Raises UnfitError, saying why, where they are not tiles that can be decoded one by one.
    """
    if info.vendor not in _VENDORS:
        raise UnfitError(f"its format is {info.vendor}")
    try:
        with tifffile.TiffFile(path) as file:
            directories = [page for page in file.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
            levels = [_level(_take(directories, info, number)) for number in range(info.level_count)]
    except UnfitError:
        raise
    except Exception as error:  # whatever tifffile cannot make of a file that OpenSlide has opened
        raise UnfitError(f"tifffile does not read it: {type(error).__name__}: {error}") from error
    if info.vendor == "aperio":
        _mark_foreign(levels)
    return levels


def _take(directories: list[Any], info: SlideInfo, number: int) -> Any:
    """Take the directory that is a level out of those that are left."""
    wanted = (*info.level_dimensions[number], *(info.tile_sizes[number] or (0, 0)))
    for place, page in enumerate(directories):
        if (page.imagewidth, page.imagelength, page.tilewidth, page.tilelength) == wanted:
            return directories.pop(place)
    raise UnfitError(f"no directory has the size and the tiles of level {number}: {wanted}")


def _level(page: Any) -> TiffLevel:
    if page.imagedepth != 1 or page.tiledepth != 1:
        raise UnfitError(f"it has {page.imagedepth} planes of depth")
    across, down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    parts = page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
    offsets, sizes = (
        np.asarray(values, np.int64).reshape(parts, down, across).transpose(1, 2, 0)
        for values in (page.dataoffsets, page.databytecounts)
    )
    empty = (sizes == 0).any(axis=2)
    return TiffLevel(
        extent=(page.imagewidth, page.imagelength),
        tile=(page.tilewidth, page.tilelength),
        offsets=offsets,
        sizes=sizes,
        empty=empty,
        foreign=np.zeros_like(empty),
        decode=decoder_of(page),
    )


def _mark_foreign(levels: list[TiffLevel]) -> None:
    """Below its finest level, Aperio's tiles without data are drawn from the level before, and so is what covers them.

    Source: OpenSlide 4, ``openslide-vendor-aperio.c``, ``propagate_missing_tile`` and ``render_missing_tile``.
    """
    for level, next_level in pairwise(levels):
        next_level.foreign[next_level.empty] = True
        next_level.empty[...] = False
        (down, across), (next_down, next_across) = level.shape, next_level.shape
        down_step, across_step = max(1, round(down / next_down)), max(1, round(across / next_across))
        for row, column in np.argwhere(level.empty | level.foreign).tolist():
            covered = min(row // down_step, next_down - 1), min(column // across_step, next_across - 1)
            next_level.foreign[covered] = True
