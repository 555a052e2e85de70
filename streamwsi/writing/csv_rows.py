r"""Rows of text as CSV, with ``\\n`` at their ends.

In: an open text file.  Out: what writes rows to it, that any reader of CSV gives back as they were.  Knows no columns.
"""

from __future__ import annotations

import csv
from typing import Any, TextIO

_END = "\r\n"


def csv_rows(file: TextIO) -> Any:
    r"""A writer as the csv module's, that quotes a carriage return too.

    Before Python 3.13 the module does so only where one is part of the rows' ends; readers take one that is not quoted for an
    end.
    """
    return csv.writer(_Rows(file), lineterminator=_END)


class _Rows:
    """Takes rows, one at a time, and gives them the ends that they are to have."""

    def __init__(self, file: TextIO) -> None:
        self._write = file.write

    def write(self, row: str) -> int:
        """Write one row."""
        return self._write(row[: -len(_END)] + "\n")
