"""What loaders are to do for one pass of a stream: a pure state machine.

In: loaders that come and go, what they have opened and read, what the user has taken.  Out: decisions, and chunks in order.
Knows no process, no socket and no pixels.

Chunks are ordered ahead, as many as are allowed, and given out in the order of the plan (or of the shuffle), whichever loader
reads them and whenever. What a loader has not delivered when it ends is read again by another. A slide that fails does so when
its turn comes: chunks before it are given out first, those after it that belong to it are not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from streamwsi.pipeline.decisions import (
    DEATHS_OF_POISON,
    OPENING,
    CloseSlide,
    Drop,
    Read,
    Resolve,
    SlideKey,
    Suspect,
)
from streamwsi.pipeline.stream_order import Draw

_SLIDES_AHEAD = 4
"""Slides being opened or open whose turn has not come, for each loader."""

StreamDecision = Resolve | Read | Drop | CloseSlide


class Ready(NamedTuple):
    """A chunk has arrived and it is its turn."""

    lease: int


class Failed(NamedTuple):
    """It is the turn of a slide, or a chunk of one, that cannot be read."""

    slide: SlideKey
    reason: str


@dataclass(eq=False, slots=True)
class _Ticket:
    """A chunk whose place in the order is settled; or the place where a slide turns out to have failed."""

    slide: SlideKey
    chunk: int
    lease: int | None = None
    loader: str | None = None
    """Who reads it."""
    arrived: bool = False
    reason: str | None = None
    """Why it cannot be read."""
    deaths: int = 0
    """Loaders that have ended over it."""
    dropped: bool = False
    """Its slide has failed: it is not wanted any more, but may still be being read."""

    @property
    def waits(self) -> bool:
        return self.loader is None and not self.arrived and self.reason is None


@dataclass(eq=False, slots=True)
class _Opening:
    """A slide that is to be opened, or was, and whose turn has not come."""

    slide: SlideKey
    loader: str | None = None
    n_chunks: int | None = None
    reason: str | None = None
    deaths: int = 0

    @property
    def waits(self) -> bool:
        return self.loader is None and self.n_chunks is None and self.reason is None


@dataclass(eq=False, slots=True)
class _Loader:
    leases: set[int] = field(default_factory=set)
    opening: set[SlideKey] = field(default_factory=set)
    alone: bool = False
    """It is busy with what others have ended over, and gets nothing else."""

    @property
    def load(self) -> int:
        return len(self.leases) + len(self.opening)


class StreamSchedule:
    """One pass.

    `slides` are opened in their order, and `draw` says in which order their chunks come. `ahead` chunks are ordered before they
    are taken, `credits` of one loader at a time, each under a number of `leases`. With a `shard`, (rank, world), only every
    world-th chunk is read, from number rank on.
    """

    def __init__(
        self,
        slides: Iterable[SlideKey],
        draw: Draw[SlideKey],
        ahead: int,
        credits: int,
        leases: Iterator[int],
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self._slides = iter(slides)
        self._no_more_slides = False
        self._draw = draw
        self._ahead = ahead
        self._credits = credits
        self._leases = leases
        self._rank, self._world = shard
        self._numbered = 0
        self._loaders: dict[str, _Loader] = {}
        self._openings: deque[_Opening] = deque()
        self._tickets: deque[_Ticket] = deque()
        self._leased: dict[int, _Ticket] = {}
        self._left: dict[SlideKey, int] = {}
        """Of each open slide, how many chunks have not been read; of one that has failed, how many are still being read."""
        self._failed: set[SlideKey] = set()
        self._out: list[StreamDecision] = []

    # ---- what has happened

    def loader_came(self, name: str) -> None:
        """A loader is ready."""
        self._loaders[name] = _Loader()

    def loader_went(self, name: str, working: Iterable[int] = (), opening: Iterable[SlideKey] = ()) -> list[Suspect]:
        """A loader has ended; `working` are the chunks and `opening` the slides that it was at work on when it did.

        What it has not delivered is done again. Returns what has now ended so many that it is given up: its slide fails.
        """
        loader = self._loaders.pop(name, _Loader())
        poison: list[Suspect] = []
        suspects = set(working)
        for lease in loader.leases:
            ticket = self._leased.pop(lease)
            ticket.loader = ticket.lease = None
            if ticket.dropped:
                self._one_less(ticket.slide)
                continue
            ticket.deaths += lease in suspects
            if ticket.deaths >= DEATHS_OF_POISON:
                poison.append((ticket.slide, ticket.chunk))
                ticket.reason = f"reading its chunk {ticket.chunk} has ended {ticket.deaths} loaders"
        at_work = set(opening)
        for each in self._openings:
            if each.loader == name and each.slide in loader.opening:
                each.loader = None
                each.deaths += each.slide in at_work
                if each.deaths >= DEATHS_OF_POISON:
                    poison.append((each.slide, OPENING))
                    each.reason = f"opening it has ended {each.deaths} loaders"
        return poison

    def slide_resolved(self, slide: SlideKey, n_chunks: int) -> None:
        """A slide was opened, and is cut into so many chunks."""
        each = self._opened(slide)
        if each is not None:
            each.n_chunks = n_chunks

    def slide_failed(self, slide: SlideKey, reason: str) -> None:
        """A slide cannot be opened."""
        each = self._opened(slide)
        if each is not None:
            each.reason = reason

    def chunk_arrived(self, lease: int) -> bool:
        """A chunk is there. False: it is not wanted (any more)."""
        ticket = self._leased.get(lease)
        if ticket is None or ticket.arrived:
            return False
        self._read_by_loader(ticket)
        ticket.arrived = True
        self._one_less(ticket.slide)
        if ticket.dropped:
            del self._leased[lease]
        return not ticket.dropped

    def chunk_failed(self, lease: int, reason: str) -> None:
        """A chunk cannot be read, or was not because it is not wanted any more."""
        ticket = self._leased.get(lease)
        if ticket is None or ticket.arrived:
            return
        self._read_by_loader(ticket)
        self._one_less(ticket.slide)
        del self._leased[lease]
        ticket.lease, ticket.reason = None, reason

    def take(self) -> Ready | Failed | None:
        """The next in order; None where it is not there yet, or nothing is left."""
        head = self._tickets[0] if self._tickets else None
        if head is None:
            return None
        if head.reason is not None:
            self._tickets.popleft()
            self._give_up(head.slide)
            return Failed(head.slide, head.reason)
        if head.arrived and head.lease is not None:
            self._tickets.popleft()
            del self._leased[head.lease]
            return Ready(head.lease)
        return None

    # ---- what is to be done

    def decisions(self) -> list[StreamDecision]:
        """What is to be done now; each once."""
        self._order_ahead()
        self._open_ahead()
        self._share_out()
        out, self._out = self._out, []
        return out

    @property
    def done(self) -> bool:
        """Everything was taken."""
        return self._draw.done and not self._tickets

    def place_of(self, lease: int) -> tuple[SlideKey, int] | None:
        """The (slide, chunk) of a lease that is wanted, or has arrived and was not taken."""
        ticket = self._leased.get(lease)
        return None if ticket is None or ticket.dropped else (ticket.slide, ticket.chunk)

    def _order_ahead(self) -> None:
        while len(self._tickets) < self._ahead:
            self._enter_slides()
            drawn = self._draw.take()
            if drawn is None:
                return
            number, self._numbered = self._numbered, self._numbered + 1
            if drawn.key in self._failed:
                continue  # the draw goes on as it would have: other ranks may know nothing of a failure
            if number % self._world != self._rank:
                self._one_less(drawn.key)
            else:
                self._tickets.append(_Ticket(drawn.key, drawn.part))

    def _enter_slides(self) -> None:
        """Have slides that are open take part in the draw, in their order, as far as it wants them."""
        while self._draw.wants:
            if not self._openings:
                if self._no_more_slides:
                    self._draw.close()
                return
            first = self._openings[0]
            if first.reason is not None:
                self._tickets.append(_Ticket(first.slide, OPENING, reason=first.reason))
            elif first.n_chunks is not None:
                self._left[first.slide] = first.n_chunks
                self._draw.add(first.slide, first.n_chunks)
                if not first.n_chunks:
                    self._close(first.slide)
            else:
                return
            self._openings.popleft()
            self._open_ahead()

    def _open_ahead(self) -> None:
        while not self._no_more_slides and len(self._openings) < max(1, _SLIDES_AHEAD * len(self._loaders)):
            slide = next(self._slides, None)
            if slide is None:
                self._no_more_slides = True
            else:
                self._openings.append(_Opening(slide))

    def _share_out(self) -> None:
        for each in self._openings:
            if each.waits:
                name = self._least_loaded(_SLIDES_AHEAD, opening=True, alone=each.deaths > 0)
                if name is None:
                    break
                each.loader = name
                self._loaders[name].opening.add(each.slide)
                self._out.append(Resolve(name, each.slide))
        for ticket in self._tickets:
            if ticket.waits:
                name = self._least_loaded(self._credits, opening=False, alone=ticket.deaths > 0)
                if name is None:
                    break
                lease = next(self._leases)
                ticket.loader, ticket.lease = name, lease
                self._leased[lease] = ticket
                self._loaders[name].leases.add(lease)
                self._out.append(Read(name, lease, ticket.slide, ticket.chunk))

    def _least_loaded(self, limit: int, opening: bool, alone: bool) -> str | None:
        """The loader with the least of its kind to do, if that is below `limit`; for a suspect, one with nothing to do."""
        free = {
            name: len(loader.opening if opening else loader.leases)
            for name, loader in self._loaders.items()
            if not loader.alone and (not alone or not loader.load)
        }
        name = min(free, key=lambda name: free[name], default=None)
        if name is None or free[name] >= limit:
            return None
        self._loaders[name].alone = alone
        return name

    # ---- bookkeeping

    def _opened(self, slide: SlideKey) -> _Opening | None:
        """A slide that a loader has been opening, and now has."""
        for each in self._openings:
            if each.slide == slide and each.loader is not None:
                loader = self._loaders.get(each.loader)
                if loader is not None:
                    loader.opening.discard(slide)
                    loader.alone = False
                each.loader = None
                return each
        return None

    def _read_by_loader(self, ticket: _Ticket) -> None:
        loader = self._loaders.get(ticket.loader or "")
        if loader is not None:
            loader.leases.discard(ticket.lease if ticket.lease is not None else -1)
            loader.alone = False
        ticket.loader = None

    def _one_less(self, slide: SlideKey) -> None:
        if slide in self._left:
            self._left[slide] -= 1
            if not self._left[slide]:
                self._close(slide)

    def _give_up(self, slide: SlideKey) -> None:
        """Nothing more of a slide is wanted. It is closed once nobody reads it any more."""
        self._failed.add(slide)
        being_read = 0
        kept: deque[_Ticket] = deque()
        for ticket in self._tickets:
            if ticket.slide != slide:
                kept.append(ticket)
            elif ticket.lease is not None:
                self._out.append(Drop(ticket.loader or "", ticket.lease))
                ticket.dropped = True
                if ticket.arrived:
                    del self._leased[ticket.lease]
                else:
                    being_read += 1
        self._tickets = kept
        if slide in self._left:
            self._left[slide] = being_read
            if not being_read:
                self._close(slide)

    def _close(self, slide: SlideKey) -> None:
        del self._left[slide]
        self._out.append(CloseSlide(slide))
