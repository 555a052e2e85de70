"""Regions of a virtual level: a level of a slide, resampled in one step.

In: an open slide, a resolution, places.  Out: pixels.  Memory follows what is asked for, neither the level nor the zoom.

The virtual level is defined as the level's whole image, its outermost pixels repeated beyond its edges, resampled with Pillow's
antialiasing BICUBIC filter: virtual pixel i covers the level's pixels from ``i * zoom`` to ``(i + 1) * zoom``. Any region of it
has exactly these pixels, to the last bit, whatever is read with it: Pillow keeps a box's edges as float32, and here they are
exact, because zooms and starts are whole numbers of 1/4096 and no more than 4096 pixels of the level are resampled at once.
Rows are resampled first, then columns.
Source: Pillow, ``Resample.c``, ``precompute_coeffs``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from streamwsi.chunks import UInt8Array
from streamwsi.errors import SlideError
from streamwsi.resolution import ZOOM_STEPS, Resolution
from streamwsi.slides.reader import Part, Rectangle, SlideReader

_FILTER = Image.Resampling.BICUBIC
_SUPPORT = 2.0
"""How far the filter reaches to either side, in pixels of the virtual level (of the level, where that is coarser)."""
_SIDE_PX = 4096
"""Of what is resampled at once, in pixels of the level: with 1/4096 of a pixel, what float32 holds exactly."""
_GROUP_PX = 1 << 24
"""Pixels of the level that are held at once, about: memory does not grow with the zoom."""

VirtualPart = tuple[float, float, UInt8Array]
"""(x, y, out): a region of a virtual level, in its pixels, at fractions of them too, and where its pixels go, as for a Part."""


class _Block(NamedTuple):
    """A piece of a part: what of the level it takes to make it, and where it goes."""

    left: int
    top: int
    right: int
    bottom: int
    """What is read, with what the filter reaches, in pixels of the level; beyond its edges too."""
    box: tuple[float, float, float, float]
    """What is resampled, in pixels from `left` and `top`."""
    out: UInt8Array

    @property
    def area(self) -> int:
        return (self.right - self.left) * (self.bottom - self.top)


def read_region_resampled(
    reader: SlideReader, resolution: Resolution, x: float, y: float, width: int, height: int
) -> UInt8Array:
    """One region of a virtual level: (height, width, 3) uint8, RGB; see :func:`read_resampled`."""
    pixels = np.empty((height, width, 3), np.uint8)
    read_resampled(reader, resolution, [(x, y, pixels)])
    return pixels


def read_resampled(
    reader: SlideReader, resolution: Resolution, parts: Sequence[VirtualPart], own: Rectangle | None = None
) -> None:
    """Several regions of a virtual level at once, each into its place; as :meth:`SlideReader.read_parts`, which see.

    Parameters
    ----------
    reader
        The open slide.
    resolution
        The level, and how much coarser it is read. At zoom 1, regions at whole places are the level's own pixels.
    parts
        (x, y, out): left and top edge in pixels of the virtual level, whole or not (places are kept to 1/4096 of a pixel of the
        level); `out` is (height, width, 3) uint8, RGB, its last two axes contiguous. Pixels whose centres lie outside the
        virtual level are the background colour, which is in no other.
    own
        (left, top, right, bottom) in pixels of the virtual level: what nobody will read again.

    Raises SlideError when the slide has no such level, RegionError when something cannot be read that the pixels are made from.
    """
    info = reader.info
    if not 0 <= resolution.level < info.level_count:
        raise SlideError(f"the slide has no level {resolution.level}: it has levels 0 to {info.level_count - 1}")
    if resolution.zoom == 1 and all(_is_whole(x) and _is_whole(y) for x, y, _ in parts):
        reader.read_parts(resolution.level, [(round(x), round(y), out) for x, y, out in parts], own)
        return
    margin = math.ceil(_SUPPORT * max(resolution.zoom, 1)) + 1
    own_l = None if own is None else _scaled(own, resolution.zoom, margin)
    blocks = [block for part in parts for block in _blocks(reader, resolution, part, margin)]
    for group, alone in _groups(blocks, own_l):
        _read_blocks(reader, resolution.level, group, alone)


def _blocks(reader: SlideReader, resolution: Resolution, part: VirtualPart, margin: int) -> Iterator[_Block]:
    """A part, cut into pieces that can be resampled at once; what of it lies outside is made background."""
    x, y, out = part
    zoom = resolution.zoom
    level_extent = reader.info.level_dimensions[resolution.level]
    width, height = resolution.extent(reader.info)
    first_x, stop_x = _inside(x, out.shape[1], width)
    first_y, stop_y = _inside(y, out.shape[0], height)
    if (first_x, first_y, stop_x, stop_y) != (0, 0, out.shape[1], out.shape[0]):
        reader.read_into(resolution.level, *level_extent, out)  # wholly outside: the reader's background
    origin_x, origin_y = _exact(x * zoom), _exact(y * zoom)
    step = max(int((_SIDE_PX - 2 * margin - 2) / zoom), 1)
    for top in range(first_y, stop_y, step):
        for left in range(first_x, stop_x, step):
            right, bottom = min(left + step, stop_x), min(top + step, stop_y)
            box = [origin_x + left * zoom, origin_y + top * zoom, origin_x + right * zoom, origin_y + bottom * zoom]
            corner = math.floor(box[0]) - margin, math.floor(box[1]) - margin
            yield _Block(
                *corner,
                math.ceil(box[2]) + margin,
                math.ceil(box[3]) + margin,
                (box[0] - corner[0], box[1] - corner[1], box[2] - corner[0], box[3] - corner[1]),
                out[top:bottom, left:right],
            )


def _inside(start: float, size: int, extent: int) -> tuple[int, int]:
    """(first, stop) of the pixels whose centres lie inside along one axis, of `size` from `start`; equal where none does."""
    first = min(max(math.ceil(-start - 0.5), 0), size)
    return first, max(min(math.ceil(extent - start - 0.5), size), first)


def _exact(place: float) -> float:
    return round(place * ZOOM_STEPS) / ZOOM_STEPS


def _is_whole(place: float) -> bool:
    return isinstance(place, int) or _exact(place).is_integer()


def _scaled(own: Rectangle, zoom: float, margin: int) -> Rectangle:
    """What of a rectangle of the virtual level nobody else reads, in pixels of the level: their filters reach into it."""
    left, top, right, bottom = own
    return (
        left if left <= 0 else math.ceil(left * zoom) + margin,
        top if top <= 0 else math.ceil(top * zoom) + margin,
        math.floor(right * zoom) - margin,
        math.floor(bottom * zoom) - margin,
    )


def _groups(blocks: list[_Block], own: Rectangle | None) -> Iterator[tuple[list[_Block], Rectangle | None]]:
    """Blocks that are read together, from the top down, and what of `own` the other groups do not touch."""
    groups: list[list[_Block]] = []
    area = 0
    for block in sorted(blocks, key=lambda block: block.top):
        if not groups or area + block.area > _GROUP_PX:
            groups.append([])
            area = 0
        groups[-1].append(block)
        area += block.area
    for number, group in enumerate(groups):
        if own is None:
            yield group, None
            continue
        above = max((block.bottom for other in groups[:number] for block in other), default=own[1])
        below = min((block.top for other in groups[number + 1 :] for block in other), default=own[3])
        yield group, (own[0], max(own[1], above), own[2], min(own[3], below))


def _read_blocks(reader: SlideReader, level: int, blocks: Sequence[_Block], own: Rectangle | None) -> None:
    """Read what blocks are made from, all at once, and make them."""
    width, height = reader.info.level_dimensions[level]
    sources, parts = [], []
    for block in blocks:
        source = np.empty((block.bottom - block.top, block.right - block.left, 3), np.uint8)
        left, top = min(max(block.left, 0), width - 1), min(max(block.top, 0), height - 1)
        right, bottom = max(min(block.right, width), left + 1), max(min(block.bottom, height), top + 1)
        inside = slice(top - block.top, bottom - block.top), slice(left - block.left, right - block.left)
        part: Part = (left, top, source[inside])
        sources.append((source, inside))
        parts.append(part)
    reader.read_parts(level, parts, own)
    for block, (source, inside) in zip(blocks, sources, strict=True):
        _repeat_edges(source, *inside)
        block.out[...] = _resampled(source, block.box, block.out.shape[1], block.out.shape[0])


def _resampled(pixels: UInt8Array, box: tuple[float, float, float, float], width: int, height: int) -> UInt8Array:
    """What lies in a box, (left, top, right, bottom), as (height, width, 3)."""
    left, top, right, bottom = box
    picture = Image.fromarray(pixels)
    # In two calls: in one, Pillow 13 begins with rows or with columns as the sizes are, and rounds in between
    across = picture.resize((width, picture.height), _FILTER, box=(left, 0, right, picture.height))
    return np.asarray(across.resize((width, height), _FILTER, box=(0, top, width, bottom)))


def _repeat_edges(pixels: UInt8Array, rows: slice, columns: slice) -> None:
    """Fill what lies around the pixels in these rows and columns with the outermost of them."""
    pixels[rows, : columns.start] = pixels[rows, columns.start : columns.start + 1]
    pixels[rows, columns.stop :] = pixels[rows, columns.stop - 1 : columns.stop]
    pixels[: rows.start] = pixels[rows.start]
    pixels[rows.stop :] = pixels[rows.stop - 1]
