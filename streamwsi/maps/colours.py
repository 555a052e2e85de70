"""Which colour a value has.

In: values, and how they are to be coloured.  Out: colours, and the scale that a colour bar shows.  Never draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import UInt8Array
from streamwsi.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.colors import Colormap, Normalize

_STRIP_ROWS = 256
"""Rows of a map that are coloured together: colours are four floats a value."""
_SAME = 1e-9
"""Values that lie closer than this, relative to the largest, are one value: overlapping windows differ so by rounding."""
NOT_COLOURED: tuple[int, int, int] = (255, 255, 255)
"""RGB of what has no colour, where there is nothing beneath."""


@dataclass(frozen=True)
class Range:
    """What values there are among those that are coloured; everything is the other way round where there are none."""

    low: float = math.inf
    """The least finite one."""
    high: float = -math.inf
    """The greatest finite one."""
    least: float = math.inf
    """The least, which may be -inf."""
    greatest: float = -math.inf
    """The greatest, which may be inf."""
    any_nan: bool = False
    """Some are NaN."""
    any_below: bool = False
    """Some are below the threshold."""

    def __or__(self, other: Range) -> Range:
        """Of both together."""
        return Range(
            min(self.low, other.low),
            max(self.high, other.high),
            min(self.least, other.least),
            max(self.greatest, other.greatest),
            self.any_nan or other.any_nan,
            self.any_below or other.any_below,
        )


@dataclass(frozen=True)
class Colouring:
    """How values are to be coloured, as asked for; ConfigError when it cannot be done."""

    cmap: str = "viridis"
    """Name of one of matplotlib's colour maps."""
    alpha: float = 0.5
    """Opacity over the tissue, 0 to 1."""
    vmin: float | None = None
    """The value at the lower end of the colours; None: the least that is coloured."""
    vmax: float | None = None
    """The value at the upper end of the colours; None: the greatest."""
    threshold: float | None = None
    """Values below it are not coloured."""

    def __post_init__(self) -> None:
        import matplotlib

        if self.cmap not in matplotlib.colormaps:
            raise ConfigError(
                f"cmap must be the name of one of matplotlib's colour maps (viridis, magma, coolwarm, …), got {self.cmap!r}"
            )
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha must be from 0 to 1, got {self.alpha}")
        for name in ("vmin", "vmax", "threshold"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{name} must be a finite number, got {value}")
        if self.vmin is not None and self.vmax is not None and not self.vmin < self.vmax:
            raise ConfigError(f"vmin must be below vmax, got {self.vmin} and {self.vmax}")

    def range_of(self, values: npt.NDArray[np.float64]) -> Range:
        """The range of those of `values` that are coloured."""
        nan = np.isnan(values)
        below = np.zeros(values.shape, bool) if self.threshold is None else values < self.threshold
        shown = values[~(nan | below)]
        finite = shown[np.isfinite(shown)]
        return Range(
            low=float(finite.min(initial=math.inf)),
            high=float(finite.max(initial=-math.inf)),
            least=float(shown.min(initial=math.inf)),
            greatest=float(shown.max(initial=-math.inf)),
            any_nan=bool(nan.any()),
            any_below=bool(below.any()),
        )

    def scale(self, found: Range) -> Scale:
        """The colours for values of this range."""
        low = found.low if self.vmin is None else self.vmin
        high = found.high if self.vmax is None else self.vmax
        if found.low > found.high:
            low, high = (0.0 if self.vmin is None else low), (1.0 if self.vmax is None else high)
        if not high - low > _SAME * max(abs(low), abs(high)):  # one value, or all lie beyond the end that was given
            room = max(abs(low), abs(high), 1.0) / 2
            low, high = (low if self.vmin is not None else high - room), (high if self.vmax is not None else low + room)
        return Scale(self.cmap, low, high, self.threshold, extend=(found.least < low, found.greatest > high))


@dataclass(frozen=True)
class Scale:
    """Colours of values, for a map or for several."""

    cmap: str
    low: float
    """The value that has the first colour; so have those below it."""
    high: float
    """The value that has the last colour; so have those above it."""
    threshold: float | None
    """Values below it have no colour."""
    extend: tuple[bool, bool]
    """Whether there are values below `low`, and above `high`."""

    @property
    def colormap(self) -> Colormap:
        """As matplotlib has it."""
        import matplotlib

        return matplotlib.colormaps[self.cmap]

    @property
    def norm(self) -> Normalize:
        """Values to the colour map's 0 to 1."""
        from matplotlib.colors import Normalize

        return Normalize(self.low, self.high)

    def coloured(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which values have a colour: not NaN, and not below the threshold; of the shape of `values`."""
        there: npt.NDArray[np.bool_] = ~np.isnan(values)
        return there if self.threshold is None else there & (values >= self.threshold)

    def rgb(self, values: npt.NDArray[np.float64]) -> UInt8Array:
        """(rows, columns) as (rows, columns, 3) uint8; :data:`NOT_COLOURED` where a value has no colour."""
        colours = np.empty((*values.shape, 3), np.uint8)
        colormap, norm = self.colormap, self.norm
        for first in range(0, len(values), _STRIP_ROWS):
            strip = slice(first, first + _STRIP_ROWS)
            # a value that is coloured already: matplotlib makes something of its own of NaN
            some = np.where(np.isnan(values[strip]), self.low, values[strip])
            colours[strip] = np.rint(255 * colormap(norm(some))[..., :3])
            colours[strip][~self.coloured(values[strip])] = NOT_COLOURED
        return colours
