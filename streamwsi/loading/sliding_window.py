"""The sliding window as users describe it.

In: options.  Out: the same, checked.  Opens nothing; the loader processes do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from streamwsi.config import OnBadRegion, check_border, positive_pair
from streamwsi.dataset import Dataset, Slide
from streamwsi.geometry import Border
from streamwsi.loading.paired import Paired
from streamwsi.loading.window_loader import WindowLoader


class SlidingWindowLoader(WindowLoader):
    """Slides a window over each slide of a dataset.

    Parameters
    ----------
    dataset
        The patients and their slides.
    kernel_size, stride
        An int or (width, height), in pixels of what is read. `stride` None: the kernel's size.
    level
        An int (0, the finest, where no resolution is given at all); or a callable that is given the opened :class:`Slide`
        (``slide.mpp``, ``slide.level_downsamples``, …) and returns one, as :class:`LevelAtMpp` does. A slide for which it
        raises :class:`SlideError` fails, and the others go on; any other exception ends the run.
    border
        What happens at the edge: ``pad``, ``edge``, ``squeeze``, ``adaptive`` or ``crop``; see
        :func:`streamwsi.geometry.axis_starts`.
    background
        (R, G, B), 0–255: outside the slide, and where it has no data.
    on_bad_region
        ``"fail"``: a slide of which something cannot be read fails; ``"skip"``: the windows that touch it are skipped.
    reader
        ``"auto"`` or the name of one.
    mpp
        Micrometres per pixel, in place of `level`: a level within 5 % of it is read as it is; else the coarsest level that is
        finer is resampled, in one step. Windows and strides are in pixels of this size. A slide that is not so fine fails.
    magnification
        The same by the objective power: 20 is 20×. Of a slide that does not say its power, 10 / mpp counts as such.
    missing_mpp
        Micrometres per level-0 pixel of slides that do not say, or say what cannot be (0; 352.9): a number, or a callable that
        is given the opened slide and returns one. ``"error"``: such a slide fails where its resolution is needed.
    mpps, levels
        Several resolutions, the finest first, in place of one: a batch's pixels are (n, r, height, width, 3), and each window
        has the same centre in all. Windows are placed at the finest.
    paired
        By name, images that are read with each slide, of the same places: ``{"labels": Paired(…), "mask": Paired(…)}``, see
        :class:`Paired`; a path stands for ``Paired(path)``. A batch has them as ``batch.labels``, ``batch.mask``, and all as
        ``batch.paired[name]``.
    transforms
        By name of a modality, ``"pixels"`` or that of a paired image, a function that is given its array of a batch, (n, …),
        and returns another with n rows, of any shape and type; or by several names, ``("pixels", "labels")``, a function of as
        many arrays that returns as many. They are called in turn, in the process that has the batch.

    Raises ConfigError naming the value that cannot work.
    """

    def __init__(
        self,
        dataset: Dataset,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        level: int | Callable[[Slide], int] | None = None,
        *,
        border: Border = "pad",
        background: tuple[int, int, int] = (255, 255, 255),
        on_bad_region: OnBadRegion = "fail",
        reader: str = "auto",
        mpp: float | None = None,
        magnification: float | None = None,
        missing_mpp: float | Callable[[Slide], float] | Literal["error"] = "error",
        mpps: Sequence[float] | None = None,
        levels: Sequence[int] | None = None,
        paired: Mapping[str, Paired | str | os.PathLike[str]] | None = None,
        transforms: Mapping[str | tuple[str, ...], Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__(
            dataset,
            kernel_size,
            None,
            level,
            background=background,
            on_bad_region=on_bad_region,
            reader=reader,
            mpp=mpp,
            magnification=magnification,
            missing_mpp=missing_mpp,
            mpps=mpps,
            levels=levels,
            paired=paired,
            transforms=transforms,
        )
        if stride is not None:
            self.stride = positive_pair(stride, "stride")
        self.border = check_border(border)
