"""What every sampler does.

In: a scene.  Out: where its windows lie.  Never opens a slide.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

from streamwsi.config import at_least
from streamwsi.errors import ConfigError
from streamwsi.geometry import Int64Array
from streamwsi.sampling.scene import Scene

_Own = TypeVar("_Own", bound="Sampler")


@dataclass(frozen=True, eq=False)
class Places:
    """Where the windows of one slide lie, in the order of the plan."""

    start: Int64Array
    """(n, 2) int64: (x, y), in pixels of what is read; no two the same."""
    label: Int64Array | None = None
    """(n,) int64: places in `names`, -1 for none; None where windows carry no labels."""
    names: tuple[str, ...] = ()
    """The labels that there are."""
    stride: tuple[int, int] | None = None
    """(x, y) steps, where the windows lie on a grid."""


class Sampler:
    """Chooses the windows of a slide. Subclasses define `places` and `describe`."""

    carries_labels: bool = False
    """Its windows carry labels."""
    margin: int = 0
    """Pixels around each window that are read with it."""
    epoch: int = 0
    """Which draw it is."""

    def places(self, scene: Scene) -> Places:
        """Where the windows of a slide lie."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """All that decides the windows, as plain values."""
        raise NotImplementedError

    def at_epoch(self: _Own, epoch: int) -> _Own:
        """The same sampler for another `epoch`, from 0: where windows are drawn at random, a new draw."""
        if not isinstance(at_least(epoch, 0, "epoch"), int):
            raise ConfigError(f"epoch must be a whole number, got {epoch!r}")
        other = copy.copy(self)
        other.epoch = epoch
        return other
