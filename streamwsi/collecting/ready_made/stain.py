"""How much haematoxylin and eosin each window holds, and how much of neither.

In: batches.  Out: three densities per window.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import Batch
from streamwsi.collecting.collector import StreamCollector
from streamwsi.collecting.ready_made.density import mean_densities


class StainCollector(StreamCollector):
    """Mean densities of haematoxylin, eosin and a residual in each window: (n, 3) float32, optical density, 0 for glass.

    The residual is what falls to the third of the vectors, that of DAB: on a slide stained with haematoxylin and DAB, the DAB;
    on one stained with haematoxylin and eosin, what these two do not explain: pigment, pen, dirt, and how far the slide's
    own stains are from these vectors, which may be a good part of the whole.

    ``skimage.color.rgb2hed`` gives the same but for scale and rounding: it divides optical densities by 6, rounds the
    vectors to two digits, and lets the density of black go to 6 where it is 2.4 here, so that dark pixels weigh more
    there. Densities can be compared between slides as far as staining and scanner can.

    Source: Ruifrok A. C. & Johnston D. A., "Quantification of histochemical staining by color deconvolution", Analytical and
    Quantitative Cytology and Histology 23 (2001) 291–299; formula and vectors stand in
    :mod:`streamwsi.collecting.ready_made.density`.
    """

    columns = ("hematoxylin", "eosin", "residual")

    def process(self, batch: Batch) -> npt.NDArray[np.float32]:
        """Mean densities over each window."""
        return mean_densities(batch.finest, slice(0, 3))
