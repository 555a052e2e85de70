"""What tests compare with: windows by the definition, levels read whole, slides made for the purpose.

Nothing here uses the code under test.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide
from PIL import Image

UInt8Array = npt.NDArray[np.uint8]
RGB = tuple[int, int, int]
WHITE: RGB = (255, 255, 255)

BUNDLED = Path(__file__).parent.parent / "examples" / "data" / "CMU-1-Small-Region.svs"

UNDAMAGED = {
    "aperio/CMU-1-Small-Region.svs": 1,
    "aperio/small.svs": 1,
    "dicom/bone": 1,
    "dicom/camelyon_jpeg": 1,
    "dicom/cmu1_small_region": 1,
    "tiff/CMU-0-small.tiff": 3,
    "tiff/CMU-1-Small-Region-rgb.ome.tiff": 1,
    "tiff/CMU-1-Small-Region.jpeg.tiff": 1,
    "tiff/boxes.tiff": 4,
    "tiff/wsipack_example.tif": 3,
    "tiff/yb10kx5k.zstd.tiff": 5,
}
"""The good slides of the shared folder, and how many levels each has; none of them is larger than 60 Mpx."""

BAD_TILE = ("damaged/CMU-1-badtile67.svs", (1680, 1440, 240, 240))
"""A slide equal to the bundled one but for one tile, which cannot be read: (x, y, width, height)."""


def slide_file(slides: Path, name: str) -> Path:
    """A slide of the shared folder; of a DICOM series, any one file."""
    path = slides / name
    return min(path.glob("*.dcm")) if path.is_dir() else path


def axis_windows(extent: int, kernel: int, stride: int, border: str) -> list[tuple[int, int]]:
    """(start, size) of the windows along one axis, from the table in the design."""
    if border == "crop":
        return [(start, kernel) for start in range(0, extent, stride) if start + kernel <= extent]
    if extent <= kernel:
        return [(0, extent if border == "adaptive" else kernel)]
    if border == "squeeze":
        gaps = math.ceil((extent - kernel) / stride)
        return [(number * (extent - kernel) // gaps, kernel) for number in range(gaps + 1)]
    starts = [0]
    if border == "edge":
        while starts[-1] + stride <= extent - kernel:
            starts.append(starts[-1] + stride)
        if starts[-1] != extent - kernel:
            starts.append(extent - kernel)
        return [(start, kernel) for start in starts]
    while starts[-1] + kernel < extent and starts[-1] + stride < extent:
        starts.append(starts[-1] + stride)
    return [(start, min(kernel, extent - start) if border == "adaptive" else kernel) for start in starts]


def grid_windows(
    extent: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], border: str
) -> list[tuple[int, int, int, int]]:
    """(x, y, width, height) of every window of a level, row-major, in its pixels."""
    columns = axis_windows(extent[0], kernel[0], stride[0], border)
    rows = axis_windows(extent[1], kernel[1], stride[1], border)
    return [(x, y, width, height) for y, height in rows for x, width in columns]


def level_image(path: Path, level: int, background: RGB = WHITE, margin: int = 0) -> UInt8Array:
    """(height, width, 3) uint8: a level read whole through OpenSlide, on background with `margin` pixels around it."""
    found = path.stat()
    pixels = _level_pixels(path, level, background, (found.st_ino, found.st_size, found.st_mtime_ns))
    if not margin:
        return pixels
    height, width = pixels.shape[:2]
    canvas = np.empty((height + 2 * margin, width + 2 * margin, 3), np.uint8)
    canvas[...] = background
    canvas[margin : margin + height, margin : margin + width] = pixels
    return canvas


@functools.lru_cache(maxsize=32)  # most levels are read by the tests of every reader
def _level_pixels(path: Path, level: int, background: RGB, version: tuple[int, int, int]) -> UInt8Array:
    """A level read whole, read-only: the next caller gets the same."""
    with openslide.OpenSlide(path) as slide:
        pixels = slide.read_region((0, 0), level, slide.level_dimensions[level])
    canvas = Image.new("RGB", pixels.size, background)
    canvas.paste(pixels, mask=pixels.getchannel("A"))
    image = np.array(canvas)
    image.flags.writeable = False
    return image


def noise_levels(sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[UInt8Array]:
    """Levels of noise, one for each (width, height): what shows the slightest resampling."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (height, width, 3), np.uint8) for width, height in sizes]


def write_tiff(
    path: Path, levels: Sequence[UInt8Array], tile: int = 64, missing: Collection[tuple[int, int, int]] = ()
) -> Path:
    """Write a pyramid as an uncompressed, tiled RGB TIFF; the tiles in `missing`, (level, column, row), have no data.

    Source: TIFF 6.0, sections 2 and 15.
    """
    out = bytearray(struct.pack("<2sHI", b"II", 42, 0))
    link = 4  # where the offset of the next directory is to stand
    for level, image in enumerate(levels):
        height, width = image.shape[:2]
        down, across = -(-height // tile), -(-width // tile)
        padded = np.zeros((down * tile, across * tile, 3), np.uint8)
        padded[:height, :width] = image
        offsets, counts = [], []
        for row in range(down):
            for column in range(across):
                data = padded[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile].tobytes()
                if (level, column, row) in missing:
                    data = b""
                offsets.append(len(out) if data else 0)
                counts.append(len(data))
                out += data
        entries = bytearray()
        fields = (
            (254, "I", (int(level > 0),)),  # reduced resolution
            (256, "I", (width,)),
            (257, "I", (height,)),
            (258, "H", (8, 8, 8)),  # bits
            (259, "H", (1,)),  # no compression
            (262, "H", (2,)),  # RGB
            (277, "H", (3,)),  # samples
            (284, "H", (1,)),  # interleaved
            (322, "I", (tile,)),
            (323, "I", (tile,)),
            (324, "I", offsets),
            (325, "I", counts),
        )
        for tag, kind, values in fields:
            packed = struct.pack(f"<{len(values)}{kind}", *values)
            if len(packed) > 4:
                out += bytes(len(out) % 2)
                place = struct.pack("<I", len(out))
                out += packed
            else:
                place = packed.ljust(4, b"\0")
            entries += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + place
        out += bytes(len(out) % 2)
        struct.pack_into("<I", out, link, len(out))
        out += struct.pack("<H", len(fields)) + entries
        link = len(out)
        out += bytes(4)
    path.write_bytes(out)
    return path
