"""Regions as OpenSlide draws them, and how they become RGB.

In: an open handle.  Out: pixels in an array that is there already.  Never guesses at pixels that are partly transparent.

OpenSlide draws into a buffer of ARGB words. openslide-python makes a Pillow image of it, and from there to an RGB array it
takes four more passes and as many copies; from the buffer itself it takes two passes, which let other threads run.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import POINTER, c_int32, c_int64, c_uint32
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import openslide
from openslide import lowlevel

from streamwsi.chunks import UInt8Array

UInt32Array: TypeAlias = npt.NDArray[np.uint32]

_OPAQUE = 0xFF000000
"""Words of this and more have alpha 255."""
_TRANSPARENT = 0x01000000
"""Words below this have alpha 0."""


def _find_raw_read() -> Callable[..., Any] | None:
    """The function of openslide-python that fills a buffer; None where it is not there, or not as it is known here.

    It is not public: openslide-python has no other way to the buffer, and to load the library a second time would not be
    more certain. So it is used only if it takes what `openslide_read_region` takes and raises OpenSlide's errors.
    """
    function = getattr(lowlevel, "_read_region", None)
    takes = list(getattr(function, "argtypes", None) or [])[1:]
    known = takes == [POINTER(c_uint32), c_int64, c_int64, c_int32, c_int64, c_int64]
    return function if known and getattr(function, "errcheck", None) is not None else None


_raw_read = _find_raw_read()


def read_argb(handle: openslide.OpenSlide, location: tuple[int, int], level: int, size: tuple[int, int]) -> UInt32Array | None:
    """(height, width) uint32, premultiplied ARGB; arguments as for `openslide.OpenSlide.read_region`.

    None where openslide-python does not give the buffer. Raises OpenSlideError when the region cannot be read.
    """
    raw_handle = getattr(handle, "_osr", None)
    if _raw_read is None or raw_handle is None:
        return None
    width, height = size
    argb = np.empty((height, width), np.uint32)
    _raw_read(raw_handle, argb.ctypes.data_as(POINTER(c_uint32)), *location, level, width, height)
    return argb


def store_rgb(argb: UInt32Array, out: UInt8Array, background: tuple[int, int, int]) -> bool:
    """Fill `out`, (height, width, 3) uint8, from (height, width) words; transparent ones become the background colour.

    False where a pixel is partly transparent: `out` is as it was, and the picture must be composed.
    """
    transparent = None
    if argb.min() < _OPAQUE:
        transparent = argb < _TRANSPARENT
        if not np.all(transparent | (argb >= _OPAQUE)):
            return False
    bgra = argb.astype("<u4", copy=False).view(np.uint8).reshape(*argb.shape, 4)
    for channel in range(3):
        out[..., channel] = bgra[..., 2 - channel]
    if transparent is not None:
        out[transparent] = background
    return True
