"""Where the tiles of a TIFF slide lie in its file.

In: a file, and what OpenSlide says of its levels.  Out: for each level the places of its tiles, and how they are decoded.
Reads directories, no pixels. The levels are OpenSlide's: a directory that it does not take for a level is none here either.
"""

from __future__ import annotations

import logging
import math
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
_NEW_SUBFILE_TYPE, _REDUCED = 254, 1

# What tifffile finds odd does not matter to who reads slides: that they are read right is proven. It is still there for those
# who set up logging.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


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
    """(rows, columns): tiles that are left to OpenSlide: those that it makes from another level, and those of absurd size."""
    decoder: TileDecoder

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
            directories = _of_levels(file, info)
            levels = [_level(directory) for directory in directories]
    except UnfitError:
        raise
    except Exception as error:  # whatever tifffile cannot make of a file that OpenSlide has opened
        raise UnfitError(f"its directories cannot be made out: {type(error).__name__}: {error}") from error
    if info.vendor == "aperio":
        _mark_foreign(levels)
    for level in levels:
        level.foreign[...] |= (level.sizes > _most_bytes(level.tile)).any(axis=2) & ~level.empty
    return levels


def _of_levels(file: tifffile.TiffFile, info: SlideInfo) -> list[Any]:
    """The directories that OpenSlide takes for levels, in its order.

    Source: OpenSlide 4, ``aperio_open`` in ``openslide-vendor-aperio.c``, ``generic_tiff_open`` in
    ``openslide-vendor-generic-tiff.c``.
    """
    pages: list[Any] = [page for page in file.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
    if info.vendor == "generic-tiff":
        pages = [page for page in pages if page.index == 0 or page.tags.valueof(_NEW_SUBFILE_TYPE, 0) & _REDUCED]
        pages.sort(key=lambda page: -page.imagewidth)
    found = [((page.imagewidth, page.imagelength), (page.tilewidth, page.tilelength)) for page in pages]
    expected = list(zip(info.level_dimensions, info.tile_sizes, strict=True))
    if found != expected:
        raise UnfitError(f"its directories have levels and tiles of {found}, expected {expected}")
    return pages


def _level(page: Any) -> TiffLevel:
    if page.imagedepth != 1 or page.tiledepth != 1:
        raise UnfitError(f"it has {page.imagedepth} planes of depth")
    across, down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    parts = page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
    if not len(page.dataoffsets) == len(page.databytecounts) == across * down * parts:
        raise UnfitError(
            f"it has {len(page.dataoffsets)} offsets and {len(page.databytecounts)} sizes of {across * down * parts} tiles"
        )
    offsets, sizes = (
        np.asarray(values, np.int64).reshape(parts, down, across).transpose(1, 2, 0)
        for values in (page.dataoffsets, page.databytecounts)
    )
    return TiffLevel(
        extent=(page.imagewidth, page.imagelength),
        tile=(page.tilewidth, page.tilelength),
        offsets=offsets,
        sizes=sizes,
        empty=sizes[..., 0] == 0,
        foreign=np.zeros((down, across), bool),
        decoder=decoder_of(page),
    )


def _most_bytes(tile: tuple[int, int]) -> int:
    """More than a tile takes in any compression: a file that says so is damaged, and what it says is not asked of memory."""
    return 4 * 3 * tile[0] * tile[1] + (1 << 16)


def _mark_foreign(levels: list[TiffLevel]) -> None:
    """Below its finest level, Aperio's tiles without data are drawn from the level before, and so is what covers them.

    What covers a tile is taken from how many tiles the levels have, and may be another one: OpenSlide counts on row by row.
    Source: OpenSlide 4, ``openslide-vendor-aperio.c``, ``propagate_missing_tile`` and ``render_missing_tile``.
    """
    for level, next_level in pairwise(levels):
        next_level.foreign[next_level.empty] = True
        next_level.empty[...] = False
        (down, across), (next_down, next_across) = level.shape, next_level.shape
        down_step, across_step = (math.floor(ratio + 0.5) for ratio in (down / next_down, across / next_across))
        rows, columns = np.nonzero(level.empty | level.foreign)
        covering = rows // max(down_step, 1) * next_across + columns // max(across_step, 1)
        next_level.foreign.ravel()[covering[covering < next_level.foreign.size]] = True
