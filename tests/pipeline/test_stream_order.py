"""Every part comes once, in an order that depends on nothing but the members and the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from streamwsi.pipeline.stream_order import Draw, random_of

SIZES = st.lists(st.integers(0, 9), max_size=12)


def drawn(
    sizes: Sequence[int], width: int, random: np.random.Generator | None, eager: Callable[[], bool] = lambda: True
) -> list[tuple[int, int]]:
    """All parts; `eager` says whether a member is added as soon as it is wanted, or after a useless attempt to draw."""
    draw: Draw[int] = Draw(width, random)
    coming, out, ended = list(enumerate(sizes)), [], []
    while not draw.done:
        while draw.wants:
            if not eager():
                assert draw.take() is None
            if coming:
                draw.add(*coming.pop(0))
            else:
                draw.close()
        found = draw.take()
        if found is not None:
            out.append((found.key, found.part))
            assert found.key not in ended
            if found.last:
                ended.append(found.key)
    assert sorted(ended) == [key for key, size in enumerate(sizes) if size]
    assert draw.take() is None
    return out


@given(SIZES, st.integers(1, 5))
def test_without_a_generator_parts_come_in_order(sizes: list[int], width: int) -> None:
    assert drawn(sizes, width, None) == [(key, part) for key, size in enumerate(sizes) for part in range(size)]


@given(SIZES, st.integers(1, 5), st.integers(0, 2**70), st.data())
def test_a_shuffle_is_a_permutation_and_depends_on_the_seed_alone(
    sizes: list[int], width: int, seed: int, data: st.DataObject
) -> None:
    first = drawn(sizes, width, random_of(seed, 0, 0))
    assert sorted(first) == [(key, part) for key, size in enumerate(sizes) for part in range(size)]
    assert drawn(sizes, width, random_of(seed, 0, 0), lambda: data.draw(st.booleans())) == first


@given(SIZES, st.integers(1, 5))
def test_no_more_members_than_the_width_are_drawn_from_at_a_time(sizes: list[int], width: int) -> None:
    keys = [key for key, _ in drawn(sizes, width, random_of(1, 0, 0))]
    spans = [(keys.index(key), len(keys) - keys[::-1].index(key)) for key in set(keys)]
    for place in range(len(keys)):
        assert sum(first <= place < last for first, last in spans) <= width


def test_passes_seeds_and_purposes_have_orders_of_their_own() -> None:
    orders = [drawn([9, 9, 9], 3, random_of(*of)) for of in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("width", [3, 4])
def test_every_order_is_as_likely_as_another_where_all_members_are_drawn_from(width: int) -> None:
    """Over 3 + 1 parts of two members: 24 orders, each 100 times in 2400 draws, give or take."""
    random = random_of(0, 0, 0)
    counts = Counter(tuple(drawn([3, 1], width, random)) for _ in range(2400))
    assert len(counts) == 24
    chi_squared = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi_squared < 49.7  # the 0.999 quantile, 23 degrees of freedom


def test_while_others_come_each_member_is_as_likely_as_another() -> None:
    keys = [key for key, _ in drawn([1000, 50, *[1] * 2000], 3, random_of(0, 0, 0))][:900]
    assert 240 < keys.count(0) < 360  # a third, not 20 times the share of what has 50 parts
