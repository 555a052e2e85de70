"""Who may touch which slot of the shared memory: a pure ledger.

In: what was handed to whom, what came back, who has ended.  Out: free slots.  Knows no memory and no process.

A slot belongs to the loader that reads a chunk into it; then to the collectors that it is passed on to, one for each branch,
and it is kept for those that are still to have it. It is free when nobody is, and each of those that had it has said that it is
done with it, or has ended; not when the scheduler has lost interest in the chunk, for workers may not know that yet.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Held:
    slot: int
    loader: str
    reading: bool = True
    """The loader may still write into it."""
    kept: bool = True
    """There are collectors that are still to have it."""
    skipped: bytes = b""
    holders: set[str] = field(default_factory=set)
    """Collectors that may read it."""


class Slots:
    """Slots 0 to `count` - 1, by the leases whose chunks they hold."""

    def __init__(self, count: int) -> None:
        self._free = deque(range(count))
        self._held: dict[int, _Held] = {}

    def take(self, lease: int, loader: str) -> int | None:
        """A free slot for a chunk, now the loader's; None where there is none."""
        if not self._free or lease in self._held:
            return None
        # The one that is free for longest, so that what a run maps does not depend on chance. None is in the processor's cache:
        # to take the one used last is as fast, measured.
        slot = self._free.popleft()
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
            held.reading, held.skipped = False, skipped
            self._free_if_unused(lease, held)

    def pass_on(self, lease: int, collector: str, last: bool = True) -> bytes:
        """A chunk is the collector's too from now on, and nobody else is to have it if it is the `last`.

        Returns which of its windows could not be read.
        """
        held = self._held[lease]
        held.holders.add(collector)
        held.kept = not last
        return held.skipped

    def drop(self, lease: int) -> None:
        """Nobody else is to have the chunk. If a loader is still reading it, the slot is that loader's until it says so."""
        held = self._held.get(lease)
        if held is not None:
            held.kept = False
            self._free_if_unused(lease, held)

    def unread(self, lease: int) -> None:
        """The loader is done with a slot into which it has read nothing that is wanted."""
        held = self._held.get(lease)
        if held is not None:
            held.reading = held.kept = False
            self._free_if_unused(lease, held)

    def give_back(self, lease: int, collector: str) -> None:
        """A collector is done with the slot of a lease; harmless where it was not its."""
        held = self._held.get(lease)
        if held is not None:
            held.holders.discard(collector)
            self._free_if_unused(lease, held)

    def holder_went(self, name: str) -> None:
        """A worker has ended; what it held is free. What a loader has read is read again, so nobody else is to have it."""
        for lease, held in list(self._held.items()):
            held.holders.discard(name)
            if held.loader == name:
                held.reading = held.kept = False
            self._free_if_unused(lease, held)

    def _free_if_unused(self, lease: int, held: _Held) -> None:
        if not (held.reading or held.kept or held.holders):
            self._free.append(held.slot)
            del self._held[lease]

    def __len__(self) -> int:
        """How many are free."""
        return len(self._free)
