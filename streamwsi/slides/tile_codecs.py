"""How the tiles of one directory of a TIFF file become pixels, the same to the last bit as OpenSlide makes them.

In: a directory of a TIFF file.  Out: a decoder: encoded parts of a tile into (tile height, tile width, 3) uint8, RGB.  Never
reads a file. Decoders may be called from several threads at once; the work is done without the interpreter's lock.

JPEG goes through libjpeg-turbo (simplejpeg) with the settings that OpenSlide uses: the accurate integer transform, and smooth
upsampling of the chroma. JPEG 2000 is imagecodecs' (and Pillow's, where chroma is stored smaller), everything else tifffile's.
Source: OpenSlide 4, ``openslide-decode-tiff.c``, ``openslide-decode-jp2k.c``; JPEG: ITU-T T.81, annex B; Adobe's marker:
ITU-T T.872, section 6.5.3; JPEG 2000: ITU-T T.800, annexes A.5.1 and I.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from streamwsi.chunks import UInt8Array

_Decode = Callable[[Sequence[bytes], UInt8Array], None]

_LOSSLESS = (
    tifffile.COMPRESSION.NONE,
    tifffile.COMPRESSION.LZW,
    tifffile.COMPRESSION.ADOBE_DEFLATE,
    tifffile.COMPRESSION.DEFLATE,
    tifffile.COMPRESSION.PACKBITS,
    tifffile.COMPRESSION.ZSTD,
)
_JPEG2000_YCBCR, _JPEG2000_RGB = 33003, 33005
"""Aperio's own compressions."""

_JPEG_START, _JPEG_END, _JPEG_SCAN = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"
_JPEG_APP0, _JPEG_APP14 = 0xE0, 0xEE
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_RGB, _YCBCR = (b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + transform for transform in (b"\x00", b"\x01"))
"""Adobe's marker; its last byte says how the colours are transformed."""
_JPEG2000_START = b"\xff\x4f\xff\x51"


class UnfitError(Exception):
    """Tiles that are not decoded here, and why; OpenSlide may read them."""


ROOM_BYTES = 1 << 12
"""What is left before a tile's bytes, so that other tables can stand there."""


class TileDecoder(Protocol):
    """Tiles of one directory. Raises whatever its codec raises for what it cannot decode."""

    def decode(self, parts: Sequence[bytes], out: UInt8Array) -> None:
        """The parts of a tile (one, or one for each colour) into `out`, which is C-contiguous."""

    def decode_within(self, buffer: bytearray, start: int, stop: int, out: UInt8Array) -> None:
        """The same of a tile of one part, from `start` to `stop` of a buffer. What lies before `stop` may be overwritten."""


class CopyingDecoder:
    """A codec that is given the bytes of a tile, and nothing around them."""

    def __init__(self, decode: _Decode) -> None:
        self._decode = decode

    def decode(self, parts: Sequence[bytes], out: UInt8Array) -> None:
        """See :meth:`TileDecoder.decode`."""
        self._decode(parts, out)

    def decode_within(self, buffer: bytearray, start: int, stop: int, out: UInt8Array) -> None:
        """See :meth:`TileDecoder.decode_within`."""
        self._decode([bytes(memoryview(buffer)[start:stop])], out)


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
    samples, photometric = directory.samplesperpixel, tifffile.PHOTOMETRIC(directory.photometric)
    if samples not in (1, 3) or directory.extrasamples:
        raise UnfitError(f"{samples} samples per pixel, expected 3 (colours) or 1 (grey)")
    if (photometric == tifffile.PHOTOMETRIC.MINISBLACK) != (samples == 1):
        raise UnfitError(f"its colours are {photometric.name}, of {samples} samples per pixel")
    whole = directory.planarconfig == tifffile.PLANARCONFIG.CONTIG
    if whole and directory.compression == tifffile.COMPRESSION.JPEG:
        return _JpegDecoder(photometric, directory.jpegtables)
    if whole and samples == 3 and directory.compression in (_JPEG2000_YCBCR, _JPEG2000_RGB):
        return CopyingDecoder(_decode_jpeg2000_ycbcr if directory.compression == _JPEG2000_YCBCR else _decode_jpeg2000)
    if directory.compression not in _LOSSLESS:
        raise UnfitError(f"its compression is {directory.compression!s}{'' if whole else ', each colour apart'}")
    if photometric not in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK):
        raise UnfitError(f"its colours are {photometric.name}, compressed as {directory.compression!s}")
    return CopyingDecoder(_through_tifffile(directory.decode, raw=directory.compression == tifffile.COMPRESSION.NONE))


class _JpegDecoder:
    """Tiles that are JPEG streams, whose tables may stand apart.

    TIFF says what the colours are, whatever the stream itself says of them; libjpeg would believe the stream, or guess. So a
    stream is given another head: what stands before its scan, with the tables, without what it says of colours.
    """

    def __init__(self, photometric: tifffile.PHOTOMETRIC, tables: bytes | None) -> None:
        colours = {tifffile.PHOTOMETRIC.RGB: _RGB, tifffile.PHOTOMETRIC.YCBCR: _YCBCR, tifffile.PHOTOMETRIC.MINISBLACK: b""}
        if photometric not in colours:
            raise UnfitError(f"the colours of its JPEG tiles are {photometric.name}")
        self._samples = 1 if photometric == tifffile.PHOTOMETRIC.MINISBLACK else 3
        self._start = _JPEG_START + (_jpeg_header(tables).segments if tables else b"") + colours[photometric]
        self._known = b"", b""
        """What the last stream began with, up to the mark of its scan, and what takes the place of that. Tiles of a level
        mostly have one head; threads may replace it by each other's."""

    def decode_within(self, buffer: bytearray, start: int, stop: int, out: UInt8Array) -> None:
        """See :meth:`TileDecoder.decode_within`. The other head is written before the scan, which is not copied."""
        found, head = self._known
        if not found or not buffer.startswith(found, start, stop):
            found, head = self._known = self._heads(bytes(memoryview(buffer)[start:stop]), out.shape)
        scan = start + len(found)
        if scan < len(head):  # no room
            buffer, scan, stop = bytearray(len(head)) + buffer[scan:stop], len(head), len(head) + stop - scan
        buffer[scan - len(head) : scan] = head
        stream = memoryview(buffer)[scan - len(head) : stop]
        simplejpeg.decode_jpeg(stream, "RGB", fastdct=False, fastupsample=False, buffer=out, strict=True)

    def decode(self, parts: Sequence[bytes], out: UInt8Array) -> None:
        """See :meth:`TileDecoder.decode`."""
        (data,) = parts
        self.decode_within(bytearray(ROOM_BYTES) + data, ROOM_BYTES, ROOM_BYTES + len(data), out)

    def _heads(self, data: bytes, shape: tuple[int, ...]) -> tuple[bytes, bytes]:
        """A stream's head and the other. Raises ValueError unless it is a tile of this shape."""
        header = _jpeg_header(data)
        if header.frame != (8, *shape[:2], self._samples):
            raise ValueError(
                f"a tile is {header.frame} (bits, height, width, samples), expected (8, {shape[:2]}, {self._samples})"
            )
        scan = data[header.size : header.size + 2]
        return data[: header.size] + scan, self._start + header.segments + scan


class _JpegHeader(NamedTuple):
    """What stands before the scan of a JPEG stream."""

    segments: bytes
    """But for those that speak of colours."""
    frame: tuple[int, int, int, int] | None
    """(bits, height, width, samples); None where the stream holds tables only."""
    size: int
    """Bytes of the stream before its scan."""


def _jpeg_header(stream: bytes) -> _JpegHeader:
    if stream[:2] != _JPEG_START:
        raise ValueError(f"a JPEG stream begins with {stream[:2]!r}")
    segments, frame, place = [], None, 2
    while stream[place : place + 2] not in (_JPEG_SCAN, _JPEG_END):
        mark, marker, size = struct.unpack_from(">BBH", stream, place)
        if mark != 0xFF:
            raise ValueError(f"byte {place} of a JPEG stream is {mark:#x}, where a marker should stand")
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker in _JPEG_FRAMES:
            frame = struct.unpack_from(">BHHB", stream, place + 4)
        segment = stream[place : place + 2 + size]
        if not _says_colours(marker, segment[4:]):
            segments.append(segment)
        place += 2 + size
    return _JpegHeader(b"".join(segments), frame, place)


def _says_colours(marker: int, content: bytes) -> bool:
    """Whether a segment is JFIF's or Adobe's, as it should be; libjpeg complains about others, and so does OpenSlide."""
    if marker == _JPEG_APP0:
        return content[:6] == b"JFIF\0\1"
    return marker == _JPEG_APP14 and content[:5] == b"Adobe" and content[11:12] in (b"\0", b"\1")


def _through_tifffile(decode_segment: Callable[..., Any], raw: bool) -> _Decode:
    """Tiles without loss: all samples together, or a part for each."""

    def decode(parts: Sequence[bytes], out: UInt8Array) -> None:
        for number, data in enumerate(parts):
            pixels = decode_segment(data, 0)[0]
            if pixels.shape[:3] != (1, *out.shape[:2]):
                raise ValueError(f"a tile is {pixels.shape}, expected (1, {out.shape[0]}, {out.shape[1]}, …)")
            if raw and pixels.size != len(data):
                raise ValueError(f"a tile has {len(data)} bytes, expected {pixels.size}")  # libtiff refuses it
            if len(parts) == 1:
                out[...] = pixels[0]  # grey is spread over the three
            else:
                out[..., number] = pixels[0, ..., 0]

    return decode


def _decode_jpeg2000(parts: Sequence[bytes], out: UInt8Array) -> None:
    """Samples as they are stored. Chroma may have half the width, the only other size that Aperio's have."""
    import imagecodecs

    (data,) = parts
    if data[:4] != _JPEG2000_START:
        raise ValueError(f"a JPEG 2000 stream begins with {data[:4]!r}")
    width, height, left, top, part_w, part_h = struct.unpack_from(">6I", data, 8)
    (samples,) = struct.unpack_from(">H", data, 40)
    if (height - top, width - left, samples, left, top) != (*out.shape, 0, 0):
        raise ValueError(f"a tile is {width} x {height} px of {samples} samples from ({left}, {top}), expected {out.shape}")
    kinds = struct.unpack_from("9B", data, 42)  # of each sample: bits less 1, pixels across, pixels down
    if kinds == (7, 1, 1) * 3:
        out[...] = imagecodecs.jpeg2k_decode(data)
    elif kinds == (7, 1, 1, 7, 2, 1, 7, 2, 1) and width % 2 == 0 and part_w >= width and part_h >= height:
        # Decoders guess that such a stream is YCbCr, and convert it, unless a file around it says that it is RGB.
        with Jpeg2KImageFile(io.BytesIO(_as_jp2(data, width, height))) as picture:
            out[...] = np.asarray(picture)
    else:
        raise ValueError(f"the samples of a tile are {kinds}, in parts of {part_w} x {part_h} px")


def _as_jp2(stream: bytes, width: int, height: int) -> bytes:
    """A JPEG 2000 stream as a file that says that its three samples are RGB."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(content), kind) + content

    header = box(b"ihdr", struct.pack(">IIH4B", height, width, 3, 7, 7, 0, 0)) + box(b"colr", b"\1\0\0" + struct.pack(">I", 16))
    signature, kind = box(b"jP  ", b"\r\n\x87\n"), box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return signature + kind + box(b"jp2h", header) + box(b"jp2c", stream)


def _decode_jpeg2000_ycbcr(parts: Sequence[bytes], out: UInt8Array) -> None:
    """Luma and chroma, by the tables that OpenSlide has."""
    _decode_jpeg2000(parts, out)
    luma = out[..., 0].astype(np.int16)
    blue, red = out[..., 1].copy(), out[..., 2].copy()
    out[..., 0] = np.clip(luma + _RED_OF_CR[red], 0, 255)
    out[..., 1] = np.clip(luma + ((_GREEN_OF_CB[blue] + _GREEN_OF_CR[red]) >> 16), 0, 255)
    out[..., 2] = np.clip(luma + _BLUE_OF_CB[blue], 0, 255)


def _chroma_tables() -> tuple[Any, Any, Any, Any]:
    """ITU-R BT.601, each entry rounded on its own; green, of two parts, in 16-bit fixed point with the half for its rounding.

    Source: OpenSlide 4, ``make-tables.c``; libjpeg's differ from them by up to one grey level.
    """
    centred = np.arange(256) - 128

    def rounded(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int32]:
        away_from_zero: npt.NDArray[np.int32] = np.trunc(values + np.copysign(0.5, values)).astype(np.int32)
        return away_from_zero

    return (
        rounded(1.402 * centred).astype(np.int16),
        rounded(65536 * (0.5 - 0.34414 * centred)),
        rounded(65536 * -0.71414 * centred),
        rounded(1.772 * centred).astype(np.int16),
    )


_RED_OF_CR, _GREEN_OF_CB, _GREEN_OF_CR, _BLUE_OF_CB = _chroma_tables()
