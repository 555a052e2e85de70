"""Slides, journals and patient files without a pipeline: what the tests of writing and of maps begin with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.chunks import Status
from streamwsi.config import OutputOptions
from streamwsi.dataset import Patient, Slide, SlideInfo
from streamwsi.geometry import Border
from streamwsi.plan import Sample
from streamwsi.resolved import ResolvedSlide
from streamwsi.writing.journal import ChunkPieces, Journal
from streamwsi.writing.publish import publish_patient

Status8 = npt.NDArray[np.uint8]

EVERY_DTYPE = (
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
)


def resolved_slide(
    extent: tuple[int, int] = (100, 80),
    kernel: tuple[int, int] = (16, 16),
    stride: tuple[int, int] = (16, 16),
    border: Border = "pad",
    block: tuple[int, int] = (2, 3),
    patient: str = "p1",
    id: str = "s",
    place: tuple[int, int] = (0, 0),
    downsample: float = 1.0,
    path: str = "/nowhere/s.svs",
    mpp: tuple[float, float] | None = (0.5, 0.5),
) -> ResolvedSlide:
    """What a slide was resolved to; with a downsample other than 1, level 1 is read."""
    level0 = (round(extent[0] * downsample), round(extent[1] * downsample))
    several = downsample != 1.0
    info = SlideInfo(
        level_dimensions=(level0, extent) if several else (extent,),
        level_downsamples=(1.0, downsample) if several else (1.0,),
        mpp=mpp,
        power=20.0,
        vendor="made-up",
        tile_sizes=(None, None) if several else (None,),
        associated_images=(),
        reader="openslide",
    )
    return ResolvedSlide(
        patient=place[0],
        slide=place[1],
        patient_id=patient,
        id=id,
        path=path,
        fingerprint="0" * 32,
        info=info,
        level=int(several),
        kernel=kernel,
        stride=stride,
        border=border,
        background=(255, 255, 255),
        block=block,
        resampled_px=0.0,
    )


def labelled_slide(labels: Sequence[str | None]) -> ResolvedSlide:
    """One with a window for each of these labels, which a sampler has chosen."""
    names = tuple(sorted({label for label in labels if label is not None}))
    number = np.arange(len(labels), dtype=np.int64)
    code = np.array([-1 if label is None else names.index(label) for label in labels], np.int64)
    sample = Sample.of(np.stack([number % 50, number // 50], axis=1), number // 1000, code, names)
    return msgspec.structs.replace(resolved_slide(), stride=(0, 0), sample=sample)


def chunk_pieces(
    slide: ResolvedSlide, chunk: int, values: npt.NDArray[Any], status: Status8, columns: tuple[str, ...] | None = None
) -> ChunkPieces:
    """The pieces of one chunk; `values` and `status` have a row for each window of the slide."""
    index = slide.chunks().indices(chunk)
    written = index[status[index] == Status.WRITTEN]
    return ChunkPieces(slide.slide, chunk, index, status[index], values[written], columns)


def fill(
    journal: Journal,
    slide: ResolvedSlide,
    values: npt.NDArray[Any],
    status: Status8 | None = None,
    chunks: Iterable[int] | None = None,
    columns: tuple[str, ...] | None = None,
) -> None:
    """Record a slide and commit its chunks (all of them, in order, if not said otherwise), one by one."""
    journal.record_slide(slide)
    status = all_written(slide) if status is None else status
    for chunk in range(len(slide.chunks())) if chunks is None else chunks:
        journal.commit([chunk_pieces(slide, chunk, values, status, columns)])


def all_written(slide: ResolvedSlide) -> Status8:
    return np.full(len(slide.plan()), Status.WRITTEN, np.uint8)


def patient_of(slides: Sequence[ResolvedSlide]) -> Patient:
    return Patient(slides[0].patient_id, [Slide(Path(slide.path), slide.id) for slide in slides])


def write_patient(
    folder: Path,
    slides: Sequence[ResolvedSlide],
    values: Sequence[npt.NDArray[Any]],
    status: Sequence[Status8 | None] | None = None,
    format: str = "hdf5",
    columns: tuple[str, ...] | None = None,
    **options: Any,
) -> Path:
    """A patient's file, made through a journal and publication."""
    labelled = any(slide.label_names for slide in slides)
    output = OutputOptions(folder=str(folder), format=format, with_labels=labelled)  # type: ignore[arg-type]
    with Journal(folder / ".journal" / f"{slides[0].patient_id}.sqlite") as journal:
        for slide, rows, kept in zip(slides, values, status or [None] * len(slides), strict=True):
            fill(journal, slide, rows, kept, columns=columns)
        record = publish_patient(journal, patient_of(slides), output, **options)
    return folder / record.file


def numbers(dtype: str, shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[Any]:
    """An array with the extremes of a dtype in it, and random bit patterns."""
    random = np.random.default_rng(seed)
    size = int(np.prod(shape))
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    flat = np.frombuffer(random.bytes(size * kind.itemsize), kind).copy()
    if kind.kind == "f":
        limits = np.finfo(kind)
        special = [np.nan, np.inf, -np.inf, -0.0, 0.0, limits.max, limits.min, limits.tiny, limits.smallest_subnormal, 0.1]
        if dtype == "float32":
            special.insert(0, np.uint32(0x15AE43FD).view(np.float32))  # see streamwsi.writing.csv_file
    else:
        special = [np.iinfo(kind).min, np.iinfo(kind).max, 0, 1]
    known = np.array(special, kind)[:size]
    flat[: len(known)] = known
    return flat.reshape(shape)


def assert_same(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    """Equal in dtype, shape and every bit, but for the bits of a NaN."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if found.dtype.kind == "f":
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(found), nan)
        found, expected = np.where(nan, 0, found), np.where(nan, 0, expected)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    np.testing.assert_array_equal(found, expected)
