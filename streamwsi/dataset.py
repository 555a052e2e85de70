"""Which slides belong to which patient.

In: a folder, a CSV manifest, or code.  Out: a Dataset, checked.  Never opens a slide (of DICOM files it reads the series id).
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

import msgspec

from streamwsi.addresses import is_zarr, make_address, split_address
from streamwsi.errors import DatasetError, SlideError
from streamwsi.splits import Label, check_label, draw_balanced, draw_parts

SLIDE_EXTENSIONS = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".dcm", ".czi")
)
"""File names that OpenSlide 4 reads. Source: https://openslide.org/formats/"""

RUN_FILE = "run.json"
"""Of a run's output folder, which holds it."""
_RESERVED_NAMES = re.compile(r"^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)
_RESERVED_SLIDES = frozenset(("coords", "features"))
_FORBIDDEN_CHARACTERS = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
_LONGEST_SUFFIX = ".partial.result"
_LONGEST_NAME_BYTES = 255 - len(_LONGEST_SUFFIX)


def check_id(value: str, what: str) -> str:
    """Return `value` if it can name a file on every system, else raise DatasetError saying why not."""

    def refuse(why: str) -> DatasetError:
        return DatasetError(f"{what} {value!r} cannot name a file: {why}")

    if not isinstance(value, str):
        raise DatasetError(f"{what} must be a string, got {type(value).__name__} {value!r}")
    if not value or not value.strip():
        raise refuse("it is empty")
    if bad := _FORBIDDEN_CHARACTERS.search(value):
        raise refuse(f"it holds {bad.group()!r}")
    if value.startswith(".") or value.endswith((".", " ")):
        raise refuse("it begins with a dot, or ends with a dot or a space")
    if value.endswith(".partial"):
        raise refuse("files of patients that are not complete are called so")
    if _RESERVED_NAMES.match(value):
        raise refuse("the name is reserved on Windows")
    if not _is_text(value):
        raise refuse("it is not valid text")
    if len(os.fsencode(value)) > _LONGEST_NAME_BYTES:
        raise refuse(f"it is longer than {_LONGEST_NAME_BYTES} bytes")
    return value


class SlideInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader says of an open slide."""

    level_dimensions: tuple[tuple[int, int], ...]
    """(width, height) of each level, in its pixels; level 0 is the finest."""
    level_downsamples: tuple[float, ...]
    """Level-0 pixels per pixel of each level."""
    mpp: tuple[float, float] | None
    """(x, y) micrometres per level-0 pixel, or None where the slide does not say."""
    power: float | None
    """Objective power (20.0 for 20×), or None."""
    vendor: str
    """What OpenSlide calls the format (``aperio``, ``generic-tiff``, …)."""
    tile_sizes: tuple[tuple[int, int] | None, ...]
    """(width, height) of each level's tiles, or None where a level is not tiled."""
    associated_images: tuple[str, ...]
    """Names of pictures beside the pyramid (label, macro, thumbnail)."""
    reader: str
    """Name of the reader that opened it."""
    reader_reason: str | None = None
    """Why it was not a faster one; None where there is none."""

    @property
    def dimensions(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        return self.level_dimensions[0]

    @property
    def level_count(self) -> int:
        """How many levels the slide has."""
        return len(self.level_dimensions)


@dataclass(frozen=True)
class Slide:
    """One whole-slide image: where it lies, `path`, and what it is called inside its patient, `id`."""

    path: Path
    id: str
    info: SlideInfo | None = None
    """What its reader says, once it was opened (a ``level`` callable and a collector see it so); else None."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(os.path.abspath(self.path)))
        if "\0" in str(self.path) or not _is_text(str(self.path)):
            raise DatasetError(f"the path of slide {self.id!r}, {str(self.path)!r}, is not valid text: rename the file")
        check_id(self.id, "slide id")
        if self.id in _RESERVED_SLIDES:
            raise DatasetError(f"slide id {self.id!r} is reserved for the datasets of the HDF5 file; call the slide otherwise")

    @classmethod
    def of_array(
        cls,
        path: str | os.PathLike[str],
        id: str,
        *,
        dataset: str | None = None,
        axes: str | None = None,
        at: Mapping[str, int] | None = None,
    ) -> Slide:
        """A slide that is an array, or a part of one: uint8, RGB or grey.

        Parameters
        ----------
        path
            A folder of OME-Zarr or Zarr, or a ``.npy``, ``.h5`` or ``.hdf5`` file. A part of a ``.zarr`` is a folder of it.
        id
            What the slide is called inside its patient.
        dataset
            Of an HDF5 file; not needed where it has one only.
        axes
            A letter of TCZYX for each axis, where neither the file says them nor the shape leaves no doubt, as that of
            (height, width), (height, width, 3) and (3, height, width) does not.
        at
            What is read of further axes, as ``{"z": 3}``, in pixels of level 0; and which channel, ``{"c": 0}``, of several.

        All of it stands in the slide's path, so that a manifest and the command line can say it too:
        ``Slide.of_array("v.zarr", "plane", at={"z": 3}).path`` ends in ``v.zarr::z=3``.

        Raises DatasetError where these make no sense; whether the array has such axes is seen when it is opened.
        """
        try:
            return cls(make_address(path, dataset, axes, at), id)
        except SlideError as error:
            raise DatasetError(str(error)) from error

    def __getattr__(self, name: str) -> Any:
        # mpp, power, dimensions, level_dimensions, level_downsamples, …: the opened slide answers for its info
        if not name.startswith("_") and (name in SlideInfo.__struct_fields__ or hasattr(SlideInfo, name)):
            if self.info is None:
                raise SlideError(f"slide {self.id!r} is not open: {name} is known only once its reader has opened it")
            return getattr(self.info, name)
        raise AttributeError(f"Slide has no attribute {name!r}")


@dataclass(frozen=True)
class Patient:
    """Who an output file belongs to: an `id`, slides named inside it, and records.

    `slides` may be given as a mapping from slide id to path, or as a sequence of Slide. `records` holds anything further,
    as strings, numbers, booleans, None, and lists and dicts of them.
    """

    id: str
    slides: tuple[Slide, ...]
    records: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        id: str,
        slides: Mapping[str, str | os.PathLike[str]] | Iterable[Slide],
        records: Mapping[str, Any] | None = None,
    ) -> None:
        object.__setattr__(self, "id", check_id(id, "patient id"))
        if isinstance(slides, Mapping):
            slides = [Slide(Path(path), name) for name, path in slides.items()]
        own: tuple[Any, ...] = (slides,) if isinstance(slides, (str, os.PathLike)) else tuple(slides)
        if not all(isinstance(slide, Slide) for slide in own):
            raise DatasetError(
                f"slides of patient {id!r} must be a mapping from slide id to path, or Slide objects; got {own[:3]!r}"
            )
        if not own:
            raise DatasetError(f"patient {id!r} has no slides")
        doubled = [name for name, count in Counter(slide.id for slide in own).items() if count > 1]
        if doubled:
            raise DatasetError(f"patient {id!r} has two slides called {doubled[0]!r}")
        object.__setattr__(self, "slides", own)
        records = dict(records or {})
        try:
            msgspec.msgpack.encode(records)
        except (TypeError, ValueError, OverflowError) as error:
            raise DatasetError(
                f"records of patient {id!r} must be strings, numbers, booleans, None, and lists and dicts of them: {error}"
            ) from error
        object.__setattr__(self, "records", MappingProxyType(records))

    def __hash__(self) -> int:
        return hash((self.id, self.slides))

    def __reduce__(self) -> tuple[Any, ...]:
        return Patient, (self.id, self.slides, dict(self.records))


class Dataset(Sequence[Patient]):
    """A list of patients, each id and each slide file once.

    >>> Dataset([Patient("p1", {"H&E": "a.svs"})])
    Dataset(1 patients, 1 slides)
    """

    def __init__(self, patients: Iterable[Patient]) -> None:
        self._patients = tuple(patients)
        if not self._patients:
            raise DatasetError("the dataset is empty: it has no patient")
        owners: dict[str, str] = {}
        seen: set[str] = set()
        for patient in self._patients:
            for slide in patient.slides:
                file, inside = split_address(slide.path)
                real = os.path.realpath(file) + inside
                if real in owners:
                    raise DatasetError(
                        f"slide {slide.path} stands in the dataset twice: for patient {owners[real]!r} and for {patient.id!r}"
                    )
                owners[real] = patient.id
            if patient.id in seen:
                raise DatasetError(f"two patients have the id {patient.id!r}")
            seen.add(patient.id)

    @overload
    def __getitem__(self, index: int) -> Patient: ...

    @overload
    def __getitem__(self, index: slice) -> Dataset: ...

    def __getitem__(self, index: int | slice) -> Patient | Dataset:
        if isinstance(index, slice):
            return Dataset(self._patients[index])
        return self._patients[index]

    def __len__(self) -> int:
        return len(self._patients)

    def __iter__(self) -> Iterator[Patient]:
        return iter(self._patients)

    def __repr__(self) -> str:
        return f"Dataset({len(self)} patients, {sum(len(patient.slides) for patient in self)} slides)"

    def split(
        self, fractions: Mapping[str, float], *, stratify: Callable[[Patient], Label] | None = None, seed: int = 0
    ) -> dict[str, Dataset]:
        """The patients, dealt to named parts at random: never is a patient, with all its slides, in two of them.

        Parameters
        ----------
        fractions
            Of all patients, for each part: above 0, together 1. A part's size is rounded.
        stratify
            Given a patient, its label (a string, a number or a boolean). Each part then has its fraction of the patients of
            every label too, give or take one (less than two, where there are more than four parts).
        seed
            An int; another one gives other parts. The same seed gives the same parts on every machine and in every version of
            Python, whatever the order of the dataset.

        Returns the parts by name; each keeps the order of this dataset, which stays as it is.

        Raises DatasetError when fractions do not add up, when a part would be empty, and when a patient has no label.

        >>> dataset = Dataset(Patient(f"p{n}", {"H&E": f"{n}.svs"}, {"label": n % 2}) for n in range(20))
        >>> dataset.split({"train": 0.8, "test": 0.2}, stratify=lambda patient: patient.records["label"])
        {'train': Dataset(16 patients, 16 slides), 'test': Dataset(4 patients, 4 slides)}
        """
        parts = draw_parts(self._labels(stratify or (lambda patient: "")), fractions, seed)
        part_of = {name: part for part, names in parts.items() for name in names}
        return {part: Dataset(patient for patient in self if part_of[patient.id] == part) for part in parts}

    def balanced(self, label: Callable[[Patient], Label], *, seed: int = 0) -> Dataset:
        """As many patients of each label as the rarest label has, drawn at random; the other patients are left out.

        Labels take turns: in every beginning of the result, too, their counts differ by at most 1. No patient comes twice, for
        a patient is what an output file belongs to. `label` and `seed` are as in :meth:`split`. Raises DatasetError when a
        patient has no label.
        """
        own = {patient.id: patient for patient in self}
        return Dataset(own[name] for name in draw_balanced(self._labels(label), seed))

    def _labels(self, label: Callable[[Patient], Label]) -> dict[str, Label]:
        labels = {}
        for patient in self:
            try:
                value = label(patient)
            except Exception as error:
                raise DatasetError(
                    f"the label of patient {patient.id!r} is not known: {type(error).__name__}: {error}; its records are "
                    f"{dict(patient.records)}"
                ) from error
            labels[patient.id] = check_label(value, patient.id)
        return labels

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Dataset:
        """Every slide below `folder`, recursively, as a patient of its own.

        A file counts by its extension (:data:`SLIDE_EXTENSIONS`, any case); hidden files and folders do not. The DICOM files of
        one series in one folder are one slide, and so is a folder that is a Zarr array or image. What lies in a run's output
        folder is passed over, unless `folder` itself is one. (``.npy`` and ``.h5`` files,
        which may be anything, are taken only where they are named.) A patient's id is the file's stem; where several share one,
        their paths relative to `folder`, with ``__`` for the separators, tell them apart. Order is that of the relative paths.

        Raises DatasetError when the folder is missing or holds no slide.
        """
        root = Path(folder)
        if not root.is_dir():
            raise DatasetError(f"{root} is not a folder")
        paths: list[tuple[Path, str]] = []
        dicom: dict[Path, list[Path]] = defaultdict(list)
        for directory, subfolders, names in os.walk(root):
            if Path(directory) != root and _is_output(Path(directory)):
                subfolders.clear()
                continue
            if is_zarr(directory):
                paths.append((Path(directory), Path(directory).stem))
                subfolders.clear()
                continue
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                path = Path(directory, name)
                if name.startswith(".") or path.suffix.lower() not in SLIDE_EXTENSIONS:
                    continue
                if path.suffix.lower() == ".dcm":
                    dicom[path.parent].append(path)
                else:
                    paths.append((path, path.stem))
        for files in dicom.values():
            paths.extend(_dicom_slides(files))
        if not paths:
            raise DatasetError(
                f"{root} holds no slide: no file below it ends in {', '.join(sorted(SLIDE_EXTENSIONS))}, "
                "and no folder is of Zarr"
            )
        return cls.from_paths(paths, root)

    @classmethod
    def from_paths(
        cls, paths: Iterable[tuple[Path, str]] | Iterable[str | os.PathLike[str]], root: Path | None = None
    ) -> Dataset:
        """Slides, each a patient of its own, named by their stems (or by the name given with each path).

        `root` is what ids are made relative to where stems are shared; by default the folder that all paths have in common.
        """
        named = [entry if isinstance(entry, tuple) else (Path(entry), split_address(entry)[0].stem) for entry in paths]
        if not named:
            raise DatasetError("the dataset is empty: no slide was given")
        if root is None:
            root = Path(os.path.commonpath([os.path.abspath(split_address(path)[0].parent) for path, _ in named]))
        relative = [Path(os.path.relpath(path, root)).as_posix() for path, _ in named]
        entries = sorted(zip(relative, named, strict=True), key=lambda entry: entry[0])
        stems = Counter(_safe_id(stem) for _, stem in named)
        wanted = [
            _safe_id(stem) if stems[_safe_id(stem)] == 1 else _safe_id(rel.replace("/", "__")) for rel, (_, stem) in entries
        ]
        taken = Counter(wanted)
        patients = []
        for (rel, (path, _)), name in zip(entries, wanted, strict=True):
            unique = name if taken[name] == 1 else _cut(name, rel)
            patients.append(Patient(unique, [Slide(path, unique if unique not in _RESERVED_SLIDES else f"{unique}-slide")]))
        return cls(patients)

    @classmethod
    def from_csv(cls, manifest: str | os.PathLike[str]) -> Dataset:
        """Read a manifest with the columns ``patient,slide,path``; further columns are kept as the patient's records.

        Paths are relative to the manifest. Patients come in the order of their first row. A record is a string, as it stands
        in the file; a field that differs between the rows of one patient is kept as a list, one entry per slide.

        Raises DatasetError naming the line when a column or a value is missing.
        """
        manifest = Path(manifest)
        try:
            # utf-8-sig: spreadsheets write a byte order mark; newline="": the csv module splits the lines
            with manifest.open(encoding="utf-8-sig", newline="") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{manifest} cannot be read as a manifest: {error}") from error
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            return cls._from_rows(rows, manifest)
        except csv.Error as error:
            raise DatasetError(f"{manifest}, line {rows.reader.line_num}: {error}") from error

    @classmethod
    def _from_rows(cls, rows: csv.DictReader[str], manifest: Path) -> Dataset:
        needed = ("patient", "slide", "path")
        missing = [name for name in needed if name not in (rows.fieldnames or [])]
        if missing:
            raise DatasetError(
                f"{manifest}: column {missing[0]!r} is missing; found {', '.join(rows.fieldnames or ['nothing'])}"
            )
        slides: dict[str, list[Slide]] = defaultdict(list)
        records: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            where = f"{manifest}, line {rows.line_num}"
            if None in row:
                raise DatasetError(f"{where}: more values than columns")
            for name in needed:
                if not (row[name] or "").strip():
                    raise DatasetError(f"{where}: {name} is empty")
            try:
                slides[row["patient"]].append(Slide(manifest.parent / row["path"], row["slide"]))
                check_id(row["patient"], "patient id")
            except DatasetError as error:
                raise DatasetError(f"{where}: {error}") from error
            for name, value in row.items():
                if name not in needed:
                    records[row["patient"]][name].append(value)
        return cls(
            Patient(name, own, {key: kept[0] if len(set(kept)) == 1 else kept for key, kept in records[name].items()})
            for name, own in slides.items()
        )


def _dicom_slides(files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """One (path, name) for each series among the DICOM files of one folder."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    series: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
        except (InvalidDicomError, OSError, EOFError):
            series[str(path)].append(path)  # the reader will say what is wrong with it
        else:
            series[str(header.get("SeriesInstanceUID", path))].append(path)
    for members in series.values():
        # a folder that holds one series names it; else the first file does
        name = Path(os.path.abspath(members[0])).parent.name if len(members) > 1 and len(series) == 1 else members[0].stem
        yield members[0], name


def _safe_id(name: str) -> str:
    """`name` with what cannot stand in a file name replaced, and cut to length with a hash where it is too long."""
    safe = _FORBIDDEN_CHARACTERS.sub("_", name).lstrip(".").rstrip(". ") or f"slide-{_short_hash(name)}"
    if _RESERVED_NAMES.match(safe):
        safe = f"{safe}_"
    if len(os.fsencode(safe)) > _LONGEST_NAME_BYTES:
        safe = _cut(safe, name)
    return safe


def _cut(name: str, told_apart_by: str) -> str:
    """`name`, cut to length with the hash of what tells it apart at its end."""
    kept = os.fsencode(name)[: _LONGEST_NAME_BYTES - 9].decode("utf-8", "ignore")
    return f"{kept}-{_short_hash(told_apart_by)}"


def _is_text(value: str) -> bool:
    """Whether `value` can be written as UTF-8: file names that cannot reach Python as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short_hash(text: str) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=4).hexdigest()


def _is_output(folder: Path) -> bool:
    """Whether a run has written here: other programs have files called so too, and hide no slides."""
    try:
        return b'"streamwsi_version"' in (folder / RUN_FILE).read_bytes()
    except OSError:
        return False
