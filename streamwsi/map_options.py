"""What maps are to be: how windows are blended, and what files they become.

In: options as users give them, checked elsewhere where that takes more than numbers.  Out: a frozen structure.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from streamwsi.errors import ConfigError

MapOutput = Literal["zarr", "tiff", "hdf5"]
MAP_OUTPUTS: tuple[MapOutput, ...] = get_args(MapOutput)
MAP_SUFFIXES: dict[MapOutput, str] = {"zarr": ".ome.zarr", "tiff": ".ome.tiff", "hdf5": ".h5"}
MAP_DTYPES = ("uint8", "uint16", "float32")
"""That a map may have: what OME-Zarr and OME-TIFF hold and viewers open."""
NAMED_WEIGHTS = ("mean", "gaussian", "distance")
_SIDE = 16
"""Sides of blocks are multiples of it. Source: TIFF 6.0, section 15."""


class MapOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the windows' images become maps."""

    output: MapOutput
    weights: str
    """``mean``, ``gaussian`` or ``distance``; else what stands for the user's own in ``run.json``."""
    array: tuple[tuple[int, ...], bytes] | None = None
    """Own weights: shape, and float64 values."""
    code: tuple[bytes, tuple[str, ...]] | None = None
    """A callable that gives own weights: pickled, and the files that it was loaded from. It only ever comes from a child's own
    standard input."""
    dtype: str | None = None
    """Of the map; None: what :func:`map_dtype` makes of the windows'."""
    fill_value: float | None = None
    """Where no window is; None: NaN, or 0 of integers."""
    reduction: int = 1
    """Pixels of a window, along each axis, to a pixel of its image."""
    block_px: int = 512
    """Side of a block: of what lies in the journal, and of the files' tiles or chunks."""

    def check(self) -> None:
        """Raise ConfigError naming the option that cannot be."""
        if self.output not in MAP_OUTPUTS:
            raise ConfigError(f"output must be one of {', '.join(map(repr, MAP_OUTPUTS))}, got {self.output!r}")
        if self.dtype is not None and self.dtype not in MAP_DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(MAP_DTYPES)}, got {self.dtype!r}")
        for value, least, name in ((self.reduction, 1, "reduction"), (self.block_px, _SIDE, "block_px")):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if self.block_px % _SIDE:
            raise ConfigError(f"block_px must be a multiple of {_SIDE}, got {self.block_px}")
        _check_fill_value(self.fill_value, self.dtype)

    def describe(self) -> dict[str, Any]:
        """All that decides the maps, as it stands in ``run.json``."""
        return {
            "output": self.output,
            "weights": self.weights,
            "dtype": self.dtype,
            "fill_value": None if self.fill_value is None else repr(float(self.fill_value)),
            "reduction": self.reduction,
            "block_px": self.block_px,
        }

    @property
    def alike(self) -> bool:
        """All places of a window weigh the same."""
        return self.weights == "mean"


def map_dtype(options: MapOptions, windows: np.dtype[Any]) -> np.dtype[Any] | None:
    """The type of a map of windows of this type; None where there is none without `dtype`."""
    if options.dtype is not None:
        return np.dtype(options.dtype)
    if windows.kind in "bf":
        return np.dtype("uint8" if windows.kind == "b" else "float32")
    return windows if windows.name in MAP_DTYPES else None


def fill_of(options: MapOptions, dtype: np.dtype[Any]) -> Any:
    """What stands where no window is."""
    if options.fill_value is not None:
        return dtype.type(options.fill_value)
    return dtype.type(np.nan if dtype.kind == "f" else 0)


def array_name(array: np.ndarray[Any, Any]) -> str:
    """What stands for own weights in ``run.json``."""
    digest = hashlib.blake2b(np.ascontiguousarray(array, np.float64).tobytes(), digest_size=8).hexdigest()
    return f"array {array.shape}, {digest}"


def _check_fill_value(fill_value: Any, dtype: str | None) -> None:
    if fill_value is None:
        return
    if isinstance(fill_value, bool) or not isinstance(fill_value, (int, float)):
        raise ConfigError(f"fill_value must be a number, got {fill_value!r}")
    if dtype is None or dtype == "float32":
        if dtype is None:
            raise ConfigError(f"fill_value {fill_value!r} takes a dtype that holds it: say dtype= too")
        if np.isfinite(fill_value) and abs(fill_value) > float(np.finfo(np.float32).max):
            raise ConfigError(f"fill_value must be a number that float32 holds, got {fill_value!r}")
        return
    limits = np.iinfo(dtype)
    if not np.isfinite(fill_value) or int(fill_value) != fill_value or not limits.min <= fill_value <= limits.max:
        raise ConfigError(f"fill_value must be a whole number that {dtype} holds, got {fill_value!r}")
