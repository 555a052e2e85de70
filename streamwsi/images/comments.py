"""A comment inside an image file.

In: the bytes of an image file, and a text.  Out: the bytes of the same image with the text in it.  Never decodes pixels.

PNG has it as the text ``Comment``, JPEG as a COM segment; WebP has no place for one.
Source: PNG (third edition), 11.3.3; ITU-T T.81, B.2.4.5; JFIF 1.02: its APP0 comes first.
"""

from __future__ import annotations

import struct
import zlib

from streamwsi.errors import PieceError
from streamwsi.images.encoding import ImageFormat

_PNG_HEADER_END = 8 + 12 + 13
"""The signature and the first chunk, IHDR, which has 13 bytes."""
_KEYWORD = b"Comment"
_LONGEST_JPEG_BYTES = 65533
_APP0 = b"\xff\xe0"


def with_comment(data: bytes | memoryview, format: ImageFormat, text: str) -> bytes:
    """The file with `text` in it; a WebP as it is.

    Raises PieceError when a JPEG cannot hold so long a text.
    """
    data = bytes(data)
    if format == "png":
        return data[:_PNG_HEADER_END] + _png_text(text) + data[_PNG_HEADER_END:]
    if format == "jpeg":
        encoded = text.encode("utf-8")
        if len(encoded) > _LONGEST_JPEG_BYTES:
            raise PieceError(f"a comment of {len(encoded)} bytes is too long for a JPEG, which takes {_LONGEST_JPEG_BYTES}")
        place = 2 if data[2:4] != _APP0 else 4 + int.from_bytes(data[4:6], "big")
        return data[:place] + b"\xff\xfe" + struct.pack(">H", len(encoded) + 2) + encoded + data[place:]
    return data


def _png_text(text: str) -> bytes:
    try:
        kind, body = b"tEXt", _KEYWORD + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:  # not compressed, no language, no translated keyword
        kind, body = b"iTXt", _KEYWORD + b"\0\0\0\0\0" + text.encode("utf-8")
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
