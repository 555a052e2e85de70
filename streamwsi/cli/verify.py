"""``streamwsi verify``: whether an output folder is whole.

In: an output folder.  Out: a table of verdicts, and an exit code.
"""

from __future__ import annotations

import click


@click.command()
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
