"""Images that are paired with slides, as users describe them, and opened with their slide.

In: where they lie, which of their axes are wanted, at whose scale.  Out: readers, and where each lies on its slide.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamwsi.addresses import AXES, split_address
from streamwsi.config import one_of
from streamwsi.dataset import Slide, SlideInfo
from streamwsi.errors import ConfigError, MaskError, SlideError
from streamwsi.loading.fingerprint import fingerprint
from streamwsi.loading.resolution import ChoiceError, source_of
from streamwsi.paired import PairedImage, PairedResolution
from streamwsi.regions.mask import pair, scale_to_cover
from streamwsi.slides.paired import PairedReader
from streamwsi.slides.tile_cache import TileCache
from streamwsi.slides.value_level import ValueLevel, WantedAxes

_FIELDS = ("slide", "patient", "stem", "folder")
_SAMPLES = 8
"""Of an array that is not NumPy's, so many parts are looked at to recognise it."""
_SAMPLE_SIDE = 64
_RESERVED = ("pixels", "windows", "slide", "slides", "patient", "patients", "margin", "paired", "finest")
_NEAR = 1 + 1e-6


@dataclass(frozen=True)
class Paired:
    """An image that is read with each slide, of the same place: labels, a mask, further channels.

    >>> import streamwsi as sw
    >>> labels = sw.Paired("labels/{stem}.png", resolution="window")
    >>> plane = sw.Paired("volumes/{slide}.zarr", source_axes="TCZYX", axes="YXC", at={"T": 0, "Z": 3})

    Parameters
    ----------
    source
        What it is of a slide:

        - a path with fields in braces: ``{slide}`` and ``{patient}`` are ids, ``{stem}`` is the name of the slide's file
          without what follows the last dot, ``{folder}`` the folder it lies in. Of Zarr, OME-Zarr, HDF5, NumPy, a (pyramidal)
          TIFF, PNG; ``::`` and what of a file is meant may follow, as for :meth:`streamwsi.Slide.of_array`;
        - a mapping from a slide's id, or from (patient's id, slide's id), to such paths, or to arrays;
        - a function that is given the opened :class:`streamwsi.Slide` and returns a path or an array. It is called in each
          process that reads the slide.
    resolution
        ``"own"``: the image's own pixels; a window has as many as it covers, rounded, and their centre is within half a pixel
        of the window's. ``"window"``: as many as the window itself, each that of the image which holds the centre of the
        window's (nearest neighbour, so that labels stay labels).
    source_axes
        A letter for each axis of the image, of T, C, Z, Y and X, where its file does not say.
    axes
        Those of what comes with a window, in the order wanted, as ``"YXC"``; one that the image has not becomes an axis of 1.
        None: all of which no single place is chosen, in the image's order.
    at
        By letter: a place along an axis that is not wanted (``{"Z": 3}``), or the part of one that is (``{"C": slice(0, 2)}``;
        along Y and X, in pixels of the image, that is a region of interest, and what is read is as if the image were no
        larger).
    level
        Of a pyramid, the one to read. None: the finest; of ``"window"`` the coarsest that is as fine as the window.
    scale
        Level-0 pixels of the slide per pixel of the image's finest level: one number, or (x, y). None: the image covers the
        slide, and must have its form. It is then taken for one of the slide's levels, if it is as large; else for the slide
        shrunk by a whole number, if one alone gives its size, rounded; else for as wide and as high as the slide.
    offset
        (x, y) of the image's upper left corner, in level-0 pixels of the slide; goes with `scale`.
    outside
        The value of what lies beyond the image.

    The values come as they are in the file, of its dtype. A slide whose image is missing or does not fit fails with the reason,
    and the others go on; a part that cannot be read is treated as one of the slide's own.

    Raises ConfigError naming the value that cannot work.
    """

    source: Any
    resolution: PairedResolution = "own"
    source_axes: str | None = None
    axes: str | None = None
    at: Mapping[str, int | slice] = field(default_factory=dict)
    level: int | None = None
    scale: float | tuple[float, float] | None = None
    offset: tuple[float, float] | None = None
    outside: float = 0

    def __post_init__(self) -> None:
        _check_source(self.source)
        if isinstance(self.source, (str, os.PathLike)) and not os.fspath(self.source).startswith("{folder}"):
            object.__setattr__(self, "source", os.path.abspath(self.source))
        one_of(self.resolution, ("own", "window"), "resolution")
        for name in ("source_axes", "axes"):
            _check_axes(getattr(self, name), name)
        at = {}
        for axis, place in dict(self.at).items():
            if not isinstance(axis, str) or axis.upper() not in AXES or isinstance(place, bool):
                raise ConfigError(f"at must say places by letters of {AXES}, got {axis!r}: {place!r}")
            if not isinstance(place, (int, slice)) or (isinstance(place, int) and axis.upper() in "YX"):
                raise ConfigError(
                    f"at[{axis!r}] must be a slice{'' if axis.upper() in 'YX' else ' or a whole number'}, got {place!r}"
                )
            at[axis.upper()] = place
        object.__setattr__(self, "at", at)
        if self.level is not None and (isinstance(self.level, bool) or not isinstance(self.level, int) or self.level < 0):
            raise ConfigError(f"level must be None or a whole number from 0 on, got {self.level!r}")
        if self.scale is not None and min(pair(self.scale, "scale")) <= 0:
            raise ConfigError(f"scale must be above 0 level-0 pixels per pixel of the image, got {self.scale!r}")
        if self.offset is not None:
            pair(self.offset, "offset")
            if self.scale is None:
                raise ConfigError("offset= goes with scale=: without it the image is taken to cover the whole slide")
        if isinstance(self.outside, bool) or not isinstance(self.outside, (int, float)):
            raise ConfigError(f"outside must be a number, got {self.outside!r}")

    def describe(self) -> dict[str, Any]:
        """What of it decides what is read, but for the images, which are recognised by their content."""
        described: dict[str, Any] = {"resolution": self.resolution, "outside": self.outside}
        for name in ("source_axes", "axes", "level"):
            if getattr(self, name) is not None:
                described[name] = getattr(self, name)
        described |= {
            name: list(pair(value, name)) for name in ("scale", "offset") if (value := getattr(self, name)) is not None
        }
        if self.at:
            described["at"] = {axis: str(place) for axis, place in self.at.items()}
        if callable(self.source):
            described["callable"] = source_of(self.source)
        return described


def checked_paired(paired: Mapping[str, Any] | None) -> dict[str, Paired]:
    """Paired images by name. Raises ConfigError for what cannot be one."""
    found = {}
    for name, value in dict(paired or {}).items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name) or name in _RESERVED:
            raise ConfigError(f"a paired image must be called by a name like 'labels', and none of {_RESERVED}, got {name!r}")
        found[name] = value if isinstance(value, Paired) else Paired(value)
    return found


class OpenPaired:
    """One paired image of an open slide."""

    def __init__(self, name: str, paired: Paired, slide: Slide, patient_id: str, info: SlideInfo, cache: TileCache) -> None:
        """Raises SlideError where it is missing, cannot be opened or does not fit the slide; ChoiceError when the user's
        function raises anything else.
        """
        self._name, self._paired = name, paired
        try:
            self._source = _source_of(paired, slide, patient_id, info)
            self.reader = PairedReader(
                self._source, paired.source_axes, WantedAxes(paired.axes, paired.at), paired.outside, cache
            )
            self._scale = self._placed(info)
            if paired.level is not None and paired.level >= len(self.reader.levels):
                raise SlideError(f"it has no level {paired.level}: it has levels 0 to {len(self.reader.levels) - 1}")
            _check_outside(paired.outside, self.reader.levels[0].dtype)
        except (SlideError, ConfigError) as error:
            raise SlideError(f"{name} of {slide.path}: {error}") from error

    def image(self, downsample: float) -> PairedImage:
        """What is read of it, where `downsample` level-0 pixels are one of what is read of the slide."""
        number = self._level(downsample)
        level = self.reader.levels[number]
        x, y = (side * self.reader.downsamples[number] for side in self._scale)
        offset = pair(self._paired.offset or (0, 0), "offset")
        try:
            content = _content(self._source, self.reader.levels[0])
        except OSError as error:
            raise SlideError(f"{self._name}: {self._source} cannot be read: {error}") from error
        return PairedImage(
            name=self._name,
            dtype=level.dtype.str,
            axes=level.axes,
            shape=level.shape,
            scale=(x, y),
            offset=offset,
            level=number,
            resolution=self._paired.resolution,
            fingerprint=content,
        )

    def _level(self, downsample: float) -> int:
        if self._paired.level is not None:
            return self._paired.level
        if self._paired.resolution == "own":
            return 0
        fine = [
            number for number, shrunk in enumerate(self.reader.downsamples) if max(self._scale) * shrunk <= downsample * _NEAR
        ]
        return max(fine, default=0)

    def _placed(self, info: SlideInfo) -> tuple[float, float]:
        if self._paired.scale is not None:
            return pair(self._paired.scale, "scale")
        extent = self.reader.levels[0].extent
        if extent in info.level_dimensions:
            shrunk = info.level_downsamples[info.level_dimensions.index(extent)]
            return shrunk, shrunk
        try:
            scale = scale_to_cover(extent[::-1], info.dimensions, "paired image")
        except MaskError as error:
            raise SlideError(str(error)) from error
        whole = _whole_scale(extent, info.dimensions)
        return scale if whole is None else (whole, whole)


def _whole_scale(extent: tuple[int, int], dimensions: tuple[int, int]) -> float | None:
    """The whole number by which a slide was shrunk to `extent`, its sides rounded up or down; None where there is not one."""
    least = max(side / (small + 1) for side, small in zip(dimensions, extent, strict=True))
    most = min(side / (small - 1) if small > 1 else math.inf for side, small in zip(dimensions, extent, strict=True))
    first = math.floor(least) + 1
    return float(first) if first < most <= first + 1 else None


def open_paired(
    paired: Mapping[str, Paired], slide: Slide, patient_id: str, info: SlideInfo, cache: TileCache
) -> dict[str, OpenPaired]:
    """All paired images of an open slide. Raises SlideError and ChoiceError as :class:`OpenPaired` does."""
    return {name: OpenPaired(name, each, slide, patient_id, info, cache) for name, each in paired.items()}


def _check_source(source: Any) -> None:
    if isinstance(source, (str, os.PathLike)):
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(os.fspath(source)) if name is not None}
        except ValueError as error:
            raise ConfigError(f"{os.fspath(source)!r} is no pattern: {error}") from error
        unknown = fields - set(_FIELDS)
        if unknown:
            raise ConfigError(f"{os.fspath(source)!r}: there is no {{{min(unknown)}}}, only {{{'}, {'.join(_FIELDS)}}}")
    elif isinstance(source, Mapping):
        if not source:
            raise ConfigError("a paired image's mapping holds no slide")
        for value in source.values():
            if not isinstance(value, (str, os.PathLike)) and not hasattr(value, "shape"):
                raise ConfigError(f"a paired image must be paths or arrays by slide, got a {type(value).__name__}")
    elif not callable(source):
        raise ConfigError(
            f"a paired image must be a path with fields ({{{'}, {'.join(_FIELDS)}}}), a mapping from slides to paths or "
            f"arrays, or a function of the slide, got {type(source).__name__}"
        )


def _check_axes(axes: Any, name: str) -> None:
    if axes is None:
        return
    letters = axes.upper() if isinstance(axes, str) else ""
    if len(set(letters)) != len(letters) or not {"Y", "X"} <= set(letters) <= set(AXES):
        raise ConfigError(f"{name} must be letters of {AXES}, each once, Y and X among them, got {axes!r}")


def _check_outside(outside: float, dtype: np.dtype[Any]) -> None:
    """Raise ConfigError where the image's type has no such value."""
    if dtype.kind in "iu" and (outside != int(outside) or not np.iinfo(dtype).min <= outside <= np.iinfo(dtype).max):
        raise ConfigError(f"its values are {dtype}, which has no {outside} for outside=")
    if dtype.kind not in "biuf":
        raise ConfigError(f"its values must be numbers, got {dtype}")


def _source_of(paired: Paired, slide: Slide, patient_id: str, info: SlideInfo) -> Any:
    """The path or the array of a slide."""
    source: Any = paired.source
    if isinstance(source, Mapping):
        keys = [key for key in ((patient_id, slide.id), slide.id) if key in source]
        if not keys:
            raise SlideError(f"there is none for {slide.id!r} or {(patient_id, slide.id)!r} in the mapping")
        source = source[keys[0]]
    elif callable(source):
        try:
            source = source(Slide(slide.path, slide.id, info))
        except SlideError:
            raise
        except Exception as error:
            raise ChoiceError(f"the function that gives a paired image raised for slide {slide.id!r}") from error
        if not isinstance(source, (str, os.PathLike)) and not hasattr(source, "shape"):
            raise ChoiceError(
                f"the function that gives a paired image gave a {type(source).__name__} for slide {slide.id!r}: "
                "a path or an array is wanted"
            )
    if not isinstance(source, (str, os.PathLike)):
        return source
    file, _ = split_address(slide.path)
    return os.fspath(source).format(slide=slide.id, patient=patient_id, stem=file.stem, folder=os.fspath(file.parent))


def _content(source: Any, level: ValueLevel) -> str:
    """What an image is recognised by."""
    if isinstance(source, (str, os.PathLike)):
        return fingerprint(source)
    whole = hashlib.blake2b(f"{level.axes} {level.shape} {level.dtype}".encode(), digest_size=16)
    if isinstance(source, np.ndarray):
        whole.update(np.ascontiguousarray(source).tobytes())
    else:
        width, height = level.extent
        for number in range(_SAMPLES):
            left, top = (max(side - _SAMPLE_SIDE, 0) * number // (_SAMPLES - 1) for side in (width, height))
            right, bottom = min(left + _SAMPLE_SIDE, width), min(top + _SAMPLE_SIDE, height)
            whole.update(level.read((left, top, right, bottom)).tobytes())
    return whole.hexdigest()
