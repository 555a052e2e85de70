"""A slot is written by one loader at a time and read only after that, whatever order things happen in, and none is lost."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from streamwsi.pipeline.slots import Slots

COUNT = 3
LOADERS, COLLECTORS = ("loader-0", "loader-1"), ("collector-0", "collector-1", "collector-2")


@dataclass(eq=False)
class Chunk:
    """A chunk in a slot, and who may touch it."""

    lease: int
    slot: int
    loader: str
    skipped: bytes = b""
    writes: bool = True
    """Its loader may still write."""
    to_send: int = 2
    """How many collectors are still to have it."""
    readers: set[str] = field(default_factory=set)

    @property
    def used(self) -> bool:
        return self.writes or self.to_send > 0 or bool(self.readers)


class SlotsMachine(RuleBasedStateMachine):
    """Loaders that fill slots, collectors of two branches that work on them, deaths of either, and chunks that nobody wants.

    The model is who may touch which slot; the worker that does so says what it has done some time later, or ends.
    """

    chunks = Bundle("chunks")

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(COUNT)
        self.next_lease = 0
        self.known: list[Chunk] = []

    @rule(target=chunks, loader=st.sampled_from(LOADERS), to_send=st.integers(1, 2))
    def read(self, loader: str, to_send: int) -> object:
        lease, self.next_lease = self.next_lease, self.next_lease + 1
        slot = self.slots.take(lease, loader)
        used = [chunk.slot for chunk in self.known if chunk.used]
        assert (slot is None) == (len(used) == COUNT)
        if slot is None:
            return multiple()
        assert slot not in used
        chunk = Chunk(lease, slot, loader, to_send=to_send)
        self.known.append(chunk)
        return chunk

    @rule(chunk=chunks, skipped=st.sampled_from([b"", b"\0\1"]))
    def is_filled(self, chunk: Chunk, skipped: bytes) -> None:
        if chunk.writes:
            self.slots.filled(chunk.lease, skipped)
            chunk.writes, chunk.skipped = False, skipped

    @rule(chunk=chunks)
    def cannot_be_read(self, chunk: Chunk) -> None:
        if chunk.writes:
            self.slots.unread(chunk.lease)
            chunk.writes, chunk.to_send = False, 0

    @rule(chunk=chunks, collector=st.sampled_from(COLLECTORS))
    def is_sent(self, chunk: Chunk, collector: str) -> None:
        if not chunk.writes and chunk.to_send and collector not in chunk.readers:
            chunk.to_send -= 1
            assert self.slots.slot_of(chunk.lease) == chunk.slot
            assert self.slots.pass_on(chunk.lease, collector, last=not chunk.to_send) == chunk.skipped
            chunk.readers.add(collector)

    @rule(chunk=chunks)
    def is_not_to_be_sent_any_more(self, chunk: Chunk) -> None:
        self.slots.drop(chunk.lease)
        chunk.to_send = 0

    @rule(chunk=chunks, collector=st.sampled_from(COLLECTORS))
    def is_given_back(self, chunk: Chunk, collector: str) -> None:
        self.slots.give_back(chunk.lease, collector)
        self.slots.give_back(chunk.lease, collector)
        chunk.readers.discard(collector)

    @rule(name=st.sampled_from([*LOADERS, *COLLECTORS]))
    def worker_ends(self, name: str) -> None:
        self.slots.holder_went(name)
        for chunk in self.known:
            chunk.readers.discard(name)
            if chunk.loader == name:
                chunk.writes, chunk.to_send = False, 0

    @rule(chunk=consumes(chunks))
    def is_forgotten(self, chunk: Chunk) -> None:
        """Late words about a slot that has passed to another chunk do no harm: leases are not used again."""
        if not chunk.used:
            assert self.slots.slot_of(chunk.lease) is None
            self.slots.filled(chunk.lease, b"")
            self.slots.unread(chunk.lease)
            self.slots.drop(chunk.lease)

    @invariant()
    def no_slot_is_lost_and_none_is_free_that_is_used(self) -> None:
        used = [chunk for chunk in self.known if chunk.used]
        assert len(self.slots) + len(used) == COUNT
        assert all(self.slots.slot_of(chunk.lease) == chunk.slot for chunk in used)


TestSlots = SlotsMachine.TestCase
TestSlots.settings = settings(max_examples=100, stateful_step_count=40)


def test_there_is_no_slot_where_there_are_none() -> None:
    slots = Slots(0)
    assert slots.take(1, "loader-0") is None
    slots.filled(1, b"")
    slots.drop(1)
    slots.unread(1)
    slots.give_back(1, "collector-0")
    assert slots.slot_of(1) is None
