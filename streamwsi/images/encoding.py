"""Pixels as the bytes of an image file.

In: uint8 images.  Out: the bytes of a PNG, JPEG or WebP file, the same for the same pixels.  Never touches a file.

PNG is made with one filter (Paeth) and runs of equal bytes only, which on tissue gives files as small as zlib's search for
matches does, in a quarter of the time; see decision 0024.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.errors import ConfigError, PieceError

ImageFormat = Literal["png", "jpeg", "webp"]
FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
SUFFIXES: dict[ImageFormat, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""Of the files of each format."""

_STARTS: dict[ImageFormat, bytes] = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}
_MOST_PX: dict[ImageFormat, int] = {"png": 2**31 - 1, "jpeg": 65535, "webp": 16383}
"""Of a side. Source: PNG (third edition), 11.2.1; ITU-T T.81, B.2.2; WebP container specification."""
_QUALITY = 90
_PNG_FASTEST, _PNG_RUNS_ONLY, _PNG_PAETH = 1, 3, 128
"""zlib's level, its strategy Z_RLE, libpng's flag of the filter."""
_WEBP_METHOD = 2
"""Of 0 (fast) to 6: half the time of 4, which is the usual one, for 3 % more bytes."""


class ImageEncoding(msgspec.Struct, frozen=True):
    """How images are encoded."""

    format: ImageFormat
    quality: int | None = None
    """1–100, of JPEG and WebP; None: 90. PNG has none: it gives every pixel back."""

    @property
    def suffix(self) -> str:
        """What the names of its files end in."""
        return SUFFIXES[self.format]

    def check(self) -> None:
        """Raise ConfigError naming the field that cannot be."""
        if self.format not in FORMATS:
            raise ConfigError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {self.format!r}")
        if self.quality is None:
            return
        if self.format == "png":
            raise ConfigError(f"quality {self.quality!r} goes with 'jpeg' or 'webp': a PNG gives every pixel back")
        if isinstance(self.quality, bool) or not isinstance(self.quality, int) or not 1 <= self.quality <= 100:
            raise ConfigError(f"quality must be a whole number from 1 to 100, got {self.quality!r}")

    def encoded(self, image: npt.NDArray[np.uint8]) -> bytes:
        """The bytes of a file that holds `image`, (height, width, 3) RGB or (height, width) grey, uint8.

        Raises PieceError when it has no pixel, or a side that the format cannot have.
        """
        height, width = image.shape[:2]
        most = _MOST_PX[self.format]
        if min(height, width) < 1 or max(height, width) > most:
            raise PieceError(f"an image of {width}x{height} px cannot be a {self.format}: a side has 1 to {most} px")
        pixels: Any = np.ascontiguousarray(image)
        try:
            return _ENCODERS[self.format](pixels, _QUALITY if self.quality is None else self.quality)
        except (RuntimeError, ValueError) as error:
            raise PieceError(f"an image of {width}x{height} px cannot be encoded as {self.format}: {error}") from error

    def is_begun_by(self, data: bytes) -> bool:
        """Whether `data` begin as a file of this format does."""
        return data.startswith(_STARTS[self.format])


def _png(pixels: Any, _: int) -> bytes:
    import imagecodecs  # codecs are loaded where something is encoded: a driver has no use for them

    return bytes(imagecodecs.png_encode(pixels, level=_PNG_FASTEST, strategy=_PNG_RUNS_ONLY, filter=_PNG_PAETH))


def _jpeg(pixels: Any, quality: int) -> bytes:
    import simplejpeg

    if pixels.ndim == 2:
        grey = pixels[..., None]
        return bytes(simplejpeg.encode_jpeg(grey, quality=quality, colorspace="GRAY", colorsubsampling="Gray"))
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420"))


def _webp(pixels: Any, quality: int) -> bytes:
    import imagecodecs

    rgb = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels  # it has no grey
    return bytes(imagecodecs.webp_encode(rgb, level=quality, lossless=False, method=_WEBP_METHOD))


_ENCODERS: dict[ImageFormat, Callable[[Any, int], bytes]] = {"png": _png, "jpeg": _jpeg, "webp": _webp}
