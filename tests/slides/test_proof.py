"""Tiles are decoded directly only where they are proven to have OpenSlide's pixels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from streamwsi.errors import RegionError, SlideError
from streamwsi.slides import open_slide, tiff_levels
from streamwsi.slides.openslide import OpenSlideReader
from streamwsi.slides.proof import DifferingError, prove
from streamwsi.slides.tiff import TiffReader
from streamwsi.slides.tile_codecs import CopyingDecoder, TileDecoder
from tests.helpers import UInt8Array, level_image, slide_file
from tests.slides.tiff_files import GREY, KINDS, Page, pyramid, tissue, write

SIZES = [(400, 298), (200, 149), (50, 37)]
TILE = (64, 48)

Spoil = Callable[[Sequence[bytes], UInt8Array], None]


@pytest.fixture(scope="module")
def images() -> list[UInt8Array]:
    return [tissue(size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture
def slide(tmp_path: Path, images: list[UInt8Array]) -> Path:
    return write(tmp_path / "slide.tiff", pyramid(KINDS["jpeg 4:2:0"], images, TILE))


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Spoil], None]:
    """``spoilt(directory, spoil)``: what is decoded of a directory is then handed to `spoil`, with the bytes it came from."""

    def spoil_directory(index: int, spoil: Spoil) -> None:
        real = tiff_levels.decoder_of

        def decoder_of(directory) -> TileDecoder:
            decoder = real(directory)
            if directory.index != index:
                return decoder

            def decode_and_spoil(parts: Sequence[bytes], out: UInt8Array) -> None:
                decoder.decode(parts, out)
                spoil(parts, out)

            return CopyingDecoder(decode_and_spoil)

        monkeypatch.setattr(tiff_levels, "decoder_of", decoder_of)

    return spoil_directory


def darker_by_one(_: Sequence[bytes], out: UInt8Array) -> None:
    np.copyto(out, out - 1, where=out > 0)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_one_grey_level_in_one_level_leaves_the_slide_to_openslide(slide, spoilt, caplog, level):
    spoilt(level, darker_by_one)
    with caplog.at_level(logging.INFO, "streamwsi"), open_slide(slide) as reader:
        assert reader.info.reader == "openslide"
        reason = reader.info.reader_reason
        np.testing.assert_array_equal(reader.read_region(0, 0, 0, *SIZES[0]), level_image(slide, 0))
    assert reason is not None
    assert f"pixels of level {level} at (" in reason and "differ from OpenSlide's by up to 1 grey levels" in reason
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.message == f"{slide}: {reason}"


def test_a_reader_that_is_asked_for_says_why_it_does_not_read_the_slide(slide, spoilt):
    spoilt(1, darker_by_one)
    with pytest.raises(
        SlideError, match=r"slide\.tiff: its tiles are not decoded directly: pixels of level 1 at \(\d+, \d+\) differ"
    ):
        open_slide(slide, "tiff")


def test_a_slide_that_differs_in_its_fullest_tiles_only_is_found_out(tmp_path, spoilt):
    image = np.full((480, 640, 3), 255, np.uint8)
    image[150:200, 500:560] = tissue((60, 50))
    path = write(tmp_path / "mostly-white.tiff", pyramid(KINDS["jpeg 4:2:0"], [image], TILE))

    def spoil(parts: Sequence[bytes], out: UInt8Array) -> None:
        if out.min() < 200:
            darker_by_one(parts, out)

    spoilt(0, spoil)
    with open_slide(path) as reader:
        assert reader.info.reader == "openslide"


def test_tiles_that_are_never_decoded_are_not_proven_by_openslides_own(slide, spoilt):
    def spoil(_: Sequence[bytes], __: UInt8Array) -> None:
        raise NotImplementedError("no codec")

    spoilt(1, spoil)
    with open_slide(slide) as reader:
        assert reader.info.reader == "openslide"
        assert reader.info.reader_reason is not None
        assert "no tile of level 1 could be compared" in reader.info.reader_reason and "no codec" in reader.info.reader_reason


def test_some_damaged_tiles_do_not_keep_a_slide_from_being_decoded(tmp_path, images):
    pages = pyramid(KINDS["jpeg 4:2:0"], images[:2], TILE)
    for page in pages:
        page.tiles[::2] = [b"\xff\xd8 damaged" for _ in page.tiles[::2]]
    with open_slide(write(tmp_path / "damaged.tiff", pages), "tiff") as reader:
        reader.read_region(0, 64, 0, *TILE)
        with pytest.raises(RegionError):
            reader.read_region(0, 128, 0, *TILE)


def test_a_slide_of_damaged_tiles_is_left_to_openslide(shared_slides, caplog):
    with open_slide(shared_slides / "damaged" / "osp-unreadable.svs") as reader:
        assert reader.info.reader == "openslide"
        assert "could be compared" in reader.info.reader_reason
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("name", ["dicom/cmu1_small_region", "dicom/bone"])
def test_what_is_no_tiff_is_left_to_openslide_without_a_warning(shared_slides, caplog, name):
    path = slide_file(shared_slides, name)
    with caplog.at_level(logging.INFO, "streamwsi"), open_slide(path) as reader:
        assert reader.info.reader == "openslide"
        assert reader.info.reader_reason == "its tiles are not decoded directly: its format is dicom"
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_what_cannot_be_decoded_here_is_left_to_openslide_without_a_warning(tmp_path, images, caplog):
    page = Page((64, 48), TILE, [bytes(64 * 48 * 2)], photometric=GREY, samples=1, bits=16)
    with caplog.at_level(logging.INFO, "streamwsi"), open_slide(write(tmp_path / "16-bit.tiff", [page])) as reader:
        assert reader.info.reader == "openslide" and "16-bit samples" in reader.info.reader_reason
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_a_slide_that_is_proven_says_nothing(slide, caplog):
    with caplog.at_level(logging.DEBUG, "streamwsi"), open_slide(slide) as reader:
        assert reader.info.reader == "tiff" and reader.info.reader_reason is None
        assert reader.tiles_read().decoded == 0
    assert caplog.records == []


def test_the_proof_keeps_to_places_that_openslide_does_not_resample(tmp_path):
    pages = pyramid(KINDS["none"], [tissue((4001, 100)), tissue((2000, 50))], TILE)
    path = write(tmp_path / "almost.tiff", pages)
    with OpenSlideReader(path) as through:
        reader = TiffReader(through)
        prove(reader)
        reader.levels[1].offsets[0, 0] = reader.levels[1].offsets[0, 1]  # the only tile of level 1 with such a place
        with pytest.raises(DifferingError, match=r"level 1 at \(0, 0\)"):
            prove(reader)
