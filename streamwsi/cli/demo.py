"""``streamwsi demo``: the heatmap of the slide that comes with the source.

In: nothing.  Out: its values and its picture.
"""

from __future__ import annotations

from pathlib import Path

import click

from streamwsi.cli.summary import summary
from streamwsi.errors import ConfigError


@click.command()
@click.option("--out", type=click.Path(file_okay=False), default="demo-output", show_default=True)
@click.option("--quiet", is_flag=True)
def demo(out: str, quiet: bool) -> int:
    """Make the heatmap of the bundled slide, and its picture."""
    from streamwsi.collecting.ready_made import HematoxylinCollector
    from streamwsi.dataset import Dataset
    from streamwsi.loading.sliding_window import SlidingWindowLoader
    from streamwsi.maps.render import render as render_file
    from streamwsi.writing.stream_writer import HDF5StreamWriter

    slides = Path(__file__).parents[2] / "examples" / "data"
    if not slides.is_dir():
        raise ConfigError("the demo's slide comes with the source of streamwsi, not with an installed package: clone it")
    loader = SlidingWindowLoader(Dataset.from_folder(slides), kernel_size=128, stride=64)
    report = HematoxylinCollector().start_collecting(loader, HDF5StreamWriter(out), quiet=quiet)
    click.echo(summary(report, Path(out)))
    for patient in report.patients:
        if patient.file is not None:
            click.echo(f"values:  {Path(out, patient.file)}")
            click.echo(f"picture: {render_file(Path(out, patient.file), title='Haematoxylin density, optical density')}")
    return report.exit_code
