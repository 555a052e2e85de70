"""The numbers that a PNG file stores, which are what a label image or a mask means.

In: a picture as Pillow gives it.  Out: its values as they are stored.  Reads the header only.

Pillow spreads grey of 2 and 4 bits over a byte, and cuts colours of 16 bits down to one.
Source: Portable Network Graphics (W3C), sections 11.2.1 (IHDR) and 13.12 (sample depth rescaling).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTH_AT, _COLOUR_TYPE_AT = 24, 25
_GREY, _PALETTE = 0, 3
_SPREAD = {2: 85, 4: 17}
"""By bits: what Pillow has multiplied grey values with."""


def stored_values(file: Path, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The pixels of a picture as its file stores them; `values` are Pillow's, of any format.

    Raises ValueError where Pillow has lost some of them: 16 bits of more than grey.
    """
    with file.open("rb") as opened:
        header = opened.read(_COLOUR_TYPE_AT + 1)
    if len(header) <= _COLOUR_TYPE_AT or not header.startswith(_SIGNATURE):
        return values
    depth, colour_type = header[_DEPTH_AT], header[_COLOUR_TYPE_AT]
    if colour_type == _GREY and depth in _SPREAD:
        stored: npt.NDArray[Any] = values // values.dtype.type(_SPREAD[depth])
        return stored
    if depth == 16 and colour_type not in (_GREY, _PALETTE):
        raise ValueError("it has colours of 16 bits, of which only 8 would be read: store numbers as one grey channel")
    return values
