"""Who may touch which slot of the shared memory: a pure ledger.

In: what was handed to whom, what came back, who has ended.  Out: free slots.  Knows no memory and no process.

A slot belongs to one worker at a time: to the loader that reads a chunk into it, then to the collector that works on it. It is
free again when that worker has said that it is done with it, or has ended; not when the scheduler has lost interest in the
chunk, for the worker may not know that yet.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Held:
    slot: int
    holder: str
    filled: bool = False
    """The loader is done with it: nobody touches it until it is passed on."""
    skipped: bytes = b""


class Slots:
    """Slots 0 to `count` - 1, by the leases whose chunks they hold."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._held: dict[int, _Held] = {}

    def take(self, lease: int, loader: str) -> int | None:
        """A free slot for a chunk, now the loader's; None where there is none."""
        if not self._free or lease in self._held:
            return None
        slot = self._free.pop()  # the one used last: its memory may still be in the processor's cache
        self._held[lease] = _Held(slot, loader)
        return slot

    def slot_of(self, lease: int) -> int | None:
        """The slot that holds a chunk; None where none does."""
        held = self._held.get(lease)
        return None if held is None else held.slot

    def filled(self, lease: int, skipped: bytes) -> None:
        """The loader has read the chunk, and is done with its slot; `skipped` says which of its windows could not be read."""
        held = self._held.get(lease)
        if held is not None:
            held.filled, held.skipped = True, skipped

    def pass_on(self, lease: int, collector: str) -> bytes:
        """A chunk is the collector's from now on. Returns which of its windows could not be read."""
        held = self._held[lease]
        held.holder = collector
        return held.skipped

    def drop(self, lease: int) -> None:
        """The chunk is not wanted any more: its slot is free, unless a loader is still reading into it, who will say so."""
        held = self._held.get(lease)
        if held is not None and held.filled:
            self.give_back(lease)

    def give_back(self, lease: int) -> None:
        """Whoever held the slot of a lease is done with it. Harmless where it is free already."""
        held = self._held.pop(lease, None)
        if held is not None:
            self._free.append(held.slot)

    def holder_went(self, name: str) -> None:
        """A worker has ended; what it held is free."""
        for lease in [lease for lease, held in self._held.items() if held.holder == name]:
            self.give_back(lease)

    def __len__(self) -> int:
        """How many are free."""
        return len(self._free)
