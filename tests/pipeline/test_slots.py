"""A slot is touched by one worker at a time, whatever order things happen in, and none is lost."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from streamwsi.pipeline.slots import Slots

COUNT = 3
LOADERS, COLLECTORS = ("loader-0", "loader-1"), ("collector-0", "collector-1")


class SlotsMachine(RuleBasedStateMachine):
    """Loaders that fill slots, collectors that work on them, deaths of either, and chunks that nobody wants any more.

    The model is who may touch which slot; the worker that does so says what it has done some time later, or ends.
    """

    reading, filled, collecting = Bundle("reading"), Bundle("filled"), Bundle("collecting")

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(COUNT)
        self.next_lease = 0
        self.touched: dict[int, str] = {}
        """Who may touch a slot, by slot."""

    @rule(target=reading, loader=st.sampled_from(LOADERS))
    def read(self, loader: str) -> object:
        lease, self.next_lease = self.next_lease, self.next_lease + 1
        slot = self.slots.take(lease, loader)
        assert (slot is None) == (len(self.touched) == COUNT)
        if slot is None:
            return multiple()
        assert slot not in self.touched
        self.touched[slot] = loader
        return lease, slot, loader

    @rule(target=filled, held=consumes(reading), skipped=st.sampled_from([b"", b"\0\1"]))
    def fill(self, held: tuple[int, int, str], skipped: bytes) -> object:
        lease, slot, loader = held
        if self.touched.get(slot) != loader or self.slots.slot_of(lease) != slot:
            return multiple()  # the loader has ended meanwhile
        self.slots.filled(lease, skipped)
        return lease, slot, loader, skipped

    @rule(target=collecting, held=consumes(filled), collector=st.sampled_from(COLLECTORS))
    def send(self, held: tuple[int, int, str, bytes], collector: str) -> object:
        lease, slot, _, skipped = held
        if self.slots.slot_of(lease) != slot:
            return multiple()
        assert self.slots.pass_on(lease, collector) == skipped
        self.touched[slot] = collector
        return lease, slot, collector

    @rule(held=filled)
    def drop_what_is_filled(self, held: tuple[int, int, str, bytes]) -> None:
        lease, slot, loader, _ = held
        if self.slots.slot_of(lease) == slot and self.touched.get(slot) == loader:
            self.slots.drop(lease)
            del self.touched[slot]

    @rule(held=reading)
    def drop_what_is_being_read(self, held: tuple[int, int, str]) -> None:
        lease, slot, _ = held
        if self.slots.slot_of(lease) == slot:
            self.slots.drop(lease)
            assert self.slots.slot_of(lease) == slot  # its loader does not know yet

    @rule(held=st.one_of(consumes(reading), consumes(collecting)))
    def done(self, held: tuple[int, int, str]) -> None:
        lease, slot, holder = held
        if self.slots.slot_of(lease) == slot:
            assert self.touched.pop(slot) == holder
        self.slots.give_back(lease)
        self.slots.give_back(lease)

    @rule(name=st.sampled_from([*LOADERS, *COLLECTORS]))
    def worker_ends(self, name: str) -> None:
        self.slots.holder_went(name)
        self.touched = {slot: holder for slot, holder in self.touched.items() if holder != name}

    @invariant()
    def no_slot_is_lost(self) -> None:
        assert len(self.slots) + len(self.touched) == COUNT


TestSlots = SlotsMachine.TestCase
TestSlots.settings = settings(max_examples=100, stateful_step_count=40)


def test_there_is_no_slot_where_there_are_none() -> None:
    slots = Slots(0)
    assert slots.take(1, "loader-0") is None
    slots.filled(1, b"")
    slots.drop(1)
    slots.give_back(1)
    assert slots.slot_of(1) is None
