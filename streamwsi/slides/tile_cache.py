"""Decoded tiles that more than one big chunk needs, for as long as there is room.

In: a key, and how to decode its tile.  Out: the tile, decoded once however many threads ask for it at a time.  Never holds more
than its capacity, and one tile for each thread that decodes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from streamwsi.chunks import UInt8Array


class _Entry:
    """A tile that is there, or is being decoded."""

    __slots__ = ("ready", "tile")

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.tile: UInt8Array | None = None
        """None until it is ready, and for good where it could not be decoded."""


class TileCache:
    """The tiles used last, up to `capacity_bytes` of them. Shared by the readers and the threads of a process."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[Hashable, ...], _Entry] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[Hashable, ...], decode: Callable[[], UInt8Array]) -> UInt8Array:
        """The tile called `key`, from the cache or from `decode`; not to be written to.

        The key's first part says whose tile it is, see :meth:`forget`. Raises what `decode` raises.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            else:
                own = self._entries[key] = _Entry()
        if entry is not None:
            # A thread decodes one tile at a time, and waits for none meanwhile: this cannot go round in a circle.
            entry.ready.wait()
            return entry.tile if entry.tile is not None else decode()
        try:
            tile = decode()
        except BaseException:
            self._settle(key, own, None)
            raise
        self._settle(key, own, tile)
        return tile

    def forget(self, owner: Hashable) -> None:
        """Let go of all tiles whose key begins with `owner`."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == owner]:
                tile = self._entries.pop(key).tile
                self._bytes -= 0 if tile is None else tile.nbytes

    @property
    def held_bytes(self) -> int:
        """Bytes of the tiles in it."""
        return self._bytes

    def _settle(self, key: tuple[Hashable, ...], entry: _Entry, tile: UInt8Array | None) -> None:
        """Keep a tile that has been decoded, if there is a place for it, and let those who wait for it go on."""
        with self._lock:
            if self._entries.get(key) is entry:  # not forgotten meanwhile
                if tile is not None and tile.nbytes <= self.capacity_bytes:
                    self._make_room(tile.nbytes)
                    self._bytes += tile.nbytes
                else:
                    del self._entries[key]
            entry.tile = tile
        entry.ready.set()

    def _make_room(self, wanted_bytes: int) -> None:
        for key in list(self._entries):
            if self._bytes + wanted_bytes <= self.capacity_bytes:
                return
            tile = self._entries[key].tile
            if tile is not None:  # else it is being decoded
                del self._entries[key]
                self._bytes -= tile.nbytes
