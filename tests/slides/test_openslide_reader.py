from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamwsi.errors import ConfigError, SlideError
from streamwsi.slides import open_slide
from streamwsi.slides.openslide import OpenSlideReader
from tests.helpers import RGB, UNDAMAGED, WHITE, noise_levels, slide_file, write_tiff
from tests.slides.reader_contract import ReaderContract


class TestOpenSlideReader(ReaderContract):
    def open_reader(self, path: Path, background: RGB = WHITE) -> OpenSlideReader:
        return OpenSlideReader(path, background)

    @pytest.mark.parametrize("name", UNDAMAGED)
    def test_every_level_of_the_shared_slides_is_read_exactly(self, shared_slides, name):
        with self.open_reader(slide_file(shared_slides, name)) as reader:
            assert [reader.resampled_px(level) for level in range(reader.info.level_count)] == [0.0] * UNDAMAGED[name]

    @pytest.mark.parametrize(
        "sizes",
        [
            [(1000, 900), (333, 300)],
            [(1021, 1019), (340, 341)],
            [(900, 700), (601, 467)],
            [(1500, 1100), (93, 68)],
            [(2000, 1500), (31, 23)],
            [(1031, 500), (515, 250)],
        ],
        ids=str,
    )
    def test_small_levels_are_exact_at_any_downsample(self, tmp_path, sizes):
        levels = noise_levels(sizes)
        with self.open_reader(write_tiff(tmp_path / "noise.tiff", levels)) as reader:
            assert reader.resampled_px(1) == 0
            self.check_regions(reader, 1, levels[1], WHITE, count=40)

    def test_where_no_exact_place_is_near_the_shift_is_stated_and_small(self, tmp_path):
        levels = noise_levels([(4001, 600), (2000, 300)])
        with self.open_reader(write_tiff(tmp_path / "noise.tiff", levels)) as reader:
            assert 0 < reader.resampled_px(1) < 0.5
            self.check_regions(reader, 1, levels[1], WHITE, count=30)

    @pytest.mark.parametrize(
        "name",
        ["CMU-1-Small-Region.webp.tiff", "grey10kx5k.tif", "wsic_dicom_YBR_FULL"],
    )
    def test_what_openslide_does_not_read_does_not_open(self, shared_slides, name):
        with pytest.raises(SlideError, match=name):
            self.open_reader(slide_file(shared_slides, f"unsupported/{name}"))

    def test_any_file_of_a_dicom_series_opens_the_slide(self, shared_slides):
        pixels = []
        for path in sorted((shared_slides / "dicom" / "cmu1_small_region").glob("*.dcm")):
            with self.open_reader(path) as reader:
                pixels.append(reader.read_region(0, 1000, 1000, 100, 100))
        assert len(pixels) == 4
        assert all(np.array_equal(other, pixels[0]) for other in pixels)


@pytest.mark.parametrize(("name", "reader_name"), [("auto", "tiff"), ("tiff", "tiff"), ("openslide", "openslide")])
def test_a_slide_is_opened_by_the_readers_name(bundled, name, reader_name):
    with open_slide(bundled, name) as reader:
        assert reader.info.reader == reader_name and reader.info.reader_reason is None


def test_an_unknown_reader_is_refused_and_the_known_ones_named(bundled):
    with pytest.raises(ConfigError, match="reader must be one of auto, openslide, tiff, array, got 'magic'"):
        open_slide(bundled, "magic")
