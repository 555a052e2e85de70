"""Where the windows of a slide lie on its map, and how the map is cut into blocks.

In: what a slide was resolved to, and how much smaller its map is.  Out: boxes, in pixels of the map.  Touches no values.
A box is (top, left, bottom, right): first row and column, last row + 1 and last column + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from streamwsi.geometry import Grid, Int64Array, Windows
from streamwsi.map_options import MapOptions
from streamwsi.resolved import ResolvedSlide

Box = tuple[int, int, int, int]
Place = tuple[int, int]
"""(row, column) of a block."""


@dataclass(frozen=True)
class MapFrame:
    """The pixels of a slide's map, and its blocks."""

    extent: tuple[int, int]
    """(width, height) in pixels of the map; the last ones may lie over the slide's edge."""
    reduction: int
    """Pixels of what is read, along each axis, to a pixel of the map."""
    block_px: int

    @classmethod
    def of(cls, resolved: ResolvedSlide, options: MapOptions) -> MapFrame:
        """The frame of a slide's map."""
        return cls(map_extent(resolved, options.reduction), options.reduction, options.block_px)

    def boxes(self, windows: Windows) -> Int64Array:
        """(n, 4) int64: the windows' boxes, which may reach beyond the map.

        Starts are multiples of the reduction; of windows that were cut at the edge, the last pixel may be of less.
        """
        start, size = windows.start // self.reduction, -(-windows.size // self.reduction)
        return np.concatenate([start[:, ::-1], (start + size)[:, ::-1]], axis=1)

    def clipped(self, box: Box) -> Box:
        """What of a box lies on the map; empty where nothing does."""
        top, left, bottom, right = box
        width, height = self.extent
        return max(top, 0), max(left, 0), min(bottom, height), min(right, width)

    def block(self, place: Place) -> Box:
        """The box of a block."""
        top, left = place[0] * self.block_px, place[1] * self.block_px
        return self.clipped((top, left, top + self.block_px, left + self.block_px))

    def touched(self, box: Box) -> Iterator[tuple[Place, Box]]:
        """The blocks that a box touches, in row-major order, and what of it lies in each."""
        top, left, bottom, right = self.clipped(box)
        if top >= bottom or left >= right:
            return
        side = self.block_px
        for row in range(top // side, -(-bottom // side)):
            for column in range(left // side, -(-right // side)):
                block_top, block_left, block_bottom, block_right = self.block((row, column))
                yield (
                    (row, column),
                    (max(top, block_top), max(left, block_left), min(bottom, block_bottom), min(right, block_right)),
                )


def map_extent(resolved: ResolvedSlide, reduction: int) -> tuple[int, int]:
    """(width, height) of a slide's map, in its pixels."""
    width, height = (-(-side // reduction) for side in resolved.extent)
    return width, height


def most_overlaps(resolved: ResolvedSlide) -> int:
    """A bound on how many windows hold one place; of windows that a sampler has chosen, all of them."""
    if resolved.sample is not None:
        return max(1, resolved.sample.count)
    return _most_of_grid(resolved.grid())


@lru_cache(maxsize=64)
def _most_of_grid(grid: Grid) -> int:
    most = 1
    for starts, kernel in ((grid.xs, grid.kernel[0]), (grid.ys, grid.kernel[1])):
        most *= int((np.searchsorted(starts, starts + kernel) - np.arange(len(starts))).max(initial=1))
    return most
