"""Where to look, as a job says it.

In: a Job.  Out: a sampler, or none where all of a slide is looked at.  Reads points from their file, nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamwsi.cli.job import Job, default_of
from streamwsi.errors import ConfigError

if TYPE_CHECKING:
    from streamwsi.sampling.sampler import Sampler

_TISSUE = "tissue"
_OF_REGION = ("min_coverage", "include", "exclude", "absent", "buffer", "buffer_unit", "inverse", "nested_as_holes")
"""Fields that say more of a region."""
_OF = {
    "stride": ("grid",),
    "border": ("grid",),
    "origin": ("grid",),
    "windows": ("random", "poisson"),
    "per_label": ("random", "poisson"),
    "spacing": ("poisson",),
    "spacing_unit": ("poisson",),
    "seed": ("random", "poisson"),
    "epoch": ("random", "poisson"),
    "points": ("points",),
    "outside": ("points",),
}
"""Which samplers a field goes with; all of them where it is not named here."""


def sampler_of(job: Job, stride: Any) -> Sampler | None:
    """The sampler that a job asks for; None where it is the sliding window over whole slides.

    Raises ConfigError where options do not go together.
    """
    given = {name for name in Job.__struct_fields__ if getattr(job, name) != default_of(Job, name)}
    for name, kinds in _OF.items():
        if name in given and job.sampler not in kinds:
            raise ConfigError(f"{name} goes with sampler {' and '.join(kinds)}, got sampler {job.sampler}")
    if job.region is None:
        # labels may be those of points
        extra = [name for name in _OF_REGION if name in given and not (job.points and name in ("include", "exclude", "absent"))]
        if extra:
            raise ConfigError(f"{', '.join(extra)} without region: give {_TISSUE}, a mask, annotations, or a folder of them")
    common = _common(job)
    if job.sampler == "grid":
        if job.region is None and not job.margin and job.max_overlap is None and job.origin == "slide":
            return None
        from streamwsi.sampling.grid_sampler import GridSampler

        return GridSampler(stride, job.border, origin=job.origin, **common)
    if job.sampler == "points":
        from streamwsi.sampling.point_files import read_points
        from streamwsi.sampling.point_sampler import PointSampler

        if job.points is None:
            raise ConfigError("sampler points: give the file of points, points")
        points, labels = read_points(job.points)
        return PointSampler(points, labels, outside=job.outside, **common)
    drawing: dict[str, Any] = {"per_label": job.per_label or None, "seed": job.seed, "epoch": job.epoch, **common}
    if job.sampler == "random":
        from streamwsi.sampling.random_sampler import RandomSampler

        if job.windows is None and not job.per_label:
            raise ConfigError("sampler random: give how many windows each slide is to have, windows or per_label")
        return RandomSampler(job.windows, **drawing)
    from streamwsi.sampling.poisson_sampler import PoissonDiskSampler

    if job.spacing is None:
        raise ConfigError("sampler poisson: give how far apart windows are to be, spacing")
    return PoissonDiskSampler(job.spacing, job.spacing_unit, n=job.windows, **drawing)


def _common(job: Job) -> dict[str, Any]:
    """The options that all samplers have."""
    options: dict[str, Any] = {"region": _region(job), "margin": job.margin, "absent": job.absent}
    for name in ("min_coverage", "include", "exclude", "max_overlap"):
        if getattr(job, name) is not None:
            options[name] = getattr(job, name)
    return options


def _region(job: Job) -> Any:
    if job.region is None:
        return None
    region: Any = job.region
    kind, _, method = job.region.partition(":")
    if kind == _TISSUE:
        from streamwsi.sampling.regions import Tissue

        region = Tissue(method=method) if method else Tissue()  # type: ignore[arg-type]  # it says itself which there are
    if job.buffer or job.inverse or job.nested_as_holes:
        from streamwsi.sampling.regions import Annotated

        return Annotated(region, job.buffer, job.buffer_unit, inverse=job.inverse, nested_as_holes=job.nested_as_holes)
    return region
