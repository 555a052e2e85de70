"""Slides that are arrays: Zarr, OME-Zarr, HDF5, NumPy.

In: the path of one.  Out: level regions, RGB, exact everywhere.  A chunk that was never written holds the array's fill value;
only what lies outside the level is background.  Nothing here guesses what a value means: pixels are uint8, RGB or grey.

Storage is read chunk by chunk, each once for all the windows that are read together; what other regions need too is kept.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from streamwsi.addresses import parse_address
from streamwsi.chunks import UInt8Array
from streamwsi.config import TILE_CACHE_BYTES
from streamwsi.dataset import SlideInfo
from streamwsi.errors import RegionError, SlideError
from streamwsi.slides.array_files import open_arrays
from streamwsi.slides.array_level import ArrayLevel
from streamwsi.slides.reader import Part, Rectangle, TilesRead
from streamwsi.slides.reduced import thumbnail_of
from streamwsi.slides.tile_cache import TileCache
from streamwsi.slides.tiles import inside, place_of, sharing, targets, tiles_of


class ArrayReader:
    """An array, or a pyramid of them; see :class:`streamwsi.slides.reader.SlideReader`.

    `path` may say what of a file is meant, see :mod:`streamwsi.addresses`. Raises SlideError where it is no picture.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        background: tuple[int, int, int] = (255, 255, 255),
        cache: TileCache | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.background = background
        opened = open_arrays(parse_address(path), ArrayLevel)
        self._levels: tuple[ArrayLevel, ...] | None = opened.levels
        self.info = SlideInfo(
            level_dimensions=tuple(level.extent for level in opened.levels),
            level_downsamples=opened.downsamples,
            mpp=opened.mpp,
            power=None,
            vendor=opened.vendor,
            tile_sizes=tuple(level.tile for level in opened.levels),
            associated_images=(),
            reader="array",
        )
        self._cache = cache if cache is not None else TileCache(TILE_CACHE_BYTES)
        self._owner = self._cache.new_owner()
        self._lock = threading.Lock()
        self._decoded = 0
        self._seen = [_unseen(level) for level in opened.levels]

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8Array:
        """The level's own pixels; see :meth:`SlideReader.read_region`."""
        pixels = np.empty((height, width, 3), np.uint8)
        self.read_parts(level, [(x, y, pixels)])
        return pixels

    def read_into(self, level: int, x: int, y: int, out: UInt8Array) -> None:
        """The level's own pixels into `out`; see :meth:`SlideReader.read_into`."""
        self.read_parts(level, [(x, y, out)])

    def read_parts(self, level: int, parts: Sequence[Part], own: Rectangle | None = None) -> None:
        """Several regions at once; see :meth:`SlideReader.read_parts`."""
        levels = self._levels
        if levels is None:
            raise SlideError(f"{self.path} is closed")
        if not 0 <= level < len(levels):
            raise SlideError(f"{self.path} has no level {level}: it has levels 0 to {len(levels) - 1}")
        here = levels[level]
        if here.tile is None:
            for part in parts:
                left, top, right, bottom = place = inside(here.extent, part, self.background)
                if left < right and top < bottom:
                    x, y, out = part
                    out[top - y : bottom - y, left - x : right - x] = self._read(here, level, place)
            return
        for (row, column), users in tiles_of(here.extent, here.tile, parts, self.background).items():
            place = place_of(here.extent, here.tile, row, column)
            tile = self._tile(here, level, (row, column), place, own)
            for target, rows, columns in targets(place, users):
                target[...] = tile[rows, columns]

    def resampled_px(self, level: int) -> float:
        """0: arrays are never resampled."""
        return 0.0

    def thumbnail(self, longest_px: int) -> UInt8Array:
        """The whole slide, small; see :meth:`SlideReader.thumbnail`."""
        return thumbnail_of(self, longest_px)

    def tiles_read(self) -> TilesRead | None:
        """How many chunks were read, and which; None where the storage has none."""
        if not any(len(level) for level in self._seen):
            return None
        seen = np.concatenate([level.ravel() for level in self._seen])
        return TilesRead(self._decoded, np.packbits(seen).tobytes())

    def close(self) -> None:
        """Let go of the files; reads that are under way end as if nothing had happened."""
        self._levels = None
        self._cache.forget(self._owner)

    def __enter__(self) -> ArrayReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _tile(
        self, here: ArrayLevel, number: int, tile: tuple[int, int], place: Rectangle, own: Rectangle | None
    ) -> UInt8Array:
        """What is read at once, counted; kept where others need it too."""

        def read() -> UInt8Array:
            with self._lock:
                self._decoded += 1
                self._seen[number][tile] = True
            return self._read(here, number, place)

        shared = sharing(place, own)
        if shared is None:
            return read()
        return self._cache.get((self._owner, number, *tile), read, not shared.rows, shared.chunks)

    def _read(self, here: ArrayLevel, number: int, place: Rectangle) -> UInt8Array:
        try:
            return here.read(place)
        except Exception as error:  # codecs raise what they like
            left, top, right, bottom = place
            raise RegionError(
                f"{self.path}: level {number} cannot be read at {(left, top)} (pixels of the level), "
                f"{right - left} x {bottom - top} px: {type(error).__name__}: {error}"
            ) from error


def _unseen(level: ArrayLevel) -> np.ndarray:
    """(rows, columns) bool of what is read at once, nothing of which was."""
    if level.tile is None:
        return np.zeros((0, 0), bool)
    (width, height), (tile_w, tile_h) = level.extent, level.tile
    return np.zeros((-(-height // tile_h), -(-width // tile_w)), bool)
