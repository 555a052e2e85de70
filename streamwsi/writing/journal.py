"""The crash-safe store of one patient's pieces while a run is under way.

In: chunks of pieces.  Out: the same, in window order, after any crash.  One process at a time opens a journal.

What is on disk once a commit has returned:

``process``
    The commit stands in the log, in the system's page cache: it survives the end of any process, and of all, however they end.
    A loss of power may take the last commits with it, but no commit without all that came after it, and none in part.
``power``
    The log is synced before the commit returns, and the folder before the first: it survives a loss of power too, where disks
    do what they are told.

Pieces are kept as runs of neighbouring windows (a row of a chunk's block is one run), keyed by slide and first window, so
that reading in key order is reading in window order, with no more than a run in memory. Values that are bytes are kept behind
their lengths. Of a map there are tiles of sums in place of values, keyed by block and chunk, so that a block's are read in the
order of the plan. A commit is one transaction; a chunk that is committed again changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.chunks import Status
from streamwsi.config import Durability
from streamwsi.errors import JournalError, PieceError
from streamwsi.geometry import Int64Array
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec, joined, parted
from streamwsi.writing.layout import disk_error, disk_errors, make_folder

_SCHEMA_VERSION = 1
_SLIDE_SHIFT = 44
"""A key is ``slide << 44 | first window``: room for 2^44 windows of each of 2^19 slides of a patient."""
_SYNCHRONOUS = {"process": "NORMAL", "power": "FULL"}
# In WAL mode NORMAL loses no transaction when a process ends, however it ends, and may lose the last ones with the power;
# FULL syncs the log at each commit. Source: https://www.sqlite.org/pragma.html#pragma_synchronous
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE slides (slide INTEGER PRIMARY KEY, resolved BLOB NOT NULL);
CREATE TABLE chunks (slide INTEGER, chunk INTEGER, written INTEGER, none INTEGER, skipped INTEGER,
                     PRIMARY KEY (slide, chunk)) WITHOUT ROWID;
CREATE TABLE pieces (key INTEGER PRIMARY KEY, chunk INTEGER, written INTEGER, status BLOB NOT NULL, vals BLOB NOT NULL);
CREATE TABLE tiles (slide INTEGER, block_row INTEGER, block_column INTEGER, chunk INTEGER, y0 INTEGER, x0 INTEGER,
                    y1 INTEGER, x1 INTEGER, sums BLOB NOT NULL, PRIMARY KEY (slide, block_row, block_column, chunk));
CREATE TABLE tiled (slide INTEGER, chunk INTEGER, status BLOB NOT NULL, PRIMARY KEY (slide, chunk)) WITHOUT ROWID;
"""


@dataclass(frozen=True, eq=False)
class ChunkTiles:
    """What a chunk adds to a map."""

    spec: ValueSpec
    """Of the image of a whole window."""
    tiles: list[StoredTile]


@dataclass(frozen=True, eq=False)
class StoredTile:
    """A tile of sums as it is stored."""

    place: tuple[int, int]
    """(row, column) of its block."""
    box: tuple[int, int, int, int]
    """(top, left, bottom, right), in pixels of the map."""
    sums: bytes | memoryview
    """Packed, see :mod:`streamwsi.blending.packing`; their type follows from the values' and the plan."""
    chunk: int


@dataclass(frozen=True, eq=False)
class ChunkPieces:
    """What became of the windows of one chunk."""

    slide: int
    """Place among the patient's slides."""
    chunk: int
    index: Int64Array
    """(n,) int64, ascending: all windows of the chunk."""
    status: npt.NDArray[np.uint8]
    """(n,) uint8 of :class:`Status`: written, none or skipped."""
    values: npt.NDArray[Any]
    """(m, ...): one row for each written window, in order."""
    columns: tuple[str, ...] | None = None
    map: ChunkTiles | None = None
    """What there is of a map, in place of values."""

    def __post_init__(self) -> None:
        written = int(np.count_nonzero(self.status == Status.WRITTEN))
        rows = written if self.map is None else 0
        if len(self.index) != len(self.status) or len(self.values) != rows:
            raise PieceError(
                f"chunk {self.chunk}: {len(self.index)} windows with {len(self.status)} statuses, {written} of them written, "
                f"cannot have {len(self.values)} values"
            )

    def counts(self) -> tuple[int, int, int]:
        """How many windows are written, none, skipped."""
        written, none, skipped = np.bincount(self.status, minlength=3)[:3].tolist()
        return written, none, skipped


@dataclass(frozen=True, eq=False)
class Run:
    """Neighbouring windows of one slide, as they are stored."""

    first: int
    chunk: int
    status: npt.NDArray[np.uint8]
    """(n,) uint8."""
    values: npt.NDArray[Any]
    """(m, ...): rows of the written ones."""


class Journal:
    """One patient's journal. Opening creates it where it does not exist.

    Every method raises DiskError where the disk does not do as it is asked, and JournalError where the journal is damaged.
    """

    def __init__(self, path: Path, durability: Durability = "process") -> None:
        self.path = path
        make_folder(path.parent)
        self._db: sqlite3.Connection | None = None
        try:
            with self._sqlite():
                self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
                # One process owns it: the kernel's lock is held while it is open, and no shared memory file is needed.
                self._execute("PRAGMA locking_mode=EXCLUSIVE")
                self._execute("PRAGMA journal_mode=WAL")
                self._execute(f"PRAGMA synchronous={_SYNCHRONOUS[durability]}")
                (version,) = self._execute("PRAGMA user_version").fetchone()
                if version == 0:
                    with self._transaction():
                        for statement in filter(str.strip, _TABLES.split(";")):
                            self._execute(statement)
                        self._execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
                elif version != _SCHEMA_VERSION:
                    raise JournalError(f"{path} is a journal of version {version}; this streamwsi reads {_SCHEMA_VERSION}")
                self._spec: ValueSpec | None = self._meta("values", ValueSpec)
        except BaseException:
            self.close()
            raise

    @property
    def spec(self) -> ValueSpec | None:
        """Dtype and shape of the values, once there is one."""
        return self._spec

    def record_slide(self, resolved: ResolvedSlide) -> None:
        """Keep what a slide resolved to. Recording it again replaces it only while no chunk of it is committed."""
        query = "INSERT OR REPLACE INTO slides SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM chunks WHERE slide = ?)"
        with self._transaction():
            self._execute(query, (resolved.slide, msgspec.msgpack.encode(resolved), resolved.slide))

    def slides(self) -> dict[int, ResolvedSlide]:
        """What the patient's slides resolved to, by their place among them."""
        with self._sqlite():
            rows = self._execute("SELECT slide, resolved FROM slides ORDER BY slide").fetchall()
        return {slide: msgspec.msgpack.decode(resolved, type=ResolvedSlide) for slide, resolved in rows}

    def commit(self, chunks: Iterable[ChunkPieces]) -> None:
        """Store these chunks in one transaction; those that are already there stay as they are.

        Raises PieceError when values differ in dtype or shape from those before, JournalError when another chunk holds one of
        the windows; then none of these chunks is stored.
        """
        spec = self._spec
        try:
            with self._transaction():
                for chunk in chunks:
                    if len(chunk.values) or (chunk.map is not None and chunk.counts()[Status.WRITTEN]):
                        self._check_spec(chunk)
                    added = self._execute(
                        "INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?, ?)", (chunk.slide, chunk.chunk, *chunk.counts())
                    )
                    if added.rowcount:
                        self._add(chunk)
        except BaseException:
            self._spec = spec  # what this transaction learnt went with it
            raise

    def committed(self) -> dict[int, list[int]]:
        """Numbers of the committed chunks of each slide, ascending."""
        found: dict[int, list[int]] = {}
        with self._sqlite():
            for slide, chunk in self._execute("SELECT slide, chunk FROM chunks ORDER BY slide, chunk"):
                found.setdefault(slide, []).append(chunk)
        return found

    def counts(self, slide: int) -> tuple[int, int, int]:
        """Windows of a slide that are written, none, skipped."""
        query = "SELECT ifnull(sum(written), 0), ifnull(sum(none), 0), ifnull(sum(skipped), 0) FROM chunks WHERE slide = ?"
        with self._sqlite():
            written, none, skipped = self._execute(query, (slide,)).fetchone()
        return written, none, skipped

    def written_rows(self, slide: int, last_chunk: int | None = None) -> int:
        """Rows of a slide, of chunks up to `last_chunk` if that is given."""
        query = "SELECT ifnull(sum(written), 0) FROM chunks WHERE slide = ? AND chunk <= ?"
        with self._sqlite():
            (rows,) = self._execute(query, (slide, (1 << 62) if last_chunk is None else last_chunk)).fetchone()
        return int(rows)

    def runs(self, slide: int, with_values: bool = True) -> Iterator[Run]:
        """All runs of a slide, in window order, one in memory at a time; of a map there are no values."""
        query = "SELECT key, chunk, status, vals FROM pieces WHERE key >= ? AND key < ? ORDER BY key"
        spec = self._spec if with_values else None
        with self._sqlite():
            for key, chunk, status, values in self._execute(query, (slide << _SLIDE_SHIFT, (slide + 1) << _SLIDE_SHIFT)):
                statuses = np.frombuffer(status, np.uint8)
                rows = int(np.count_nonzero(statuses == Status.WRITTEN))
                decoded = _decoded(values, spec, rows) if spec else np.empty((0,))
                yield Run(key & ((1 << _SLIDE_SHIFT) - 1), chunk, statuses, decoded)

    def tiles(self, slide: int, place: tuple[int, int], last_chunk: int | None = None) -> Iterator[StoredTile]:
        """The tiles that a slide's chunks, up to `last_chunk` if that is given, have in a block, in the chunks' order, one in
        memory at a time.
        """
        query = (
            "SELECT chunk, y0, x0, y1, x1, sums FROM tiles "
            "WHERE slide = ? AND block_row = ? AND block_column = ? AND chunk <= ? ORDER BY chunk"
        )
        last = (1 << 62) if last_chunk is None else last_chunk
        with self._sqlite():
            for chunk, *box, sums in self._execute(query, (slide, *place, last)):
                top, left, bottom, right = box
                yield StoredTile(place, (top, left, bottom, right), sums, chunk)

    def statuses(self, slide: int, chunk: int) -> npt.NDArray[np.uint8]:
        """(n,) uint8: what became of the windows of a chunk of a map, in the chunk's order. Raises JournalError without it."""
        with self._sqlite():
            row = self._execute("SELECT status FROM tiled WHERE slide = ? AND chunk = ?", (slide, chunk)).fetchone()
        if row is None:
            raise JournalError(f"{self.path} holds tiles of chunk {chunk} of slide {slide}, and not what became of its windows")
        return np.frombuffer(row[0], np.uint8)

    def close(self) -> None:
        """Close the journal; what was committed is in it."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def remove(self) -> None:
        """Close the journal and delete its files."""
        self.close()
        remove_journal(self.path)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def _db_open(self) -> sqlite3.Connection:
        if self._db is None:
            raise JournalError(f"{self.path} is closed")
        return self._db

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        return self._db_open.execute(statement, values)

    @contextmanager
    def _sqlite(self) -> Iterator[None]:
        """SQLite is asked inside; its errors become ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            hint = " (a limit on the size of files, a quota, or the disk itself)" if str(error) == "disk I/O error" else ""
            raise disk_error(self.path, f"{error}{hint}") from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # a mistake of ours, not damage
                raise
            raise JournalError(f"{self.path} is damaged: {error}; remove it, and what it held is done again") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._sqlite():
            self._execute("BEGIN IMMEDIATE")
            try:
                yield
                self._execute("COMMIT")
            except BaseException:
                # After a full disk SQLite has rolled back by itself, or has left the transaction open where COMMIT failed
                if self._db_open.in_transaction:
                    self._execute("ROLLBACK")
                raise

    def _meta(self, name: str, kind: type[Any]) -> Any:
        row = self._execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return msgspec.msgpack.decode(row[0], type=kind) if row else None

    def _add(self, chunk: ChunkPieces) -> None:
        try:
            self._db_open.executemany("INSERT INTO pieces VALUES (?, ?, ?, ?, ?)", _as_runs(chunk))
        except sqlite3.IntegrityError as error:
            raise JournalError(
                f"{self.path}: chunk {chunk.chunk} of slide {chunk.slide}, windows {chunk.index[0]} to {chunk.index[-1]}, "
                "holds a window that another chunk has committed"
            ) from error
        if chunk.map is not None:
            self._execute("INSERT INTO tiled VALUES (?, ?, ?)", (chunk.slide, chunk.chunk, chunk.status.tobytes()))
            rows = ((chunk.slide, *tile.place, chunk.chunk, *tile.box, tile.sums) for tile in chunk.map.tiles)
            self._db_open.executemany("INSERT INTO tiles VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _check_spec(self, chunk: ChunkPieces) -> None:
        spec = ValueSpec.of(chunk.values, chunk.columns) if chunk.map is None else chunk.map.spec
        if self._spec is None:
            self._execute("INSERT INTO meta VALUES ('values', ?)", (msgspec.msgpack.encode(spec),))
            self._spec = spec
        elif (spec.dtype, spec.shape) != (self._spec.dtype, self._spec.shape):
            raise PieceError(f"window {chunk.index[0]}: a value is {spec}, those before it were {self._spec}")


def remove_journal(path: Path) -> None:
    """Delete the files of a journal that nobody has open; harmless where there are none."""
    for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        with disk_errors(name):
            name.unlink(missing_ok=True)


def _as_runs(chunk: ChunkPieces) -> Iterator[tuple[int, int, int, bytes, bytes]]:
    """Rows of the table of pieces: (key, chunk, written, status, values)."""
    breaks = np.flatnonzero(np.diff(chunk.index) != 1) + 1
    starts = [0, *breaks.tolist()]
    stops = [*breaks.tolist(), len(chunk.index)]
    row = 0
    for start, stop in zip(starts, stops, strict=True):
        status = chunk.status[start:stop]
        written = int(np.count_nonzero(status == Status.WRITTEN))
        key = chunk.slide << _SLIDE_SHIFT | int(chunk.index[start])
        yield key, chunk.chunk, written, status.tobytes(), _encoded(chunk.values[row : row + written])
        row += written


def _encoded(rows: npt.NDArray[Any]) -> bytes:
    """Rows as they are stored; of bytes, their lengths come first."""
    if rows.dtype != object:
        return rows.tobytes()
    lengths, data = joined(rows)
    return lengths.tobytes() + data


def _decoded(stored: bytes, spec: ValueSpec, rows: int) -> npt.NDArray[Any]:
    """The inverse of :func:`_encoded`."""
    if not spec.holds_bytes:
        return np.frombuffer(stored, spec.dtype).reshape(rows, *spec.shape)
    view, n = memoryview(stored), rows * spec.size
    return parted(np.frombuffer(stored, np.int64, n).reshape(rows, *spec.shape), view[n * 8 :])
