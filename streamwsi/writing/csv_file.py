r"""Patient files as CSV.

In: windows and values, in order.  Out: one header row, then one row per written window, `\\n` line ends, UTF-8.

Every number is written with the fewest digits that give it back exactly in its own dtype; booleans as 0 and 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.geometry import Windows
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec
from streamwsi.writing.csv_rows import csv_rows

WINDOW_COLUMNS = ("slide", "index", "x", "y", "level", "width", "height")
"""Before the value columns: slide id, place in the plan, level-0 corner, level read, and size in its pixels."""
LABELLED_COLUMNS = ("slide", "label", *WINDOW_COLUMNS[1:])
"""The same where windows carry labels; empty for a window that has none."""
_ROUNDED_TWICE = np.uint32(0x15AE43FD).view(np.float32)
"""The only float32 (7.038531e-26) whose fewest digits, read as a float64 and then rounded, give another float32."""


class CSVPieceFile:
    """A CSV file while it is written; see :class:`streamwsi.writing.formats.PieceFile`."""

    def __init__(self, path: Path, spec: ValueSpec, with_patient: bool = False, with_labels: bool = False) -> None:
        self._spec = spec
        self._with_patient = with_patient
        self._with_labels = with_labels
        self._file = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._rows = csv_rows(self._file)
        places = LABELLED_COLUMNS if with_labels else WINDOW_COLUMNS
        self._rows.writerow((*(("patient",) if with_patient else ()), *places, *spec.column_names))
        self._slide: ResolvedSlide | None = None

    def begin_slide(self, resolved: ResolvedSlide, n_rows: int) -> None:
        """Begin a slide."""
        self._slide = resolved

    def append(self, windows: Windows, values: npt.NDArray[Any]) -> None:
        """Add a row for each window."""
        slide = self._slide
        if slide is None:
            raise RuntimeError("append before begin_slide")
        lead = (slide.patient_id, slide.id) if self._with_patient else (slide.id,)
        places = np.column_stack([windows.index, windows.xy, np.full(len(windows), slide.level), windows.size])
        flat = values.reshape(len(values), self._spec.size)
        if flat.dtype == bool:
            flat = flat.astype(np.uint8)
        if flat.dtype in (np.float16, np.float32):
            flat = _fewest_digits(flat)
        rows = zip(places.tolist(), flat.tolist(), strict=True)
        if self._with_labels:
            labels = ("" if label is None else label for label in windows.labels)
            self._rows.writerows((*lead, label, *place, *value) for label, (place, value) in zip(labels, rows, strict=True))
        else:
            self._rows.writerows((*lead, *place, *value) for place, value in rows)

    def end_slide(self, not_written: list[tuple[int, int, int]]) -> None:
        """End the slide; windows without a row are listed in the record of the publication."""
        self._slide = None

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def _fewest_digits(flat: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    """float16 or float32 as text: the fewest digits that are exact in this dtype; Python's repr would give a float64's."""
    digits = flat.astype(str)
    twice = np.abs(flat) == _ROUNDED_TWICE
    if twice.any():
        digits[twice] = flat[twice].astype(np.float64).astype(str)
    return digits
