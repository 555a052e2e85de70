"""``streamwsi render``: pictures of maps.

In: a patient's file, or an output folder.  Out: pictures, and their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from streamwsi.errors import ConfigError


@click.command()
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
