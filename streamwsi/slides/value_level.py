"""An array as a level of an image that is paired with a slide: its values as they are, along the axes that were asked for.

In: an array, the names of its axes, which are wanted and in what order.  Out: regions.  Never reads more than was asked for,
and never changes a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamwsi.addresses import AXES
from streamwsi.arrays.sources import AnyArray, Source
from streamwsi.errors import SlideError
from streamwsi.slides.array_level import read_at_once
from streamwsi.slides.reader import Rectangle

_UNCUT_PX = 1024
"""Side of what is read at once of storage that is not cut into chunks."""


@dataclass(frozen=True)
class WantedAxes:
    """Which axes of an array are wanted, and what of them."""

    axes: str | None = None
    """A letter for each, in the order wanted; None: all of which no single place is chosen, in the array's order."""
    at: Mapping[str, int | slice] = field(default_factory=dict)
    """By letter, a place along an axis that is not wanted, or the part of one that is."""

    @property
    def is_cut(self) -> bool:
        """A part of the plane is wanted."""
        return any(axis in self.at for axis in "YX")

    def without_cut(self) -> WantedAxes:
        """The same of the whole plane."""
        return WantedAxes(self.axes, {axis: place for axis, place in self.at.items() if axis not in "YX"})


class ValueLevel:
    """One level. Raises SlideError, naming it as `name`, where the array does not have the axes."""

    def __init__(self, array: Any, axes: Sequence[str], at: Mapping[str, int], name: str, wanted: WantedAxes) -> None:
        self._source = Source(array)
        shape, own = self._source.shape, [axis.upper() for axis in axes]
        if len(own) != len(shape):
            raise SlideError(f"{name}: axes {''.join(own)} are {len(own)}, but the array has {len(shape)}: {shape}")
        if 0 in shape:
            raise SlideError(f"{name} is empty: its shape is {shape}")
        chosen = {axis.upper(): place for axis, place in {**at, **wanted.at}.items()}
        self.sizes = dict(zip(axes, shape, strict=True))
        """How long each axis of the array is."""
        self.axes = self._axes(own, chosen, wanted.axes, name)
        """A letter for each axis of what is read."""
        self._own = own
        self._spans = {axis: self._span(axis, extent, chosen, name) for axis, extent in zip(own, shape, strict=True)}
        self._order = [axis for axis in self.axes if axis in own]
        lengths = {axis: span.stop - span.start for axis, span in self._spans.items()}
        self.shape = tuple(lengths.get(axis, 1) for axis in self.axes)
        """Along them."""
        self.dtype = self._source.dtype.newbyteorder("=")
        self.extent = lengths["X"], lengths["Y"]
        """(width, height)."""
        self.tile = self._tile()
        """(width, height) of what is read at once; None for what lies in memory."""

    def read(self, place: Rectangle) -> AnyArray:
        """A region inside the level, along its axes; may be a view of the array."""
        left, top, right, bottom = place
        x, y = self._spans["X"].start, self._spans["Y"].start
        spans = {**self._spans, "X": slice(x + left, x + right), "Y": slice(y + top, y + bottom)}
        values = self._source.read(tuple(spans[axis] for axis in self._own))
        dropped = tuple(place for place, axis in enumerate(self._own) if axis not in self._order)
        kept = [axis for axis in self._own if axis in self._order]
        values = values.squeeze(dropped).transpose([kept.index(axis) for axis in self._order])
        added = tuple(place for place, axis in enumerate(self.axes) if axis not in self._order)
        return np.expand_dims(values, added)

    @staticmethod
    def _axes(own: Sequence[str], chosen: Mapping[str, int | slice], wanted: str | None, name: str) -> str:
        unknown = [axis for axis in chosen if axis not in own]
        if unknown:
            raise SlideError(f"{name}: there is no choosing along {unknown[0]!r}; its axes are {''.join(own)}")
        kept = [axis for axis in own if not isinstance(chosen.get(axis), int)]
        axes = "".join(kept) if wanted is None else wanted.upper()
        if len(set(axes)) != len(axes) or not {"Y", "X"} <= set(axes) or not {"Y", "X"} <= set(kept):
            raise SlideError(f"{name}: what is read of axes {''.join(own)} must have Y and X, and none twice, got {axes}")
        both = [axis for axis in axes if axis in own and axis not in kept]
        if both:
            raise SlideError(f"{name}: of {both[0]!r} one place was chosen, {chosen[both[0]]}, and axes={axes} wants it whole")
        return axes

    def _span(self, axis: str, extent: int, chosen: Mapping[str, int | slice], name: str) -> slice:
        """What of an axis of the array is read."""
        place = chosen.get(axis)
        if place is None and axis not in self.axes:
            if extent > 1:
                way = f"choose one, as by at={{{axis!r}: 0}}, or want all" if axis in AXES else "say what it is by source_axes="
                raise SlideError(f"{name} has {extent} places along {axis!r}: {way}")
            place = 0
        if isinstance(place, int):
            if not 0 <= place < extent:
                raise SlideError(f"{name} has no {axis}={place}: it has {extent} along that axis, from 0 on")
            return slice(place, place + 1)
        start, stop, step = (place or slice(None)).indices(extent)
        if step != 1 or start >= stop:
            raise SlideError(f"{name}: {place} is nothing, or not one piece, of the {extent} along {axis!r}")
        return slice(start, stop)

    def _tile(self) -> tuple[int, int] | None:
        if isinstance(self._source.array, np.ndarray) or hasattr(self._source.array, "detach"):
            return None
        if not getattr(self._source.array, "chunks", None):
            return _UNCUT_PX, _UNCUT_PX
        return read_at_once(self._source, self._own.index("X"), self._own.index("Y"))
