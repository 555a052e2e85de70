"""What every format of patient files does, and which formats there are.

In: resolved slides, windows and values, in order.  Out: one file.  Formats know nothing of journals or runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from streamwsi.config import OutputOptions
from streamwsi.geometry import Windows
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec


class PieceFile(Protocol):
    """A patient's file while it is written. Slides come one after the other, windows in the order of the plan."""

    def begin_slide(self, resolved: ResolvedSlide, n_rows: int) -> None:
        """Begin a slide of which `n_rows` windows are written."""
        ...

    def append(self, windows: Windows, values: npt.NDArray[Any]) -> None:
        """Add rows to the slide begun last: as many windows as values, (n, ...)."""
        ...

    def end_slide(self, not_written: list[tuple[int, int, int]]) -> None:
        """End the slide; `not_written` lists (first window, last window, status) of those without a row."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


def create_piece_file(path: Path, spec: ValueSpec, output: OutputOptions) -> PieceFile:
    """A new file at `path` in the format that `output` asks for; of images, what fills the folder that is there."""
    if output.format == "csv":
        from streamwsi.writing.csv_file import CSVPieceFile

        return CSVPieceFile(path, spec, with_patient=output.one_file, with_labels=output.with_labels)
    if output.images is not None:
        from streamwsi.writing.patch_set import PatchSetFile

        return PatchSetFile(path, spec, output.images)
    from streamwsi.writing.hdf5_file import HDF5PieceFile

    return HDF5PieceFile(path, spec, by_patient=output.one_file, compression=output.compression)
