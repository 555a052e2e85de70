"""Patient files as HDF5, in the layout that CLAM and TRIDENT read.

In: windows and values, in order.  Out: per slide a group with ``coords`` (N, 2) int64, level-0 (x, y), ``features`` (N, …),
``index`` (N,) int64, and ``not_written`` (M, 3) int64: first window, last window, status of those without a row. Where windows
have labels, ``label`` (N,) int32: places in its attribute ``names``, -1 for none. Names that the
collector gives its values are the attribute ``columns`` of ``features``. Where names are very many, they are a dataset of the
group instead, ``label_names`` or ``columns``.

Source of the layout: CLAM, ``wsi_core/WholeSlideImage.py`` and ``dataset_modules``; TRIDENT, ``trident/IO.py``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from streamwsi._version import __version__
from streamwsi.geometry import Windows
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec

_CHUNK_BYTES = 1 << 18
_NAMES_IN_ATTRIBUTE = 2048
"""More names than these do not fit into an attribute, which may have 64 KiB."""


class HDF5Disk(io.FileIO):
    """A file that takes whatever HDF5 writes, and keeps the disk's first refusal for us.

    HDF5 must not meet it: it cannot close a file that it cannot write, prints so at every object that is let go, and has been
    seen to crash.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.refusal: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of it."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            self._keep(error)
        return size

    def truncate(self, size: int | None = None, /) -> int:
        """Make the file this long."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._keep(error)
            return size or 0

    @contextmanager
    def raising(self) -> Iterator[None]:
        """HDF5 is at work inside; afterwards a refusal is raised, whatever HDF5 made of it."""
        try:
            yield
        except (OSError, RuntimeError):
            if self.refusal is None:
                raise
        if self.refusal is not None:
            raise self.refusal

    def _keep(self, refusal: OSError) -> None:
        self.refusal = self.refusal or refusal


class HDF5PieceFile:
    """An HDF5 file while it is written; see :class:`streamwsi.writing.formats.PieceFile`."""

    def __init__(self, path: Path, spec: ValueSpec, by_patient: bool = False, compression: str | None = None) -> None:
        self._spec = spec
        self._by_patient = by_patient
        self._compression = compression
        self._disk = HDF5Disk(path)
        self._file = h5py.File(self._disk, "w", libver=("earliest", "v110"))
        self._file.attrs["streamwsi_version"] = __version__
        self._slides: list[str] = []
        self._group: h5py.Group | None = None
        self._row = 0

    def begin_slide(self, resolved: ResolvedSlide, n_rows: int) -> None:
        """Create the group and the datasets of a slide, with their attributes."""
        name = f"{resolved.patient_id}/{resolved.id}" if self._by_patient else resolved.id
        group = self._group = self._file.create_group(name)
        self._slides.append(name)
        self._row = 0
        self._dataset(group, "coords", n_rows, (2,), np.dtype(np.int64))
        self._dataset(group, "index", n_rows, (), np.dtype(np.int64))
        if resolved.label_names:
            label = self._dataset(group, "label", n_rows, (), np.dtype(np.int32))
            _keep_names(resolved.label_names, label, "names", group, "label_names")
        features = self._dataset(group, "features", n_rows, self._spec.shape, np.dtype(self._spec.dtype))
        if self._spec.columns is not None:
            _keep_names(self._spec.columns, features, "columns", group, "columns")
        for key, value in coords_attributes(resolved).items():
            group["coords"].attrs[key] = value

    def append(self, windows: Windows, values: npt.NDArray[Any]) -> None:
        """Add a row for each window."""
        if self._group is None:
            raise RuntimeError("append before begin_slide")
        rows = slice(self._row, self._row + len(windows))
        with self._disk.raising():
            self._group["coords"][rows] = windows.xy
            self._group["index"][rows] = windows.index
            if windows.label is not None:
                self._group["label"][rows] = windows.label
            self._group["features"][rows] = values
        self._row = rows.stop

    def end_slide(self, not_written: list[tuple[int, int, int]]) -> None:
        """List the windows without a row."""
        if self._group is None:
            raise RuntimeError("end_slide before begin_slide")
        self._group["not_written"] = np.array(not_written, np.int64).reshape(-1, 3)
        self._group = None

    def close(self) -> None:
        """Link the datasets of an only slide at the root, and finish the file."""
        if not self._file:
            return
        with self._disk, self._disk.raising():
            if len(self._slides) == 1 and not self._by_patient:
                for name, dataset in self._file[self._slides[0]].items():
                    if name not in self._file:  # the slide itself may be called "index"
                        self._file[name] = dataset
            self._file.close()

    def _dataset(self, group: h5py.Group, name: str, rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        row_bytes = max(1, int(np.prod(shape)) * dtype.itemsize)
        per_chunk = max(1, min(rows, _CHUNK_BYTES // row_bytes))
        return group.create_dataset(
            name,
            shape=(rows, *shape),
            maxshape=(None, *shape),
            chunks=(per_chunk, *(max(1, side) for side in shape)),
            dtype=dtype,
            compression=self._compression,
        )


def _keep_names(names: tuple[str, ...], of: h5py.Dataset, attribute: str, group: h5py.Group, dataset: str) -> None:
    """Names as an attribute, or as a dataset where they are too many for one."""
    if len(names) <= _NAMES_IN_ATTRIBUTE:
        of.attrs[attribute] = list(names)
    else:
        group.create_dataset(dataset, data=list(names), dtype=h5py.string_dtype())


def coords_attributes(resolved: ResolvedSlide) -> dict[str, Any]:
    """What stands on a slide's ``coords``: the attributes that CLAM and TRIDENT look for, and ours.

    A square kernel's ``patch_size`` is an int, as those tools expect; another's is (width, height). What the slide does not
    say (mpp, magnification) is left out.
    """
    info = resolved.info
    width, height = resolved.kernel
    level0 = tuple(round(side * resolved.downsample) for side in resolved.kernel)
    attributes: dict[str, Any] = {
        "name": Path(resolved.path).stem,
        "patch_size": width if width == height else resolved.kernel,
        "patch_level": resolved.level,
        "patch_size_level0": level0[0] if width == height else level0,
        "downsample": (resolved.downsample, resolved.downsample),
        "level_dim": resolved.extent,
        "downsampled_level_dim": resolved.extent,
        "level0_width": info.dimensions[0],
        "level0_height": info.dimensions[1],
        "kernel_size": resolved.kernel,
        "stride": resolved.stride,
        "slide_id": resolved.id,
        "slide_path": resolved.path,
        "fingerprint": resolved.fingerprint,
        "reader": info.reader,
        "streamwsi_version": __version__,
    }
    if resolved.sample is None:
        attributes |= {"border": resolved.border, "grid_shape": resolved.grid().shape}
    else:
        attributes |= {"sampled_windows": resolved.sample.count, "margin": resolved.margin}
    if all(resolved.stride):
        overlap = tuple(max(0, kernel - stride) for kernel, stride in zip(resolved.kernel, resolved.stride, strict=True))
        attributes["overlap"] = overlap[0] if overlap[0] == overlap[1] else overlap
    if resolved.zoom != 1 or resolved.coarser is not None:
        attributes["zoom"] = resolved.zoom
    if resolved.coarser is not None:
        attributes["resolutions"] = [(resolution.level, resolution.zoom) for resolution in resolved.resolutions]
    if info.mpp is not None:
        attributes["mpp"] = info.mpp
        if "zoom" in attributes:
            own = math.sqrt(info.mpp[0] * info.mpp[1])
            attributes["mpps"] = [own * resolution.downsample(info) for resolution in resolved.resolutions]
    if info.power is not None:
        attributes["level0_magnification"] = info.power
        attributes["target_magnification"] = info.power / resolved.downsample
    return attributes
