"""Slides to measure on: any size, of the bundled slide's tissue, as scanners write them.

In: a size.  Out: a tiled JPEG pyramid in a cache folder, made once.  Never measures anything.

A piece of the bundled slide's tissue is mirrored to a pattern without seams, which repeats. Its tiles are encoded once, and a
slide of any size is those bytes over and over: a gigapixel takes about a second. Each tile of the slide still lies in the file
on its own, so that readers read, find and decode as many as they would on a real slide.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import openslide
import simplejpeg
import tifffile

BUNDLED = Path(__file__).parent.parent / "examples" / "data" / "CMU-1-Small-Region.svs"
TILE_PX = 256
DOWNSAMPLES = (1, 4, 16)
N_MANY = 40
_QUALITY = 80
_CORNER = (720, 1920)
"""(x, y) of the piece that is taken from the bundled slide: 88 % tissue, on the grid of its own JPEG blocks."""
_PIECE_PX = 1024
_MPP = 0.499
_VERSION = 1
"""Of what is built; another number builds anew."""
_CLASSIC_TIFF_BYTES = 3 << 30
"""A file that may become larger than this has the offsets of 64 bits."""

_LEAST_PX = 4096

UInt8Array = np.ndarray


@cache
def tissue() -> tuple[UInt8Array, ...]:
    """The repeating pattern, at each level: (side, side, 3) uint8, whole tiles."""
    with openslide.OpenSlide(BUNDLED) as slide:
        piece = np.asarray(slide.read_region(_CORNER, 0, (_PIECE_PX, _PIECE_PX)).convert("RGB"))
    wide = np.concatenate([piece, piece[:, ::-1]], axis=1)
    mirrored = np.concatenate([wide, wide[::-1]], axis=0)
    times = -(-TILE_PX * DOWNSAMPLES[-1] // len(mirrored))
    levels = [np.tile(mirrored, (times, times, 1))]
    for finer, coarser in pairwise(DOWNSAMPLES):
        factor = coarser // finer
        side = len(levels[-1]) // factor
        blocks = levels[-1].reshape(side, factor, side, factor, 3)
        levels.append(np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8))
    return tuple(levels)


@cache
def encoded_tiles(level: int) -> tuple[tuple[bytes, ...], ...]:
    """The pattern's tiles at a level as JPEG (YCbCr 4:2:0, quality 80), by row and column."""
    pattern = tissue()[level]
    starts = range(0, len(pattern), TILE_PX)
    return tuple(
        tuple(
            simplejpeg.encode_jpeg(
                np.ascontiguousarray(pattern[y : y + TILE_PX, x : x + TILE_PX]),
                quality=_QUALITY,
                colorsubsampling="420",
            )
            for x in starts
        )
        for y in starts
    )


def write_slide(path: Path, width: int, height: int) -> Path:
    """Write a slide of `width` x `height` px: a pyramid of three levels, JPEG tiles of 256 px."""
    mean_bytes = np.mean([len(tile) for row in encoded_tiles(0) for tile in row])
    big = mean_bytes * 1.1 * width * height / TILE_PX**2 > _CLASSIC_TIFF_BYTES
    with tifffile.TiffWriter(path, bigtiff=bool(big)) as tiff:
        for level, downsample in enumerate(DOWNSAMPLES):
            shape = (max(height // downsample, 1), max(width // downsample, 1), 3)
            tiff.write(
                _tiles(level, shape[0], shape[1]),
                shape=shape,
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=int(level > 0),
                resolution=(1e4 / (_MPP * downsample),) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def _tiles(level: int, height: int, width: int) -> Iterator[bytes]:
    pool = encoded_tiles(level)
    for row in range(-(-height // TILE_PX)):
        tiles = pool[row % len(pool)]
        for column in range(-(-width // TILE_PX)):
            yield tiles[column % len(tiles)]


def parsed_size(text: str) -> tuple[int, int]:
    """(width, height) from WIDTHxHEIGHT. Raises ValueError where it is not that, or too small to measure anything on."""
    width, height = map(int, text.lower().split("x"))
    if min(width, height) < _LEAST_PX:
        raise ValueError(f"a slide of {text} px is too small to measure anything on: at least {_LEAST_PX} px each way")
    return width, height


def default_folder() -> Path:
    """Where slides are kept from one benchmark to the next."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamwsi-benchmark"


@dataclass(frozen=True)
class Slides:
    """The slides of one benchmark, each built when it is first asked for."""

    folder: Path
    width: int
    """Of the large slide, in pixels."""
    height: int

    @property
    def large(self) -> Path:
        """The slide asked for."""
        return self._built(self.width, self.height)

    @property
    def quarter(self) -> Path:
        """A slide of a quarter of its area, for those who would take too long on the large one."""
        return self._built(self.width // 2, self.height // 2)

    @property
    def eighth(self) -> Path:
        """A slide of an eighth of its area."""
        return self._built(self.width // 2, self.height // 4)

    @property
    def many(self) -> list[Path]:
        """Forty slides of together the same area as the large one, as far as whole tiles allow."""
        width, height = (max(side // TILE_PX, 1) * TILE_PX for side in (self.width // 8, self.height // 5))
        return [self._built(width, height, f"-{number:02}") for number in range(N_MANY)]

    @property
    def single(self) -> Path:
        """A slide of one tile: a run over it is all start and end."""
        return self._built(TILE_PX, TILE_PX)

    def _built(self, width: int, height: int, suffix: str = "") -> Path:
        path = self.folder / f"v{_VERSION}-{width}x{height}{suffix}.tif"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")  # one that was broken off is not taken for a slide
            try:
                os.replace(write_slide(part, width, height), path)
            finally:
                part.unlink(missing_ok=True)
        return path


def read_into_page_cache(path: Path) -> None:
    """Read a file once, so that no contestant pays for the disk."""
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(1 << 22)
        while file.readinto(buffer):
            pass
