"""Tiles of a level, and what regions need of them.

In: sizes of a level and its tiles, regions.  Out: which tiles, and where their pixels go.  Never decodes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from streamwsi.chunks import UInt8Array
from streamwsi.slides.reader import Part, Rectangle, fill

Size = tuple[int, int]
"""(width, height)."""


def tiles_of(
    extent: Size, tile: Size, parts: Sequence[Part], background: tuple[int, int, int]
) -> dict[tuple[int, int], list[Part]]:
    """The tiles, (row, column), that parts touch, row by row, each with those parts.

    What of the parts lies outside the level is made background.
    """
    tile_w, tile_h = tile
    users: dict[tuple[int, int], list[Part]] = {}
    for part in parts:
        left, top, right, bottom = inside(extent, part, background)
        if left >= right or top >= bottom:
            continue
        for row in range(top // tile_h, -(-bottom // tile_h)):
            for column in range(left // tile_w, -(-right // tile_w)):
                users.setdefault((row, column), []).append(part)
    return users


def inside(extent: Size, part: Part, background: tuple[int, int, int]) -> Rectangle:
    """What of a part lies in the level: nothing where its sides are crossed.

    The part is made background where not all of it does.
    """
    x, y, out = part
    whole = (x, y, x + out.shape[1], y + out.shape[0])
    found = (max(x, 0), max(y, 0), min(whole[2], extent[0]), min(whole[3], extent[1]))
    if found != whole:
        fill(out, background)
    return found


def place_of(extent: Size, tile: Size, row: int, column: int) -> Rectangle:
    """What a tile covers of its level."""
    left, top = column * tile[0], row * tile[1]
    return left, top, min(left + tile[0], extent[0]), min(top + tile[1], extent[1])


def targets(place: Rectangle, users: Sequence[Part]) -> list[tuple[UInt8Array, slice, slice]]:
    """Where in the parts a tile's pixels go, and which of its rows and columns."""
    left, top, right, bottom = place
    found = []
    for x, y, out in users:
        from_x, from_y = max(left, x), max(top, y)
        to_x, to_y = min(right, x + out.shape[1]), min(bottom, y + out.shape[0])
        target = out[from_y - y : to_y - y, from_x - x : to_x - x]
        found.append((target, slice(from_y - top, to_y - top), slice(from_x - left, to_x - left)))
    return found


class Sharing(NamedTuple):
    """Who else needs a tile that a chunk needs."""

    rows: bool
    """Chunks above or below, which are read after a row of others; else only those beside it, which are read next."""
    chunks: int | None
    """How many need it, this one included; None where that is not known."""


def sharing(place: Rectangle, own: Rectangle | None) -> Sharing | None:
    """Who needs what a tile covers, besides the chunk that reads it; None where nobody does.

    `own` is what no other chunk needs, between neighbours on each side of it: a tile that reaches beyond it on one side is
    shared with the neighbour there, and at a corner with three. One that reaches beyond it on opposite sides, or further than
    it is wide, may be needed by others than neighbours, and so may any where there is nothing of its own: how many do is left
    open. Where a neighbour is narrower than that, at an edge of the slide, more may need it than is said; never fewer.
    """
    if own is None:
        return None
    across = _neighbours(place[0], place[2], own[0], own[2])
    down = _neighbours(place[1], place[3], own[1], own[3])
    if across == down == 0:
        return None
    return Sharing(down != 0, None if across is None or down is None else (1 + across) * (1 + down))


def _neighbours(start: int, stop: int, own_start: int, own_stop: int) -> int | None:
    """How many need what lies between `start` and `stop` along one axis too; None where that is not known."""
    before, after = own_start - start, stop - own_stop
    if before <= 0 and after <= 0:
        return 0
    if (before > 0 and after > 0) or max(before, after) > own_stop - own_start:
        return None
    return 1
