"""An array as a level of a slide: which of its axes are which, and its values as RGB.

In: an array of (…, y, x, …), the names of its axes, indices of those that are not pictured.  Out: regions, RGB or grey.
Never reads more of it than was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamwsi.arrays.sources import Source
from streamwsi.chunks import UInt8Array
from streamwsi.errors import SlideError
from streamwsi.slides.reader import Rectangle

_SMALLEST_TILE_PX = 128
"""Chunks with a shorter side are read several at a time: each read costs what so many pixels do."""
_RGB = 3


class ArrayLevel:
    """One level. Raises SlideError, naming it as `name`, where an array cannot be one."""

    def __init__(self, array: Any, axes: Sequence[str], at: Mapping[str, int], name: str) -> None:
        self._source, self.axes = Source(array), tuple(axes)
        shape = self._source.shape
        if len(self.axes) != len(shape):
            raise SlideError(f"{name}: axes {_named(self.axes)} are {len(self.axes)}, but the array has {len(shape)}: {shape}")
        if self._source.dtype != np.uint8:
            raise SlideError(
                f"{name} holds {self._source.dtype}; a slide's pixels are uint8: write a copy of it as such "
                "(write_ome_zarr), or take it as an array (ArraySampler)"
            )
        self.sizes = dict(zip(self.axes, shape, strict=True))
        """How long each axis is."""
        if 0 in shape:
            raise SlideError(f"{name} is empty: its shape is {shape}")
        unknown = [axis for axis in at if axis not in self.axes or axis in "yx"]
        if unknown:
            raise SlideError(f"{name}: there is no choosing along {unknown[0]!r}; its axes are {_named(self.axes)}, {shape}")
        self._at = {axis: self._index(axis, at, name) for axis in self.axes if axis not in "yx" and (axis != "c" or "c" in at)}
        channels = 1 if "c" in self._at else self.sizes.get("c", 1)
        if channels not in (1, _RGB):
            raise SlideError(
                f"{name} has {channels} channels; a slide has 3 (RGB) or 1 (grey): choose one, as by ::c=0, "
                "or say which axis is which, as by ::axes=ZYX::z=0"
            )
        self.extent = self.sizes["x"], self.sizes["y"]
        """(width, height)."""
        self.tile = self._tile()
        """(width, height) of what is read at once: chunks of the storage; None where it has none."""

    def read(self, place: Rectangle) -> UInt8Array:
        """(height, width, 3 or 1) uint8 of a region inside the level; may be a view of the array."""
        left, top, right, bottom = place
        spans = {"x": slice(left, right), "y": slice(top, bottom)}
        spans |= {axis: slice(index, index + 1) for axis, index in self._at.items()}
        values = self._source.read(tuple(spans.get(axis, slice(None)) for axis in self.axes))
        pictured = ["y", "x", *(["c"] if "c" in self.axes and "c" not in self._at else [])]
        order = [self.axes.index(axis) for axis in [*pictured, *self._at]]
        channels = 1 if len(pictured) == 2 else values.shape[order[2]]
        pixels: UInt8Array = values.transpose(order).reshape(bottom - top, right - left, channels)
        return pixels

    def _index(self, axis: str, at: Mapping[str, int], name: str) -> int:
        """The index along an axis that is not pictured."""
        size = self.sizes[axis]
        if axis not in at and size > 1:
            raise SlideError(f"{name} has {size} places along {axis!r}: say which is meant, as by ::{axis}=0")
        index = at.get(axis, 0)
        if index >= size:
            raise SlideError(f"{name} has no {axis}={index}: it has {size} along that axis, from 0 on")
        return index

    def _tile(self) -> tuple[int, int] | None:
        if not getattr(self._source.array, "chunks", None):
            return None
        return read_at_once(self._source, self.axes.index("x"), self.axes.index("y"))


def read_at_once(source: Source, x: int, y: int) -> tuple[int, int]:
    """(width, height) of what is read at once, along those axes: a chunk of the storage, several where they are small."""
    width, height = source.cuts(x).size, source.cuts(y).size
    return _at_least(width), _at_least(height)


def _at_least(size: int) -> int:
    return -(-_SMALLEST_TILE_PX // size) * size if size < _SMALLEST_TILE_PX else size


def _named(axes: Sequence[str]) -> str:
    return "".join(axes).upper() if all(len(axis) == 1 for axis in axes) else ", ".join(axes)
