"""``streamwsi extract``: patches as images, from options.

In: options.  Out: a run, its summary, its exit code.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from streamwsi.cli.job import OF_MAPS
from streamwsi.cli.options import job_from_options, job_options
from streamwsi.images.encoding import FORMATS

_OTHERWISE = {
    "collector": {
        "required": False,
        "default": ("patches",),
        "help": "What makes the images: the windows as they are, or your own, as my_stains.py:Normalised.  [default: patches]",
    },
    "format": {"type": click.Choice(FORMATS), "default": "png", "help": "Of the images."},
}


@click.command()
@partial(job_options, without=("one_file", *OF_MAPS), changed=_OTHERWISE)
@click.option("--overwrite", is_flag=True, help="Remove what an earlier run left in the folder, and start afresh.")
@click.option("--quiet", is_flag=True, help="Show no progress, and at the end only the slides that have failed.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def extract(overwrite: bool, quiet: bool, as_json: bool, **options: Any) -> int:
    """Slide a window over SLIDES (files, one folder, or one CSV manifest) and write each as an image, with a manifest."""
    from streamwsi.cli.execute import execute

    return execute(job_from_options(options), overwrite=overwrite, quiet=quiet, as_json=as_json)
