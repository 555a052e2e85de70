"""``streamwsi heatmap``: a run, from options.

In: options.  Out: a run, its summary, its exit code.
"""

from __future__ import annotations

from typing import Any

import click

from streamwsi.cli.options import job_from_options, job_options


@click.command()
@job_options
@click.option("--overwrite", is_flag=True, help="Remove what an earlier run left in the folder, and start afresh.")
@click.option("--quiet", is_flag=True, help="Show no progress, and at the end only the slides that have failed.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def heatmap(overwrite: bool, quiet: bool, as_json: bool, **options: Any) -> int:
    """Slide a window over SLIDES (files, one folder, or one CSV manifest) and store what a collector makes of each."""
    from streamwsi.cli.execute import execute

    return execute(job_from_options(options), overwrite=overwrite, quiet=quiet, as_json=as_json)
