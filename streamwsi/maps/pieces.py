"""Read a patient file back.

In: a ``.h5`` or ``.csv`` file that a writer of this package made, of one patient or of all.  Out: the Pieces of one slide, in
the dtype and shape that the collector gave them, at once or in parts.  Never opens a slide, and never passes over a missing or
doubled window.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.config import OutputOptions
from streamwsi.errors import MapError
from streamwsi.geometry import Border, Grid, Int64Array
from streamwsi.map_options import MAP_SUFFIXES
from streamwsi.plan import Plan, Sample
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec
from streamwsi.writing.csv_file import LABELLED_COLUMNS, WINDOW_COLUMNS
from streamwsi.writing.layout import Layout
from streamwsi.writing.manifest import holds_patch_set
from streamwsi.writing.map_manifest import holds_maps
from streamwsi.writing.publish import PublishedPatient

if TYPE_CHECKING:
    import pandas as pd

_NUMBERS_AT_ONCE = 1 << 22
"""How many numbers of a file are in memory at once where it is read in parts, or parsed."""
_ROWS_AT_ONCE = 1 << 18
"""Windows in such a part, at most: each has a place and a size besides its values."""


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
    """(x, y) steps, in pixels of the level read; (0, 0) where windows lie on no grid."""
    border: Border
    """What happens at the edge, where they are all of a grid."""
    downsample: float
    """Level-0 pixels per pixel of the level read."""
    extent: tuple[int, int]
    """(width, height) of what is read, in its pixels."""
    extent_l0: tuple[int, int]
    """(width, height) of level 0."""
    mpp: tuple[float, float] | None
    """(x, y) micrometres per level-0 pixel, or None where the slide does not say."""
    sampled: int | None = None
    """How many windows a sampler has chosen; None: they are all of a grid."""
    zoom: float = 1.0
    """Pixels of the level per pixel of what is read."""
    sample: Sample | None = None
    """Where they lie, of those that a sampler has chosen, where the records tell."""

    @property
    def n_windows(self) -> int:
        """How many windows there are, with a row or not."""
        return len(self.grid()) if self.sampled is None else self.sampled

    @property
    def cell(self) -> tuple[int, int]:
        """(width, height) of a cell of the map, in pixels of the level read: the stride, or a quarter of a window."""
        width, height = (stride or max(1, kernel // 4) for stride, kernel in zip(self.stride, self.kernel, strict=True))
        return width, height

    def grid(self) -> Grid:
        """All windows of the slide, where no sampler has chosen others."""
        return Grid(self.extent, self.kernel, self.stride, self.border, self.downsample)

    def places(self) -> Plan | None:
        """All windows of the slide; None where only those with a row are known."""
        return self.grid() if self.sampled is None else self._sampled

    @cached_property
    def _sampled(self) -> Plan | None:
        """It is asked for with each part of the file."""
        return None if self.sample is None else self.sample.decoded(self.kernel, self.downsample)

    def sizes(self, index: Int64Array) -> Int64Array:
        """(n, 2) int64: (width, height), in pixels of the level read, of the windows with these places in the plan, `index`."""
        if self.sampled is not None:
            return np.tile(np.array(self.kernel, np.int64), (len(index), 1))
        grid = self.grid()
        inside = (index >= 0) & (index < len(grid))
        return grid.windows(np.where(inside, index, 0)).size if len(grid) else np.empty((0, 2), np.int64)

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
            sampled=None if resolved.sample is None else resolved.sample.count,
            zoom=resolved.zoom,
            sample=resolved.sample,
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
            border=attributes["border"] if "sampled_windows" not in attributes else "pad",
            downsample=float(attributes["downsample"][0]),
            extent=pair("level_dim"),
            extent_l0=(int(attributes["level0_width"]), int(attributes["level0_height"])),
            mpp=(float(attributes["mpp"][0]), float(attributes["mpp"][1])) if "mpp" in attributes else None,
            sampled=int(attributes["sampled_windows"]) if "sampled_windows" in attributes else None,
            zoom=float(attributes["zoom"]) if "zoom" in attributes else 1.0,
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
    labels: npt.NDArray[Any] | None = None
    """(N,) of strings, empty for a window without a label; None where the file has none."""

    def __len__(self) -> int:
        return len(self.index)

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each window, with the columns of a patient's CSV file; values keep their dtype."""
        import pandas as pd

        places = np.column_stack([self.index, self.coords, np.full(len(self), self.level or 0), self.size])
        windows = pd.DataFrame(places, columns=pd.Index(WINDOW_COLUMNS[1:]))
        windows.insert(0, WINDOW_COLUMNS[0], self.slide)
        if self.labels is not None:
            windows.insert(1, LABELLED_COLUMNS[1], self.labels)
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
    file, heading = _find(path, slide, patient, channel)
    (pieces,) = _checked(path, file.parts(heading, whole=True), heading)
    return pieces


@dataclass(frozen=True, eq=False)
class PieceStream:
    """The pieces of one slide, part by part: memory follows the part, not the slide."""

    path: Path
    patient: str
    slide: str
    columns: tuple[str, ...]
    """Names of the flattened values that are read."""
    plan: SlidePlan | None
    """What the slide was resolved to; None for a CSV file without its record."""
    _file: _HDF5Pieces | _CSVPieces
    _heading: _Heading

    def __iter__(self) -> Iterator[Pieces]:
        """Parts in the order of the plan; the file is read anew each time.

        Raises MapError as :func:`read_pieces` does, for a window that is missing at the end of the last part.
        """
        return _checked(self.path, self._file.parts(self._heading), self._heading)


def stream(path: Path, slide: str | None, patient: str | None, channel: int | str | None = None) -> PieceStream:
    """As :func:`load`, to be read in parts."""
    file, heading = _find(path, slide, patient, channel)
    return PieceStream(path, heading.patient, heading.slide, heading.columns, heading.plan, file, heading)


def slides_in(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """(patient, slide) of every slide in a patient file. Raises MapError when it is missing, damaged, or not one of ours."""
    return _open(Path(path)).slides()


def flattened(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(N, ...) as (N, channels)."""
    return values.reshape(len(values), int(np.prod(values.shape[1:], dtype=np.int64)))


@dataclass(frozen=True)
class _Heading:
    """What a file says of a slide before its rows are read."""

    patient: str
    slide: str
    columns: tuple[str, ...]
    """Names of the flattened values that are to be read."""
    plan: SlidePlan | None
    channel: int | None
    """Which of the flattened values is to be read; None: all."""
    spec: ValueSpec | None
    """Of all values; None where it is not known."""
    n_expected: int | None
    """How many windows have a row; None where it is not known."""


def _find(
    path: Path, slide: str | None, patient: str | None, channel: int | str | None
) -> tuple[_HDF5Pieces | _CSVPieces, _Heading]:
    file = _open(path)
    patient, slide = _choose(path, file.slides(), slide, patient)
    return file, file.heading(patient, slide, channel)


def refuse_images(folder: Path) -> None:
    """Raise MapError where a folder is a patient's of images or maps, or one of such folders."""
    if holds_patch_set(folder) or any(map(holds_patch_set, folder.iterdir())):
        raise MapError(f"{folder} holds images, of which there is no map: one is made of the values of a .h5 or .csv file")
    if holds_maps(folder) or any(map(holds_maps, folder.iterdir())):
        raise MapError(f"{folder} holds maps already: open them as what they are, {', '.join(MAP_SUFFIXES.values())}")


def _open(path: Path) -> _HDF5Pieces | _CSVPieces:
    if holds_patch_set(path):
        raise MapError(f"{path} holds a patient's images; a .h5 or .csv file of values was expected")
    if holds_maps(path):
        raise MapError(f"{path} holds a patient's maps; a .h5 or .csv file of values was expected")
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


def _checked(path: Path, parts: Iterator[Pieces], heading: _Heading) -> Iterator[Pieces]:
    """The parts; raises MapError when a window is missing or stands there twice, or does not lie where the plan has it."""
    where = f"{path}, slide {heading.slide!r}"
    last: int | None = None
    found = 0
    for pieces in parts:
        _check_order(where, pieces, last)
        if heading.plan is not None and len(pieces):
            _check_places(where, pieces, heading.plan)
        last = int(pieces.index[-1]) if len(pieces) else last
        found += len(pieces)
        yield pieces
    if heading.n_expected is not None and found != heading.n_expected:
        raise MapError(f"{where}: {found} windows, expected {heading.n_expected}; the file was changed after it was written")


def _check_order(where: str, pieces: Pieces, last: int | None) -> None:
    before = pieces.index[:0] if last is None else np.array([last], np.int64)
    index = np.concatenate([before, pieces.index])
    steps = np.diff(index)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0)) + 1
        window = index[row]
        why = "stands there twice" if window in index[:row] else f"comes after window {index[row - 1]}"
        raise MapError(f"{where}: window {window} {why}; the file was changed after it was written")


def _check_places(where: str, pieces: Pieces, plan: SlidePlan) -> None:
    if pieces.index[0] < 0 or pieces.index[-1] >= plan.n_windows:
        strange = pieces.index[0] if pieces.index[0] < 0 else pieces.index[-1]
        raise MapError(f"{where}: window {strange} is not in the plan, which has {plan.n_windows}")
    places = plan.places()
    if places is None:
        return
    moved = (places.windows(pieces.index).xy != pieces.coords).any(axis=1)
    if moved.any():
        row = int(np.argmax(moved))
        planned = tuple(places.windows(pieces.index[row : row + 1]).xy[0].tolist())
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

    def heading(self, patient: str, slide: str, channel: int | str | None) -> _Heading:
        """What the file says of a slide."""
        with self._opened() as file:
            group = file[self._groups(file)[patient, slide]]
            try:
                plan = SlidePlan.from_attributes(group["coords"].attrs)
                features, not_written = group["features"], group["not_written"][:]
                lengths = [len(group[name]) for name in ("index", "coords", "features")]
            except KeyError as error:
                raise MapError(f"{self._path} was not written by streamwsi: {error.args[0]}") from error
            names = group["columns"].asstr()[:] if "columns" in group else features.attrs.get("columns")
            spec = ValueSpec(features.dtype.name, features.shape[1:], None if names is None else tuple(map(str, names)))
        if len(set(lengths)) > 1:
            windows, coords, values = lengths
            raise MapError(f"{self._path}, slide {slide!r}: {windows} windows, {coords} coords, {values} features")
        columns, number = spec.column_names, None
        if channel is not None:
            number = _channel_number(self._path, columns, channel)
            columns = (columns[number],)
        without_row = int((not_written[:, 1] - not_written[:, 0] + 1).sum())
        return _Heading(patient, slide, columns, plan, number, spec, plan.n_windows - without_row)

    def parts(self, heading: _Heading, whole: bool = False) -> Iterator[Pieces]:
        """The pieces of a slide in parts, or in one."""
        plan, spec = heading.plan, heading.spec
        if plan is None or spec is None:
            raise MapError(f"{self._path}: the plan of slide {heading.slide!r} is not known")
        place = () if heading.channel is None else tuple(map(int, np.unravel_index(heading.channel, spec.shape)))
        with self._opened() as file:
            group = file[self._groups(file)[heading.patient, heading.slide]]
            features, n_rows = group["features"], len(group["index"])
            names = np.array([*_label_names(group), ""], object) if "label" in group else None
            step = max(n_rows, 1) if whole else max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // max(1, len(heading.columns))))
            for first in range(0, max(n_rows, 1), step):
                rows = slice(first, first + step)
                index = group["index"][rows]
                yield Pieces(
                    heading.patient,
                    heading.slide,
                    index,
                    group["coords"][rows],
                    plan.sizes(index),
                    plan.level,
                    features[tuple((rows, *place))],
                    heading.columns,
                    plan,
                    None if names is None else names[group["label"][rows]],
                )

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


def _label_names(group: Any) -> Any:
    return group["label_names"].asstr()[:] if "label_names" in group else group["label"].attrs["names"]


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
        self._labelled = header[self._of_all + 1 : self._of_all + 2] == LABELLED_COLUMNS[1:2]
        expected = LABELLED_COLUMNS if self._labelled else WINDOW_COLUMNS
        lead = len(expected) + self._of_all
        if header[self._of_all : lead] != expected:
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

    def heading(self, patient: str, slide: str, channel: int | str | None) -> _Heading:
        """What the records say of a slide."""
        record = next((record for record in self._records() if record.patient_id == patient), None)
        published = next((own for own in record.slides if own.resolved.id == slide), None) if record else None
        spec = record.values if record else self._values_of_run()
        columns, number = self._columns, None
        if channel is not None:
            number = _channel_number(self._path, columns, channel)
            columns = (columns[number],)
        if spec is not None and spec.column_names != self._columns:
            raise MapError(f"{self._path} has columns {self._columns}, its record says {spec.column_names}")
        plan = SlidePlan.of(published.resolved) if published else None
        return _Heading(patient, slide, columns, plan, number, spec, published.written if published else None)

    def parts(self, heading: _Heading, whole: bool = False) -> Iterator[Pieces]:
        """The pieces of a slide in parts, or in one."""
        chosen = range(len(self._columns)) if heading.channel is None else [heading.channel]
        rows = self._rows(heading, [self._lead + number for number in chosen])
        if whole:
            rows = iter([_joined(list(rows), len(chosen))])
        for places, labels, parsed in rows:
            values = _as_sent(parsed, heading.spec, heading.columns)
            if heading.channel is not None:
                values = flattened(values)[:, 0]
            level = heading.plan.level if heading.plan else int(places[0, 3]) if len(places) else None
            yield Pieces(
                heading.patient,
                heading.slide,
                places[:, 0],
                places[:, 1:3],
                places[:, 4:],
                level,
                values,
                heading.columns,
                heading.plan,
                labels,
            )

    def _rows(self, heading: _Heading, numbers: list[int]) -> Iterator[_Rows]:
        """A slide's rows, as many at a time as are parsed at once."""
        ids = 1 + self._of_all
        first = ids + self._labelled
        dtypes = dict.fromkeys(numbers, _parsed_as(heading.spec)) if heading.spec else {}
        for table in self._tables([*range(self._lead), *numbers], dtypes):
            wanted = table[ids - 1] == heading.slide
            if self._of_all:
                wanted &= table[0] == heading.patient
            rows = table[wanted]
            if len(rows):
                places = rows[list(range(first, self._lead))].to_numpy()
                labels = rows[ids].to_numpy(object) if self._labelled else None
                yield places, labels, [rows[number].to_numpy() for number in numbers]

    def _tables(self, columns: list[int], dtypes: dict[int, npt.DTypeLike]) -> Iterator[pd.DataFrame]:
        """Parts of these columns, some million numbers at a time, called by their numbers."""
        import pandas as pd

        ids = 1 + self._of_all + self._labelled
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
                chunksize=max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // len(columns))),
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


_Rows = tuple[Int64Array, npt.NDArray[Any] | None, list[npt.NDArray[Any]]]
"""(N, 6) int64 of index, x, y, level, width, height; labels, (N,), where there are any; and each of the columns, (N,)."""


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


def _joined(rows: list[_Rows], n_columns: int) -> _Rows:
    """Parts whose dtypes were guessed one by one, as one: each column in one dtype that holds them all."""
    places = np.concatenate([np.empty((0, len(WINDOW_COLUMNS) - 1), np.int64), *(places for places, _, _ in rows)])
    labels = [own for _, own, _ in rows if own is not None]
    columns = [[parsed[number] for _, _, parsed in rows] for number in range(n_columns)]
    joined = [np.concatenate([part.astype(_common(parts)) for part in parts]) if parts else np.empty(0) for parts in columns]
    return places, np.concatenate(labels) if labels else None, joined


def _stacked(columns: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.stack([column.astype(_common(columns)) for column in columns], axis=1) if columns else np.empty((0, 0))


def _common(arrays: list[npt.NDArray[Any]]) -> np.dtype[Any]:
    # for int64 and uint64 NumPy would take float64; a file with a number above the range of int64 has none below 0
    dtypes = {array.dtype for array in arrays}
    return np.dtype(np.uint64) if dtypes == {np.dtype(np.int64), np.dtype(np.uint64)} else np.result_type(*dtypes)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
