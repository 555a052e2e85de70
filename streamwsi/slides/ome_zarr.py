"""What OME-Zarr says of an image: its levels, their axes, their scales.

In: the attributes of a Zarr group.  Out: a Multiscale.  Never opens a file.

Source: Next-generation file formats (NGFF), https://ngff.openmicroscopy.org, versions 0.1 to 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

_OLDEST_AXES = ("t", "c", "z", "y", "x")
"""Of versions 0.1 and 0.2, which do not name them."""
_UM = {
    "angstrom": 1e-4,
    "picometer": 1e-6,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
    "inch": 25_400.0,
    # not names of the specification, but in use
    "nm": 1e-3,
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "micron": 1.0,
    "mm": 1e3,
}
"""Micrometres in a unit of length."""


class _Axis(msgspec.Struct):
    name: str
    unit: str | None = None


class _Transformation(msgspec.Struct):
    type: str
    scale: list[float] | None = None
    translation: list[float] | None = None


class _Dataset(msgspec.Struct, rename="camel"):
    path: str
    coordinate_transformations: list[_Transformation] = []


class _Multiscale(msgspec.Struct, rename="camel"):
    datasets: list[_Dataset]
    axes: list[_Axis | str] | None = None
    coordinate_transformations: list[_Transformation] = []


@dataclass(frozen=True)
class Multiscale:
    """One image at several resolutions."""

    paths: tuple[str, ...]
    """Of the arrays in their group, the finest first."""
    axes: tuple[str, ...]
    """Their names, lower case."""
    units: tuple[str | None, ...]
    """Of each axis."""
    scales: tuple[tuple[float, ...] | None, ...]
    """Of each level: units per pixel, for each axis; None where it does not say."""
    origins: tuple[tuple[float, ...], ...]
    """Of each level: where the centre of its first pixel lies, in units."""

    def mpp(self) -> tuple[float, float] | None:
        """(x, y) micrometres per pixel of the finest level; None where it does not say, or the unit is no length."""
        scale = self.scales[0]
        if scale is None:
            return None
        sides = []
        for axis in "xy":
            number = self.axes.index(axis)
            sides.append(scale[number] * _UM.get((self.units[number] or "").lower(), math.nan))
        return (sides[0], sides[1]) if all(math.isfinite(side) and side > 0 for side in sides) else None

    def downsample(self, level: int, extents: Sequence[tuple[int, int]]) -> float:
        """Finest pixels per pixel of a level; `extents` are the (width, height) of all levels.

        The scales say it exactly where they fit the sizes, to a pixel; else (some writers give all levels the scale of the
        first) the sizes do. Raises ValueError where the axes differ, or the level does not begin where the finest does.
        """
        finest, here = self.scales[0], self.scales[level]
        by_size = [mine / its for mine, its in zip(extents[0], extents[level], strict=True)]
        fitting: list[float] | None = None
        if finest is not None and here is not None and level:
            numbers = [self.axes.index(axis) for axis in "xy"]
            said = [here[number] / finest[number] if finest[number] else math.nan for number in numbers]
            if all(
                _fits(ratio, *sizes) for ratio, sizes in zip(said, zip(extents[0], extents[level], strict=True), strict=True)
            ):
                fitting = said
                for number, ratio in zip(numbers, said, strict=True):
                    # centres of pixels: half a pixel of either level
                    shift_px = (self.origins[level][number] - self.origins[0][number]) / finest[number]
                    if abs(shift_px) > ratio:
                        raise ValueError(f"level {level} begins {shift_px:g} pixels of level 0 beside it")
        ratios = by_size if fitting is None else fitting
        mean = math.fsum(ratios) / 2
        if not all(_fits(mean, *sizes) for sizes in zip(extents[0], extents[level], strict=True)):
            raise ValueError(f"level {level} is {by_size[0]:g} times smaller across, and {by_size[1]:g} times down")
        return mean


def multiscale_of(attributes: Mapping[str, Any]) -> Multiscale | None:
    """The first image that a group's attributes tell of; None where they tell of none.

    Raises ValueError where they are not what the specification says.
    """
    within = attributes.get("ome") if isinstance(attributes.get("ome"), Mapping) else attributes
    listed = within.get("multiscales") if isinstance(within, Mapping) else None
    if not listed:
        return None
    found = msgspec.convert(listed, list[_Multiscale])[0]
    if not found.datasets:
        raise ValueError("its multiscales name no dataset")
    axes = [axis if isinstance(axis, _Axis) else _Axis(axis) for axis in found.axes or _OLDEST_AXES]
    names = tuple(axis.name.lower() for axis in axes)
    if len(set(names)) != len(names) or not {"y", "x"} <= set(names):
        raise ValueError(f"its axes must have names of their own, y and x among them, but are {', '.join(names)}")
    common, _ = _scale_and_origin(found.coordinate_transformations, len(names))
    places = [_scale_and_origin(dataset.coordinate_transformations, len(names)) for dataset in found.datasets]
    factors = common or (1.0,) * len(names)
    return Multiscale(
        paths=tuple(dataset.path for dataset in found.datasets),
        axes=names,
        units=tuple(axis.unit for axis in axes),
        scales=tuple(None if scale is None else _times(scale, factors) for scale, _ in places),
        origins=tuple(_times(origin, factors) for _, origin in places),
    )


def _scale_and_origin(steps: Sequence[_Transformation], axes: int) -> tuple[tuple[float, ...] | None, tuple[float, ...]]:
    """The scale, None where none is given, and the translation of a list of transformations."""
    scale: tuple[float, ...] | None = None
    origin = (0.0,) * axes
    for step in steps:
        for values in (step.scale, step.translation):
            if values is not None and len(values) != axes:
                raise ValueError(f"a {step.type} has {len(values)} numbers, but there are {axes} axes")
        if step.scale is not None:
            scale = tuple(step.scale)
        if step.translation is not None:
            origin = tuple(step.translation)
    return scale, origin


def _times(values: Sequence[float], factors: Sequence[float]) -> tuple[float, ...]:
    return tuple(value * factor for value, factor in zip(values, factors, strict=True))


def _fits(ratio: float, finest_px: int, level_px: int) -> bool:
    """Whether a level of this size, give or take a pixel, is so many times smaller."""
    return ratio > 0 and abs(finest_px / ratio - level_px) <= 1
