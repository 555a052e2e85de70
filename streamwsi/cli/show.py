"""``streamwsi show``: what is in an output folder.

In: an output folder.  Out: its patients, slides, counts, values and results, in words or as JSON.
"""

from __future__ import annotations

import click


@click.command()
@click.argument("out", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(out: str, as_json: bool) -> None:
    """Say what is in OUT: patients, slides, windows, values; what failed or is not finished, and why."""
    from streamwsi.summary import summarize

    summary = summarize(out)
    click.echo(summary.to_json() if as_json else str(summary))
