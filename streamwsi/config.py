"""What a run was asked to do: the fields that decide its results, and those that only decide how it is carried out.

In: options as users give them.  Out: frozen, checked structures.  Never reads a file or the environment.
"""

from __future__ import annotations

import math
import os
from typing import Any, Literal

import msgspec

from streamwsi.errors import ConfigError
from streamwsi.geometry import BORDERS, Border
from streamwsi.images.options import ImageOptions
from streamwsi.limits import allowed_cpus
from streamwsi.map_options import MapOptions

OnBadRegion = Literal["fail", "skip"]
Transport = Literal["auto", "shm", "ipc", "tcp"]
Durability = Literal["process", "power"]
OutputFormat = Literal["csv", "hdf5", "images", "maps"]


CHUNK_PX = 1 << 24
"""Of a big chunk, about, by default: 256 windows of 256 px."""
SMALL_CHUNK_PX = 1 << 23
"""The same of a stream, which mixes the windows of as many chunks as it holds; and wherever a chunk, or what is made of it, is
one message: blocks above 32 MiB are fresh memory each time (glibc's ``malloc``), whose pages cost more than is saved. And of
slides that OpenSlide reads: there it is a thread's work for a fifth of a second, and others wait at the end for the last."""
TILE_CACHE_BYTES = 192 << 20
"""Decoded tiles that a loader keeps, by default."""
MOST = (1 << 31) - 1
"""Of whatever is counted, and of pixels along a side."""
MOST_CHUNK_PX = 1 << 40
"""Pixels of a big chunk: more than any slide has."""
MOST_NUMBER = 1e9
"""Seconds, or megabytes."""


class Defining(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that change what a run writes. A folder holds the results of one such set."""

    kernel_size: tuple[int, int]
    """(width, height) of a window, in pixels of the level read."""
    stride: tuple[int, int]
    """(x, y) steps, in pixels of the level read."""
    level: int | str
    """The level read, or what stands for the callable that chooses it; 0 where the resolution is given otherwise."""
    border: Border
    reader: str
    background: tuple[int, int, int]
    """RGB, 0–255, of what lies outside the slide or has no data."""
    on_bad_region: OnBadRegion
    """``fail``: the slide fails; ``skip``: the windows that touch what cannot be read are skipped."""
    collector: str
    """The collector's name, for people."""
    collector_mode: str
    collector_arguments: dict[str, Any]
    columns: tuple[str, ...] | None
    batch_size: int
    """Windows in a batch, at most."""
    format: str
    """``csv``, ``hdf5``, ``images`` or ``maps``."""
    one_file: bool
    """All patients in one file."""
    sampler: dict[str, Any] | None = None
    """What decides the windows that a sampler chooses; None: all windows of the grid."""
    mpp: float | None = None
    """Micrometres per pixel of what is read; None: `level` says it, or one of the following."""
    magnification: float | None = None
    levels: tuple[int, ...] | None = None
    """Of several resolutions around each window's centre."""
    mpps: tuple[float, ...] | None = None
    """The same, in micrometres per pixel."""
    missing_mpp: float | str | None = None
    """Micrometres per level-0 pixel of slides that do not say, or what stands for the callable that gives them."""
    images: dict[str, Any] = {}
    """How they are encoded, named and laid out; empty for other formats."""
    maps: dict[str, Any] = {}
    """How they are blended and what they become; empty for other formats."""
    paired: dict[str, Any] = {}
    """By name, how images that are read with the slides are read."""
    transforms: tuple[tuple[str, str], ...] = ()
    """Modalities, and what stands for the function that changes them before the collector has a batch; in their order."""


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that do not change what a run writes, and may differ from one run on a folder to the next."""

    loaders: int = 1
    collectors: int = 1
    writers: int = 1
    threads: int = 0
    """Decode threads of each loader; 0: as many as suit the processors that this process may use."""
    devices: tuple[str, ...] = ()
    """Dealt to the collectors in turn; empty: every collector's device is None."""
    chunk_px: int = CHUNK_PX
    """Pixels of a big chunk, about; a chunk holds at least one window."""
    openslide_chunk_px: int = SMALL_CHUNK_PX
    """The same of slides that OpenSlide reads, where it is less."""
    loader_credits: int = 0
    """Chunks a loader may hold, being read or waiting to be sent; 0: as many as suit its threads."""
    collector_credits: int = 2
    """Chunks a collector may hold: one it works on, the others on their way."""
    writer_credits: int = 16
    """Chunks a writer may have outstanding: sent to a collector and not yet committed."""
    tile_cache_bytes: int = TILE_CACHE_BYTES
    """Decoded tiles that a loader keeps for the chunks that need them too."""
    min_chunk_interval_s: float = 0.0
    """A loader begins chunks at least this far apart, to spare a shared disk; 0: no limit."""
    max_restarts: int = 5
    """Workers that may be replaced in one run."""
    stall_timeout_s: float = 1800.0
    """A stage that has work and says nothing for so long ends the run; 0: never."""
    grace_s: float = 10.0
    """How long what is in flight may take to finish and be committed once the run is told to stop."""
    transport: Transport = "auto"
    """``ipc``: sockets in a private folder; ``tcp``: under CURVE; ``auto``: ipc where the system has it."""
    tcp_host: str = "127.0.0.1"
    """Where ``tcp`` sockets listen. Beyond loopback only with keys that the user gives."""
    key_dir: str | None = None
    """The folder of those keys; None: keys made for the run."""
    durability: Durability = "process"
    """What a commit survives. ``process``: the end of any process, however it ends; a loss of power may take the last commits
    with it, which are then done again. ``power``: a loss of power too, at the price of a sync for every commit. Files that have
    their final names are synced either way."""


class OutputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how a writer stores pieces."""

    folder: str
    format: OutputFormat
    one_file: bool = False
    with_labels: bool = False
    """Windows carry labels, which stand in the files."""
    publish_partial: bool = False
    journal_dir: str | None = None
    """Where the journals lie; None: ``.journal`` in the folder."""
    compression: str | None = None
    """HDF5 only: ``gzip`` or ``lzf`` for the values; None: stored as they are."""
    images: ImageOptions | None = None
    """Of the format ``images``, and only of it."""
    maps: MapOptions | None = None
    """Of the format ``maps``, and only of it."""


def positive_pair(value: Any, name: str) -> tuple[int, int]:
    """An int or a (width, height) of ints, each at least 1, as a pair; else ConfigError."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(pair) != 2 or not all(isinstance(number, int) and not isinstance(number, bool) for number in pair):
        raise ConfigError(f"{name} must be an int or (width, height), got {value!r}")
    if min(pair) < 1:
        raise ConfigError(f"{name} must be at least 1 pixel, got {value!r}")
    if max(pair) > MOST:
        raise ConfigError(f"{name} must be at most {MOST} pixels, got {value!r}")
    return pair[0], pair[1]


def at_least(value: Any, least: float, name: str, most: float = math.inf) -> Any:
    """`value` if it is a finite number not below `least` and not above `most`; else ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
        raise ConfigError(f"{name} must be at least {least}, got {value!r}")
    if value > most:
        raise ConfigError(f"{name} must be at most {most:.0f}, got {value!r}")
    if value in (math.inf, -math.inf):
        raise ConfigError(f"{name} must be finite, got {value!r}")
    return value


def count(value: Any, name: str, least: int = 1, most: int = MOST) -> int:
    """`value` if it is an int from `least` to `most`; else ConfigError."""
    if not isinstance(value, int):
        raise ConfigError(f"{name} must be an int, got {value!r}")
    number: int = at_least(value, least, name, most)
    return number


def one_of(value: Any, allowed: tuple[Any, ...], name: str) -> Any:
    """`value` if it is among `allowed`; else ConfigError."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def check_border(value: Any) -> Border:
    """`value` if it is a border mode; else ConfigError."""
    border: Border = one_of(value, BORDERS, "border")
    return border


def check_background(value: Any) -> tuple[int, int, int]:
    """An (R, G, B) of ints from 0 to 255; else ConfigError."""
    if isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in value):
        return value[0], value[1], value[2]
    raise ConfigError(f"background must be (R, G, B) with each from 0 to 255, got {value!r}")


def available_cpus() -> int:
    """Processors that this process may use, or whose time control groups allow it, where that is less; at least 1."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = allowed_cpus()
    return there if allowed is None else min(there, max(1, math.ceil(allowed)))
