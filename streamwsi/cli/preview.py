"""``streamwsi preview``: where the windows of a run would lie.

In: the options of a run.  Out: a picture of each slide.  Runs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from streamwsi.cli.job import Job
from streamwsi.cli.options import job_from_options, job_options

_ASKED = (
    "slides", "out", "collector", "arguments", "kernel_size", "stride", "level", "mpp", "magnification", "missing_mpp",
    "levels", "mpps", "border", "background", "reader", "sampler", "region", "min_coverage", "include", "exclude", "absent",
    "buffer", "buffer_unit", "inverse", "nested_as_holes", "origin", "windows", "per_label", "spacing", "spacing_unit",
    "points", "outside", "max_overlap", "seed", "epoch",
)  # fmt: skip
"""The options of a run that decide where its windows lie."""


def _preview_options(command: Any) -> Any:
    others = [name for name in Job.__struct_fields__ if name not in _ASKED]
    changed: dict[str, dict[str, Any]] = {
        "out": {"help": "The picture of one slide, .png or .jpg, or the folder for one of each."},
        "collector": {"required": False, "help": "The collector, where the window is to be the one that it wants."},
    }
    return job_options(command, without=others, changed=changed)


@click.command()
@_preview_options
@click.option("--width", "longest_px", type=int, default=1600, show_default=True, help="Longer side of the picture, in pixels.")
def preview(longest_px: int, **options: Any) -> None:
    """Draw the windows that 'streamwsi heatmap' would read of SLIDES, and the region that they lie in, on the slides."""
    from streamwsi.cli.execute import collectors_of, loader_of, window_of
    from streamwsi.errors import ConfigError
    from streamwsi.loading.resolve import scene_of
    from streamwsi.sampling.grid_sampler import GridSampler
    from streamwsi.sampling.picture import picture_of
    from streamwsi.slides.reader import open_slide
    from streamwsi.writing.layout import as_file_name

    named = bool(options["collector"])
    job = job_from_options(options if named else {**options, "collector": ("mean",)})
    kernel_size, resolution, _ = window_of(job, collectors_of(job) if named else {})
    loader = loader_of(job, kernel_size, resolution)
    sampler = loader.sampler or GridSampler(loader.stride, loader.border)
    slides = [(patient, slide) for patient in loader.dataset for slide in patient.slides]
    target = Path(job.out)
    one = target.suffix.lower() in (".png", ".jpg", ".jpeg") and not target.is_dir()
    if one and len(slides) > 1:
        raise ConfigError(f"--out {job.out}: there are {len(slides)} slides, give a folder for their pictures")
    for patient, slide in slides:
        name = patient.id if len(patient.slides) == 1 else f"{patient.id}_{slide.id}"
        path = target if one else target / f"{as_file_name(name)}_windows.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_slide(slide.path, loader.reader, loader.background) as reader:
            scene, _ = scene_of(reader, patient.id, slide, loader.resolution, loader.kernel_size)
            picture_of(sampler, scene, path, longest_px)
        click.echo(path)
