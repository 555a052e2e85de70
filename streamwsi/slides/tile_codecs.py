"""How the tiles of one directory of a TIFF file become pixels, the same to the last bit as OpenSlide makes them.

In: a directory of a TIFF file.  Out: a decoder: encoded parts of a tile into (tile height, tile width, 3) uint8, RGB.  Never
reads a file. Decoders may be called from several threads at once; the work is done without the interpreter's lock.

JPEG goes through libjpeg-turbo (simplejpeg) with the settings that OpenSlide uses: the accurate integer transform, and smooth
upsampling of the chroma. Everything else is tifffile's and imagecodecs'.
Source: OpenSlide 4, ``openslide-decode-tiff.c`` and ``openslide-decode-jp2k.c``; Adobe's marker: ITU-T T.872, section 6.5.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import simplejpeg
import tifffile

from streamwsi.chunks import UInt8Array

TileDecoder = Callable[[Sequence[bytes], UInt8Array], None]
"""``decode(parts, out)``: the parts of a tile (one, or one for each colour) into ``out``, which is C-contiguous. Raises
whatever its codec raises for what it cannot decode."""

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_JPEG2000_YCBCR, _JPEG2000_RGB = 33003, 33005
"""Aperio's own compressions."""


class UnfitError(Exception):
    """Tiles that are not decoded here, and why; OpenSlide may read them."""


class Directory(Protocol):
    """What is asked of a directory: a ``tifffile.TiffPage`` has it."""

    compression: int
    photometric: int
    planarconfig: int
    samplesperpixel: int
    bitspersample: int
    sampleformat: int
    extrasamples: tuple[int, ...]
    jpegtables: bytes | None
    decode: Callable[..., Any]


def decoder_of(directory: Directory) -> TileDecoder:
    """The decoder of a directory's tiles. Raises UnfitError where there is none."""
    if directory.bitspersample != 8 or directory.sampleformat != 1:
        raise UnfitError(f"{directory.bitspersample}-bit samples of format {directory.sampleformat}, expected 8-bit unsigned")
    if directory.samplesperpixel not in (1, 3) or directory.extrasamples:
        raise UnfitError(f"{directory.samplesperpixel} samples per pixel, expected 3 (RGB) or 1 (grey)")
    photometric = tifffile.PHOTOMETRIC(directory.photometric)
    if directory.compression == tifffile.COMPRESSION.JPEG and directory.planarconfig == tifffile.PLANARCONFIG.CONTIG:
        return _jpeg_decoder(photometric, directory.jpegtables)
    if directory.compression == _JPEG2000_YCBCR:
        return _decode_jpeg2000_ycbcr
    if directory.compression == _JPEG2000_RGB:
        return _decode_jpeg2000_rgb
    if photometric not in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK):
        raise UnfitError(f"colours are {photometric.name}, compressed as {directory.compression!s}")
    return _tifffile_decoder(directory.decode)


def _jpeg_decoder(photometric: tifffile.PHOTOMETRIC, tables: bytes | None) -> TileDecoder:
    """Tiles that are JPEG streams, whose tables may stand apart.

    TIFF says what the colours are, and a JPEG stream need not; libjpeg would guess. Adobe's marker says it to the decoder.
    """
    transforms = {tifffile.PHOTOMETRIC.RGB: 0, tifffile.PHOTOMETRIC.YCBCR: 1}
    head = _JPEG_START
    if photometric in transforms:
        head += b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transforms[photometric]])
    elif photometric != tifffile.PHOTOMETRIC.MINISBLACK:
        raise UnfitError(f"colours of JPEG tiles are {photometric.name}")
    if tables:
        head += tables.removeprefix(_JPEG_START).removesuffix(_JPEG_END)

    def decode(parts: Sequence[bytes], out: UInt8Array) -> None:
        (data,) = parts
        found = simplejpeg.decode_jpeg(head + data[2:], "RGB", fastdct=False, fastupsample=False, buffer=out, strict=True)
        if found.shape != out.shape:
            raise ValueError(f"a tile is {found.shape}, expected {out.shape}")

    return decode


def _tifffile_decoder(decode_segment: Callable[..., Any]) -> TileDecoder:
    """Tiles of any other kind: all samples together, or a part for each."""

    def decode(parts: Sequence[bytes], out: UInt8Array) -> None:
        for number, data in enumerate(parts):
            pixels = decode_segment(data, 0)[0]
            if pixels is None or pixels.shape[:3] != (1, *out.shape[:2]):
                raise ValueError(f"a tile is {getattr(pixels, 'shape', None)}, expected (1, {out.shape[0]}, {out.shape[1]}, …)")
            if len(parts) == 1:
                out[...] = pixels[0]  # grey is spread over the three
            else:
                out[..., number] = pixels[0, ..., 0]

    return decode


def _decode_jpeg2000_rgb(parts: Sequence[bytes], out: UInt8Array) -> None:
    import imagecodecs

    (data,) = parts
    pixels = imagecodecs.jpeg2k_decode(data)
    if pixels.shape != out.shape or pixels.dtype != np.uint8:
        raise ValueError(f"a tile is {pixels.shape} {pixels.dtype}, expected {out.shape} uint8")
    out[...] = pixels


def _decode_jpeg2000_ycbcr(parts: Sequence[bytes], out: UInt8Array) -> None:
    """Luma and chroma, of which the latter may be half as wide, by the tables that OpenSlide has."""
    _decode_jpeg2000_rgb(parts, out)
    luma = out[..., 0].astype(np.int16)
    blue, red = out[..., 1].copy(), out[..., 2].copy()
    out[..., 0] = np.clip(luma + _RED_OF_CR[red], 0, 255)
    out[..., 1] = np.clip(luma + ((_GREEN_OF_CB[blue] + _GREEN_OF_CR[red]) >> 16), 0, 255)
    out[..., 2] = np.clip(luma + _BLUE_OF_CB[blue], 0, 255)


def _chroma_tables() -> tuple[Any, Any, Any, Any]:
    """ITU-R BT.601 in 16-bit fixed point, as libjpeg and OpenSlide have it. Source: libjpeg, ``jdcolor.c``."""
    centred = np.arange(256, dtype=np.int64) - 128

    def fixed(factor: float) -> int:
        return int(factor * 65536 + 0.5)

    half = 1 << 15
    return (
        ((fixed(1.40200) * centred + half) >> 16).astype(np.int16),
        (-fixed(0.34414) * centred + half).astype(np.int32),
        (-fixed(0.71414) * centred).astype(np.int32),
        ((fixed(1.77200) * centred + half) >> 16).astype(np.int16),
    )


_RED_OF_CR, _GREEN_OF_CB, _GREEN_OF_CR, _BLUE_OF_CB = _chroma_tables()
