"""Where a slide that is an array lies: a file or folder, and what of it.

In: paths, with ``::`` between a file and what of it is meant.  Out: their parts.  Never opens a file.

    volume.zarr                     a Zarr array or an OME-Zarr image
    volume.zarr::z=3                of several planes, one
    volume.zarr/1::axes=ZYX::z=3    a part of it is named as the folder that it is
    stack.h5::images/a              a dataset of an HDF5 file
    stack.h5::images/a::c=0         one channel of it
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streamwsi.errors import SlideError

HDF5_SUFFIXES = (".h5", ".hdf5")
ARRAY_SUFFIXES = (".zarr", ".npy", *HDF5_SUFFIXES)
ZARR_METADATA = frozenset((".zarray", ".zgroup", "zarr.json"))
"""A folder that holds one of these is an array or a group of arrays. Source: the Zarr specifications, versions 2 and 3."""
AXES = "TCZYX"
"""Letters of axes: time, channel, and the three of space."""

_ADDRESS = re.compile(r"(?P<file>.+?\.(?:zarr(?:[/\\][^:]*)?|npy|h5|hdf5))(?P<inside>::.+)", re.IGNORECASE | re.DOTALL)
_OPTION = re.compile(r"axes=[A-Za-z]+|[a-z]+=[0-9]+")


@dataclass(frozen=True)
class ArrayAddress:
    """A file or folder, and what of it."""

    file: Path
    dataset: str | None = None
    """Of an HDF5 file."""
    axes: str | None = None
    """A letter for each axis, where the file does not say."""
    at: tuple[tuple[str, int], ...] = ()
    """(axis, index) of the axes of which one place is meant."""

    def __str__(self) -> str:
        parts = [self.dataset] if self.dataset else []
        parts += [f"axes={self.axes}"] if self.axes else []
        return "::".join([str(self.file), *parts, *(f"{axis}={index}" for axis, index in self.at)])


def parse_address(path: str | os.PathLike[str]) -> ArrayAddress:
    """The parts of a path. Raises SlideError where they make no sense."""
    file, inside = split_address(path)
    names: list[str] = []
    options: dict[str, str] = {}
    for part in inside.split("::")[1:]:
        option = _OPTION.fullmatch(part)
        if option is None:
            names.append(part)
            continue
        name, _, value = part.partition("=")
        if name in options:
            raise SlideError(f"{os.fspath(path)}: {name} is given twice")
        options[name] = value
    if len(names) > 1 or (names and file.suffix.lower() not in HDF5_SUFFIXES):
        raise SlideError(
            f"{os.fspath(path)}: {inside!r} does not say what of {file.name} is meant: write the name of a dataset behind an "
            "HDF5 file (file.h5::name), and axes and indices behind any (::axes=ZYX::z=3); a part of a .zarr is a folder of it"
        )
    axes = options.pop("axes", None)
    at = tuple((axis, int(index)) for axis, index in options.items())
    return ArrayAddress(file, names[0] if names else None, axes and check_axes(axes, os.fspath(path)), at)


def make_address(
    file: str | os.PathLike[str], dataset: str | None = None, axes: str | None = None, at: Mapping[str, int] | None = None
) -> Path:
    """The path that means this. Raises SlideError where it can mean nothing, or would be read as something else."""
    indices = {str(axis).lower(): index for axis, index in (at or {}).items()}
    bad = [index for index in indices.values() if not isinstance(index, int) or isinstance(index, bool) or index < 0]
    if bad:
        raise SlideError(f"{os.fspath(file)}: an index must be a whole number from 0 on, got {bad[0]!r}")
    asked = ArrayAddress(Path(file), dataset, axes and check_axes(axes, os.fspath(file)), tuple(indices.items()))
    path = Path(str(asked))
    if parse_address(path) != asked:
        raise SlideError(f"{path} would not mean what was asked for: rename the file or the dataset")
    return path


def check_axes(axes: str, whose: str) -> str:
    """`axes` in capitals, if they can be those of a slide; else SlideError."""
    letters = axes.upper()
    if len(set(letters)) != len(letters) or not {"Y", "X"} <= set(letters) <= set(AXES):
        raise SlideError(f"{whose}: axes must be letters of {AXES}, each once, Y and X among them, got {axes!r}")
    return letters


def split_address(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """(what lies on the disk, what of it): the second is empty for most slides, else begins with ``::``."""
    found = _ADDRESS.fullmatch(os.fspath(path))
    return (Path(found["file"]), found["inside"]) if found else (Path(path), "")


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a Zarr array or group, by its name or by what it holds."""
    if not os.path.isdir(path):  # False, too, where the system refuses the path
        return False
    return Path(path).suffix.lower() == ".zarr" or any(os.path.isfile(os.path.join(path, name)) for name in ZARR_METADATA)


def is_array(path: str | os.PathLike[str]) -> bool:
    """Whether a slide's path is that of an array."""
    file, inside = split_address(path)
    return bool(inside) or file.suffix.lower() in ARRAY_SUFFIXES or is_zarr(file)
