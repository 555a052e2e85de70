"""Read a patient file back.

In: a ``.h5`` or ``.csv`` file that a writer of this package made, of one patient or of all.  Out: the Pieces of one slide, in
the dtype and shape that the collector gave them.  Never opens a slide, and never passes over a missing or doubled window.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.config import OutputOptions
from streamwsi.errors import MapError
from streamwsi.geometry import Border, Grid, Int64Array
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec
from streamwsi.writing.csv_file import WINDOW_COLUMNS
from streamwsi.writing.layout import Layout
from streamwsi.writing.publish import PublishedPatient

if TYPE_CHECKING:
    import pandas as pd

_NUMBERS_AT_ONCE = 1 << 22
"""How many numbers of a CSV file are parsed at once."""


@dataclass(frozen=True)
class SlidePlan:
    """What a run resolved a slide to, as far as maps need it."""

    path: str
    """Where the slide lay during the run."""
    reader: str
    """The reader that was used."""
    level: int
    """The level read; 0 is the finest."""
    kernel: tuple[int, int]
    """(width, height) of a window, in pixels of the level read."""
    stride: tuple[int, int]
    """(x, y) steps, in pixels of the level read."""
    border: Border
    """What happens at the edge."""
    downsample: float
    """Level-0 pixels per pixel of the level read."""
    extent: tuple[int, int]
    """(width, height) of the level read, in its pixels."""
    extent_l0: tuple[int, int]
    """(width, height) of level 0."""
    mpp: tuple[float, float] | None
    """(x, y) micrometres per level-0 pixel, or None where the slide does not say."""

    def grid(self) -> Grid:
        """All windows of the slide."""
        return Grid(self.extent, self.kernel, self.stride, self.border, self.downsample)

    @classmethod
    def of(cls, resolved: ResolvedSlide) -> SlidePlan:
        """The plan of a slide as the record of its publication holds it, `resolved`."""
        return cls(
            path=resolved.path,
            reader=resolved.info.reader,
            level=resolved.level,
            kernel=resolved.kernel,
            stride=resolved.stride,
            border=resolved.border,
            downsample=resolved.downsample,
            extent=resolved.extent,
            extent_l0=resolved.info.dimensions,
            mpp=resolved.info.mpp,
        )

    @classmethod
    def from_attributes(cls, attributes: Any) -> SlidePlan:
        """The plan of a slide as the attributes on its ``coords`` tell; KeyError when one is missing."""

        def pair(name: str) -> tuple[int, int]:
            first, second = attributes[name]
            return int(first), int(second)

        return cls(
            path=str(attributes["slide_path"]),
            reader=str(attributes["reader"]),
            level=int(attributes["patch_level"]),
            kernel=pair("kernel_size"),
            stride=pair("stride"),
            border=attributes["border"],
            downsample=float(attributes["downsample"][0]),
            extent=pair("level_dim"),
            extent_l0=(int(attributes["level0_width"]), int(attributes["level0_height"])),
            mpp=(float(attributes["mpp"][0]), float(attributes["mpp"][1])) if "mpp" in attributes else None,
        )


@dataclass(frozen=True, eq=False)
class Pieces:
    """What a collector made of one slide: a row for each written window, in the order of the plan."""

    patient: str
    """The patient's id."""
    slide: str
    """The slide's id, in its patient."""
    index: Int64Array
    """(N,) int64: places in the plan."""
    coords: Int64Array
    """(N, 2) int64: (x, y) of the windows' corners in level-0 pixels."""
    size: Int64Array
    """(N, 2) int64: (width, height) of the windows in pixels of the level read."""
    level: int | None
    """The level read; None where neither a row nor a record tells."""
    values: npt.NDArray[Any]
    """(N, ...) in the dtype and shape that the collector gave."""
    columns: tuple[str, ...]
    """Names of the flattened values."""
    plan: SlidePlan | None
    """What the slide was resolved to; None for a CSV file without its record."""

    def __len__(self) -> int:
        return len(self.index)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each window, with the columns of a patient's CSV file; values keep their dtype."""
        import pandas as pd

        places = np.column_stack([self.index, self.coords, np.full(len(self), self.level or 0), self.size])
        windows = pd.DataFrame(places, columns=pd.Index(WINDOW_COLUMNS[1:]))
        windows.insert(0, WINDOW_COLUMNS[0], self.slide)
        values = pd.DataFrame(flattened(self.values), columns=pd.Index(self.columns))
        table: pd.DataFrame = pd.concat([windows, values], axis=1)
        return table


def read_pieces(path: str | os.PathLike[str], slide: str | None = None, patient: str | None = None) -> Pieces:
    """The pieces of one slide, exactly as the collector gave them.

    Parameters
    ----------
    path
        A patient's ``.h5`` or ``.csv`` file, or the file of all patients.
    slide
        Which slide; may be left out where the patient has one.
    patient
        Which patient, in a file of all patients; may be left out where the rest tells.

    Notes
    -----
    A CSV file holds digits only: dtype, shape and what the slide was resolved to stand in the output folder's records. A file
    that was moved away from them is still read, with less: ``plan`` is None, values come as float64, int64 or uint64
    (booleans as 0 and 1; a float32 as the float64 with the same digits), flattened to (N, columns), or to (N,) for a single
    column called ``value``; a slide without a row is not known, nor is it noticed when rows at the end are missing.

    Raises
    ------
    MapError
        When the file is missing, damaged or not one of ours; when several slides would fit (the message names them) or
        none; when a window is missing or stands there twice.

    Examples
    --------
    >>> pieces = read_pieces("out/p1.h5", slide="H&E")  # doctest: +SKIP
    >>> pieces.coords.shape, pieces.values.shape  # doctest: +SKIP
    ((108, 2), (108, 3))
    """
    return load(Path(path), slide, patient)


def load(path: Path, slide: str | None, patient: str | None, channel: int | str | None = None) -> Pieces:
    """As :func:`read_pieces`; with `channel`, only that one of the flattened values (its number or name) is read, as (N,)."""
    file = _open(path)
    patient, slide = _choose(path, file.slides(), slide, patient)
    pieces, n_expected = file.read(patient, slide, channel)
    _check(path, pieces, n_expected)
    return pieces


def slides_in(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """(patient, slide) of every slide in a patient file. Raises MapError when it is missing, damaged, or not one of ours."""
    return _open(Path(path)).slides()


def flattened(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(N, ...) as (N, channels)."""
    return values.reshape(len(values), int(np.prod(values.shape[1:], dtype=np.int64)))


def _open(path: Path) -> _HDF5Pieces | _CSVPieces:
    if not path.is_file():
        raise MapError(f"{path} is not a file; a patient's .h5 or .csv file was expected")
    if path.suffix.lower() in (".h5", ".hdf5"):
        return _HDF5Pieces(path)
    if path.suffix.lower() == ".csv":
        return _CSVPieces(path)
    raise MapError(f"{path} does not end in .h5 or .csv; a patient's file was expected")


def _choose(path: Path, slides: list[tuple[str, str]], slide: str | None, patient: str | None) -> tuple[str, str]:
    def named(values: Iterator[str]) -> str:
        return ", ".join(map(repr, dict.fromkeys(values))) or "none"

    patients = dict.fromkeys(name for name, _ in slides)
    if patient is not None and patient not in patients:
        raise MapError(f"{path} does not hold patient {patient!r}; it holds {named(iter(patients))}")
    fitting = [(owner, name) for owner, name in slides if patient in (None, owner) and slide in (None, name)]
    if not fitting:
        raise MapError(f"{path} does not hold slide {slide!r}; it holds {named(name for _, name in slides)}")
    if len({owner for owner, _ in fitting}) > 1:
        raise MapError(f"{path} holds several patients, {named(owner for owner, _ in fitting)}: say which with patient=")
    if len(fitting) > 1:
        raise MapError(f"{path} holds several slides, {named(name for _, name in fitting)}: say which with slide=")
    return fitting[0]


def _check(path: Path, pieces: Pieces, n_expected: int | None) -> None:
    """Raise MapError when a window is missing or stands in the file twice, or does not lie where the plan has it."""
    where = f"{path}, slide {pieces.slide!r}"
    steps = np.diff(pieces.index)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0)) + 1
        window = pieces.index[row]
        why = "stands there twice" if window in pieces.index[:row] else f"comes after window {pieces.index[row - 1]}"
        raise MapError(f"{where}: window {window} {why}; the file was changed after it was written")
    if n_expected is not None and len(pieces) != n_expected:
        raise MapError(f"{where}: {len(pieces)} windows, expected {n_expected}; the file was changed after it was written")
    if pieces.plan is None or not len(pieces):
        return
    grid = pieces.plan.grid()
    if pieces.index[0] < 0 or pieces.index[-1] >= len(grid):
        strange = pieces.index[0] if pieces.index[0] < 0 else pieces.index[-1]
        raise MapError(f"{where}: window {strange} is not in the plan, which has {len(grid)}")
    moved = (grid.windows(pieces.index).xy != pieces.coords).any(axis=1)
    if moved.any():
        row = int(np.argmax(moved))
        planned = tuple(grid.windows(pieces.index[row : row + 1]).xy[0].tolist())
        raise MapError(
            f"{where}: window {pieces.index[row]} lies at {tuple(pieces.coords[row].tolist())}, the plan has it at {planned}"
        )


def _channel_number(path: Path, columns: tuple[str, ...], channel: int | str) -> int:
    if isinstance(channel, str) and channel in columns:
        return columns.index(channel)
    if not isinstance(channel, str) and 0 <= channel < len(columns):
        return int(channel)
    shown = ", ".join(map(repr, columns[:8])) + (", …" if len(columns) > 8 else "")
    raise MapError(f"{path} has no channel {channel!r}; it has {len(columns)}, from 0: {shown}")


def _patient_of(path: Path) -> str:
    """Whose file it is, by its name."""
    return path.stem.removesuffix(".partial")


class _HDF5Pieces:
    """A patient file as HDF5."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def slides(self) -> list[tuple[str, str]]:
        """(patient, slide) of each."""
        with self._opened() as file:
            return list(self._groups(file))

    def read(self, patient: str, slide: str, channel: int | str | None) -> tuple[Pieces, int]:
        """The pieces of a slide, and how many there should be."""
        with self._opened() as file:
            group = file[self._groups(file)[patient, slide]]
            try:
                plan = SlidePlan.from_attributes(group["coords"].attrs)
                features = group["features"]
                index, coords, not_written = group["index"][:], group["coords"][:], group["not_written"][:]
            except KeyError as error:
                raise MapError(f"{self._path} was not written by streamwsi: {error.args[0]}") from error
            names = group["columns"].asstr()[:] if "columns" in group else features.attrs.get("columns")
            spec = ValueSpec(features.dtype.name, features.shape[1:], None if names is None else tuple(map(str, names)))
            columns = spec.column_names
            if channel is None:
                values = features[:]
            else:
                number = _channel_number(self._path, columns, channel)
                place = map(int, np.unravel_index(number, spec.shape))
                values = features[tuple((slice(None), *place))]
                columns = (columns[number],)
        if not len(index) == len(coords) == len(values):
            raise MapError(f"{self._path}, slide {slide!r}: {len(index)} windows, {len(coords)} coords, {len(values)} features")
        grid = plan.grid()
        inside = (index >= 0) & (index < len(grid))
        size = grid.windows(np.where(inside, index, 0)).size if len(grid) else np.empty((0, 2), np.int64)
        pieces = Pieces(patient, slide, index, coords, size, plan.level, values, columns, plan)
        without_row = int((not_written[:, 1] - not_written[:, 0] + 1).sum())
        return pieces, len(grid) - without_row

    def _opened(self) -> Any:
        # Locks fail on some network file systems, and a published file does not change any more; but a file that is open in
        # this process already must be opened as it was.
        for locking in (False, None):
            with suppress(OSError):
                return h5py.File(self._path, "r", locking=locking)
        try:
            return h5py.File(self._path, "r", locking=True)
        except OSError as error:
            raise MapError(f"{self._path} is not an HDF5 file, or it is damaged: {error}") from error

    def _groups(self, file: Any) -> dict[tuple[str, str], str]:
        """The groups of the slides, by (patient, slide)."""
        found: dict[tuple[str, str], str] = {}
        for name, group in file.items():
            if not isinstance(group, h5py.Group):
                continue
            if _is_slide(group):
                found[_patient_of(self._path), name] = name
            else:
                found |= {(name, slide): f"{name}/{slide}" for slide, inner in group.items() if _is_slide(inner)}
        if not found and "streamwsi_version" not in file.attrs:
            raise MapError(f"{self._path} was not written by streamwsi: it has no group of a slide")
        return found


def _is_slide(group: Any) -> bool:
    return isinstance(group, h5py.Group) and isinstance(group.get("coords"), h5py.Dataset)


class _CSVPieces:
    """A patient file as CSV, with the records that lie beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open(encoding="utf-8", newline="") as file:
                header = tuple(next(csv.reader(file), []))
        except (UnicodeDecodeError, csv.Error) as error:
            raise MapError(f"{path} cannot be read as CSV: {error}") from error
        self._of_all = header[:1] == ("patient",)
        lead = len(WINDOW_COLUMNS) + self._of_all
        if header[self._of_all : lead] != WINDOW_COLUMNS:
            raise MapError(f"{path} was not written by streamwsi: its columns do not begin with {','.join(WINDOW_COLUMNS)}")
        self._lead, self._columns = lead, header[lead:]
        self._layout = Layout.of(OutputOptions(folder=str(path.parent), format="csv"))

    def slides(self) -> list[tuple[str, str]]:
        """(patient, slide) of each: by the records, or else those that have a row."""
        records = self._records()
        if records:
            return [(record.patient_id, slide.resolved.id) for record in records for slide in record.slides]
        found: dict[tuple[str, str], None] = {}
        for table in self._tables(list(range(1 + self._of_all)), {}):
            owners = table[0] if self._of_all else [_patient_of(self._path)] * len(table)
            found |= dict.fromkeys(zip(owners, table[int(self._of_all)], strict=True))
        return list(found)

    def read(self, patient: str, slide: str, channel: int | str | None) -> tuple[Pieces, int | None]:
        """The pieces of a slide, and how many there should be where that is known."""
        record = next((record for record in self._records() if record.patient_id == patient), None)
        published = next((own for own in record.slides if own.resolved.id == slide), None) if record else None
        spec = record.values if record else self._values_of_run()
        columns, chosen = self._columns, list(range(len(self._columns)))
        if channel is not None:
            chosen = [_channel_number(self._path, columns, channel)]
            columns = (columns[chosen[0]],)
        if spec is not None and spec.column_names != self._columns:
            raise MapError(f"{self._path} has columns {self._columns}, its record says {spec.column_names}")
        places, parsed = self._rows(patient, slide, [self._lead + number for number in chosen], spec)
        values = _as_sent(parsed, spec, columns)
        if channel is not None:
            values = flattened(values)[:, 0]
        plan = SlidePlan.of(published.resolved) if published else None
        level = plan.level if plan else int(places[0, 3]) if len(places) else None
        pieces = Pieces(patient, slide, places[:, 0], places[:, 1:3], places[:, 4:], level, values, columns, plan)
        return pieces, published.written if published else None

    def _rows(
        self, patient: str, slide: str, numbers: list[int], spec: ValueSpec | None
    ) -> tuple[Int64Array, list[npt.NDArray[Any]]]:
        """A slide's (N, 6) int64 of index, x, y, level, width, height, and each of the columns `numbers`, (N,)."""
        ids = 1 + self._of_all
        dtypes = dict.fromkeys(numbers, _parsed_as(spec)) if spec else {}
        places: list[Int64Array] = [np.empty((0, self._lead - ids), np.int64)]
        parts: list[list[npt.NDArray[Any]]] = [[] for _ in numbers]
        for table in self._tables([*range(self._lead), *numbers], dtypes):
            wanted = table[ids - 1] == slide
            if self._of_all:
                wanted &= table[0] == patient
            rows = table[wanted]
            if len(rows):
                places.append(rows[list(range(ids, self._lead))].to_numpy())
                for part, number in zip(parts, numbers, strict=True):
                    part.append(rows[number].to_numpy())
        return np.concatenate(places), [_joined(part) for part in parts]

    def _tables(self, columns: list[int], dtypes: dict[int, npt.DTypeLike]) -> Iterator[pd.DataFrame]:
        """Parts of these columns, some million numbers at a time, called by their numbers."""
        import pandas as pd

        ids = 1 + self._of_all
        # Before 3.1 pandas is inexact in the last digit unless it is told; from then on it always is exact, and warns of this.
        exact: Any = {"float_precision": "round_trip"} if _version(pd.__version__) < (3, 1) else {}
        kinds: Any = dict.fromkeys(range(ids), str) | dict.fromkeys(range(ids, self._lead), np.int64) | dtypes
        missing: Any = {number: ["nan"] for number in columns if number >= self._lead}
        try:
            with pd.read_csv(
                self._path,
                header=0,
                names=list(range(self._lead + len(self._columns))),
                usecols=columns,
                dtype={number: kinds[number] for number in columns if number in kinds},
                keep_default_na=False,
                na_values=missing,
                chunksize=max(1, _NUMBERS_AT_ONCE // len(columns)),
                encoding="utf-8",
                **exact,
            ) as parts:
                yield from parts
        except (ValueError, OverflowError) as error:  # UnicodeDecodeError and pandas' ParserError among them
            raise MapError(f"{self._path} is damaged, or it was changed after it was written: {error}") from error

    def _records(self) -> list[PublishedPatient]:
        """The records of the patients in this file."""
        if self._of_all:
            paths = [path for suffix in ("json", "partial") for path in self._layout.published_dir.glob(f"*.{suffix}")]
        else:
            owner = _patient_of(self._path)
            paths = [self._layout.published(owner), self._layout.published(owner, partial=True)]
        records = [record for path in paths if (record := _decoded(path, PublishedPatient)) and record.file == self._path.name]
        return sorted(records, key=lambda record: record.patient_id)

    def _values_of_run(self) -> ValueSpec | None:
        """What the run's own file says of its values."""
        run = _decoded(self._layout.run_file, _RunValues)
        return run.values if run else None


class _RunValues(msgspec.Struct):
    """The part of ``run.json`` that is needed here."""

    values: ValueSpec | None = None


def _decoded(path: Path, kind: type[Any]) -> Any:
    """A JSON file as `kind`; None where there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise MapError(f"{path} is damaged: {error}") from error


def _parsed_as(spec: ValueSpec) -> npt.DTypeLike:
    """What the digits of a dtype are parsed as: a dtype that holds all its numbers."""
    kind = np.dtype(spec.dtype).kind
    return np.float64 if kind == "f" else np.uint8 if kind == "b" else np.dtype(spec.dtype)


def _as_sent(parsed: list[npt.NDArray[Any]], spec: ValueSpec | None, columns: tuple[str, ...]) -> npt.NDArray[Any]:
    """Columns as (N, ...) of the dtype and shape of `spec`, as far as these are all its columns."""
    rows = len(parsed[0]) if parsed else 0
    if spec is not None:
        flat = np.empty((rows, len(parsed)), spec.dtype)
        for number, column in enumerate(parsed):
            flat[:, number] = column
        return flat.reshape(rows, *spec.shape) if len(parsed) == spec.size else flat
    flat = _stacked(parsed)
    return flat[:, 0] if columns == ("value",) else flat


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Parts of a column whose dtypes were guessed one by one, in one dtype that holds them all."""
    return np.concatenate([part.astype(_common(parts)) for part in parts]) if parts else np.empty(0)


def _stacked(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.stack([column.astype(_common(columns)) for column in columns], axis=1) if columns else np.empty((0, 0))


def _common(arrays: list[npt.NDArray[Any]]) -> np.dtype[Any]:
    # for int64 and uint64 NumPy would take float64; a file with a number above the range of int64 has none below 0
    dtypes = {array.dtype for array in arrays}
    return np.dtype(np.uint64) if dtypes == {np.dtype(np.int64), np.dtype(np.uint64)} else np.result_type(*dtypes)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
