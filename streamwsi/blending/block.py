"""Make a block of a map out of the sums of the chunks that touch it.

In: tiles, in the order of their chunks, and the boxes of the windows that were added to each.  Out: a finished block.  The
order is that of the plan, so that the result does not depend on who came first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from streamwsi.arrays.sources import AnyArray
from streamwsi.blending.blend import Blend, FloatArray
from streamwsi.blending.chunk import Tile, cut
from streamwsi.blending.frame import Box, MapFrame, Place
from streamwsi.geometry import Int64Array


def finished_block(
    frame: MapFrame,
    blend: Blend,
    place: Place,
    tiles: Iterable[tuple[Tile, Int64Array]],
    dtype: np.dtype[Any],
    fill: Any,
) -> AnyArray | None:
    """(height, width, channels) of `dtype`: the means of the windows, `fill` where there is none; None: there is none at all.

    With each tile come the boxes, (n, 4), of all written windows of its chunk.
    """
    box = frame.block(place)
    size = box[2] - box[0], box[3] - box[1]
    total = np.zeros(size)
    summed = blend.new_sum(size)
    touched = False
    for tile, boxes in tiles:
        touched = True
        if tile.sums is not None:
            summed.values[cut(tile.box, box[:2])] += tile.sums
        _add_weights(total, box, boxes, blend)
    if not touched:
        return None
    block = blend.mean(summed, total, dtype)
    block[total == 0] = fill
    return block


def _add_weights(total: FloatArray, block: Box, boxes: Int64Array, blend: Blend) -> None:
    """Add the weights of the windows at `boxes` to those of a block."""
    inside = (boxes[:, :2] < block[2:]).all(axis=1) & (boxes[:, 2:] > block[:2]).all(axis=1)
    for top, left, bottom, right in boxes[inside].tolist():
        weights = blend.plain_weights_of((bottom - top, right - left))
        part = max(top, block[0]), max(left, block[1]), min(bottom, block[2]), min(right, block[3])
        total[cut(part, block[:2])] += weights[cut(part, (top, left))]
