"""What a job is: every option of a run, each with its type, its range, its default and what it means.

In: values by name, from a command line or a job file.  Out: a Job, checked.  Never opens a file.

This is the one place where options are described: the options of ``streamwsi heatmap``, what a job file may hold, and the
comments of ``streamwsi run --template`` are made from it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from streamwsi.config import MOST, MOST_CHUNK_PX, MOST_NUMBER, TILE_CACHE_BYTES, Durability, OnBadRegion, Transport
from streamwsi.errors import ConfigError
from streamwsi.geometry import Border
from streamwsi.images.options import NAME
from streamwsi.map_options import MapOutput

_Fields = TypeVar("_Fields", bound=msgspec.Struct)
_Pixels = Annotated[int, Meta(ge=1, le=MOST)]
_ChunkPixels = Annotated[int, Meta(ge=1, le=MOST_CHUNK_PX)]
# a list, and no tuple: msgspec 0.22 crashes on a union of a tuple and an int with a range (and of anything and a str pattern)
_Pair = Annotated[list[_Pixels], Meta(min_length=2, max_length=2)]
_Byte = Annotated[int, Meta(ge=0, le=255)]
_AtLeastOne = Annotated[int, Meta(ge=1, le=MOST)]
_Above0 = Annotated[float, Meta(gt=0)]
_TwoAbove0 = Annotated[list[_Above0], Meta(min_length=2, max_length=2)]
_TwoNumbers = Annotated[list[float], Meta(min_length=2, max_length=2)]
_FromTo = Annotated[list[int], Meta(min_length=2, max_length=2)]
_NotNegative = Annotated[float, Meta(ge=0, le=MOST_NUMBER)]

OF_IMAGES = ("quality", "image_name", "by_label", "comment", "shards")
"""Fields that go with the formats of images."""
OF_MAPS = ("weights", "reduction", "map_dtype", "fill_value")
"""Fields that go with the formats of maps."""
MAP_FORMATS: dict[str, MapOutput] = {"ome-zarr": "zarr", "ome-tiff": "tiff", "map-h5": "hdf5"}
"""What the formats of maps are called elsewhere."""
COMMAND_LINE_ONLY = ("overwrite", "quiet", "json")
"""Options that say how a command behaves this time; a job file that held them would overwrite what it is to go on with."""


@dataclass(frozen=True, eq=False)
class About:
    """What is said of a field."""

    help: str
    path: bool = False
    """It is a path, which a job file gives relative to itself."""
    example: Any = None
    """Shown in the template where the default is None, or there is none."""


class CollectorJob(msgspec.Struct, frozen=True, kw_only=True):
    """One of several collectors on one stream."""

    collector: Annotated[str, About("What makes the values, as `collector` of a job with one.", example="tissue")]
    arguments: Annotated[dict[str, Any], About("Given to the collector's constructor.")] = {}
    batch_size: Annotated[_AtLeastOne | None, About("Windows in a batch, at most.", example=64)] = None
    collectors: Annotated[_AtLeastOne | None, About("Processes of this collector.", example=2)] = None
    devices: Annotated[list[str] | None, About("Dealt to its processes.", example=["cuda:0", "cuda:1"])] = None


class PairedJob(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is read with each slide."""

    source: Annotated[
        str,
        About(
            "Its path, with {slide}, {patient}, {stem} or {folder} for what differs from slide to slide: Zarr, HDF5, NumPy, "
            "TIFF, PNG.",
            path=True,
            example="labels/{stem}.png",
        ),
    ]
    resolution: Annotated[Literal["own", "window"], About("Its own pixels, or as many as a window has.")] = "own"
    source_axes: Annotated[str | None, About("Letters of its axes, where its file does not say.", example="TCZYX")] = None
    axes: Annotated[str | None, About("Letters of those wanted, in their order.", example="YXC")] = None
    at: Annotated[
        dict[str, int | Annotated[list[int], Meta(min_length=2, max_length=2)]],
        About("A place along an axis, or from where to where.", example={"T": 0, "Z": 3}),
    ] = {}
    level: Annotated[Annotated[int, Meta(ge=0)] | None, About("Of a pyramid, the one to read.", example=0)] = None
    scale: Annotated[
        _Above0 | _TwoAbove0 | None,
        About("Level-0 pixels per pixel of it. Default: it covers the slide.", example=16.0),
    ] = None
    offset: Annotated[
        Annotated[list[float], Meta(min_length=2, max_length=2)] | None,
        About("x and y of its upper left corner, in level-0 pixels.", example=[0.0, 0.0]),
    ] = None
    outside: Annotated[float, About("The value of what lies beyond it.")] = 0.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is asked to do."""

    slides: Annotated[
        str | Annotated[list[str], Meta(min_length=1)],
        About(
            "Slide files, patterns of them (slides/**/*.svs), one folder, or one CSV manifest.", path=True, example="slides/"
        ),
    ]
    out: Annotated[str, About("Folder for the patients' files.", path=True, example="out/")]
    collector: Annotated[
        str | None,
        About(
            "What makes the values: mean, tissue, stain, hematoxylin, focus, or patches for images; a model as "
            "torchscript:model.pt or export:model.pt2; or your own as my_model.py:MyCollector.",
            example="mean",
        ),
    ] = None
    arguments: Annotated[
        dict[str, Any], About("Given to the collector's constructor, as they stand: paths among them are not changed.")
    ] = {}

    kernel_size: Annotated[
        _Pixels | _Pair | None,
        About(
            "Window, in pixels of what is read: one number, or width and height. Default: the collector's, or 256.", example=256
        ),
    ] = None
    stride: Annotated[
        _Pixels | _Pair | None,
        About("Step, in pixels of what is read: one number, or across and down. Default: the kernel size.", example=128),
    ] = None
    level: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        About("Level read; 0 is the finest. Default: the resolution that the collector wants, if it does, or 0.", example=0),
    ] = None
    mpp: Annotated[
        _Above0 | None,
        About("Micrometres per pixel, in place of a level: one within 5 %, or the next finer one resampled.", example=0.5),
    ] = None
    magnification: Annotated[_Above0 | None, About("The same by the objective power, as 20 for 20x.", example=20.0)] = None
    missing_mpp: Annotated[
        _Above0 | None,
        About("Micrometres per level-0 pixel of slides that do not say, or not credibly. Default: they fail.", example=0.25),
    ] = None
    levels: Annotated[
        Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)] | None,
        About("Several levels around the centre of each window, the finest first.", example=[0, 1]),
    ] = None
    mpps: Annotated[
        Annotated[list[_Above0], Meta(min_length=1)] | None,
        About("Several resolutions around the centre of each window, in um per pixel, the finest first.", example=[0.5, 2.0]),
    ] = None
    border: Annotated[Border, About("What happens at the edge.")] = "pad"
    background: Annotated[
        tuple[_Byte, _Byte, _Byte],
        About("Colour of what lies outside the slide: red, green and blue from 0 to 255."),
    ] = (255, 255, 255)
    reader: Annotated[Literal["auto", "openslide", "tiff", "array"], About("What reads the slides.")] = "auto"
    on_bad_region: Annotated[OnBadRegion, About("A region that cannot be read fails its slide, or costs its windows.")] = "fail"

    sampler: Annotated[
        Literal["grid", "random", "poisson", "points"],
        About("What chooses the windows: all of a grid, so many at random, evenly spread at random, or around points."),
    ] = "grid"
    region: Annotated[
        str | None,
        About(
            "Where windows may lie: tissue (or tissue:lab, tissue:otsu), a mask, annotations, or a folder with a file for each "
            "slide. Default: anywhere.",
            path=True,
            example="annotations/",
        ),
    ] = None
    min_coverage: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        About("Share of a window that must be in the region. Default: 0.5, with a region.", example=0.5),
    ] = None
    include: Annotated[list[str] | None, About("Labels of the regions or points that count.", example=["tumour"])] = None
    exclude: Annotated[list[str] | None, About("Labels of those that do not.", example=["necrosis"])] = None
    absent: Annotated[
        Literal["error", "ignore"], About("A label asked for that a slide does not have fails the slide, or does not matter.")
    ] = "error"
    buffer: Annotated[float, About("By how much regions are grown, or shrunk where it is below 0.")] = 0.0
    buffer_unit: Annotated[Literal["um", "px"], About("Of buffer: micrometres, or level-0 pixels.")] = "um"
    inverse: Annotated[bool, About("Windows lie outside the region.")] = False
    nested_as_holes: Annotated[bool, About("A region inside one of its own label is a hole in it.")] = False
    origin: Annotated[Literal["slide", "region"], About("Where the grid begins.")] = "slide"
    windows: Annotated[_AtLeastOne | None, About("How many each slide has; of sampler poisson: at most.", example=1000)] = None
    per_label: Annotated[
        dict[str, Annotated[int, Meta(ge=0)]],
        About("How many windows of each label, in place of windows.", example={"tumour": 500}),
    ] = {}
    spacing: Annotated[_Above0 | None, About("Of sampler poisson: between centres, at least.", example=200.0)] = None
    spacing_unit: Annotated[Literal["um", "px"], About("Of spacing: micrometres, or level-0 pixels.")] = "um"
    points: Annotated[
        str | None,
        About("CSV of x and y in level-0 pixels, and of slide and label where needed.", path=True, example="nuclei.csv"),
    ] = None
    outside: Annotated[
        Literal["error", "drop"], About("A point whose window cannot be read whole fails its slide, or is left out.")
    ] = "error"
    max_overlap: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        About("Share of a window that it may share with another. Default: 1, no limit.", example=0.0),
    ] = None
    margin: Annotated[Annotated[int, Meta(ge=0)], About("Pixels around each window that are read with it.")] = 0
    seed: Annotated[Annotated[int, Meta(ge=0)], About("Another seed makes another draw.")] = 0
    epoch: Annotated[Annotated[int, Meta(ge=0)], About("Another epoch makes another draw.")] = 0

    paired: Annotated[
        dict[str, str | dict[str, Any]],
        About(
            "Images that are read with each slide, for the collector, by name: paths with {slide}, {patient}, {stem} or "
            "{folder} in them.",
            example={"labels": "labels/{stem}.png"},
        ),
    ] = {}

    format: Annotated[
        Literal["h5", "hdf5", "csv", "png", "jpeg", "webp", "ome-zarr", "ome-tiff", "map-h5"],
        About(
            "Of the patients' files; png, jpeg and webp: of the images in a folder for each patient; ome-zarr, ome-tiff and "
            "map-h5: of the maps that images of windows are blended to."
        ),
    ] = "h5"
    weights: Annotated[
        Literal["mean", "gaussian", "distance"], About("Of a window's pixels where images overlap on a map.")
    ] = "mean"
    reduction: Annotated[_AtLeastOne, About("Pixels of a window, along each axis, to a pixel of its image on a map.")] = 1
    map_dtype: Annotated[
        Literal["uint8", "uint16", "float32"] | None, About("Of maps. Default: that of the images.", example="float32")
    ] = None
    fill_value: Annotated[float | None, About("Of maps, where no window is. Default: NaN, or 0 of integers.", example=0.0)] = (
        None
    )
    quality: Annotated[
        Annotated[int, Meta(ge=1, le=100)] | None,
        About("Of jpeg and webp, from 1 to 100. Default: 90.", example=90),
    ] = None
    image_name: Annotated[
        str,
        About(
            "What images are called: a template of patient, slide, index, x, y, level, width, height, label, resolution; "
            "{x:06} is padded."
        ),
    ] = NAME
    by_label: Annotated[bool, About("A folder for each label of images.")] = False
    comment: Annotated[
        str | None, About("A text in each image and in the manifest, a template as the name.", example="{slide}: {x}, {y}")
    ] = None
    shards: Annotated[
        _AtLeastOne | str | None,
        About(
            "Images in tar files (WebDataset's layout), of so many windows each, or of about such a size, as 500MB.",
            example=1000,
        ),
    ] = None
    one_file: Annotated[bool, About("All patients in one file.")] = False
    publish_partial: Annotated[bool, About("Write patients of whom slides failed, as <patient>.partial.")] = False
    journal_dir: Annotated[
        str | None,
        About("Local folder for journals, where `out` is on a network.", path=True, example="/var/tmp/journals"),
    ] = None
    durability: Annotated[Durability, About("What a commit survives: the end of a process, or a loss of power too.")] = (
        "process"
    )

    collectors: Annotated[
        _AtLeastOne | dict[str, dict[str, Any]] | None,
        About("Collector processes. Default: one for each device, or 1.", example=2),
    ] = None
    devices: Annotated[
        list[str] | None, About("Dealt to the collector processes, as cuda:0, cuda:1.", example=["cuda:0", "cuda:1"])
    ] = None
    batch_size: Annotated[_AtLeastOne | None, About("Windows in a batch, at most. Default: the collector's.", example=32)] = (
        None
    )
    loaders: Annotated[_AtLeastOne | None, About("Loader processes. Default: one for every four processors.", example=1)] = None
    threads: Annotated[
        _AtLeastOne | None,
        About("Decode threads of each loader. Default: its share of processors; alone, one more.", example=8),
    ] = None
    writers: Annotated[_AtLeastOne, About("Writer processes.")] = 1
    chunk_px: Annotated[
        _ChunkPixels | None,
        About(
            "Pixels of a big chunk, about. Default: 16777216; half of it through sockets, for images, with OpenSlide.",
            example=16777216,
        ),
    ] = None
    tile_cache_mb: Annotated[_NotNegative, About("Decoded tiles that a loader keeps, in MB.")] = round(
        TILE_CACHE_BYTES / 1e6, 0
    )
    min_chunk_interval: Annotated[_NotNegative, About("Seconds between two chunks of a loader, at least.")] = 0.0
    max_restarts: Annotated[Annotated[int, Meta(ge=0, le=MOST)], About("Workers that may be replaced.")] = 5
    stall_timeout: Annotated[_NotNegative, About("Seconds without progress that end the run; 0: never.")] = 1800.0
    grace: Annotated[_NotNegative, About("Seconds to finish what is in flight after a signal.")] = 10.0

    transport: Annotated[Transport, About("How pixels come to the collectors.")] = "auto"
    tcp_host: Annotated[str, About("Where transport tcp listens.")] = "127.0.0.1"
    key_dir: Annotated[str | None, About("Keys for transport tcp, made by 'streamwsi keys'.", path=True, example="keys/")] = (
        None
    )

    @property
    def images(self) -> dict[str, PairedJob]:
        """The paired images by name; a path alone says where one is."""
        tables = {name: {"source": image} if isinstance(image, str) else image for name, image in self.paired.items()}
        return {name: PairedJob(**table) for name, table in tables.items()}

    @property
    def several(self) -> dict[str, CollectorJob]:
        """The collectors by name, where there are several, else empty; what a table does not say is as said for all."""
        if not isinstance(self.collectors, dict):
            return {}
        of_all = {name: getattr(self, name) for name in ("batch_size", "devices")}
        return {name: CollectorJob(**{**of_all, **table}) for name, table in self.collectors.items()}


Where = Callable[[tuple[str, ...]], str]
"""Where a field stands, for a person: given the names that lead to it, ``job.toml, line 7: writers`` or ``--writers``."""


def job_of(values: Mapping[str, Any], where: Where) -> Job:
    """A job from values by name. Raises ConfigError saying where the value stands that cannot be, and what would do."""
    job = _checked(Job, values, where, ())
    if isinstance(job.collectors, dict):
        if job.collector is not None or job.arguments:
            name = "collector" if job.collector is not None else "arguments"
            raise ConfigError(
                f"{where((name,))}: give it in the tables [collectors.NAME], of which there are some, or have none"
            )
        if not job.collectors:
            raise ConfigError(f"{where(('collectors',))}: there is no collector in it, expected tables as [collectors.tissue]")
        for name, table in job.collectors.items():
            _checked(CollectorJob, table, where, ("collectors", name))
    elif job.collector is None:
        raise ConfigError(f"{where(())}: collector is missing: {help_of(Job, 'collector')}")
    for name, image in job.paired.items():
        if isinstance(image, dict):
            _checked(PairedJob, image, where, ("paired", name))
    return job


def anchored(job: Job, folder: str) -> Job:
    """The job with its relative paths made absolute, as seen from a folder."""

    def absolute(path: str) -> str:
        return os.path.join(os.path.abspath(folder), path) if path else path

    def beside(path: str) -> str:  # the slide, or whatever a path is relative to
        return path if path.startswith("{folder}") else absolute(path)

    changed: dict[str, Any] = {}
    for name in path_fields():
        value = getattr(job, name)
        if name == "region" and value is not None and value.partition(":")[0] == "tissue":
            continue
        changed[name] = [absolute(path) for path in value] if isinstance(value, list) else value and absolute(value)
    if job.collector is not None:
        changed["collector"] = _anchored_spec(job.collector, absolute)
    if isinstance(job.collectors, dict):
        changed["collectors"] = {
            name: {**table, "collector": _anchored_spec(table["collector"], absolute)} for name, table in job.collectors.items()
        }
    changed["paired"] = {
        name: beside(image) if isinstance(image, str) else {**image, "source": beside(image["source"])}
        for name, image in job.paired.items()
    }
    return msgspec.structs.replace(job, **changed)


def _anchored_spec(spec: str, absolute: Callable[[str], str]) -> str:
    """A collector's spec, the file in it made absolute: of ``model.py:Class`` the first part, of ``kind:model.pt`` the last."""
    first, colon, last = spec.rpartition(":")
    if not colon:
        return spec
    if first.endswith(".py"):
        return f"{absolute(first)}:{last}"
    return f"{first}:{absolute(last)}" if "/" in last or "." in last else spec


@cache
def hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The types of a structure's fields, with what is said of them."""
    return get_type_hints(kind, include_extras=True)


def help_of(kind: type[msgspec.Struct], name: str) -> str:
    """What a field means."""
    return _said(kind, name).help


def example_of(kind: type[msgspec.Struct], name: str) -> Any:
    """A value of a field: its example, or its default."""
    example = _said(kind, name).example
    return default_of(kind, name) if example is None else example


def path_fields() -> list[str]:
    """The fields of a job that are paths."""
    return [name for name in Job.__struct_fields__ if _said(Job, name).path]


def default_of(kind: type[msgspec.Struct], name: str) -> Any:
    """The default of a field; ``msgspec.NODEFAULT`` where it must be given."""
    return _defaults(kind)[name]


@cache
def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.name: {} if field.default_factory is dict else field.default for field in msgspec.structs.fields(kind)}


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values that a type allows, where it lists them; else empty."""
    if get_origin(hint) is Annotated or get_origin(hint) in (Union, UnionType):
        return tuple(choice for inner in get_args(hint) for choice in choices_of(inner))
    return get_args(hint) if get_origin(hint) is Literal else ()


def _said(kind: type[msgspec.Struct], name: str) -> About:
    return next(said for said in hints(kind)[name].__metadata__ if isinstance(said, About))


def _checked(kind: type[_Fields], values: Mapping[str, Any], where: Where, path: tuple[str, ...]) -> _Fields:
    given = {}
    for name, value in values.items():
        if name not in kind.__struct_fields__:
            raise ConfigError(f"{where((*path, name))}: {_unknown(kind, name)}")
        try:
            given[name] = msgspec.convert(value, hints(kind)[name])
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where((*path, name))}: {_expectation(error, hints(kind)[name])}, got {value!r}") from error
    for name in kind.__struct_fields__:
        if name not in given and default_of(kind, name) is msgspec.NODEFAULT:
            raise ConfigError(f"{where(path)}: {name} is missing: {help_of(kind, name)}")
    return kind(**given)


def _unknown(kind: type[msgspec.Struct], name: str) -> str:
    if name in COMMAND_LINE_ONLY:
        return f"it is not part of a job: give it on the command line, as --{name}"
    near = get_close_matches(name, kind.__struct_fields__, n=1)
    known = f"did you mean {near[0]}?" if near else f"there are {', '.join(kind.__struct_fields__)}"
    return f"there is no such field; {known}"


_WORDS = {
    "`int`": "a whole number",
    "`float`": "a number",
    "`str`": "text",
    "`array`": "a list",
    "`bool`": "true or false",
    "`object`": "a table",
    " | `null`": "",
}


def _expectation(error: msgspec.ValidationError, hint: Any) -> str:
    """What msgspec expected, in words that people who write TOML know."""
    if choices := choices_of(hint):
        return f"expected one of {', '.join(map(repr, choices))}"
    said = re.sub(r" - at `.*$", "", str(error))
    said = re.sub(r", got .*$", "", said)
    said = re.sub(r"`([^`]*)`", lambda found: " | ".join(f"`{part}`" for part in found[1].split(" | ")), said)
    for word, plain in _WORDS.items():
        said = said.replace(word, plain)
    return (said[0].lower() + said[1:]).replace(" | ", " or ")
