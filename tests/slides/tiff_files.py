"""Tiled TIFF files made for the purpose, each tile and each tag as a test wants it.

Nothing here uses the code under test.  Source: TIFF 6.0, sections 2, 15 and 22; BigTIFF: Adobe, 2007.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import simplejpeg

UInt8Array = npt.NDArray[np.uint8]
Tags = Mapping[int, tuple[str, Sequence[int] | bytes]]
Encode = Callable[[UInt8Array], bytes]

NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS, ZSTD, APERIO_YCBCR, APERIO_RGB = 1, 5, 7, 8, 32946, 32773, 50000, 33003, 33005
WHITE_IS_0, GREY, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
APERIO = b"Aperio Image Library v0.0\n for tests|AppMag = 20|MPP = 0.5\0"


@dataclass
class Page:
    """One directory, and its tiles (or strips, where tile is None)."""

    extent: tuple[int, int]
    tile: tuple[int, int] | None
    tiles: list[bytes]
    """Row-major; where colours are kept apart, all of the first, then all of the second, …; empty: no data."""
    compression: int = NONE
    photometric: int = RGB
    samples: int = 3
    bits: int = 8
    apart: bool = False
    tags: Tags = field(default_factory=dict)
    """Others: code, and how it is packed, and what."""
    wrong: dict[int, tuple[int | None, int | None]] = field(default_factory=dict)
    """Tiles whose (offset, size) are given wrongly; None: as it is."""

    def entries(self, offsets: Sequence[int], sizes: Sequence[int], word: str) -> dict[int, tuple[str, Sequence[int] | bytes]]:
        """All tags."""
        across, down = self.tile or (self.extent[0], self.extent[1])
        where = ((322, 323), (324, 325)) if self.tile else ((None, 278), (273, 279))
        fields: dict[int | None, tuple[str, Sequence[int] | bytes]] = {
            256: ("I", [self.extent[0]]),
            257: ("I", [self.extent[1]]),
            258: ("H", [self.bits] * self.samples),
            259: ("H", [self.compression]),
            262: ("H", [self.photometric]),
            277: ("H", [self.samples]),
            284: ("H", [2 if self.apart else 1]),
            where[0][0]: ("I", [across]),
            where[0][1]: ("I", [down]),
            where[1][0]: (word, offsets),
            where[1][1]: (word, sizes),
            **self.tags,
        }
        return {code: value for code, value in sorted((code, value) for code, value in fields.items() if code is not None)}


def write(path: Path, pages: Sequence[Page], big: bool = False, order: str = "<") -> Path:
    """Write a file of these directories, in their order."""
    mark = b"II" if order == "<" else b"MM"
    out = bytearray(mark + struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 0) if big else (42, 0))))
    link, word = len(out) - (8 if big else 4), "Q" if big else "I"
    for page in pages:
        offsets, sizes = [], []
        for number, data in enumerate(page.tiles):
            offset, size = page.wrong.get(number, (None, None))
            offsets.append((len(out) if data else 0) if offset is None else offset)
            sizes.append(len(data) if size is None else size)
            out += data + bytes(len(data) % 2)
        directory = bytearray()
        entries = page.entries(offsets, sizes, word)
        for code, (kind, values) in entries.items():
            count = len(values)
            packed = values if isinstance(values, bytes) else struct.pack(f"{order}{count}{kind}", *values)
            if len(packed) > len(struct.pack(word, 0)):
                place = struct.pack(order + word, len(out))
                out += packed + bytes(len(packed) % 2)
            else:
                place = packed.ljust(8 if big else 4, b"\0")
            number = {"H": 3, "I": 4, "Q": 16, "s": 2, "B": 7}[kind]
            directory += struct.pack(order + "HH" + word, code, number, count) + place
        struct.pack_into(order + word, out, link, len(out))
        out += struct.pack(order + ("Q" if big else "H"), len(entries)) + directory
        link = len(out)
        out += bytes(8 if big else 4)
    path.write_bytes(out)
    return path


def cut_tiles(image: UInt8Array, tile: tuple[int, int]) -> Iterator[UInt8Array]:
    """Row by row; those at the edge go on with the image's last pixels."""
    (width, height), (rows, columns) = tile, image.shape[:2]
    down, across = -(-rows // height), -(-columns // width)
    pad = ((0, down * height - rows), (0, across * width - columns), (0, 0))
    whole = np.pad(image, pad, mode="edge")
    for y in range(0, down * height, height):
        for x in range(0, across * width, width):
            yield np.ascontiguousarray(whole[y : y + height, x : x + width])


@dataclass(frozen=True)
class Kind:
    """How tiles are kept."""

    encode: Encode
    compression: int = NONE
    photometric: int = RGB
    samples: int = 3
    apart: bool = False
    tags: Tags = field(default_factory=dict)
    tables: bool = False
    """JPEG: tables stand apart."""

    def page(self, image: UInt8Array, tile: tuple[int, int], tags: Tags | None = None) -> Page:
        """An image, (height, width, 3) uint8, as a directory."""
        tiles = list(cut_tiles(image, tile))
        if self.samples == 1:
            encoded = [self.encode(part[..., 1]) for part in tiles]
        elif self.apart:
            encoded = [self.encode(np.ascontiguousarray(part[..., colour])) for colour in range(3) for part in tiles]
        else:
            encoded = [self.encode(part) for part in tiles]
        more = dict(self.tags)
        if self.tables:
            more[347] = ("B", jpeg_parts(encoded[0])[0])
            encoded = [jpeg_parts(stream)[1] for stream in encoded]
        extent = image.shape[1], image.shape[0]
        return Page(
            extent, tile, encoded, self.compression, self.photometric, self.samples, 8, self.apart, {**more, **(tags or {})}
        )


def pyramid(kind: Kind, images: Sequence[UInt8Array], tile: tuple[int, int]) -> list[Page]:
    """A directory for each level, all but the first of reduced resolution."""
    return [kind.page(image, tile, {254: ("I", [int(number > 0)])}) for number, image in enumerate(images)]


def aperio(pages: Sequence[Page], strips: Page) -> list[Page]:
    """The directories of a pyramid as Aperio has them: a thumbnail as the second, a label and a macro at the end."""
    first, *others = (replace(page, tags={**page.tags, 270: ("s", APERIO)}) for page in pages)
    thumbnail, label, macro = (replace(strips, tags={270: ("s", APERIO), 254: ("I", [kind])}) for kind in (0, 1, 9))
    return [first, thumbnail, *others, label, macro]


def strips(image: UInt8Array) -> Page:
    """An image that is not tiled."""
    return Page((image.shape[1], image.shape[0]), None, [image.tobytes()])


# JPEG


def segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, segment) of what stands before the scan; the last is the scan, and all that follows."""
    place = 2
    while stream[place + 1] != 0xDA:
        size = int.from_bytes(stream[place + 2 : place + 4], "big")
        yield stream[place + 1], stream[place : place + 2 + size]
        place += 2 + size
    yield 0xDA, stream[place:]


def without(stream: bytes, *markers: int) -> bytes:
    """A stream without these segments."""
    return stream[:2] + b"".join(segment for marker, segment in segments(stream) if marker not in markers)


def jpeg_parts(stream: bytes) -> tuple[bytes, bytes]:
    """(tables, stream without them)."""
    tables = b"".join(segment for marker, segment in segments(stream) if marker in (0xDB, 0xC4))
    return b"\xff\xd8" + tables + b"\xff\xd9", without(stream, 0xDB, 0xC4)


def jpeg(subsampling: str = "444", quality: int = 80) -> Encode:
    """YCbCr with JFIF's marker."""
    return lambda tile: simplejpeg.encode_jpeg(tile, quality, colorsubsampling=subsampling)


def rgb_jpeg(tile: UInt8Array) -> bytes:
    """RGB with Adobe's marker."""
    return bytes(imagecodecs.jpeg8_encode(tile, 80, colorspace="rgb", outcolorspace="rgb"))


def grey_jpeg(tile: UInt8Array) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(tile)[..., None], 80, "GRAY", "Gray")


JFIF = b"\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0"


# JPEG 2000


def jpeg2000(tile: UInt8Array, lossless: bool = False) -> bytes:
    """Three samples, transformed among themselves."""
    return bytes(imagecodecs.jpeg2k_encode(tile, 0 if lossless else 35, codecformat="j2k", mct=True))


def jpeg2000_planes(planes: Sequence[UInt8Array]) -> bytes:
    """Three samples as they are, without loss; the second and third may have half the width.

    Streams of one sample each are laid end to end, which is what the fifth progression (sample by sample) is.
    Source: ITU-T T.800, annexes A and B.
    """
    height, width = planes[0].shape
    bodies, wavelet = [], b""
    for plane in planes:
        stream = bytes(imagecodecs.jpeg2k_encode(plane, 0, codecformat="j2k", reversible=True, resolutions=3))
        head = stream.index(b"\xff\x90")
        wavelet = stream[stream.index(b"\xff\x52") : stream.index(b"\xff\x64")]
        bodies.append(stream[stream.index(b"\xff\x93", head) + 2 : -2])
    sample_by_sample = wavelet[:5] + b"\4" + wavelet[6:]
    sizes = struct.pack(">HH8IH", 47, 0, width, height, 0, 0, width, height, 0, 0, 3)
    ratios = b"".join(bytes([7, width // plane.shape[1], 1]) for plane in planes)
    body = b"".join(bodies)
    part = struct.pack(">HHHIBB", 0xFF90, 10, 0, 14 + len(body), 0, 1)
    return b"\xff\x4f\xff\x51" + sizes + ratios + sample_by_sample + part + b"\xff\x93" + body + b"\xff\xd9"


def half_chroma(tile: UInt8Array) -> bytes:
    """The first sample whole, the others at half the width."""
    return jpeg2000_planes([tile[..., 0], *(np.ascontiguousarray(tile[:, ::2, colour]) for colour in (1, 2))])


# the others


def difference(tile: UInt8Array) -> UInt8Array:
    """TIFF's horizontal predictor, along the last but one axis, or the last of two."""
    axis = 1
    first = np.take(tile, [0], axis)
    return np.concatenate([first, np.diff(tile, axis=axis)], axis)


def _bytes(codec: Callable[..., bytes], *options: object) -> Encode:
    return lambda tile: bytes(codec(tile.tobytes(), *options))


_PREDICTED: Tags = {317: ("H", [2])}
_lzw, _deflate, _zstd = _bytes(imagecodecs.lzw_encode), _bytes(imagecodecs.zlib_encode), _bytes(imagecodecs.zstd_encode)

KINDS = {
    "none": Kind(np.ndarray.tobytes),
    "lzw": Kind(_lzw, LZW),
    "lzw predicted": Kind(lambda tile: _lzw(difference(tile)), LZW, tags=_PREDICTED),
    "deflate": Kind(_deflate, DEFLATE),
    "deflate, its old number": Kind(_deflate, OLD_DEFLATE),
    "deflate predicted": Kind(lambda tile: _deflate(difference(tile)), DEFLATE, tags=_PREDICTED),
    "zstd": Kind(_zstd, ZSTD),
    "zstd predicted": Kind(lambda tile: _zstd(difference(tile)), ZSTD, tags=_PREDICTED),
    "packbits": Kind(lambda tile: bytes(imagecodecs.packbits_encode(tile.reshape(len(tile), -1), axis=-1)), PACKBITS),
    "none, colours apart": Kind(np.ndarray.tobytes, apart=True),
    "deflate predicted, colours apart": Kind(lambda tile: _deflate(difference(tile)), DEFLATE, apart=True, tags=_PREDICTED),
    "zstd, colours apart": Kind(_zstd, ZSTD, apart=True),
    "grey": Kind(np.ndarray.tobytes, photometric=GREY, samples=1),
    "grey lzw predicted": Kind(lambda tile: _lzw(difference(tile)), LZW, GREY, 1, tags=_PREDICTED),
    "jpeg 4:4:4": Kind(jpeg("444"), JPEG, YCBCR),
    "jpeg 4:2:2": Kind(jpeg("422"), JPEG, YCBCR, tags={530: ("H", [2, 1])}),
    "jpeg 4:2:0": Kind(jpeg("420"), JPEG, YCBCR, tags={530: ("H", [2, 2])}),
    "jpeg 4:4:0": Kind(jpeg("440"), JPEG, YCBCR, tags={530: ("H", [1, 2])}),
    "jpeg 4:2:0, no marker": Kind(lambda tile: without(jpeg("420")(tile), 0xE0), JPEG, YCBCR, tags={530: ("H", [2, 2])}),
    "jpeg 4:2:0, tables apart": Kind(jpeg("420"), JPEG, YCBCR, tags={530: ("H", [2, 2])}, tables=True),
    "jpeg 4:2:2, a marker that says RGB": Kind(
        lambda tile: b"\xff\xd8\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0" + without(jpeg("422")(tile), 0xE0)[2:],
        JPEG,
        YCBCR,
        tags={530: ("H", [2, 1])},
    ),
    "jpeg rgb, adobe's marker": Kind(rgb_jpeg, JPEG),
    "jpeg rgb, no marker": Kind(lambda tile: without(rgb_jpeg(tile), 0xEE), JPEG),
    "jpeg rgb, tables apart": Kind(lambda tile: without(rgb_jpeg(tile), 0xEE), JPEG, tables=True),
    "jpeg rgb, jfif's marker": Kind(lambda tile: b"\xff\xd8" + JFIF + without(rgb_jpeg(tile), 0xEE)[2:], JPEG),
    "jpeg that is ycbcr, called rgb": Kind(jpeg("444"), JPEG),
    "jpeg grey": Kind(grey_jpeg, JPEG, GREY, 1),
    "jpeg grey, tables apart": Kind(grey_jpeg, JPEG, GREY, 1, tables=True),
}
"""What OpenSlide reads from TIFF files of any kind, and tiles are decoded of directly."""

APERIO_KINDS = {
    "aperio jpeg 4:2:2": KINDS["jpeg 4:2:2"],
    "aperio jpeg rgb, tables apart": KINDS["jpeg rgb, tables apart"],
    "aperio lzw": KINDS["lzw"],
    "aperio 33005": Kind(jpeg2000, APERIO_RGB),
    "aperio 33005 without loss": Kind(lambda tile: jpeg2000(tile, lossless=True), APERIO_RGB),
    "aperio 33003": Kind(lambda tile: jpeg2000_planes([*np.moveaxis(tile, 2, 0).copy()]), APERIO_YCBCR, YCBCR),
    "aperio 33003, chroma of half the width": Kind(half_chroma, APERIO_YCBCR, YCBCR),
    "aperio 33005, two colours of half the width": Kind(half_chroma, APERIO_RGB),
}


def tissue(size: tuple[int, int], seed: int = 0) -> UInt8Array:
    """(height, width, 3) uint8: spots and noise on white, something that JPEG makes a difference of."""
    random = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7 + c) * np.cos(y / (5 + c)) for c in range(3)], axis=-1)
    noise = random.normal(0, 20, (math.ceil(height / 2), math.ceil(width / 2), 3)).repeat(2, 0).repeat(2, 1)[:height, :width]
    return np.clip(150 + 100 * waves + noise, 0, 255).astype(np.uint8)
