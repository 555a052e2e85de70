"""``streamwsi geojson``: results for QuPath.

In: a patient's file, or an output folder, of several collectors too.  Out: GeoJSON files, and their names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from streamwsi.cli.types import channel_of
from streamwsi.errors import ConfigError


@click.command()
@click.argument("path", type=click.Path(exists=True))
@click.option("--out", type=click.Path(), help="The file, or the folder for files.  [default: beside the patient's file]")
@click.option(
    "--objects",
    type=click.Choice(["windows", "regions"]),
    help="Each window as a rectangle, or the areas where a value is at least --threshold.  [default: windows]",
)
@click.option("--threshold", type=float, help="Values below it are left out.")
@click.option("--channel", help="Number or name of the value column.  [default: all of windows, the first of regions]")
@click.option(
    "--type",
    "object_type",
    type=click.Choice(["detection", "annotation", "tile"]),
    help="What QuPath makes of them.  [default: detections of windows, annotations of regions]",
)
@click.option("--label", help="The class of all objects.  [default: a window's label; the column of regions]")
@click.option("--slide", help="Id of the slide, where the patient has several.")
@click.option("--patient", help="Id of the patient, in a file of several.")
def geojson(path: str, out: str | None, channel: str | None, **options: Any) -> None:
    """Write the results in PATH (a patient's file, or a whole output folder) as objects that QuPath opens."""
    given = {name: value for name, value in options.items() if value is not None}
    if channel is not None:
        given["channel"] = channel_of(channel)
    from streamwsi.maps.geojson import export_all, export_geojson

    if not Path(path).is_dir():
        click.echo(export_geojson(path, out, **given))
        return
    if {"slide", "patient"} & set(given):
        raise ConfigError("--slide and --patient go with one patient's file, not with a folder")
    from streamwsi.writing.layout import run_folders

    for folder in list(run_folders(Path(path)).values()) or [Path(path)]:
        for written in export_all(folder, out, **given):
            click.echo(written)
