"""Write a picture as an OME-Zarr image, with its levels.

In: a picture, block by block.  Out: a folder that appears whole.  Never holds more than four blocks.

Source: Next-generation file formats (NGFF), https://ngff.openmicroscopy.org, versions 0.4 and 0.5.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamwsi.arrays.picture import (
    BlockSource,
    Picture,
    Spans,
    block_spans,
    checked_channels,
    checked_mpp,
    checked_target,
    half,
    halved,
    level_sizes,
)
from streamwsi.arrays.sources import AnyArray
from streamwsi.arrays.zarr_library import needed_zarr, zarr_major
from streamwsi.config import one_of
from streamwsi.errors import ConfigError

Version = Literal["0.4", "0.5"]
_COLOURS = (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))


def write_ome_zarr(
    path: str | os.PathLike[str],
    source: Any | BlockSource | Iterable[AnyArray],
    *,
    axes: str | None = None,
    shape: Sequence[int] | None = None,
    dtype: npt.DTypeLike | None = None,
    mpp: float | tuple[float, float] | None = None,
    channels: Sequence[str] | None = None,
    block_px: int = 512,
    version: Version = "0.4",
) -> Path:
    """Write a picture as an OME-Zarr image with a pyramid: (height, width) or (channels, height, width).

    Parameters
    ----------
    path
        Ends in ``.zarr``; must not exist.
    source
        What is written, uint8, uint16 or float32: an array (what has ``shape``, ``dtype`` and slices); or a function that is
        given rows and columns as slices and returns that block; or an iterable of the blocks of `block_px`, smaller at the
        edges. Blocks are (height, width) or (height, width, channels); each is asked for once, in row-major order.
    axes
        Of an array: ``YX``, ``YXC`` (the default for three axes) or ``CYX``.
    shape, dtype
        Of a picture that is given in blocks.
    mpp
        Micrometres per pixel, one number or (x, y).
    channels
        A name for each.
    block_px
        Side of a chunk, a multiple of 16. The last level is not larger.
    version
        Of NGFF: ``0.4`` (Zarr 2, what most tools read), or ``0.5`` (Zarr 3).

    Each level is half of the one before, rounded up: means of 2 × 2 pixels, NaN left out of them. Three channels of uint8 are
    red, green and blue, and lie in one chunk; others each in their own. Chunks that hold only 0, or NaN, are not written.

    Returns the path. Raises ConfigError for what cannot be written, OutputError when `path` exists, ArrayError for blocks that
    are not as said. What is not complete is called ``*.partial.zarr``.
    """
    one_of(version, ("0.4", "0.5"), "version")
    if version == "0.5" and zarr_major() < 3:
        raise ConfigError("version 0.5 needs Zarr 3 or later, which needs Python 3.11: write 0.4, or pip install 'zarr>=3'")
    picture = Picture(source, axes, shape, dtype, block_px)
    named = checked_channels(channels, picture)
    scale = checked_mpp(mpp)
    target, partial = checked_target(path, (".zarr",))
    if partial.is_dir():
        shutil.rmtree(partial)
    sizes = level_sizes(picture.height, picture.width, block_px)
    _write_group(partial, {}, version)
    levels = [_create(partial / str(number), picture, size, version) for number, size in enumerate(sizes)]
    seen = _Range(picture)
    for spans, block in picture.blocks():
        if named is not None and not picture.is_rgb:
            seen.add(block)
        _put(levels[0], picture, spans, block)
    for finer, coarser, size in zip(levels, levels[1:], sizes, strict=False):
        for rows, columns in block_spans(*size, 2 * block_px):
            _put(coarser, picture, half((rows, columns)), halved(_get(finer, picture, (rows, columns))))
    _write_group(partial, _attributes(target, picture, len(sizes), scale, named, seen, version), version)
    partial.rename(target)
    return target


class _Range:
    """The least and largest value of each channel so far; NaN and infinity do not count."""

    def __init__(self, picture: Picture) -> None:
        self._whole = np.iinfo(picture.dtype) if picture.dtype.kind == "u" else None
        self._least = np.full(picture.channels, np.inf)
        self._most = np.full(picture.channels, -np.inf)

    def add(self, block: AnyArray) -> None:
        """Take a block into account."""
        finite: Any = True if self._whole is not None else np.isfinite(block)
        values = block.astype(np.float64)
        self._least = np.minimum(self._least, values.min(axis=(0, 1), where=finite, initial=np.inf))
        self._most = np.maximum(self._most, values.max(axis=(0, 1), where=finite, initial=-np.inf))

    def of(self, channel: int) -> dict[str, float]:
        """What a viewer is told: what values there can be, and which are shown from dark to bright."""
        least, most = self._least[channel], self._most[channel]
        start, end = (0.0, 1.0) if least > most else (float(least), float(most))
        low, high = (start, end) if self._whole is None else (float(self._whole.min), float(self._whole.max))
        return {"min": low, "max": high, "start": start, "end": end}


def _create(folder: Path, picture: Picture, size: tuple[int, int], version: str) -> Any:
    """The array of one level."""
    zarr = needed_zarr("an OME-Zarr image")
    side = picture.block_px
    channels = () if picture.axes == "YX" else (picture.channels,)
    together = picture.channels if picture.is_rgb else 1
    options: dict[str, Any] = {
        "shape": (*channels, *size),
        "chunks": (*(together for _ in channels), min(side, size[0]), min(side, size[1])),
        "dtype": picture.dtype,
        "fill_value": 0 if picture.dtype.kind == "u" else np.nan,
    }
    if zarr_major() < 3:
        return zarr.open_array(str(folder), mode="w", dimension_separator="/", write_empty_chunks=False, **options)
    if version == "0.4":
        encoding = {"name": "v2", "separator": "/"}
        return zarr.create_array(store=str(folder), zarr_format=2, chunk_key_encoding=encoding, **options)
    names = [name for name, _ in _axes(picture)]
    return zarr.create_array(store=str(folder), zarr_format=3, dimension_names=names, **options)


def _put(array: Any, picture: Picture, spans: Spans, block: AnyArray) -> None:
    """Write a block, (height, width, channels)."""
    if picture.axes == "YX":
        array[spans] = block[..., 0]
    else:
        array[_all_channels(spans)] = np.ascontiguousarray(np.moveaxis(block, -1, 0))


def _all_channels(spans: Spans) -> tuple[slice, ...]:
    return (slice(None), *spans)


def _get(array: Any, picture: Picture, spans: Spans) -> AnyArray:
    """(height, width, channels)."""
    if picture.axes == "YX":
        return np.asarray(array[spans])[..., None]
    return np.moveaxis(np.asarray(array[_all_channels(spans)]), 0, -1)


def _axes(picture: Picture) -> list[tuple[str, str]]:
    """(name, type) of each axis."""
    space = [("y", "space"), ("x", "space")]
    return space if picture.axes == "YX" else [("c", "channel"), *space]


def _attributes(
    target: Path,
    picture: Picture,
    levels: int,
    mpp: tuple[float, float] | None,
    named: list[str] | None,
    seen: _Range,
    version: str,
) -> dict[str, Any]:
    unit = {"unit": "micrometer"} if mpp else {}
    axes = [{"name": name, "type": kind, **(unit if kind == "space" else {})} for name, kind in _axes(picture)]
    across, down = mpp or (1.0, 1.0)
    before = [1.0] * (len(axes) - 2)
    datasets = []
    for number in range(levels):
        factor = 2**number
        steps: list[dict[str, Any]] = [{"type": "scale", "scale": [*before, down * factor, across * factor]}]
        if number:  # the centre of the first pixel of a level lies between those of the pixels that it is the mean of
            shift = (factor - 1) / 2
            steps.append({"type": "translation", "translation": [*(0.0 for _ in before), down * shift, across * shift]})
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    image: dict[str, Any] = {
        "name": target.name.removesuffix(target.suffix),
        "axes": axes,
        "datasets": datasets,
        "type": "mean",
    }
    shown: dict[str, Any] = {}
    if picture.is_rgb:
        window = {"min": 0.0, "max": 255.0, "start": 0.0, "end": 255.0}
        shown["omero"] = {
            "channels": [
                {"label": label if named is None else named[number], "color": colour, "window": window, "active": True}
                for number, (label, colour) in enumerate(_COLOURS)
            ],
            "rdefs": {"model": "color"},
        }
    elif named is not None and picture.axes != "YX":
        shown["omero"] = {
            "channels": [
                {"label": name, "color": "FFFFFF", "window": seen.of(number), "active": number == 0}
                for number, name in enumerate(named)
            ],
            "rdefs": {"model": "greyscale"},
        }
    if version == "0.4":
        return {"multiscales": [{"version": version, **image}], **shown}
    return {"ome": {"version": version, "multiscales": [image], **shown}}


def _write_group(folder: Path, attributes: dict[str, Any], version: str) -> None:
    folder.mkdir(exist_ok=True)
    if version == "0.4":
        (folder / ".zgroup").write_text(json.dumps({"zarr_format": 2}), encoding="utf-8")
        (folder / ".zattrs").write_text(json.dumps(attributes, indent=2), encoding="utf-8")
    else:
        group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (folder / "zarr.json").write_text(json.dumps(group, indent=2), encoding="utf-8")
