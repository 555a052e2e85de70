"""The loader as users describe it: a dataset, and a window that slides over each of its slides.

In: options.  Out: the same, checked.  Opens nothing; the loader processes do.
"""

from __future__ import annotations

from collections.abc import Callable

from streamwsi.config import OnBadRegion, at_least, check_background, check_border, one_of, positive_pair
from streamwsi.dataset import Dataset, Slide
from streamwsi.errors import ConfigError
from streamwsi.geometry import Border
from streamwsi.slides.reader import READERS


class SlidingWindowLoader:
    """Slides a window over each slide of a dataset.

    Parameters
    ----------
    dataset
        The patients and their slides.
    kernel_size, stride
        An int or (width, height), in pixels of the level read. `stride` None: the kernel's size.
    level
        An int; or a callable that is given the opened :class:`Slide` (``slide.mpp``, ``slide.level_downsamples``, …) and
        returns one, as :class:`LevelAtMpp` does. A slide for which it raises :class:`SlideError` fails, and the others go on;
        any other exception ends the run.
    border
        What happens at the edge: ``pad``, ``edge``, ``squeeze``, ``adaptive`` or ``crop``; see
        :func:`streamwsi.geometry.axis_starts`.
    background
        (R, G, B), 0–255: outside the slide, and where it has no data.
    on_bad_region
        ``"fail"``: a slide of which something cannot be read fails; ``"skip"``: the windows that touch it are skipped.
    reader
        ``"auto"`` or the name of one.

    Raises ConfigError naming the value that cannot work.
    """

    def __init__(
        self,
        dataset: Dataset,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        level: int | Callable[[Slide], int] = 0,
        *,
        border: Border = "pad",
        background: tuple[int, int, int] = (255, 255, 255),
        on_bad_region: OnBadRegion = "fail",
        reader: str = "auto",
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise ConfigError(f"dataset must be a streamwsi.Dataset, got {type(dataset).__name__}")
        self.dataset = dataset
        self.kernel_size = positive_pair(kernel_size, "kernel_size")
        self.stride = positive_pair(stride, "stride") if stride is not None else self.kernel_size
        if not callable(level):
            at_least(level, 0, "level")
            if not isinstance(level, int):
                raise ConfigError(f"level must be an int or a callable, got {level!r}")
        self.level = level
        self.border = check_border(border)
        self.background = check_background(background)
        self.on_bad_region: OnBadRegion = one_of(on_bad_region, ("fail", "skip"), "on_bad_region")
        self.reader: str = one_of(reader, READERS, "reader")
