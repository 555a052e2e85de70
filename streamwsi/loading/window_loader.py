"""The loader as users describe it: a dataset, and which windows of its slides are read.

In: options.  Out: the same, checked.  Opens nothing; the loader processes do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from streamwsi.config import OnBadRegion, check_background, one_of, positive_pair
from streamwsi.dataset import Dataset, Slide
from streamwsi.errors import ConfigError
from streamwsi.geometry import Border
from streamwsi.loading.paired import Paired, checked_paired
from streamwsi.loading.resolution import Wanted
from streamwsi.loading.transforms import checked_transforms
from streamwsi.sampling.grid_sampler import GridSampler
from streamwsi.sampling.sampler import Sampler
from streamwsi.slides.reader import READERS


class WindowLoader:
    """Reads the windows that a sampler chooses on each slide of a dataset.

    Parameters
    ----------
    dataset
        The patients and their slides.
    kernel_size
        An int or (width, height) of a window, in pixels of what is read.
    sampler
        What chooses the windows: :class:`GridSampler`, :class:`RandomSampler`, :class:`PoissonDiskSampler`,
        :class:`PointSampler`, or one of your own. A slide for which it raises :class:`SlideError` (one with no room for so many
        windows, say) fails, and the others go on.
    level
        An int (0, the finest, where no resolution is given at all); or a callable that is given the opened :class:`Slide`
        (``slide.mpp``, ``slide.level_downsamples``, …) and returns one, as :class:`LevelAtMpp` does. A slide for which it
        raises :class:`SlideError` fails, and the others go on; any other exception ends the run.
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
        level: int | Callable[[Slide], int] | None = None,
        *,
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
        if not isinstance(dataset, Dataset):
            raise ConfigError(f"dataset must be a streamwsi.Dataset, got {type(dataset).__name__}")
        if sampler is None and type(self) is WindowLoader:
            raise ConfigError("sampler must be a Sampler, got None; SlidingWindowLoader reads all windows of a slide")
        if sampler is not None and not isinstance(sampler, Sampler):
            raise ConfigError(f"sampler must be a Sampler, got {type(sampler).__name__} {sampler!r}")
        if isinstance(sampler, GridSampler) and sampler.border == "adaptive":
            raise ConfigError(
                "the windows of a sampler are all of one size, and border='adaptive' cuts those at the slide's edge: "
                "SlidingWindowLoader has it"
            )
        self.dataset = dataset
        self.kernel_size = positive_pair(kernel_size, "kernel_size")
        self.stride = self.kernel_size
        self.sampler = sampler
        self.resolution = Wanted.of(level, mpp, magnification, levels, mpps, missing_mpp)
        self.background = check_background(background)
        self.on_bad_region: OnBadRegion = one_of(on_bad_region, ("fail", "skip"), "on_bad_region")
        self.reader: str = one_of(reader, READERS, "reader")
        self.paired = checked_paired(paired)
        self.transforms = checked_transforms(transforms, self.paired)
