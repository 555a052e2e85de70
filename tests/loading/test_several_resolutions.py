"""Windows at several resolutions: what lies at their centres is the same place of the slide in all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import streamwsi as sw
from streamwsi.loading.read import read_chunk
from streamwsi.loading.resolution import Wanted
from streamwsi.loading.resolve import Choices, ReadingOptions, resolve_slide
from streamwsi.resolved import ResolvedSlide
from streamwsi.slides.reader import SlideReader, open_slide
from tests.helpers import slide_file, write_tiff
from tests.slides.test_resampled import shift_px, wave_levels


def resolved(reader: SlideReader, kernel: int, stride: int, **asked: Any) -> ResolvedSlide:
    options = ReadingOptions(
        kernel=(kernel, kernel),
        stride=(stride, stride),
        border="crop",
        background=(255, 255, 255),
        reader="auto",
        on_bad_region="fail",
        batch_size=4,
        chunk_px=1 << 20,
        threads=1,
        min_chunk_interval_s=0.0,
    )
    slide = sw.Slide(Path("/slides/a.tif"), "s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamwsi.loading.resolve.fingerprint", lambda path: "0")
        return resolve_slide(reader, (0, 0), "p", slide, Choices(Wanted.of(**asked)), options)


@pytest.mark.parametrize(
    "asked",
    [
        {"levels": [0, 1, 2]},
        {"levels": [1, 2]},
        {"mpps": [0.8, 1.0, 3.3], "missing_mpp": 0.5},
        {"mpps": [0.5, 2.01, 4.0], "missing_mpp": 0.5},
    ],
    ids=str,
)
def test_centres_agree_within_half_a_pixel_of_the_finest(tmp_path: Path, asked: dict[str, Any]) -> None:
    """At fractional downsamples, 2.0023 and 4.0107, read off waves; far within: by a tenth of a pixel."""
    with open_slide(write_tiff(tmp_path / "waves.tiff", wave_levels())) as reader:
        slide = resolved(reader, 60, 97, **asked)
        seen = 0
        for number in range(len(slide.chunks())):
            chunk = read_chunk(reader, slide, number)
            for window, pixels in zip(chunk.windows, chunk.pixels, strict=True):
                centre_l0 = [(start + 30) * slide.downsample for start in (window.start_x, window.start_y)]
                for resolution, one in zip(slide.resolutions, pixels, strict=True):
                    down = resolution.downsample(slide.info)
                    reach = 32 * down
                    if not all(
                        reach < place < side - reach for place, side in zip(centre_l0, slide.info.dimensions, strict=True)
                    ):
                        continue  # there is background in it, and no whole waves
                    start = centre_l0[0] / down - 30, centre_l0[1] / down - 30
                    shift_l0 = max(map(abs, shift_px(one, start, down))) * down
                    assert shift_l0 <= 0.1 * slide.downsample, (window, resolution)
                    seen += resolution != slide.resolutions[0]
    assert seen > 20


@pytest.mark.parametrize(("level", "times"), [(1, 2), (2, 4)])
def test_centres_agree_on_a_real_pyramid(shared_slides: Path, level: int, times: int) -> None:
    """What is seen finely in the middle of the coarse window is found there, to half a fine pixel, by comparing shifts.

    Near the corner: level 2 was made at exactly 4, and is said to be at 4.0058, the mean of what its rounded sides tell.
    """
    side = 96
    with open_slide(slide_file(shared_slides, "tiff/wsipack_example.tif")) as reader:
        slide = resolved(reader, side, 131, levels=[0, level])
        small = side // times
        middle = (side - small) // 2
        off = np.zeros((3, 3))
        for number in range(len(slide.chunks())):
            chunk = read_chunk(reader, slide, number)
            near = (chunk.windows.start < 300).all(axis=1) | (level == 1)
            for fine, coarse in chunk.pixels[near]:
                shrunk = np.asarray(Image.fromarray(fine).reduce(times), np.float64)
                for dy, dx in np.ndindex(3, 3):
                    top, left = middle + dy - 1, middle + dx - 1
                    off[dy, dx] += np.square(coarse[top : top + small, left : left + small] - shrunk).mean()
    assert off.argmin() == 4, off
    for before, here, after in (off[:, 1], off[1, :]):
        shift = (before - after) / (2 * (before - 2 * here + after)) * times
        assert abs(shift) <= 0.5, (shift, off)
