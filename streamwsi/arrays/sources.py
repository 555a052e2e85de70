"""Anything array-like as a source of NumPy arrays, known by what it can do and not by its type.

In: what has ``shape``, ``dtype`` and ``array[slices]`` (NumPy, memory maps, Zarr, HDF5, Dask, tensors).  Out: NumPy arrays.
Never imports a library that the caller has not.
"""

from __future__ import annotations

import importlib
import math
import mmap
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.errors import ArrayError

AnyArray = npt.NDArray[Any]


def as_numpy(value: Any) -> AnyArray:
    """A NumPy array of `value`: a tensor is detached and brought to the CPU, a lazy array computed; no copy if avoidable.

    Raises ArrayError when NumPy has no such type (bfloat16, say).
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        return np.asarray(value)
    except TypeError as error:
        raise ArrayError(f"{_named(value)} cannot become a NumPy array: {error}; convert it, as by .float()") from error


@dataclass(frozen=True)
class Cuts:
    """Where storage cuts one axis into chunks."""

    extent: int
    edges: tuple[int, ...] = ()
    """Starts of the chunks and the extent; empty where chunks are of one size."""
    size: int = 1
    """Size of a chunk, where all are of one."""

    def before(self, at: int) -> int:
        """The last cut at or before `at`."""
        return self.edges[bisect_right(self.edges, at) - 1] if self.edges else at // self.size * self.size

    def after(self, at: int) -> int:
        """The first cut at or after `at`; the extent at most."""
        return self.edges[bisect_left(self.edges, at)] if self.edges else min(-(-at // self.size) * self.size, self.extent)


class Source:
    """An array-like, read by slices. It pickles: memory maps and HDF5 datasets as where they lie, others as themselves."""

    def __init__(self, array: Any) -> None:
        for wanted in ("shape", "dtype", "__getitem__"):
            if not hasattr(array, wanted):
                raise ArrayError(
                    f"{_named(array)} has no {wanted!r}: an array needs shape, dtype and slices; convert it by np.asarray"
                )
        self.array = array
        self.shape: tuple[int, ...] = tuple(int(extent) for extent in array.shape)
        # tensors have dtypes of their own; what a read of nothing gives is what all reads give
        self.dtype: np.dtype[Any] = (
            array.dtype if isinstance(array.dtype, np.dtype) else self.read((slice(0, 0),) * len(self.shape)).dtype
        )

    def read(self, where: tuple[slice, ...]) -> AnyArray:
        """The array there, as NumPy; a view where the array is NumPy's."""
        return as_numpy(self.array[where])

    def cuts(self, axis: int) -> Cuts:
        """How storage cuts an axis; into single indices where it does not."""
        chunks = getattr(self.array, "chunks", None)
        extent = self.shape[axis]
        if not chunks:
            return Cuts(extent)
        if isinstance(chunks[axis], int):
            return Cuts(extent, size=max(chunks[axis], 1))
        return Cuts(extent, edges=(0, *np.cumsum(chunks[axis]).tolist()))

    def __getstate__(self) -> dict[str, Any]:
        return {"array": _reference(self.array), "shape": self.shape, "dtype": self.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.array, MappedFile | HDF5Dataset):
            self.array = self.array.open()


@dataclass(frozen=True)
class MappedFile:
    """A NumPy memory map as a reference to its file; pickled by itself it would be copied whole."""

    path: Path
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    order: str

    def open(self) -> AnyArray:
        """Map the file again, to read only."""
        order: Any = self.order
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)


@dataclass(frozen=True)
class HDF5Dataset:
    """An HDF5 dataset as a reference to its file; handles do not cross processes."""

    path: str
    name: str

    def open(self) -> Any:
        """Open the file again, to read only; it is closed with the last reference to the dataset."""
        return importlib.import_module("h5py").File(self.path, "r")[self.name]


def _reference(array: Any) -> Any:
    base: Any = array.base if isinstance(array, np.memmap) else None
    if isinstance(base, mmap.mmap) and array.filename is not None:
        if array.flags.c_contiguous or array.flags.f_contiguous:  # and not a view: its offset would be that of its base
            order = "C" if array.flags.c_contiguous else "F"
            return MappedFile(Path(array.filename), array.dtype, array.offset, array.shape, order)
    elif type(array).__module__.startswith("h5py.") and hasattr(array, "file"):
        return HDF5Dataset(array.file.filename, array.name)
    return array


def _named(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def n_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Bytes of such an array."""
    return math.prod(shape) * dtype.itemsize
