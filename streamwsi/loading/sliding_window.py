"""The sliding window as users describe it.

In: options.  Out: the same, checked.  Opens nothing; the loader processes do.
"""

from __future__ import annotations

from collections.abc import Callable

from streamwsi.config import OnBadRegion, check_border, positive_pair
from streamwsi.dataset import Dataset, Slide
from streamwsi.geometry import Border
from streamwsi.loading.window_loader import WindowLoader


class SlidingWindowLoader(WindowLoader):
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
        super().__init__(dataset, kernel_size, None, level, background=background, on_bad_region=on_bad_region, reader=reader)
        if stride is not None:
            self.stride = positive_pair(stride, "stride")
        self.border = check_border(border)
