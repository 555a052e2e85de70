"""Open a slide once and write down everything that decides its windows.

In: a slide of the dataset and what the run asks for.  Out: a ResolvedSlide.  Reads no pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from streamwsi.config import MOST_CHUNK_PX, TILE_CACHE_BYTES, OnBadRegion
from streamwsi.dataset import Slide
from streamwsi.errors import PlanError, SlideError
from streamwsi.geometry import MOST_WINDOWS, Border, Grid, cut_chunks
from streamwsi.loading.fingerprint import fingerprint
from streamwsi.loading.resolution import ChoiceError, Wanted
from streamwsi.plan import Sample, cut_sample
from streamwsi.resolution import Resolution
from streamwsi.resolved import ResolvedSlide
from streamwsi.sampling.sampler import Places, Sampler
from streamwsi.sampling.scene import Scene
from streamwsi.slides.reader import SlideReader

if TYPE_CHECKING:
    from streamwsi.loading.open_paired import OpenPaired
    from streamwsi.loading.paired import Paired


@dataclass(frozen=True)
class Choices:
    """What chooses the resolution and the windows of a slide once it is open; the user's code, it may be."""

    resolution: Wanted
    sampler: Sampler | None = None
    """None: all windows of the grid."""
    paired: Mapping[str, Paired] = field(default_factory=dict)
    """By name, the images that are read with the slide."""


class ReadingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the loaders of a run are asked to read."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    border: Border
    background: tuple[int, int, int]
    reader: str
    on_bad_region: OnBadRegion
    batch_size: int
    chunk_px: int
    """Pixels of a big chunk, about."""
    threads: int
    min_chunk_interval_s: float
    openslide_chunk_px: int = MOST_CHUNK_PX
    """The same of slides that OpenSlide reads, where it is less."""
    tile_cache_bytes: int = TILE_CACHE_BYTES
    max_windows: int = MOST_WINDOWS
    """In one chunk."""
    starts_at_multiples_of: int = 1
    """Windows begin at such pixels of what is read, or their slide fails."""


def resolve_slide(
    reader: SlideReader,
    place: tuple[int, int],
    patient_id: str,
    slide: Slide,
    choices: Choices,
    options: ReadingOptions,
    paired: Mapping[str, OpenPaired] | None = None,
) -> ResolvedSlide:
    """Settle resolution, windows and chunks of an open slide, with its open `paired` images; `place` is (patient, slide) in
    the dataset.

    Raises SlideError when the slide does not have the resolution, has no room for the windows, or the code that chooses them
    says so with one; ChoiceError when that code raises anything else.
    """
    wanted = choices.resolution
    scene, (finest, *coarser) = scene_of(reader, patient_id, slide, wanted, options.kernel)
    info = scene.info
    grid = Grid(finest.extent(info), options.kernel, options.stride, options.border, finest.downsample(info))
    tile, cache_px = _as_read(info.tile_sizes[finest.level], finest.zoom), round(options.tile_cache_bytes / 3 / finest.zoom**2)
    resolutions = wanted.count if wanted.is_several else None
    images = tuple(each.image(grid.downsample) for each in (paired or {}).values())
    most_px = min(options.chunk_px, options.openslide_chunk_px) if info.reader == "openslide" else options.chunk_px
    # so that a chunk takes no more memory with paired images than without
    chunk_px = round(most_px * 3 / (3 + sum(image.bytes_per_px(grid.downsample) for image in images)))
    chunks = cut_chunks(grid, options.batch_size, chunk_px, tile, cache_px, options.max_windows, resolutions)
    stride: tuple[int, int] | None = options.stride
    margin, sample = 0, None
    if choices.sampler is not None:
        margin = choices.sampler.margin
        places = _choose_windows(choices.sampler, scene)
        size = (options.kernel[0] + 2 * margin, options.kernel[1] + 2 * margin)
        chunk = cut_sample(places.start, size, options.batch_size, chunk_px, tile, cache_px, resolutions, options.max_windows)
        sample = Sample.of(places.start, chunk, places.label, places.names)
        stride = places.stride
    _refuse_between_pixels(slide, grid if choices.sampler is None else places, options)
    return ResolvedSlide(
        patient=place[0],
        slide=place[1],
        patient_id=patient_id,
        id=slide.id,
        path=str(slide.path),
        fingerprint=fingerprint(slide.path),
        info=info,
        level=finest.level,
        kernel=options.kernel,
        stride=stride or (0, 0),
        border=options.border,
        background=options.background,
        block=chunks.block,
        band=chunks.band,
        resampled_px=max(reader.resampled_px(resolution.level) for resolution in (finest, *coarser)),
        margin=margin,
        sample=sample,
        zoom=finest.zoom,
        coarser=tuple(coarser) if wanted.is_several else None,
        paired=images,
    )


def scene_of(
    reader: SlideReader, patient_id: str, slide: Slide, wanted: Wanted, kernel: tuple[int, int]
) -> tuple[Scene, tuple[Resolution, ...]]:
    """What a sampler is told of an open slide, and the resolutions that it is read at, the finest first.

    Raises SlideError and ChoiceError as :func:`resolve_slide` does.
    """
    info = wanted.believed(reader.info, slide)
    resolutions = wanted.choose(info, slide)
    finest = resolutions[0]
    opened = Slide(slide.path, slide.id, info)
    return Scene(opened, patient_id, finest.extent(info), finest.downsample(info), kernel, reader), resolutions


def _refuse_between_pixels(slide: Slide, placed: Grid | Places, options: ReadingOptions) -> None:
    """Raise SlideError where windows begin between two pixels of the map that is to be made of them."""
    step = options.starts_at_multiples_of
    if step == 1:
        return
    starts = placed.start.ravel() if isinstance(placed, Places) else np.concatenate([placed.xs, placed.ys])
    off = starts[starts % step != 0]
    if len(off):
        raise SlideError(
            f"{slide.path}: {len(off)} of {len(starts)} starts of windows are no multiples of reduction={step}, the first is "
            f"{off[0]}: they would lie between two pixels of the map; take a stride, a border or a sampler that places windows "
            "at multiples, or images of the windows' own size"
        )


def _as_read(tile: tuple[int, int] | None, zoom: float) -> tuple[int, int] | None:
    """(width, height) of a level's tiles in pixels of what is read, about; None where it has none."""
    return tile if tile is None or zoom == 1 else (max(round(tile[0] / zoom), 1), max(round(tile[1] / zoom), 1))


def _choose_windows(sampler: Sampler, scene: Scene) -> Places:
    name = type(sampler).__name__
    try:
        places = sampler.places(scene)
        _check_places(places, f"{name}, slide {scene.slide.id!r}", sampler.carries_labels)
    except SlideError:  # there is no room for them, say: the slide fails, the others do not
        raise
    except Exception as error:
        raise ChoiceError(f"{name}.places raised for slide {scene.slide.id!r}") from error
    return places


def _check_places(places: Places, whose: str, labelled: bool) -> None:
    """Raise PlanError where a sampler of the user's own gives what is no plan."""
    start = places.start
    if start.ndim != 2 or start.shape[1] != 2 or start.dtype != np.int64:
        raise PlanError(f"{whose}: places must be (n, 2) int64, got {start.dtype} {start.shape}")
    if len(np.unique(start, axis=0)) < len(start):
        found, times = np.unique(start, axis=0, return_counts=True)
        raise PlanError(f"{whose}: the window at {tuple(found[np.argmax(times)].tolist())} is given {times.max()} times")
    label = places.label
    if (label is not None) and not labelled:
        raise PlanError(f"{whose}: it gives labels and does not say so: set carries_labels")
    if label is not None and (
        label.shape != start.shape[:1] or label.min(initial=-1) < -1 or label.max(initial=-1) >= len(places.names)
    ):
        raise PlanError(f"{whose}: labels must be (n,) for {len(start)} windows, each -1 or a place in {places.names}")
