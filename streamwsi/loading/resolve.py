"""Open a slide once and write down everything that decides its windows.

In: a slide of the dataset and what the run asks for.  Out: a ResolvedSlide.  Reads no pixels.
"""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from streamwsi.config import TILE_CACHE_BYTES, OnBadRegion
from streamwsi.dataset import Slide, SlideInfo
from streamwsi.errors import CollectorError, SlideError
from streamwsi.geometry import Border, Grid, cut_chunks
from streamwsi.resolved import ResolvedSlide
from streamwsi.slides.reader import SlideReader

Level = int | Callable[[Slide], int]


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
    threads: int
    min_chunk_interval_s: float
    tile_cache_bytes: int = TILE_CACHE_BYTES


class LevelError(CollectorError):
    """The user's ``level`` callable raised; the cause is its exception."""


def resolve_slide(
    reader: SlideReader, place: tuple[int, int], patient_id: str, slide: Slide, level: Level, options: ReadingOptions
) -> ResolvedSlide:
    """Settle level, windows and chunks of an open slide; `place` is (patient, slide) in the dataset.

    Raises SlideError when the slide does not have the level, or the callable that chooses it says so with one; LevelError
    when the callable raises anything else.
    """
    info = reader.info
    chosen = _choose_level(level, Slide(slide.path, slide.id, info), info)
    grid = Grid(info.level_dimensions[chosen], options.kernel, options.stride, options.border, info.level_downsamples[chosen])
    chunks = cut_chunks(grid, options.batch_size, options.chunk_px, info.tile_sizes[chosen], options.tile_cache_bytes // 3)
    return ResolvedSlide(
        patient=place[0],
        slide=place[1],
        patient_id=patient_id,
        id=slide.id,
        path=str(slide.path),
        fingerprint=fingerprint(slide.path),
        info=info,
        level=chosen,
        kernel=options.kernel,
        stride=options.stride,
        border=options.border,
        background=options.background,
        block=chunks.block,
        band=chunks.band,
        resampled_px=reader.resampled_px(chosen),
    )


def _choose_level(level: Level, slide: Slide, info: SlideInfo) -> int:
    chosen: Any = level
    if callable(level):
        try:
            chosen = level(slide)
        except SlideError:  # the slide has no level that fits: it fails, the others do not
            raise
        except Exception as error:
            raise LevelError(f"the level callable raised for slide {slide.id!r}") from error
    try:
        number = operator.index(chosen)
    except TypeError:
        raise SlideError(f"slide {slide.id!r}: level must be an int, the callable gave {chosen!r}") from None
    if not 0 <= number < info.level_count:
        raise SlideError(f"{slide.path} has no level {number}: it has levels 0 to {info.level_count - 1}")
    return number


def fingerprint(path: str | os.PathLike[str], samples: int = 8, sample_bytes: int = 1 << 16) -> str:
    """A hash of a slide's content: for each of its files, the size and `samples` parts, the first and the last among them.

    Returns 32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in _files_of(Path(path)):
        size = part.stat().st_size
        digest.update(f"{size};".encode())
        last = max(size - sample_bytes, 0)
        with part.open("rb") as file:
            for offset in sorted({last * number // (samples - 1) for number in range(samples)}):
                file.seek(offset)
                digest.update(file.read(sample_bytes))
    return digest.hexdigest()


def _files_of(path: Path) -> list[Path]:
    """The files that a slide may consist of: a DICOM series lies in one folder, a MIRAX slide has one beside it."""
    suffix = path.suffix.lower()
    if suffix == ".dcm":
        return sorted(other for other in path.parent.iterdir() if other.suffix.lower() == ".dcm")
    if suffix == ".mrxs" and path.with_suffix("").is_dir():
        return [path, *sorted(other for other in path.with_suffix("").iterdir() if other.is_file())]
    return [path]
