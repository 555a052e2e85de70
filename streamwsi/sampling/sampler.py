"""What every sampler does, and what it gives.

In: a Scene.  Out: Places.  The same windows on every machine, for any number of workers.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any, TypeVar

from streamwsi.chunks import UInt8Array
from streamwsi.config import at_least
from streamwsi.errors import ConfigError
from streamwsi.geometry import Int64Array
from streamwsi.regions.facts import SlideLike
from streamwsi.sampling.scene import Scene

_Own = TypeVar("_Own", bound="Sampler")


@dataclass(frozen=True, eq=False)
class Places:
    """Where the windows of one slide lie, in the order of the plan."""

    start: Int64Array
    """(n, 2) int64: (x, y) of the windows' upper left corners, in pixels of what is read; window i is row i; none twice."""
    label: Int64Array | None = None
    """(n,) int64: places in `names`, -1 for no label; None where windows carry none."""
    names: tuple[str, ...] = ()
    """What the labels are called."""
    stride: tuple[int, int] | None = None
    """(x, y) steps where windows lie on a grid, else None."""

    def __len__(self) -> int:
        return len(self.start)


class Sampler:
    """Decides where the windows of a slide lie; base of those that are ready-made, and of your own.

    A subclass has :meth:`places` and :meth:`describe`; where it draws, by ``self.epoch`` too.
    """

    carries_labels: bool = False
    """Whether windows carry labels; known without a slide."""
    margin: int = 0
    """Pixels of context around each window, in pixels of what is read. Samplers only keep it; where windows lie does not depend
    on it."""
    epoch: int = 0
    """Which draw it is."""

    def places(self, scene: Scene) -> Places:
        """Where the windows of `scene` lie. Raises SamplingError, by which the slide fails, where they cannot be placed."""
        raise NotImplementedError(f"{type(self).__name__} must have places(scene)")

    def describe(self) -> dict[str, Any]:
        """All that decides the windows, as numbers, strings, lists and dicts; what does not follow from it makes other windows.

        It stands in ``run.json``, and a run goes on only with an equal one. Files, arrays and polygons stand in it as digests
        of their content, callables as their source.
        """
        raise NotImplementedError(f"{type(self).__name__} must have describe()")

    def at_epoch(self: _Own, epoch: int) -> _Own:
        """The same sampler for another `epoch`, from 0: where windows are drawn at random, a new draw."""
        if not isinstance(at_least(epoch, 0, "epoch"), int):
            raise ConfigError(f"epoch must be a whole number, got {epoch!r}")
        other = copy.copy(self)
        other.epoch = epoch
        return other

    def preview(
        self,
        slide: SlideLike,
        kernel_size: int | tuple[int, int],
        *,
        level: int = 0,
        patient_id: str | None = None,
        path: str | os.PathLike[str] | None = None,
        longest_px: int = 1600,
    ) -> UInt8Array:
        """The slide's thumbnail with the windows on it, what is outside the region greyed, and the region's outline.

        Parameters
        ----------
        slide
            Its path, a Slide, or an open one.
        kernel_size, level
            As for the loader: the window, an int or (width, height) in pixels of the level, and the level.
        patient_id
            Draws depend on the patient's id and the slide's. None: that of a slide that is given as a path (what
            ``Dataset.from_folder`` calls it), else the slide's id.
        path
            Where to write it: .png, .jpg or .jpeg.
        longest_px
            The picture's longer side, or the slide's, if that is smaller.

        Returns (height, width, 3) uint8, RGB. Windows have the colour of their label, which a legend tells. Raises as
        :meth:`places`, and ConfigError for a level that the slide does not have.
        """
        from streamwsi.sampling.picture import preview

        return preview(self, slide, kernel_size, level, patient_id, path, longest_px)
