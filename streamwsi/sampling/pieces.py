"""Polygons cut into small pieces, so that what boxes share with them is computed from few of their edges.

In: rings.  Out: areas of boxes.  Decides nothing about what touches what: areas are as exact as floating-point numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamwsi.geometry import Int64Array
from streamwsi.regions.extra import needed
from streamwsi.regions.mask import BoolArray, Float64Array

_MOST_CORNERS = 32
"""Of a piece: what a box shares with it takes time for each."""
_SMALLEST = 2.0**-20
"""Side of a piece that is not cut further: corners may lie upon one another."""
_DEEPEST = 40
"""How often a polygon is halved, at most."""
_MOST_EDGES = 1 << 20
"""Edges that are looked at together."""


class Pieces:
    """Small pieces of an area, and what boxes share with them.

    Parameters
    ----------
    rings
        (n, 2) each, the first corner not repeated. An area is counted as positive where x grows along its edges of larger y.

    Source: the area below a polygon's edges, cut off at the box, added up with the sign of their direction (Green's theorem);
    Sutherland I. E. and Hodgman G. W., "Reentrant polygon clipping", Communications of the ACM 17 (1974) 32–42. The edges that
    lie upon one another where rings are cut cancel each other's area.
    """

    def __init__(self, rings: Sequence[Float64Array]) -> None:
        edges, piece = _cut(
            np.concatenate(rings),
            np.repeat(np.arange(len(rings)), [len(each) for each in rings]),
        )
        order = np.argsort(piece, kind="stable")
        edges, piece = edges[order], piece[order]
        self._begins: Int64Array = np.flatnonzero(_differs(piece)).astype(np.int64)
        self._counts: Int64Array = np.diff(np.append(self._begins, len(piece)))
        self._edges: Float64Array = edges
        """(n, 4): both ends of each edge, piece by piece."""
        low, high = np.minimum.reduceat(edges, self._begins)[:, :2], np.maximum.reduceat(edges, self._begins)[:, :2]
        self._bounds = low, high
        below = (edges[:, 2] - edges[:, 0]) * ((edges[:, 1] + edges[:, 3]) / 2 - np.repeat(low[:, 1], self._counts))
        self._areas: Float64Array = np.add.reduceat(below, self._begins)
        self._shapely: Any = needed("shapely", "a region of polygons")
        self._tree = self._shapely.STRtree(self._shapely.box(*low.T, *high.T))

    def shared(self, xy: Float64Array, size: Float64Array) -> Float64Array:
        """How much of each box lies in the area, (n,), in the unit of the rings squared; `xy` and `size` are (n, 2)."""
        box, piece = self._tree.query(self._shapely.box(*xy.T, *(xy + size).T))
        low, high = self._bounds
        whole = ((low[piece] >= xy[box]) & (high[piece] <= xy[box] + size[box])).all(axis=1)
        areas: Float64Array = np.bincount(box[whole], self._areas[piece[whole]], len(xy)).astype(np.float64)
        box, piece = box[~whole], piece[~whole]
        pairs = np.cumsum(self._counts[piece])
        for number in range(int(pairs[-1]) // _MOST_EDGES + 1 if len(pairs) else 0):
            rows = pairs // _MOST_EDGES == number
            areas += self._sums(box[rows], piece[rows], xy, size)
        return areas

    def _sums(self, box: Int64Array, piece: Int64Array, xy: Float64Array, size: Float64Array) -> Float64Array:
        counts = self._counts[piece]
        row = np.arange(counts.sum()) + np.repeat(self._begins[piece] - (np.cumsum(counts) - counts), counts)
        of_box = np.repeat(box, counts)
        x0, y0, x1, y1 = self._edges[row].T
        (left, top), (width, height) = xy[of_box].T, size[of_box].T
        across = x1 - x0
        start, end = (np.clip(x, left, left + width) for x in (x0, x1))
        slope = np.divide(y1 - y0, across, out=np.zeros_like(across), where=across != 0)
        one, other = (y0 + (x - x0) * slope - top for x in (start, end))
        low, high = np.minimum(one, other), np.maximum(one, other)
        cut_low, cut_high = np.clip(low, 0, height), np.clip(high, 0, height)
        # below the edge, over its length: where it lies in the box, and where it lies beyond
        below = (cut_high - cut_low) * (cut_low + cut_high) / 2 + np.maximum(high - np.maximum(low, height), 0) * height
        mean = np.divide(below, high - low, out=cut_low.copy(), where=high > low)
        sums: Float64Array = np.bincount(of_box, (end - start) * mean, len(xy)).astype(np.float64)
        return sums


def _cut(points: Float64Array, ring: Int64Array) -> tuple[Float64Array, Int64Array]:
    """Rings in pieces of few corners, halved again and again along the longer side: edges, (n, 4), and their pieces, (n,)."""
    piece = np.zeros(len(points), np.int64)
    edges, pieces = [np.empty((0, 4))], [np.empty(0, np.int64)]
    for depth in range(_DEEPEST + 1):
        begins = np.flatnonzero(_differs(piece))
        counts = np.diff(np.append(begins, len(piece)))
        low, high = np.minimum.reduceat(points, begins), np.maximum.reduceat(points, begins)
        small = (counts <= _MOST_CORNERS) | ((high - low).max(axis=1) <= _SMALLEST)
        done = np.repeat(small | (depth == _DEEPEST), counts)
        edges.append(np.hstack([points, points[_following(ring)]])[done])
        pieces.append(piece[done] * (_DEEPEST + 1) + depth)  # each depth has numbers of its own
        if done.all():
            break
        axis = np.argmax(high - low, axis=1)
        middle = np.take_along_axis((low + high) / 2, axis[:, None], axis=1)[:, 0]
        axis, middle, number = (np.repeat(each, counts)[~done] for each in (axis, middle, np.arange(len(begins))))
        points, ring = points[~done], ring[~done]
        along = np.take_along_axis(points, axis[:, None], axis=1)[:, 0]
        halves = [_clipped(points, ring, inside, axis, middle) for inside in (along <= middle, along >= middle)]
        points = np.concatenate([half[0] for half in halves])
        row = np.concatenate([half[1] for half in halves])
        piece = number[row] * 2 + np.repeat((0, 1), [len(half[1]) for half in halves])
        order = np.argsort(piece, kind="stable")
        points, piece = points[order], piece[order]
        # what is left of a ring in one half is a ring of its own
        ring = np.cumsum(_differs(piece) | _differs(ring[row][order]))
    return np.concatenate(edges), np.concatenate(pieces)


def _clipped(
    points: Float64Array, ring: Int64Array, inside: Any, axis: Int64Array, at: Float64Array
) -> tuple[Float64Array, Int64Array]:
    """What of rings lies on one side of lines, each corner's own: the corners `inside`, and where edges cross.

    Returns the corners, (n, 2), and the rows of those that they are, or come after.
    """
    after = _following(ring)
    crossing = np.flatnonzero(inside != inside[after])
    here, there, across = points[crossing], points[after[crossing]], axis[crossing]
    rows = np.arange(len(crossing))
    share = (at[crossing] - here[rows, across]) / (there[rows, across] - here[rows, across])
    crossed = here + (there - here) * share[:, None]
    crossed[rows, across] = at[crossing]
    counts = inside.astype(np.int64)
    counts[crossing] += 1
    first = np.cumsum(counts) - counts
    clipped = np.empty((counts.sum(), 2))
    clipped[first[inside]] = points[inside]
    clipped[first[crossing] + inside[crossing]] = crossed
    return clipped, np.repeat(np.arange(len(points)), counts)


def _following(ring: Int64Array) -> Int64Array:
    """For each corner, the place of the next one of its ring."""
    after: Int64Array = np.arange(1, len(ring) + 1)
    begins = np.flatnonzero(_differs(ring))
    after[np.append(begins[1:], len(ring)) - 1] = begins
    return after


def _differs(numbers: Int64Array) -> BoolArray:
    """Which of them are not the one before; (n,) bool, of at least one."""
    return np.append(True, numbers[1:] != numbers[:-1])
