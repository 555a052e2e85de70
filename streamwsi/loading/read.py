"""Read one big chunk.

In: an open slide, what it was resolved to, a chunk's number.  Out: a BigChunk.  Never opens a slide or a socket.
"""

from __future__ import annotations

from streamwsi.chunks import BigChunk, UInt8Array
from streamwsi.config import OnBadRegion
from streamwsi.errors import RegionError
from streamwsi.geometry import Int64Array
from streamwsi.resolved import ResolvedSlide
from streamwsi.slides.reader import Part, Rectangle, SlideReader


def read_chunk(
    reader: SlideReader,
    resolved: ResolvedSlide,
    number: int,
    on_bad_region: OnBadRegion = "fail",
    memory: UInt8Array | None = None,
) -> BigChunk:
    """The windows of chunk `number` with their pixels, in `memory` where that is given.

    Raises RegionError when something cannot be read and `on_bad_region` is ``"fail"``; with ``"skip"``, windows that
    cannot be read on their own are flagged instead.
    """
    chunk = resolved.blank_chunk(number, memory)
    try:
        own = None if _are_whole_tiles(resolved, chunk) else own_rectangle(resolved, number)
        reader.read_parts(resolved.level, _parts(chunk), own)
    except RegionError:
        if on_bad_region == "fail":
            raise
        _read_each(reader, resolved.level, chunk)
    return chunk


def own_rectangle(resolved: ResolvedSlide, number: int) -> Rectangle:
    """What no other chunk has windows on: (left, top, right, bottom) in pixels of the level; beyond the edges where none is.

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
    if resolved.sample is None or tile is None or resolved.margin:
        return False
    apart = all(step >= side for step, side in zip(resolved.stride, resolved.kernel, strict=True))
    return apart and not (chunk.corners % tile).any() and not (chunk.windows.size % tile).any()


def _parts(chunk: BigChunk) -> list[Part]:
    if chunk.origin is not None:
        return [(*chunk.origin, chunk.pixels)]
    starts = chunk.corners.tolist()
    return [(x, y, chunk.pixels_of(row)) for row, (x, y) in enumerate(starts)]


def _read_each(reader: SlideReader, level: int, chunk: BigChunk) -> None:
    """Read the windows of a chunk one by one into its pixels; flag those that cannot be read."""
    for row, (x, y) in enumerate(chunk.corners.tolist()):
        target = chunk.pixels_of(row)
        try:
            # not straight into its place, which it may share with others: what a read that fails leaves there is anything
            target[...] = reader.read_region(level, x, y, target.shape[1], target.shape[0])
        except RegionError:
            chunk.skipped[row] = True
