"""Tiles are decoded once for all who ask, and the cache never holds more than it may."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamwsi.memory import block_bytes
from streamwsi.slides.tile_cache import TileCache
from tests.helpers import UInt8Array

CAPACITY = 1000
WAIT_S = 20
"""For what happens at once unless something is wrong."""


def tile(size: int, value: int = 0) -> UInt8Array:
    return np.full(size, value, np.uint8)


class Damaged(Exception):
    pass


class CacheMachine(RuleBasedStateMachine):
    """One thread, any order of calls: the cache is a dictionary of those decoded last, few of them passing, which are still
    wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = TileCache(CAPACITY)
        self.kept: dict[tuple[int, int], UInt8Array] = {}
        """As the cache should be, the one decoded last at the end."""
        self.passing: set[tuple[int, int]] = set()
        self.wanted: dict[tuple[int, int], int] = {}

    @rule(
        owner=st.integers(0, 2),
        number=st.integers(0, 5),
        size=st.integers(1, 1300),
        damaged=st.booleans(),
        passing=st.booleans(),
        wanted=st.none() | st.integers(1, 4),
    )
    def get(self, owner: int, number: int, size: int, damaged: bool, passing: bool, wanted: int | None) -> None:
        key, made = (owner, number), []

        def decode() -> UInt8Array:
            if damaged:
                raise Damaged
            made.append(tile(size))
            return made[0]

        if key in self.kept:
            assert self.cache.get(key, decode, passing, wanted) is self.kept[key] and not made
            if wanted is None:
                self.wanted.pop(key, None)
            elif key in self.wanted:
                self.wanted[key] -= 1
                if not self.wanted[key]:
                    self.let_go(key)
        elif damaged:
            with pytest.raises(Damaged):
                self.cache.get(key, decode, passing, wanted)
        else:
            assert self.cache.get(key, decode, passing, wanted) is made[0]
            if wanted == 1:
                return
            self.kept[key] = made[0]
            if wanted is not None:
                self.wanted[key] = wanted - 1
            self.passing = {*self.passing & self.kept.keys(), *([key] if passing else [])}
            while sum(self.kept[other].nbytes for other in self.passing) > CAPACITY / 4:
                oldest = next(other for other in self.kept if other in self.passing)
                self.let_go(oldest)
            while sum(kept.nbytes for kept in self.kept.values()) > CAPACITY:
                oldest = next(iter(self.kept))
                self.let_go(oldest)

    def let_go(self, key: tuple[int, int]) -> None:
        del self.kept[key]
        self.passing.discard(key)
        self.wanted.pop(key, None)

    @rule(owner=st.integers(0, 2))
    def forget(self, owner: int) -> None:
        self.cache.forget(owner)
        for key in [key for key in self.kept if key[0] == owner]:
            self.let_go(key)

    @invariant()
    def holds_what_it_should(self) -> None:
        assert self.cache.held_bytes == sum(kept.nbytes for kept in self.kept.values()) <= CAPACITY


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=30)


def test_threads_that_ask_for_one_tile_wait_for_one_decode():
    cache, begun, go = TileCache(CAPACITY), threading.Event(), threading.Event()
    decoded = []

    def decode() -> UInt8Array:
        decoded.append(threading.get_ident())
        begun.set()
        assert go.wait(WAIT_S)
        return tile(10)

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(cache.get, (0, 0), decode) for _ in range(8)]
        assert begun.wait(WAIT_S)
        go.set()
        tiles = [each.result(WAIT_S) for each in asked]
    assert len(decoded) == 1 and all(found is tiles[0] for found in tiles)


def test_a_tile_that_is_being_decoded_does_not_hold_up_others():
    cache, go = TileCache(CAPACITY), threading.Event()

    def slow() -> UInt8Array:
        assert go.wait(WAIT_S)
        return tile(10)

    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(cache.get, (0, 0), slow)
        assert threads.submit(cache.get, (0, 1), lambda: tile(5)).result(WAIT_S).nbytes == 5
        cache.forget(1)
        go.set()
        waiting.result(WAIT_S)
    assert cache.held_bytes == 15


def test_an_error_reaches_each_who_asks_and_does_not_stay():
    cache, begun, go = TileCache(CAPACITY), threading.Event(), threading.Event()

    def damaged() -> UInt8Array:
        begun.set()
        assert go.wait(WAIT_S)
        raise Damaged

    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(cache.get, (0, 0), damaged) for _ in range(6)]
        assert begun.wait(WAIT_S)
        go.set()
        assert all(isinstance(each.exception(WAIT_S), Damaged) for each in asked)
    assert cache.held_bytes == 0
    assert cache.get((0, 0), lambda: tile(7)).nbytes == 7 == cache.held_bytes


def decoding(cache: TileCache, outcome: Callable[[], UInt8Array], meanwhile: Callable[[], None]) -> UInt8Array:
    """``cache.get`` in another thread, with something done while it decodes."""
    begun, go = threading.Event(), threading.Event()

    def decode() -> UInt8Array:
        begun.set()
        assert go.wait(WAIT_S)
        return outcome()

    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(cache.get, (0, 0), decode)
        assert begun.wait(WAIT_S)
        meanwhile()
        go.set()
        return asked.result(WAIT_S)


def test_a_tile_that_is_forgotten_while_it_is_decoded_is_given_and_not_kept():
    cache = TileCache(CAPACITY)
    assert decoding(cache, lambda: tile(10), lambda: cache.forget(0)).nbytes == 10
    assert cache.held_bytes == 0


def test_a_failed_decode_that_was_forgotten_does_not_take_another_tile_along():
    cache = TileCache(CAPACITY)

    def damaged() -> UInt8Array:
        raise Damaged

    def meanwhile() -> None:
        cache.forget(0)
        cache.get((0, 0), lambda: tile(10, value=1))

    with pytest.raises(Damaged):
        decoding(cache, damaged, meanwhile)
    assert cache.held_bytes == 10
    assert cache.get((0, 0), damaged)[0] == 1


def test_many_threads_never_hold_more_than_the_capacity():
    cache, most, lock = TileCache(CAPACITY), 0, threading.Lock()

    def work(seed: int) -> None:
        nonlocal most
        random = np.random.default_rng(seed)
        for _ in range(400):
            owner, number = random.integers(0, [3, 30]).tolist()
            size = 20 + 7 * number
            if random.random() < 0.02:
                cache.forget(owner)
            found = cache.get((owner, number), lambda size=size, number=number: tile(size, number))
            assert found.nbytes == size and found[0] == number
            with lock:
                most = max(most, cache.held_bytes)

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(work, seed) for seed in range(6)]:
            done.result(WAIT_S)
    assert 0 < most <= CAPACITY
    for owner in range(3):
        cache.forget(owner)
    assert cache.held_bytes == 0


def test_memory_of_tiles_that_all_have_had_is_used_again():
    cache, places = TileCache(CAPACITY * 100), []
    for number in range(20):
        for _ in range(2):
            found = cache.get_into((0, number), filled(number), (10, 3), wanted=2)
            assert (found == number).all()
        places.append(found.__array_interface__["data"][0])
        del found
    assert cache.held_bytes == 0 and len(set(places)) <= 2


def test_memory_is_not_used_again_while_anyone_has_the_tile():
    cache, kept = TileCache(CAPACITY * 100), []
    for number in range(20):
        for _ in range(2):
            kept.append(cache.get_into((0, number), filled(number), (10, 3), wanted=2)[2:5])
    for place, rows in enumerate(kept):
        assert (rows == place // 2).all()


def test_threads_find_in_a_tile_what_was_decoded_whoever_uses_memory_again():
    cache = TileCache(50 * 200)

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(600):
            number = int(random.integers(0, 40))
            found = cache.get_into((0, number), filled(number), (10, 5), wanted=int(random.integers(1, 4)))
            assert (found == number).all()
            del found

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(work, seed) for seed in range(6)]:
            done.result(WAIT_S)


def test_little_memory_waits_to_be_used_again_and_none_of_a_slide_that_was_closed():
    shape = (10, 3)
    cache = TileCache(3 * 16 * block_bytes(shape))
    held = [cache.get_into((0, number), filled(0), shape, wanted=1) for number in range(20)]
    del held
    assert cache.free_bytes == 3 * block_bytes(shape)
    small = TileCache(block_bytes(shape))
    small.get_into((0, 0), filled(0), shape, wanted=1)
    assert small.free_bytes == 0
    closed = TileCache(CAPACITY * 100)
    closed.get_into((0, 0), filled(0), shape, wanted=2)
    closed.forget(0)
    assert closed.free_bytes == closed.held_bytes == 0


def test_memory_of_a_tile_that_all_have_asked_for_while_it_was_decoded_is_used_again():
    cache, begun, go = TileCache(CAPACITY * 100), threading.Event(), threading.Event()

    def slow(out: UInt8Array) -> None:
        begun.set()
        assert go.wait(WAIT_S)
        out[...] = 3

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(cache.get_into, (0, 0), slow, (10, 3), wanted=2)
        assert begun.wait(WAIT_S)
        second = threads.submit(cache.get_into, (0, 0), slow, (10, 3), wanted=2)
        while (0, 0) in cache:
            threading.Event().wait(0.001)
        go.set()
        assert (first.result(WAIT_S) == 3).all() and (second.result(WAIT_S) == 3).all()
    assert cache.held_bytes == 0 and cache.free_bytes == block_bytes((10, 3))


def test_a_tile_that_somebody_asks_for_who_does_not_know_how_often_is_kept():
    cache = TileCache(CAPACITY)
    cache.get((0, 0), lambda: tile(10), wanted=2)
    cache.get((0, 0), lambda: tile(10))
    cache.get((0, 0), lambda: tile(10), wanted=2)
    assert cache.held_bytes == 10


def test_what_a_decoder_owns_is_not_written_to():
    cache, owned = TileCache(CAPACITY * 100), tile(block_bytes((10, 3)), 7)
    for _ in range(2):
        cache.get((0, 0), lambda: owned[:30].reshape(10, 3), wanted=2)
    for number in range(1, 4):
        cache.get_into((0, number), filled(0), (10, 3), wanted=1)
    assert (owned == 7).all()


def filled(value: int) -> Callable[[UInt8Array], None]:
    """Decodes a tile of one value."""

    def decode(out: UInt8Array) -> None:
        out[...] = value

    return decode
