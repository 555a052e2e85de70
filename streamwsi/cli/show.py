"""``streamwsi show``: what is in an output folder.

In: an output folder.  Out: its patients, slides, counts, values and results, in words or as JSON; of a run with several
collectors, those of each.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("out", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(out: str, as_json: bool) -> None:
    """Say what is in OUT: patients, slides, windows, values; what failed or is not finished, and why."""
    import msgspec

    from streamwsi.summary import summarize
    from streamwsi.writing.layout import run_folders

    summaries = {name: summarize(folder) for name, folder in (run_folders(Path(out)) or {"": Path(out)}).items()}
    if not as_json:
        click.echo("\n\n".join(map(str, summaries.values())))
    elif "" in summaries:
        click.echo(summaries[""].to_json())
    else:
        each = {name: msgspec.Raw(summary.to_json().encode()) for name, summary in summaries.items()}
        click.echo(msgspec.json.format(msgspec.json.encode(each), indent=2).decode())
