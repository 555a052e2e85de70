"""A job is carried out.

In: a Job.  Out: a run, or several on one stream; its job file in the output folder; summaries; an exit code.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from streamwsi.addresses import is_zarr
from streamwsi.cli.job import MAP_FORMATS, OF_IMAGES, OF_MAPS, Job, anchored, default_of
from streamwsi.cli.job_file import written
from streamwsi.cli.summary import failures, summary
from streamwsi.errors import ConfigError, DiskError, OutputError, StreamwsiError

if TYPE_CHECKING:
    from streamwsi.collecting.collector import StreamCollector
    from streamwsi.dataset import Dataset
    from streamwsi.loading.window_loader import WindowLoader
    from streamwsi.pipeline.report import Report
    from streamwsi.writing.stream_writer import StreamWriter

JOB_FILE = "job.toml"
"""Of an output folder: what was run, to be run again."""
_KERNEL_SIZE = 256
_RESOLUTION = ("level", "mpp", "magnification", "missing_mpp", "levels", "mpps")


def execute(job: Job, *, overwrite: bool, quiet: bool, as_json: bool) -> int:
    """Run a job, say what happened, and return the exit code."""
    from streamwsi.pipeline.pipeline import Pipeline

    collectors = collectors_of(job)
    kernel_size, resolution, origin = window_of(job, collectors)
    if origin and not quiet:
        click.echo(origin, err=True)
    job = msgspec.structs.replace(job, kernel_size=kernel_size if isinstance(kernel_size, int) else list(kernel_size))
    loader, writer = loader_of(job, kernel_size, resolution), _writer(job)
    pipeline = Pipeline(
        loader,
        collectors if job.several else collectors[""],
        writer,
        **_of_each(job),
        **_of_all(job),
        quiet=quiet,
        overwrite=overwrite,
    )
    with _job_file(job):
        done = pipeline.run()
    reports = done if isinstance(done, dict) else {"": done}
    if as_json:
        click.echo(_json(done))
    else:
        for name, report in reports.items():
            of_name = f"{name}: " if name else ""
            if not quiet:
                click.echo(of_name + summary(report, Path(job.out, name)))
            else:
                for line in failures(report):  # nothing is lost without a word
                    click.echo(of_name + line, err=True)
    return max(report.exit_code for report in reports.values())


def collectors_of(job: Job) -> dict[str, StreamCollector]:
    """The collectors of a job by name; the name of one that is alone is empty."""
    from streamwsi.collecting.spec import find_collector

    if job.several:
        return {name: find_collector(one.collector, dict(one.arguments)) for name, one in job.several.items()}
    if job.collector is None:
        raise ConfigError("a job must have a collector")
    return {"": find_collector(job.collector, dict(job.arguments))}


def window_of(job: Job, collectors: Mapping[str, StreamCollector]) -> tuple[int | tuple[int, int], dict[str, Any], str]:
    """Kernel size and the loader's options of resolution, and where they are from in words, if they are a collector's.

    Raises ConfigError where several collectors want different ones, and none is given.
    """
    kernel_size: Any = tuple(job.kernel_size) if isinstance(job.kernel_size, list) else job.kernel_size
    resolution = {name: value for name in _RESOLUTION if (value := getattr(job, name)) is not None}
    said = []
    if kernel_size is None:
        kernel_size = _wanted(collectors, "kernel_size", "--kernel-size")
        if kernel_size is not None:
            said.append(f"kernel size {'x'.join(map(str, kernel_size)) if isinstance(kernel_size, tuple) else kernel_size}")
    if not resolution.keys() - {"missing_mpp"}:
        mpp = _wanted(collectors, "mpp", "--mpp or --level")
        if mpp is not None:
            resolution["mpp"] = mpp
            said.append(f"{mpp:g} um/px")
    origin = f"{' and '.join(said)}: as the collector wants it" if said else ""
    return kernel_size or _KERNEL_SIZE, resolution, origin


def dataset_of(slides: str | list[str]) -> Dataset:
    """The dataset that paths mean: slide files and patterns of them, or one folder, or one CSV manifest."""
    from streamwsi.dataset import Dataset

    paths = [path for name in ([slides] if isinstance(slides, str) else slides) for path in _expanded(name)]
    first = Path(paths[0])
    if len(paths) == 1 and first.is_dir() and not is_zarr(first):
        return Dataset.from_folder(first)
    if len(paths) == 1 and first.suffix.lower() == ".csv":
        return Dataset.from_csv(first)
    folders = [name for name in paths if Path(name).is_dir() and not is_zarr(name)]
    if folders:
        raise ConfigError(f"give either one folder, one CSV manifest, or slide files; {folders[0]} is a folder among others")
    return Dataset.from_paths(paths)


def _expanded(name: str) -> list[str]:
    """A path as it is; of a pattern, the files that match."""
    if not glob.has_magic(name) or Path(name).exists():
        return [name]
    found = [path for path in sorted(glob.glob(name, recursive=True)) if is_zarr(path) or not Path(path).is_dir()]
    if not found:
        raise ConfigError(f"no file matches {name}")
    return found


def _wanted(collectors: Mapping[str, StreamCollector], attribute: str, option: str) -> Any:
    """What the collectors want; None where none of them says."""
    wanted = {name: value for name, one in collectors.items() if (value := getattr(one, attribute, None)) is not None}
    if len(set(wanted.values())) > 1:
        listed = ", ".join(f"{name} wants {value}" for name, value in wanted.items())
        raise ConfigError(f"the collectors read one stream, and differ in their {attribute} ({listed}): give {option}")
    return next(iter(wanted.values()), None)


def loader_of(job: Job, kernel_size: int | tuple[int, int], resolution: dict[str, Any]) -> WindowLoader:
    """The loader that a job asks for."""
    from streamwsi.cli.sampling import sampler_of

    stride: Any = tuple(job.stride) if isinstance(job.stride, list) else job.stride
    sampler = sampler_of(job, stride)
    if sampler is not None:
        from streamwsi.loading.window_loader import WindowLoader

        return WindowLoader(
            dataset_of(job.slides),
            kernel_size,
            sampler,
            background=job.background,
            on_bad_region=job.on_bad_region,
            reader=job.reader,
            paired=_paired(job),
            **resolution,
        )
    from streamwsi.loading.sliding_window import SlidingWindowLoader

    return SlidingWindowLoader(
        dataset_of(job.slides),
        kernel_size,
        stride,
        border=job.border,
        background=job.background,
        on_bad_region=job.on_bad_region,
        reader=job.reader,
        paired=_paired(job),
        **resolution,
    )


def _paired(job: Job) -> dict[str, Any]:
    """The images that are read with the slides."""
    from streamwsi.loading.paired import Paired

    found = {}
    for name, image in job.images.items():
        at = {axis: slice(*place) if isinstance(place, list) else place for axis, place in image.at.items()}
        pairs = {field: tuple(value) for field in ("scale", "offset") if isinstance(value := getattr(image, field), list)}
        found[name] = Paired(**{**msgspec.structs.asdict(image), "at": at, **pairs})
    return found


def _writer(job: Job) -> StreamWriter:
    from streamwsi.images.encoding import FORMATS
    from streamwsi.writing.stream_writer import CSVStreamWriter, HDF5StreamWriter, ImageStreamWriter, MapStreamWriter

    for name in OF_MAPS:
        if job.format not in MAP_FORMATS and getattr(job, name) != default_of(Job, name):
            raise ConfigError(f"{name} goes with maps, format {', '.join(MAP_FORMATS)}; got format {job.format}")
    if job.format in FORMATS:
        if job.one_file:
            raise ConfigError(f"one_file goes with h5 and csv: images, {job.format} here, lie in a folder for each patient")
        return ImageStreamWriter(
            job.out,
            format=job.format,
            quality=job.quality,
            name=job.image_name,
            by_label=job.by_label,
            comment=job.comment,
            shards=job.shards,
            publish_partial=job.publish_partial,
            journal_dir=job.journal_dir,
        )
    for name in OF_IMAGES:
        if getattr(job, name) != default_of(Job, name):
            raise ConfigError(f"{name} goes with images, format {', '.join(FORMATS)}; got format {job.format}")
    if job.format in MAP_FORMATS:
        if job.one_file:
            raise ConfigError(f"one_file goes with h5 and csv: maps, {job.format} here, lie in a folder for each patient")
        return MapStreamWriter(
            job.out,
            output=MAP_FORMATS[job.format],
            weights=job.weights,
            dtype=job.map_dtype,
            fill_value=job.fill_value,
            reduction=job.reduction,
            publish_partial=job.publish_partial,
            journal_dir=job.journal_dir,
        )
    kind = CSVStreamWriter if job.format == "csv" else HDF5StreamWriter
    return kind(job.out, one_file=job.one_file, publish_partial=job.publish_partial, journal_dir=job.journal_dir)


def _of_each(job: Job) -> dict[str, Any]:
    """The options of a pipeline that are each collector's own: a value, or one for each of several that says so."""
    if not job.several:
        return {"collectors": job.collectors, "devices": job.devices, "batch_size": job.batch_size}
    options = {}
    for option in ("collectors", "devices", "batch_size"):
        given = {name: value for name, one in job.several.items() if (value := getattr(one, option)) is not None}
        options[option] = given or None
    return options


def _of_all(job: Job) -> dict[str, Any]:
    return {
        "loaders": job.loaders,
        "writers": job.writers,
        "threads": job.threads,
        "chunk_px": job.chunk_px,
        "tile_cache_mb": job.tile_cache_mb,
        "min_chunk_interval_s": job.min_chunk_interval,
        "max_restarts": job.max_restarts,
        "stall_timeout_s": job.stall_timeout,
        "grace_s": job.grace,
        "transport": job.transport,
        "tcp_host": job.tcp_host,
        "key_dir": job.key_dir,
        "durability": job.durability,
    }


@contextmanager
def _job_file(job: Job) -> Iterator[None]:
    """Write what is run into the output folder before it begins, for it may be killed; a refused run leaves no trace."""
    from streamwsi.writing.layout import make_folder, write_whole

    path = Path(os.path.abspath(job.out), JOB_FILE)
    data = written(anchored(job, "."), f"What was run here. To go on, or to run it again: streamwsi run {path}")
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    before = path.read_bytes() if path.is_file() else None
    try:
        try:
            make_folder(path.parent)
            write_whole(path, data)
        except DiskError as error:
            reason = getattr(error.__cause__, "strerror", None) or error
            raise OutputError(f"the output folder {path.parent} cannot be written: {reason}") from error
        yield
    except StreamwsiError as error:
        if error.exit_code == OutputError.exit_code:  # refused: nothing has begun
            with contextlib.suppress(OSError):  # what could not be written is not there, and what is not empty stays
                if before is not None:
                    path.write_bytes(before)
                else:
                    path.unlink(missing_ok=True)
                for folder in made:
                    folder.rmdir()
        raise


def _json(done: Report | dict[str, Report]) -> str:
    if not isinstance(done, dict):
        return done.to_json().decode()
    each = {name: msgspec.Raw(report.to_json()) for name, report in done.items()}
    return msgspec.json.format(msgspec.json.encode(each), indent=2).decode()
