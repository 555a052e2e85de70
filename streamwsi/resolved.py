"""What a run resolved a slide to: everything that decides its windows, as found when it was opened.

It is written into the journal, checked on resume, and recomputed from by `verify` and the maps.
"""

from __future__ import annotations

import msgspec

from streamwsi.dataset import SlideInfo
from streamwsi.geometry import Border, ChunkGrid, Grid


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
        return Grid(self.extent, self.kernel, self.stride, self.border, self.downsample)

    def chunks(self) -> ChunkGrid:
        """How they are cut into big chunks."""
        return ChunkGrid(self.grid().shape, self.block)
