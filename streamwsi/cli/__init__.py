"""The command line: one module per command."""

from streamwsi.cli.main import cli, main

__all__ = ["cli", "main"]
