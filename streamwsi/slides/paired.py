"""Images that are paired with slides, read: label images, masks, further channels.

In: a file, or an array in memory; places in it.  Out: its own values there, of whatever type, each storage chunk read once for
all the windows that are read together.  Knows nothing of where it lies on a slide.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from streamwsi.addresses import ArrayAddress, check_axes, is_array, parse_address
from streamwsi.arrays.sources import AnyArray, as_numpy
from streamwsi.arrays.zarr_library import needed_zarr
from streamwsi.errors import RegionError, SlideError, StreamwsiError
from streamwsi.geometry import Int64Array
from streamwsi.paired import PairedLayout, PairedPixels
from streamwsi.slides.array_files import Opened, open_arrays, single
from streamwsi.slides.png import stored_values
from streamwsi.slides.reader import Rectangle
from streamwsi.slides.tile_cache import TileCache
from streamwsi.slides.tiles import place_of
from streamwsi.slides.value_level import ValueLevel, WantedAxes

_TIFFS = (".tif", ".tiff")


class _Part(NamedTuple):
    """Pixels that are read: which columns and rows of the image, both ascending, and where they go."""

    columns: Int64Array
    rows: Int64Array
    out: AnyArray
    """(height, width, …)."""


class PairedReader:
    """An open image. Reads may come from several threads at once."""

    def __init__(
        self,
        source: str | os.PathLike[str] | Any,
        source_axes: str | None,
        wanted: WantedAxes,
        outside: float,
        cache: TileCache,
    ) -> None:
        """`source` is a path, or anything array-like. Raises SlideError where it cannot be opened or has not such axes."""
        make = _Maker(wanted)
        self._name = (
            os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"the {type(source).__name__} given for it"
        )
        if isinstance(source, (str, os.PathLike)):
            opened = _open(source, source_axes, make)
        else:
            address = ArrayAddress(Path(self._name), axes=source_axes and check_axes(source_axes, self._name))
            opened = single(address, source if hasattr(source, "dtype") else as_numpy(source), "array", make)
        self.levels, self.downsamples = opened.levels, opened.downsamples
        if wanted.is_cut:  # which is said in the finest level's pixels
            self.levels, self.downsamples = self.levels[:1], self.downsamples[:1]
        self._close = opened.close
        self._outside = outside
        self._cache, self._owner = cache, cache.new_owner()

    def read(self, pixels: PairedPixels) -> None:
        """Read what goes with windows into its place. Raises RegionError where something cannot be read."""
        layout = pixels.layout
        if layout.origin is not None:
            self._read_parts(layout, [((*layout.origin, *layout.region_size), pixels.values)])
        else:
            places = np.concatenate([layout.starts, layout.sizes], axis=1).tolist()
            self._read_parts(layout, [(place, pixels.of(row)) for row, place in enumerate(places)])

    def read_row(self, pixels: PairedPixels, row: int) -> AnyArray:
        """What goes with one window, by itself. Raises RegionError where something cannot be read."""
        layout, values = pixels.layout, np.empty_like(pixels.of(row), order="C")
        self._read_parts(layout, [([*layout.starts[row].tolist(), *layout.sizes[row].tolist()], values)])
        return values

    def _read_parts(self, layout: PairedLayout, places: Sequence[tuple[Sequence[int], AnyArray]]) -> None:
        """Read what lies at places, (x, y, width, height), into arrays along the image's axes."""
        level = self.levels[layout.image.level]
        axes = [layout.image.axes.index(axis) for axis in "YX"]
        parts = []
        for (x, y, width, height), out in places:
            columns, rows = layout.columns_and_rows(x, y, width, height)
            inside = self._inside(level, _Part(columns, rows, np.moveaxis(out, axes, (0, 1))))
            if inside is not None:
                parts.append(inside)
        self._read(level, layout.image.level, parts)

    def close(self) -> None:
        """Let go of the file, and of what is kept of it."""
        self._cache.forget(self._owner)
        if self._close is not None:
            self._close()

    def _inside(self, level: ValueLevel, part: _Part) -> _Part | None:
        """What of a part lies in the image; None where nothing does. The rest gets the value of what lies outside."""
        (first, last), (top, bottom) = (
            np.searchsorted(along, (0, extent)).tolist()
            for along, extent in zip((part.columns, part.rows), level.extent, strict=True)
        )
        if (first, top, last, bottom) != (0, 0, len(part.columns), len(part.rows)):
            part.out[...] = self._outside
        if first == last or top == bottom:
            return None
        return _Part(part.columns[first:last], part.rows[top:bottom], part.out[top:bottom, first:last])

    def _read(self, level: ValueLevel, number: int, parts: Sequence[_Part]) -> None:
        if level.tile is None:
            for part in parts:
                place = (int(part.columns[0]), int(part.rows[0]), int(part.columns[-1]) + 1, int(part.rows[-1]) + 1)
                self._copy(level, self._values(level, place), place, part)
            return
        width, height = level.tile
        users: dict[tuple[int, int], list[_Part]] = {}
        for part in parts:
            for row, lines in _cut(part.rows, height):
                for column, columns in _cut(part.columns, width):
                    users.setdefault((row, column), []).append(
                        _Part(part.columns[columns], part.rows[lines], part.out[lines, columns])
                    )
        for (row, column), those in users.items():
            place = place_of(level.extent, level.tile, row, column)
            tile: AnyArray = self._cache.get((self._owner, number, row, column), partial(self._values, level, place))
            for part in those:
                self._copy(level, tile, place, part)

    def _values(self, level: ValueLevel, place: Rectangle) -> AnyArray:
        try:
            return level.read(place)
        except Exception as error:  # codecs raise what they like
            left, top, right, bottom = place
            raise RegionError(
                f"{self._name} cannot be read at {(left, top)} (its own pixels), {right - left} x {bottom - top} px: "
                f"{type(error).__name__}: {error}"
            ) from error

    @staticmethod
    def _copy(level: ValueLevel, values: AnyArray, place: Rectangle, part: _Part) -> None:
        """Put what a part needs of a region, `values`, where it goes."""
        left, top, _, _ = place
        plane = np.moveaxis(values, (level.axes.index("Y"), level.axes.index("X")), (0, 1))
        rows, columns = part.rows - top, part.columns - left
        if _together(rows) and _together(columns):
            part.out[...] = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        else:
            part.out[...] = plane[rows[:, None], columns]


class _Maker:
    """Makes levels of arrays, the finest first: of coarser ones the whole plane, where a part of the finest is wanted."""

    def __init__(self, wanted: WantedAxes) -> None:
        self._wanted = wanted

    def __call__(self, array: Any, axes: Sequence[str], at: Any, name: str) -> ValueLevel:
        wanted, self._wanted = self._wanted, self._wanted.without_cut()
        return ValueLevel(array, axes, at, name, wanted)


def _cut(along: Int64Array, size: int) -> list[tuple[int, slice]]:
    """Ascending places, cut where tiles of `size` end: (number of the tile, which places are in it)."""
    numbers = along // size
    found, first = np.unique(numbers, return_index=True)
    ends = [*first[1:].tolist(), len(along)]
    return [(number, slice(start, end)) for number, start, end in zip(found.tolist(), first.tolist(), ends, strict=True)]


def _together(places: Int64Array) -> bool:
    """Whether ascending places follow one upon the other."""
    return int(places[-1] - places[0]) == len(places) - 1 and (len(places) < 3 or bool((np.diff(places) == 1).all()))


def _open(path: str | os.PathLike[str], source_axes: str | None, make: Any) -> Opened[ValueLevel]:
    if is_array(path):
        address = parse_address(path)
        if source_axes is not None:
            if address.axes is not None:
                raise SlideError(f"{os.fspath(path)} says its axes, and source_axes={source_axes!r} does too: leave one out")
            address = ArrayAddress(address.file, address.dataset, check_axes(source_axes, os.fspath(path)), address.at)
        return open_arrays(address, make)
    file = Path(path)
    if not file.exists():
        raise SlideError(f"{file} does not exist")
    try:
        return _open_tiff(file, source_axes, make) if file.suffix.lower() in _TIFFS else _open_picture(file, source_axes, make)
    except StreamwsiError:
        raise
    except Exception as error:  # libraries raise what they like at damaged files
        raise SlideError(f"{file} cannot be opened: {error}") from error


def _open_picture(file: Path, source_axes: str | None, make: Any) -> Opened[ValueLevel]:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            # a palette's numbers are the values; its colours are for the eye
            values = stored_values(file, np.asarray(picture))
    except Image.DecompressionBombError as error:
        raise SlideError(f"{file} is read whole, and too large for that: write it as Zarr or as a tiled TIFF") from error
    axes = source_axes and check_axes(source_axes, str(file))
    return single(ArrayAddress(file, axes=axes or ("YX" if values.ndim == 2 else "YXC")), values, "picture", make)


def _open_tiff(file: Path, source_axes: str | None, make: Any) -> Opened[ValueLevel]:
    import tifffile

    zarr = needed_zarr(f"reading {file}")
    opened = tifffile.TiffFile(file)
    try:
        series = opened.series[0]
        levels = []
        for number, level in enumerate(series.levels):
            axes = (source_axes and check_axes(source_axes, str(file))) or level.axes.replace("S", "C")
            array = zarr.open(series.aszarr(level=number), mode="r")
            levels.append(make(array, tuple(axes.lower()), {}, f"{file}, level {number}"))
    except BaseException:
        opened.close()
        raise
    sizes = [math.prod(level.extent) for level in levels]
    return Opened(tuple(levels), tuple(math.sqrt(sizes[0] / size) for size in sizes), None, "tiff", opened.close)
