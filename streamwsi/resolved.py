"""What a run resolved a slide to: everything that decides its windows, as found when it was opened.

It is written into the journal, checked on resume, and recomputed from by `verify` and the maps.
"""

from __future__ import annotations

import math
from functools import lru_cache

import msgspec
import numpy as np

from streamwsi.chunks import BigChunk, UInt8Array
from streamwsi.dataset import SlideInfo
from streamwsi.geometry import Border, ChunkGrid, Grid, Windows


class ResolvedSlide(msgspec.Struct, frozen=True, kw_only=True):
    """One slide, opened once: its place in the dataset, what its reader said, and the plan of its windows."""

    patient: int
    """Place of its patient in the dataset."""
    slide: int
    """Place among the patient's slides."""
    patient_id: str
    id: str
    path: str
    fingerprint: str
    """Of the file's content: its size and hashes of samples."""
    info: SlideInfo
    level: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    border: Border
    background: tuple[int, int, int]
    block: tuple[int, int]
    """(rows, columns) of windows in a big chunk."""
    band: int = 0
    """Columns of chunks in a band, see :class:`streamwsi.geometry.ChunkGrid`."""
    resampled_px: float
    """Largest shift of a region against the level's own pixels, in pixels of the level; 0: every region is exact."""

    @property
    def extent(self) -> tuple[int, int]:
        """(width, height) of the level read, in its pixels."""
        return self.info.level_dimensions[self.level]

    @property
    def downsample(self) -> float:
        """Level-0 pixels per pixel of the level read."""
        return self.info.level_downsamples[self.level]

    def grid(self) -> Grid:
        """All windows of the slide."""
        return _grid(self.extent, self.kernel, self.stride, self.border, self.downsample)

    def chunk_bytes(self, number: int) -> int:
        """How many bytes the pixels of a big chunk take."""
        return math.prod(self._layout(self._windows(number))[0])

    def blank_chunk(self, number: int, memory: UInt8Array | None = None) -> BigChunk:
        """A big chunk whose pixels are still to be read, in `memory` ((n,) uint8, large enough) where that is given.

        They are one region where that is smaller than the windows are together, that is, where they overlap; else packed.
        """
        windows = self._windows(number)
        shape, origin = self._layout(windows)
        size = math.prod(shape)
        pixels = np.empty(size, np.uint8) if memory is None else memory[:size]
        return BigChunk(windows, pixels.reshape(shape), origin, np.zeros(len(windows), bool))

    def _windows(self, chunk: int) -> Windows:
        return self.grid().windows(self.chunks().indices(chunk))

    @staticmethod
    def _layout(windows: Windows) -> tuple[tuple[int, ...], tuple[int, int] | None]:
        """Shape of the pixels, and origin of the region, where they are one."""
        left, top = windows.start.min(axis=0).tolist()
        right, bottom = (windows.start + windows.size).max(axis=0).tolist()
        if (right - left) * (bottom - top) < int(windows.size.prod(axis=1).sum()):
            return (bottom - top, right - left, 3), (left, top)
        width, height = windows.size.max(axis=0).tolist()
        return (len(windows), height, width, 3), None

    def chunks(self) -> ChunkGrid:
        """How they are cut into big chunks."""
        return ChunkGrid(self.grid().shape, self.block, self.band)


@lru_cache(maxsize=64)
def _grid(extent: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], border: Border, downsample: float) -> Grid:
    """A grid keeps its starts; they are asked for with each chunk."""
    return Grid(extent, kernel, stride, border, downsample)
