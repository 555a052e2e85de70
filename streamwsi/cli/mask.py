"""``streamwsi mask``: where a slide holds tissue.

In: a slide.  Out: a mask file, and a picture of it.
"""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.argument("slide", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="The mask, .npz: `mask` (rows, columns) bool, `scale`, `offset`.")
@click.option("--png", type=click.Path(), help="A picture of the mask on the slide, too.")
@click.option("--method", type=click.Choice(("hsv", "lab", "otsu")), default="hsv", show_default=True)
@click.option("--threshold", type=float, help="In the method's own scale.  [default: the method's]")
@click.option("--level", type=int, help="Make it of this level.")
@click.option("--mpp", type=float, help="Make it of about so many micrometres per pixel.")
@click.option("--max-px", type=int, help="Make it at most so many pixels long.  [default: 2048]")
@click.option(
    "--min-object", type=float, help="Remove what is smaller than a disc of this diameter.  [default: 100 um, 200 px]"
)
@click.option("--max-hole", type=float, help="Fill holes smaller than a disc of this diameter.  [default: 50 um, 100 px]")
@click.option("--closing", type=float, help="Close gaps narrower than this.  [default: 20 um, 40 px]")
@click.option("--unit", type=click.Choice(("um", "px")), default="um", show_default=True, help="Of these; px: level-0 pixels.")
def mask(slide: str, out: str, png: str | None, **options: Any) -> None:
    """Find the tissue on SLIDE. Marker ink and black borders are not tissue."""
    from streamwsi.regions.tissue import TissueMask

    found = TissueMask(slide, **options)
    click.echo(f"{found.save(out)}: {found}")
    if png is not None:
        found.overlay(slide, png)
        click.echo(png)
