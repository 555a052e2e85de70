"""``streamwsi render``: pictures of maps.

In: a patient's file, or an output folder, of several collectors too.  Out: pictures, and their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from streamwsi.cli.types import channel_of
from streamwsi.errors import ConfigError
from streamwsi.map_options import NAMED_WEIGHTS

_ONE_SLIDE = ("slide", "patient")
_EACH_PICTURE = ("view", "format", "weights")


@click.command()
@click.argument("path", type=click.Path(exists=True))
@click.option("--out", type=click.Path(), help="The picture, or the folder for pictures.  [default: beside the file]")
@click.option(
    "--contact-sheet",
    is_flag=True,
    help="One picture of all slides of the run in PATH, also of those that failed or are missing.",
)
@click.option("--view", type=click.Choice(["overlay", "side-by-side", "map"]), help="[default: overlay]")
@click.option("--format", help="png, jpg, or tiff: a pyramid of the colours, for QuPath and others.  [default: png]")
@click.option("--slide", help="Id of the slide, where the patient has several.")
@click.option("--patient", help="Id of the patient, in a file of several.")
@click.option("--channel", default="0", show_default=True, help="Number or name of the value column.")
@click.option("--cmap", default="viridis", show_default=True, help="A matplotlib colour map.")
@click.option("--alpha", type=float, default=0.5, show_default=True, help="Opacity of the map over the slide.")
@click.option("--vmin", type=float, help="Value of the colour bar's lower end.")
@click.option("--vmax", type=float, help="Value of the colour bar's upper end.")
@click.option("--threshold", type=float, help="Values below it are not coloured.")
@click.option(
    "--weights",
    type=click.Choice(NAMED_WEIGHTS),
    help="How windows that overlap are blended, on cells of a quarter of the stride.  [default: means on cells of it]",
)
@click.option("--width", "width_px", type=int, help="Width in pixels.  [default: 1600; of a tiff the slide's, 16384 at most]")
@click.option("--title", help="[default: patient and slide]")
@click.option("--slide-path", type=click.Path(), help="The slide, or the folder it lies in, if it has moved.")
def render(path: str, contact_sheet: bool, **options: Any) -> None:
    """Lay the map in PATH (a patient's file, or a whole output folder) over its slide's thumbnail."""
    options["channel"] = channel_of(options["channel"])
    target = options.pop("out")
    given = {name: value for name, value in options.items() if value is not None}
    if Path(path).is_dir():
        _refuse(given, _ONE_SLIDE, "go with one patient's file, not with a folder")
    if contact_sheet:
        _refuse(given, _EACH_PICTURE, "do not go with --contact-sheet")
        from streamwsi.maps.contact_sheet import contact_sheet as draw_sheet

        if not Path(path).is_dir():
            raise ConfigError(f"{path} is not a folder; --contact-sheet takes the output folder of a run")
        pictures = [picture for folder in _folders(path) for picture in draw_sheet(folder, target, **given)]
    elif Path(path).is_dir():
        from streamwsi.maps.render import render_all

        pictures = [picture for folder in _folders(path) for picture in render_all(folder, target, **given)]
    else:
        from streamwsi.maps.render import render as render_file

        pictures = [render_file(path, target, **given)]
    for picture in pictures:
        click.echo(picture)


def _folders(path: str) -> list[Path]:
    """The output folder, or those of its collectors, where it is that of several."""
    from streamwsi.writing.layout import run_folders

    return list(run_folders(Path(path)).values()) or [Path(path)]


def _refuse(given: dict[str, Any], names: tuple[str, ...], why: str) -> None:
    if any(name in given for name in names):
        *first, last = (f"--{name}" for name in names)
        raise ConfigError(f"{', '.join(first)} and {last} {why}")
