"""A mask: which parts of a slide are inside.

In: a table of booleans, its scale and offset.  Out: shares of boxes, points inside or not, files, pictures.  Positions are in
level-0 pixels. Nothing about where a mask lies is guessed.
"""

from __future__ import annotations

import math
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import UInt8Array
from streamwsi.errors import ConfigError, MaskError
from streamwsi.regions.facts import Sized, SlideLike, dimensions_of
from streamwsi.regions.files import renamed_when_written

BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64] | npt.NDArray[np.int32]

_ROUNDING_PX = 1e-9


class Mask:
    """Which parts of a slide are inside: a table of booleans that lies on the slide.

    Parameters
    ----------
    array
        (rows, columns) bool; True is inside. It is copied.
    scale
        Level-0 pixels per pixel of the mask: one number, or (x, y). Above 0, need not be whole.
    offset
        (x, y) of the mask's upper left corner, in level-0 pixels.

    What lies beyond the mask is not inside. :meth:`placed` makes one for a slide, and checks that it fits;
    :func:`streamwsi.read_mask` reads one.

    Raises MaskError when the array is not 2-D bool, ConfigError for a scale or an offset that cannot be.

    >>> mask = Mask(np.array([[True, False]]), scale=16, offset=(0, 0))
    >>> mask.coverage([(0, 0), (8, 0)], 16).tolist()
    [1.0, 0.5]
    """

    def __init__(self, array: npt.ArrayLike, *, scale: float | tuple[float, float], offset: tuple[float, float]) -> None:
        given = np.asarray(array)
        if given.dtype != np.bool_ or given.ndim != 2 or given.size == 0:
            raise MaskError(
                f"a mask must be a 2-D array of booleans (rows, columns), got {given.dtype} {given.shape}"
                + ("" if given.dtype == np.bool_ else ": say what is inside, as in array > 0")
            )
        self.array: BoolArray = given.copy()
        """(rows, columns) bool, read-only; True is inside."""
        self.array.flags.writeable = False
        self.scale: tuple[float, float] = pair(scale, "scale")
        """(x, y) level-0 pixels per pixel of the mask."""
        if min(self.scale) <= 0:
            raise ConfigError(f"scale must be above 0 level-0 pixels per pixel of the mask, got {scale!r}")
        self.offset: tuple[float, float] = pair(offset, "offset")
        """(x, y) of its upper left corner, in level-0 pixels."""

    @staticmethod
    def placed(
        array: npt.ArrayLike,
        *,
        slide: Sized | None = None,
        scale: float | tuple[float, float] | None = None,
        offset: tuple[float, float] | None = None,
    ) -> Mask:
        """A mask that lies where it is said to lie, checked against the slide where one is given.

        ========================  ====================================================================================
        given                     meaning
        ========================  ====================================================================================
        slide                     it covers the whole slide, and its scale follows from both sizes
        slide and scale           it covers the whole slide, at this scale
        slide, scale and offset   it lies on the slide, there
        scale and offset          it lies there
        ========================  ====================================================================================

        `array` is (rows, columns) bool. `slide` may be a path, an open slide, or
        (width, height) in level-0 pixels.

        Raises MaskError where the mask does not fit the slide by more than one of its pixels, ConfigError where what is given
        does not say where it lies.
        """
        if slide is None:
            if scale is None or offset is None:
                raise ConfigError(
                    "nothing says where the mask lies: give the slide= that it covers, or its scale= (level-0 pixels per pixel "
                    "of the mask) and offset= (level-0 pixels)"
                )
            return Mask(array, scale=scale, offset=offset)
        dimensions = dimensions_of(slide)
        if scale is None:
            if offset is not None:
                raise ConfigError("offset= goes with scale=: without it the mask is taken to cover the whole slide")
            scale = scale_to_cover(np.shape(array), dimensions)
        mask = Mask(array, scale=scale, offset=offset or (0.0, 0.0))
        mask.check_on(dimensions)
        if offset is None:
            mask.check_covers(dimensions)
        return mask

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        rows, columns = self.array.shape
        return rows, columns

    @property
    def bounds_l0(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of what the mask covers, inside or not, in level-0 pixels."""
        (rows, columns), (x, y) = self.shape, self.offset
        return x, y, x + columns * self.scale[0], y + rows * self.scale[1]

    @property
    def share(self) -> float:
        """How much of what it covers is inside, 0–1."""
        return float(self.array.mean())

    def coverage(self, xy: npt.ArrayLike, size: npt.ArrayLike) -> Float64Array:
        """Share of each box that is inside: of the box's own area, also of what of it lies beyond the mask.

        Parameters
        ----------
        xy
            (n, 2): (x, y) of the boxes' upper left corners, in level-0 pixels; fractions count.
        size
            Their sizes in level-0 pixels: (n, 2), one (width, height), or one number.

        Returns
        -------
        (n,) float64, 0–1. Exactly 0 where nothing of a box is inside, exactly 1 where all of it is.

        Source: summed-area table, Crow F. C., "Summed-area tables for texture mapping", SIGGRAPH 1984, 207–212; the table is
        bilinear within a pixel, so that fractions of pixels at the edges are exact too.
        """
        corners = np.asarray(xy, np.float64)
        if corners.ndim != 2 or corners.shape[1] != 2 or not np.isfinite(corners).all():
            raise ConfigError(f"corners must be finite numbers (n, 2), got {corners.shape}")
        try:
            sizes = np.broadcast_to(np.asarray(size, np.float64), corners.shape)
        except ValueError as error:
            raise ConfigError(
                f"sizes must be (n, 2) for {len(corners)} boxes, (2,) or one number, got {np.shape(size)}"
            ) from error
        if not (np.isfinite(sizes).all() and (sizes > 0).all()):
            raise ConfigError("sizes of boxes must be finite and above 0 level-0 pixels")
        low = _snapped((corners - self.offset) / self.scale)
        high = _snapped((corners + sizes - self.offset) / self.scale)
        limit = np.array(self.shape[::-1], np.float64)
        left, top = np.clip(low, 0, limit).T
        right, bottom = np.clip(high, 0, limit).T
        inside = self._sum_to(right, bottom) - self._sum_to(left, bottom) - self._sum_to(right, top) + self._sum_to(left, top)
        on_mask = (right - left) * (bottom - top)
        # what rounding leaves of nothing and takes from everything must not decide whether a window is read
        touched, unset = self._counts(left, top, right, bottom)
        inside = np.where(touched == 0, 0.0, np.where(unset == 0, on_mask, inside))
        beyond = ((low < 0) | (high > limit)).any(axis=1)
        area = np.where(beyond, np.prod(high - low, axis=1), on_mask)
        shares: Float64Array = np.clip(np.divide(inside, area, out=np.zeros_like(area), where=area > 0), 0, 1)
        return shares

    def contains(self, xy: npt.ArrayLike) -> BoolArray:
        """Which points are inside: (n,) bool, for `xy`, (n, 2) positions (x, y) in level-0 pixels."""
        points = np.asarray(xy, np.float64)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ConfigError(f"points must be (n, 2), got {points.shape}")
        places = np.floor((points - self.offset) / self.scale)
        limit = np.array(self.shape[::-1])
        on_mask = np.all((places >= 0) & (places < limit), axis=1)  # False for NaN
        columns, rows = np.where(on_mask[:, None], places, 0).astype(np.int64).T
        inside: BoolArray = on_mask & self.array[rows, columns]
        return inside

    def inverse(self) -> Mask:
        """What this one covers and is not inside of it. What lies beyond is not inside of either."""
        return Mask(~self.array, scale=self.scale, offset=self.offset)

    def check_on(self, slide: Sized) -> None:
        """Raise MaskError where more than one pixel of the mask lies beyond the slide."""
        self._check(dimensions_of(slide), whole=False)

    def check_covers(self, slide: Sized) -> None:
        """Raise MaskError where the mask does not cover the slide, and it alone, to within one pixel of the mask."""
        self._check(dimensions_of(slide), whole=True)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to an NPZ file, `path`: `mask`, (rows, columns) bool; `scale` and `offset`, (x, y) in level-0 pixels.

        The file appears whole or not at all. Raises ConfigError where its name does not end in .npz, OutputError where it
        cannot be written.
        """
        final = Path(path)
        if final.suffix.lower() != ".npz":
            raise ConfigError(f"a mask is saved to a file whose name ends in .npz, got {final}")
        with renamed_when_written(final) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, mask=self.array, scale=np.array(self.scale), offset=np.array(self.offset))
        return final

    def overlay(self, slide: SlideLike, path: str | os.PathLike[str] | None = None, *, longest_px: int = 1600) -> UInt8Array:
        """The slide's thumbnail with what is not inside greyed, and the edge of what is; written to `path`, if given.

        Returns (height, width, 3) uint8, RGB, its longer side `longest_px` pixels, or the slide's, if that is smaller.
        """
        from streamwsi.regions.overlay import overlay

        return overlay(self, slide, path, longest_px)

    def __repr__(self) -> str:
        (rows, columns), (x, y), (left, top) = self.shape, self.scale, self.offset
        return (
            f"{type(self).__name__}({rows} rows × {columns} columns of {x:.6g} × {y:.6g} level-0 pixels "
            f"at ({left:g}, {top:g}), {100 * self.share:.1f} % inside)"
        )

    @cached_property
    def _sums(self) -> IntArray:
        """(rows + 1, columns + 1): how many pixels above and left of each corner are inside."""
        rows, columns = self.shape
        kind: Any = np.int32 if self.array.size < 2**31 else np.int64
        sums: IntArray = np.zeros((rows + 1, columns + 1), kind)
        np.cumsum(self.array, axis=1, out=sums[1:, 1:])
        np.cumsum(sums[1:, 1:], axis=0, out=sums[1:, 1:])
        return sums

    def _sum_to(self, x: Float64Array, y: Float64Array) -> Float64Array:
        """Area inside above and left of points, in pixels of the mask. The whole pixels of it are added as integers."""
        rows, columns = self.shape
        column, row = np.minimum(x.astype(np.int64), columns - 1), np.minimum(y.astype(np.int64), rows - 1)
        across, down = x - column, y - row
        here = self._sums[row, column].astype(np.int64)
        sum_x, sum_y = self._sums[row, column + 1] - here, self._sums[row + 1, column] - here
        area: Float64Array = here + (across * sum_x + down * sum_y + across * down * self.array[row, column])
        return area

    def _counts(
        self, left: Float64Array, top: Float64Array, right: Float64Array, bottom: Float64Array
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Pixels that boxes touch: how many are inside, and how many are not."""
        x0, y0 = np.floor(left).astype(np.int64), np.floor(top).astype(np.int64)
        x1, y1 = np.ceil(right).astype(np.int64), np.ceil(bottom).astype(np.int64)
        sums = self._sums
        ends = (sums[y1, x1], sums[y0, x1], sums[y1, x0], sums[y0, x0])
        both, upper, lower, corner = (end.astype(np.int64) for end in ends)
        inside = both - upper - lower + corner
        return inside, (x1 - x0) * (y1 - y0) - inside

    def _check(self, dimensions: tuple[int, int], *, whole: bool) -> None:
        width, height = dimensions
        left, top, right, bottom = self.bounds_l0
        x, y = (side * (1 + 1e-9) for side in self.scale)
        if left >= -x and top >= -y and right <= width + x and bottom <= height + y:
            if not whole or (left <= x and top <= y and right >= width - x and bottom >= height - y):
                return
            why = "does not cover the slide"
        else:
            why = "reaches beyond the slide"
        rows, columns = self.shape
        raise MaskError(
            f"the mask {why}: {columns} × {rows} pixels of {self.scale[0]:.6g} × {self.scale[1]:.6g} level-0 pixels at "
            f"({left:g}, {top:g}) end at ({right:g}, {bottom:g}), the slide is {width} × {height} level-0 pixels"
            + (
                f"; a mask of this shape that covers it has a scale of {width / columns:.6g} × {height / rows:.6g}"
                if left == top == 0
                else ""
            )
        )


def _snapped(places: Float64Array) -> Float64Array:
    """Places in pixels of a mask; those at an edge, but for how numbers are rounded, are at the edge."""
    whole = np.rint(places)
    snapped: Float64Array = np.where(np.abs(places - whole) < _ROUNDING_PX, whole, places)
    return snapped


def pair(value: float | tuple[float, float], name: str) -> tuple[float, float]:
    """(x, y) of finite numbers; one number stands for both."""
    try:
        x, y = np.broadcast_to(np.asarray(value, np.float64), (2,)).tolist()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be (x, y) in level-0 pixels, got {value!r}") from error
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ConfigError(f"{name} must be finite, got {value!r}")
    return x, y


def scale_to_cover(shape: tuple[int, ...], dimensions: tuple[int, int], what: str = "mask") -> tuple[float, float]:
    """Scale of a mask, or `what` it is, that covers the slide.

    Raises MaskError where the two are not of one form, save for rounded sides.
    """
    if len(shape) != 2 or 0 in shape:
        raise MaskError(f"a {what} must be 2-D (rows, columns), got {shape}")
    rows, columns = shape
    width, height = dimensions
    if not _same_form((columns, rows), dimensions):
        swapped = "; its rows and columns seem to be swapped" if _same_form((rows, columns), dimensions) else ""
        raise MaskError(
            f"the {what} does not have the form of the slide: {columns} × {rows} pixels (columns × rows) on {width} × {height} "
            f"level-0 pixels would be {width / columns:.6g} level-0 pixels wide and {height / rows:.6g} high each{swapped}; "
            f"if that is meant, give scale= and offset="
        )
    return width / columns, height / rows


def _same_form(size: tuple[int, int], dimensions: tuple[int, int]) -> bool:
    """Whether some one scale gives these sizes, each rounded up or down by less than a pixel."""
    least = max(extent / (side + 1) for side, extent in zip(size, dimensions, strict=True))
    most = min(extent / (side - 1) if side > 1 else math.inf for side, extent in zip(size, dimensions, strict=True))
    return least < most
