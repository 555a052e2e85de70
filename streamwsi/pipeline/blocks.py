"""Which of a slide's chunks a loader takes next, so that neighbours are read by the same one.

In: how the chunks lie, and loaders that ask.  Out: blocks of neighbouring chunks, each one loader's at a time.  Knows nothing
of leases, branches or what is committed.

What overlapping windows of neighbouring chunks share is decoded once by a loader that reads both, and twice by two. So a slide
is cut, from its first chunk on and only as loaders get there, into blocks: stripes beside each other, a share of the columns
wide and many rows high, and on a narrow slide some below each other too. A loader goes through a block row by row, and then to
the one below it if that is still there. For one loader a block is as wide as the slide: chunks come in the order of the plan.

No block is left behind: those that are nobody's come before new ones are cut, and what a loader does not get on with is taken
from it. A loader with nothing left to begin takes half of what another has.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamwsi.pipeline.decisions import SlidePlan

_PATIENCE = 2
"""A block waits for its loader until all loaders have taken so many times as many chunks as it has, each."""


@dataclass(slots=True)
class Block:
    """Chunks of neighbouring columns and rows, taken row by row."""

    first: int
    """The one at the top left."""
    columns: int
    rows: int
    step: int
    """From a chunk to the one below it."""
    taken: int = 0
    """How many were."""
    begun: int = 0
    """How many chunks loaders had taken in all when its loader got it."""

    def __len__(self) -> int:
        return self.columns * self.rows - self.taken

    @property
    def next(self) -> int:
        """The chunk to take next."""
        row, column = divmod(self.taken, self.columns)
        return self.first + row * self.step + column

    @property
    def below(self) -> int:
        """The first chunk of the block below it."""
        return self.first + self.rows * self.step

    def split(self) -> Block:
        """Cut off the lower half of the rows that were not begun, or take all that is left where that is less than two."""
        rows = (self.rows - self.taken // self.columns) // 2
        if rows:
            self.rows -= rows
            return Block(self.below, self.columns, rows, self.step)
        return self.give_up()

    def give_up(self) -> Block:
        """Take all that is left out of it, as another block."""
        rest = Block(self.first, self.columns, self.rows, self.step, self.taken)
        self.taken = self.columns * self.rows
        return rest


class Blocks:
    """The chunks of one slide that no loader has taken yet.

    Parameters
    ----------
    plan
        How they lie.
    rows
        Of a block, at most; None: as many as the plan says.
    """

    def __init__(self, plan: SlidePlan, rows: int | None = None) -> None:
        self._plan = plan
        self._rows = rows
        self._next = 0
        """No chunk from this one on is in a block yet."""
        self._free: list[Block] = []
        """Blocks that are no loader's; the first comes first."""
        self._held: dict[str, Block] = {}
        """By loader, the last that it got, with chunks left or not."""

    def block_for(self, loader: str, n_loaders: int, now: int) -> Block | None:
        """The block that a loader goes on with, or gets: one with chunks left, or None where others have all that there are.

        `n_loaders` share the slide, and have taken `now` chunks in all, of any slide.
        """
        own = self._held.get(loader)
        if own is not None and len(own):
            return own
        for block in self._held.values():
            if len(block) and now - block.begun > _PATIENCE * n_loaders * block.columns * block.rows:
                return self._give(loader, block.give_up(), now)
        if not self._free:
            self._cut(n_loaders)
        if not self._free:
            return None
        below = -1 if own is None else own.below
        place = next((place for place, block in enumerate(self._free) if block.first == below), 0)
        return self._give(loader, self._free.pop(place), now)

    def part_for(self, loader: str, least: int, now: int) -> Block | None:
        """A part of another loader's block that has at least so many chunks left; None where none has."""
        largest = max(self._held.values(), key=len, default=None)
        if largest is None or len(largest) < max(least, 1):
            return None
        return self._give(loader, largest.split(), now)

    def loader_went(self, loader: str) -> None:
        """What it had is for others."""
        block = self._held.pop(loader, None)
        if block is not None and len(block):
            self._free.append(block)
            self._free.sort(key=lambda block: block.next)

    @property
    def empty(self) -> bool:
        """Every chunk was taken."""
        return self._next >= len(self._plan) and not self._free and not any(map(len, self._held.values()))

    def _give(self, loader: str, block: Block, now: int) -> Block:
        block.begun = now
        self._held[loader] = block
        return block

    def _cut(self, n_loaders: int) -> None:
        """Cut the next rows into blocks."""
        first = self._next
        if first >= len(self._plan):
            return
        rows, columns, step = self._plan.block_at(first, n_loaders)
        rows = rows if self._rows is None else min(rows, self._rows)
        self._free += [Block(first + left, min(columns, step - left), rows, step) for left in range(0, step, columns)]
        self._next += rows * step
