"""Arrays in files: NumPy's, HDF5's, Zarr's, and OME-Zarr's, which are pyramids.

In: an address.  Out: levels, and what the file says of them.  Reads no pixels.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from streamwsi.addresses import HDF5_SUFFIXES, ZARR_METADATA, ArrayAddress
from streamwsi.arrays.zarr_library import needed_zarr, zarr_major
from streamwsi.errors import SlideError
from streamwsi.slides.ome_zarr import Multiscale, multiscale_of

_log = logging.getLogger(__name__)
_NAMED = 5
"""So many of the arrays that could be meant are listed."""


class Level(Protocol):
    """An array as a level."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """How long each of the array's axes is."""
        ...


AnyLevel = TypeVar("AnyLevel", bound=Level)
MakeLevel = Callable[[Any, Sequence[str], Mapping[str, int], str], AnyLevel]
"""Given an array, the names of its axes, indices along some of them, and what it is called: a level, or SlideError."""


@dataclass(frozen=True)
class Opened(Generic[AnyLevel]):
    """Levels of one picture, the finest first."""

    levels: tuple[AnyLevel, ...]
    downsamples: tuple[float, ...]
    mpp: tuple[float, float] | None
    vendor: str
    close: Callable[[], None] | None = None
    """Closes what is not closed with the last reference to a level."""


def open_arrays(address: ArrayAddress, make: MakeLevel[AnyLevel]) -> Opened[AnyLevel]:
    """Open what an address means, its arrays as the levels that `make` makes of them.

    Raises SlideError where it is missing, cannot be opened, or is no picture, and where the Zarr library is missing.
    """
    file = address.file
    try:
        os.stat(file)
    except FileNotFoundError as error:
        raise SlideError(f"{file} does not exist") from error
    except OSError as error:
        raise SlideError(f"{file} cannot be opened: {error.strerror}") from error
    try:
        if file.is_dir():
            return _open_zarr(address, make)
        if file.suffix.lower() == ".npy":
            return single(address, np.lib.format.open_memmap(file, "r"), "npy", make)
        if file.suffix.lower() in HDF5_SUFFIXES:
            return _open_hdf5(address, make)
    except SlideError:
        raise
    except Exception as error:  # libraries raise what they like at damaged files
        raise SlideError(f"{file} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    raise SlideError(f"{file} cannot be opened: It is no array: that would be a Zarr folder, or a .npy, .h5 or .hdf5 file")


def _open_hdf5(address: ArrayAddress, make: MakeLevel[AnyLevel]) -> Opened[AnyLevel]:
    file = _hdf5_file(address)
    name = address.dataset
    if name is None:
        found: list[str] = []
        file.visititems(lambda each, item: found.append(each) if hasattr(item, "shape") and len(item.shape) > 1 else None)
        if len(found) != 1:
            raise SlideError(_which(str(address.file), found, lambda each: f"{address.file.name}::{each}"))
        name = found[0]
    if name not in file or not hasattr(file[name], "shape"):
        raise SlideError(f"{address.file} has no dataset {name!r}")
    return single(address, file[name], "hdf5", make)


def _hdf5_file(address: ArrayAddress) -> Any:
    """The open file; it is closed with the last reference to a dataset."""
    h5py = importlib.import_module("h5py")
    # Locks fail on some network file systems, and reading needs none; but a file that is open in this process already must
    # be opened as it was.
    with suppress(OSError):
        return h5py.File(address.file, "r", locking=False)
    return h5py.File(address.file, "r")


def _open_zarr(address: ArrayAddress, make: MakeLevel[AnyLevel]) -> Opened[AnyLevel]:
    for name in sorted(ZARR_METADATA):
        with suppress(FileNotFoundError, NotADirectoryError), open(address.file / name, "rb"):
            break
    else:
        raise SlideError(
            f"{address.file} cannot be opened: It is a folder that holds none of {', '.join(sorted(ZARR_METADATA))}"
        )
    zarr = needed_zarr("a slide that is a Zarr array")
    if name == "zarr.json" and zarr_major() < 3:
        raise SlideError(
            f"{address.file} cannot be opened: It is of Zarr's format 3, which needs Python 3.11 and pip install 'zarr>=3'"
        )
    found = zarr.open(str(address.file), mode="r")
    if hasattr(found, "shape"):
        named = getattr(found.metadata, "dimension_names", None) if hasattr(found, "metadata") else None
        return single(address, found, "zarr", make, named)
    return _open_group(address, found, make)


def _open_group(address: ArrayAddress, group: Any, make: MakeLevel[AnyLevel]) -> Opened[AnyLevel]:
    """An image of OME-Zarr, which may be the only one of a series."""
    attributes = dict(group.attrs)
    try:
        multiscale = multiscale_of(attributes)
    except ValueError as error:  # also msgspec's
        raise SlideError(f"{address.file} is not as OME-Zarr must be: {error}") from error
    if multiscale is not None:
        return _pyramid(address, group, multiscale, make)
    names = sorted(name for name, _ in _members(group))
    series = [name for name in names if name.isdigit()]
    if "bioformats2raw.layout" in {**attributes, **(attributes.get("ome") or {})} and len(series) == 1:
        return _open_group(address, group[series[0]], make)
    raise SlideError(
        _which(f"{address.file} is no image of OME-Zarr itself, and", names, lambda each: str(address.file / each))
    )


def _members(group: Any) -> list[tuple[str, Any]]:
    return [*group.groups(), *group.arrays()]


def _pyramid(address: ArrayAddress, group: Any, multiscale: Multiscale, make: MakeLevel[AnyLevel]) -> Opened[AnyLevel]:
    if address.axes is not None and address.axes.lower() != "".join(multiscale.axes):
        raise SlideError(f"{address.file}: its axes are {''.join(multiscale.axes).upper()}, not {address.axes}")
    at = dict(address.at)
    levels: list[AnyLevel] = []
    for path in multiscale.paths:
        name = f"{address.file}/{path}"
        if path not in group:
            raise SlideError(f"{name} is missing, which is a level of the image")
        array = group[path]
        # levels may have fewer planes too: the one that lies there is taken
        finest: Mapping[str, int] = levels[0].sizes if levels else {}
        sizes = dict(zip(multiscale.axes, array.shape, strict=False))
        here = {
            axis: index * sizes[axis] // finest[axis] if axis in sizes and finest.get(axis, 0) > index else index
            for axis, index in at.items()
        }
        levels.append(make(array, multiscale.axes, here, name))
    _check_sizes(address, levels)
    extents = [_extent(level) for level in levels]
    try:
        downsamples = tuple(multiscale.downsample(number, extents) for number in range(len(levels)))
    except ValueError as error:
        raise SlideError(f"{address.file}: {error}; a slide's levels show the same, each side smaller by one number") from error
    return Opened(tuple(levels), downsamples, multiscale.mpp(), "ome-zarr")


def _extent(level: Level) -> tuple[int, int]:
    return level.sizes["x"], level.sizes["y"]


def _check_sizes(address: ArrayAddress, levels: Sequence[Level]) -> None:
    for finer, coarser in pairwise(levels):
        shrinks = all(mine >= its for mine, its in zip(_extent(finer), _extent(coarser), strict=True))
        if not shrinks or finer.sizes.get("c") != coarser.sizes.get("c"):
            raise SlideError(
                f"{address.file}: its levels do not become smaller, or differ in their channels: "
                f"{finer.sizes} is followed by {coarser.sizes}"
            )


def single(
    address: ArrayAddress,
    array: Any,
    vendor: str,
    make: MakeLevel[AnyLevel],
    named: Sequence[str | None] | None = None,
) -> Opened[AnyLevel]:
    """A picture of one level; `named` are the names of its axes, where the file has such."""
    name = str(address.file) if address.dataset is None else f"{address.file}::{address.dataset}"
    axes = tuple((address.axes or "").lower()) or _named_axes(named) or _usual_axes(array.shape, dict(address.at), name)
    return Opened((make(array, axes, dict(address.at), name),), (1.0,), None, vendor)


def _named_axes(named: Sequence[str | None] | None) -> tuple[str, ...]:
    """The axes' names in the file, if they are such."""
    axes = tuple((each or "").lower() for each in named or ())
    return axes if {"y", "x"} <= set(axes) and all(axes) and len(set(axes)) == len(axes) else ()


def _usual_axes(shape: Sequence[int], at: Mapping[str, int], name: str) -> tuple[str, ...]:
    """The axes of an array that does not name them, where there is no doubt."""
    if len(shape) == 2:
        return ("y", "x")
    if len(shape) == 3 and not set(at) - {"c"}:
        last, first = shape[-1] in (1, 3), shape[0] in (1, 3)
        if last != first:
            return ("y", "x", "c") if last else ("c", "y", "x")
    raise SlideError(
        f"{name} has shape {tuple(shape)}, and which axis is which is not known: say it, as by ::axes=YXC, or by "
        "::axes=TCZYX::t=0::z=3 (of a paired image, as source_axes=)"
    )


def _which(what: str, names: Sequence[str], written: Callable[[str], str]) -> str:
    """That one of several must be named, or that there is none."""
    if not names:
        return f"{what} holds no array of two axes or more"
    listed = ", ".join(written(name) for name in names[:_NAMED])
    return f"{what} holds {len(names)} that could be meant; name one: {listed}{', …' if len(names) > _NAMED else ''}"
