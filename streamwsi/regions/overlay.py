"""A picture of a mask on its slide.

In: a mask, a slide.  Out: the slide's thumbnail, with what is not inside greyed and the edge of what is drawn.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from streamwsi.chunks import UInt8Array
from streamwsi.config import at_least
from streamwsi.errors import ConfigError
from streamwsi.regions.facts import SlideLike, opened
from streamwsi.regions.files import renamed_when_written

if TYPE_CHECKING:
    from streamwsi.regions.mask import BoolArray, Mask

_EDGE = (0, 160, 80)
"""RGB of the edge: a green that neither haematoxylin, eosin nor DAB has."""
_EDGE_SHARE = 1 / 600
"""Thickness of the edge, of the picture's longer side."""
_VEIL = 128
"""Grey level of what lies over what is not inside."""
_VEIL_OPACITY = 0.35
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def overlay(mask: Mask, slide: SlideLike, path: str | os.PathLike[str] | None, longest_px: int) -> UInt8Array:
    """See :meth:`streamwsi.regions.mask.Mask.overlay`. Raises MaskError where the mask does not lie on the slide."""
    at_least(longest_px, 16, "longest_px")
    target = None if path is None else Path(path)
    if target is not None and target.suffix.lower() not in _FORMATS:
        raise ConfigError(f"a picture must be called .png, .jpg or .jpeg, got {target}")
    with opened(slide) as reader:
        mask.check_on(reader.info)
        picture = reader.thumbnail(longest_px)
        width, height = reader.info.dimensions
    rows, columns = picture.shape[:2]
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) + 0.5
    inside = mask.contains(np.column_stack([x * (width / columns), y * (height / rows)])).reshape(rows, columns)
    picture[~inside] = (picture[~inside] * (1 - _VEIL_OPACITY) + _VEIL * _VEIL_OPACITY).astype(np.uint8)
    picture[_edge(inside, max(round(max(rows, columns) * _EDGE_SHARE), 1))] = _EDGE
    if target is not None:
        with renamed_when_written(target) as temporary:
            Image.fromarray(picture).save(temporary, format=_FORMATS[target.suffix.lower()])
    return picture


def _edge(inside: BoolArray, thickness_px: int) -> BoolArray:
    """Pixels that are inside and fewer than `thickness_px` steps from one that is not."""
    core = inside.copy()
    for _ in range(thickness_px):
        padded = np.pad(core, 1, mode="edge")
        core &= padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: BoolArray = inside & ~core
    return edge
