"""What a run resolved a slide to: everything that decides its windows, as found when it was opened.

It is written into the journal, checked on resume, and recomputed from by `verify` and the maps.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.chunks import BigChunk, UInt8Array
from streamwsi.dataset import SlideInfo
from streamwsi.geometry import Border, ChunkGrid, Grid, Windows
from streamwsi.memory import empty_pixels
from streamwsi.paired import PairedImage, PairedLayout, blank_pixels, n_bytes_together
from streamwsi.plan import Chunks, Plan, Sample, SampledWindows
from streamwsi.resolution import Resolution


class ResolvedSlide(msgspec.Struct, frozen=True, kw_only=True, dict=True):
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
    """(x, y) steps, in pixels of the level read; (0, 0) where a sampler has placed windows freely."""
    border: Border
    background: tuple[int, int, int]
    block: tuple[int, int]
    """(rows, columns) of windows in a big chunk."""
    band: int = 0
    """Columns of chunks in a band, see :class:`streamwsi.geometry.ChunkGrid`."""
    resampled_px: float
    """Largest shift of a region against the level's own pixels, in pixels of the level; 0: every region is exact."""
    margin: int = 0
    """Pixels around each window that are read with it."""
    zoom: float = 1.0
    """Pixels of the level per pixel of what is read, see :class:`streamwsi.resolution.Resolution`."""
    coarser: tuple[Resolution, ...] | None = None
    """Further resolutions that are read around the centre of each window; None: windows have one, and no axis of them."""
    sample: Sample | None = None
    """The windows that a sampler has chosen; None: all of the grid."""
    paired: tuple[PairedImage, ...] = ()
    """Images that are read with it."""

    @property
    def extent(self) -> tuple[int, int]:
        """(width, height) of what is read, in its pixels: of the level, or of the virtual level made from it."""
        return self.resolutions[0].extent(self.info)

    @property
    def downsample(self) -> float:
        """Level-0 pixels per pixel of what is read."""
        return self.resolutions[0].downsample(self.info)

    @property
    def resolutions(self) -> tuple[Resolution, ...]:
        """All that are read, the finest, which windows are placed at, first."""
        return Resolution(self.level, self.zoom), *(self.coarser or ())

    def corners(self, windows: Windows, resolution: Resolution) -> npt.NDArray[np.float64]:
        """(n, 2) float64: (x, y) of where the windows' pixels begin at a resolution, around their centres, in its pixels."""
        centre_l0 = (windows.start + windows.size / 2) * self.downsample
        corners: npt.NDArray[np.float64] = centre_l0 / resolution.downsample(self.info) - windows.size / 2 - self.margin
        return corners

    def plan(self) -> Plan:
        """All windows of the slide."""
        return self.grid() if self._sampled is None else self._sampled

    def grid(self) -> Grid:
        """The sliding window over all of the slide, whether or not a sampler has chosen others."""
        return _grid(self.extent, self.kernel, self.stride, self.border, self.downsample)

    def for_chunk(self, number: int) -> ResolvedSlide:
        """The same for one chunk, as it crosses the wire: of many windows that a sampler has chosen, only those in it."""
        return self if self._sampled is None else msgspec.structs.replace(self, sample=self._sampled.cut_to(number))

    def same_windows(self, other: ResolvedSlide) -> bool:
        """Whether another has the same windows of a sampler, however they are cut into chunks."""
        if self.sample is None or other.sample is None or self.sample == other.sample:
            return self.sample == other.sample
        one, two = (sample.decoded(self.kernel, self.downsample) for sample in (self.sample, other.sample))
        return np.array_equal(one.start, two.start) and one.windows(one.index).labels == two.windows(two.index).labels

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels that its windows may have."""
        return () if self.sample is None else self.sample.label_names

    def chunk_bytes(self, number: int) -> int:
        """How many bytes the pixels of a big chunk take, with those of paired images."""
        windows = self._windows(number)
        shape, origin = self._layout(windows)
        return n_bytes_together(math.prod(shape), self.paired_layouts(windows, packed=origin is None))

    def blank_chunk(self, number: int, memory: UInt8Array | None = None) -> BigChunk:
        """A big chunk whose pixels are still to be read, in `memory` ((n,) uint8, large enough) where that is given.

        They are one region where that is smaller than the windows are together, that is, where they overlap; else packed.
        """
        windows = self._windows(number)
        shape, origin = self._layout(windows)
        size = math.prod(shape)
        pixels = empty_pixels((size,)) if memory is None else memory[:size]
        paired = blank_pixels(self.paired_layouts(windows, packed=origin is None), size, memory)
        return BigChunk(windows, pixels.reshape(shape), origin, np.zeros(len(windows), bool), self.margin, paired)

    def paired_layouts(self, windows: Windows, packed: bool) -> dict[str, PairedLayout]:
        """Where windows lie in the paired images; `packed` as the pixels of the slide are."""
        corners, sizes = windows.start - self.margin, windows.size + 2 * self.margin
        return {image.name: PairedLayout.of(image, corners, sizes, self.downsample, packed) for image in self.paired}

    def chunks(self) -> Chunks:
        """How they are cut into big chunks."""
        return self.chunk_grid() if self._sampled is None else self._sampled.chunks()

    def chunk_grid(self) -> ChunkGrid:
        """How the sliding window over all of the slide is cut into big chunks."""
        return ChunkGrid(self.grid().shape, self.block, self.band)

    @cached_property
    def _sampled(self) -> SampledWindows | None:
        """The sample as tables. They are asked for with each chunk, are large, and go when the slide does."""
        return None if self.sample is None else self.sample.decoded(self.kernel, self.downsample)

    def _windows(self, chunk: int) -> Windows:
        return self.plan().windows(self.chunks().indices(chunk))

    def _layout(self, windows: Windows) -> tuple[tuple[int, ...], tuple[int, int] | None]:
        """Shape of the pixels, and origin of the region, where they are one."""
        sizes = windows.size + 2 * self.margin
        if self.coarser is not None:
            width, height = sizes.max(axis=0).tolist()
            return (len(windows), 1 + len(self.coarser), height, width, 3), None
        left, top = (windows.start.min(axis=0) - self.margin).tolist()
        right, bottom = (windows.start + windows.size).max(axis=0).tolist()
        right, bottom = right + self.margin, bottom + self.margin
        if (right - left) * (bottom - top) < int(sizes.prod(axis=1).sum()):
            return (bottom - top, right - left, 3), (left, top)
        width, height = sizes.max(axis=0).tolist()
        return (len(windows), height, width, 3), None


@lru_cache(maxsize=64)
def _grid(extent: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], border: Border, downsample: float) -> Grid:
    """A grid keeps its starts; they are asked for with each chunk."""
    return Grid(extent, kernel, stride, border, downsample)
