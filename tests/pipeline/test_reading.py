"""How many loaders and threads there are by default, and how large chunks are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamwsi as sw
from streamwsi.config import Transport
from streamwsi.errors import ConfigError
from streamwsi.loading.resolution import Wanted
from streamwsi.loading.resolve import Choices, ReadingOptions, resolve_slide
from streamwsi.pipeline import reading
from streamwsi.pipeline.reading import LoaderSizes, default_chunk_px, loader_sizes
from streamwsi.slides.reader import open_slide
from tests.helpers import write_tiff


@pytest.mark.parametrize(
    ("cpus", "loaders", "threads", "expected"),
    [
        (1, None, None, LoaderSizes(1, 2, 2)),
        (2, None, None, LoaderSizes(1, 3, 3)),
        (4, None, None, LoaderSizes(1, 5, 5)),
        (5, None, None, LoaderSizes(2, 2, 3)),
        (16, None, None, LoaderSizes(4, 4, 5)),
        (2, 4, None, LoaderSizes(4, 1, 2)),
        (16, 1, None, LoaderSizes(1, 17, 17)),
        (16, None, 2, LoaderSizes(4, 2, 3)),
        (2, 1, 6, LoaderSizes(1, 6, 7)),
    ],
)
def test_they_follow_from_the_processors_unless_they_are_told(
    monkeypatch: pytest.MonkeyPatch, cpus: int, loaders: int | None, threads: int | None, expected: LoaderSizes
) -> None:
    monkeypatch.setattr(reading, "available_cpus", lambda: cpus)
    assert loader_sizes(loaders, threads) == expected


@pytest.mark.parametrize(("loaders", "threads"), [(0, None), (None, 0), (1, -2)])
def test_none_at_all_are_refused(loaders: int | None, threads: int | None) -> None:
    with pytest.raises(ConfigError):
        loader_sizes(loaders, threads)


@pytest.mark.parametrize(
    ("transport", "images", "expected"),
    [
        ("auto", False, 1 << 24),
        ("shm", False, 1 << 24),
        ("ipc", False, 1 << 23),
        ("tcp", False, 1 << 23),
        ("auto", True, 1 << 23),
    ],
)
def test_a_chunk_that_is_a_message_stays_below_what_malloc_uses_again(
    monkeypatch: pytest.MonkeyPatch, transport: Transport, images: bool, expected: int
) -> None:
    assert default_chunk_px(transport, images) == expected
    assert expected == 1 << 24 or 3 * expected < 32 << 20
    monkeypatch.delattr("os.posix_fallocate")
    assert default_chunk_px(transport, images) == 1 << 23  # nothing is shared


def test_a_pipeline_takes_the_default_that_suits_it_or_what_it_is_told(one_patient: sw.Dataset, tmp_path: Path) -> None:
    loader = sw.SlidingWindowLoader(one_patient, 256)

    def chunk_px(collector: sw.StreamCollector, writer: sw.StreamWriter, **options: Any) -> tuple[int, int]:
        told = sw.Pipeline(loader, collector, writer, **options)._loader_startup().reading
        return told.chunk_px, told.openslide_chunk_px

    numbers = sw.CSVStreamWriter(tmp_path)
    assert chunk_px(sw.MeanCollector(), numbers) == (1 << 24, 1 << 23)
    assert chunk_px(sw.MeanCollector(), numbers, transport="ipc") == (1 << 23, 1 << 23)
    assert chunk_px(sw.Patches(), sw.ImageStreamWriter(tmp_path)) == (1 << 23, 1 << 23)
    assert chunk_px(sw.MeanCollector(), numbers, transport="ipc", chunk_px=1 << 20) == (1 << 20, 1 << 20)
    assert chunk_px(sw.MeanCollector(), numbers, chunk_px=1 << 25) == (1 << 25, 1 << 25)  # what is told holds for all


@pytest.mark.parametrize(("reader", "windows"), [("tiff", 16), ("openslide", 4)])
def test_a_slide_that_openslide_reads_is_cut_into_smaller_chunks(tmp_path: Path, reader: str, windows: int) -> None:
    tiff = write_tiff(tmp_path / "a.tiff", [np.zeros((128, 128, 3), np.uint8)], tile=32)
    options = ReadingOptions(
        kernel=(32, 32),
        stride=(32, 32),
        border="crop",
        background=(255, 255, 255),
        reader=reader,
        on_bad_region="fail",
        batch_size=4,
        chunk_px=16 * 32 * 32,
        openslide_chunk_px=4 * 32 * 32,
        threads=1,
        min_chunk_interval_s=0.0,
    )
    with open_slide(tiff, reader=reader) as opened:
        slide = resolve_slide(opened, (0, 0), "p", sw.Slide(tiff, "s"), Choices(Wanted.of(level=0)), options)
    assert math.prod(slide.block) == windows
