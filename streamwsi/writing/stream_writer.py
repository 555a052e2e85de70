"""The writers as users describe them: a folder and a format.

In: options.  Out: the same, checked.  Opens nothing; the writer processes do.
"""

from __future__ import annotations

import os
from typing import ClassVar, Literal

from streamwsi.config import OutputOptions, one_of


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

    format: ClassVar[Literal["csv", "hdf5"]]
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
