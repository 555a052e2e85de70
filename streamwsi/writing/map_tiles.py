"""The tiles of a map that a message carries.

In: a message's payload.  Out: tiles as the journal keeps them; an error where they are not those of the slide's map.
"""

from __future__ import annotations

import numpy as np

from streamwsi.blending.blend import sum_dtype_of
from streamwsi.blending.frame import MapFrame, most_overlaps
from streamwsi.blending.packing import most_bytes
from streamwsi.collecting.map_rows import MOST_CHANNELS, channels_of, image_size
from streamwsi.map_options import MapOptions
from streamwsi.resolved import ResolvedSlide
from streamwsi.wire.messages import Pieces
from streamwsi.writing.journal import StoredTile


def tiles_of(message: Pieces, payload: list[memoryview], slide: ResolvedSlide, maps: MapOptions) -> list[StoredTile]:
    """A chunk's tiles. Raises ValueError, or another that NumPy has, where the payload is something else."""
    spec, frame = message.values, MapFrame.of(slide, maps)
    table = np.frombuffer(payload[0], np.int64).reshape(-1, 6)
    sums = payload[1:]
    if not len(table) == len(sums) == message.tiles or (message.rows == 0 and sums):
        raise ValueError(f"{len(table)} places and {len(sums)} tiles of {message.tiles}, for {message.rows} windows")
    if not sums:
        return []
    channels = channels_of(spec)
    if spec.shape[:2] != image_size(slide.kernel, maps.reduction) or len(spec.shape) > 3 or not 1 <= channels <= MOST_CHANNELS:
        raise ValueError(f"images of {spec}")
    if np.dtype(spec.dtype).kind not in "biuf":
        raise ValueError(f"images of {spec.dtype}")
    itemsize = channels * sum_dtype_of(np.dtype(spec.dtype), maps.alike, most_overlaps(slide)).itemsize
    tiles = []
    for (row, column, top, left, bottom, right), data in zip(table.tolist(), sums, strict=True):
        block = frame.block((row, column))
        if not (block[0] <= top < bottom <= block[2] and block[1] <= left < right <= block[3]):
            raise ValueError(f"a tile at {(top, left, bottom, right)} in block {(row, column)}")
        if data.nbytes > most_bytes((bottom - top) * (right - left) * itemsize):
            raise ValueError(f"{data.nbytes} bytes of {bottom - top} x {right - left} pixels of {itemsize}")
        tiles.append(StoredTile((row, column), (top, left, bottom, right), data, message.chunk))
    return tiles
