"""What loader processes are told of a loader as users describe it; the same for a run and for a stream.

In: a loader and options.  Out: what a loader process is started with.  Starts nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from streamwsi.collecting.spec import Shipped, ship
from streamwsi.config import CHUNK_PX, MOST_CHUNK_PX, SMALL_CHUNK_PX, Transport, available_cpus, count
from streamwsi.geometry import MOST_WINDOWS
from streamwsi.loading.resolution import Wanted
from streamwsi.loading.resolve import Choices, ReadingOptions
from streamwsi.loading.window_loader import WindowLoader
from streamwsi.wire.shared_memory import can_be_shared

_THREADS_OF_A_LOADER = 4
"""Threads of one process wait for Python's lock between two tiles. Measured on 16 processors, of a limit of 1.8 Gpx/s: 1.2 with
one process of 16 threads, 1.4 with two of 8, 1.5 with four of 4, 1.7 with eight of 2; each process takes about 100 MB, and
tiles that chunks share are decoded by each that needs them."""
_SPARE_THREADS = 1
"""Of a single loader: it decodes while another waits for Python's lock, or for a processor that one of the other processes has
taken. Measured on two processors: three threads are 3 to 4 % faster than two, four no more. Several loaders stand in for each
other."""


class LoaderStartup(msgspec.Struct, frozen=True, kw_only=True):
    """What each loader process of a run or a stream is started with."""

    reading: ReadingOptions
    level: int
    choices: Shipped | None
    """What chooses resolutions and windows, where that is more than one level for all slides."""


def loader_startup(
    loader: WindowLoader,
    *,
    batch_size: int,
    chunk_px: int,
    threads: int,
    tile_cache_bytes: int,
    min_chunk_interval_s: float = 0.0,
    openslide_chunk_px: int = MOST_CHUNK_PX,
    max_windows: int = MOST_WINDOWS,
    starts_at_multiples_of: int = 1,
    epoch: int | None = None,
) -> LoaderStartup:
    """What loader processes are told; with an `epoch`, the sampler's windows are those of that draw.

    Raises ConfigError where the user's code that chooses levels or windows cannot be sent to them.
    """
    sampler = loader.sampler
    if sampler is not None and epoch is not None:
        sampler = sampler.at_epoch(epoch)
    level = loader.resolution.level
    simple = sampler is None and loader.resolution == Wanted(level) and not callable(level) and not loader.paired
    choices = Choices(loader.resolution, sampler, loader.paired)
    return LoaderStartup(
        reading=ReadingOptions(
            kernel=loader.kernel_size,
            stride=loader.stride,
            border=loader.border,
            background=loader.background,
            reader=loader.reader,
            on_bad_region=loader.on_bad_region,
            batch_size=batch_size,
            chunk_px=chunk_px,
            openslide_chunk_px=openslide_chunk_px,
            threads=threads,
            min_chunk_interval_s=min_chunk_interval_s,
            tile_cache_bytes=tile_cache_bytes,
            max_windows=max_windows,
            starts_at_multiples_of=starts_at_multiples_of,
        ),
        level=0 if level is None or callable(level) else level,
        choices=None if simple else ship(choices, "what chooses resolutions, windows and paired images"),
    )


def default_chunk_px(transport: Transport, images: bool) -> int:
    """Pixels of a chunk, about, where none are given.

    Larger chunks cost less, as long as neither their pixels nor the `images` that are made of them are a message. Measured on
    two processors, 16 million pixels relative to 8: a run through shared memory is 2 to 8 % faster; through sockets it is 30 %
    slower, and the writing of PNG 10 %.
    """
    return CHUNK_PX if can_be_shared(transport) and not images else SMALL_CHUNK_PX


def chunk_bytes(loader: WindowLoader, chunk_px: int) -> int:
    """What the pixels of the largest chunk that is planned take."""
    return 3 * max(chunk_px, loader.resolution.count * window_px(loader))


def window_px(loader: WindowLoader) -> int:
    """Pixels that are read for a window at one resolution, its margin included."""
    margin = 0 if loader.sampler is None else loader.sampler.margin
    return math.prod(side + 2 * margin for side in loader.kernel_size)


class LoaderSizes(NamedTuple):
    """How many loaders, and how much each does at once."""

    loaders: int
    threads: int
    """Decode threads of each."""
    credits: int
    """Chunks that each may hold, being read or waiting."""


def loader_sizes(loaders: int | None, threads: int | None) -> LoaderSizes:
    """What was told, and what follows from the processors where nothing was.

    By default a loader for every four processors, with a thread for each; a single loader has one thread more. Where every
    thread has a processor, a chunk more than there are threads waits, so that none is without one; threads beyond that are
    themselves what waits. Raises ConfigError for what cannot be.
    """
    cpus = available_cpus()
    loaders = -(-cpus // _THREADS_OF_A_LOADER) if loaders is None else count(loaders, "loaders")
    if threads is not None:
        return LoaderSizes(loaders, count(threads, "threads"), threads + 1)
    busy = max(1, cpus // loaders)
    return LoaderSizes(loaders, busy + _SPARE_THREADS if loaders == 1 else busy, busy + 1)
