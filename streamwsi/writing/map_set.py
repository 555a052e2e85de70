"""Turn the tiles of a journal into a patient's maps.

In: a journal, what its slides resolved to.  Out: a file or an OME-Zarr folder for each slide, with levels and pixel sizes.
Holds some blocks at a time, whatever the size of the map. A block is summed in the order of the plan's chunks, so that it
does not depend on processes, arrivals or crashes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import h5py
import numpy as np

from streamwsi._version import __version__
from streamwsi.arrays.picture import block_spans
from streamwsi.arrays.sources import AnyArray
from streamwsi.blending.blend import sum_dtype_of
from streamwsi.blending.block import finished_block
from streamwsi.blending.chunk import Tile
from streamwsi.blending.frame import map_extent, most_overlaps
from streamwsi.blending.packing import unpacked
from streamwsi.chunks import Status
from streamwsi.collecting.map_rows import MapBlending, channels_of, image_size
from streamwsi.config import OutputOptions
from streamwsi.dataset import Dataset
from streamwsi.errors import ConfigError, JournalError, PieceError
from streamwsi.geometry import Int64Array
from streamwsi.map_options import MAP_SUFFIXES, MapOptions, fill_of, map_dtype
from streamwsi.microns import believable_mpp
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec
from streamwsi.writing.hdf5_file import HDF5Disk
from streamwsi.writing.journal import Journal
from streamwsi.writing.map_manifest import Manifest, MapEntry, measured

DATASET = "data"
"""In an HDF5 file."""
_CHUNKS_KNOWN = 256
"""So many chunks' windows are kept: those that a row of blocks touches, mostly."""
_NAMESPACE = UUID("636d8cf7-929b-4472-8c75-90738f62b0bf")
"""Of what maps in OME-TIFF call themselves, so that a map that is written again is the same file."""
_FOLDERS_OWN = ("run.json", "report.json", "job.toml")


def map_name(slide: str, options: MapOptions) -> str:
    """What a slide's map is called in its patient's folder."""
    return slide + MAP_SUFFIXES[options.output]


def check_map_names(options: MapOptions, dataset: Dataset) -> None:
    """Raise ConfigError where the maps of a dataset cannot be called as they are to be."""
    for patient in dataset:
        if patient.id.lower() in _FOLDERS_OWN:
            raise ConfigError(f"patient {patient.id!r} cannot have a folder of maps: a file of the run is called so")
        taken: dict[str, str] = {}
        for slide in patient.slides:
            name = map_name(slide.id, options)
            other = taken.setdefault(name.casefold(), slide.id)
            if other != slide.id:
                raise ConfigError(
                    f"the maps of slides {other!r} and {slide.id!r} of patient {patient.id!r} would be called the same, "
                    f"{name!r}, where case does not count: rename one of the slides"
                )


def write_maps(
    folder: Path, patient: str, journal: Journal, slides: list[tuple[ResolvedSlide, int | None]], output: OutputOptions
) -> None:
    """Fill a patient's folder: a map of each of the slides, of its chunks up to a last one where one is given."""
    if output.maps is None:
        raise PieceError("maps were asked for without saying which")
    blending = MapBlending(output.maps)
    entries = []
    for resolved, last_chunk in slides:
        blocks = MapBlocks(journal, resolved, last_chunk, blending)
        path = folder / map_name(resolved.id, output.maps)
        _WRITERS[output.maps.output](path, blocks, patient)
        entries.append(_entry(path, blocks))
    Manifest(patient=patient, weights=output.maps.weights, maps=entries).write(folder)


@dataclass(frozen=True)
class Expected:
    """What a slide's map is to be, as its plan tells."""

    shape: tuple[int, ...]
    """(height, width) or (height, width, channels)."""
    downsample: float
    mpp: tuple[float, float] | None

    @classmethod
    def of(cls, resolved: ResolvedSlide, reduction: int, spec: ValueSpec | None) -> Expected:
        """Of a slide, where images are of `spec`; None: there was none."""
        downsample = resolved.downsample * reduction
        mpp = believable_mpp(resolved.info.mpp, resolved.info.dimensions, resolved.info.power)
        width, height = map_extent(resolved, reduction)
        return cls(
            (height, width, *(() if spec is None else spec.shape[2:])),
            downsample,
            None if mpp is None else (mpp[0] * downsample, mpp[1] * downsample),
        )


class MapBlocks:
    """The blocks of one slide's map, made as they are asked for."""

    def __init__(self, journal: Journal, resolved: ResolvedSlide, last_chunk: int | None, blending: MapBlending) -> None:
        options = blending.options
        spec = journal.spec or ValueSpec("float32", image_size(resolved.kernel, options.reduction))
        dtype = map_dtype(options, np.dtype(spec.dtype))
        if dtype is None:
            raise PieceError(f"images are {spec.dtype}, which files of maps do not hold")
        self.resolved, self.options, self.spec, self.dtype = resolved, options, spec, dtype
        self.fill = fill_of(options, dtype)
        self.expected = Expected.of(resolved, options.reduction, spec)
        self._journal, self._last_chunk = journal, last_chunk
        self._frame, self._blend = blending.frame(resolved), blending.blend(resolved, spec)
        self._sums = sum_dtype_of(np.dtype(spec.dtype), options.alike, most_overlaps(resolved))
        self._windows: OrderedDict[int, Int64Array] = OrderedDict()

    def block(self, rows: slice, columns: slice) -> AnyArray:
        """(height, width, channels) of the map there, which must be one block."""
        found = self.known(rows, columns)
        if found is not None:
            return found
        size = rows.stop - rows.start, columns.stop - columns.start, channels_of(self.spec)
        return np.full(size, self.fill, self.dtype)

    def known(self, rows: slice, columns: slice) -> AnyArray | None:
        """The same; None where no window is."""
        place = rows.start // self.options.block_px, columns.start // self.options.block_px
        return finished_block(self._frame, self._blend, place, self._tiles(place), self.dtype, self.fill)

    def _tiles(self, place: tuple[int, int]) -> Iterator[tuple[Tile, Int64Array]]:
        for stored in self._journal.tiles(self.resolved.slide, place, self._last_chunk):
            top, left, bottom, right = stored.box
            shape = (bottom - top, right - left, channels_of(self.spec))
            try:
                sums = unpacked(bytes(stored.sums), shape, self._sums)
            except ValueError as error:
                raise JournalError(
                    f"{self._journal.path}: chunk {stored.chunk} of slide {self.resolved.id!r}, block {place}: {error}; "
                    "remove it, and what it held is done again"
                ) from error
            yield Tile(place, stored.box, sums), self._boxes(stored.chunk)

    def _boxes(self, chunk: int) -> Int64Array:
        """(n, 4): the boxes of a chunk's written windows."""
        found = self._windows.get(chunk)
        if found is None:
            index = self.resolved.chunks().indices(chunk)
            written = index[self._journal.statuses(self.resolved.slide, chunk) == Status.WRITTEN]
            found = self._windows[chunk] = self._frame.boxes(self.resolved.plan().windows(written))
            if len(self._windows) > _CHUNKS_KNOWN:
                self._windows.popitem(last=False)
        return found


def _write_zarr(path: Path, blocks: MapBlocks, patient: str) -> None:
    from streamwsi.arrays.ome_zarr import write_ome_zarr

    write_ome_zarr(path, blocks.block, **_picture(blocks))


def _write_tiff(path: Path, blocks: MapBlocks, patient: str) -> None:
    """What the file calls itself follows from its pixels: it is another for each collector, and the same when written again."""
    from streamwsi.arrays.ome_tiff import set_uuid, write_ome_tiff

    here, seen = blocks.resolved, hashlib.sha256()

    def source(rows: slice, columns: slice) -> AnyArray:
        block = blocks.block(rows, columns)
        seen.update(np.ascontiguousarray(block).data)
        return block

    write_ome_tiff(path, source, **_picture(blocks), uuid=UUID(int=0))
    name = (patient, here.id, here.fingerprint, here.kernel, here.stride, blocks.options.describe(), blocks.spec)
    set_uuid(path, uuid5(_NAMESPACE, "/".join(map(str, (*name, seen.hexdigest())))))


def _picture(blocks: MapBlocks) -> dict[str, Any]:
    """What both are told of it."""
    return {
        "shape": blocks.expected.shape,
        "dtype": blocks.dtype,
        "mpp": blocks.expected.mpp,
        "channels": blocks.spec.columns,
        "block_px": blocks.options.block_px,
    }


def _write_hdf5(path: Path, blocks: MapBlocks, patient: str) -> None:
    """One level, in chunks of blocks; those without a window are not stored."""
    shape, side = blocks.expected.shape, blocks.options.block_px
    disk = HDF5Disk(path)
    file = h5py.File(disk, "w", libver=("earliest", "v110"))
    with disk:
        try:
            with disk.raising():
                data = file.create_dataset(
                    DATASET,
                    shape,
                    blocks.dtype,
                    chunks=(min(side, shape[0]), min(side, shape[1]), *shape[2:]),
                    fillvalue=blocks.fill,
                    compression="gzip",
                    compression_opts=1,
                    shuffle=True,
                )
                data.attrs.update(_attributes(blocks, patient))
            for rows, columns in block_spans(shape[0], shape[1], side):
                block = blocks.known(rows, columns)
                if block is not None:
                    with disk.raising():
                        data[rows, columns] = block if len(shape) == 3 else block[..., 0]
        finally:
            with disk.raising():
                file.close()


_WRITERS = {"zarr": _write_zarr, "tiff": _write_tiff, "hdf5": _write_hdf5}


def _attributes(blocks: MapBlocks, patient: str) -> dict[str, object]:
    """Of an HDF5 dataset."""
    expected = blocks.expected
    attributes: dict[str, object] = {
        "axes": "YX" if len(expected.shape) == 2 else "YXC",
        "downsample": expected.downsample,
        "patient": patient,
        "slide": blocks.resolved.id,
        "patch_level": blocks.resolved.level,
        "weights": blocks.options.weights,
        "streamwsi_version": __version__,
    }
    if expected.mpp is not None:
        attributes["mpp"] = np.array(expected.mpp)
    if blocks.spec.columns is not None:
        attributes["columns"] = list(blocks.spec.columns)
    return attributes


def _entry(path: Path, blocks: MapBlocks) -> MapEntry:
    files, size, checksum = measured(path, sync=True)
    return MapEntry(
        slide=blocks.resolved.id,
        file=path.name,
        shape=blocks.expected.shape,
        dtype=blocks.dtype.name,
        columns=blocks.spec.columns,
        downsample=blocks.expected.downsample,
        mpp=blocks.expected.mpp,
        level=blocks.resolved.level,
        files=files,
        size_bytes=size,
        checksum=checksum,
    )
