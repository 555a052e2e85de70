"""Where a slide holds tissue.

In: a slide.  Out: a mask.  Reads one level of the slide, shrunk; nothing is learnt from other slides.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import UInt8Array
from streamwsi.config import at_least, one_of
from streamwsi.dataset import SlideInfo
from streamwsi.errors import ConfigError, MaskError
from streamwsi.regions.artefacts import artefacts
from streamwsi.regions.extra import needed
from streamwsi.regions.facts import SlideLike, checked_mpp, opened
from streamwsi.regions.mask import BoolArray, Mask
from streamwsi.slides.reduced import read_reduced

Method = Literal["hsv", "lab", "otsu"]
METHODS: tuple[Method, ...] = get_args(Method)
Unit = Literal["um", "px"]
UNITS: tuple[Unit, ...] = get_args(Unit)
Float32Array = npt.NDArray[np.float32]

_THRESHOLDS = {"hsv": 0.06, "lab": 8.0}
_SIZES = {"um": (100.0, 50.0, 20.0), "px": (200.0, 100.0, 40.0)}
"""Defaults of min_object, max_hole and closing; those in pixels are the same on a slide of 0.5 µm/px."""
_ROUNDING = 1.01
"""A level may be so much coarser than asked for: downsamples are 4.006 where 4 is meant."""
_LARGEST_MASK_PX = 1 << 27
_STRIP_ROWS = 256
_OTSU_PX = 512
"""Longer side of the picture that Otsu's threshold is that of. In a sharper one, nuclei are told from the rest of tissue."""
_LEAST_CONTRAST = 12.0
"""Grey levels between tissue and glass. Otsu's method splits the noise of empty glass too; that lies far below this."""


class Cleaning(NamedTuple):
    """What is done to a mask after thresholding, as diameters in one unit."""

    min_object: float
    max_hole: float
    closing: float


class TissueMask(Mask):
    """The tissue on a slide. Glass, coloured and black marker ink, and black borders are not tissue.

    Parameters
    ----------
    slide
        Its path, a Slide, or an open one.
    method
        ``hsv``: saturation of at least `threshold` (0–1; by default 0.06).
        ``lab``: a colour at least `threshold` (CIE 1976 ΔE; by default 8) from that of the slide's glass; finds pale tissue,
        and dust too.
        ``otsu``: as dark as Otsu's threshold of the grey levels, or darker; `threshold`, 0–255, replaces it. For stains without
        colour; where a slide holds pale and dark tissue it may find only the dark.
    level, mpp, max_px
        The mask's resolution, one of: a level as it is; about so many micrometres per pixel of the mask; at most so many pixels
        along its longer side (by default 2048). `mpp` and `max_px` take the coarsest level that is fine enough, shrunk by a
        whole number. `mask.scale` says what came of it.
    threshold
        In the method's own scale; None: its default.
    min_object, max_hole, closing
        What is smaller than a disc of this diameter is removed; holes smaller than one are filled; gaps narrower than this are
        closed first. 0: not done. None: 100, 50 and 20 µm, or 200, 100 and 40 level-0 pixels. What ink and borders cover is
        not filled.
    unit
        Of these three: ``um``, or ``px`` for level-0 pixels, which slides without a resolution need.

    Raises ConfigError for values that cannot be, and where micrometres are asked for and the slide does not say its resolution,
    or says one that cannot be; SlideError where the slide cannot be read; MaskError for a mask that would be too large.

    Source: saturation against glass, Lu M. Y. et al., "Data-efficient and weakly supervised computational pathology on
    whole-slide images", Nature Biomedical Engineering 5 (2021) 555–570; Otsu N., "A threshold selection method from gray-level
    histograms", IEEE Transactions on Systems, Man, and Cybernetics 9 (1979) 62–66; ΔE, CIE 015:2018.
    """

    def __init__(
        self,
        slide: SlideLike,
        method: Method = "hsv",
        *,
        level: int | None = None,
        mpp: float | None = None,
        max_px: int | None = None,
        threshold: float | None = None,
        min_object: float | None = None,
        max_hole: float | None = None,
        closing: float | None = None,
        unit: Unit = "um",
    ) -> None:
        needed("skimage", "a tissue mask")
        one_of(method, METHODS, "method")
        one_of(unit, UNITS, "unit")
        if threshold is not None:
            at_least(threshold, 0, "threshold")
        given = zip((min_object, max_hole, closing), _SIZES[unit], Cleaning._fields, strict=True)
        cleaning = Cleaning(*(default if value is None else at_least(value, 0, name) for value, default, name in given))
        with opened(slide) as reader:
            name = str(slide if isinstance(slide, (str, os.PathLike)) else getattr(slide, "path", "the slide"))
            number, factor = _resolution(reader.info, name, level, mpp, max_px)
            unit_x, unit_y = (1.0, 1.0)
            if unit == "um" and any(cleaning):
                unit_x, unit_y = checked_mpp(reader.info, name, "give unit='px', and the sizes in level-0 pixels")
            rgb = read_reduced(reader, number, factor)
        side = reader.info.level_downsamples[number] * factor
        array = tissue(rgb, method, threshold, cleaning, (side * unit_x, side * unit_y))
        super().__init__(array, scale=side, offset=(0.0, 0.0))
        self.method: Method = method
        """How it was found."""


def tissue(
    rgb: UInt8Array, method: Method, threshold: float | None, cleaning: Cleaning, pixel: tuple[float, float]
) -> BoolArray:
    """Where a picture, (height, width, 3) uint8, RGB, shows tissue: (height, width) bool.

    `pixel` is (x, y): the sides of a pixel, in the unit of `cleaning`.
    """
    morphology = needed("skimage.morphology", "a tissue mask")
    none = artefacts(rgb)
    found = _found(rgb, none, method, threshold)
    x, y = pixel
    # pigment in tissue, and dye on its cut edges, are tissue; a marker's strokes are not as small as that
    none &= ~_smaller_than(none, cleaning.min_object, x * y)
    found &= ~none
    if cleaning.closing > min(pixel):
        found = morphology.isotropic_closing(found, cleaning.closing / 2, spacing=(y, x))
    found |= _smaller_than(~found, cleaning.max_hole, x * y)
    found &= ~none
    found &= ~_smaller_than(found, cleaning.min_object, x * y)
    return found


def _resolution(info: SlideInfo, name: str, level: int | None, mpp: float | None, max_px: int | None) -> tuple[int, int]:
    """(level, the whole number that it is shrunk by) of a mask."""
    if sum(value is not None for value in (level, mpp, max_px)) > 1:
        raise ConfigError(f"give one of level=, mpp= and max_px=, got {level!r}, {mpp!r} and {max_px!r}")
    if level is not None:
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < info.level_count:
            raise ConfigError(f"{name} has no level {level!r}: it has levels 0 to {info.level_count - 1}")
        number, factor = level, 1
    elif mpp is not None:
        if at_least(mpp, 0, "mpp") == 0:
            raise ConfigError(f"mpp must be above 0 micrometres per pixel, got {mpp!r}")
        x, y = checked_mpp(info, name, "give level= or max_px= instead of mpp=")
        wanted = mpp / math.sqrt(x * y)
        number = max((n for n, down in enumerate(info.level_downsamples) if down <= wanted * _ROUNDING), default=0)
        factor = max(round(wanted / info.level_downsamples[number]), 1)
    else:
        longest = at_least(2048 if max_px is None else max_px, 16, "max_px")
        number = max((n for n, size in enumerate(info.level_dimensions) if max(size) >= longest), default=0)
        factor = math.ceil(max(info.level_dimensions[number]) / longest)
    width, height = (math.ceil(side / factor) for side in info.level_dimensions[number])
    if width * height > _LARGEST_MASK_PX:
        raise MaskError(
            f"a tissue mask of level {number} of {name}, shrunk {factor} times, would have {width} × {height} pixels, more "
            f"than {_LARGEST_MASK_PX}: ask for a coarser one with mpp= or max_px="
        )
    return number, factor


def _found(rgb: UInt8Array, none: BoolArray, method: Method, threshold: float | None) -> BoolArray:
    """What the method takes for tissue; where `none` is, it does not matter."""
    if method == "otsu":
        return _dark(rgb, none, threshold)
    limit = _THRESHOLDS[method] if threshold is None else threshold
    if method == "hsv":
        return _by_strips(rgb, _saturation) >= limit
    glass = _glass(rgb)
    return _by_strips(rgb, lambda strip: _distance(strip, glass)) >= limit


def _by_strips(rgb: UInt8Array, of_strip: Callable[[UInt8Array], Float32Array]) -> Float32Array:
    """(height, width) float32 of a picture, computed in strips: colour spaces take many times the picture's memory."""
    whole = np.empty(rgb.shape[:2], np.float32)
    for top in range(0, len(rgb), _STRIP_ROWS):
        whole[top : top + _STRIP_ROWS] = of_strip(rgb[top : top + _STRIP_ROWS])
    return whole


def _saturation(rgb: UInt8Array) -> Float32Array:
    brightest = rgb.max(axis=2).astype(np.float32)
    saturation: Float32Array = (brightest - rgb.min(axis=2)) / np.maximum(brightest, 1)
    return saturation


def _grey(rgb: UInt8Array) -> Float32Array:
    """Luma, 0–255. Source: ITU-R BT.601."""
    luma: Float32Array = rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return luma


def _distance(rgb: UInt8Array, glass: npt.NDArray[np.float64]) -> Float32Array:
    """ΔE of pixels from glass, or from white, which is what a slide shows where it was not scanned; the smaller of the two."""
    color = needed("skimage.color", "method 'lab'")
    pixels = color.rgb2lab(rgb.astype(np.float32) / 255)
    empty = color.rgb2lab(np.array([[glass, (255, 255, 255)]], np.float32) / 255)[0]
    nearest: Float32Array = np.min([np.linalg.norm(pixels - colour, axis=2) for colour in empty], axis=0)
    return nearest


def _glass(rgb: UInt8Array) -> npt.NDArray[np.float64]:
    """Colour of the slide's glass: the median of what is bright and has hardly any colour; white where there is none."""
    least, most = rgb.min(axis=2), rgb.max(axis=2)
    bright = (least >= 200) & (most - least <= 20) & (least < 255)
    if np.count_nonzero(bright) < bright.size / 100:
        return np.full(3, 255.0)
    glass: npt.NDArray[np.float64] = np.median(rgb[bright], axis=0)
    return glass


def _dark(rgb: UInt8Array, none: BoolArray, threshold: float | None) -> BoolArray:
    grey = _by_strips(rgb, _grey)
    if threshold is not None:
        return grey <= threshold
    counted = _block_means(grey, ~none, math.ceil(max(grey.shape) / _OTSU_PX))
    if counted.size == 0 or counted.min() == counted.max():
        return np.zeros(grey.shape, bool)
    limit = needed("skimage.filters", "method 'otsu'").threshold_otsu(counted)
    dark = counted <= limit
    if counted[~dark].mean() - counted[dark].mean() < _LEAST_CONTRAST:
        return np.zeros(grey.shape, bool)
    darker: BoolArray = grey <= limit
    return darker


def _block_means(values: Float32Array, counted: BoolArray, side: int) -> Float32Array:
    """(n,) float32: means of blocks of side × side, over what is `counted` of them; blocks without any have none."""
    reduce = needed("skimage.measure", "method 'otsu'").block_reduce
    counts = reduce(counted.astype(np.float32), (side, side), np.sum)
    sums = reduce(np.where(counted, values, 0), (side, side), np.sum)
    means: Float32Array = sums[counts > 0] / counts[counts > 0]
    return means


def _smaller_than(mask: BoolArray, diameter: float, pixel_area: float) -> BoolArray:
    """The connected parts (by sides) of a mask whose area is below that of a disc of this diameter."""
    least_px = math.pi / 4 * diameter**2 / pixel_area
    if least_px <= 1:
        return np.zeros(mask.shape, bool)
    labels = needed("skimage.measure", "a tissue mask").label(mask, connectivity=1)
    small = np.bincount(labels.ravel()) < least_px
    small[0] = False
    parts: BoolArray = small[labels]
    return parts
