"""How sharp each window is.

In: batches.  Out: a number per window.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import Batch, UInt8Array
from streamwsi.collecting.collector import StreamCollector
from streamwsi.collecting.ready_made.blocks import blocks

_LUMA = (77, 150, 29)
"""Rec. 601's 0.299, 0.587, 0.114 in 256ths."""
_LARGEST_SQUARE = (4 * 255) ** 2


class FocusCollector(StreamCollector):
    """Sharpness of each window: (n, 1) float32, the variance of its Laplacian, in grey levels²; larger is sharper.

    The window as luma (Rec. 601, whole grey levels) is filtered with the Laplacian (0 1 0; 1 −4 1; 0 1 0) where the filter
    lies inside it; a window of fewer than 3 pixels a side has no such place, and NaN.

    It depends on more than on focus: on what is in the window (empty glass has next to none, nuclei have much), on stain,
    scanner, compression, and most of all on the resolution. Compare windows of one level, with similar content, of slides
    made alike; beside ``tissue``, to leave glass out. Where a window reaches beyond the slide, the slide's edge against the
    background counts.

    Source: Pech-Pacheco J. L. et al., "Diatom autofocusing in brightfield microscopy: a comparative study", ICPR 2000,
    vol. 3, 314–317; compared with others, as LAPV, in Pertuz S. et al., "Analysis of focus measure operators for
    shape-from-focus", Pattern Recognition 46 (2013) 1415–1432.
    """

    columns = ("focus",)

    def process(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Variances over each window; sums are integers, and exact."""
        n, height, width, _ = batch.finest.shape
        places = (height - 2) * (width - 2)
        if height < 3 or width < 3:
            return np.full((n, 1), np.nan, np.float32)
        sums, squares = np.zeros(n, np.int64), np.zeros(n, np.int64)
        for which, block in blocks(batch.finest, overlap_rows=2):
            edges = laplacian(luma(block))
            sums[which] += edges.sum(axis=(1, 2), dtype=np.int64)
            wide = edges.astype(np.int32)
            wide *= wide
            # down the rows first: long contiguous lines, whose sums fit into 32 bits unless there are very many
            fits = wide.shape[1] * _LARGEST_SQUARE < 2**31
            squares[which] += wide.sum(axis=1, dtype=np.int32 if fits else np.int64).sum(axis=1, dtype=np.int64)
        variance: npt.NDArray[np.float32] = (squares / places - (sums / places) ** 2).astype(np.float32)[:, None]
        return variance


def luma(pixels: UInt8Array) -> npt.NDArray[np.int16]:
    """(...) int16, 0–255, from (..., 3) uint8, RGB: rounded to whole grey levels. Source: ITU-R BT.601."""
    total = np.full(pixels.shape[:-1], 128, np.uint16)
    for channel, weight in enumerate(_LUMA):
        part = pixels[..., channel].astype(np.uint16)
        part *= np.uint16(weight)
        total += part
    total >>= 8
    return total.view(np.int16)


def laplacian(grey: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """(k, height − 2, width − 2) int16, −1020 to 1020: where the filter lies inside (k, height, width) int16, 0–255."""
    inner = grey[:, 1:-1, 1:-1]
    found: npt.NDArray[np.int16] = inner * np.int16(-4)
    for beside in (grey[:, :-2, 1:-1], grey[:, 2:, 1:-1], grey[:, 1:-1, :-2], grey[:, 1:-1, 2:]):
        found += beside
    return found
