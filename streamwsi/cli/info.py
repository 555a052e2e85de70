"""``streamwsi info``: what a slide is.

In: a slide.  Out: its size, levels, resolution, vendor, tiles, in words or as JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from streamwsi.dataset import SlideInfo


@click.command()
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
