"""Slides through OpenSlide.

In: a path.  Out: level regions, RGB, exact at fractional downsamples too.  Never shares a handle that has failed.

OpenSlide addresses regions in level-0 pixels, and resamples a region whose first pixel is not a whole pixel of the level:
up to 86 grey levels off at single pixels. Cairo, which does that work, keeps positions to 1/256 of a pixel, and a position
within half of that of a whole pixel is copied, not resampled. So a read begins at the last place before the wanted one that
is that close to a whole pixel, and the surplus is cut off.
Source: cairo, ``_cairo_fixed_from_double`` and ``_cairo_matrix_is_pixel_exact``; OpenSlide 4, ``openslide_read_region``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import openslide
from PIL import Image

from streamwsi.chunks import UInt8Array
from streamwsi.dataset import SlideInfo
from streamwsi.errors import RegionError, SlideError
from streamwsi.slides.argb import read_argb, store_rgb
from streamwsi.slides.reader import Part, Rectangle, TilesRead, fill
from streamwsi.slides.reduced import thumbnail_of

_EXACT_PX = 0.95 / 512
"""A region that begins this close to a whole pixel of the level is copied as it is."""
_SEARCH_PX = 512
"""How far before the wanted place an exact one is looked for."""
_FAR_PX = 1 << 22
"""What may be read at once for the sake of a single tile."""
_LARGEST_READ_PX = 4096
"""OpenSlide cuts larger regions into pieces of this size itself, and those begin at fractional places again."""


class OpenSlideReader:
    """A slide opened with OpenSlide; see :class:`streamwsi.slides.reader.SlideReader`."""

    def __init__(self, path: str | os.PathLike[str], background: tuple[int, int, int] = (255, 255, 255)) -> None:
        self.path = Path(path)
        self.background = background
        self._lock = threading.Lock()
        self._closed = False
        self._handle: openslide.OpenSlide | None = self._open()
        self.info = _describe(self._handle)

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8Array:
        """The level's own pixels; see :meth:`SlideReader.read_region`."""
        pixels = np.empty((height, width, 3), np.uint8)
        self.read_into(level, x, y, pixels)
        return pixels

    def read_into(self, level: int, x: int, y: int, out: UInt8Array) -> None:
        """The level's own pixels, into `out`; see :meth:`SlideReader.read_into`."""
        if not 0 <= level < self.info.level_count:
            raise SlideError(f"{self.path} has no level {level}: it has levels 0 to {self.info.level_count - 1}")
        height, width = out.shape[:2]
        level_width, level_height = self.info.level_dimensions[level]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, level_width), min(y + height, level_height)
        if (left, top, right, bottom) != (x, y, x + width, y + height):
            fill(out, self.background)
        step = _LARGEST_READ_PX - _SEARCH_PX
        for part_y in range(top, bottom, step):
            for part_x in range(left, right, step):
                part_w, part_h = min(step, right - part_x), min(step, bottom - part_y)
                part = out[part_y - y : part_y - y + part_h, part_x - x : part_x - x + part_w]
                self._read_exact(level, part_x, part_y, part)

    def read_parts(self, level: int, parts: Sequence[Part], own: Rectangle | None = None) -> None:
        """Several regions at once; see :meth:`SlideReader.read_parts`.

        Neighbours are read as one region, which is faster, where that is not larger than they are together.
        """
        if not parts:
            return
        left, top = min(x for x, _, _ in parts), min(y for _, y, _ in parts)
        right = max(x + out.shape[1] for x, _, out in parts)
        bottom = max(y + out.shape[0] for _, y, out in parts)
        if len(parts) > 1 and (right - left) * (bottom - top) <= sum(out.shape[0] * out.shape[1] for _, _, out in parts):
            region = self.read_region(level, left, top, right - left, bottom - top)
            for x, y, out in parts:
                out[...] = region[y - top : y - top + out.shape[0], x - left : x - left + out.shape[1]]
        else:
            for x, y, out in parts:
                self.read_into(level, x, y, out)

    def read_tile(self, level: int, x: int, y: int, out: UInt8Array) -> float:
        """As :meth:`read_into`, of a small region inside the level, exact wherever one read of 4 million pixels can be.

        Returns the shift that is left, in pixels of the level; 0: none. Raises RegionError when the region cannot be read.
        """
        shift = self.shift_px(level, x, y)
        if shift and not self.shift_px(level, x, y, out.shape):
            try:
                self._read_exact(level, x, y, out, _reach(out.shape))
            except RegionError:
                pass  # what lies between may be damaged, and this not
            else:
                return 0.0
        self.read_into(level, x, y, out)
        return shift

    def shift_px(self, level: int, x: int, y: int, tile: tuple[int, ...] | None = None) -> float:
        """The shift, in pixels of the level, of what is read from there; 0: none.

        Of a tile of this (height, width, …), where that is given, as :meth:`read_tile` reads it.
        """
        near = max(shift for _, shift in self._snapped(level, x, y, _SEARCH_PX))
        if tile is None or not near:
            return near
        (first_x, shift_x), (first_y, shift_y) = self._snapped(level, x, y, _reach(tile))
        is_exact = not shift_x and not shift_y and (x - first_x + tile[1]) * (y - first_y + tile[0]) <= _FAR_PX
        return 0.0 if is_exact else near

    def _snapped(self, level: int, x: int, y: int, search_px: int) -> list[tuple[int, float]]:
        """Along each axis, where a read begins that is to give what lies at (x, y), and the shift that is left."""
        found = []
        for place, extent in zip((x, y), self.info.level_dimensions[level], strict=True):
            places, shifts = _snap_table(extent, self.info.level_downsamples[level], search_px)
            found.append((int(places[place]), float(shifts[place])))
        return found

    def tiles_read(self) -> TilesRead | None:
        """None: OpenSlide does not say."""
        return None

    def resampled_px(self, level: int) -> float:
        """Largest shift against the level read whole; 0 where every region can begin at an exact place."""
        downsample = self.info.level_downsamples[level]
        shifts = [float(_snap_table(extent, downsample)[1].max(initial=0)) for extent in self.info.level_dimensions[level]]
        return max(shifts)

    def thumbnail(self, longest_px: int) -> UInt8Array:
        """The whole slide, small; see :meth:`SlideReader.thumbnail`."""
        return thumbnail_of(self, longest_px)

    def close(self) -> None:
        """Let go of the handle; reads that are under way end as if nothing had happened."""
        with self._lock:
            # Not closed here: to close a handle that another thread is inside of ends the process. It is closed when the
            # last of them lets go of it.
            self._handle, self._closed = None, True

    def __enter__(self) -> OpenSlideReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _read_exact(self, level: int, x: int, y: int, out: UInt8Array, search_px: int = _SEARCH_PX) -> None:
        downsample = self.info.level_downsamples[level]
        (first_x, _), (first_y, _) = self._snapped(level, x, y, search_px)
        location = (round(first_x * downsample), round(first_y * downsample))
        self._read(location, level, (x - first_x, y - first_y), out)

    def _read(self, location: tuple[int, int], level: int, surplus: tuple[int, int], out: UInt8Array) -> None:
        with self._lock:
            if self._closed:
                raise SlideError(f"{self.path} is closed")
            handle = self._handle = self._handle or self._open()
        try:
            return self._read_through(handle, location, level, surplus, out)
        except openslide.OpenSlideError:
            # An error sticks to the handle, and another thread's may have stuck to this one: only a handle of its own can
            # tell whether this region is to blame.
            self._forget(handle)
        del handle  # the traceback of an error below would keep it open
        fresh = self._open()
        try:
            self._read_through(fresh, location, level, surplus, out)
        except openslide.OpenSlideError as error:
            width, height = _with_surplus(out, surplus)
            raise RegionError(
                f"{self.path}: level {level} cannot be read at {location} (level-0 pixels), {width} x {height} px: {error}"
            ) from error
        finally:
            fresh.close()

    def _read_through(
        self,
        handle: openslide.OpenSlide,
        location: tuple[int, int],
        level: int,
        surplus: tuple[int, int],
        out: UInt8Array,
    ) -> None:
        """Fill `out` with what lies `surplus` (right, down) of `location`."""
        size = _with_surplus(out, surplus)
        wanted = slice(surplus[1], None), slice(surplus[0], None)
        argb = read_argb(handle, location, level, size)
        if argb is None or not store_rgb(argb[wanted], out, self.background):
            out[...] = self._compose(handle.read_region(location, level, size))[wanted]

    def _forget(self, handle: openslide.OpenSlide) -> None:
        with self._lock:
            if self._handle is handle:
                self._handle = None

    def _compose(self, picture: Image.Image) -> UInt8Array:
        canvas = Image.new("RGB", picture.size, self.background)
        canvas.paste(picture, mask=picture)
        return np.asarray(canvas)

    def _open(self) -> openslide.OpenSlide:
        try:
            with open(self.path, "rb"):
                pass  # OpenSlide would call a file that may not be read one of unknown format
            return openslide.OpenSlide(self.path)
        except FileNotFoundError as error:
            raise SlideError(f"{self.path} does not exist") from error
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise SlideError(f"{self.path} is not in a format that OpenSlide reads, or it is damaged") from error
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(f"{self.path} cannot be opened: {getattr(error, 'strerror', error)}") from error


def _with_surplus(out: UInt8Array, surplus: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the read that fills `out`, in pixels of the level."""
    return out.shape[1] + surplus[0], out.shape[0] + surplus[1]


def _reach(tile: tuple[int, ...]) -> int:
    """How far before a tile, (height, width, …), a read may begin that OpenSlide does in one piece."""
    return max(_LARGEST_READ_PX - max(tile[:2]), _SEARCH_PX)


@lru_cache(maxsize=64)
def _snap_table(
    extent_px: int, downsample: float, search_px: int = _SEARCH_PX
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each pixel along an axis of a level: the last exact place to begin a read at, and the shift that is left.

    Returns (extent,) int64, and (extent,) float32, in pixels: 0 where an exact place lies no more than `search_px` before.
    """
    places = np.arange(extent_px, dtype=np.int64)
    shift = _shift_px(places, downsample)
    exact = np.maximum.accumulate(np.where(shift <= _EXACT_PX, places, 0))
    far = places - exact > search_px
    return np.where(far, places, exact), np.where(far, shift, 0).astype(np.float32)


def is_exact(places: npt.NDArray[np.int64], downsample: float) -> npt.NDArray[np.bool_]:
    """Whether OpenSlide copies a region of a level that begins at these pixels of it, and does not resample it."""
    exact: npt.NDArray[np.bool_] = _shift_px(places, downsample) <= _EXACT_PX
    return exact


def _shift_px(places: npt.NDArray[np.int64], downsample: float) -> npt.NDArray[np.float64]:
    """How far, in pixels of the level, the level-0 pixel nearest to each place lies from it."""
    shift: npt.NDArray[np.float64] = np.abs(np.rint(places * downsample) / downsample - places)
    return shift


def _describe(handle: openslide.OpenSlide) -> SlideInfo:
    properties = handle.properties

    def number(name: str) -> float | None:
        try:
            value = float(properties[name])
        except (KeyError, ValueError):
            return None
        return value if np.isfinite(value) and value > 0 else None

    mpp_x, mpp_y = number(openslide.PROPERTY_NAME_MPP_X), number(openslide.PROPERTY_NAME_MPP_Y)
    tiles = [
        (number(f"openslide.level[{n}].tile-width"), number(f"openslide.level[{n}].tile-height"))
        for n in range(handle.level_count)
    ]
    return SlideInfo(
        level_dimensions=tuple(handle.level_dimensions),
        level_downsamples=tuple(handle.level_downsamples),
        mpp=(mpp_x, mpp_y) if mpp_x and mpp_y else None,
        power=number(openslide.PROPERTY_NAME_OBJECTIVE_POWER),
        vendor=properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"),
        tile_sizes=tuple((int(w), int(h)) if w and h else None for w, h in tiles),
        associated_images=tuple(sorted(handle.associated_images)),
        reader="openslide",
    )
