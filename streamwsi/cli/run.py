"""``streamwsi run``: a run, from a job file.

In: a file with everything that ``heatmap`` takes as options.  Out: a run, its summary, its exit code.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("job", required=False, type=click.Path())
@click.option("--template", is_flag=True, help="Print a job file with every field and what it means.")
@click.option("--overwrite", is_flag=True, help="Remove what an earlier run left in the folder, and start afresh.")
@click.option("--quiet", is_flag=True, help="Show no progress, and at the end only the slides that have failed.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def run(job: str | None, template: bool, overwrite: bool, quiet: bool, as_json: bool) -> int:
    """Run what the file JOB describes, or go on with it; every run leaves such a file in its folder, as job.toml.

    A new one: streamwsi run --template > job.toml
    """
    from streamwsi.cli import job_file
    from streamwsi.cli.execute import execute

    if (job is None) != template:
        raise click.UsageError("give a job file, or --template to be shown one")
    if job is None:
        click.echo(job_file.template(), nl=False)
        return 0
    return execute(job_file.read_job(Path(job)), overwrite=overwrite, quiet=quiet, as_json=as_json)
