"""Windows spread evenly, and without a pattern.

In: a Scene.  Out: places at least so far apart, and so many that no further one fits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from streamwsi.config import at_least, one_of
from streamwsi.errors import ConfigError, SamplingError
from streamwsi.regions.facts import checked_mpp
from streamwsi.regions.tissue import UNITS, Unit
from streamwsi.sampling.apart import Apart
from streamwsi.sampling.area import Absent
from streamwsi.sampling.conditions import conditions
from streamwsi.sampling.options import DrawingSampler, checked_per_label, whole_number
from streamwsi.sampling.regions import RegionSource
from streamwsi.sampling.sampler import Places
from streamwsi.sampling.scene import Scene


class PoissonDiskSampler(DrawingSampler):
    """Windows whose centres are at least `spacing` apart, as many as there is room for (blue noise).

    Parameters
    ----------
    spacing
        Least distance between the centres of any two windows; at least one pixel of what is read.
    unit
        Of `spacing`: ``px`` for level-0 pixels, or ``um`` for micrometres, which only slides with a resolution have.
    n
        At most so many on each slide; None: no limit.
    per_label
        How many windows of each label, exactly: ``{"tumour": 500}``; windows of other labels are not drawn. Not with `n`.
    region, min_coverage, include, exclude, absent, labelled, margin
        As for :class:`GridSampler`.
    max_overlap, seed, epoch
        As for :class:`RandomSampler`; `max_overlap` is a limit besides the spacing, 1 by default: none.

    Windows lie inside the slide, in the order in which they were drawn. They are maximal where neither `n` nor `per_label` ends
    the draw: a window at any further whole-pixel place that fulfils the other conditions would be too near to one of them. That
    is known and not guessed, for places are left out only where that is so.

    Raises ConfigError for options that cannot work, or do not go together.

    Source: maximal Poisson-disk sampling by throwing darts, Ebeida M. S. et al., "A simple algorithm for maximal Poisson-disk
    sampling in high dimensions", Computer Graphics Forum 31 (2012) 785–794.
    """

    def __init__(
        self,
        spacing: float,
        unit: Unit = "px",
        *,
        n: int | None = None,
        per_label: Mapping[str, int] | None = None,
        region: RegionSource | None = None,
        min_coverage: float | None = None,
        include: Collection[str] | None = None,
        exclude: Collection[str] | None = None,
        absent: Absent = "error",
        labelled: bool | None = None,
        max_overlap: float = 1.0,
        margin: int = 0,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        one_of(unit, UNITS, "unit")
        self._spacing, self._unit = float(at_least(spacing, 0, "spacing")), unit
        if not self._spacing:
            raise ConfigError(f"spacing must be above 0, got {spacing!r}")
        self._n = None if n is None else whole_number(n, 1, "n")
        numbers = checked_per_label(per_label, n=n, include=include, exclude=exclude, labelled=labelled)
        chosen = conditions(region, min_coverage, include, exclude, labelled, absent, need_labels=per_label is not None)
        super().__init__(chosen, max_overlap, margin, numbers, seed, epoch)

    def places(self, scene: Scene) -> Places:
        """See :meth:`Sampler.places`."""
        pixel = self._pixel(scene)
        if self._spacing < min(pixel):
            raise SamplingError(
                f"slide {scene.slide.id!r}: a spacing of {self._spacing:g} {self._unit} is less than a pixel of what is read, "
                f"{min(pixel):.4g} {self._unit}: ask for more, or take every place with GridSampler(stride=1)"
            )
        return self._drawn(scene, Apart(scene.kernel, self._max_overlap, self._spacing, pixel), self._n, exact=False)

    def _pixel(self, scene: Scene) -> tuple[float, float]:
        """Sides of a pixel of what is read, in the unit of the spacing."""
        if self._unit == "px":
            return scene.downsample, scene.downsample
        try:
            x, y = checked_mpp(scene.info, str(scene.slide.path), "give unit='px', and the spacing in level-0 pixels")
        except ConfigError as error:
            raise SamplingError(str(error)) from error
        return x * scene.downsample, y * scene.downsample

    def _own(self) -> dict[str, Any]:
        return {"spacing": self._spacing, "unit": self._unit, "n": self._n}
