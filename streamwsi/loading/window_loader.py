"""The loader as users describe it: a dataset, and which windows of its slides are read.

In: options.  Out: the same, checked.  Opens nothing; the loader processes do.
"""

from __future__ import annotations

from collections.abc import Callable

from streamwsi.config import OnBadRegion, at_least, check_background, one_of, positive_pair
from streamwsi.dataset import Dataset, Slide
from streamwsi.errors import ConfigError
from streamwsi.geometry import Border
from streamwsi.sampling.sampler import Sampler
from streamwsi.slides.reader import READERS


class WindowLoader:
    """Reads the windows that a sampler chooses on each slide of a dataset.

    Parameters
    ----------
    dataset
        The patients and their slides.
    kernel_size
        An int or (width, height) of a window, in pixels of the level read.
    sampler
        What chooses the windows: :class:`GridSampler`, :class:`RandomSampler`, :class:`PoissonDiskSampler`,
        :class:`PointSampler`, or one of your own. A slide for which it raises :class:`SlideError` (one with no room for so many
        windows, say) fails, and the others go on.
    level
        An int; or a callable that is given the opened :class:`Slide` (``slide.mpp``, ``slide.level_downsamples``, …) and
        returns one, as :class:`LevelAtMpp` does. A slide for which it raises :class:`SlideError` fails, and the others go on;
        any other exception ends the run.
    background
        (R, G, B), 0–255: outside the slide, and where it has no data.
    on_bad_region
        ``"fail"``: a slide of which something cannot be read fails; ``"skip"``: the windows that touch it are skipped.
    reader
        ``"auto"`` or the name of one.

    The places of a slide's windows are held in memory while it is being worked on, about 40 bytes for each window; all windows
    of a grid are not (:class:`SlidingWindowLoader`).

    Raises ConfigError naming the value that cannot work.
    """

    border: Border = "pad"
    """What happens at the edge: what lies beyond is background; a sampler says itself how near to it windows may lie."""

    def __init__(
        self,
        dataset: Dataset,
        kernel_size: int | tuple[int, int],
        sampler: Sampler | None,
        level: int | Callable[[Slide], int] = 0,
        *,
        background: tuple[int, int, int] = (255, 255, 255),
        on_bad_region: OnBadRegion = "fail",
        reader: str = "auto",
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise ConfigError(f"dataset must be a streamwsi.Dataset, got {type(dataset).__name__}")
        if sampler is None and type(self) is WindowLoader:
            raise ConfigError("sampler must be a Sampler, got None; SlidingWindowLoader reads all windows of a slide")
        if sampler is not None and not isinstance(sampler, Sampler):
            raise ConfigError(f"sampler must be a Sampler, got {type(sampler).__name__} {sampler!r}")
        self.dataset = dataset
        self.kernel_size = positive_pair(kernel_size, "kernel_size")
        self.stride = self.kernel_size
        self.sampler = sampler
        if not callable(level):
            at_least(level, 0, "level")
            if not isinstance(level, int):
                raise ConfigError(f"level must be an int or a callable, got {level!r}")
        self.level = level
        self.background = check_background(background)
        self.on_bad_region: OnBadRegion = one_of(on_bad_region, ("fail", "skip"), "on_bad_region")
        self.reader: str = one_of(reader, READERS, "reader")
