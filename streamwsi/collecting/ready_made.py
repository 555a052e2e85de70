"""Collectors that need no model.

In: batches.  Out: a few numbers per window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import Batch
from streamwsi.collecting.collector import StreamCollector


class MeanCollector(StreamCollector):
    """Mean colour of each window: (n, 3) float64, R, G, B in 0–255."""

    columns = ("mean_r", "mean_g", "mean_b")

    def process(self, batch: Batch) -> npt.NDArray[np.float64]:
        """Means over the window, exact: sums are integers."""
        n, height, width, _ = batch.pixels.shape
        # Down the rows first: long contiguous lines, twenty times as fast as pixel by pixel. 2^24 rows fit into 32 bits.
        columns = batch.pixels.reshape(n, height, width * 3).sum(axis=1, dtype=np.uint32)
        sums: npt.NDArray[np.uint64] = columns.reshape(n, width, 3).sum(axis=1, dtype=np.uint64)
        means: npt.NDArray[np.float64] = sums / float(height * width)
        return means


class HematoxylinCollector(StreamCollector):
    """Mean haematoxylin density of each window: (n,) float32, optical density per window, 0 for glass.

    Colour deconvolution: optical density is OD = −log10((I + 1) / 256) per channel; the densities of haematoxylin, eosin and
    DAB solve OD = densities · stains, with the stains' unit vectors as rows. What comes out negative counts as 0.

    Source: Ruifrok A. C. & Johnston D. A., "Quantification of histochemical staining by color deconvolution", Analytical and
    Quantitative Cytology and Histology 23 (2001) 291–299; the vectors are those of their ImageJ plug-in (H 0.650 0.704 0.286,
    E 0.072 0.990 0.105, DAB 0.268 0.570 0.776).
    """

    columns = ("hematoxylin",)

    _STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])

    def setup(self) -> None:
        """Tabulate optical density × unmixing weight for each grey level of each channel."""
        stains = self._STAINS / np.linalg.norm(self._STAINS, axis=1, keepdims=True)
        weights = np.linalg.inv(stains)[:, 0]
        density = -np.log10((np.arange(256) + 1.0) / 256.0)
        self._table = (density[:, None] * weights).astype(np.float32)

    def process(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Mean density over each window."""
        means = np.empty((len(batch), 1), np.float32)
        for row, pixels in enumerate(batch.pixels):
            density = self._table[pixels[..., 0], 0] + self._table[pixels[..., 1], 1] + self._table[pixels[..., 2], 2]
            means[row] = np.maximum(density, 0).mean(dtype=np.float64)
        return means


READY_MADE: dict[str, type[StreamCollector]] = {"mean": MeanCollector, "hematoxylin": HematoxylinCollector}
"""By the names that the command line knows."""


def ready_made(name: str, **arguments: Any) -> StreamCollector:
    """The ready-made collector called `name`; KeyError where there is none."""
    return READY_MADE[name](**arguments)
