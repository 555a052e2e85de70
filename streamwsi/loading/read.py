"""Read one big chunk.

In: an open slide, what it was resolved to, a chunk's number.  Out: a BigChunk.  Never opens a slide or a socket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from streamwsi.chunks import BigChunk, UInt8Array
from streamwsi.config import OnBadRegion
from streamwsi.errors import RegionError
from streamwsi.geometry import Int64Array, Windows
from streamwsi.resolved import ResolvedSlide
from streamwsi.slides.reader import Rectangle, SlideReader
from streamwsi.slides.resampled import read_resampled

if TYPE_CHECKING:
    from streamwsi.slides.paired import PairedReader


def read_chunk(
    reader: SlideReader,
    resolved: ResolvedSlide,
    number: int,
    on_bad_region: OnBadRegion = "fail",
    memory: UInt8Array | None = None,
    paired: Mapping[str, PairedReader] | None = None,
) -> BigChunk:
    """The windows of chunk `number` with their pixels, in `memory` where that is given; `paired` are its open paired images.

    Raises RegionError when something cannot be read and `on_bad_region` is ``"fail"``; with ``"skip"``, windows that
    cannot be read on their own are flagged instead.
    """
    chunk = resolved.blank_chunk(number, memory)
    try:
        own = None if _are_whole_tiles(resolved, chunk) else own_rectangle(resolved, number)
        if chunk.origin is not None:
            read_resampled(reader, resolved.resolutions[0], [(*chunk.origin, chunk.pixels)], own)
        else:
            _read_windows(reader, resolved, chunk.windows, chunk.pixels_of_all(), own)
        for name, image in chunk.paired.items():
            (paired or {})[name].read(image)
    except RegionError:
        if on_bad_region == "fail":
            raise
        _read_each(reader, resolved, chunk, paired or {})
    return chunk


def own_rectangle(resolved: ResolvedSlide, number: int) -> Rectangle:
    """What no other chunk has windows on: (left, top, right, bottom) in pixels of what is read; beyond the edges where none is.

    Of windows that a sampler has chosen that is not known: nothing is.
    """
    if resolved.sample is not None:
        return 0, 0, 0, 0
    grid = resolved.grid()
    first_row, last_row, first_column, last_column = resolved.chunk_grid().bounds(number)
    beyond = max(grid.extent) + max(grid.kernel)

    def own(starts: Int64Array, kernel: int, first: int, last: int) -> tuple[int, int]:
        begin = int(starts[first - 1]) + kernel if first else 0
        return begin, int(starts[last]) if last < len(starts) else beyond

    left, right = own(grid.xs, grid.kernel[0], first_column, last_column)
    top, bottom = own(grid.ys, grid.kernel[1], first_row, last_row)
    return left, top, right, bottom


def _are_whole_tiles(resolved: ResolvedSlide, chunk: BigChunk) -> bool:
    """Whether a sampler's windows, on a grid without overlap, consist of whole tiles: then no other needs any of those."""
    tile = resolved.info.tile_sizes[resolved.level]
    if resolved.sample is None or tile is None or resolved.margin or resolved.zoom != 1 or resolved.coarser is not None:
        return False
    apart = all(step >= side for step, side in zip(resolved.stride, resolved.kernel, strict=True))
    return apart and not (chunk.corners % tile).any() and not (chunk.windows.size % tile).any()


def _read_windows(
    reader: SlideReader, resolved: ResolvedSlide, windows: Windows, pixels: Sequence[UInt8Array], own: Rectangle | None
) -> None:
    """Read windows into their places, `pixels`, at each resolution; `own` is of the finest."""
    for place, resolution in enumerate(resolved.resolutions):
        corners = resolved.corners(windows, resolution)
        places: list[list[float]] = corners.tolist() if (corners % 1).any() else corners.astype(np.int64).tolist()
        targets = pixels if resolved.coarser is None else [of_window[place] for of_window in pixels]
        parts = [(x, y, target) for (x, y), target in zip(places, targets, strict=True)]
        # what lies around a window is read with its neighbours in other chunks too
        read_resampled(reader, resolution, parts, own if place == 0 else (0, 0, 0, 0))


def _read_each(reader: SlideReader, resolved: ResolvedSlide, chunk: BigChunk, paired: Mapping[str, PairedReader]) -> None:
    """Read the windows of a chunk one by one into its pixels; flag those that cannot be read."""
    for row in range(len(chunk.windows)):
        target = chunk.pixels_of(row)
        try:
            # not straight into its place, which it may share with others: what a read that fails leaves there is anything
            pixels = np.empty_like(target, order="C")
            _read_windows(reader, resolved, chunk.windows.take(slice(row, row + 1)), [pixels], (0, 0, 0, 0))
            images = {name: paired[name].read_row(image, row) for name, image in chunk.paired.items()}
            target[...] = pixels
            for name, values in images.items():
                chunk.paired[name].of(row)[...] = values
        except RegionError:
            chunk.skipped[row] = True
