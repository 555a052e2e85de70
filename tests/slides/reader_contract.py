"""What every reader of slides must do. A reader's tests subclass ReaderContract and say how it opens a file."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streamwsi.dataset import SlideInfo
from streamwsi.errors import RegionError, SlideError
from streamwsi.slides import SlideReader
from tests.helpers import BAD_TILE, RGB, UNDAMAGED, WHITE, UInt8Array, level_image, noise_levels, slide_file, write_tiff

MAUVE: RGB = (180, 60, 200)
Region = tuple[int, int, int, int]


def cut(image: UInt8Array, region: Region, background: RGB) -> UInt8Array:
    """`region`, (x, y, width, height), of a level, with the background where it reaches beyond."""
    x, y, width, height = region
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[...] = background
    inside = image[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    top, left = max(-y, 0), max(-x, 0)
    pixels[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return pixels


def some_regions(extent: tuple[int, int], count: int, seed: int) -> Iterator[Region]:
    """Regions all over a level and across its edges, its corners and single pixels among them."""
    width, height = extent
    yield 0, 0, 1, 1
    yield width - 1, height - 1, 1, 1
    yield -3, -5, 20, 20
    yield width - 10, height - 7, 40, 30
    yield width, 0, 8, 8
    yield -20, -20, 15, 15
    random = np.random.default_rng(seed)
    for _ in range(count):
        w, h = random.integers(1, [min(width, 700) + 1, min(height, 700) + 1]).tolist()
        x, y = random.integers([-w // 2, -h // 2], [width - w // 2 + 1, height - h // 2 + 1]).tolist()
        yield x, y, w, h


class ReaderContract:
    """Not collected itself; subclasses are called Test…"""

    slides: tuple[str, ...] = tuple(UNDAMAGED)
    """Of the shared folder: those with which a reader is tested."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "slide" in metafunc.fixturenames:
            metafunc.parametrize("slide", self.slides)

    def open_reader(self, path: Path, background: RGB = WHITE) -> SlideReader:
        raise NotImplementedError

    def check_regions(self, reader: SlideReader, level: int, image: UInt8Array, background: RGB, count: int) -> None:
        assert reader.info.level_dimensions[level] == image.shape[1::-1]
        for region in some_regions(reader.info.level_dimensions[level], count, seed=level):
            found, expected = reader.read_region(level, *region), cut(image, region, background)
            if reader.resampled_px(level) == 0:
                np.testing.assert_array_equal(found, expected, strict=True, err_msg=f"level {level}, {region}")
            elif min(region[2:]) >= 64:
                assert np.abs(found.mean(axis=(0, 1)) - expected.mean(axis=(0, 1))).max() <= 1.5, (level, region)

    @pytest.fixture
    def noise(self, tmp_path: Path) -> tuple[Path, list[UInt8Array]]:
        """A pyramid with fractional downsamples, and what its levels hold."""
        levels = noise_levels([(1001, 757), (500, 379), (250, 189), (62, 47)])
        return write_tiff(tmp_path / "noise.tiff", levels), levels

    # what it says of a slide

    def test_what_it_says_of_a_slide_fits_together(self, shared_slides, slide):
        with self.open_reader(slide_file(shared_slides, slide)) as reader:
            info = reader.info
        assert info.level_count == UNDAMAGED[slide]
        assert info.level_count == len(info.level_dimensions) == len(info.level_downsamples) == len(info.tile_sizes)
        assert info.dimensions == info.level_dimensions[0]
        assert info.level_downsamples[0] == 1.0
        assert list(info.level_downsamples) == sorted(info.level_downsamples)
        for extent, downsample in zip(info.level_dimensions, info.level_downsamples, strict=True):
            for level_px, slide_px in zip(extent, info.dimensions, strict=True):
                assert slide_px / (level_px + 1) <= downsample <= slide_px / max(level_px - 1, 0.5)
        assert info.mpp is None or min(info.mpp) > 0
        assert info.power is None or info.power > 0
        assert info.vendor and info.reader

    def test_it_says_what_the_file_says(self, bundled):
        with self.open_reader(bundled) as reader:
            info = reader.info
        assert info.level_dimensions == ((2220, 2967),)
        assert info.mpp == (0.499, 0.499)
        assert info.power == 20.0
        assert info.vendor == "aperio"
        assert info.tile_sizes == ((240, 240),)
        assert info.associated_images == ("label", "macro", "thumbnail")

    def test_it_says_nothing_of_what_the_file_does_not(self, noise):
        with self.open_reader(noise[0]) as reader:
            assert reader.info.mpp is None
            assert reader.info.power is None
            assert reader.info.associated_images == ()

    def test_what_it_says_can_be_written_down_and_read_back(self, bundled):
        with self.open_reader(bundled) as reader:
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(reader.info), type=SlideInfo) == reader.info

    # the pixels

    def test_regions_are_cut_from_the_level_read_whole(self, shared_slides, slide):
        path = slide_file(shared_slides, slide)
        with self.open_reader(path) as reader:
            for level in range(reader.info.level_count):
                self.check_regions(reader, level, level_image(path, level), WHITE, count=20)

    def test_regions_of_the_bundled_slide_are_cut_from_it_read_whole(self, bundled):
        with self.open_reader(bundled, MAUVE) as reader:
            self.check_regions(reader, 0, level_image(bundled, 0, MAUVE), MAUVE, count=20)

    def test_regions_are_the_levels_own_pixels_at_fractional_downsamples(self, noise):
        path, levels = noise
        with self.open_reader(path, MAUVE) as reader:
            assert reader.info.level_downsamples[3] % 1 != 0
            for level, image in enumerate(levels):
                self.check_regions(reader, level, image, MAUVE, count=30)

    def test_a_level_can_be_read_at_once_however_wide_it_is(self, tmp_path):
        levels = noise_levels([(13_000, 60), (4333, 20)])
        with self.open_reader(write_tiff(tmp_path / "wide.tiff", levels, tile=256)) as reader:
            for level, image in enumerate(levels):
                if reader.resampled_px(level) == 0:
                    height, width = image.shape[:2]
                    np.testing.assert_array_equal(reader.read_region(level, 0, 0, width, height), image, strict=True)
            np.testing.assert_array_equal(reader.read_region(0, 5, 3, 9000, 50), levels[0][3:53, 5:9005], strict=True)

    @pytest.mark.parametrize("region", [(0, 0, 300, 200), (-5, 7, 300, 200)], ids=["inside", "across the edge"])
    def test_pixels_are_an_array_of_ones_own(self, bundled, region):
        with self.open_reader(bundled) as reader:
            first, again = reader.read_region(0, *region), reader.read_region(0, *region)
        assert first.shape == (200, 300, 3) and first.dtype == np.uint8
        assert first.flags.c_contiguous and first.flags.writeable
        first[...] = 0
        assert again.any()

    def test_regions_are_read_into_rows_of_a_larger_array(self, shared_slides, slide):
        with self.open_reader(slide_file(shared_slides, slide), MAUVE) as reader:
            for level in range(reader.info.level_count):
                for x, y, width, height in some_regions(reader.info.level_dimensions[level], 5, seed=level):
                    larger = np.full((height + 3, width + 5, 3), 77, np.uint8)
                    out = larger[1:-2, 2:-3]
                    reader.read_into(level, x, y, out)
                    expected = reader.read_region(level, x, y, width, height)
                    np.testing.assert_array_equal(out, expected, strict=True, err_msg=f"level {level}, {x, y, width, height}")
                    out[...] = 77
                    assert np.all(larger == 77), "written beside what was asked for"

    def test_rows_may_stand_in_any_order(self, bundled):
        with self.open_reader(bundled) as reader:
            upside_down = np.zeros((300, 400, 3), np.uint8)
            reader.read_into(0, 2000, 2900, upside_down[::-1])
            every_other = np.zeros((600, 400, 3), np.uint8)
            reader.read_into(0, 2000, 2900, every_other[::2])
            expected = reader.read_region(0, 2000, 2900, 400, 300)
        np.testing.assert_array_equal(upside_down[::-1], expected)
        np.testing.assert_array_equal(every_other[::2], expected)
        assert not every_other[1::2].any()

    def test_reading_into_fails_as_reading_does(self, shared_slides):
        name, (x, y, _, _) = BAD_TILE
        out = np.zeros((20, 20, 3), np.uint8)
        with self.open_reader(shared_slides / name) as reader:
            with pytest.raises(RegionError, match=r"CMU-1-badtile67\.svs"):
                reader.read_into(0, x, y, out)
            with pytest.raises(SlideError, match=r"has no level 1: it has levels 0 to 0"):
                reader.read_into(1, 0, 0, out)
        with pytest.raises(SlideError, match="is closed"):
            reader.read_into(0, 0, 0, out)

    @pytest.mark.parametrize("background", [WHITE, MAUVE])
    def test_what_lies_outside_the_slide_is_background(self, bundled, background):
        with self.open_reader(bundled, background) as reader:
            for x, y in ((2220, 0), (0, 2967), (-10, 0), (0, -10), (5000, 5000), (-50, -50)):
                assert np.all(reader.read_region(0, x, y, 10, 10) == background)

    @pytest.mark.parametrize("background", [WHITE, MAUVE])
    def test_what_has_no_data_is_background(self, tmp_path, background):
        levels = noise_levels([(512, 384), (256, 192)])
        path = write_tiff(tmp_path / "sparse.tiff", levels, missing={(0, 2, 1), (1, 3, 0)})
        levels[0][64:128, 128:192] = background
        levels[1][0:64, 192:256] = background
        with self.open_reader(path, background) as reader:
            for level, image in enumerate(levels):
                self.check_regions(reader, level, image, background, count=10)

    @pytest.mark.parametrize("level", [-1, 1, 7])
    def test_a_level_that_the_slide_lacks_is_refused_and_those_it_has_named(self, bundled, level):
        with (
            self.open_reader(bundled) as reader,
            pytest.raises(SlideError, match=rf"CMU-1-Small-Region\.svs\S* has no level {level}: it has levels 0 to 0"),
        ):
            reader.read_region(level, 0, 0, 10, 10)

    def test_several_threads_read_one_slide(self, bundled):
        image = level_image(bundled, 0)
        regions = list(some_regions((2220, 2967), 40, seed=1))
        with self.open_reader(bundled) as reader, ThreadPoolExecutor(4) as threads:
            for region, found in zip(regions, threads.map(lambda it: reader.read_region(0, *it), regions), strict=True):
                np.testing.assert_array_equal(found, cut(image, region, WHITE), strict=True)

    # the small picture

    def test_a_thumbnail_shows_the_whole_slide(self, bundled):
        image = level_image(bundled, 0)
        with self.open_reader(bundled) as reader:
            small = reader.thumbnail(300)
        assert small.dtype == np.uint8 and small.shape[2] == 3
        assert small.shape[0] == 300 and abs(small.shape[1] - 300 * 2220 / 2967) <= 1
        np.testing.assert_allclose(small[:150].mean(axis=(0, 1)), image[:1483].mean(axis=(0, 1)), atol=1.5)
        np.testing.assert_allclose(small[150:].mean(axis=(0, 1)), image[1483:].mean(axis=(0, 1)), atol=1.5)

    def test_a_thumbnail_of_a_slide_without_small_levels_lies_where_the_slide_does(self, tmp_path):
        image = np.zeros((2100, 5000, 3), np.uint8)
        image[:, ::2] = 255
        image[700:, 2500:] = 0
        with self.open_reader(write_tiff(tmp_path / "striped.tiff", [image], tile=512)) as reader:
            small = reader.thumbnail(100)
        assert small.shape == (42, 100, 3)
        expected = np.full((42, 100), 127.5)
        expected[14:, 50:] = 0
        away_from_edges = np.ones((42, 100), bool)
        away_from_edges[11:17] = away_from_edges[:, 47:53] = False
        np.testing.assert_allclose(small[away_from_edges].mean(axis=-1), expected[away_from_edges], atol=3)

    def test_a_thumbnail_is_never_larger_than_the_slide(self, tmp_path):
        path = write_tiff(tmp_path / "small.tiff", noise_levels([(90, 60)]))
        with self.open_reader(path) as reader:
            assert reader.thumbnail(500).shape == (60, 90, 3)

    @pytest.mark.parametrize("background", [WHITE, MAUVE])
    def test_a_thumbnail_has_background_where_the_slide_has_no_data(self, tmp_path, background):
        path = write_tiff(tmp_path / "sparse.tiff", noise_levels([(128, 128)]), missing={(0, 1, 0)})
        with self.open_reader(path, background) as reader:
            assert np.all(reader.thumbnail(128)[:64, 64:] == background)

    # what cannot be read

    def test_a_region_that_touches_a_bad_tile_fails_and_the_others_are_read(self, shared_slides, bundled):
        image = level_image(bundled, 0)
        name, (x, y, w, h) = BAD_TILE
        touching = [(x, y, w, h), (x - 9, y - 9, 10, 10), (x + w - 1, y + h - 1, 5, 5), (0, 0, 2220, 2967), (x + 100, y, 1, 1)]
        beside = [(x - 256, y, 256, 256), (x + w, y, 256, 256), (x, y - 256, 256, 256), (x, y + h, 256, 256), (0, 0, 9, 9)]
        with self.open_reader(shared_slides / name) as reader:
            for bad, good in zip(touching, beside, strict=True):
                with pytest.raises(RegionError, match=r"CMU-1-badtile67\.svs"):
                    reader.read_region(0, *bad)
                np.testing.assert_array_equal(reader.read_region(0, *good), cut(image, good, WHITE), strict=True)

    def test_a_bad_region_in_one_thread_does_not_spoil_the_reads_of_others(self, shared_slides, bundled):
        image = level_image(bundled, 0)
        name, bad = BAD_TILE
        good = [(col * 240, row * 240, 240, 240) for row in range(9) for col in range(6)]
        regions = [region for pair in zip(good, [bad] * len(good), strict=True) for region in pair]

        with self.open_reader(shared_slides / name) as reader, ThreadPoolExecutor(4) as threads:
            reads = [(region, threads.submit(reader.read_region, 0, *region)) for region in regions]
            for region, read in reads:
                if region == bad:
                    assert isinstance(read.exception(), RegionError)
                else:
                    np.testing.assert_array_equal(read.result(), cut(image, region, WHITE), strict=True)

    def test_a_slide_of_which_nothing_can_be_read_opens_and_fails_each_read(self, shared_slides):
        with self.open_reader(shared_slides / "damaged" / "osp-unreadable.svs") as reader:
            for _ in range(2):
                with pytest.raises(RegionError, match=r"osp-unreadable\.svs"):
                    reader.read_region(0, 0, 0, 8, 8)
            with pytest.raises(RegionError, match=r"osp-unreadable\.svs"):
                reader.thumbnail(16)

    @pytest.mark.parametrize(
        "name",
        [
            "CMU-1-Small-Region.jpeg-truncated-60pct.tiff",
            "CMU-1-truncated-50pct.svs",
            "histolab-broken.svs",
            "osp-unopenable.tiff",
        ],
    )
    def test_a_damaged_slide_does_not_open(self, shared_slides, name):
        with pytest.raises(SlideError, match=name):
            self.open_reader(shared_slides / "damaged" / name)

    def test_a_missing_file_is_said_to_be_missing(self, tmp_path):
        with pytest.raises(SlideError, match=r"nowhere\.svs does not exist"):
            self.open_reader(tmp_path / "nowhere.svs")

    @pytest.mark.parametrize("content", [b"", b"patient,slide,path\n", b"II*\0\x08\0\0\0"], ids=["empty", "text", "stub"])
    def test_a_file_that_is_no_slide_does_not_open(self, tmp_path, content):
        path = tmp_path / "strange.svs"
        path.write_bytes(content)
        with pytest.raises(SlideError, match=r"strange\.svs"):
            self.open_reader(path)

    @pytest.mark.parametrize("name", [".", "n" * 300, "file/slide.svs"], ids=["a folder", "a long name", "in a file"])
    def test_a_path_that_the_system_refuses_does_not_open(self, tmp_path, name):
        (tmp_path / "file").touch()
        with pytest.raises(SlideError, match=r" cannot be opened: [A-Z]"):
            self.open_reader(tmp_path / name)

    # its end

    def test_it_closes_twice_without_complaint(self, bundled):
        with self.open_reader(bundled) as reader:
            reader.close()
        reader.close()

    def test_a_closed_reader_says_so(self, bundled):
        reader = self.open_reader(bundled)
        reader.close()
        with pytest.raises(SlideError, match="is closed"):
            reader.read_region(0, 0, 0, 10, 10)
        with pytest.raises(SlideError, match="is closed"):
            reader.thumbnail(10)

    def test_a_reader_that_is_closed_while_others_read_does_no_harm(self, bundled):
        image = level_image(bundled, 0)
        regions = [(col * 200, row * 200, 300, 300) for row in range(12) for col in range(9)]
        for _ in range(3):
            reader = self.open_reader(bundled)
            with ThreadPoolExecutor(4) as threads:
                reads = [threads.submit(reader.read_region, 0, *region) for region in regions]
                reads[3].result()
                reader.close()
            for region, read in zip(regions, reads, strict=True):
                if read.exception() is None:
                    np.testing.assert_array_equal(read.result(), cut(image, region, WHITE), strict=True)
                else:
                    assert isinstance(read.exception(), SlideError)
