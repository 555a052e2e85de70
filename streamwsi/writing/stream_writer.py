"""The writers as users describe them: a folder and a format.

In: options.  Out: the same, checked.  Opens nothing; the writer processes do.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np

from streamwsi.collecting.spec import ship
from streamwsi.config import OutputFormat, OutputOptions, one_of
from streamwsi.errors import ConfigError
from streamwsi.images.encoding import ImageFormat
from streamwsi.images.options import NAME, ImageOptions
from streamwsi.loading.resolution import source_of
from streamwsi.map_options import NAMED_WEIGHTS, MapOptions, MapOutput, array_name


class StreamWriter:
    """Base of the writers; use one of its subclasses.

    Parameters
    ----------
    folder
        Where the patients' files appear, each when its patient is complete.
    one_file
        All patients in one file, ``all.csv`` or ``all.h5``, which appears when the run is complete.
    publish_partial
        Patients of whom slides have failed are written too, as ``<patient>.partial.csv`` or ``.h5``.
    journal_dir
        Where the journals of unfinished patients lie, if not in the folder: a local disk, where the folder is on a network.
    """

    format: ClassVar[OutputFormat]
    """Of the files."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        one_file: bool = False,
        publish_partial: bool = False,
        journal_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.options = OutputOptions(
            folder=os.path.abspath(folder),
            format=self.format,
            one_file=bool(one_file),
            publish_partial=bool(publish_partial),
            journal_dir=None if journal_dir is None else os.path.abspath(journal_dir),
        )


class CSVStreamWriter(StreamWriter):
    """Writes ``slide,index,x,y,level,width,height`` and the values of each window as a row of text."""

    format = "csv"


class HDF5StreamWriter(StreamWriter):
    """Writes ``coords`` and ``features`` of each slide, in the layout that CLAM and TRIDENT read.

    `compression` is ``"gzip"``, ``"lzf"`` or None (stored as they are, the fastest).
    """

    format = "hdf5"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        one_file: bool = False,
        publish_partial: bool = False,
        journal_dir: str | os.PathLike[str] | None = None,
        compression: str | None = None,
    ) -> None:
        super().__init__(folder, one_file=one_file, publish_partial=publish_partial, journal_dir=journal_dir)
        one_of(compression, (None, "gzip", "lzf"), "compression")
        import msgspec

        self.options = msgspec.structs.replace(self.options, compression=compression)


class ImageStreamWriter(StreamWriter):
    """Writes the images that a collector gives, :class:`streamwsi.Patches` or one's own: a folder for each patient.

    A collector gives uint8 images, (n, height, width, 3) RGB or (n, height, width) grey, several for each window as
    (n, resolutions, height, width, 3), or the bytes of files of this format. They are encoded in the collectors' processes.
    The folder has a ``manifest.csv`` with a row for each image: its file, slide, place in the plan, level-0 corner, level,
    size, label, comment, bytes, and a checksum (BLAKE2b-128). It appears, whole, when its patient is complete.

    Parameters
    ----------
    folder
        Where the patients' folders appear.
    format
        ``"png"``, every pixel as it was; ``"jpeg"`` or ``"webp"``, smaller.
    quality
        1–100, of JPEG and WebP; by default 90.
    name
        What images are called, without the ending: a template of the fields `patient`, `slide`, `index`, `x`, `y` (level-0
        pixels), `level`, `width`, `height`, `label` and `resolution`; numbers may be padded, ``{x:06}``. Where windows have
        several images and it does not name the resolution, ``.r0``, ``.r1``, … are added.
    by_label
        A folder for each label in the patient's; windows without one are in ``unlabelled``.
    comment
        A template as `name`: a text in each image (PNG: ``Comment``; JPEG: COM; WebP has none) and in the manifest.
    shards
        Tar files instead of single ones, ``<patient>-000000.tar``, … in the patient's folder: with so many windows each, or
        of about such a size, ``"500MB"``. A window is a sample in WebDataset's layout: its images, and what the manifest tells
        of it as ``.json``; dots in names become ``_``.
    publish_partial, journal_dir
        As those of the other writers; a patient's partial folder is called ``<patient>.partial``.

    Raises ConfigError naming the option that cannot work.
    """

    format = "images"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        format: ImageFormat = "png",
        quality: int | None = None,
        name: str = NAME,
        by_label: bool = False,
        comment: str | None = None,
        shards: int | str | None = None,
        publish_partial: bool = False,
        journal_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(folder, publish_partial=publish_partial, journal_dir=journal_dir)
        import msgspec

        images = ImageOptions.of(format, quality, name, by_label, comment, shards)
        self.options = msgspec.structs.replace(self.options, images=images)


class MapStreamWriter(StreamWriter):
    """Blends the images that a collector gives, one for each window, into maps: one for each slide, a folder for each patient.

    A collector gives (n, height, width) or (n, height, width, channels) of booleans, integers of at most 32 bits or floats, of
    the windows without their margin. A pixel of the map is the mean of all windows over it, weighted; what of a window lies
    beyond the slide is cut off. Each chunk of windows is blended in its collector's process, so that a pixel is sent and kept
    once, however many windows overlap in a chunk. ``<patient>/<slide>.ome.zarr`` (or ``.ome.tiff``, ``.h5``) appears, whole,
    with ``maps.json`` (shape, dtype, channels, micrometres per pixel, checksum of each) when the patient is complete. The
    names of channels are the collector's `columns`.

    Parameters
    ----------
    folder
        Where the patients' folders appear.
    output
        ``"zarr"``: OME-Zarr 0.4 with a pyramid (takes ``streamwsi[zarr]``). ``"tiff"``: a tiled OME-TIFF with a pyramid, which
        QuPath opens, and OpenSlide where it is RGB. ``"hdf5"``: the dataset ``data``, (height, width) or (height, width,
        channels), one level, with ``downsample``, ``mpp`` and ``axes`` as attributes.
    weights
        ``"mean"`` (default): all pixels of a window alike. ``"gaussian"``, ``"distance"``, an array of an image's size, or a
        callable that is given (height, width) and returns such an array: as for :class:`streamwsi.Aggregator`.
    dtype
        Of the maps: ``"uint8"``, ``"uint16"`` or ``"float32"``; by default the images', float32 of floats, uint8 of booleans.
        Means are rounded to the nearest integer, halves to even, where it is one of integers.
    fill_value
        Where no window is, or all weights are 0: by default NaN, or 0 of integers.
    reduction
        Pixels of a window, along each axis, to a pixel of its image: 1 for images of the windows' size, 4 for a quarter of it.
        Windows must have multiples of it as sizes and starts.
    block_px
        Side of the files' tiles or chunks, a multiple of 16; what lies in the journal is cut like that too.
    publish_partial, journal_dir
        As those of the other writers; a patient's partial folder is called ``<patient>.partial``.

    Three channels of uint8 are red, green and blue in OME-Zarr and OME-TIFF. For the same chunks of windows the maps are equal
    to the last bit, whatever the processes, arrivals and crashes; of integers with ``"mean"`` weights always, for their sums
    are exact.

    Raises ConfigError naming the option that cannot work.
    """

    format = "maps"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        output: MapOutput = "zarr",
        weights: Any = "mean",
        dtype: Any = None,
        fill_value: float | None = None,
        reduction: int = 1,
        block_px: int = 512,
        publish_partial: bool = False,
        journal_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(folder, publish_partial=publish_partial, journal_dir=journal_dir)
        import msgspec

        maps = MapOptions(
            output=output,
            dtype=None if dtype is None else _dtype_name(dtype),
            fill_value=fill_value,
            reduction=reduction,
            block_px=block_px,
            **_weights(weights),
        )
        maps.check()
        self.options = msgspec.structs.replace(self.options, maps=maps)


def _weights(given: Any) -> dict[str, Any]:
    """The options that say what weights are asked for. Raises ConfigError for what are none."""
    if isinstance(given, str):
        if given not in NAMED_WEIGHTS:
            raise ConfigError(f"weights must be {', '.join(map(repr, NAMED_WEIGHTS))}, an array or a callable, got {given!r}")
        return {"weights": given}
    if callable(given):
        shipped = ship(given, "what gives the weights")
        return {"weights": source_of(given), "code": (shipped.pickled, shipped.files)}
    try:
        array = np.ascontiguousarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"weights must be an array or a callable, got {type(given).__name__}: {error}") from error
    return {"weights": array_name(array), "array": (array.shape, array.tobytes())}


def _dtype_name(dtype: Any) -> str:
    try:
        return str(np.dtype(dtype).name)
    except TypeError as error:
        raise ConfigError(f"dtype must be that of an array, as 'float32', got {dtype!r}") from error
