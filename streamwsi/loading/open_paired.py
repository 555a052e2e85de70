"""Images that are paired with a slide, opened with it.

In: what a user says of them, an open slide.  Out: readers, and where each lies on the slide.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from streamwsi.addresses import split_address
from streamwsi.arrays.sources import Source
from streamwsi.dataset import Slide, SlideInfo
from streamwsi.errors import ArrayError, ConfigError, MaskError, SlideError
from streamwsi.loading.fingerprint import fingerprint
from streamwsi.loading.paired import FIELD, Paired
from streamwsi.loading.resolution import ChoiceError
from streamwsi.paired import PairedImage
from streamwsi.regions.mask import pair, scale_to_cover
from streamwsi.slides.paired import PairedReader
from streamwsi.slides.tile_cache import TileCache
from streamwsi.slides.value_level import ValueLevel, WantedAxes

_SAMPLES = 8
"""Of an array that is not NumPy's, so many parts are looked at to recognise it."""
_SAMPLE_SIDE = 64
_NEAR = 1 + 1e-6


class OpenPaired:
    """One paired image of an open slide."""

    def __init__(self, name: str, paired: Paired, slide: Slide, patient_id: str, info: SlideInfo, cache: TileCache) -> None:
        """Raises SlideError where it is missing, cannot be opened or does not fit the slide; ChoiceError when the user's
        function raises anything else.
        """
        self._name, self._paired = name, paired
        try:
            self._source = _source_of(paired, slide, patient_id, info)
            wanted = WantedAxes(paired.axes, paired.at)
            self.reader = PairedReader(self._source, paired.source_axes, wanted, paired.outside, cache)
            try:
                self._scale = self._placed(info)
                if paired.level is not None and paired.level >= len(self.reader.levels):
                    raise SlideError(f"it has no level {paired.level}: it has levels 0 to {len(self.reader.levels) - 1}")
                _check_outside(paired.outside, self.reader.levels[0].dtype)
            except BaseException:
                self.reader.close()
                raise
        except (SlideError, ConfigError, ArrayError) as error:
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


def _check_outside(outside: float, dtype: np.dtype[Any]) -> None:
    """Raise ConfigError where the image's type has no such value."""
    if dtype.kind not in "biuf":
        raise ConfigError(f"its values must be numbers, got {dtype}")
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            fits = not math.isfinite(outside) or bool(np.isfinite(np.array(outside).astype(dtype)))
    else:
        least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        fits = math.isfinite(outside) and outside == int(outside) and least <= outside <= most
    if not fits:
        raise ConfigError(f"its values are {dtype}, which has no {outside} for outside=")


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
            wrong = TypeError(f"it gave a {type(source).__name__}: a path or an array is wanted")
            raise ChoiceError(f"the function that gives a paired image for slide {slide.id!r}: {wrong}") from wrong
    else:
        file, _ = split_address(slide.path)
        fields = {"slide": slide.id, "patient": patient_id, "stem": file.stem, "folder": os.fspath(file.parent)}
        return FIELD.sub(lambda found: fields.get(found[1], found[0]), source)
    return source.array if isinstance(source, Source) else source


def _content(source: Any, level: ValueLevel) -> str:
    """What an image is recognised by."""
    if isinstance(source, (str, os.PathLike)):
        return fingerprint(source)
    whole = hashlib.blake2b(f"{level.axes} {level.shape} {level.dtype}".encode(), digest_size=16)
    if isinstance(source, np.ndarray):
        flat: Any = np.ascontiguousarray(source).reshape(-1).view(np.uint8)
        whole.update(flat)  # and no copy of it: it may be mapped, and large
    else:
        width, height = level.extent
        for number in range(_SAMPLES):
            left, top = (max(side - _SAMPLE_SIDE, 0) * number // (_SAMPLES - 1) for side in (width, height))
            right, bottom = min(left + _SAMPLE_SIDE, width), min(top + _SAMPLE_SIDE, height)
            whole.update(level.read((left, top, right, bottom)).tobytes())
    return whole.hexdigest()
