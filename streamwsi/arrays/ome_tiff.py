"""Write a picture as a pyramidal OME-TIFF.

In: a picture, block by block.  Out: a file that appears whole.  Never holds more than some blocks; smaller levels lie on the
disk, uncompressed, until they are written.

Levels are SubIFDs, as the specification says; OpenSlide reads the finest one.
Source: OME-TIFF, https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html; TIFF 6.0, section 15.
"""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import tifffile

from streamwsi._version import __version__
from streamwsi.arrays.picture import (
    BlockSource,
    Picture,
    Spool,
    block_spans,
    checked_channels,
    checked_mpp,
    checked_target,
    half,
    halved,
    level_sizes,
)
from streamwsi.arrays.sources import AnyArray
from streamwsi.errors import OutputError

_UM_PER_CM = 10_000
_BIG_BYTES = 1 << 31
"""Files whose pixels take more may pass the 4 GiB of a classic TIFF, in the worst case."""
_BUFFER_BYTES = 1 << 24
"""Of tiles that are compressed at once."""
_UUID = re.compile(r"urn:uuid:[-0-9a-f]{36}")


def write_ome_tiff(
    path: str | os.PathLike[str],
    source: Any | BlockSource | Iterable[AnyArray],
    *,
    axes: str | None = None,
    shape: Sequence[int] | None = None,
    dtype: npt.DTypeLike | None = None,
    mpp: float | tuple[float, float] | None = None,
    channels: Sequence[str] | None = None,
    block_px: int = 512,
    uuid: UUID | None = None,
) -> Path:
    """Write a picture as a tiled OME-TIFF with a pyramid, laid out as the specification, and so QuPath, want it.

    Parameters
    ----------
    path
        Ends in ``.tif`` or ``.tiff`` (best in ``.ome.tiff``); must not exist.
    source, axes, shape, dtype, mpp, channels
        As for :func:`write_ome_zarr`.
    block_px
        Side of a tile, a multiple of 16. The last level is not larger.
    uuid
        What the file calls itself, where the same picture is to be the same file to the last byte; None: a new one.

    Each level is half of the one before, rounded up: means of 2 × 2 pixels, NaN left out of them. Three channels of uint8 are
    red, green and blue, which OpenSlide reads too (the finest level); others are a page each. Compression is Deflate, lossless.
    While it writes, levels lie uncompressed beside the file: a third of the picture for RGB and a single channel, four thirds
    for other channels.

    Returns the path. Raises ConfigError for what cannot be written, OutputError when `path` exists, ArrayError for blocks that
    are not as said.
    """
    picture = Picture(source, axes, shape, dtype, block_px)
    named = checked_channels(channels, picture)
    resolution = checked_mpp(mpp)
    target, partial = checked_target(path, (".tif", ".tiff"))
    sizes = level_sizes(picture.height, picture.width, block_px)
    n_bytes = 4 * picture.height * picture.width * picture.channels * picture.dtype.itemsize // 3
    try:
        with (
            tempfile.TemporaryDirectory(prefix=f"{partial.stem}.", dir=target.parent) as folder,
            tifffile.TiffWriter(partial, bigtiff=n_bytes > _BIG_BYTES, ome=True) as file,
        ):
            in_planes = picture.channels > 1 and not picture.is_rgb
            spools = {
                n: Spool(Path(folder, str(n)), size, picture, block_px // 2 if n else block_px)
                for n, size in enumerate(sizes)
                if n or in_planes
            }
            if in_planes:  # the file wants one channel after the other, blocks come with all of them
                for spans, block in picture.blocks():
                    spools[0].write(spans, block)
            for number, size in enumerate(sizes):
                if number in spools:
                    tiles = _tiles_of(spools[number], picture)
                    if number + 1 in spools:
                        spools[number].halve_into(spools[number + 1], block_px)
                else:
                    tiles = _passing_tiles(picture, spools.get(number + 1))
                # not the generator itself, which would be closed: whether there is a block too many is seen behind its last
                file.write(itertools.chain(tiles), **_options(picture, number, size, len(sizes), resolution, named, uuid))
                next(tiles, None)
        partial.rename(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return target


def set_uuid(path: Path, uuid: UUID) -> None:
    """Change what a file of :func:`write_ome_tiff` calls itself, in place; it must have been given a name."""
    text, n_found = _UUID.subn(uuid.urn, str(tifffile.tiffcomment(path)))
    if n_found != 1:
        raise OutputError(f"{path} calls itself something {n_found} times, expected once")
    tifffile.tiffcomment(path, text.encode())


def _passing_tiles(picture: Picture, coarser: Spool | None) -> Iterator[AnyArray]:
    """The tiles of the finest level as they come; the next level is made of them on the way."""
    for spans, block in picture.blocks():
        if coarser is not None:
            coarser.write(half(spans), halved(block))
        yield _padded(block if picture.is_rgb else block[..., 0], picture.block_px)


def _tiles_of(spool: Spool, picture: Picture) -> Iterator[AnyArray]:
    """The tiles of a level, plane by plane."""
    for planes in [slice(None)] if picture.is_rgb else [slice(n, n + 1) for n in range(picture.channels)]:
        for rows, columns in block_spans(*spool.shape[1:], picture.block_px):
            block = spool[planes, rows, columns]
            yield _padded(np.moveaxis(block, 0, -1) if picture.is_rgb else block[0], picture.block_px)


def _padded(tile: AnyArray, side: int) -> AnyArray:
    """A whole tile: at the edge, the last row and column are repeated."""
    margins = [(0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0)][: tile.ndim]
    return np.ascontiguousarray(np.pad(tile, margins, mode="edge"))


def _options(
    picture: Picture,
    number: int,
    size: tuple[int, int],
    levels: int,
    mpp: tuple[float, float] | None,
    named: list[str] | None,
    uuid: UUID | None,
) -> dict[str, Any]:
    """What tifffile is told of a level."""
    planes = picture.channels if picture.channels > 1 and not picture.is_rgb else 0
    options: dict[str, Any] = {
        "shape": (*size, 3) if picture.is_rgb else (planes, *size) if planes else size,
        "dtype": picture.dtype,
        "tile": (picture.block_px, picture.block_px),
        "photometric": "rgb" if picture.is_rgb else "minisblack",
        "compression": "adobe_deflate",
        "buffersize": _BUFFER_BYTES,
    }
    if mpp is not None:
        across, down = (side * 2**number for side in mpp)
        options |= {"resolution": (_UM_PER_CM / across, _UM_PER_CM / down), "resolutionunit": "CENTIMETER"}
    if number:
        return {**options, "subfiletype": 1}  # a reduced image
    metadata: dict[str, Any] = {"axes": "YXS" if picture.is_rgb else "CYX" if planes else "YX"}
    if mpp is not None:
        metadata |= {"PhysicalSizeX": mpp[0], "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp[1], "PhysicalSizeYUnit": "µm"}
    if uuid is not None:
        metadata["UUID"] = uuid.urn
    if named is not None and not picture.is_rgb:
        metadata["Channel"] = {"Name": named if planes else named[0]}
    return {**options, "subifds": levels - 1, "metadata": metadata, "software": f"streamwsi {__version__}"}
