"""Memory for pixels: where in it they begin, and when it can be used again.

In: shapes, blocks.  Out: arrays.  Fresh memory costs about as much as what is written into it.

libjpeg-turbo writes what it decodes past the processor's caches, straight to memory, wherever a row begins at a multiple of the
size of a register (32 bytes with AVX2, 16 with SSE2). That suits pictures that nobody looks at soon. These are looked at, or
copied, at once: so they begin elsewhere, and stay in the cache. Decoding alone is 8 % faster then, and decoding and copying a
tile 14 % (two processors of an Intel Xeon). Tiles of TIFF are multiples of 16 pixels wide: if the first row does not begin at a
multiple of 16 bytes, none does. Source: libjpeg-turbo 3, ``simd/x86_64/jdcolext-avx2.asm``; TIFF 6.0, ``TileWidth``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]

CACHE_LINE = 64
BEGIN = 8
"""Bytes from a multiple of a cache line, where pixels begin."""


def empty_pixels(shape: tuple[int, ...], block: UInt8Array | None = None) -> UInt8Array:
    """An array of this shape, its values undefined, that begins where pixels should; a view into its ``base``.

    In `block`, (`block_bytes` of the shape,) uint8, where that is given. Raises ValueError for one that is a view of other
    memory: views into it would not hold it.
    """
    if block is None:
        block = np.empty(block_bytes(shape), np.uint8)
    elif block.base is not None:
        raise ValueError("the block is a view of other memory")
    start = (BEGIN - block.__array_interface__["data"][0]) % CACHE_LINE
    return block[start : start + math.prod(shape)].reshape(shape)


def block_bytes(shape: tuple[int, ...]) -> int:
    """The memory that an array of this shape needs to begin where it should."""
    return math.prod(shape) + CACHE_LINE


def idle(blocks: Sequence[UInt8Array]) -> list[bool]:
    """Whether nobody has a block, for each of those in a sequence, which is taken to be the only one that holds them.

    They own their memory, so that whoever has a view into a block has the block.
    """
    return [references == _IDLE_REFERENCES for references in _references(blocks)]


def _references(blocks: Sequence[UInt8Array]) -> list[int]:
    """How many hold each block, and how many more for the counting itself, which differs between versions of Python."""
    return [sys.getrefcount(block) for block in blocks]


_IDLE_REFERENCES = _references([np.empty(1, np.uint8)])[0]
"""To a block that nobody has but the sequence that it is counted in."""
