"""Colour deconvolution: how much of each stain a window holds.

In: the pixels of a batch.  Out: mean densities, a row per window.

Optical density is OD = −log10((I + 1) / 256) per channel, I from 0 to 255; the densities of haematoxylin, eosin and DAB solve
OD = densities · stains, with the stains' unit vectors as rows. What comes out negative counts as 0, pixel by pixel.

Source: Ruifrok A. C. & Johnston D. A., "Quantification of histochemical staining by color deconvolution", Analytical and
Quantitative Cytology and Histology 23 (2001) 291–299; the vectors are those of their ImageJ plug-in.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import UInt8Array
from streamwsi.collecting.ready_made.blocks import blocks, planes

STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
"""(3, 3): haematoxylin, eosin, DAB; how much each absorbs of red, green, blue. Not yet of unit length."""

_UNMIXING = np.linalg.inv(STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)).astype(np.float32)
"""(3, 3): from the densities of red, green and blue (rows) to those of the stains (columns)."""


def mean_densities(pixels: UInt8Array, stains: slice) -> npt.NDArray[np.float32]:
    """Mean densities over each window, 0 for glass.

    Parameters
    ----------
    pixels
        (n, height, width, 3) uint8, RGB.
    stains
        Which of :data:`STAINS`.

    Returns
    -------
    (n, m) float32, optical density, 0 and above.
    """
    n, height, width, _ = pixels.shape
    weights = _UNMIXING[:, stains].T
    sums = np.zeros((n, len(weights)))
    for which, block in blocks(pixels):
        absorbed = _optical_density(planes(block))
        density, term = np.empty_like(absorbed[0]), np.empty_like(absorbed[0])
        for stain, (red, green, blue) in enumerate(weights):
            # by elements, not as a product of matrices, whose last bits depend on how many pixels there are
            np.multiply(absorbed[0], red, out=density)
            for channel, weight in ((1, green), (2, blue)):
                density += np.multiply(absorbed[channel], weight, out=term)
            np.maximum(density, 0, out=density)
            sums[which, stain] += density.reshape(len(block), -1).sum(axis=1)
    means: npt.NDArray[np.float32] = (sums / (height * width)).astype(np.float32)
    return means


def _optical_density(channels: UInt8Array) -> npt.NDArray[np.float32]:
    """−log10((I + 1) / 256): NumPy's logarithm of many is four times as fast as a table of 256."""
    density: npt.NDArray[np.float32] = channels.astype(np.float32)
    density += 1
    np.log(density, out=density)
    density -= np.float32(np.log(256))
    density *= np.float32(-1 / np.log(10))
    return density
