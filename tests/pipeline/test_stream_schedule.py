"""The schedule of a pass against loaders that work in any order, die and come back: every chunk once, in order.

Nothing here starts a process or opens a slide.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from streamwsi.pipeline.decisions import OPENING, CloseSlide, Drop, Read, Resolve, SlideKey
from streamwsi.pipeline.stream_order import Draw, random_of
from streamwsi.pipeline.stream_schedule import Failed, Ready, StreamSchedule

AHEAD, CREDITS = 4, 2


@dataclass(frozen=True)
class Slide:
    chunks: int
    bad: int | None = None
    """The chunk that cannot be read, or OPENING."""


@dataclass
class World:
    """Loaders that carry out what they are told, in any order."""

    slides: list[Slide]
    schedule: StreamSchedule
    random: random.Random
    poison: tuple[SlideKey, int] | None = None
    """What ends every loader that works on it."""
    orders: dict[str, list[Resolve | Read]] = field(default_factory=dict)
    given: list[tuple[SlideKey, int]] = field(default_factory=list)
    failed: list[SlideKey] = field(default_factory=list)
    places: dict[int, tuple[SlideKey, int]] = field(default_factory=dict)
    open: set[SlideKey] = field(default_factory=set)
    reads: int = 0
    started: int = 0
    deaths: int = 0

    def start_loader(self) -> None:
        name = f"loader.{self.started}"
        self.started += 1
        self.orders[name] = []
        self.schedule.loader_came(name)

    def carry_out(self) -> None:
        for decision in self.schedule.decisions():
            if isinstance(decision, (Resolve, Read)):
                self.orders[decision.loader].append(decision)
            if isinstance(decision, Read):
                assert decision.slide in self.open
                assert decision.lease not in self.places
                self.places[decision.lease] = decision.slide, decision.chunk
                self.reads += 1
            elif isinstance(decision, CloseSlide):
                self.open.remove(decision.slide)
                assert not any(order.slide == decision.slide for orders in self.orders.values() for order in orders)
            elif isinstance(decision, Drop):
                del self.places[decision.lease]
        reading = [order for orders in self.orders.values() for order in orders if isinstance(order, Read)]
        assert len(reading) <= CREDITS * len(self.orders)
        assert len(self.places) <= AHEAD + self.n_dropped_reading()

    def n_dropped_reading(self) -> int:
        return sum(
            isinstance(order, Read) and order.lease not in self.places for orders in self.orders.values() for order in orders
        )

    def work(self) -> None:
        """A loader does one of its orders."""
        busy = [name for name, orders in self.orders.items() if orders]
        if not busy:
            return
        name = self.random.choice(busy)
        order = self.orders[name].pop(self.random.randrange(len(self.orders[name])))
        slide = self.slides[order.slide[1]]
        chunk = order.chunk if isinstance(order, Read) else OPENING
        if (order.slide, chunk) == self.poison:
            self.orders[name].append(order)
            self.die(name, [order])
        elif isinstance(order, Resolve):
            assert order.slide not in self.open
            if slide.bad == OPENING:
                self.schedule.slide_failed(order.slide, "cannot be opened")
            else:
                self.open.add(order.slide)
                self.schedule.slide_resolved(order.slide, slide.chunks)
        elif slide.bad == order.chunk:
            self.schedule.chunk_failed(order.lease, "cannot be read")
            self.places.pop(order.lease, None)
        else:
            assert order.slide in self.open
            assert (self.schedule.place_of(order.lease) is None) == (order.lease not in self.places)
            assert self.schedule.chunk_arrived(order.lease) == (order.lease in self.places)

    def die(self, name: str, working: list[Resolve | Read]) -> None:
        lost = self.orders.pop(name)
        leases = [order.lease for order in working if isinstance(order, Read)]
        self.schedule.loader_went(name, leases, [order.slide for order in working if isinstance(order, Resolve)])
        for order in lost:
            if isinstance(order, Read):
                self.places.pop(order.lease, None)
        self.deaths += 1
        self.start_loader()

    def take(self) -> None:
        item = self.schedule.take()
        if isinstance(item, Ready):
            self.given.append(self.places.pop(item.lease))
        elif isinstance(item, Failed):
            self.failed.append(item.slide)

    def run(self, kills: int = 0, steps: int = 20_000) -> None:
        for _ in range(steps):
            self.carry_out()
            if self.schedule.done:
                return
            if kills and self.random.random() < 0.05:
                kills -= 1
                name = self.random.choice(sorted(self.orders))
                at_work = self.orders[name][:2]
                self.die(name, at_work if self.random.random() < 0.2 else [])
            elif self.random.random() < 0.6:
                self.work()
            else:
                self.take()
        raise AssertionError("the pass does not come to its end")

    def wind_up(self) -> None:
        """Have loaders do what they were told before the end, wanted or not."""
        while any(self.orders.values()):
            self.work()
            self.carry_out()


def world(
    slides: list[Slide], loaders: int = 1, seed: int | None = None, shard: tuple[int, int] = (0, 1), order: int = 0
) -> World:
    keys = [(0, number) for number in range(len(slides))]
    draw: Draw[SlideKey] = Draw(1) if seed is None else Draw(3, random_of(seed, 0, 0))
    made = World(slides, StreamSchedule(keys, draw, AHEAD, CREDITS, itertools.count(), shard), random.Random(order))
    for _ in range(loaders):
        made.start_loader()
    return made


def in_order(slides: list[Slide]) -> list[tuple[SlideKey, int]]:
    """What is given out of them: all chunks up to the first bad one of each slide."""
    out = []
    for number, slide in enumerate(slides):
        n_good = 0 if slide.bad == OPENING else slide.chunks if slide.bad is None else min(slide.bad, slide.chunks)
        out += [((0, number), chunk) for chunk in range(n_good)]
    return out


SLIDES = st.lists(st.builds(Slide, st.integers(0, 7), st.none() | st.integers(-1, 7)), max_size=8)


@settings(max_examples=60)
@given(SLIDES, st.integers(1, 3), st.integers(0, 2), st.integers(0, 1000))
def test_chunks_come_once_and_in_order_whoever_reads_and_dies(
    slides: list[Slide], loaders: int, kills: int, order: int
) -> None:
    found = world(slides, loaders, order=order)
    found.run(kills)
    assert found.given == in_order(slides)
    bad = [(0, n) for n, slide in enumerate(slides) if slide.bad is not None and slide.bad < slide.chunks]
    assert found.failed == bad
    found.wind_up()
    assert not found.open and not found.places


@settings(max_examples=40)
@given(SLIDES, st.integers(0, 5), st.integers(1, 3), st.integers(0, 2), st.integers(0, 1000))
def test_a_shuffled_order_is_that_of_the_seed_whoever_reads_and_dies(
    slides: list[Slide], seed: int, loaders: int, kills: int, order: int
) -> None:
    first = world(slides, 1, seed)
    first.run()
    other = world(slides, loaders, seed, order=order)
    other.run(kills)
    assert other.given == first.given and other.failed == first.failed
    if all(slide.bad is None for slide in slides):
        assert sorted(first.given) == in_order(slides)


@settings(max_examples=40)
@given(SLIDES, st.none() | st.integers(0, 5), st.integers(1, 4))
def test_shards_have_every_chunk_once_between_them(slides: list[Slide], seed: int | None, ranks: int) -> None:
    slides = [Slide(slide.chunks, OPENING if slide.bad == OPENING else None) for slide in slides]
    given = []
    for rank in range(ranks):
        one = world(slides, 2, seed, (rank, ranks))
        one.run()
        given.append(one.given)
    assert sorted(itertools.chain(*given)) == in_order(slides)
    assert max(map(len, given)) - min(map(len, given)) <= 1


def test_no_more_is_ordered_than_is_taken() -> None:
    one = world([Slide(100)], 2)
    for _ in range(50):
        one.carry_out()
        one.work()
    assert one.reads == AHEAD


@pytest.mark.parametrize("chunk", [OPENING, 0, 3])
@pytest.mark.parametrize("loaders", [1, 3])
def test_what_ends_every_loader_is_given_up_and_nothing_else(chunk: int, loaders: int) -> None:
    slides = [Slide(5), Slide(5), Slide(5)]
    one = world(slides, loaders)
    one.poison = (0, 1), chunk
    one.run()
    slides[1] = Slide(5, chunk)
    assert one.given == in_order(slides) and one.failed == [(0, 1)]
    assert one.deaths == 3


def test_a_chunk_that_was_given_up_by_a_dead_loader_is_not_taken_twice() -> None:
    schedule = StreamSchedule([(0, 0)], Draw(1), AHEAD, CREDITS, itertools.count())
    schedule.loader_came("a")
    assert schedule.decisions() == [Resolve("a", (0, 0))]
    schedule.slide_resolved((0, 0), 1)
    assert schedule.decisions() == [Read("a", 0, (0, 0), 0)]
    schedule.loader_went("a")
    schedule.loader_came("b")
    assert schedule.decisions() == [Read("b", 1, (0, 0), 0)]
    assert not schedule.chunk_arrived(0)
    assert schedule.take() is None
    assert schedule.chunk_arrived(1) and not schedule.chunk_arrived(1)
    assert schedule.take() == Ready(1) and schedule.take() is None and schedule.done
