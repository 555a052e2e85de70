"""The writers as users describe them: a folder and a format.

In: options.  Out: the same, checked.  Opens nothing; the writer processes do.
"""

from __future__ import annotations

import os
from typing import ClassVar

from streamwsi.config import OutputFormat, OutputOptions, one_of
from streamwsi.images.encoding import ImageFormat
from streamwsi.images.options import NAME, ImageOptions


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
