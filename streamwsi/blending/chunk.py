"""Blend the windows of one big chunk into sums, tile by tile.

In: images of the chunk's windows, in the order of its batches.  Out: tiles of weighted sums, each pixel once however many
windows overlap.  Memory follows the chunk's own area.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamwsi.arrays.sources import AnyArray
from streamwsi.arrays.sums import FloatSum, IntegerSum
from streamwsi.blending.blend import Blend
from streamwsi.blending.frame import Box, MapFrame, Place
from streamwsi.geometry import Int64Array


@dataclass(frozen=True, eq=False)
class Tile:
    """The part of a chunk's sums that lies in one block of the map."""

    place: Place
    """Which block."""
    box: Box
    """In pixels of the map, inside the block."""
    sums: AnyArray | None
    """(height, width, channels), as :meth:`streamwsi.blending.blend.Blend.new_sum` has them; None: they are all 0."""


class ChunkSums:
    """The sums of one chunk, while its batches come."""

    def __init__(self, frame: MapFrame, blend: Blend, boxes: Int64Array) -> None:
        """`boxes` are those of all windows that may come, (n, 4); what they touch is as large as the tiles can be."""
        self._frame, self._blend = frame, blend
        self._reach: dict[Place, Box] = {}
        for box in boxes.tolist():
            for place, (top, left, bottom, right) in frame.touched(tuple(box)):
                was = self._reach.get(place, (top, left, bottom, right))
                self._reach[place] = min(was[0], top), min(was[1], left), max(was[2], bottom), max(was[3], right)
        self._sums: dict[Place, IntegerSum | FloatSum] = {}

    def add(self, boxes: Int64Array, images: AnyArray) -> None:
        """Add windows at `boxes`, (n, 4), all of one size; `images` are (n, height, width, channels)."""
        weights = self._blend.weights_of(images.shape[1:3])
        for (top, left, bottom, right), image in zip(boxes.tolist(), images, strict=True):
            for place, part in self._frame.touched((top, left, bottom, right)):
                reach = self._reach[place]
                summed = self._sums.get(place)
                if summed is None:
                    summed = self._sums[place] = self._blend.new_sum((reach[2] - reach[0], reach[3] - reach[1]))
                within = cut(part, (top, left))
                summed.add(cut(part, reach[:2]), image[within], weights[within])

    def tiles(self) -> list[Tile]:
        """The tiles that windows were added to, in row-major order of the blocks."""
        return [
            Tile(place, self._reach[place], summed.values if np.any(summed.values) else None)
            for place, summed in sorted(self._sums.items())
        ]


def cut(box: Box, corner: tuple[int, int]) -> tuple[slice, slice]:
    """A box as slices of an array that begins at `corner`, (top, left)."""
    top, left = corner
    return slice(box[0] - top, box[2] - top), slice(box[1] - left, box[3] - left)
