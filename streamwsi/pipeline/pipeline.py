"""A run as users ask for it: a loader, a collector, a writer, and how many processes.

In: options.  Out: a report.  Everything is checked before anything starts.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamwsi.collecting.collector import StreamCollector, overrides
from streamwsi.collecting.main import CollectingOptions
from streamwsi.collecting.spec import collector_arguments, collector_name, ship, source_hash
from streamwsi.config import (
    CHUNK_PX,
    TILE_CACHE_BYTES,
    Defining,
    Durability,
    Execution,
    Transport,
    at_least,
    available_cpus,
    one_of,
)
from streamwsi.errors import ConfigError
from streamwsi.loading.level_at_mpp import LevelAtMpp
from streamwsi.loading.resolve import ReadingOptions
from streamwsi.loading.sliding_window import SlidingWindowLoader
from streamwsi.pipeline.driver import Driver
from streamwsi.pipeline.folder import OutputFolder
from streamwsi.pipeline.job import Job
from streamwsi.pipeline.report import Report
from streamwsi.wire.hosts import LOOPBACK, bindable, refuse_open_host
from streamwsi.wire.keys import read_keys
from streamwsi.writing.layout import Layout
from streamwsi.writing.main import WritingOptions
from streamwsi.writing.run_file import RunFile
from streamwsi.writing.stream_writer import StreamWriter

_CHUNK_SLACK_BYTES = 1 << 20
_THREADS_OF_A_LOADER = 8
"""Of the 240 µs that a JPEG tile of 256 px takes, 10 need Python's lock (measured alone; more with cold caches): many more
threads than these would wait for each other."""
_ANY_CHUNK_BYTES = 1 << 30
"""A resumed slide keeps the chunks that it was begun with, which may be larger than those asked for now."""


class Pipeline:
    """Streams a dataset through collectors to files.

    Parameters
    ----------
    loader, collector, writer
        What is read, what is done with it, and where it goes.
    collectors, loaders, writers
        How many processes of each. `collectors` is by default one for each device, or one; `loaders` one for every eight
        processors, for more threads than that wait for each other in Python's interpreter.
    devices
        Dealt to the collectors in turn: one for all of them, or one for each.
    batch_size
        Windows in a batch, at most; by default the collector's.
    threads
        Decode threads of each loader; by default the processors there are, shared among the loaders.
    chunk_px
        Pixels of a big chunk, about.
    collector_credits, writer_credits, loader_credits
        Chunks that one process of that kind may hold.
    tile_cache_mb
        Decoded tiles that a loader keeps for other chunks, in MB: with little, tiles under overlapping windows are decoded
        again, or chunks are read in narrower bands.
    min_chunk_interval_s
        A loader begins chunks at least this far apart.
    max_restarts
        Workers that may be replaced in one run before it is broken off.
    stall_timeout_s
        A stage that has work and makes no progress for so long ends the run (setup is not counted); 0: never.
    grace_s
        How long what is in flight may take to be committed after a signal.
    transport
        How pixels come to the collectors: ``"shm"`` (shared memory, where there is enough; else as ``"ipc"``), ``"ipc"``
        (sockets of the file system) or ``"tcp"`` (encrypted). ``"auto"`` is the first of them that there is.
    tcp_host
        Where ``"tcp"`` listens: an address or a name of this machine. Beyond loopback it takes `key_dir`.
    key_dir
        A folder of keys for ``"tcp"``, made by ``streamwsi keys``; by default keys are made for the run.
    durability
        What a commit survives: the end of any process (``"process"``), or a loss of power too (``"power"``).
    quiet
        Show nothing while running.
    overwrite
        Remove what an earlier run has left in the folder, and start afresh.

    Raises ConfigError naming the value that cannot work.
    """

    def __init__(
        self,
        loader: SlidingWindowLoader,
        collector: StreamCollector,
        writer: StreamWriter,
        *,
        collectors: int | None = None,
        loaders: int | None = None,
        writers: int = 1,
        devices: Sequence[str] | str | None = None,
        batch_size: int | None = None,
        threads: int | None = None,
        chunk_px: int = CHUNK_PX,
        collector_credits: int = 2,
        writer_credits: int = 16,
        loader_credits: int | None = None,
        tile_cache_mb: float = TILE_CACHE_BYTES / 1e6,
        min_chunk_interval_s: float = 0.0,
        max_restarts: int = 5,
        stall_timeout_s: float = 1800.0,
        grace_s: float = 10.0,
        transport: Transport = "auto",
        tcp_host: str = LOOPBACK,
        key_dir: str | os.PathLike[str] | None = None,
        durability: Durability = "process",
        quiet: bool = False,
        overwrite: bool = False,
    ) -> None:
        for value, kind, name in (
            (loader, SlidingWindowLoader, "loader"),
            (collector, StreamCollector, "collector"),
            (writer, StreamWriter, "writer"),
        ):
            if not isinstance(value, kind):
                got = f"the class {value.__name__}, not an object of it" if isinstance(value, type) else type(value).__name__
                raise ConfigError(f"{name} must be a {kind.__name__}, got {got}")
        _check_collector(collector)
        if collector.mode != "stream" and writer.options.one_file:
            raise ConfigError(
                f"one_file goes with mode 'stream': a collector of mode {collector.mode!r} writes no pieces to files"
            )
        names = (devices,) if isinstance(devices, str) else tuple(devices or ())
        collectors = max(1, len(names)) if collectors is None else _count(collectors, "collectors")
        if len(names) > collectors:
            raise ConfigError(f"devices {names} are more than the {collectors} collectors they are dealt to")
        _check_host(transport, tcp_host, key_dir)
        loaders = -(-available_cpus() // _THREADS_OF_A_LOADER) if loaders is None else _count(loaders, "loaders")
        threads = max(1, available_cpus() // loaders) if threads is None else _count(threads, "threads")
        self._loader, self._collector, self._writer = loader, collector, writer
        self._batch_size = _count(collector.batch_size if batch_size is None else batch_size, "batch_size")
        self._columns = _columns(collector)
        self._quiet, self._overwrite = quiet, overwrite
        self._execution = Execution(
            loaders=loaders,
            collectors=collectors,
            writers=_count(writers, "writers"),
            threads=threads,
            devices=names,
            chunk_px=_count(chunk_px, "chunk_px"),
            loader_credits=threads + 1 if loader_credits is None else _count(loader_credits, "loader_credits"),
            collector_credits=_count(collector_credits, "collector_credits"),
            writer_credits=_count(writer_credits, "writer_credits"),
            tile_cache_bytes=int(at_least(tile_cache_mb, 0, "tile_cache_mb") * 1e6),
            min_chunk_interval_s=at_least(min_chunk_interval_s, 0, "min_chunk_interval_s"),
            max_restarts=at_least(max_restarts, 0, "max_restarts"),
            stall_timeout_s=at_least(stall_timeout_s, 0, "stall_timeout_s"),
            grace_s=at_least(grace_s, 0, "grace_s"),
            transport=one_of(transport, ("auto", "shm", "ipc", "tcp"), "transport"),
            tcp_host=tcp_host,
            key_dir=None if key_dir is None else os.path.abspath(key_dir),
            durability=one_of(durability, ("process", "power"), "durability"),
        )

    def run(self) -> Report:
        """Run, or go on with what an earlier run in the same folder has left unfinished.

        Returns the report when everything is done (``report.exit_code`` 0) or some slides have failed (1).

        Raises
        ------
        ConfigError, DatasetError, OutputError
            Before anything starts (exit code 2).
        CollectorError, RunError
            The run was broken off (3): the user's code raised, a worker died too often, a disk is full.
        Interrupted
            A signal stopped it (130, 143); run again to go on.
        """
        loader, writer = self._loader, self._writer
        level_is_callable = callable(loader.level)
        shipped_level = ship(loader.level, "the level callable") if level_is_callable else None
        shipped = ship(self._collector, f"collector {collector_name(self._collector)}")
        kernel_px = loader.kernel_size[0] * loader.kernel_size[1]
        keys = None if self._execution.key_dir is None else read_keys(Path(self._execution.key_dir))
        if self._execution.transport == "tcp":
            bindable(self._execution.tcp_host)
        layout = Layout.of(writer.options)
        asked = RunFile.of(self._defining(), self._execution, source_hash(self._collector), loader.dataset)
        with OutputFolder(layout, asked, self._overwrite) as folder:
            output = msgspec.structs.replace(writer.options, journal_dir=str(folder.layout.journal_dir))
            job = Job(
                dataset=loader.dataset,
                reading=ReadingOptions(
                    kernel=loader.kernel_size,
                    stride=loader.stride,
                    border=loader.border,
                    background=loader.background,
                    reader=loader.reader,
                    on_bad_region=loader.on_bad_region,
                    batch_size=self._batch_size,
                    chunk_px=self._execution.chunk_px,
                    threads=self._execution.threads,
                    min_chunk_interval_s=self._execution.min_chunk_interval_s,
                    tile_cache_bytes=self._execution.tile_cache_bytes,
                ),
                level=0 if callable(loader.level) else loader.level,
                shipped_level=shipped_level,
                collecting=CollectingOptions(
                    batch_size=self._batch_size,
                    columns=self._columns,
                    device=None,
                    max_chunk_bytes=max(3 * max(self._execution.chunk_px, kernel_px) + _CHUNK_SLACK_BYTES, _ANY_CHUNK_BYTES),
                ),
                collector=shipped,
                asks_finished=overrides(self._collector, "is_finished"),
                gathers=self._collector.mode != "stream",
                writing=WritingOptions(output=output, durability=self._execution.durability),
                execution=self._execution,
                keys=keys,
                slot_bytes=3 * max(self._execution.chunk_px, kernel_px),
                quiet=self._quiet,
            )
            return Driver(job, folder).run()

    def _defining(self) -> Defining:
        loader, output = self._loader, self._writer.options
        return Defining(
            kernel_size=loader.kernel_size,
            stride=loader.stride,
            level=_level_name(loader.level),
            border=loader.border,
            reader=loader.reader,
            background=loader.background,
            on_bad_region=loader.on_bad_region,
            collector=collector_name(self._collector),
            collector_mode=self._collector.mode,
            collector_arguments=collector_arguments(self._collector),
            columns=self._columns,
            batch_size=self._batch_size,
            format=output.format,
            one_file=output.one_file,
        )


def _check_collector(collector: StreamCollector) -> None:
    one_of(collector.mode, ("stream", "accumulate", "collect"), f"mode of {type(collector).__name__}")
    needed = {"accumulate": "accumulate", "collect": "collate"}.get(collector.mode)
    for method in filter(None, ("process", needed)):
        if not overrides(collector, method):
            raise ConfigError(f"{type(collector).__name__} has mode {collector.mode!r} and must define {method}")


def _check_host(transport: Transport, tcp_host: str, key_dir: str | os.PathLike[str] | None) -> None:
    if not isinstance(tcp_host, str) or not tcp_host:
        raise ConfigError(f"tcp_host must be an address or a name of this machine, got {tcp_host!r}")
    for value, default, name in ((tcp_host, LOOPBACK, "tcp_host"), (key_dir, None, "key_dir")):
        if transport != "tcp" and value != default:
            raise ConfigError(f"{name} {value!r} goes with transport 'tcp', got {transport!r}")
    refuse_open_host(tcp_host, key_dir is not None)


def _columns(collector: StreamCollector) -> tuple[str, ...] | None:
    columns = collector.columns
    if columns is None:
        return None
    if isinstance(columns, str) or not all(isinstance(name, str) for name in columns) or len(set(columns)) < len(columns):
        raise ConfigError(f"columns of {type(collector).__name__} must be different strings, got {columns!r}")
    return tuple(columns)


def _count(value: Any, name: str) -> int:
    if not isinstance(value, int):
        raise ConfigError(f"{name} must be an int, got {value!r}")
    number: int = at_least(value, 1, name)
    return number


def _level_name(level: int | Callable[..., int]) -> int | str:
    """What stands for the level in ``run.json``: itself, or the source of the callable that chooses it."""
    if not callable(level):
        return level
    if isinstance(level, LevelAtMpp):
        return str(level)
    try:
        source = inspect.getsource(level)
    except (OSError, TypeError):
        source = repr(getattr(level, "__qualname__", type(level).__name__))
    return f"callable: {' '.join(source.split())}"
