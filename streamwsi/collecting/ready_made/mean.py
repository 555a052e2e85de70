"""The mean colour of each window.

In: batches.  Out: three means per window, exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import Batch
from streamwsi.collecting.collector import StreamCollector


class MeanCollector(StreamCollector):
    """Mean colour of each window: (n, 3) float64, R, G, B in 0–255."""

    columns = ("mean_r", "mean_g", "mean_b")

    def process(self, batch: Batch) -> npt.NDArray[np.float64]:
        """Means over the window, exact: sums are integers."""
        n, height, width, _ = batch.finest.shape
        # Down the rows first: long contiguous lines, twenty times as fast as pixel by pixel. 2^24 rows fit into 32 bits.
        columns = batch.finest.reshape(n, height, width * 3).sum(axis=1, dtype=np.uint32)
        sums: npt.NDArray[np.uint64] = columns.reshape(n, width, 3).sum(axis=1, dtype=np.uint64)
        means: npt.NDArray[np.float64] = sums / float(height * width)
        return means
