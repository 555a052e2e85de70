"""Slides that are tiled TIFF files, their tiles decoded directly.

In: a slide that OpenSlide has opened.  Out: level regions, RGB, exact everywhere.  What a slide is (levels, downsamples,
properties), how its damaged tiles fail and how its missing ones look is OpenSlide's; whatever is no plain tile is asked of it.

A tile is decoded once for all the windows that are read together, straight into its place where that is one piece of memory,
and else pasted there. Tiles that other chunks need too are kept in a cache.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from types import TracebackType

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.chunks import UInt8Array
from streamwsi.config import TILE_CACHE_BYTES
from streamwsi.errors import SlideError
from streamwsi.memory import empty_pixels
from streamwsi.slides.openslide import OpenSlideReader
from streamwsi.slides.reader import Part, Rectangle, TilesRead, fill
from streamwsi.slides.tiff_levels import TiffLevel, tiff_levels
from streamwsi.slides.tile_cache import TileCache
from streamwsi.slides.tile_codecs import ROOM_BYTES, UnfitError
from streamwsi.slides.tile_file import TileFile
from streamwsi.slides.tiles import place_of, sharing, targets, tiles_of

_log = logging.getLogger(__name__)
_READ_BYTES = 1 << 22
"""Of tiles that are read at once, at most."""
_Tile = tuple[int, int, UInt8Array]
"""(row, column, out): a tile, and where its pixels go, (tile height, tile width, 3)."""


class UndecodableError(Exception):
    """A tile that cannot be decoded directly, and why."""


class TiffReader:
    """A tiled TIFF slide; see :class:`streamwsi.slides.reader.SlideReader`.

    Takes over a slide that OpenSlide has opened, unless it raises UnfitError: its tiles cannot be decoded here.
    """

    def __init__(self, openslide: OpenSlideReader, cache: TileCache | None = None) -> None:
        self.openslide = openslide
        """The same slide through OpenSlide."""
        self.levels = tiff_levels(openslide.path, openslide.info)
        """Where the tiles of each level lie."""
        self.info = msgspec.structs.replace(openslide.info, reader="tiff")
        try:
            self._file: TileFile | None = TileFile(openslide.path)
        except OSError as error:
            raise UnfitError(f"it cannot be opened once more: {error.strerror}") from error
        self._cache = cache if cache is not None else TileCache(TILE_CACHE_BYTES)
        self._number = self._cache.new_owner()
        self._scratch = threading.local()
        self._lock = threading.Lock()
        self._decoded = 0
        self._shifted_px = 0.0
        self._seen = [np.zeros(level.shape, bool) for level in self.levels]

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
        if not 0 <= level < len(self.levels):
            raise SlideError(f"{self.openslide.path} has no level {level}: it has levels 0 to {len(self.levels) - 1}")
        file = self._file
        if file is None:
            raise SlideError(f"{self.openslide.path} is closed")
        whole, others = [], []
        for part in parts:
            tile = self._tile_that_is(level, part, own)
            if tile is None:
                others.append(part)
            else:
                whole.append((*tile, part[2]))
        if own is None and (others or len({tile[:2] for tile in whole}) < len(whole)):
            whole, others = [], list(parts)  # one may need what another is
        if whole:
            self._decode_all(file, level, whole)
        here = self.levels[level]
        for (row, column), users in tiles_of(here.extent, here.tile, others, self.openslide.background).items():
            self._paste(file, level, row, column, users, own)

    def decode_tile(self, level: int, row: int, column: int) -> UInt8Array:
        """A tile, (tile height, tile width, 3), without OpenSlide's help; what lies beyond the level is undefined.

        Raises UndecodableError where it has no data of its own, or they are damaged.
        """
        file = self._file
        if file is None:
            raise SlideError(f"{self.openslide.path} is closed")
        tile_w, tile_h = self.levels[level].tile
        return self._decode_directly(file, level, row, column, np.empty((tile_h, tile_w, 3), np.uint8))

    def resampled_px(self, level: int) -> float:
        """0, but for tiles that OpenSlide makes from others: where it cannot but resample them, their largest shift."""
        tile_w, tile_h = self.levels[level].tile
        places = np.argwhere(self.levels[level].foreign).tolist()
        shifts = (self.openslide.shift_px(level, column * tile_w, row * tile_h, (tile_h, tile_w)) for row, column in places)
        return max(shifts, default=0.0)

    def thumbnail(self, longest_px: int) -> UInt8Array:
        """The whole slide, small; see :meth:`SlideReader.thumbnail`."""
        return self.openslide.thumbnail(longest_px)

    def tiles_read(self) -> TilesRead:
        """How many tiles were decoded, and which; see :meth:`SlideReader.tiles_read`."""
        seen = np.concatenate([level.ravel() for level in self._seen])
        return TilesRead(self._decoded, np.packbits(seen).tobytes(), self._shifted_px)

    def close(self) -> None:
        """Let go of the file; reads that are under way end as if nothing had happened."""
        self._file = None
        self.openslide.close()
        self._cache.forget(self._number)

    def __enter__(self) -> TiffReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _tile_that_is(self, number: int, part: Part, own: Rectangle | None) -> tuple[int, int] | None:
        """(row, column) of the tile that a part is, no more and no less, if it can be decoded straight into its place."""
        level, (x, y, out) = self.levels[number], part
        tile_w, tile_h = level.tile
        (column, left), (row, top) = divmod(x, tile_w), divmod(y, tile_h)
        if left or top or out.shape != (tile_h, tile_w, 3) or not out.flags.c_contiguous or x < 0 or y < 0:
            return None
        if x + tile_w > level.extent[0] or y + tile_h > level.extent[1] or level.empty[row, column]:
            return None
        if own is not None and not (own[0] <= x and own[1] <= y and x + tile_w <= own[2] and y + tile_h <= own[3]):
            return None
        return row, column

    def _paste(self, file: TileFile, number: int, row: int, column: int, users: Sequence[Part], own: Rectangle | None) -> None:
        """Put a tile where it is wanted."""
        level = self.levels[number]
        place = place_of(level.extent, level.tile, row, column)
        wanted = targets(place, users)
        if level.empty[row, column]:
            for target, _, _ in wanted:
                fill(target, self.openslide.background)
            return
        shared = sharing(place, own)
        if shared is None:
            tile = self._decode(file, number, row, column, self._scratch_of(level))
        else:
            key = (self._number, number, row, column)
            decode = partial(self._decode, file, *key[1:])
            tile = self._cache.get_into(key, decode, (*level.tile[::-1], 3), not shared.rows, shared.chunks)
        for target, rows, columns in wanted:
            target[...] = tile[rows, columns]

    def _decode_all(self, file: TileFile, number: int, tiles: Sequence[_Tile]) -> None:
        """Decode tiles into their places, each as :meth:`_decode` does; those that follow one another are read at once."""
        level = self.levels[number]
        rows, columns = [row for row, _, _ in tiles], [column for _, column, _ in tiles]
        if level.offsets.shape[2] > 1 or level.foreign[rows, columns].any():
            for tile in tiles:
                self._decode(file, number, *tile)
            return
        places = list(zip(level.offsets[rows, columns, 0].tolist(), level.sizes[rows, columns, 0].tolist(), strict=True))
        for first, stop in _neighbours(places):
            self._decode_run(file, number, tiles[first:stop], places[first:stop])

    def _decode_run(self, file: TileFile, number: int, tiles: Sequence[_Tile], places: Sequence[tuple[int, int]]) -> None:
        """Decode tiles that lie in the file one after the other, at `places`, (offset, size)."""
        start, end = places[0][0], sum(places[-1])
        self._count(number, [row for row, _, _ in tiles], [column for _, column, _ in tiles])
        try:
            buffer = file.read_behind(ROOM_BYTES, start, end - start)
        except EOFError:  # OpenSlide says which are there
            for tile in tiles:
                self._through_openslide(number, *tile)
            return
        decode_within = self.levels[number].decoder.decode_within
        for (row, column, out), (offset, size) in zip(tiles, places, strict=True):
            first = ROOM_BYTES + offset - start
            try:
                decode_within(buffer, first, first + size, out)
            except Exception:  # noqa: BLE001 - codecs raise what they like; OpenSlide has the last word on a damaged tile
                self._through_openslide(number, row, column, out)

    def _decode(self, file: TileFile, number: int, row: int, column: int, out: UInt8Array) -> UInt8Array:
        """Decode a tile into `out`; OpenSlide makes those that are damaged, or made from others, or says what is wrong."""
        self._count(number, row, column)
        try:
            return self._decode_directly(file, number, row, column, out)
        except UndecodableError:
            return self._through_openslide(number, row, column, out)

    def _count(self, number: int, rows: int | list[int], columns: int | list[int]) -> None:
        with self._lock:
            self._decoded += 1 if isinstance(rows, int) else len(rows)
            self._seen[number][rows, columns] = True

    def _through_openslide(self, number: int, row: int, column: int, out: UInt8Array) -> UInt8Array:
        level = self.levels[number]
        left, top = column * level.tile[0], row * level.tile[1]
        width, height = min(level.tile[0], level.extent[0] - left), min(level.tile[1], level.extent[1] - top)
        shift = self.openslide.read_tile(number, left, top, out[:height, :width])
        if shift and not self._shifted_px:
            _log.warning(
                "%s: a tile of level %d at (%d, %d) that is not decoded directly is shifted by %.3f px, as others may be",
                self.openslide.path,
                number,
                left,
                top,
                shift,
            )
        self._shifted_px = max(self._shifted_px, shift)
        return out

    def _decode_directly(self, file: TileFile, number: int, row: int, column: int, out: UInt8Array) -> UInt8Array:
        level = self.levels[number]
        try:
            if level.foreign[row, column] or level.empty[row, column]:
                raise ValueError("it has no data of its own")
            places = zip(level.offsets[row, column].tolist(), level.sizes[row, column].tolist(), strict=True)
            level.decoder.decode([file.read(offset, size) for offset, size in places], out)
        except Exception as error:  # codecs raise what they like
            raise UndecodableError(f"level {number}, row {row}, column {column} of tiles: {error}") from error
        return out

    def _scratch_of(self, level: TiffLevel) -> npt.NDArray[np.uint8]:
        """Room for one tile, each thread's own."""
        tiles: dict[tuple[int, int], UInt8Array] = self._scratch.__dict__.setdefault("tiles", {})
        if level.tile not in tiles:
            tiles[level.tile] = empty_pixels((*level.tile[::-1], 3))
        return tiles[level.tile]


def _neighbours(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(first, stop) of places in a file, (offset, size), that follow one another, some MB at a time."""
    first = 0
    for number in range(1, len(places) + 1):
        if number < len(places):
            (offset, size), before = places[number], sum(places[number - 1])
            if offset == before and offset + size - places[first][0] <= _READ_BYTES:
                continue
        yield first, number
        first = number
