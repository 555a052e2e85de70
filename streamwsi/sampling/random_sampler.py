"""Windows at random.

In: a Scene.  Out: places, drawn one after the other from all that fulfil the conditions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from streamwsi.errors import ConfigError
from streamwsi.sampling.apart import Apart
from streamwsi.sampling.area import Absent
from streamwsi.sampling.conditions import conditions
from streamwsi.sampling.options import DrawingSampler, checked_per_label, whole_number
from streamwsi.sampling.regions import RegionSource
from streamwsi.sampling.sampler import Places
from streamwsi.sampling.scene import Scene


class RandomSampler(DrawingSampler):
    """`n` windows at random: each is drawn from all whole-pixel places at which a window may still lie, all alike.

    Parameters
    ----------
    n
        How many on each slide.
    per_label
        Instead of `n`: how many of each label, ``{"tumour": 500, "stroma": 500}``; windows of other labels are not drawn.
    region, min_coverage, include, exclude, absent, labelled, margin
        As for :class:`GridSampler`.
    max_overlap
        Share of a window's area that it may share with any other, 0–1. By default 1, no limit: windows are independent of one
        another, but no two are the same. 0: none overlap.
    seed
        From 0; another one makes another draw. The same seed makes the same windows on every machine, for each patient's slide
        others.
    epoch
        From 0; each makes another draw. :meth:`at_epoch` is the same sampler for another one.

    Windows lie inside the slide, in the order in which they were drawn, so that the first of them are a draw of fewer. Those
    of several labels are drawn label by label and then shuffled. Without a limit on overlap, a slide on which there are fewer
    places than windows fails with their number. With one, it fails when no place is left, with how many were placed; windows
    drawn at random leave gaps, and others might fit more closely.

    Raises ConfigError for options that cannot work, or do not go together.
    """

    def __init__(
        self,
        n: int | None = None,
        *,
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
        if (n is None) == (per_label is None):
            raise ConfigError(f"give n= or per_label=, one of the two: got {n!r} and {per_label!r}")
        self._n = None if n is None else whole_number(n, 1, "n")
        numbers = checked_per_label(per_label, include=include, exclude=exclude, labelled=labelled)
        chosen = conditions(region, min_coverage, include, exclude, labelled, absent, need_labels=per_label is not None)
        super().__init__(chosen, max_overlap, margin, numbers, seed, epoch)

    def places(self, scene: Scene) -> Places:
        """See :meth:`Sampler.places`."""
        return self._drawn(scene, Apart(scene.kernel, self._max_overlap), self._n)

    def _own(self) -> dict[str, Any]:
        return {"n": self._n}
