"""How much haematoxylin each window holds.

In: batches.  Out: a density per window.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import Batch
from streamwsi.collecting.collector import StreamCollector
from streamwsi.collecting.ready_made.density import mean_densities


class HematoxylinCollector(StreamCollector):
    """Mean haematoxylin density of each window: (n, 1) float32, optical density per window, 0 for glass.

    It is the first of :class:`StainCollector`'s three values.

    Source: Ruifrok A. C. & Johnston D. A., "Quantification of histochemical staining by color deconvolution", Analytical and
    Quantitative Cytology and Histology 23 (2001) 291–299; formula and vectors stand in
    :mod:`streamwsi.collecting.ready_made.density`.
    """

    columns = ("hematoxylin",)

    def process(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Mean density over each window."""
        return mean_densities(batch.finest, slice(0, 1))
