"""The command line.

In: arguments.  Out: files, a report, an exit code: 0 all done; 1 some slides failed; 2 usage or configuration, before
anything starts; 3 the run was broken off; 130 or 143 interrupted.

What a command needs is imported when it runs: `--help` does not pay for pandas, h5py or matplotlib.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from streamwsi._version import __version__
from streamwsi.errors import ConfigError, Interrupted, RunError, StreamwsiError
from streamwsi.geometry import BORDERS

if TYPE_CHECKING:
    from streamwsi.dataset import Dataset, SlideInfo
    from streamwsi.pipeline.report import Report


class _Pair(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """An int, or two as 256x128 or 256,128."""

    name = "pixels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, (int, tuple)):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).replace("x", ",").split(","))
        except ValueError:
            self.fail(f"{value!r} is neither a number of pixels nor two, as 256x128", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


class _Background(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A colour as R,G,B or #RRGGBB."""

    name = "colour"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            if value.startswith("#") and len(value) == 7:
                return tuple(bytes.fromhex(value[1:]))
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is neither R,G,B nor #RRGGBB", param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="streamwsi")
def cli() -> None:
    """Stream whole-slide images through a pipeline of processes."""


def main() -> None:
    """The console script: errors in one line, exit codes as documented."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort as abort:  # click makes this of every KeyboardInterrupt
        interrupted = abort.__cause__ if isinstance(abort.__cause__, Interrupted) else Interrupted(signal.SIGINT)
        print(f"streamwsi: {interrupted}; run the same command again to go on", file=sys.stderr)
        code = interrupted.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except StreamwsiError as error:
        print(f"streamwsi: error: {error}", file=sys.stderr)
        code = error.exit_code
    except Exception:  # noqa: BLE001 - Python would end with 1, which means that some slides failed
        traceback.print_exc()
        code = RunError.exit_code
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    sys.exit(code if isinstance(code, int) else 0)


def _flush(stream: TextIO) -> None:
    """Write out what was said; if nobody reads it any more, drop it: Python would try again when it ends, and end with 120."""
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@cli.command()
@click.argument("slides", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder for the patients' files.")
@click.option("--collector", required=True, help="mean, hematoxylin, or your own as my_model.py:MyCollector.")
@click.option(
    "--arg", "arguments", multiple=True, metavar="NAME=VALUE", help="Given to the collector's constructor; repeatable."
)
@click.option(
    "--kernel-size", type=_Pair(), default=256, show_default=True, help="Window, in pixels of the level: 256 or 256x128."
)
@click.option("--stride", type=_Pair(), help="Step, in pixels of the level.  [default: the kernel size]")
@click.option("--level", type=int, default=0, show_default=True, help="Level read; 0 is the finest.")
@click.option("--border", type=click.Choice(BORDERS), default="pad", show_default=True, help="What happens at the edge.")
@click.option("--background", type=_Background(), default=(255, 255, 255), help="R,G,B or #RRGGBB.  [default: white]")
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
    if options["as_json"]:
        click.echo(report.to_json())
    elif not options["quiet"]:
        click.echo(summary(report, Path(out)))
    return report.exit_code


@cli.command()
@click.argument("slide", type=click.Path())
@click.option("--reader", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info(slide: str, reader: str, as_json: bool) -> None:
    """Say what a SLIDE is: size, levels, resolution, vendor, tiles."""
    import msgspec

    from streamwsi.slides.reader import open_slide

    with open_slide(slide, reader) as opened:
        facts = opened.info
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"path": slide, **msgspec.to_builtins(facts)}), indent=2))
    else:
        click.echo(describe(slide, facts))


@cli.command()
@click.argument("out", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
def verify(out: str, as_json: bool) -> int:
    """Check that every window of every patient in OUT is there, once, in its place; exit code 0 only if all are."""
    import msgspec

    from streamwsi.verification import as_table
    from streamwsi.verification import verify as verify_folder

    verdicts = verify_folder(out)
    click.echo(msgspec.json.format(msgspec.json.encode(verdicts), indent=2) if as_json else as_table(verdicts))
    return 1 if any(verdict.problems for verdict in verdicts) else 0


@cli.command()
@click.argument("path", type=click.Path(exists=True))
@click.option("--out", type=click.Path(), help="The picture, or the folder for pictures.  [default: beside the file]")
@click.option("--slide", help="Id of the slide, where the patient has several.")
@click.option("--patient", help="Id of the patient, in a file of several.")
@click.option("--channel", default="0", show_default=True, help="Number or name of the value column.")
@click.option("--cmap", default="viridis", show_default=True, help="A matplotlib colour map.")
@click.option("--alpha", type=float, default=0.5, show_default=True, help="Opacity of the map over the slide.")
@click.option("--vmin", type=float, help="Value of the colour bar's lower end.")
@click.option("--vmax", type=float, help="Value of the colour bar's upper end.")
@click.option("--width", "width_px", type=int, default=1600, show_default=True, help="Width of the picture in pixels.")
@click.option("--title", help="[default: patient and slide]")
@click.option("--slide-path", type=click.Path(), help="The slide, or the folder it lies in, if it has moved.")
def render(path: str, **options: Any) -> None:
    """Lay the map in PATH (a patient's file, or a whole output folder) over its slide's thumbnail."""
    from streamwsi.maps.render import render as render_file
    from streamwsi.maps.render import render_all

    channel = options.pop("channel")
    options["channel"] = int(channel) if channel.lstrip("-").isdigit() else channel
    target = options.pop("out")
    if Path(path).is_dir():
        if options.pop("slide") or options.pop("patient"):
            raise ConfigError("--slide and --patient go with one patient's file, not with a folder")
        for picture in render_all(path, target, **options):
            click.echo(picture)
    else:
        click.echo(render_file(path, target, **options))


@cli.command()
@click.argument("folder", type=click.Path(file_okay=False))
def keys(folder: str) -> None:
    """Make keys in FOLDER, for runs with --transport tcp that listen beyond loopback; only their owner can read them."""
    from streamwsi.wire.keys import write_keys

    write_keys(Path(folder))
    click.echo(f"keys made in {folder}: give it as --key-dir, and keep it to yourself")


@cli.command()
@click.option("--out", type=click.Path(file_okay=False), default="demo-output", show_default=True)
@click.option("--quiet", is_flag=True)
def demo(out: str, quiet: bool) -> int:
    """Make the heatmap of the bundled slide, and its picture."""
    from streamwsi.collecting.ready_made import HematoxylinCollector
    from streamwsi.dataset import Dataset
    from streamwsi.loading.sliding_window import SlidingWindowLoader
    from streamwsi.maps.render import render as render_file
    from streamwsi.pipeline.pipeline import Pipeline
    from streamwsi.writing.stream_writer import HDF5StreamWriter

    slides = Path(__file__).parent.parent / "examples" / "data"
    if not slides.is_dir():
        raise ConfigError("the demo's slide comes with the source of streamwsi, not with an installed package: clone it")
    loader = SlidingWindowLoader(Dataset.from_folder(slides), kernel_size=128, stride=64)
    report = Pipeline(loader, HematoxylinCollector(), HDF5StreamWriter(out), quiet=quiet).run()
    click.echo(summary(report, Path(out)))
    for patient in report.patients:
        if patient.file is not None:
            click.echo(f"values:  {Path(out, patient.file)}")
            click.echo(f"picture: {render_file(Path(out, patient.file), title='Haematoxylin density, optical density')}")
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


def describe(path: str, facts: SlideInfo) -> str:
    """What a person wants to know of a slide."""
    width, height = facts.dimensions
    mpp = f"{facts.mpp[0]:.4g} x {facts.mpp[1]:.4g} um" if facts.mpp else "unknown"
    lines = [
        path,
        f"  size     {width} x {height} px"
        + (f", {width * facts.mpp[0] / 1000:.2f} x {height * facts.mpp[1] / 1000:.2f} mm" if facts.mpp else ""),
        f"  mpp      {mpp}",
        f"  power    {f'{facts.power:g}x' if facts.power else 'unknown'}",
        f"  vendor   {facts.vendor}",
        f"  reader   {facts.reader}" + (f": {facts.reader_reason}" if facts.reader_reason else ""),
        f"  images   {', '.join(facts.associated_images) or 'none'}",
        "  level    size (px)        downsample  tiles (px)",
    ]
    for number, (size, downsample, tile) in enumerate(
        zip(facts.level_dimensions, facts.level_downsamples, facts.tile_sizes, strict=True)
    ):
        tiles = f"{tile[0]} x {tile[1]}" if tile else "not tiled"
        lines.append(f"  {number:<8} {f'{size[0]} x {size[1]}':<16} {downsample:<11.6g} {tiles}")
    return "\n".join(lines)


def summary(report: Report, out: Path) -> str:
    """What happened, in a few lines."""
    states: dict[str, int] = {}
    for patient in report.patients:
        states[patient.state] = states.get(patient.state, 0) + 1
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    lines = [
        f"{len(report.patients)} patient{'s' if len(report.patients) != 1 else ''}: {counts}; "
        f"{report.windows} windows in {report.seconds:.1f} s ({report.windows_per_second:.0f}/s)"
        + (f"; limiting stage: {report.limiting_stage}" if report.limiting_stage else "")
    ]
    for slide in report.failed_slides:
        reason = slide.reason or "unknown"
        lines.append(f"failed: {reason if slide.path in reason else f'{slide.path}: {reason}'}")
    lines.append(f"files: {out}; report: {out / 'report.json'}")
    return "\n".join(lines)


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


if __name__ == "__main__":
    main()
