"""Which windows of a slide may be taken: how much of a region each must cover, and of which label.

In: options, a Scene.  Out: a Field, which answers for windows and for boxes of their places.  Draws nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamwsi.config import at_least, one_of
from streamwsi.errors import ConfigError, MaskError, SamplingError
from streamwsi.geometry import Int64Array
from streamwsi.regions.mask import BoolArray, Float64Array
from streamwsi.sampling.area import Absent, Area, Bounds, Part, area_of
from streamwsi.sampling.description import describe_region
from streamwsi.sampling.regions import RegionSource, checked_source, drawn_on, may_have_labels
from streamwsi.sampling.scene import Scene

_ROUNDING = 1e-9
"""A share this much below what is asked for is enough, unless all of a window is: numbers are rounded, and not alike on every
machine."""
Labels = Collection[str]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the windows of any slide must fulfil; see :class:`streamwsi.GridSampler` for the options."""

    region: Any = None
    """Checked, or None: the whole slide."""
    min_coverage: float = 0.0
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    absent: Absent = "error"
    labelled: bool = False

    def describe(self) -> dict[str, Any]:
        """See :meth:`streamwsi.Sampler.describe`."""
        if self.region is None:
            return {"region": None}
        labels = {"include": listed(self.include), "exclude": listed(self.exclude), "absent": self.absent}
        return {
            "region": describe_region(self.region),
            "min_coverage": float(self.min_coverage),
            "labelled": self.labelled,
            **labels,
        }

    def on(self, scene: Scene) -> Field:
        """What the windows of `scene` must fulfil. Raises SamplingError where the region cannot be used there."""
        if self.region is None:
            return Field(scene, None, 0.0, labelled=False)
        drawn = drawn_on(self.region, scene)
        try:
            area = area_of(drawn, scene.info.dimensions, self.include, self.exclude, self.absent)
        except (SamplingError, MaskError) as error:
            raise SamplingError(f"slide {scene.slide.id!r} of patient {scene.patient_id!r}: {error}") from error
        return Field(scene, area, self.min_coverage, labelled=self.labelled)


def conditions(
    region: RegionSource | None,
    min_coverage: float | None,
    include: Labels | None,
    exclude: Labels | None,
    labelled: bool | None,
    absent: Absent,
    *,
    need_labels: bool = False,
) -> Conditions:
    """Options as users give them, checked. Raises ConfigError naming those that do not go together."""
    one_of(absent, ("error", "ignore"), "absent")
    if include is not None and exclude is not None:
        raise ConfigError(f"give include= or exclude=, not both: got {include!r} and {exclude!r}")
    chosen = {name: checked_labels(labels, name) for name, labels in (("include", include), ("exclude", exclude))}
    if region is None:
        given = {"min_coverage": min_coverage, "labelled": labelled, "per_label": need_labels or None, **chosen}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name}= goes with region=, and there is none")
        return Conditions()
    least = 0.5 if min_coverage is None else at_least(min_coverage, 0, "min_coverage")
    if not 0 < least <= 1:
        raise ConfigError(f"min_coverage must be a share above 0 and at most 1, got {min_coverage!r}")
    if labelled is not None and not isinstance(labelled, bool):
        raise ConfigError(f"labelled must be True, False or None, got {labelled!r}")
    checked = checked_source(region)
    known = need_labels or include is not None or exclude is not None or may_have_labels(checked)
    return Conditions(
        region=checked,
        min_coverage=least,
        absent=absent,
        labelled=known if labelled is None else labelled,
        include=chosen["include"],
        exclude=chosen["exclude"],
    )


def checked_labels(labels: Labels | None, name: str) -> tuple[str, ...] | None:
    """Labels in the order of the alphabet, each once. Raises ConfigError where they are none."""
    if labels is None:
        return None
    if isinstance(labels, (str, os.PathLike)) or not all(isinstance(label, str) for label in labels) or not labels:
        raise ConfigError(f"{name} must hold labels, as in {name}=['tumour'], got {labels!r}")
    return tuple(sorted(set(labels)))


class Field:
    """Which windows of one slide may be taken, by where they start, in pixels of what is read.

    It answers :class:`streamwsi.sampling.darts.Allowed`, for all labels or for the one of `only`.
    """

    def __init__(
        self, scene: Scene, area: Area | None, min_coverage: float, *, labelled: bool, only: str | None = None
    ) -> None:
        self.scene = scene
        self.area = area
        self.names: tuple[str, ...] = area.names if area is not None and labelled else ()
        """What labels are called."""
        self._least, self._labelled, self._only = min_coverage, labelled, only

    def only(self, label: str) -> Field:
        """The same, for windows of one label."""
        return Field(self.scene, self.area, self._least, labelled=self._labelled, only=label)

    @property
    def parts(self) -> tuple[tuple[str | None, Part], ...]:
        """What coverage is measured against, the label first."""
        if self.area is None:
            return ()
        return self.area.parts if self._labelled else ((None, self.area.whole),)

    @property
    def bounds_l0(self) -> Bounds | None:
        """Of what is inside of the region, in level-0 pixels; None where nothing is, or there is no region."""
        return None if self.area is None else self.area.whole.bounds_l0

    def judge(self, start: Int64Array) -> tuple[BoolArray, Int64Array, Float64Array]:
        """Of the windows at `start`, (n, 2): which may be taken, their labels, and the share of each that is inside.

        Labels are places in `names`, -1 for none.
        """
        codes = np.full(len(start), -1, np.int64)
        if self.area is None:
            return np.ones(len(start), bool), codes, np.ones(len(start))
        best = np.zeros(len(start))
        xy, size = self.scene.boxes_l0(start, start)
        for label, part in self.parts:
            shares = part.coverage(xy, size)
            more = (shares > np.where(best > 0, best + _ROUNDING, 0)) | ((shares == 1) & (best < 1))
            codes[more] = -1 if label is None or not self._labelled else self.names.index(label)
            best = np.where(more, shares, best)
        return self._enough(best), codes, best

    def single(self, places: Int64Array) -> BoolArray:
        """See :class:`streamwsi.sampling.darts.Allowed`."""
        enough, codes, _ = self.judge(places)
        return enough if self._only is None else enough & (codes == self.names.index(self._only))

    def whole(self, low: Int64Array, high: Int64Array) -> tuple[BoolArray, BoolArray]:
        """See :class:`streamwsi.sampling.darts.Allowed`.

        A window covers no more of the region than all windows of a box together do, and misses no more of it.
        """
        if self.area is None:
            return np.ones(len(low), bool), np.ones(len(low), bool)
        xy, size = self.scene.boxes_l0(low, high)
        together = size.prod(axis=1)
        scene = self.scene
        cut = np.maximum(np.array(scene.extent) * scene.downsample - scene.info.dimensions, 0)
        window = np.maximum(np.array(scene.kernel) * scene.downsample - cut, 0).prod()  # the smallest: at the slide's end
        maybe, sure = np.zeros(len(low), bool), np.zeros(len(low), bool)
        for label, part in self.parts:
            if self._only in (None, label):
                shares = part.coverage(xy, size)
                maybe |= (shares > 0) & (shares * together >= self._least * window * (1 - 1e-6))
                missed = (1 - shares) * together
                sure |= (shares == 1) | (missed < (1 - self._least) * window * (1 - 1e-6))
        return maybe, sure & (len(self.parts) == 1)

    def _enough(self, shares: Float64Array) -> BoolArray:
        least = self._least if self._least > 1 - _ROUNDING else self._least - _ROUNDING
        enough: BoolArray = (shares > 0) & (shares >= least)
        return enough


def listed(labels: tuple[str, ...] | None) -> list[str] | None:
    """Labels as they come back from a file."""
    return None if labels is None else list(labels)
