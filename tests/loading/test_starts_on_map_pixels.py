"""Slides whose windows would lie between two pixels of a map fail before anything of them is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamwsi as sw
from streamwsi.geometry import Border
from streamwsi.loading.resolution import Wanted
from streamwsi.loading.resolve import Choices, ReadingOptions, resolve_slide
from streamwsi.resolved import ResolvedSlide
from streamwsi.sampling.sampler import Places, Sampler
from streamwsi.sampling.scene import Scene
from streamwsi.slides.reader import open_slide


class At(Sampler):
    def __init__(self, *start: tuple[int, int]) -> None:
        self._start = np.array(start, np.int64)

    def places(self, scene: Scene) -> Places:
        return Places(self._start)

    def describe(self) -> dict[str, Any]:
        return {"at": self._start.tolist()}


def resolved(path: Path, multiple: int, border: Border = "pad", sampler: Sampler | None = None) -> ResolvedSlide:
    options = ReadingOptions(
        kernel=(64, 64),
        stride=(48, 48),
        border=border,
        background=(255, 255, 255),
        reader="auto",
        on_bad_region="fail",
        batch_size=4,
        chunk_px=1 << 20,
        threads=1,
        min_chunk_interval_s=0.0,
        starts_at_multiples_of=multiple,
    )
    with open_slide(path) as reader:
        return resolve_slide(reader, (0, 0), "p", sw.Slide(path, "s"), Choices(Wanted.of(), sampler), options)


@pytest.mark.parametrize(
    ("multiple", "border", "sampler", "said"),
    [
        (8, "edge", None, "2 of 108 starts of windows are no multiples of reduction=8, the first is 2156"),
        (2, "pad", At((0, 0), (64, 3)), "1 of 4 starts of windows are no multiples of reduction=2, the first is 3"),
    ],
)
def test_windows_between_two_pixels_are_refused(
    bundled: Path, multiple: int, border: Border, sampler: Sampler | None, said: str
) -> None:
    with pytest.raises(sw.SlideError, match=said):
        resolved(bundled, multiple, border, sampler)


def test_others_are_not(bundled: Path) -> None:
    assert len(resolved(bundled, 16).plan()) > 0
    assert len(resolved(bundled, 1, "edge").plan()) > 0
    assert len(resolved(bundled, 4, sampler=At((-8, 4), (0, 12))).plan()) == 2
