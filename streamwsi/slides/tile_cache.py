"""Decoded tiles that more than one big chunk needs, for as long as there is room.

In: a key, and how to decode its tile.  Out: the tile, decoded once however many threads ask for it at a time.  Never holds more
than its capacity, and one tile for each thread that decodes.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from streamwsi.chunks import UInt8Array

_PASSING_SHARE = 0.25
"""Of the capacity, what is for tiles that only the next chunk needs."""


class _Entry:
    """A tile that is there, or is being decoded."""

    __slots__ = ("ready", "tile")

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.tile: UInt8Array | None = None
        """None until it is ready, and for good where it could not be decoded."""


class TileCache:
    """The tiles decoded last, up to `capacity_bytes` of them. Shared by the readers and the threads of a process.

    The oldest goes first, whether it was used or not: a tile is needed again within one row of chunks, and then no more. One
    that only the next chunk needs is *passing*: no more than a quarter of the room is kept for such.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._owners = itertools.count()
        self._entries: OrderedDict[tuple[Hashable, ...], _Entry] = OrderedDict()
        self._passing: OrderedDict[tuple[Hashable, ...], int] = OrderedDict()
        """Bytes of each passing tile that is there."""
        self._bytes = self._passing_bytes = 0

    def new_owner(self) -> int:
        """What tells a reader's tiles from those of others."""
        return next(self._owners)

    def get(self, key: tuple[Hashable, ...], decode: Callable[[], UInt8Array], passing: bool = False) -> UInt8Array:
        """The tile called `key`, from the cache or from `decode`; not to be written to.

        The key's first part says whose tile it is, see :meth:`forget`. Raises what `decode` raises.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                own = self._entries[key] = _Entry()
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
            if self._entries.get(key) is own:  # not forgotten meanwhile
                self._bytes += tile.nbytes
                if passing:
                    self._passing[key] = tile.nbytes
                    self._passing_bytes += tile.nbytes
                self._make_room()
        own.ready.set()
        return tile

    def forget(self, owner: Hashable) -> None:
        """Let go of all tiles whose key begins with `owner`."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == owner]:
                self._remove(key)

    @property
    def held_bytes(self) -> int:
        """Bytes of the tiles in it."""
        return self._bytes

    def _make_room(self) -> None:
        while self._passing_bytes > self.capacity_bytes * _PASSING_SHARE:
            self._remove(next(iter(self._passing)))
        for key in list(self._entries) if self._bytes > self.capacity_bytes else ():
            if self._bytes <= self.capacity_bytes:
                return
            if self._entries[key].tile is not None:  # else it is being decoded
                self._remove(key)

    def _remove(self, key: tuple[Hashable, ...]) -> None:
        tile = self._entries.pop(key).tile
        self._bytes -= 0 if tile is None else tile.nbytes
        self._passing_bytes -= self._passing.pop(key, 0)
