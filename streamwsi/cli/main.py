"""The command line: its group of commands, and how it ends.

In: arguments.  Out: files, a report, an exit code: 0 all done; 1 some slides failed; 2 usage or configuration, before
anything starts; 3 the run was broken off; 130 or 143 interrupted.

What a command needs is imported when it runs: `--help` does not pay for pandas, h5py or matplotlib.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TextIO

import click

from streamwsi._version import __version__
from streamwsi.cli.demo import demo
from streamwsi.cli.doctor import doctor
from streamwsi.cli.extract import extract
from streamwsi.cli.geojson import geojson
from streamwsi.cli.heatmap import heatmap
from streamwsi.cli.info import info
from streamwsi.cli.keys import keys
from streamwsi.cli.mask import mask
from streamwsi.cli.preview import preview
from streamwsi.cli.render import render
from streamwsi.cli.run import run
from streamwsi.cli.show import show
from streamwsi.cli.verify import verify
from streamwsi.errors import Interrupted, RunError, StreamwsiError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="streamwsi")
def cli() -> None:
    """Stream whole-slide images through a pipeline of processes."""


for command in (heatmap, extract, run, info, mask, preview, render, geojson, show, verify, keys, doctor, demo):
    cli.add_command(command)


def main() -> None:
    """The console script: errors in one line, exit codes as documented."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort as abort:  # click makes this of every KeyboardInterrupt
        interrupted = abort.__cause__ if isinstance(abort.__cause__, Interrupted) else Interrupted(signal.SIGINT)
        print(f"streamwsi: {interrupted}; run the same command again to go on", file=sys.stderr)
        code = interrupted.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except StreamwsiError as error:
        print(f"streamwsi: error: {error}", file=sys.stderr)
        code = error.exit_code
    except Exception:  # noqa: BLE001 - Python would end with 1, which means that some slides failed
        traceback.print_exc()
        code = RunError.exit_code
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    sys.exit(code if isinstance(code, int) else 0)


def _flush(stream: TextIO) -> None:
    """Write out what was said; if nobody reads it any more, drop it: Python would try again when it ends, and end with 120."""
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
