"""A run as users ask for it: a loader, a collector, a writer, and how many processes.

In: options.  Out: a report.  Everything is checked before anything starts.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from streamwsi.collecting.collector import StreamCollector, overrides
from streamwsi.collecting.main import CollectingOptions
from streamwsi.collecting.ready_made.patches import Patches
from streamwsi.collecting.spec import Shipped, collector_arguments, collector_name, ship, source_hash
from streamwsi.config import (
    MOST_CHUNK_PX,
    MOST_NUMBER,
    SMALL_CHUNK_PX,
    TILE_CACHE_BYTES,
    Defining,
    Durability,
    Execution,
    OutputOptions,
    Transport,
    at_least,
    available_cpus,
    count,
    one_of,
)
from streamwsi.errors import ConfigError, OutputError
from streamwsi.geometry import MOST_WINDOWS
from streamwsi.loading.resolution import source_of
from streamwsi.loading.window_loader import WindowLoader
from streamwsi.pipeline.driver import Driver
from streamwsi.pipeline.folder import OutputFolder
from streamwsi.pipeline.job import BranchJob, Job
from streamwsi.pipeline.map_checks import check_maps, most_chunk_px
from streamwsi.pipeline.reading import LoaderStartup, chunk_bytes, default_chunk_px, loader_sizes, loader_startup, window_px
from streamwsi.pipeline.report import Report
from streamwsi.sampling.description import description_of
from streamwsi.wire.hosts import LOOPBACK, bindable, refuse_open_host
from streamwsi.wire.keys import read_keys
from streamwsi.writing.layout import Layout
from streamwsi.writing.main import WritingOptions
from streamwsi.writing.patch_set import check_names
from streamwsi.writing.run_file import RunFile
from streamwsi.writing.stream_writer import StreamWriter

_CHUNK_SLACK_BYTES = 1 << 20
_MOST_WINDOWS_TOGETHER = 512
"""Chunks are multiples of every collector's batch, if those have a common multiple that is not larger than this."""
_MOST_OVERLAP_OF_IMAGES = 4
"""As many times as its own pixels a chunk's images may have."""
_ANY_CHUNK_BYTES = 1 << 30
"""A resumed slide keeps the chunks that it was begun with, which may be larger than those asked for now."""


class Pipeline:
    """Streams a dataset through collectors to files.

    Parameters
    ----------
    loader, collector, writer
        What is read, what is done with it, and where it goes.
        `collector` may be several, by name: ``{"tissue": Tissue(), "features": Features()}``. Each pixel is read and decoded
        once and goes to all of them; each has processes, and files, of its own, in a folder of its name in the writer's
        folder, which are those of a run of that collector alone.
    collectors, loaders, writers
        How many processes of each. `collectors` is by default one for each device, or one; `loaders` one for every four
        processors, for more threads than that wait for each other in Python's interpreter. Each of several collectors has
        `writers` writers.
    devices
        Dealt to the collectors in turn: one for all of them, or one for each.
    batch_size
        Windows in a batch, at most; by default the collector's. Of several collectors, `collectors`, `devices` and `batch_size`
        may be given by name, ``{"features": 64}``; those that are not named have the default.
    threads
        Decode threads of each loader; by default the processors there are, shared among the loaders, and one more for a single
        loader.
    chunk_px
        Pixels of a big chunk, about; by default 16 million, and 8 where pixels go through sockets, an ImageStreamWriter
        writes, or OpenSlide reads. With a MapStreamWriter at most 4 million of the map, or those of a batch.
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
        loader: WindowLoader,
        collector: StreamCollector | Mapping[str, StreamCollector],
        writer: StreamWriter,
        *,
        collectors: int | Mapping[str, int] | None = None,
        loaders: int | None = None,
        writers: int = 1,
        devices: Sequence[str] | str | Mapping[str, Sequence[str] | str] | None = None,
        batch_size: int | Mapping[str, int] | None = None,
        threads: int | None = None,
        chunk_px: int | None = None,
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
        _check_kind(loader, WindowLoader, "loader")
        _check_kind(writer, StreamWriter, "writer")
        by_name: Mapping[Any, StreamCollector] = collector if isinstance(collector, Mapping) else {None: collector}
        names = _names(collector) if isinstance(collector, Mapping) else (None,)
        self._parts = [
            _Part.of(
                name,
                by_name[name],
                writer.options,
                _of(collectors, name, names, "collectors"),
                _of(devices, name, names, "devices"),
                _of(batch_size, name, names, "batch_size"),
            )
            for name in names
        ]
        _check_host(transport, tcp_host, key_dir)
        if writer.options.images is not None:
            check_names(writer.options.images, loader.dataset)
        one_of(transport, ("auto", "shm", "ipc", "tcp"), "transport")
        openslide_chunk_px = SMALL_CHUNK_PX if chunk_px is None else MOST_CHUNK_PX
        if chunk_px is None:
            chunk_px = default_chunk_px(transport, images=writer.options.images is not None)
        chunk_px = count(chunk_px, "chunk_px", most=MOST_CHUNK_PX)
        if writer.options.maps is not None:
            check_maps(writer.options.maps, loader)
            chunk_px = min(chunk_px, most_chunk_px(writer.options.maps, loader, max(part.batch_size for part in self._parts)))
        sizes = loader_sizes(loaders, threads)
        self._loader, self._writer = loader, writer
        self._quiet, self._overwrite = quiet, overwrite
        self._execution = Execution(
            loaders=sizes.loaders,
            writers=count(writers, "writers"),
            threads=sizes.threads,
            chunk_px=chunk_px,
            openslide_chunk_px=min(chunk_px, openslide_chunk_px),
            loader_credits=sizes.credits if loader_credits is None else count(loader_credits, "loader_credits"),
            collector_credits=count(collector_credits, "collector_credits"),
            writer_credits=count(writer_credits, "writer_credits"),
            tile_cache_bytes=int(at_least(tile_cache_mb, 0, "tile_cache_mb", MOST_NUMBER) * 1e6),
            min_chunk_interval_s=at_least(min_chunk_interval_s, 0, "min_chunk_interval_s", MOST_NUMBER),
            max_restarts=count(max_restarts, "max_restarts", least=0),
            stall_timeout_s=at_least(stall_timeout_s, 0, "stall_timeout_s", MOST_NUMBER),
            grace_s=at_least(grace_s, 0, "grace_s", MOST_NUMBER),
            transport=transport,
            tcp_host=tcp_host,
            key_dir=None if key_dir is None else os.path.abspath(key_dir),
            durability=one_of(durability, ("process", "power"), "durability"),
        )

    def run(self) -> Report | dict[str, Report]:
        """Run, or go on with what an earlier run in the same folder has left unfinished.

        Returns the report when everything is done (``report.exit_code`` 0) or some slides have failed (1); for several
        collectors, one for each, by name. Of several collectors, one may have been finished by an earlier run, or have got
        further than another: each goes on from where it was.

        Raises
        ------
        ConfigError, DatasetError, OutputError
            Before anything starts (exit code 2).
        CollectorError, RunError
            The run was broken off (3): the user's code raised, a worker died too often, a disk is full.
        Interrupted
            A signal stopped it (130, 143); run again to go on.
        """
        loader = self._loader
        startup = self._loader_startup()
        shipped = [ship(part.collector, f"collector {collector_name(part.collector)}") for part in self._parts]
        keys = None if self._execution.key_dir is None else read_keys(Path(self._execution.key_dir))
        if self._execution.transport == "tcp":
            bindable(self._execution.tcp_host)
        with ExitStack() as stack:
            folders = self._folders(stack)
            job = Job(
                dataset=loader.dataset,
                loaders=startup,
                branches=tuple(map(self._branch, self._parts, shipped, folders)),
                execution=self._execution,
                keys=keys,
                slot_bytes=chunk_bytes(loader, self._execution.chunk_px),
                quiet=self._quiet,
            )
            reports = Driver(job, folders).run()
        if self._parts[0].name is None:
            return reports[0]
        return {str(part.name): report for part, report in zip(self._parts, reports, strict=True)}

    def _folders(self, stack: ExitStack) -> list[OutputFolder]:
        """A folder for each collector, or none at all."""
        folders: list[OutputFolder] = []
        try:
            for part in self._parts:
                folders.append(stack.enter_context(self._folder(part)))
            for folder in folders:  # none is touched before all can be had
                folder.begin()
        except BaseException:
            for folder in reversed(folders):
                folder.abandon()
            raise
        return folders

    def _folder(self, part: _Part) -> OutputFolder:
        above = Layout.of(self._writer.options)
        if part.name is not None and above.run_file.exists():
            raise OutputError(
                f"{above.folder} holds a run of one collector; those of several have folders of their own in it, "
                f"{part.name!r} here: choose another folder"
            )
        execution = part.execution(self._execution)
        asked = RunFile.of(self._defining(part), execution, source_hash(part.collector), self._loader.dataset)
        return OutputFolder(Layout.of(part.output), asked, self._overwrite)

    def _loader_startup(self) -> LoaderStartup:
        sizes = [part.batch_size for part in self._parts]
        together = math.lcm(*sizes)
        execution = self._execution
        return loader_startup(
            self._loader,
            batch_size=together if together <= _MOST_WINDOWS_TOGETHER else max(sizes),
            chunk_px=execution.chunk_px,
            openslide_chunk_px=execution.openslide_chunk_px,
            threads=execution.threads,
            tile_cache_bytes=execution.tile_cache_bytes,
            min_chunk_interval_s=execution.min_chunk_interval_s,
            max_windows=self._most_windows(),
            starts_at_multiples_of=1 if (maps := self._writer.options.maps) is None else maps.reduction,
        )

    def _most_windows(self) -> int:
        """Of a chunk: images of windows that overlap are together much larger than the region that they are of."""
        if self._writer.options.images is None:
            return MOST_WINDOWS
        most_px = _MOST_OVERLAP_OF_IMAGES * self._execution.chunk_px
        return max(1, min(MOST_WINDOWS, most_px // window_px(self._loader)))

    def _branch(self, part: _Part, shipped: Shipped, folder: OutputFolder) -> BranchJob:
        sampler = self._loader.sampler
        output = msgspec.structs.replace(
            part.output,
            journal_dir=str(folder.layout.journal_dir),
            with_labels=sampler is not None and sampler.carries_labels,
        )
        return BranchJob(
            name=part.name,
            collecting=CollectingOptions(
                batch_size=part.batch_size,
                columns=part.columns,
                device=None,
                max_chunk_bytes=max(chunk_bytes(self._loader, self._execution.chunk_px) + _CHUNK_SLACK_BYTES, _ANY_CHUNK_BYTES),
                images=None if output.images is None else output.images.encoding,
                encode_threads=max(1, available_cpus() // part.collectors),
                maps=output.maps,
                shares_slots=len(self._parts) > 1,
                transforms=self._shipped_transforms(),
            ),
            collector=shipped,
            asks_finished=overrides(part.collector, "is_finished"),
            gathers=part.collector.mode != "stream",
            writing=WritingOptions(output=output, durability=self._execution.durability),
            execution=part.execution(self._execution),
        )

    def _shipped_transforms(self) -> bytes | None:
        transforms = self._loader.transforms
        return msgspec.msgpack.encode(ship(transforms, "the transforms")) if transforms else None

    def _defining(self, part: _Part) -> Defining:
        loader, collector = self._loader, part.collector
        return Defining(
            kernel_size=loader.kernel_size,
            stride=loader.stride,
            border=loader.border,
            reader=loader.reader,
            background=loader.background,
            on_bad_region=loader.on_bad_region,
            collector=collector_name(collector),
            collector_mode=collector.mode,
            collector_arguments=collector_arguments(collector),
            columns=part.columns,
            batch_size=part.batch_size,
            format=part.output.format,
            one_file=part.output.one_file,
            sampler=None if loader.sampler is None else description_of(loader.sampler),
            images={} if part.output.images is None else msgspec.to_builtins(part.output.images),
            maps={} if part.output.maps is None else part.output.maps.describe(),
            paired={name: image.describe() for name, image in loader.paired.items()},
            transforms=tuple((" ".join(names), source_of(function)) for names, function in loader.transforms.items()),
            **loader.resolution.describe(),
        )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A collector, and the options that are its own."""

    name: str | None
    """None: it is the only one."""
    collector: StreamCollector
    output: OutputOptions
    collectors: int
    devices: tuple[str, ...]
    batch_size: int
    columns: tuple[str, ...] | None

    @classmethod
    def of(
        cls, name: str | None, collector: StreamCollector, output: OutputOptions, collectors: Any, devices: Any, batch_size: Any
    ) -> _Part:
        _check_kind(collector, StreamCollector, "collector" if name is None else f"collector {name!r}")
        _check_collector(collector)
        if collector.mode != "stream" and output.images is not None:
            raise ConfigError(
                f"an ImageStreamWriter goes with mode 'stream': a collector of mode {collector.mode!r} gives no images to files"
            )
        if collector.mode != "stream" and output.maps is not None:
            raise ConfigError(
                f"a MapStreamWriter goes with mode 'stream': a collector of mode {collector.mode!r} gives no images to maps"
            )
        if isinstance(collector, Patches) and output.images is None and output.maps is None:
            raise ConfigError("Patches gives images: use it with an ImageStreamWriter, or with a MapStreamWriter")
        if collector.mode != "stream" and output.one_file:
            raise ConfigError(
                f"one_file goes with mode 'stream': a collector of mode {collector.mode!r} writes no pieces to files"
            )
        names = (devices,) if isinstance(devices, str) else tuple(devices or ())
        number = max(1, len(names)) if collectors is None else count(collectors, "collectors")
        if not all(isinstance(each, str) and each.strip() for each in names):
            raise ConfigError(f"devices must be names as torch has them, 'cuda:0', got {devices!r}")
        if len(names) > number:
            raise ConfigError(f"devices {names} are more than the {number} collectors they are dealt to")
        return cls(
            name=name,
            collector=collector,
            output=output if name is None else msgspec.structs.replace(output, folder=os.path.join(output.folder, name)),
            collectors=number,
            devices=names,
            batch_size=count(collector.batch_size if batch_size is None else batch_size, "batch_size"),
            columns=None if output.images is not None else _columns(collector),
        )

    def execution(self, of_run: Execution) -> Execution:
        """How it is executed."""
        return msgspec.structs.replace(of_run, collectors=self.collectors, devices=self.devices)


def _names(collectors: Mapping[str, StreamCollector]) -> tuple[str | None, ...]:
    """The names of several collectors, which are names of folders too."""
    if not collectors:
        raise ConfigError("collector is an empty dict: give at least one")
    for name in collectors:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise ConfigError(
                f"a collector's name must be letters, digits, _, - and . (it is the name of its folder), got {name!r}"
            )
    return tuple(collectors)


def _of(value: Any, name: str | None, names: tuple[str | None, ...], what: str) -> Any:
    """An option of one collector, which may be given for all, or by name."""
    if not isinstance(value, Mapping):
        return value
    for given in value:
        if given not in names or name is None:
            raise ConfigError(f"{what} names {given!r}, which is none of the collectors' names")
    return value.get(name)


def _check_kind(value: Any, kind: type, name: str) -> None:
    if not isinstance(value, kind):
        got = f"the class {value.__name__}, not an object of it" if isinstance(value, type) else type(value).__name__
        raise ConfigError(f"{name} must be a {kind.__name__}, got {got}")


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
