"""The colours of a map as a pyramidal TIFF that viewers show over the slide.

In: a map and a scale.  Out: a file of the slide's extent, written tile by tile: memory follows the map, not the file.  Never
opens a slide.

Each level is a directory of its own with RGB tiles, deflated (colours stay exact): what OpenSlide calls generic-tiff, and
QuPath opens through it. Transparency would become black there, so what has no colour is white.

Source: OpenSlide, ``openslide-vendor-generic-tiff.c``; QuPath, ``OpenslideImageServer.readTile``; TIFF 6.0, sections 8 and 15.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from streamwsi._version import __version__
from streamwsi.chunks import UInt8Array
from streamwsi.maps.colours import Scale
from streamwsi.maps.raster import Map, halved

TILE_PX = 512
_SMALLEST_PX = 512
"""Levels follow until one is not larger than this."""
_UM_PER_CM = 10_000
_BIG_BYTES = 1 << 31
"""Files whose pixels take more may pass the 4 GiB of a classic TIFF, in the worst case."""


def write_pyramid(path: Path, heat: Map, scale: Scale, width_px: int) -> None:
    """Write the first channel of `heat` in the colours of `scale`.

    The file is `width_px` wide (not wider than the slide), and high in proportion. It covers the slide exactly, each axis by
    itself: its pixel is ``slide width / file width`` level-0 pixels wide and ``slide height / file height`` high, and so says
    its resolution, where the slide has one. The description names column, range and colour map.
    """
    sizes = level_sizes(heat.plan.extent_l0, width_px)
    whole_bytes = 4 * sizes[0][0] * sizes[0][1]
    with tifffile.TiffWriter(path, bigtiff=whole_bytes > _BIG_BYTES) as file:
        for number, (width, height) in enumerate(sizes):
            while len(heat.x_edges) - 1 >= 2 * width and len(heat.y_edges) - 1 >= 2 * height:
                heat = halved(heat)
            file.write(
                _tiles(heat, scale, (width, height)),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="adobe_deflate",
                subfiletype=int(number > 0),  # a reduced image
                description=_description(heat, scale) if number == 0 else None,
                software=f"streamwsi {__version__}",
                metadata=None,
                **_resolution(heat, (width, height)),
            )


def level_sizes(extent_l0: tuple[int, int], width_px: int) -> list[tuple[int, int]]:
    """(width, height) of each level, the finest first; each half of the one before, rounded up, so that none is empty."""
    width_px = min(width_px, extent_l0[0])
    sizes = [(width_px, max(1, round(extent_l0[1] * width_px / extent_l0[0])))]
    while max(sizes[-1]) > _SMALLEST_PX:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def cells_at(n_px: int, edges_l0: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """The cell in which the centre of each of `n_px` pixels lies, (n_px,), where they cover the slide."""
    centres_l0 = (np.arange(n_px) + 0.5) * edges_l0[-1] / n_px
    cells: npt.NDArray[np.intp] = np.searchsorted(edges_l0, centres_l0, side="right") - 1
    return cells


def _tiles(heat: Map, scale: Scale, size: tuple[int, int]) -> Iterator[UInt8Array]:
    """The tiles of a level, row by row; those at the edge are filled with their last row and column."""
    colours = scale.rgb(heat.values[..., 0])
    rows = _padded(cells_at(size[1], heat.y_edges))
    columns = _padded(cells_at(size[0], heat.x_edges))
    for top in range(0, len(rows), TILE_PX):
        band = colours[rows[top : top + TILE_PX]]
        for left in range(0, len(columns), TILE_PX):
            yield np.ascontiguousarray(band[:, columns[left : left + TILE_PX]])


def _padded(cells: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    return np.pad(cells, (0, -len(cells) % TILE_PX), mode="edge")


def _resolution(heat: Map, size: tuple[int, int]) -> dict[str, object]:
    """Pixels per centimetre, where the slide's resolution is known: as it says, so that both have the same extent."""
    if heat.plan.mpp is None:
        return {}
    across, down = (
        _UM_PER_CM / (mpp * extent / n_px) for mpp, extent, n_px in zip(heat.plan.mpp, heat.plan.extent_l0, size, strict=True)
    )
    return {"resolution": (across, down), "resolutionunit": "CENTIMETER"}


def _description(heat: Map, scale: Scale) -> str:
    text = f"streamwsi map of {heat.columns[0]}: {scale.cmap} from {scale.low:g} to {scale.high:g}"
    text += "" if scale.threshold is None else f", white below {scale.threshold:g}"
    return (text + ", white where there is no value").encode("ascii", "replace").decode()
