"""Which blocks of memory can be used again: fresh memory costs about as much as what is written into it.

In: blocks.  Out: those that nobody has any more.  Whoever holds a view of a block holds the block.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Block = npt.NDArray[Any]


def idle(blocks: Sequence[Block]) -> list[bool]:
    """Whether nobody has a block, for each of those in a sequence, which is taken to be the only one that holds them."""
    return [references == _IDLE_REFERENCES for references in _references(blocks)]


def _references(blocks: Sequence[Block]) -> list[int]:
    """How many hold each block, and how many more for the counting itself, which differs between versions of Python."""
    return [sys.getrefcount(block) for block in blocks]


_IDLE_REFERENCES = _references([np.empty(1, np.uint8)])[0]
"""To a block that nobody has but the sequence that it is counted in."""
