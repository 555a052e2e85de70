"""A batch in parts that a processor's cache holds, so that what is computed between takes little memory, whatever the batch.

In: the pixels of a batch.  Out: views of them, and their channels as planes.

How a window is cut depends on its size alone, never on the windows beside it: a sum over its parts is the same, to the last
bit, in whatever batch it comes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from streamwsi.chunks import UInt8Array

BLOCK_PX = 1 << 16
"""Pixels in a block, at most (one row of a window, if that is more). Of 2^13 to 2^16 the fastest for all collectors."""


def blocks(pixels: UInt8Array, overlap_rows: int = 0) -> Iterator[tuple[slice, UInt8Array]]:
    """The parts of a batch, in order.

    Parameters
    ----------
    pixels
        (n, height, width, 3) uint8.
    overlap_rows
        Rows that a block shares with the next one of the same window.

    Yields
    ------
    (which, block): the windows that the block is of, and (k, rows, width, 3), a view: some whole windows, or some rows of one.
    """
    n, height, width, _ = pixels.shape
    if height * width <= BLOCK_PX:
        step = BLOCK_PX // (height * width)
        for first in range(0, n, step):
            yield slice(first, first + step), pixels[first : first + step]
        return
    rows = max(1, BLOCK_PX // width)
    for window in range(n):
        for top in range(0, height - overlap_rows, rows):
            yield slice(window, window + 1), pixels[window : window + 1, top : top + rows + overlap_rows]


def planes(block: UInt8Array) -> UInt8Array:
    """(3, m) uint8: the channels of (..., 3) uint8, each contiguous, which is what arithmetic is fast on."""
    interleaved = block.reshape(-1, 3)
    found = np.empty((3, len(interleaved)), np.uint8)
    for channel in range(3):  # three strided copies: faster than one transposed
        found[channel] = interleaved[:, channel]
    return found
