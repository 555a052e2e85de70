"""How many chunks need a tile, as the first that reads it says, is what reading all of them shows."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from streamwsi.loading.read import own_rectangle
from streamwsi.slides.reader import Rectangle
from streamwsi.slides.tiles import Sharing, place_of, sharing, tiles_of
from tests.writing.fabricate import resolved_slide


@settings(max_examples=150, deadline=None)
@given(
    extent=st.tuples(st.integers(40, 300), st.integers(40, 300)),
    kernel=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    stride=st.tuples(st.integers(4, 45), st.integers(4, 45)),
    block=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    tile=st.tuples(st.sampled_from([8, 16, 30]), st.sampled_from([8, 16, 30])),
)
def test_what_is_said_of_a_tile_is_so(
    extent: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], block: tuple[int, int], tile: tuple[int, int]
) -> None:
    resolved = resolved_slide(extent=extent, kernel=kernel, stride=stride, block=block)
    chunks = resolved.chunk_grid()
    readers: Counter[tuple[int, int]] = Counter()
    said = {}
    for number in range(len(chunks)):
        chunk = resolved.blank_chunk(number)
        corners = [chunk.origin] if chunk.origin is not None else chunk.corners.tolist()
        pixels = [chunk.pixels] if chunk.origin is not None else list(chunk.pixels)
        parts = [(x, y, out) for (x, y), out in zip(corners, pixels, strict=True)]
        own = own_rectangle(resolved, number)
        for place in tiles_of(extent, tile, parts, (255, 255, 255)):
            readers[place] += 1
            said.setdefault(place, sharing(place_of(extent, tile, *place), own))
    if any(step > side for step, side in zip(stride, kernel, strict=True)):
        return  # a tile may lie in a gap between windows
    for place, shared in said.items():
        if shared is None:
            assert readers[place] == 1
        elif shared.chunks is not None:
            assert shared.chunks == readers[place]


OWN = (20, 20, 80, 80)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((20, 20, 80, 80), None),
        ((10, 30, 30, 50), Sharing(rows=False, chunks=2)),
        ((70, 30, 90, 50), Sharing(rows=False, chunks=2)),
        ((30, 70, 50, 90), Sharing(rows=True, chunks=2)),
        ((70, 70, 90, 90), Sharing(rows=True, chunks=4)),
        ((10, 30, 90, 50), Sharing(rows=False, chunks=None)),
        ((30, 10, 50, 90), Sharing(rows=True, chunks=None)),
        ((70, 30, 140, 50), Sharing(rows=False, chunks=2)),
        ((70, 30, 141, 50), Sharing(rows=False, chunks=None)),
        ((30, -41, 50, 30), Sharing(rows=True, chunks=None)),
    ],
)
def test_a_tile_is_shared_with_the_neighbours_that_it_reaches_into(place: Rectangle, expected: Sharing | None) -> None:
    assert sharing(place, OWN) == expected


def test_where_a_chunk_has_nothing_of_its_own_nobody_knows_who_needs_a_tile() -> None:
    assert sharing((0, 0, 10, 10), (0, 0, 0, 0)) == Sharing(rows=True, chunks=None)
    assert sharing((0, 0, 10, 10), None) is None
