"""Windows around given points.

In: points, and labels of them if they have some; a Scene.  Out: the windows centred on them, in their order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from streamwsi.config import one_of
from streamwsi.dataset import Slide
from streamwsi.errors import ConfigError, SamplingError
from streamwsi.geometry import Int64Array
from streamwsi.regions.mask import BoolArray, Float64Array
from streamwsi.sampling.apart import Apart, Taken, first_come, repeated
from streamwsi.sampling.area import Absent, check_labels
from streamwsi.sampling.conditions import checked_labels, conditions, listed
from streamwsi.sampling.description import describe_by_slide, digest
from streamwsi.sampling.options import RegionSampler, room_of
from streamwsi.sampling.regions import RegionSource, of_slide
from streamwsi.sampling.sampler import Places
from streamwsi.sampling.scene import Scene

PointSource: TypeAlias = "npt.ArrayLike | Mapping[Any, npt.ArrayLike] | Callable[[Slide], npt.ArrayLike]"
LabelSource: TypeAlias = "Sequence[str | None] | Mapping[Any, Sequence[str | None]] | Callable[[Slide], Sequence[str | None]]"
Outside = Literal["error", "drop"]
_NAMED = 3
"""How many windows an error names."""


class PointSampler(RegionSampler):
    """A window around each point: nuclei that somebody has found, places that somebody has marked.

    Parameters
    ----------
    points
        (n, 2) numbers: (x, y) in level-0 pixels; or a mapping to these from slide ids, or from (patient's id, slide's id); or a
        function that is given the opened :class:`streamwsi.Slide` and returns them.
    labels
        As many labels, None for a point that has none; or a mapping or a function, as for `points`. None: windows carry those
        of the region, if it has labels.
    outside
        What happens to a window that does not lie inside the slide, covers too little of the region, is the same as one before
        it (points are nearer than a pixel), or overlaps one before it too much: ``error``: the slide fails, and it is said
        which; ``drop``: it is left out.
    region, min_coverage, absent, labelled, margin
        As for :class:`GridSampler`. Where points have labels of their own, coverage is measured against the whole region.
    include, exclude
        Labels of the points that count, or of those that do not; where they have none, of the regions.
    max_overlap
        Share of a window's area that it may share with any other, 0–1. By default 1: no limit.

    Window i is that of point i, of those that count and are not dropped. It starts at
    ``round(point / downsample - kernel / 2)``, halves up, so that its centre is the point to within half a pixel of what is
    read.

    Raises ConfigError for options that cannot work, or do not go together, and for points and labels that are not equally many;
    where they are given slide by slide, that slide fails.
    """

    def __init__(
        self,
        points: PointSource,
        labels: LabelSource | None = None,
        *,
        outside: Outside = "error",
        region: RegionSource | None = None,
        min_coverage: float | None = None,
        include: Collection[str] | None = None,
        exclude: Collection[str] | None = None,
        absent: Absent = "error",
        labelled: bool | None = None,
        max_overlap: float = 1.0,
        margin: int = 0,
    ) -> None:
        self._include = self._exclude = None
        if labels is None:
            chosen = conditions(region, min_coverage, include, exclude, labelled, absent)
        else:
            if labelled is not None:
                raise ConfigError(f"labelled= goes without labels=, got {labelled!r}: with them, windows carry those")
            if include is not None and exclude is not None:
                raise ConfigError(f"give include= or exclude=, not both: got {include!r} and {exclude!r}")
            self._include, self._exclude = checked_labels(include, "include"), checked_labels(exclude, "exclude")
            chosen = conditions(region, min_coverage, None, None, None if region is None else False, absent)
        super().__init__(chosen, max_overlap, margin)
        self.carries_labels = labels is not None or chosen.labelled
        self._absent = absent
        self._outside: Outside = one_of(outside, ("error", "drop"), "outside")
        self._points = _checked(points, _as_points)
        self._labels = None if labels is None else _checked(labels, _as_labels)
        if isinstance(self._points, np.ndarray) and isinstance(self._labels, tuple):
            try:
                _check_equal(self._points, self._labels)
            except SamplingError as error:
                raise ConfigError(str(error)) from error

    def places(self, scene: Scene) -> Places:
        """See :meth:`Sampler.places`."""
        room = room_of(scene)
        points = _of(self._points, scene, "points", _as_points)
        number = np.arange(len(points))
        names: tuple[str, ...] = ()
        if self._labels is not None:
            labels = _of(self._labels, scene, "labels", _as_labels)
            try:
                _check_equal(points, labels)
                there = {label for label in labels if label is not None}
                check_labels(there, self._include or self._exclude, self._absent)
            except SamplingError as error:
                raise SamplingError(f"slide {scene.slide.id!r} of patient {scene.patient_id!r}: {error}") from error
            number = np.flatnonzero([self._counts(label) for label in labels]) if labels else number
            names = tuple(sorted({label for label in there if self._counts(label)}))
        start = np.floor(points[number] / scene.downsample - np.array(scene.kernel) / 2 + 0.5).astype(np.int64)
        field = self._conditions.on(scene)
        enough, code, share = field.judge(start)
        beyond = ((start < 0) | (start >= room)).any(axis=1)
        kept = self._kept(start, enough & ~beyond, scene)
        if self._outside == "error" and not kept.all():
            raise SamplingError(_why(scene, points, number, start, kept, beyond, enough, share))
        if self._labels is not None:
            code = np.array([-1 if labels[n] is None else names.index(labels[n]) for n in number], np.int64)
        else:
            names = field.names
        return Places(start[kept], code[kept] if self.carries_labels else None, names)

    def _counts(self, label: str | None) -> bool:
        """Whether points of this label count."""
        return (self._include is None or label in self._include) and (self._exclude is None or label not in self._exclude)

    def _kept(self, start: Int64Array, fit: BoolArray, scene: Scene) -> BoolArray:
        """Which windows stay, of those that `fit`: none twice, and none too near one before it."""
        rows = np.flatnonzero(fit)
        rows = np.delete(rows, repeated(start[rows]))
        if self._max_overlap < 1:
            apart = Apart(scene.kernel, self._max_overlap)
            rows = rows[first_come(start[rows], apart, Taken(apart))]
        kept = np.zeros(len(start), bool)
        kept[rows] = True
        return kept

    def _own(self) -> dict[str, Any]:
        own = {"points": describe_by_slide(self._points, _digest_of_points), "labels": None, "outside": self._outside}
        if self._labels is None:
            return own
        return {
            **own,
            "labels": describe_by_slide(self._labels, lambda labels: digest(repr(labels).encode())),
            "of_labels": {"include": listed(self._include), "exclude": listed(self._exclude), "absent": self._absent},
        }


def _why(
    scene: Scene,
    points: Float64Array,
    number: Int64Array,
    start: Int64Array,
    kept: BoolArray,
    beyond: BoolArray,
    enough: BoolArray,
    share: Float64Array,
) -> str:
    """What is wrong with the windows that are not kept, in words."""
    rows = np.flatnonzero(~kept)
    doubled = set(repeated(start).tolist())
    reasons = []
    for row in rows[:_NAMED].tolist():
        if beyond[row]:
            why = "reaches beyond the slide"
        elif not enough[row]:
            why = f"has {share[row]:.3g} of it inside the region"
        elif row in doubled:
            why = "is the same as one before it"
        else:
            why = "overlaps one before it too much"
        x, y = points[number[row]].tolist()
        reasons.append(f"that of point {number[row]} at ({x:g}, {y:g}) {why}")
    more = f", and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return (
        f"slide {scene.slide.id!r} of patient {scene.patient_id!r}: {len(rows)} of {len(start)} windows cannot be taken: "
        f"{'; '.join(reasons)}{more}; outside='drop' leaves them out"
    )


def _checked(source: Any, check: Callable[[Any], Any]) -> Any:
    """Points or labels, whether for all slides, slide by slide, or from a function."""
    if isinstance(source, Mapping):
        return {key: check(value) for key, value in source.items()}
    return source if callable(source) else check(source)


def _of(source: Any, scene: Scene, what: str, check: Callable[[Any], Any]) -> Any:
    """Points or labels of a slide. Raises SamplingError naming it where there are none, or they are none."""
    try:
        if isinstance(source, Mapping):
            return of_slide(source, scene, what)
        return check(source(scene.slide)) if callable(source) else source
    except (ConfigError, SamplingError) as error:
        raise SamplingError(f"slide {scene.slide.id!r} of patient {scene.patient_id!r}: {error}") from error


def _as_points(points: Any) -> Float64Array:
    try:
        array = np.array(points, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"points must be numbers (n, 2): {error}") from error
    if array.size == 0:
        array = array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ConfigError(f"points must be (n, 2), (x, y) in level-0 pixels, got {array.shape}")
    if not np.isfinite(array).all():
        raise ConfigError(f"points must be finite, point {int(np.argmin(np.isfinite(array).all(axis=1)))} is not")
    return array


def _as_labels(labels: Any) -> tuple[str | None, ...]:
    if isinstance(labels, (str, os.PathLike)):
        raise ConfigError(f"labels must be one for each point, got {labels!r}")
    own = tuple(labels.tolist() if isinstance(labels, np.ndarray) else labels)
    wrong = [label for label in own if label is not None and not isinstance(label, str)]
    if wrong:
        raise ConfigError(f"labels must be strings, or None where there is none, got {wrong[0]!r}")
    return own


def _check_equal(points: Float64Array, labels: tuple[str | None, ...]) -> None:
    if len(points) != len(labels):
        raise SamplingError(f"there are {len(points)} points and {len(labels)} labels: as many of both are needed")


def _digest_of_points(points: Float64Array) -> str:
    return digest(np.ascontiguousarray(points, "<f8").tobytes())
