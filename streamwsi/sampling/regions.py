"""What may be given as a region, and what it is on a slide.

In: a mask, regions, a file, a folder, one of these for each slide, or a function.  Out: a mask or regions of a slide.  Reads
files and slides only when a slide is there.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from streamwsi.config import at_least, one_of
from streamwsi.dataset import Slide, SlideInfo
from streamwsi.errors import AnnotationError, ConfigError, MaskError, SamplingError
from streamwsi.regions.annotations import read_annotations
from streamwsi.regions.extra import needed
from streamwsi.regions.facts import checked_mpp
from streamwsi.regions.mask import Mask
from streamwsi.regions.mask_files import read_mask
from streamwsi.regions.region import Region
from streamwsi.regions.region import nested_as_holes as cut_nested
from streamwsi.regions.tissue import METHODS, UNITS, Method, TissueMask, Unit
from streamwsi.sampling.scene import Scene
from streamwsi.slides.reader import SlideReader

_log = logging.getLogger(__name__)

RegionSource: TypeAlias = (
    "Mask | Sequence[Region] | str | os.PathLike[str] | Mapping[Any, Any] | Callable[[Slide], Any] | Tissue | Annotated"
)
"""What may be given as ``region=``: see :class:`Annotated`."""
Drawn: TypeAlias = "Mask | Sequence[Region]"
ANNOTATIONS = (".geojson.gz", ".json.gz", ".geojson", ".json", ".xml")
MASKS = (".npz", ".npy", ".png", ".tif", ".tiff", ".zarr")
_DEEPEST = 8
"""How often a function or a mapping may give another one."""


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """The tissue of each slide, as :class:`streamwsi.TissueMask` finds it, with these options; for ``region=``.

    Parameters
    ----------
    method, level, mpp, max_px, threshold, min_object, max_hole, closing, unit
        As for :class:`streamwsi.TissueMask`.

    It is found when the slide is opened, in the process that reads it. Raises ConfigError for values that cannot be; a slide on
    which it cannot be found fails, and the others go on.
    """

    method: Method = "hsv"
    level: int | None = None
    mpp: float | None = None
    max_px: int | None = None
    threshold: float | None = None
    min_object: float | None = None
    max_hole: float | None = None
    closing: float | None = None
    unit: Unit = "um"

    def __post_init__(self) -> None:
        needed("skimage", "a tissue mask")
        one_of(self.method, METHODS, "method")
        one_of(self.unit, UNITS, "unit")
        for name in ("level", "mpp", "max_px", "threshold", "min_object", "max_hole", "closing"):
            if getattr(self, name) is not None:
                at_least(getattr(self, name), 0, name)
        if sum(value is not None for value in (self.level, self.mpp, self.max_px)) > 1:
            raise ConfigError(f"give one of level=, mpp= and max_px=, got {self.level!r}, {self.mpp!r} and {self.max_px!r}")


@dataclass(frozen=True)
class Annotated:
    """What has been drawn on each slide, or a mask of it, changed on the way; for ``region=``.

    Parameters
    ----------
    source
        What ``region=`` itself may be:

        - a :class:`streamwsi.Mask`, or regions, a sequence of :class:`streamwsi.Region`: the same for every slide;
        - the path of a mask (``.npz``, ``.npy``, ``.png``, ``.tif``, ``.zarr``; it covers the slide, or says where it lies) or
          of annotations (``.geojson``, ``.json``, both also ``.gz``, ``.xml``);
        - a folder with such a file for each slide, called as the slide's file is, without what follows the dot, or as its id;
        - a mapping from a slide's id, or from (patient's id, slide's id), to any of these;
        - a function that is given the opened :class:`streamwsi.Slide` and returns any of these;
        - :class:`Tissue`.
    buffer
        By how much regions are grown, or shrunk where it is below 0; one of which nothing is left is left out, with a warning.
    unit
        Of `buffer`: ``um``, or ``px`` for level-0 pixels.
    inverse
        What lies on the slide (of a mask: in what it covers) and not inside. It has no labels.
    nested_as_holes
        True: a region that lies in one of its own label is a hole in it; or the labels that mean a hole; see
        :func:`streamwsi.nested_as_holes`. It is done first, then `buffer`, then `inverse`.
    areas_only
        Points and lines in files of annotations are left out; else such a file is refused.

    Raises ConfigError for values that cannot be. A slide whose file is missing or cannot be used fails, and the others go on.
    """

    source: RegionSource
    buffer: float = 0.0
    unit: Unit = "um"
    inverse: bool = False
    nested_as_holes: bool | Collection[str] = False
    areas_only: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", checked_source(self.source))
        one_of(self.unit, UNITS, "unit")
        at_least(self.buffer, -math.inf, "buffer")
        if isinstance(self.nested_as_holes, str):
            raise ConfigError(f"nested_as_holes must be True or labels, as in ({self.nested_as_holes!r},)")


class Believed:
    """An open slide of which something else is believed than it says: its resolution, where the user has given that."""

    def __init__(self, reader: SlideReader, info: SlideInfo) -> None:
        self.info = info
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


def checked_source(source: Any) -> Any:
    """`source` if it may be a region: paths absolute, regions as Region. Raises ConfigError where it cannot be one."""
    if isinstance(source, (Mask, Tissue, Annotated)):
        return source
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.path.abspath(source))
        if not path.exists():
            raise ConfigError(
                f"region={source!r} does not exist: give a mask, annotations, a folder of them, or Tissue() (in the shell: "
                "tissue)"
            )
        if path.is_file() and not _is_annotations(path) and not _is_mask(path):
            raise ConfigError(f"{path} must be called {', '.join(ANNOTATIONS + MASKS)}, to be read as a region")
        return path
    if isinstance(source, Mapping):
        if not source:
            raise ConfigError("region={} holds no slide")
        return {key: checked_source(value) for key, value in source.items()}
    if isinstance(source, Sequence):
        regions = tuple(each if isinstance(each, Region) else _as_region(each) for each in source)
        if not regions:
            raise ConfigError("region= holds no region")
        return regions
    if callable(source):
        return source
    raise ConfigError(
        "region= must be a mask, a list of regions, a path, a mapping from slide ids to these, a function of the slide, "
        f"Tissue(…) or Annotated(…), got {type(source).__name__} {source!r}"
    )


def _as_region(shape: Any) -> Region:
    try:
        return Region(shape)
    except AnnotationError as error:
        raise ConfigError(f"region= must hold regions only: {error}") from error


def may_have_labels(source: Any) -> bool:
    """Whether a checked source can be seen to give regions with labels; of a function that cannot be seen."""
    if isinstance(source, Annotated):
        return not source.inverse and may_have_labels(source.source)
    if isinstance(source, Path):
        return _is_annotations(source) or (source.is_dir() and any(_is_annotations(each) for each in source.iterdir()))
    if isinstance(source, Mapping):
        return any(may_have_labels(each) for each in source.values())
    return isinstance(source, tuple) and any(region.label is not None for region in source)


def drawn_on(source: Any, scene: Scene) -> Drawn:
    """What a checked source is on a slide: a mask or regions.

    Raises SamplingError naming the slide where there is nothing for it, or what is there cannot be used. What a function of the
    user raises comes through as it is.
    """
    called = f"slide {scene.slide.id!r} of patient {scene.patient_id!r}"
    try:
        return _drawn_on(source, scene, 0, areas_only=False)
    except (MaskError, AnnotationError, ConfigError, SamplingError) as error:
        raise SamplingError(f"{called}: {error}") from error


def _drawn_on(source: Any, scene: Scene, depth: int, *, areas_only: bool) -> Drawn:
    if depth > _DEEPEST:
        raise SamplingError("its region is a function or a mapping that gives another, and so on without end")
    if isinstance(source, Mask):
        return source
    if isinstance(source, Tissue):
        return TissueMask(scene.slide if scene.reader is None else Believed(scene.reader, scene.info), **vars(source))
    if isinstance(source, Annotated):
        return _changed(source, _drawn_on(source.source, scene, depth + 1, areas_only=source.areas_only), scene)
    if isinstance(source, Path):
        return _read(source if _is_one(source) else _in_folder(source, scene), scene, areas_only)
    if isinstance(source, Mapping):
        return _drawn_on(of_slide(source, scene, "region"), scene, depth + 1, areas_only=areas_only)
    if isinstance(source, tuple):
        return source
    return _drawn_on(checked_source(source(scene.slide)), scene, depth + 1, areas_only=areas_only)


def _changed(how: Annotated, drawn: Drawn, scene: Scene) -> Drawn:
    """What was drawn, or a mask, when it has been changed so."""
    holes = None if how.nested_as_holes is True else how.nested_as_holes
    if isinstance(drawn, Mask):
        if how.buffer or holes is None or holes:
            raise SamplingError("buffer= and nested_as_holes= go with regions that were drawn, not with a mask")
        return drawn.inverse() if how.inverse else drawn
    if holes is None or holes:
        drawn = cut_nested(drawn, holes or None)
    if how.buffer:
        mpp = None
        if how.unit == "um":
            mpp = checked_mpp(scene.info, str(scene.slide.path), "give unit='px', and buffer= in level-0 pixels")
        drawn = _buffered(drawn, how.buffer, mpp)
    return _rest(drawn, scene) if how.inverse else drawn


def _buffered(drawn: Sequence[Region], distance: float, mpp: tuple[float, float] | None) -> Sequence[Region]:
    """What is left of regions. Raises AnnotationError where that is nothing at all."""
    left, gone = [], []
    for region in drawn:
        try:
            left.append(region.buffered(distance, mpp=mpp))
        except AnnotationError as error:
            gone.append(error)
    if gone and not left:
        raise gone[0]
    for why in gone:
        _log.warning("%s: the others are used", why)
    return left


def _rest(drawn: Sequence[Region], scene: Scene) -> Sequence[Region]:
    shapely = needed("shapely", "the inverse of regions")
    rest = shapely.box(0, 0, *scene.info.dimensions).difference(shapely.union_all([region.polygon for region in drawn]))
    if not rest.area > 0:
        raise SamplingError("nothing of the slide lies outside of the regions")
    return [Region(rest)]


def of_slide(values: Mapping[Any, Any], scene: Scene, what: str) -> Any:
    """What a mapping holds for the slide. Raises SamplingError naming what it does hold."""
    for key in ((scene.patient_id, scene.slide.id), scene.slide.id):
        if key in values:
            return values[key]
    some = ", ".join(repr(key) for key in list(values)[:5]) + (", …" if len(values) > 5 else "")
    raise SamplingError(f"{what}= has neither {scene.slide.id!r} nor {(scene.patient_id, scene.slide.id)!r}, but {some}")


def _read(path: Path, scene: Scene, areas_only: bool) -> Drawn:
    if _is_annotations(path):
        return read_annotations(path, areas_only=areas_only)
    return read_mask(path, slide=scene.info.dimensions)


def read_files(path: Path) -> list[Path]:
    """The files that are read where `path` is a region: it, those of a Zarr array, or the masks and annotations in a folder."""
    if path.is_file():
        return [path]
    if _is_one(path):
        return sorted(each for each in path.rglob("*") if each.is_file())
    ones = sorted(each for each in path.iterdir() if _is_annotations(each) or _is_mask(each))
    return [file for each in ones for file in read_files(each)]


def _in_folder(folder: Path, scene: Scene) -> Path:
    """The one file in a folder that is called as the slide."""
    files = {each: _stem(each) for each in sorted(folder.iterdir()) if _is_annotations(each) or _is_mask(each)}
    names = (scene.slide.path.stem, scene.slide.id)
    for name in names:
        found = [path for path, stem in files.items() if stem == name]
        if len(found) > 1:
            raise SamplingError(f"{folder} holds several files for it: {', '.join(path.name for path in found)}")
        if found:
            return found[0]
    raise SamplingError(
        f"{folder} holds no file for it: none of the {len(files)} masks and annotations there is called "
        + " or ".join(sorted({f"{name}.…" for name in names}))
    )


def _stem(path: Path) -> str:
    name = path.name.lower()
    suffix = next((each for each in ANNOTATIONS + MASKS if name.endswith(each)), "")
    return path.name[: len(path.name) - len(suffix)]


def _is_annotations(path: Path) -> bool:
    return path.name.lower().endswith(ANNOTATIONS)


def _is_mask(path: Path) -> bool:
    return path.name.lower().endswith(MASKS)


def _is_one(path: Path) -> bool:
    """Whether a path is that of one mask or one file of annotations, and not a folder of them."""
    return path.is_file() or path.suffix.lower() == ".zarr"
