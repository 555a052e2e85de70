"""Where finished blocks go: an array of the caller's, memory, or a file that gets its name when it is complete.

In: blocks and where they belong.  Out: the whole array.  Never reads what was written.
"""

from __future__ import annotations

import importlib
import mmap
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from streamwsi.arrays.sources import AnyArray, n_bytes
from streamwsi.arrays.zarr_library import needed_zarr
from streamwsi.errors import ArrayError, ConfigError, OutputError

SUFFIXES = (".npy", ".zarr", ".h5", ".hdf5")
DATASET = "data"
"""The name of the dataset in an HDF5 file."""
_RELEASE_EVERY = 64 * 2**20
"""Pages of a memory map are released whenever so many bytes were written."""


class Output:
    """An array that is written block by block. Not for several threads at once."""

    def __init__(self, array: Any, path: Path | None = None) -> None:
        self.array = array
        self._path = path
        self._since_release = 0

    def write(self, where: tuple[slice, ...], block: AnyArray) -> None:
        """Put a block where it belongs."""
        if type(self.array).__module__.partition(".")[0] == "torch":
            block = importlib.import_module("torch").from_numpy(np.ascontiguousarray(block))
        self.array[where] = block
        self._since_release += n_bytes(tuple(block.shape), np.dtype(self.array.dtype)) if self._mapped() else 0
        if self._since_release >= _RELEASE_EVERY:
            self._since_release = 0
            _release(self.array)

    def finish(self) -> Any:
        """The complete array; a file gets its name, and is opened again to read only."""
        if self._path is None:
            return self.array
        partial = partial_path(self._path)
        if self._mapped():
            self.array.flush()
        elif hasattr(self.array, "file"):
            self.array.file.close()
        partial.rename(self._path)
        self.array, path, self._path = None, self._path, None
        self.array = _open(path)
        return self.array

    def _mapped(self) -> bool:
        return isinstance(self.array, np.memmap)


def partial_path(path: Path) -> Path:
    """Where an array is written before it is complete."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def checked_path(given: Any) -> Path:
    """The path of an output that can be begun.

    Raises ConfigError for an unknown suffix, OutputError when there is something already.
    """
    path = Path(given)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"output {str(path)!r} must end in one of {', '.join(SUFFIXES)}, or be an array")
    if path.exists():
        raise OutputError(f"output {path} exists; give another name, or remove it")
    return path


def make_output(given: Any, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...]) -> Output:
    """The output that was asked for: None (in memory), a path, or an array.

    `chunks` is how a file is cut. What is left of a file that was not completed is overwritten.
    Raises ArrayError when an array has another shape, or its type does not hold that of the blocks.
    """
    if given is None:
        return Output(np.empty(shape, dtype))
    if isinstance(given, Path):
        partial = partial_path(given)
        if partial.is_dir():
            shutil.rmtree(partial)
        return Output(_create(partial, shape, dtype, chunks), given)
    if tuple(given.shape) != shape:
        raise ArrayError(f"the output has shape {tuple(given.shape)}, but the result has {shape}")
    if isinstance(given.dtype, np.dtype) and not np.can_cast(dtype, given.dtype, "same_kind"):
        raise ArrayError(f"the output has dtype {given.dtype}, but the result has {dtype}; say dtype={str(given.dtype)!r}")
    return Output(given)


def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...]) -> Any:
    if path.suffix == ".npy":
        return np.lib.format.open_memmap(path, "w+", dtype, shape)
    if path.suffix == ".zarr":
        return needed_zarr("an output that ends in .zarr").open_array(
            str(path), mode="w", shape=shape, dtype=dtype, chunks=chunks
        )
    file = importlib.import_module("h5py").File(path, "w")
    return file.create_dataset(DATASET, shape, dtype, chunks=chunks)


def _open(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.lib.format.open_memmap(path, "r")
    if path.suffix == ".zarr":
        return needed_zarr("an output that ends in .zarr").open_array(str(path), mode="r")
    return importlib.import_module("h5py").File(path, "r")[DATASET]


def _release(array: Any) -> None:
    """Let the system take back the pages of a memory map that are in its file's cache, where it can be told so."""
    mapped = getattr(array, "_mmap", None)
    if array.mode in ("r+", "w+") and isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
