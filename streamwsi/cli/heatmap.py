"""``streamwsi heatmap``: a run, from options.

In: options.  Out: a run, its summary, its exit code.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streamwsi.cli.summary import summary
from streamwsi.cli.types import Colour, Pair
from streamwsi.errors import ConfigError
from streamwsi.geometry import BORDERS

if TYPE_CHECKING:
    from streamwsi.dataset import Dataset


@click.command()
@click.argument("slides", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder for the patients' files.")
@click.option("--collector", required=True, help="mean, hematoxylin, or your own as my_model.py:MyCollector.")
@click.option(
    "--arg", "arguments", multiple=True, metavar="NAME=VALUE", help="Given to the collector's constructor; repeatable."
)
@click.option(
    "--kernel-size", type=Pair(), default=256, show_default=True, help="Window, in pixels of the level: 256 or 256x128."
)
@click.option("--stride", type=Pair(), help="Step, in pixels of the level.  [default: the kernel size]")
@click.option("--level", type=int, default=0, show_default=True, help="Level read; 0 is the finest.")
@click.option("--border", type=click.Choice(BORDERS), default="pad", show_default=True, help="What happens at the edge.")
@click.option("--background", type=Colour(), default=(255, 255, 255), help="R,G,B or #RRGGBB.  [default: white]")
@click.option("--on-bad-region", type=click.Choice(["fail", "skip"]), default="fail", show_default=True)
@click.option("--reader", default="auto", show_default=True)
@click.option("--format", "file_format", type=click.Choice(["h5", "hdf5", "csv"]), default="h5", show_default=True)
@click.option("--one-file", is_flag=True, help="All patients in one file.")
@click.option("--publish-partial", is_flag=True, help="Write patients of whom slides failed, as <patient>.partial.")
@click.option("--journal-dir", type=click.Path(file_okay=False), help="Local folder for journals, where --out is on a network.")
@click.option("--collectors", type=int, help="Collector processes.  [default: one per device, or 1]")
@click.option("--devices", help="Dealt to the collectors: cuda:0,cuda:1")
@click.option("--batch-size", type=int, help="Windows in a batch, at most.  [default: the collector's]")
@click.option("--loaders", type=int, help="Loader processes.  [default: one for every eight processors]")
@click.option("--threads", type=int, help="Decode threads of each loader.  [default: the processors]")
@click.option("--writers", type=int, default=1, show_default=True, help="Writer processes.")
@click.option("--chunk-px", type=int, default=1 << 23, show_default=True, help="Pixels of a big chunk, about.")
@click.option("--tile-cache-mb", type=float, default=201, show_default=True, help="Decoded tiles that a loader keeps, in MB.")
@click.option("--min-chunk-interval", type=float, default=0.0, help="Seconds between two chunks of a loader, at least.")
@click.option("--max-restarts", type=int, default=5, show_default=True, help="Workers that may be replaced.")
@click.option("--stall-timeout", type=float, default=1800.0, show_default=True, help="Seconds without progress that end it.")
@click.option(
    "--grace", type=float, default=10.0, show_default=True, help="Seconds to finish what is in flight after a signal."
)
@click.option("--transport", type=click.Choice(["auto", "shm", "ipc", "tcp"]), default="auto", show_default=True)
@click.option("--tcp-host", default="127.0.0.1", show_default=True, help="Where --transport tcp listens.")
@click.option("--key-dir", type=click.Path(file_okay=False), help="Keys for --transport tcp, from 'streamwsi keys'.")
@click.option("--durability", type=click.Choice(["process", "power"]), default="process", show_default=True)
@click.option("--overwrite", is_flag=True, help="Remove what an earlier run left in the folder, and start afresh.")
@click.option("--quiet", is_flag=True, help="Show nothing while running.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def heatmap(slides: tuple[str, ...], out: str, **options: Any) -> int:
    """Slide a window over SLIDES (files, one folder, or one CSV manifest) and store what a collector makes of each."""
    from streamwsi.collecting.spec import find_collector
    from streamwsi.loading.sliding_window import SlidingWindowLoader
    from streamwsi.pipeline.pipeline import Pipeline
    from streamwsi.writing.stream_writer import CSVStreamWriter, HDF5StreamWriter

    loader = SlidingWindowLoader(
        dataset_of(slides),
        options["kernel_size"],
        options["stride"],
        options["level"],
        border=options["border"],
        background=options["background"],
        on_bad_region=options["on_bad_region"],
        reader=options["reader"],
    )
    kind = CSVStreamWriter if options["file_format"] == "csv" else HDF5StreamWriter
    writer = kind(
        out, one_file=options["one_file"], publish_partial=options["publish_partial"], journal_dir=options["journal_dir"]
    )
    report = Pipeline(
        loader,
        find_collector(options["collector"], _arguments(options["arguments"])),
        writer,
        collectors=options["collectors"],
        loaders=options["loaders"],
        writers=options["writers"],
        devices=[name.strip() for name in options["devices"].split(",")] if options["devices"] else None,
        batch_size=options["batch_size"],
        threads=options["threads"],
        chunk_px=options["chunk_px"],
        tile_cache_mb=options["tile_cache_mb"],
        min_chunk_interval_s=options["min_chunk_interval"],
        max_restarts=options["max_restarts"],
        stall_timeout_s=options["stall_timeout"],
        grace_s=options["grace"],
        transport=options["transport"],
        tcp_host=options["tcp_host"],
        key_dir=options["key_dir"],
        durability=options["durability"],
        quiet=options["quiet"],
        overwrite=options["overwrite"],
    ).run()
    if isinstance(report, dict):
        raise TypeError("a single collector has a single report")
    if options["as_json"]:
        click.echo(report.to_json())
    elif not options["quiet"]:
        click.echo(summary(report, Path(out)))
    return report.exit_code


def dataset_of(slides: tuple[str, ...]) -> Dataset:
    """The dataset that paths on the command line mean."""
    from streamwsi.dataset import Dataset

    first = Path(slides[0])
    if len(slides) == 1 and first.is_dir():
        return Dataset.from_folder(first)
    if len(slides) == 1 and first.suffix.lower() == ".csv":
        return Dataset.from_csv(first)
    folders = [name for name in slides if Path(name).is_dir()]
    if folders:
        raise ConfigError(f"give either one folder, one CSV manifest, or slide files; {folders[0]} is a folder among others")
    return Dataset.from_paths(slides)


def _arguments(given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value that is JSON (a number, true, a list) is that, any other is a string."""
    import msgspec

    arguments: dict[str, Any] = {}
    for pair in given:
        name, separator, value = pair.partition("=")
        if not separator or not name.isidentifier():
            raise ConfigError(f"--arg takes NAME=VALUE, got {pair!r}")
        try:
            arguments[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            arguments[name] = value
    return arguments
