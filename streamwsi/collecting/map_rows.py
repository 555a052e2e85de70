"""What a collector returns for a map writer: blended here, so that each pixel of a chunk goes on once, however often windows
overlap.

In: an image for each window of a chunk.  Out: tiles of weighted sums.  Never touches a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.arrays.weights import Weights
from streamwsi.blending.blend import Blend
from streamwsi.blending.chunk import ChunkSums, Tile
from streamwsi.blending.frame import MapFrame, most_overlaps
from streamwsi.chunks import BigChunk
from streamwsi.collecting.rows import ChunkRows
from streamwsi.errors import PieceError
from streamwsi.geometry import Windows
from streamwsi.map_options import MAP_DTYPES, MapOptions, map_dtype
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec

MOST_CHANNELS = 256
"""Of an image: a block of float64 sums with as many has 512 MiB, and SQLite takes less than 1 GB in one piece."""


class MapBlending:
    """How the images of a run are blended; keeps what is the same for many chunks."""

    def __init__(self, options: MapOptions) -> None:
        self.options = options
        self._own = own_weights(options)
        self._weights: dict[tuple[int, int], Weights] = {}
        self._blends: dict[tuple[str, int, tuple[int, int], int], Blend] = {}

    def frame(self, resolved: ResolvedSlide) -> MapFrame:
        """The frame of a slide's map."""
        return MapFrame.of(resolved, self.options)

    def chunk(
        self, chunk: BigChunk, resolved: ResolvedSlide, spec: ValueSpec | None, columns: tuple[str, ...] | None
    ) -> ChunkMap:
        """What the results of a chunk's batches are given to; see :class:`streamwsi.collecting.rows.ChunkRows`."""
        return ChunkMap(chunk, resolved, spec, columns, self)

    def blend(self, resolved: ResolvedSlide, spec: ValueSpec) -> Blend:
        """How images of `spec` are blended on a slide."""
        size = image_size(resolved.kernel, self.options.reduction)
        key = (spec.dtype, channels_of(spec), size, most_overlaps(resolved))
        if key not in self._blends:
            if size not in self._weights:
                self._weights[size] = Weights(self._own, size)
            self._blends[key] = Blend(np.dtype(spec.dtype), key[1], self._weights[size], key[3])
        return self._blends[key]


def own_weights(options: MapOptions) -> Any:
    """What weights are asked for: a name, an array, or a callable."""
    if options.array is not None:
        shape, data = options.array
        return np.frombuffer(data, np.float64).reshape(shape)
    if options.code is not None:
        from streamwsi.collecting.spec import Shipped, unship  # few have any, and importing takes time

        pickled, files = options.code
        weights: Callable[..., Any] = unship(Shipped(pickled, files))
        return weights
    return options.weights


def image_size(window: tuple[int, int], reduction: int) -> tuple[int, int]:
    """(height, width) of the image of a window of this (width, height)."""
    width, height = (-(-side // reduction) for side in window)
    return height, width


def channels_of(spec: ValueSpec) -> int:
    """How many values each pixel of an image has."""
    return spec.shape[2] if len(spec.shape) == 3 else 1


class ChunkMap(ChunkRows):
    """Blends the results of one chunk's batches."""

    def __init__(
        self,
        chunk: BigChunk,
        resolved: ResolvedSlide,
        spec: ValueSpec | None,
        columns: tuple[str, ...] | None,
        blending: MapBlending,
    ) -> None:
        super().__init__(chunk, spec, columns)
        self._resolved, self._blending = resolved, blending
        self._frame = blending.frame(resolved)
        self._boxes = self._frame.boxes(chunk.windows)
        self._sums: ChunkSums | None = None

    def tiles(self) -> list[Tile]:
        """The sums of what was added, in row-major order of their blocks."""
        return [] if self._sums is None else self._sums.tiles()

    def _spec_of(self, values: npt.NDArray[Any], windows: Windows) -> ValueSpec:
        """The spec of the image of a whole window; some that the edge has cut may be smaller."""
        options = self._blending.options
        window = windows[0].width, windows[0].height
        size = image_size(window, options.reduction)
        if values.ndim not in (3, 4) or values.shape[1:3] != size:
            raise PieceError(
                f"process returned {values.dtype} of shape {values.shape}; a MapStreamWriter with reduction="
                f"{options.reduction} takes an image for each window, (n, {size[0]}, {size[1]}) or (n, {size[0]}, {size[1]}, "
                f"channels) for windows of {window[0]} x {window[1]} px{self._hint(values, window)}"
            )
        channels = values.shape[3:]
        if channels and not 1 <= channels[0] <= MOST_CHANNELS:
            raise PieceError(f"process returned {channels[0]} channels: a map has 1 to {MOST_CHANNELS}")
        if values.dtype.kind in "ui" and values.dtype.itemsize == 8:
            raise PieceError(f"process returned {values.dtype}: give maps in at most 32 bits, as float32 or uint8, say")
        if map_dtype(options, values.dtype) is None:
            raise PieceError(
                f"process returned {values.dtype}, which files of maps do not hold: return {', '.join(MAP_DTYPES)}, or say "
                "which of them in MapStreamWriter(dtype=…)"
            )
        if self._columns is not None and len(self._columns) != (channels[0] if channels else 1):
            raise PieceError(
                f"the collector names {len(self._columns)} columns {self._columns}, but an image has "
                f"{channels[0] if channels else 1} channels"
            )
        return ValueSpec(values.dtype.name, (*image_size(self._resolved.kernel, options.reduction), *channels), self._columns)

    def _keep(self, rows: npt.NDArray[np.intp], values: npt.NDArray[Any], spec: ValueSpec) -> None:
        if self._sums is None:
            readable = self._boxes[~self._skipped]
            self._sums = ChunkSums(self._frame, self._blending.blend(self._resolved, spec), readable)
        self._sums.add(self._boxes[rows], values if values.ndim == 4 else values[..., None])

    def _hint(self, values: npt.NDArray[Any], window: tuple[int, int]) -> str:
        """What would fit, where something does."""
        if values.ndim == 4 and values.shape[2:] == image_size(window, self._blending.options.reduction):
            return "; channels come last: move axis 1 to the end"
        if values.ndim in (3, 4) and min(values.shape[1:3]) > 0:
            found = -(-window[1] // values.shape[1])
            if found > 1 and image_size(window, found) == values.shape[1:3]:
                return f"; these fit reduction={found}"
        return ""
