"""Decoded tiles that more than one big chunk needs, until all of them have had it, or for as long as there is room.

In: a key, how to decode its tile, and how many need it.  Out: the tile, decoded once however many threads ask for it at a time.
Never holds more than its capacity, a sixteenth of it in memory that waits to be used again, and a tile for each thread.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from streamwsi.chunks import UInt8Array
from streamwsi.memory import block_bytes, empty_pixels, idle

_PASSING_SHARE = 0.25
"""Of the capacity, what is for tiles that only the next chunk needs."""
_FREE_SHARE, _MOST_FREE = 1 / 16, 16
"""Of the capacity, what memory may wait to be used again beside it; and of how many tiles."""


class _Entry:
    """A tile that is there, or is being decoded."""

    __slots__ = ("lent", "ready", "tile", "wanted")

    def __init__(self, wanted: int | None, lent: bool) -> None:
        self.ready = threading.Event()
        self.tile: UInt8Array | None = None
        """None until it is ready, and for good where it could not be decoded."""
        self.wanted = wanted
        """How often it is still to be asked for; None: who knows."""
        self.lent = lent
        """Its memory is the cache's, to be used again."""


class TileCache:
    """The tiles decoded last, up to `capacity_bytes` of them. Shared by the readers and the threads of a process.

    A tile goes when it was asked for as often as was said; and where there is no room, the oldest goes first, whether it was
    used or not: a tile is needed again within one row of chunks, and then no more. One that only the next chunk needs is
    *passing*: no more than a quarter of the room is kept for such.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._owners = itertools.count()
        self._entries: OrderedDict[tuple[Hashable, ...], _Entry] = OrderedDict()
        self._passing: OrderedDict[tuple[Hashable, ...], int] = OrderedDict()
        """Bytes of each passing tile that is there."""
        self._bytes = self._passing_bytes = 0
        self._free: list[UInt8Array] = []
        """Blocks of tiles that have gone, that of the last at the end: it may still be in the processor's cache."""

    def new_owner(self) -> int:
        """What tells a reader's tiles from those of others."""
        return next(self._owners)

    def get(
        self, key: tuple[Hashable, ...], decode: Callable[[], UInt8Array], passing: bool = False, wanted: int | None = None
    ) -> UInt8Array:
        """The tile called `key`, from the cache or from `decode`; not to be written to.

        The key's first part says whose tile it is, see :meth:`forget`. `wanted` is how often the tile will be asked for, this
        time included, if all who ask know it: it is kept no longer. Raises what `decode` raises.
        """
        return self._get(key, decode, passing, wanted, lent=False)

    def get_into(
        self,
        key: tuple[Hashable, ...],
        decode: Callable[[UInt8Array], object],
        shape: tuple[int, ...],
        passing: bool = False,
        wanted: int | None = None,
    ) -> UInt8Array:
        """As :meth:`get`, in memory of the cache's: `decode` fills what it is given, uint8 of this shape."""

        def decoded() -> UInt8Array:
            out = self._room(shape)
            decode(out)
            return out

        return self._get(key, decoded, passing, wanted, lent=True)

    def _get(
        self, key: tuple[Hashable, ...], decode: Callable[[], UInt8Array], passing: bool, wanted: int | None, lent: bool
    ) -> UInt8Array:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                own = self._entries[key] = _Entry(wanted, lent)
            elif wanted is None:
                entry.wanted = None
            self._asked_for(key, entry or own)
        if entry is not None:
            # A thread decodes one tile at a time, and waits for none meanwhile: this cannot go round in a circle.
            entry.ready.wait()
            return entry.tile if entry.tile is not None else decode()
        try:
            tile = decode()
        except BaseException:
            with self._lock:
                if self._entries.get(key) is own:
                    del self._entries[key]
            own.ready.set()
            raise
        with self._lock:
            own.tile = tile
            if self._entries.get(key) is own:  # it has not gone meanwhile
                self._bytes += tile.nbytes
                if passing:
                    self._passing[key] = tile.nbytes
                    self._passing_bytes += tile.nbytes
                self._make_room()
            else:
                self._use_again(own)
        own.ready.set()
        return tile

    def _asked_for(self, key: tuple[Hashable, ...], entry: _Entry) -> None:
        if entry.wanted is not None:
            entry.wanted -= 1
            if entry.wanted <= 0:
                self._remove(key)

    def _room(self, shape: tuple[int, ...]) -> UInt8Array:
        """Memory for a tile that nobody has: that of one that has gone, or new."""
        n_bytes = block_bytes(shape)
        with self._lock:
            free = idle(self._free)
            for place in reversed(range(len(free))):
                if free[place] and len(self._free[place]) == n_bytes:
                    return empty_pixels(shape, self._free.pop(place))
        return empty_pixels(shape)

    def forget(self, owner: Hashable) -> None:
        """Let go of all tiles whose key begins with `owner`."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == owner]:
                self._remove(key, again=False)

    @property
    def held_bytes(self) -> int:
        """Bytes of the tiles in it."""
        return self._bytes

    @property
    def free_bytes(self) -> int:
        """Bytes of memory that waits to be used again."""
        return sum(map(len, self._free))

    def __contains__(self, key: tuple[Hashable, ...]) -> bool:
        """Whether a tile is there, or being decoded for others too."""
        return key in self._entries

    def _make_room(self) -> None:
        while self._passing_bytes > self.capacity_bytes * _PASSING_SHARE:
            self._remove(next(iter(self._passing)))
        for key in list(self._entries) if self._bytes > self.capacity_bytes else ():
            if self._bytes <= self.capacity_bytes:
                return
            if self._entries[key].tile is not None:  # else it is being decoded
                self._remove(key)

    def _remove(self, key: tuple[Hashable, ...], again: bool = True) -> None:
        entry = self._entries.pop(key)
        self._passing_bytes -= self._passing.pop(key, 0)
        if entry.tile is not None:
            self._bytes -= entry.tile.nbytes
            if again:
                self._use_again(entry)

    def _use_again(self, entry: _Entry) -> None:
        if not entry.lent or entry.tile is None or entry.tile.base is None:
            return
        self._free.append(entry.tile.base)
        while len(self._free) > _MOST_FREE or self.free_bytes > self.capacity_bytes * _FREE_SHARE:
            del self._free[0]
