"""In what order things come that have parts: slides and their chunks, chunks and their windows.

In: members, one after the other, and how many parts each has.  Out: the parts of all members, each once.  Knows no process, no
slide and no clock: the order depends on what was added, in which order, and on the random generator, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Drawn(Generic[Key]):
    """One part of one member."""

    key: Key
    part: int
    last: bool
    """No more of this member is to come."""


@dataclass(eq=False, slots=True)
class _Member(Generic[Key]):
    key: Key
    parts: Sequence[int]
    drawn: int = 0

    @property
    def left(self) -> int:
        return len(self.parts) - self.drawn


class Draw(Generic[Key]):
    """Draws parts of up to `width` members at a time.

    Without a `random` generator it gives the parts of each member in order, one member after the other. With one, each member's
    parts come in an order of their own; while there are `width` members, each is as likely as another to be drawn from, however
    many parts it has left, so that they do not run dry all at once; once no others come, each part is as likely as another. As
    long as `width` is not less than the number of members, that is any order of all parts, each as likely as another.

    Nothing is drawn before all members are there that can be, so that when they are added does not matter.
    """

    def __init__(self, width: int, random: np.random.Generator | None = None) -> None:
        self._width = width
        self._random = random
        self._members: list[_Member[Key]] = []
        self._closed = False

    @property
    def wants(self) -> bool:
        """Another member must be added, or the draw be closed, before anything is drawn."""
        return not self._closed and len(self._members) < self._width

    @property
    def done(self) -> bool:
        """Nothing is left and nothing is to come."""
        return self._closed and not self._members

    def add(self, key: Key, n_parts: int) -> None:
        """Another member; one without parts is none."""
        if n_parts:
            parts = range(n_parts) if self._random is None else self._random.permutation(n_parts).tolist()
            self._members.append(_Member(key, parts))

    def close(self) -> None:
        """There are no other members."""
        self._closed = True

    def take(self) -> Drawn[Key] | None:
        """The next part; None where a member must be added first, or nothing is left."""
        if self.wants or not self._members:
            return None
        place = self._place()
        member = self._members[place]
        part = member.parts[member.drawn]
        member.drawn += 1
        if not member.left:
            del self._members[place]
        return Drawn(member.key, part, not member.left)

    def _place(self) -> int:
        """That of the member to draw from."""
        if self._random is None or len(self._members) == 1:
            return 0
        if len(self._members) == self._width:
            return int(self._random.integers(self._width))
        number = int(self._random.integers(sum(member.left for member in self._members)))
        for place, member in enumerate(self._members):
            if number < member.left:
                return place
            number -= member.left
        raise RuntimeError("no member has the part that was drawn")


def random_of(seed: int, epoch: int, what: int) -> np.random.Generator:
    """The generator for a pass of a shuffled stream; `what` tells those of one pass apart.

    PCG64, whose stream NumPy keeps the same (NEP 19 allows changes of `integers` and `permutation`, with notice).
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, what])))
