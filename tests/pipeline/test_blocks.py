"""Blocks alone: loaders that ask in any order, come and go; every chunk is taken once, near the order of the plan."""

from __future__ import annotations

from collections import defaultdict

import hypothesis.strategies as st
import pytest
from hypothesis import given

from streamwsi.geometry import ChunkGrid
from streamwsi.pipeline.blocks import Blocks

grids = st.builds(
    ChunkGrid,
    shape=st.tuples(st.integers(1, 300), st.integers(1, 60)),
    block=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    band=st.integers(0, 7),
)


def take(blocks: Blocks, loader: str, n_loaders: int, now: int, least: int = 1) -> int | None:
    block = blocks.block_for(loader, n_loaders, now) or blocks.part_for(loader, least, now)
    if block is None:
        return None
    chunk = block.next
    block.taken += 1
    return chunk


@given(grids, st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_every_chunk_is_taken_once_whoever_asks_and_whoever_goes(grid, n_loaders, expected, luck):
    blocks, taken = Blocks(grid, luck.choice([None, 1, 4])), []
    names = [f"loader-{number}" for number in range(n_loaders)]
    while not blocks.empty:
        if luck.random() < 0.02:
            blocks.loader_went(luck.choice(names))
        chunk = take(blocks, luck.choice(names), expected, len(taken))
        assert chunk is not None, "a loader is told that there is nothing, and there is"
        taken.append(chunk)
    assert sorted(taken) == list(range(len(grid)))
    assert all(take(blocks, name, expected, len(taken)) is None for name in names)


@given(grids)
def test_one_loader_takes_them_in_the_order_of_the_plan(grid):
    blocks = Blocks(grid)
    assert [take(blocks, "loader", 1, now) for now in range(len(grid))] == list(range(len(grid)))


@given(st.integers(1, 9))
def test_chunks_in_no_rows_come_in_the_order_of_the_plan_for_any_number_of_loaders(n_loaders):
    class Sampled:
        def __len__(self) -> int:
            return 20

        def n_windows(self, chunk: int) -> int:
            return 1

        def block_at(self, chunk: int, n_loaders: int) -> tuple[int, int, int]:
            return 1, 1, 1

    blocks = Blocks(Sampled())
    assert [take(blocks, f"loader-{now % n_loaders}", n_loaders, now) for now in range(20)] == list(range(20))


@pytest.mark.parametrize("n_loaders", [2, 3, 4])
def test_each_loader_keeps_to_its_columns(n_loaders):
    grid = ChunkGrid((16000, 288), (8, 24))
    blocks, columns = Blocks(grid), defaultdict(set)
    for now in range(len(grid)):
        name = f"loader-{now % n_loaders}"
        columns[name].add(take(blocks, name, n_loaders, now) % 12)
    assert all(len(own) == 12 // n_loaders for own in columns.values())


@pytest.mark.parametrize("columns", [1, 2])
def test_more_loaders_than_columns_take_runs_of_rows(columns):
    grid, n_loaders = ChunkGrid((4096, columns * 32), (4, 32)), 4
    blocks, reader = Blocks(grid), {}
    for now in range(len(grid)):
        name = f"loader-{now % n_loaders}"
        reader[take(blocks, name, n_loaders, now)] = name
    parted = sum(reader[chunk] != reader[chunk - columns] for chunk in range(columns, len(grid)))
    assert parted <= len(grid) / 15


@pytest.mark.parametrize("shape", [(8000, 1), (8000, 3), (8000, 12)])
@pytest.mark.parametrize("n_loaders", [2, 3, 8])
def test_what_a_loader_that_stands_still_has_is_taken_by_others_before_they_get_far(shape, n_loaders):
    grid = ChunkGrid((shape[0] * 4, shape[1] * 32), (4, 32))
    blocks, taken, most = Blocks(grid), set(), 0
    names = [f"loader-{number}" for number in range(n_loaders)]
    first = 0
    for now in range(len(grid)):
        name = names[0] if now == 0 else names[1 + now % (n_loaders - 1)]
        taken.add(take(blocks, name, n_loaders, now))
        while first in taken:
            first += 1
        most = max(most, now - first)
    rows, columns, _ = grid.block_at(0, n_loaders)
    assert most <= 5 * n_loaders * rows * columns < len(grid)


def test_what_a_loader_had_that_went_comes_first():
    blocks = Blocks(ChunkGrid((16000, 128), (2, 64)))
    begun = [take(blocks, name, 2, 0) for name in ("first", "second", "first", "second")]
    assert begun == [0, 1, 2, 3]
    blocks.loader_went("first")
    assert take(blocks, "third", 2, 4) == 4


def test_a_loader_with_nothing_left_takes_half_of_anothers_rows_and_a_busy_one_only_where_many_are_left():
    blocks = Blocks(ChunkGrid((10, 1), (1, 1)))
    assert take(blocks, "first", 1, 0) == 0
    assert take(blocks, "busy", 1, 1, least=10) is None
    assert [take(blocks, "idle", 1, 1) for _ in range(2)] == [6, 7]
    assert [take(blocks, "first", 1, 2) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert take(blocks, "first", 1, 3) == 9  # and leaves 8
