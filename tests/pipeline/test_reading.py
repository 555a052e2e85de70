"""How many loaders and threads there are by default, and how large chunks are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import streamwsi as sw
from streamwsi.config import Transport
from streamwsi.errors import ConfigError
from streamwsi.pipeline import reading
from streamwsi.pipeline.reading import LoaderSizes, default_chunk_px, loader_sizes


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

    def chunk_px(collector: sw.StreamCollector, writer: sw.StreamWriter, **options: Any) -> int:
        return sw.Pipeline(loader, collector, writer, **options)._loader_startup().reading.chunk_px

    numbers = sw.CSVStreamWriter(tmp_path)
    assert chunk_px(sw.MeanCollector(), numbers) == 1 << 24
    assert chunk_px(sw.MeanCollector(), numbers, transport="ipc") == 1 << 23
    assert chunk_px(sw.Patches(), sw.ImageStreamWriter(tmp_path)) == 1 << 23
    assert chunk_px(sw.MeanCollector(), numbers, transport="ipc", chunk_px=1 << 20) == 1 << 20
