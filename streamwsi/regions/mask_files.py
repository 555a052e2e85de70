"""Masks from files.

In: an NPZ, NPY, PNG or TIFF file, or a Zarr array.  Out: a mask that lies where it is said to lie.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.errors import ConfigError, MaskError, StreamwsiError
from streamwsi.regions.extra import needed
from streamwsi.regions.facts import Sized
from streamwsi.regions.mask import BoolArray, Mask, pair
from streamwsi.slides.png import stored_values

_LARGEST_PX = 1 << 28
"""Of a mask that is read: in memory it takes a byte for each, and four more where coverage is asked for."""
_DAMAGES = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)
"""What NumPy, Pillow, tifffile and Zarr raise on files that are damaged, or something else."""
_TIFFS = (".tif", ".tiff")


def read_mask(
    path: str | os.PathLike[str],
    *,
    slide: Sized | None = None,
    scale: float | tuple[float, float] | None = None,
    offset: tuple[float, float] | None = None,
    inside: Collection[int] | None = None,
    level: int | None = None,
    key: str | None = None,
) -> Mask:
    """A mask from a file: NPZ (as :meth:`Mask.save` writes it, or with an array `mask`), NPY, PNG, TIFF or Zarr.

    Parameters
    ----------
    path
        The file, or the folder of a Zarr array.
    slide, scale, offset
        Where it lies, as for :meth:`Mask.placed`; a file that says so itself needs none of them, and `slide` is then only
        checked. Of a TIFF pyramid, `scale` is that of its finest level.
    inside
        The values that are inside. None: whatever is not 0, and then the file may hold 0 and one other value only.
    level
        Of a TIFF pyramid, 0 being the finest; None: the finest of at most 268 million pixels.
    key
        The array in an NPZ file (None: ``mask``) or in a Zarr group.

    Raises MaskError where the file is no mask or does not fit the slide, ConfigError where nothing says where it lies, and
    where Zarr is not installed.
    """
    source = Path(path)
    if level is not None and source.suffix.lower() not in _TIFFS:
        raise ConfigError(f"level= goes with a TIFF pyramid, not with {source}")
    if not source.exists():
        raise MaskError(f"{source} does not exist")
    shrunk: tuple[float, float] = (1.0, 1.0)
    try:
        if source.is_dir():
            values = _zarr(source, key)
        elif source.suffix.lower() == ".npz":
            values, said = _npz(source, key or "mask")
            if said is not None:
                return _as_said(source, _inside(values, inside, source), *said, slide, (scale, offset))
        elif source.suffix.lower() == ".npy":
            values = np.load(source, allow_pickle=False)
        elif source.suffix.lower() in _TIFFS:
            values, shrunk = _tiff(source, level)
        else:
            values = _picture(source)
    except StreamwsiError:
        raise
    except _DAMAGES as error:
        raise MaskError(f"{source} cannot be read as a mask: {error}") from error
    array = _inside(values, inside, source)
    if scale is not None:
        x, y = pair(scale, "scale")
        scale = (x * shrunk[0], y * shrunk[1])
    try:
        return Mask.placed(array, slide=slide, scale=scale, offset=offset)
    except (MaskError, ConfigError) as error:
        raise type(error)(f"{source}: {error}") from error


def _as_said(
    source: Path,
    array: BoolArray,
    scale: tuple[float, float],
    offset: tuple[float, float],
    slide: Sized | None,
    given: tuple[Any, Any],
) -> Mask:
    if given != (None, None):
        raise ConfigError(f"{source} says itself where it lies: scale {scale}, offset {offset}; leave scale= and offset= out")
    mask = Mask(array, scale=scale, offset=offset)
    if slide is not None:
        try:
            mask.check_on(slide)
        except MaskError as error:
            raise MaskError(f"{source}: {error}") from error
    return mask


def _inside(values: npt.NDArray[Any], inside: Collection[int] | None, source: Path) -> BoolArray:
    """What is inside, as booleans. Raises MaskError where the values do not say it."""
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "biuf":
        raise MaskError(f"{source}: a mask must be 2-D (rows, columns) numbers, got {values.dtype} {values.shape}")
    if inside is not None:
        chosen: BoolArray = np.isin(values, list(inside))
        return chosen
    other = values.max() or values.min()
    if not ((values == 0) | (values == other)).all():
        found = np.unique(values)
        some = ", ".join(f"{value:g}" for value in found[:6].astype(float)) + (", …" if len(found) > 6 else "")
        raise MaskError(f"{source} holds the values {some}: say which are inside, as in inside=[1] or inside=range(128, 256)")
    whole: BoolArray = values != 0
    return whole


def _npz(source: Path, key: str) -> tuple[npt.NDArray[Any], tuple[tuple[float, float], tuple[float, float]] | None]:
    with np.load(source, allow_pickle=False) as file:
        if key not in file:
            raise MaskError(f"{source} holds no array {key!r}, but {', '.join(file.files) or 'nothing'}: give key=")
        if "scale" not in file or "offset" not in file:
            return file[key], None
        scale, offset = file["scale"], file["offset"]
        if scale.shape != (2,) or offset.shape != (2,):
            raise MaskError(f"{source}: scale and offset must be (x, y), got {scale.shape} and {offset.shape}")
        (scale_x, scale_y), (x, y) = scale.tolist(), offset.tolist()
        return file[key], ((scale_x, scale_y), (x, y))


def _picture(source: Path) -> npt.NDArray[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source) as picture:
            if picture.width * picture.height > _LARGEST_PX:
                raise MaskError(f"{source} is {picture.width} × {picture.height} pixels, more than {_LARGEST_PX}")
            # a palette's numbers are the values; its colours are for the eye
            pixels = np.asarray(picture)
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise MaskError(f"{source} cannot be read as a picture: {error}") from error
    try:
        pixels = stored_values(source, pixels)
    except ValueError as error:
        raise MaskError(f"{source} cannot be read as a mask: {error}") from error
    if pixels.ndim == 2:
        return pixels
    colours = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1]
    if pixels.shape[2] in (2, 4) and pixels[..., -1].min() != pixels[..., -1].max():
        raise MaskError(f"{source} is transparent in part: a mask must be a picture of one channel")
    if (colours != colours[..., :1]).any():
        raise MaskError(f"{source} has colours: a mask must be a picture of one channel")
    return np.ascontiguousarray(colours[..., 0])


def _tiff(source: Path, level: int | None) -> tuple[npt.NDArray[Any], tuple[float, float]]:
    """Values of a level, and how many pixels of the finest one of its pixels are, (x, y)."""
    import tifffile

    try:
        with tifffile.TiffFile(source) as file:
            if not file.series:
                raise MaskError(f"{source} holds no picture")
            levels = file.series[0].levels
            sizes = [tuple(each.shape) for each in levels]
            if any(len(size) != 2 for size in sizes):
                raise MaskError(f"{source}: a mask must have one channel, its levels have the shapes {sizes}")
            if level is None:
                level = next((n for n, (rows, columns) in enumerate(sizes) if rows * columns <= _LARGEST_PX), len(sizes))
            if not 0 <= level < len(sizes):
                raise MaskError(f"{source} has no level {level} of at most {_LARGEST_PX} pixels: its levels have {sizes}")
            if sizes[level][0] * sizes[level][1] > _LARGEST_PX:
                raise MaskError(f"{source}: level {level} has {sizes[level]} pixels, more than {_LARGEST_PX}")
            values = levels[level].asarray()
    except tifffile.TiffFileError as error:
        raise MaskError(f"{source} cannot be read as a TIFF file: {error}") from error
    return values, (sizes[0][1] / sizes[level][1], sizes[0][0] / sizes[level][0])


def _zarr(source: Path, key: str | None) -> npt.NDArray[Any]:
    zarr = needed("zarr", f"reading {source}", "zarr")
    opened = zarr.open(str(source), mode="r")
    if not hasattr(opened, "shape"):
        names = sorted(opened.array_keys())
        if key not in names:
            raise MaskError(f"{source} is a group of arrays, {', '.join(names) or 'none'}: give one as key=, got {key!r}")
        opened = opened[key]
    if len(opened.shape) == 2 and opened.shape[0] * opened.shape[1] > _LARGEST_PX:
        raise MaskError(f"{source} has {opened.shape} pixels, more than {_LARGEST_PX}")
    return np.asarray(opened[...])
