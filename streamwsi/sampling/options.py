"""What samplers have in common: options of windows, room on the slide, random numbers.

In: options, a Scene.  Out: the same, checked; a generator of random numbers.  Keeps no state between slides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamwsi.config import at_least
from streamwsi.errors import ConfigError, SamplingError
from streamwsi.geometry import Int64Array
from streamwsi.sampling.apart import Apart, Taken
from streamwsi.sampling.area import check_labels
from streamwsi.sampling.conditions import Conditions, Field
from streamwsi.sampling.darts import throw_darts
from streamwsi.sampling.sampler import Places, Sampler
from streamwsi.sampling.scene import Scene

MOST_WINDOWS = 1 << 26
"""On one slide. A table of their places takes half a gigabyte and several times that while it is made."""


class RegionSampler(Sampler):
    """A sampler whose windows lie in a region, and share no more than so much with one another."""

    def __init__(self, conditions: Conditions, max_overlap: float, margin: int) -> None:
        self._conditions = conditions
        self._max_overlap = float(at_least(max_overlap, 0, "max_overlap"))
        if self._max_overlap > 1:
            raise ConfigError(f"max_overlap must be a share from 0 to 1, got {max_overlap!r}")
        self.margin = whole_number(margin, 0, "margin")
        self.carries_labels = conditions.labelled

    def describe(self) -> dict[str, Any]:
        """See :meth:`Sampler.describe`."""
        return {
            "sampler": type(self).__name__,
            **self._own(),
            **self._conditions.describe(),
            "max_overlap": self._max_overlap,
            "margin": self.margin,
        }

    def field(self, scene: Scene) -> Field:
        """Which windows of a slide fulfil the conditions. Raises SamplingError where the region cannot be used there."""
        return self._conditions.on(scene)

    def _own(self) -> dict[str, Any]:
        """What of the description is this sampler's own."""
        raise NotImplementedError

    def _labelled(self, field: Field, start: Int64Array, code: Int64Array, stride: tuple[int, int] | None = None) -> Places:
        return Places(start, code if self.carries_labels else None, field.names, stride)


class DrawingSampler(RegionSampler):
    """A sampler that draws its windows at random."""

    def __init__(
        self,
        conditions: Conditions,
        max_overlap: float,
        margin: int,
        per_label: Mapping[str, int] | None,
        seed: int,
        epoch: int,
    ) -> None:
        super().__init__(conditions, max_overlap, margin)
        self._per_label = per_label
        self._seed = whole_number(seed, 0, "seed")
        self.epoch = whole_number(epoch, 0, "epoch")

    def describe(self) -> dict[str, Any]:
        """See :meth:`Sampler.describe`."""
        return {**super().describe(), "per_label": self._per_label, "seed": self._seed, "epoch": self.epoch}

    def _drawn(self, scene: Scene, apart: Apart, n: int | None, *, exact: bool = True) -> Places:
        """`n` windows, or as many as there is room for (None); fewer only where `exact` is not asked for."""
        room, rng = room_of(scene), generator(scene, self._seed, self.epoch)
        field, taken = self._conditions.on(scene), Taken(apart)
        if self._per_label is None:
            start = throw_darts(room, field, apart, taken, n, rng)
            if n is not None and exact:
                _check_number(len(start), n, "", scene, apart)
            return self._labelled(field, start, field.judge(start)[1])
        check_labels(field.names, self._per_label, self._conditions.absent)
        wanted = {label: number for label, number in self._per_label.items() if label in field.names}
        starts = [np.empty((0, 2), np.int64)]
        for label, number in wanted.items():
            starts.append(throw_darts(room, field.only(label), apart, taken, number, rng))
            _check_number(len(starts[-1]), number, f" of label {label!r}", scene, apart)
        start = np.concatenate(starts)
        start = start[np.argsort(rng.random(len(start)), kind="stable")]
        return self._labelled(field, start, field.judge(start)[1])


def _check_number(found: int, wanted: int, which: str, scene: Scene, apart: Apart) -> None:
    """Raise SamplingError, saying how many fit and how that is known, where there are fewer windows than asked for."""
    if found == wanted:
        return
    where = f"slide {scene.slide.id!r} of patient {scene.patient_id!r}"
    if apart.max_overlap == 1 and apart.spacing == 0:
        raise SamplingError(f"{where} has {found} places for windows{which}, and {wanted} were asked for")
    raise SamplingError(
        f"{where} has no room for {wanted} windows{which}: {found} were placed at random, then no whole-pixel place was left; "
        "closer packings may hold more, random ones hardly: ask for fewer, or let them be nearer to one another"
    )


def checked_per_label(per_label: Any, **others: Any) -> dict[str, int] | None:
    """Numbers of windows by label, in the order of the alphabet. Raises ConfigError where they are none, or beside `others`."""
    if per_label is None:
        return None
    for name, value in others.items():
        if value is not None:
            raise ConfigError(f"per_label= says which labels there are to be, and how many of each: leave {name}= out")
    if not isinstance(per_label, Mapping) or not per_label or not all(isinstance(label, str) for label in per_label):
        raise ConfigError(f"per_label must map labels to numbers, as in {{'tumour': 500}}, got {per_label!r}")
    return {label: whole_number(per_label[label], 0, f"per_label[{label!r}]") for label in sorted(per_label)}


def whole_number(value: Any, least: int, name: str) -> int:
    """`value` if it is an int of at least `least`; else ConfigError."""
    if not isinstance(at_least(value, least, name), int):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")
    return int(value)


def room_of(scene: Scene) -> tuple[int, int]:
    """How many places a window has along each axis. Raises SamplingError where the slide is smaller than the window."""
    if min(scene.room) < 1:
        raise SamplingError(
            f"slide {scene.slide.id!r} is smaller than the window: {scene.extent[0]} × {scene.extent[1]} pixels of what is "
            f"read, the window {scene.kernel[0]} × {scene.kernel[1]}; only a GridSampler pads"
        )
    return scene.room


def generator(scene: Scene, seed: int, epoch: int) -> np.random.Generator:
    """Random numbers that depend on the seed, the epoch, and the ids of patient and slide, and on nothing else.

    Only ``integers`` and ``random`` of it may be used: PCG64 is promised to stay as it is (NumPy's NEP 19), and these two
    follow from it in ways that the tests pin. Python's own hash differs from process to process.
    """
    ids = f"{scene.patient_id}\0{scene.slide.id}".encode()
    whose = int.from_bytes(hashlib.blake2b(ids, digest_size=16).digest(), "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, whose])))
