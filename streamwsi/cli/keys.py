"""``streamwsi keys``: keys for runs that listen beyond loopback.

In: the name of a folder.  Out: that folder, with keys.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(file_okay=False))
def keys(folder: str) -> None:
    """Make keys in FOLDER, for runs with --transport tcp that listen beyond loopback; only their owner can read them."""
    from streamwsi.wire.keys import write_keys

    write_keys(Path(folder))
    click.echo(f"keys made in {folder}: give it as --key-dir, and keep it to yourself")
