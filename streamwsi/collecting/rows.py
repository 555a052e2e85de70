"""From what `process` returned to statuses and rows.

In: a chunk's batches and their results.  Out: a status for each window, and a row for each written one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import BigChunk, ProcessedPiece, Status
from streamwsi.errors import PieceError
from streamwsi.geometry import Window, Windows
from streamwsi.values import ValueSpec, as_rows

if TYPE_CHECKING:
    from streamwsi.blending.chunk import Tile


class RowMaker(Protocol):
    """Makes rows of what `process` returned. Both raise PieceError naming the windows whose values cannot be stored."""

    def of_batch(self, result: Any, windows: Windows) -> npt.NDArray[Any]:
        """A row for each of the windows."""
        ...

    def of_pieces(self, pieces: Sequence[ProcessedPiece]) -> npt.NDArray[Any]:
        """A row for each piece; there is at least one."""
        ...


class Numbers:
    """Rows of numbers."""

    def of_batch(self, result: Any, windows: Windows) -> npt.NDArray[Any]:
        """`result` as an array with one row for each of `windows`; PieceError otherwise."""
        values = as_rows(result)
        if values.ndim == 0 or len(values) != len(windows):
            raise PieceError(
                f"process returned shape {values.shape}, expected one row for each of {len(windows)} windows: "
                f"({len(windows)}, …)"
            )
        return values

    def of_pieces(self, pieces: Sequence[ProcessedPiece]) -> npt.NDArray[Any]:
        """The pieces' values, stacked; PieceError where they differ in dtype or shape."""
        values = [_value_of(piece) for piece in pieces]
        for piece, value in zip(pieces, values, strict=True):
            if (value.shape, value.dtype) != (values[0].shape, values[0].dtype):
                raise PieceError(
                    f"window {piece.window.index}: a value is {value.dtype} of shape {value.shape}, window "
                    f"{pieces[0].window.index}'s was {values[0].dtype} of shape {values[0].shape}"
                )
        return np.stack(values)


class ChunkRows:
    """Gathers the results of one chunk's batches, in the order of its windows."""

    def __init__(
        self, chunk: BigChunk, spec: ValueSpec | None, columns: tuple[str, ...] | None, maker: RowMaker | None = None
    ) -> None:
        self._columns = columns
        self._maker: RowMaker = maker or Numbers()
        self._rows: npt.NDArray[Any] | None = None
        self.windows = chunk.windows
        self.spec = spec
        self.status = np.full(len(chunk.windows), Status.NONE, np.uint8)
        self.status[chunk.skipped] = Status.SKIPPED
        self._skipped = chunk.skipped.copy()

    def add(self, rows: npt.NDArray[np.intp], result: Any) -> None:
        """Take the result for the windows at `rows`.

        Raises PieceError when it has the wrong number of rows, another shape or dtype than those before, or is not numeric.
        """
        windows = self.windows.take(rows)
        if result is None:
            raise PieceError(
                f"{_name(windows)}: process returned None; return one row per window, or a list of ProcessedPiece ([] for none)"
            )
        if isinstance(result, list) and all(isinstance(item, ProcessedPiece) for item in result):
            rows, values = self._from_pieces(rows, windows, result)
        else:
            try:
                values = self._maker.of_batch(result, windows)
            except PieceError as error:
                raise PieceError(f"{_name(windows)}: {error}") from error
        if not len(rows):
            return
        try:
            spec = self._spec_of(values, windows)
        except PieceError as error:
            raise PieceError(f"{_name(windows)}: {error}") from error
        if self.spec is None:
            self.spec = spec
        elif (spec.dtype, spec.shape) != (self.spec.dtype, self.spec.shape):
            raise PieceError(f"{_name(windows)}: a value is {spec}, those before it were {self.spec}")
        self._keep(rows, values, spec)
        self.status[rows] = Status.WRITTEN

    def values(self) -> npt.NDArray[Any]:
        """(m, ...): a row for each written window, in order."""
        if self._rows is None:
            return (self.spec or ValueSpec("float64", ())).empty()
        written: npt.NDArray[Any] = self._rows[self.status == Status.WRITTEN]
        return written

    def tiles(self) -> list[Tile] | None:
        """The sums of what was added, where that makes a map: they stand in place of rows."""
        return None

    def _spec_of(self, values: npt.NDArray[Any], windows: Windows) -> ValueSpec:
        """The spec of the values of these windows. Raises PieceError where they cannot be stored so."""
        spec = ValueSpec.of(values, self._columns)
        if not spec.size:
            raise PieceError(f"a value holds no number: its shape is {spec.shape}")
        if self.spec is None and self._columns is not None and len(self._columns) != spec.size:
            raise PieceError(
                f"the collector names {len(self._columns)} columns {self._columns}, but a value has {spec.size} numbers (shape "
                f"{spec.shape})"
            )
        return spec

    def _keep(self, rows: npt.NDArray[np.intp], values: npt.NDArray[Any], spec: ValueSpec) -> None:
        """Keep the values of the windows at `rows`, each of which comes once."""
        if self._rows is None:
            self._rows = spec.blank(len(self.windows))
        self._rows[rows] = values

    def _from_pieces(
        self, rows: npt.NDArray[np.intp], windows: Windows, pieces: list[ProcessedPiece]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
        for piece in pieces:
            if not isinstance(piece.window, Window):
                raise PieceError(
                    f"{_name(windows)}: the window of a ProcessedPiece is a {type(piece.window).__name__}, expected one of "
                    "batch.windows"
                )
        place = dict(zip(windows, rows.tolist(), strict=True))
        given = Counter(piece.window for piece in pieces)
        strange = [window.index for window in given if window not in place]
        doubled = [window.index for window, times in given.items() if times > 1]
        if strange or doubled:
            raise PieceError(
                f"{_name(windows)}: process returned pieces for windows that are "
                + (f"not in the batch: {strange}" if strange else f"given twice: {doubled}")
            )
        if not pieces:
            return rows[:0], np.empty((0,))
        return np.array([place[piece.window] for piece in pieces], np.intp), self._maker.of_pieces(pieces)


def _value_of(piece: ProcessedPiece) -> npt.NDArray[Any]:
    try:
        return as_rows(piece.value)
    except PieceError as error:
        raise PieceError(f"window {piece.window.index}: {error}") from error


def _name(windows: Windows) -> str:
    return f"windows {windows.index[0]} to {windows.index[-1]}" if len(windows) > 1 else f"window {windows.index[0]}"
