"""Images that are paired with slides, as labels and masks are: where each lies, and what of it goes with a window.

In: an image's size, scale and offset; windows.  Out: places in it, and their pixels cut and stacked.  Never opens a file.

Along each axis, with d level-0 pixels per pixel of what is read and a level-0 pixels per pixel of the paired image, which
begins at o: a window from s, w pixels wide with its margin, covers what lies from ``(s * d - o) / a`` on for ``w * d / a``.

- At the image's ``own`` scale it has round(w * d / a) pixels, at least 1, placed around the window's centre, so that its centre
  is less than half a pixel of the image from it, rounded; all windows of one size have as many.
- At the ``window``'s scale it has w pixels, each that of the image which holds the centre of the window's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.geometry import Int64Array
from streamwsi.memory import BEGIN, CACHE_LINE

AnyArray = npt.NDArray[Any]
PairedResolution = Literal["own", "window"]
_ALIGNED = CACHE_LINE
"""Arrays in a slot begin at addresses that are multiples of so many bytes; the slot itself does not."""


class PairedImage(msgspec.Struct, frozen=True, kw_only=True):
    """One paired image of a slide, as found when it was opened."""

    name: str
    """What it is called in a batch."""
    dtype: str
    axes: str
    """A letter for each axis, Y and X among them."""
    shape: tuple[int, ...]
    """Of the whole image, along those axes."""
    scale: tuple[float, float]
    """(x, y) level-0 pixels per pixel of it."""
    offset: tuple[float, float]
    """(x, y) of its upper left corner, in level-0 pixels."""
    level: int
    """Of a pyramid, the one that is read."""
    resolution: PairedResolution
    """Whose pixels it is read in."""
    fingerprint: str
    """Of its content."""

    @property
    def extent(self) -> tuple[int, int]:
        """(width, height)."""
        return self.shape[self.axes.index("X")], self.shape[self.axes.index("Y")]

    def shape_of(self, width: int, height: int) -> tuple[int, ...]:
        """The shape of a part of it."""
        sizes = {"X": width, "Y": height}
        return tuple(sizes.get(axis, extent) for axis, extent in zip(self.axes, self.shape, strict=True))

    def bytes_per_px(self, downsample: float) -> float:
        """What it takes for each pixel of a window, about."""
        rest = math.prod(extent for axis, extent in zip(self.axes, self.shape, strict=True) if axis not in "XY")
        pixels = 1.0 if self.resolution == "window" else downsample**2 / math.prod(self.scale)
        return rest * np.dtype(self.dtype).itemsize * pixels


@dataclass(frozen=True, eq=False)
class PairedLayout:
    """Where the pixels of some windows lie in a paired image, and how they are arranged: one region, or packed one by one."""

    image: PairedImage
    starts: Int64Array
    """(n, 2) int64: (x, y) of each window in the image: in its pixels, or in pixels of what is read of the slide."""
    sizes: Int64Array
    """(n, 2) int64: (width, height) there."""
    origin: tuple[int, int] | None
    """(x, y) of the region, likewise; None: the windows are packed."""
    downsample: float
    """Level-0 pixels per pixel of what is read of the slide."""

    @classmethod
    def of(cls, image: PairedImage, corners: Int64Array, sizes: Int64Array, downsample: float, packed: bool) -> PairedLayout:
        """For windows at `corners`, (n, 2) int64, of `sizes`, (n, 2) int64: with their margins, in pixels of what is read."""
        if image.resolution == "own":
            scale, offset = np.array(image.scale), np.array(image.offset)
            centres = ((corners + sizes / 2) * downsample - offset) / scale
            sizes = np.maximum(np.floor(sizes * downsample / scale + 0.5), 1).astype(np.int64)
            corners = np.floor(centres - sizes / 2 + 0.5).astype(np.int64)
        left, top = corners.min(axis=0).tolist()
        return cls(image, corners, sizes, None if packed else (left, top), downsample)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all pixels together."""
        if self.origin is None:
            width, height = self.sizes.max(axis=0).tolist()
            return (len(self.starts), *self.image.shape_of(width, height))
        return self.image.shape_of(*self.region_size)

    @property
    def region_size(self) -> tuple[int, int]:
        """(width, height) of what all windows cover together."""
        width, height = ((self.starts + self.sizes).max(axis=0) - self.starts.min(axis=0)).tolist()
        return width, height

    @property
    def n_bytes(self) -> int:
        """What they take."""
        return math.prod(self.shape) * np.dtype(self.image.dtype).itemsize

    def columns_and_rows(self, x: int, y: int, width: int, height: int) -> tuple[Int64Array, Int64Array]:
        """Which columns and rows of the image the pixels from (x, y) on are; beyond its edges too."""
        columns, rows = np.arange(x, x + width), np.arange(y, y + height)
        if self.image.resolution == "own":
            return columns, rows
        found = [
            np.floor(((along + 0.5) * self.downsample - offset) / scale).astype(np.int64)
            for along, offset, scale in zip((columns, rows), self.image.offset, self.image.scale, strict=True)
        ]
        return found[0], found[1]


@dataclass(frozen=True, eq=False)
class PairedPixels:
    """What of a paired image goes with the windows of a big chunk."""

    layout: PairedLayout
    values: AnyArray
    """Of the layout's shape and the image's dtype."""

    def of(self, row: int) -> AnyArray:
        """A view: what goes with the window in that `row`."""
        axes, (width, height) = self.layout.image.axes, self.layout.sizes[row].tolist()
        if self.layout.origin is None:
            first, values = {"X": 0, "Y": 0}, self.values[row]
        else:
            x, y = (self.layout.starts[row] - self.layout.origin).tolist()
            first, values = {"X": x, "Y": y}, self.values
        size = {"X": width, "Y": height}
        found: AnyArray = values[
            tuple(slice(first[axis], first[axis] + size[axis]) if axis in first else slice(None) for axis in axes)
        ]
        return found

    def stack(self, rows: npt.NDArray[np.intp]) -> AnyArray:
        """(n, …), contiguous: what goes with the windows in these `rows`, all of one size; a view where they lie so."""
        layout = self.layout
        if layout.origin is None and bool(np.all(np.diff(rows) == 1)) and self.values.flags.writeable:
            whole = layout.image.shape_of(*layout.sizes[rows[0]].tolist()) == self.values.shape[1:]
            if whole:
                return self.values[rows[0] : rows[-1] + 1]
        return np.stack([self.of(row) for row in rows.tolist()])


def n_bytes_together(first: int, layouts: Mapping[str, PairedLayout]) -> int:
    """Bytes of one block that holds `first` bytes of something else, and then the pixels of the layouts."""
    for layout in layouts.values():
        first = _aligned(first) + layout.n_bytes
    return first


def blank_pixels(
    layouts: Mapping[str, PairedLayout], first: int = 0, memory: npt.NDArray[np.uint8] | None = None
) -> dict[str, PairedPixels]:
    """Pixels that are still to be read; in `memory`, (n,) uint8, behind the `first` bytes, where that is given."""
    found = {}
    for name, layout in layouts.items():
        if memory is None:
            values = np.empty(layout.shape, layout.image.dtype)
        else:
            first = _aligned(first)
            values = memory[first : first + layout.n_bytes].view(layout.image.dtype).reshape(layout.shape)
            first += layout.n_bytes
        found[name] = PairedPixels(layout, values)
    return found


def _aligned(place: int) -> int:
    return -(-(BEGIN + place) // _ALIGNED) * _ALIGNED - BEGIN
