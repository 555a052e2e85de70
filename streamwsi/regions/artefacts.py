"""What looks like tissue to a threshold and is none: marker ink, black borders.

In: a picture of a slide.  Out: where they are.  A rule for each pixel and its surroundings; never opens a slide.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import UInt8Array
from streamwsi.regions.extra import needed

BoolArray = npt.NDArray[np.bool_]
_STRIP_ROWS = 256
"""Rows that are looked at once: what is computed on the way takes many times the picture's memory."""
_FRINGE_PX = 4
"""How far from ink or a border its faded edge reaches, in pixels of the picture."""


def artefacts(rgb: UInt8Array) -> BoolArray:
    """Where (height, width, 3) uint8, RGB, is marker ink or black: (height, width) bool.

    - Ink, blue or green: it absorbs red clearly more than green, and is vivid. What haematoxylin, eosin and DAB stain
      absorbs green at least as much as red.
    - Ink, red: it lets red through, and absorbs blue nearly as much as green, being vivid beyond what eosin and blood are.
    - Black: dark and without colour; a border, a frame, black ink.

    Around these, within a few pixels, what is of the same kind and paler is their edge. Pale red, orange and yellow ink is not
    told from stains.
    """
    ink, faded = np.empty(rgb.shape[:2], bool), np.empty(rgb.shape[:2], bool)
    for top in range(0, len(rgb), _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        ink[rows], faded[rows] = _kinds(rgb[rows])
    if not ink.any():
        return ink
    near: BoolArray = needed("skimage.morphology", "looking for ink").isotropic_dilation(ink, _FRINGE_PX)
    # of what is next to ink or a border, a pixel or two are a mixture of it and of what lies beyond, whatever their colour
    touching: BoolArray = needed("skimage.morphology", "looking for ink").isotropic_dilation(ink | (faded & near), 1)
    return touching


def _kinds(rgb: UInt8Array) -> tuple[BoolArray, BoolArray]:
    """(ink or black, what may be the edge of it), each (height, width) bool."""
    red, green, blue = (-np.log((rgb[..., channel].astype(np.float32) + 1) / 256) for channel in range(3))
    brightest, darkest = rgb.max(axis=2), rgb.min(axis=2)
    chroma = brightest - darkest
    ink = (chroma >= 70) & (red >= 1.15 * green)
    ink |= (chroma >= 150) & (rgb[..., 0] >= 150) & (blue >= 0.75 * green)
    ink |= (brightest <= 70) & (chroma <= 25)
    faded = (chroma >= 12) & (red >= 1.05 * green)
    faded |= (chroma >= 40) & (red <= 0.35 * green) & (blue >= 0.75 * green)
    faded |= (chroma <= 20) & (brightest <= 215)
    return ink, faded
