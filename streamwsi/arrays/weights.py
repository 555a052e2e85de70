"""How much each place of a patch counts where patches overlap.

In: what weights are asked for.  Out: a weight for each place of a patch of any size, between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from streamwsi.arrays.grid import FloatArray
from streamwsi.arrays.sources import as_numpy
from streamwsi.errors import ConfigError

Size = tuple[int, ...]

SIGMA = 1 / 8
"""Standard deviation of the Gaussian, in patch sizes. Source: nnU-Net, ``compute_gaussian``; MONAI and patchly too."""


class Weights:
    """Weights for patches of one grid: ``mean``, ``gaussian``, ``distance``, an array, or a callable.

    The weight of a place is what is asked for, divided by the largest of the patch.
    """

    def __init__(self, asked: Any, patch_size: Size) -> None:
        self.patch_size = patch_size
        self._asked = asked
        if isinstance(asked, str):
            if asked not in ("mean", "gaussian", "distance"):
                raise ConfigError(
                    f"weights must be 'mean', 'gaussian', 'distance', an array or a callable of the patch's size, got {asked!r}"
                )
        elif not callable(asked):
            self._asked = as_numpy(asked)
            self._checked(self._asked, patch_size)

    @property
    def alike(self) -> bool:
        """Whether all places weigh the same."""
        return isinstance(self._asked, str) and self._asked == "mean"

    def along(self, size: int) -> FloatArray | None:
        """The weights along one axis of which those of the patch are the product; (size,) float64. None where they are none."""
        if not isinstance(self._asked, str) or self._asked == "distance":
            return None
        if self._asked == "mean":
            return np.ones(size)
        offset = np.arange(size) - (size - 1) / 2
        vector: FloatArray = np.exp(-0.5 * (offset / (size * SIGMA)) ** 2)
        return vector

    def of(self, size: Size) -> FloatArray:
        """The weights of a patch of this size, which at the array's end may be smaller than the others; float64."""
        vectors = [self.along(extent) for extent in size]
        known = [vector for vector in vectors if vector is not None]
        if len(known) == len(size):
            weights = reduce(np.multiply.outer, known)
        elif isinstance(self._asked, str):
            weights = _distance(size)
        elif callable(self._asked):
            weights = self._checked(as_numpy(self._asked(size)), size)
        else:  # a cut patch is the front of a whole one
            weights = self._checked(self._asked[tuple(slice(extent) for extent in size)], size)
        scaled: FloatArray = weights / weights.max()
        return scaled

    def _checked(self, weights: Any, size: Size) -> FloatArray:
        if weights.shape != size:
            raise ConfigError(f"weights must have the patch's spatial size {size}, got {weights.shape}")
        found: FloatArray = np.asarray(weights, dtype=np.float64)
        if not np.isfinite(found).all() or found.min() < 0 or found.max() == 0:
            raise ConfigError(
                f"weights must be finite, not negative, and not all zero, got values from {found.min():g} to {found.max():g}"
            )
        return found


def _distance(size: Size) -> FloatArray:
    """How far each place lies from the nearest border of the patch, in steps, those at the border 1."""
    axes = [np.minimum(np.arange(1.0, extent + 1), np.arange(extent, 0.0, -1)) for extent in size]
    return reduce(np.minimum.outer, axes)


OwnWeights = Callable[[Size], Any]
