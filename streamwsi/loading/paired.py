"""Images that are paired with slides, as users describe them.

In: where they lie, which of their axes are wanted, at whose scale.  Out: the same, checked.  Opens nothing; loaders do.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamwsi.addresses import AXES
from streamwsi.arrays.sources import Source
from streamwsi.config import at_least, one_of
from streamwsi.errors import ConfigError
from streamwsi.loading.resolution import source_of
from streamwsi.paired import PairedResolution
from streamwsi.regions.mask import pair

FIELDS = ("slide", "patient", "stem", "folder")
"""What may stand in braces in a path."""
FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
_RESERVED = ("pixels", "windows", "slide", "slides", "patient", "patients", "margin", "paired", "finest")


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
        object.__setattr__(self, "source", _checked_source(self.source))
        one_of(self.resolution, ("own", "window"), "resolution")
        for name in ("source_axes", "axes"):
            _check_axes(getattr(self, name), name)
        at = {}
        for axis, given in dict[Any, Any](self.at).items():
            place = int(given) if isinstance(given, np.integer) else given
            if not isinstance(axis, str) or axis.upper() not in AXES or isinstance(place, bool):
                raise ConfigError(f"at must say places by letters of {AXES}, got {axis!r}: {place!r}")
            if not isinstance(place, (int, slice)) or (isinstance(place, int) and axis.upper() in "YX"):
                raise ConfigError(
                    f"at[{axis!r}] must be a slice{'' if axis.upper() in 'YX' else ' or a whole number'}, got {place!r}"
                )
            at[axis.upper()] = place
        object.__setattr__(self, "at", at)
        if self.level is not None:
            level: Any = self.level
            object.__setattr__(self, "level", at_least(int(level) if isinstance(level, np.integer) else level, 0, "level"))
        if self.scale is not None and min(pair(self.scale, "scale")) <= 0:
            raise ConfigError(f"scale must be above 0 level-0 pixels per pixel of the image, got {self.scale!r}")
        if self.offset is not None:
            pair(self.offset, "offset")
            if self.scale is None:
                raise ConfigError("offset= goes with scale=: without it the image is taken to cover the whole slide")
        if isinstance(self.outside, (bool, str)) or not isinstance(self.outside, (int, float, np.number)):
            raise ConfigError(f"outside must be a number, got {self.outside!r}")
        object.__setattr__(self, "outside", float(self.outside))

    def describe(self) -> dict[str, Any]:
        """What of it decides what is read, but for the images, which are recognised by their content."""
        # NaN is no number in a file, and not equal to itself
        outside = self.outside if math.isfinite(self.outside) else str(self.outside)
        described: dict[str, Any] = {"resolution": self.resolution, "outside": outside}
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
    if paired is not None and not isinstance(paired, Mapping):
        raise ConfigError(f"paired must be a dict of images by name, as {{'labels': …}}, got {type(paired).__name__}")
    for name, value in (paired or {}).items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name) or name in _RESERVED:
            raise ConfigError(f"a paired image must be called by a name like 'labels', and none of {_RESERVED}, got {name!r}")
        found[name] = value if isinstance(value, Paired) else Paired(value)
    return found


def _checked_source(source: Any) -> Any:
    """A source that may be one: paths absolute, arrays as they go to another process."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        unknown = [name for name in FIELD.findall(path) if name not in FIELDS]
        if unknown:
            raise ConfigError(f"{path!r}: there is no {{{unknown[0]}}}, only {_fields()}")
        return path if path.startswith("{folder}") else os.path.abspath(path)
    if isinstance(source, Mapping):
        if not source:
            raise ConfigError("a paired image's mapping holds no slide")
        return {key: _of_one_slide(value) for key, value in source.items()}
    if callable(source):
        return source
    raise ConfigError(
        f"a paired image must be a path with fields ({_fields()}), a mapping from slides to paths or arrays, or a function of "
        f"the slide, got {type(source).__name__}"
    )


def _of_one_slide(value: Any) -> Any:
    if isinstance(value, (str, os.PathLike)):
        return os.path.abspath(value)
    if isinstance(value, Source) or hasattr(value, "shape"):
        return value if isinstance(value, Source) else Source(value)  # memory maps and HDF5 datasets travel as where they lie
    raise ConfigError(f"a paired image must be paths or arrays by slide, got a {type(value).__name__}")


def _fields() -> str:
    return ", ".join(f"{{{name}}}" for name in FIELDS)


def _check_axes(axes: Any, name: str) -> None:
    if axes is None:
        return
    letters = axes.upper() if isinstance(axes, str) else ""
    if len(set(letters)) != len(letters) or not {"Y", "X"} <= set(letters) <= set(AXES):
        raise ConfigError(f"{name} must be letters of {AXES}, each once, Y and X among them, got {axes!r}")
