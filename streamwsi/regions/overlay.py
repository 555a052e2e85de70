"""A picture of a mask on its slide.

In: a mask, a slide.  Out: the slide's thumbnail, with what is not inside greyed and the edge of what is drawn.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from streamwsi.chunks import UInt8Array
from streamwsi.config import at_least
from streamwsi.errors import ConfigError
from streamwsi.regions.facts import SlideLike, opened
from streamwsi.regions.files import renamed_when_written

if TYPE_CHECKING:
    from streamwsi.regions.mask import BoolArray, Mask

EDGE = (0, 160, 80)
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
    target = picture_path(path)
    with opened(slide) as reader:
        mask.check_on(reader.info)
        picture = reader.thumbnail(longest_px)
        width, height = reader.info.dimensions
    rows, columns = picture.shape[:2]
    inside = mask.contains(pixel_centres((rows, columns), (width, height))).reshape(rows, columns)
    veil(picture, ~inside)
    picture[edge_of(inside, edge_px(picture))] = EDGE
    if target is not None:
        write_picture(picture, target)
    return picture


def picture_path(path: str | os.PathLike[str] | None) -> Path | None:
    """`path` if a picture can be called so, else ConfigError."""
    target = None if path is None else Path(path)
    if target is not None and target.suffix.lower() not in _FORMATS:
        raise ConfigError(f"a picture must be called .png, .jpg or .jpeg, got {target}")
    return target


def write_picture(picture: UInt8Array, target: Path) -> None:
    """Write a picture, whole or not at all. Raises OutputError where that cannot be."""
    with renamed_when_written(target) as temporary:
        Image.fromarray(picture).save(temporary, format=_FORMATS[target.suffix.lower()])


def pixel_centres(shape: tuple[int, int], dimensions: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Centres of the pixels of a thumbnail, (rows, columns), row by row, in level-0 pixels of a slide: (n, 2) (x, y)."""
    (rows, columns), (width, height) = shape, dimensions
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) + 0.5
    centres: npt.NDArray[np.float64] = np.column_stack([x * (width / columns), y * (height / rows)])
    return centres


def veil(picture: UInt8Array, where: BoolArray) -> None:
    """Grey pixels of a picture."""
    picture[where] = (picture[where] * (1 - _VEIL_OPACITY) + _VEIL * _VEIL_OPACITY).astype(np.uint8)


def edge_px(picture: UInt8Array) -> int:
    """How thick an edge is drawn on a picture."""
    rows, columns = picture.shape[:2]
    return max(int(max(rows, columns) * _EDGE_SHARE + 0.5), 1)


def edge_of(inside: BoolArray, thickness_px: int) -> BoolArray:
    """Pixels that are inside and fewer than `thickness_px` steps from one that is not."""
    core = inside.copy()
    for _ in range(thickness_px):
        padded = np.pad(core, 1, mode="edge")
        core &= padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: BoolArray = inside & ~core
    return edge
