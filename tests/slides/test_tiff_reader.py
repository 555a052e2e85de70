"""Tiles that are decoded directly have OpenSlide's pixels, its background and its errors."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamwsi.errors import RegionError, SlideError
from streamwsi.slides import SlideReader, open_slide
from streamwsi.slides.openslide import OpenSlideReader
from streamwsi.slides.reader import Part
from streamwsi.slides.tiff import TiffReader
from streamwsi.slides.tiff_levels import TiffLevel
from streamwsi.slides.tile_codecs import ROOM_BYTES
from tests.helpers import BUNDLED, RGB, WHITE, UInt8Array, noise_levels, write_tiff
from tests.slides import tiff_files as files
from tests.slides.reader_contract import MAUVE, ReaderContract, Region, cut
from tests.slides.tiff_files import APERIO_KINDS, KINDS, Kind, Page, aperio, pyramid, strips, tissue, write

SIZES = [(401, 299), (200, 149), (67, 50)]
"""Of levels; their downsamples are fractional."""
TILE = (64, 48)


class TestTiffReader(ReaderContract):
    def open_reader(self, path: Path, background: RGB = WHITE) -> SlideReader:
        return open_slide(path, "auto", background)


class Pair:
    """A slide opened by the reader under test and by OpenSlide."""

    def __init__(self, path: Path, background: RGB = WHITE, reader: str = "tiff") -> None:
        self.path, self.background = path, background
        opened = open_slide(path, reader, background)
        self.direct, self.openslide = opened, OpenSlideReader(path, background)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.direct.close()
        self.openslide.close()

    def check(self, level: int, *region: int) -> None:
        """The same pixels, or both cannot be read."""
        found, expected = (outcome(reader, level, *region) for reader in (self.direct, self.openslide))
        if expected is None or found is None:
            assert found is None and expected is None, f"level {level}, {region}: found {found}, expected {expected}"
        else:
            np.testing.assert_array_equal(found, expected, strict=True, err_msg=f"{self.path.name}, level {level}, {region}")

    def check_levels(self, margin: int = 5) -> None:
        """All of each level, and some of what lies around it."""
        for level, (width, height) in enumerate(self.direct.info.level_dimensions):
            self.check(level, -margin, -margin, width + 2 * margin, height + 2 * margin)

    def check_tiles(self) -> None:
        """Each tile of each level on its own."""
        for level, (extent, tile) in enumerate(
            zip(self.direct.info.level_dimensions, self.direct.info.tile_sizes, strict=True)
        ):
            assert tile is not None
            for y in range(0, extent[1], tile[1]):
                for x in range(0, extent[0], tile[0]):
                    self.check(level, x, y, *tile)


def outcome(reader: SlideReader, level: int, *region: int) -> UInt8Array | None:
    """Pixels, or None where they cannot be read."""
    try:
        return reader.read_region(level, *region)
    except RegionError:
        return None


def whole(path: Path) -> list[UInt8Array]:
    """Each tiled directory as tifffile reads it, (height, width, 3) uint8."""
    images = []
    with tifffile.TiffFile(path) as file:
        for page in file.pages:
            if page.is_tiled:
                image = page.asarray()
                if page.planarconfig == 2:
                    image = np.moveaxis(image, 0, 2)
                images.append(image if image.ndim == 3 else np.stack([image] * 3, axis=-1))
    return images


@pytest.fixture(scope="module")
def images() -> list[UInt8Array]:
    return [tissue(size, seed) for seed, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiles")


ALL_KINDS = {**KINDS, **APERIO_KINDS}
STRANGE_TO_TIFFFILE = (
    "jpeg 4:2:2, a marker that says RGB",
    "jpeg rgb, jfif's marker",
    "jpeg that is ycbcr, called rgb",
    *(name for name in APERIO_KINDS if name.startswith("aperio 330")),
)
"""It believes JPEG's markers, and does not know Aperio's compressions as Aperio means them."""


@pytest.fixture(scope="module", params=ALL_KINDS)
def pair(request: pytest.FixtureRequest, folder: Path, images: list[UInt8Array]) -> Pair:
    name = request.param
    pages = pyramid(ALL_KINDS[name], images, TILE)
    if name in APERIO_KINDS:
        pages = aperio(pages, strips(images[2]))
    number = [*ALL_KINDS].index(name)
    path = write(folder / f"{name.replace('/', ' ')}.tiff", pages, big=number % 2 == 1, order=(">" if number % 4 == 3 else "<"))
    with Pair(path, MAUVE) as both:
        yield both


def test_each_kind_of_tiles_is_decoded_directly(pair):
    assert pair.direct.info.reader == "tiff"
    assert replaced(pair.direct.info) == replaced(pair.openslide.info)
    assert len(pair.direct.info.level_dimensions) == len(SIZES)
    assert [pair.direct.resampled_px(level) for level in range(3)] == [0, 0, 0]


def replaced(info):
    return {**{name: getattr(info, name) for name in info.__struct_fields__}, "reader": ""}


def test_levels_of_each_kind_are_openslides(pair):
    pair.check_levels()
    pair.check_tiles()


def test_levels_of_each_kind_are_those_that_tifffile_reads(pair, request):
    if pair.path.stem in STRANGE_TO_TIFFFILE:
        pytest.skip("tifffile takes its colours for others than TIFF says, or OpenSlide does")
    for level, image in enumerate(whole(pair.path)):
        height, width = image.shape[:2]
        np.testing.assert_array_equal(pair.direct.read_region(level, 0, 0, width, height), image, strict=True)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2), *(st.integers(-80, 420) for _ in range(2)), *(st.integers(1, 300) for _ in range(2)))
def test_any_region_of_each_kind_is_openslides(pair, level, x, y, width, height):
    pair.check(level, x, y, width, height)


@pytest.mark.parametrize("lossless", ["none", "zstd predicted", "lzw, by tifffile"])
def test_what_was_written_without_loss_is_read(folder, images, lossless):
    path = folder / "lossless.tiff"
    if lossless == "lzw, by tifffile":
        tifffile.imwrite(path, images[0], tile=(48, 64), photometric="rgb", compression="lzw", predictor=True)
    else:
        write(path, pyramid(KINDS[lossless], images[:1], TILE))
    with open_slide(path, "tiff") as reader:
        np.testing.assert_array_equal(reader.read_region(0, 0, 0, *SIZES[0]), images[0], strict=True)


def test_all_chroma_of_aperios_jpeg_2000_is_converted_by_openslides_tables(tmp_path):
    blue, red = np.meshgrid(np.arange(256), np.arange(256))
    stored = np.stack([np.full((256, 256), 120), blue, red], axis=-1).astype(np.uint8)
    path = write(tmp_path / "chroma.svs", aperio([APERIO_KINDS["aperio 33003"].page(stored, (256, 256))], strips(tissue(TILE))))
    with Pair(path) as both:
        both.check_levels()


# sizes


@pytest.mark.parametrize("tile", [(16, 16), (48, 80), (240, 240), (240, 16), (272, 112), (1024, 1024), (448, 304)], ids=str)
@pytest.mark.parametrize("kind", ["jpeg 4:2:0", "lzw predicted", "jpeg rgb, tables apart"])
def test_tiles_of_any_size_are_decoded_directly(tmp_path, images, kind, tile):
    with Pair(write(tmp_path / "tiles.tiff", pyramid(KINDS[kind], images, tile))) as both:
        both.check_levels()
        both.check(0, 17, 33, 250, 201)


@pytest.mark.parametrize("tile", [(50, 50), (33, 100), (8, 8)], ids=str)
@pytest.mark.parametrize("kind", ["jpeg 4:4:4", "jpeg 4:2:0", "zstd", "grey lzw predicted"])
def test_tiles_of_sizes_that_tiff_forbids_are_as_openslide_has_them(tmp_path, images, kind, tile):
    path = write(tmp_path / "odd.tiff", pyramid(KINDS[kind], images, tile))
    with Pair(path, reader="auto") as both:
        assert both.direct.info.reader == "tiff" or both.direct.info.reader_reason
        both.check_levels()


def test_tiles_that_openslide_itself_cannot_read_are_left_to_it(tmp_path, images):
    # libtiff reads such tiles by the kilobyte, and complains about the rest
    path = write(tmp_path / "by-the-kilobyte.tiff", pyramid(KINDS["none"], images, (48, 80)))
    with Pair(path, reader="auto") as both:
        both.check_levels()


ALMOST_WHOLE = [(4001, 601), (2000, 300)]


@pytest.mark.parametrize("kind", ["none", "zstd predicted", "jpeg 4:2:0", "grey"])
def test_levels_that_openslide_resamples_are_read_exactly(tmp_path, kind):
    path = write(tmp_path / "almost.tiff", pyramid(KINDS[kind], [tissue(size, seed=3) for size in ALMOST_WHOLE], TILE))
    with Pair(path) as both:
        assert both.openslide.resampled_px(1) > 0 == both.direct.resampled_px(1)
        image = whole(path)[1]
        for region in ((0, 0, *ALMOST_WHOLE[1]), (700, 30, 256, 256), (1700, -5, 400, 333), (1999, 299, 1, 1)):
            np.testing.assert_array_equal(both.direct.read_region(1, *region), cut(image, region, WHITE), strict=True)


FAR_APART = [(12001, 128), (6000, 64)]
"""Nowhere from 37 to 5962 px can OpenSlide begin to read the second level and not resample it."""


def foreign_and_odd_tiles(path: Path, sizes: Sequence[tuple[int, int]], row: int, columns: Sequence[int], kind: str) -> Path:
    """A slide whose second level has tiles in this row that OpenSlide makes from the first, or that only it decodes."""
    images = [tissue(size, seed=3) for size in sizes]
    if kind == "missing":
        first, second = pyramid(APERIO_KINDS["aperio jpeg 4:2:2"], images, TILE)
        return write(path, aperio([first, lacking(second, *((row, column) for column in columns))], strips(tissue(TILE))))
    first, second = pyramid(KINDS["zstd"], images, TILE)
    for column in columns:
        second.tiles[row * -(-sizes[1][0] // TILE[0]) + column] += b"more"
    return write(path, [first, second])


@pytest.mark.parametrize("kind", ["missing", "odd"])
def test_what_openslide_makes_of_a_tile_lies_where_it_should(tmp_path, caplog, kind):
    path = foreign_and_odd_tiles(tmp_path / "almost.svs", ALMOST_WHOLE, 3, range(8, 24), kind)
    with Pair(path) as both:
        assert both.direct.resampled_px(1) == 0
        level = both.openslide.read_region(1, 0, 0, *ALMOST_WHOLE[1])
        np.testing.assert_array_equal(both.direct.read_region(1, 0, 0, *ALMOST_WHOLE[1]), level)
        np.testing.assert_array_equal(both.direct.read_region(1, 1000, 150, 64, 48), level[150:198, 1000:1064])
    assert "shifted" not in caplog.text


@pytest.mark.parametrize("kind", ["missing", "odd"])
def test_where_it_cannot_but_shift_a_tile_that_is_said(tmp_path, caplog, kind):
    path = foreign_and_odd_tiles(tmp_path / "far.svs", FAR_APART, 0, [1, 80], kind)
    with Pair(path) as both:
        assert (both.direct.resampled_px(1) > 0.1) == (kind == "missing")  # of those that are damaged nobody knows yet
        assert both.direct.resampled_px(0) == 0
        both.direct.read_region(1, 80 * TILE[0], 0, *TILE)
        both.direct.read_region(1, 80 * TILE[0], 0, *TILE)
        assert both.direct.tiles_read().shifted_px > 0.1
    (said,) = (record.message for record in caplog.records if "shifted" in record.message)
    assert "a tile of level 1 at (5120, 0) that is not decoded directly is shifted by 0." in said


def test_a_damaged_tile_between_is_not_taken_for_one_that_is_asked_for(tmp_path):
    path = foreign_and_odd_tiles(tmp_path / "almost.svs", ALMOST_WHOLE, 0, [20], "odd")
    with Pair(path) as both:
        start = int(both.direct.levels[1].offsets[0, 10, 0])
    data = bytearray(path.read_bytes())
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    with Pair(path) as both:
        with pytest.raises(RegionError):
            both.direct.read_region(1, 10 * TILE[0], 0, *TILE)
        both.direct.read_region(1, 20 * TILE[0], 0, *TILE)


# which directories are levels


def test_pictures_beside_the_pyramid_are_none_of_its_levels(tmp_path, images):
    others = [tissue(size, seed=50 + n) for n, size in enumerate(SIZES)]
    first, second, third = pyramid(KINDS["jpeg 4:2:0"], images, TILE)
    decoy = KINDS["jpeg 4:2:0"].page(others[1], TILE)  # as large as a level, and not called reduced
    pages = [first, strips(others[1]), decoy, strips(others[2]), replace(decoy, tags={254: ("I", [0])}), second, third]
    with Pair(write(tmp_path / "beside.tiff", pages)) as both:
        assert both.direct.info.level_dimensions == tuple(SIZES)
        both.check_levels()


def test_levels_in_any_order_are_openslides(tmp_path, images):
    first, second, third = pyramid(KINDS["lzw"], images, TILE)
    with Pair(write(tmp_path / "order.tiff", [first, third, second, replace(third, tiles=third.tiles[::-1])])) as both:
        assert both.direct.info.level_count == 4
        both.check_levels()


def test_the_first_directory_may_be_a_smaller_level(tmp_path, images):
    pages = pyramid(KINDS["lzw"], images, TILE)[::-1]
    pages = [replace(page, tags={254: ("I", [number and 1])}) for number, page in enumerate(pages)]
    with Pair(write(tmp_path / "small-first.tiff", pages)) as both:
        assert both.direct.info.level_dimensions == tuple(SIZES)
        both.check_levels()


@pytest.mark.parametrize("compression", ["jpeg", "zlib", None])
def test_levels_of_ome_tiff_are_those_that_openslide_sees(tmp_path, images, compression):
    path = tmp_path / "pyramid.ome.tiff"
    options = {"tile": (48, 64), "photometric": "rgb", "compression": compression}
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as writer:
        writer.write(images[0], subifds=2, metadata={"axes": "YXS"}, **options)
        for image in images[1:]:
            writer.write(image, subfiletype=1, **options)
    with Pair(path) as both:
        assert both.direct.info.dimensions == SIZES[0]
        both.check_levels()
        np.testing.assert_array_equal(both.direct.read_region(0, 0, 0, *SIZES[0]), whole(path)[0], strict=True)


def test_directories_that_go_in_a_circle_do_no_harm(tmp_path, images):
    path = write(tmp_path / "circle.tiff", pyramid(KINDS["lzw"], images, TILE))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        last, first = file.pages[2].offset, file.pages[0].offset
    (count,) = struct.unpack_from("<H", data, last)
    struct.pack_into("<I", data, last + 2 + 12 * count, first)
    path.write_bytes(data)
    with pytest.raises(SlideError, match=r"circle\.tiff"):
        open_slide(path)


# tiles without data


def lacking(page: Page, *tiles: tuple[int, int]) -> Page:
    """Without the tiles at these (row, column)."""
    across = -(-page.extent[0] // page.tile[0])
    gone = {row * across + column for row, column in tiles}
    return replace(page, tiles=[b"" if number in gone else data for number, data in enumerate(page.tiles)])


@pytest.mark.parametrize("background", [WHITE, MAUVE])
@pytest.mark.parametrize("kind", ["jpeg 4:2:2", "zstd", "grey", "none, colours apart"])
def test_tiles_without_data_are_background(tmp_path, images, kind, background):
    first, second, third = pyramid(KINDS[kind], images, TILE)
    pages = [lacking(first, (0, 0), (3, 2), (6, 6)), lacking(second, (1, 1), (3, 3)), lacking(third, (0, 1))]
    with Pair(write(tmp_path / "sparse.tiff", pages), background) as both:
        both.check_levels()
        both.check_tiles()
        assert np.all(both.direct.read_region(0, 0, 0, *TILE) == background)


@pytest.mark.parametrize("background", [WHITE, MAUVE])
@pytest.mark.parametrize("kind", ["aperio jpeg 4:2:2", "aperio 33005"])
@pytest.mark.parametrize(
    "sizes",
    [
        [(401, 299), (200, 149), (67, 50)],
        [(448, 288), (192, 144), (64, 48)],  # 7 x 6 tiles, 3 x 3, 1 x 1: what covers the last column is another tile
        [(320, 240), (128, 96)],  # 5 x 5, 2 x 2: a ratio of one half more
        [(320, 240), (310, 230), (300, 220)],
    ],
    ids=str,
)
def test_aperios_tiles_without_data_are_drawn_from_the_level_before(tmp_path, kind, background, sizes):
    levels = pyramid(APERIO_KINDS[kind], [tissue(size, seed) for seed, size in enumerate(sizes)], TILE)
    levels[0] = lacking(levels[0], (0, 1), (2, 2), (4, 4), (3, 6), (5, 0))
    if len(levels) == 3:
        levels[1] = lacking(levels[1], (1, 0), (2, 2))
    with Pair(write(tmp_path / "sparse.svs", aperio(levels, strips(tissue(TILE)))), background) as both:
        assert both.direct.info.vendor == "aperio"
        both.check_levels()
        both.check_tiles()


def test_a_level_without_any_data_needs_no_proof(tmp_path, images):
    first, second, _ = pyramid(KINDS["zstd"], images, TILE)
    with Pair(write(tmp_path / "none.tiff", [first, replace(second, tiles=[b""] * len(second.tiles))])) as both:
        both.check_levels()


# damaged tiles


def _middle(data: bytes) -> bytes:
    place = len(data) // 2
    return data[:place] + b"\xff\xd9\0\xffstuff and nonsense" + data[place + 22 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "other bytes in the middle": _middle,
    "zeros in the middle": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "cut in two": lambda data: data[: len(data) // 2],
    "the last bytes gone": lambda data: data[:-4],
    "more bytes at the end": lambda data: data + b"more",
    "its first byte only": lambda data: data[:1],
    "all zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"not what it should be " * 20,
}


@pytest.fixture(scope="module")
def undamaged(images: list[UInt8Array]) -> dict[str, list[Page]]:
    """A pyramid of each kind, of 3 x 3 and 2 x 2 tiles, to be damaged in each way."""
    levels = [images[0][:142, :190], images[1][:71, :95]]  # OpenSlide reads no more than it is asked for
    return {name: pyramid(kind, levels, TILE) for name, kind in ALL_KINDS.items()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tiles_fail_as_openslides_do(folder, images, undamaged, damage):
    for name in ALL_KINDS:
        pages = [replace(page, tiles=[*page.tiles]) for page in undamaged[name]]
        for page in pages:
            hurt = len(page.tiles) // 2
            page.tiles[hurt] = DAMAGES[damage](page.tiles[hurt])
        if name in APERIO_KINDS:
            pages = aperio(pages, strips(images[2]))
        with Pair(write(folder / "damaged.tiff", pages)) as both:
            both.check_tiles()


@pytest.mark.parametrize("name", [name for name in ALL_KINDS if not name.startswith("jpeg grey")])
def test_tiles_with_any_bytes_changed_are_as_openslide_has_them(folder, images, name):
    # not grey JPEG: libtiff decodes it, and remembers the tables of whatever tile it decoded before
    random = np.random.default_rng(7)
    page = ALL_KINDS[name].page(images[1][:144, :192], TILE)
    for number, data in enumerate(page.tiles[1:], 1):
        changed = bytearray(data)
        for _ in range(random.integers(1, 4)):
            place = int(random.integers(min(len(data), 700) if random.random() < 0.6 else len(data)))
            changed[place : place + int(random.integers(2))] = random.bytes(int(random.integers(2)))
        page.tiles[number] = bytes(changed)
    pages = aperio([page], strips(images[2])) if name in APERIO_KINDS else [page]
    with Pair(write(folder / "changed.tiff", pages), reader="auto") as both:
        both.check_tiles()


OTHER_STREAMS: dict[str, Callable[[UInt8Array], bytes]] = {
    "transposed": lambda tile: files.jpeg()(np.ascontiguousarray(tile.transpose(1, 0, 2))),
    "smaller": lambda tile: files.jpeg()(np.ascontiguousarray(tile[:16, :16])),
    "larger": lambda tile: files.jpeg()(np.ascontiguousarray(np.tile(tile, (2, 2, 1)))),
    "grey": lambda tile: files.grey_jpeg(tile[..., 0]),
    "rgb": files.rgb_jpeg,
    "adobe's marker among the tables": lambda tile: _late_adobe(files.jpeg()(tile)),
    "progressive": lambda tile: imagecodecs.mozjpeg_encode(tile, 80) if imagecodecs.MOZJPEG.available else b"",
    "padded markers": lambda tile: files.jpeg()(tile).replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
    "a strange jfif": lambda tile: files.jpeg()(tile).replace(b"JFIF\0\1", b"JFIF\0\7"),
    "a strange adobe": lambda tile: files.rgb_jpeg(tile).replace(b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\7"),
    "a remark": lambda tile: files.jpeg()(tile).replace(b"\xff\xdb", b"\xff\xfe\0\6text\xff\xdb", 1),
    "without its start": lambda tile: files.jpeg()(tile)[2:],
    "of 4:1:1": files.jpeg("411"),
    "a huge one": lambda tile: _resized(files.jpeg()(tile), 65000, 65000),
    "a png": imagecodecs.png_encode,
}


def _late_adobe(stream: bytes) -> bytes:
    (_, first), *others = files.segments(stream)
    assert first[4:8] == b"JFIF"
    table = others[0][1]
    return stream[:2] + first + table + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0" + b"".join(part for _, part in others[1:])


def _resized(stream: bytes, width: int, height: int) -> bytes:
    place = stream.index(b"\xff\xc0") + 5
    return stream[:place] + struct.pack(">HH", height, width) + stream[place + 4 :]


@pytest.mark.parametrize("photometric", [files.YCBCR, files.RGB], ids=["ycbcr", "rgb"])
@pytest.mark.parametrize("tables", [True, False], ids=["tables apart", "own tables"])
@pytest.mark.parametrize("other", OTHER_STREAMS)
def test_a_jpeg_stream_unlike_the_others_is_as_openslide_has_it(folder, images, other, tables, photometric):
    page = Kind(files.jpeg(), files.JPEG, photometric, tables=tables).page(images[1], TILE)
    tiles = list(files.cut_tiles(images[1], TILE))
    page.tiles[5] = OTHER_STREAMS[other](tiles[5])
    with Pair(write(folder / "other.tiff", [page])) as both:
        both.check_tiles()


@pytest.mark.parametrize("compression", [files.APERIO_YCBCR, files.APERIO_RGB], ids=str)
@pytest.mark.parametrize("other", ["transposed", "smaller", "in a file", "jpeg", "grey", "16 bits", "quarter", "huge"])
def test_a_jpeg_2000_stream_unlike_the_others_is_as_openslide_has_it(folder, images, other, compression):
    def encode(tile: UInt8Array, kind: str = "j2k") -> bytes:
        return bytes(imagecodecs.jpeg2k_encode(np.ascontiguousarray(tile), 35, codecformat=kind, mct=False))

    page = Kind(files.jpeg2000, compression).page(images[1], TILE)
    tile = [*files.cut_tiles(images[1], TILE)][5]
    stream = page.tiles[5]
    page.tiles[5] = {
        "transposed": lambda: encode(tile.transpose(1, 0, 2)),
        "smaller": lambda: encode(tile[:16]),
        "in a file": lambda: encode(tile, "jp2"),
        "jpeg": lambda: files.jpeg()(tile),
        "grey": lambda: encode(tile[..., 0]),
        "16 bits": lambda: encode(tile.astype(np.uint16) * 3),
        "quarter": lambda: files.jpeg2000_planes([tile[..., 0].copy(), *(tile[:, ::4, c].copy() for c in (1, 2))]),
        "huge": lambda: stream[:8] + struct.pack(">II", 1 << 17, 1 << 17) + stream[16:],
    }[other]()
    with Pair(write(folder / "other.svs", aperio([page], strips(images[2])))) as both:
        both.check_tiles()


@pytest.mark.parametrize(
    "wrong",
    [(None, 0xFFFF_FFF0), (0xFFFF_FFF0, None), (0, None), (None, 10), (8, 5000), (None, 5_000_000)],
    ids=["a huge size", "a far offset", "offset 0", "a small size", "another offset", "beyond the end"],
)
@pytest.mark.parametrize("kind", ["jpeg 4:2:0", "jpeg grey", "none", "zstd", "none, colours apart"])
def test_tiles_that_lie_elsewhere_are_as_openslide_has_them(folder, images, kind, wrong):
    page, small = pyramid(KINDS[kind], [images[0], images[2]], TILE)
    page.wrong[8] = wrong
    with Pair(write(folder / "elsewhere.tiff", [page, small])) as both:
        both.check_tiles()


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.compression != files.JPEG])
@pytest.mark.parametrize("rows", [TILE[1] - 1, TILE[1] + 1, 2 * TILE[1], 1])
def test_tiles_of_more_or_fewer_rows_are_as_openslide_has_them(folder, images, name, rows):
    kind = KINDS[name]
    page = kind.page(images[1], TILE)
    tile = np.resize([*files.cut_tiles(images[1], TILE)][5], (rows, TILE[0], 3))
    page.tiles[5] = kind.encode(tile[..., 0].copy() if kind.apart or kind.samples == 1 else tile)
    with Pair(write(folder / "rows.tiff", [page])) as both:
        both.check_tiles()


def test_what_a_file_cannot_hold_is_not_asked_of_memory(tmp_path, images):
    (page,) = pyramid(KINDS["jpeg 4:2:0"], images[:1], TILE)
    page.wrong[8] = (None, 0xFFFF_FFF0)
    path = write(tmp_path / "huge.tiff", [page])
    with open_slide(path, "tiff") as reader:
        tracemalloc.start()
        with pytest.raises(RegionError):
            reader.read_region(0, 64, 48, *TILE)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 1 << 20


@pytest.mark.parametrize("kind", ["jpeg 4:2:0", "zstd"])
def test_nor_is_a_size_that_no_tile_has(tmp_path, images, kind):
    (page,) = pyramid(KINDS[kind], images[:1], TILE)
    page.wrong[8] = (None, 30_000_000)
    path = write(tmp_path / "huge.tiff", [page])
    os.truncate(path, 40_000_000)
    tracemalloc.start()
    with Pair(path) as both:
        both.check(0, 64, 48, *TILE)  # whatever OpenSlide makes of it
        both.check(0, 128, 48, *TILE)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20_000_000


def test_a_file_that_is_cut_while_it_is_open_fails_where_it_was_cut(tmp_path, images):
    path = write(tmp_path / "cut.tiff", pyramid(KINDS["zstd"], images[:1], TILE))
    with open_slide(path, "tiff") as reader:
        os.truncate(path, path.stat().st_size // 2)
        np.testing.assert_array_equal(reader.read_region(0, 0, 0, *TILE), images[0][: TILE[1], : TILE[0]], strict=True)
        with pytest.raises(SlideError):
            reader.read_region(0, 330, 250, *TILE)


def test_a_file_that_is_replaced_while_it_is_open_is_read_as_it_was(tmp_path, images):
    path = write(tmp_path / "slide.tiff", pyramid(KINDS["zstd"], images[:1], TILE))
    with open_slide(path, "tiff") as reader:
        other = write(tmp_path / "other.tiff", pyramid(KINDS["zstd"], [tissue(SIZES[0], seed=9)], TILE))
        other.replace(path)
        np.testing.assert_array_equal(reader.read_region(0, 0, 0, *SIZES[0]), images[0], strict=True)


# regions


@pytest.mark.parametrize("level", [0, 1])
def test_regions_far_outside_are_background(bundled, tmp_path, images, level):
    path = write(tmp_path / "slide.tiff", pyramid(KINDS["zstd"], images, TILE))
    with open_slide(path, "tiff", MAUVE) as reader:
        for x, y in ((-(10**9), 0), (0, 10**12), (10**15, 10**15), (-(10**15), -(10**15))):
            assert np.all(reader.read_region(level, x, y, 20, 10) == MAUVE)
        assert reader.tiles_read().decoded == 0


def test_regions_beyond_the_edge_within_the_last_tiles_are_background(tmp_path, images):
    with Pair(write(tmp_path / "slide.tiff", pyramid(KINDS["zstd"], images, TILE)), MAUVE) as both:
        for level, (width, height) in enumerate(SIZES):
            for region in ((width, 0, 5, 5), (width + 3, -2, 1, 9), (0, height + 1, 4, 1), (width + 1, height + 1, 2, 2)):
                both.check(level, *region)


@pytest.mark.parametrize("shape", [(0, 0), (0, 10), (10, 0)], ids=str)
def test_regions_without_pixels_read_nothing(shared_slides, shape):
    name, x, y = "damaged/CMU-1-badtile67.svs", 1700, 1500
    with open_slide(shared_slides / name, "tiff") as reader:
        assert reader.read_region(0, x, y, shape[1], shape[0]).shape == (*shape, 3)
        reader.read_parts(0, [])
        assert reader.tiles_read() == (0, bytes(len(reader.tiles_read().seen)), 0.0)


def test_no_parts_are_read_by_any_reader(bundled):
    for name in ("tiff", "openslide"):
        with open_slide(bundled, name) as reader:
            reader.read_parts(0, [])


@settings(max_examples=40)
@given(st.data())
def test_parts_are_read_together_whatever_is_ones_own(data):
    with open_slide(BUNDLED, "tiff", MAUVE) as reader:
        image = noise_image(reader)
        boxes = data.draw(
            st.lists(st.tuples(*[st.integers(-100, 700)] * 2, *[st.integers(1, 500)] * 2), min_size=1, max_size=4)
        )
        left, top = data.draw(st.tuples(*[st.integers(-10, 600)] * 2))
        own = data.draw(st.sampled_from([None, (left, top, left + 500, top + 500), (0, 0, 10**6, 10**6), (0, 0, 0, 0)]))
        parts = []
        for x, y, width, height in boxes:
            wide = np.zeros((height, width + 7, 3), np.uint8)
            parts.append((x, y, wide[:, :width] if data.draw(st.booleans()) else np.zeros((height, width, 3), np.uint8)))
        reader.read_parts(0, parts, own)
        for (_, _, out), box in zip(parts, boxes, strict=True):
            np.testing.assert_array_equal(out, cut(image, box, MAUVE))


def whole_tiles(level: TiffLevel) -> list[Part]:
    """All tiles that do not reach beyond their level, as windows, in the order of their bytes."""
    (width, height), (tile_w, tile_h) = level.extent, level.tile
    places = [(x, y) for y in range(0, height - tile_h + 1, tile_h) for x in range(0, width - tile_w + 1, tile_w)]
    return [(x, y, np.zeros((tile_h, tile_w, 3), np.uint8)) for x, y in places]


@pytest.mark.parametrize(
    ("kind", "tile"),
    [
        *((kind, TILE) for kind in KINDS),
        *((kind, (16, 16)) for kind in KINDS if "jpeg" in kind),  # such tiles have fewer bytes than their tables
    ],
    ids=str,
)
def test_windows_that_are_tiles_are_what_is_pasted_elsewhere(tmp_path, images, kind, tile):
    path = write(tmp_path / "slide.tiff", pyramid(KINDS[kind], images[:1], tile))
    with open_slide(path, "tiff") as reader:
        level = reader.read_region(0, 0, 0, *reader.info.dimensions)
        parts = whole_tiles(reader.levels[0])
        reader.read_parts(0, parts)
        for x, y, out in parts:
            np.testing.assert_array_equal(out, level[y : y + tile[1], x : x + tile[0]])


def test_tiles_of_different_tables_are_decoded_one_after_the_other(tmp_path, images):
    fine, coarse = (Kind(files.jpeg(quality=quality), files.JPEG, files.YCBCR).page(images[0], TILE) for quality in (95, 20))
    fine.tiles[1::3] = coarse.tiles[1::3]
    with open_slide(write(tmp_path / "slide.tiff", [fine]), "tiff") as reader:
        level = reader.read_region(0, 0, 0, *reader.info.dimensions)
        parts = whole_tiles(reader.levels[0])
        reader.read_parts(0, parts)
        for x, y, out in parts:
            np.testing.assert_array_equal(out, level[y : y + TILE[1], x : x + TILE[0]])


@pytest.mark.parametrize("room", [0, 100, ROOM_BYTES])
def test_a_stream_is_given_tables_whatever_room_is_before_it(tmp_path, images, room):
    path = write(tmp_path / "slide.tiff", pyramid(KINDS["jpeg 4:2:0, tables apart"], images[:1], TILE))
    with open_slide(path, "tiff") as reader:
        (level,), expected = reader.levels, reader.read_region(0, 0, 0, *TILE)
        offset, size = int(level.offsets[0, 0, 0]), int(level.sizes[0, 0, 0])
        data = path.read_bytes()[offset : offset + size]
        buffer, out = bytearray(room) + data + b"another's", np.zeros_like(expected)
        level.decoder.decode_within(buffer, room, room + size, out)
    np.testing.assert_array_equal(out, expected)
    assert buffer.endswith(data[-100:] + b"another's")


_images: list[UInt8Array] = []


def noise_image(reader: SlideReader) -> UInt8Array:
    """The bundled slide, once."""
    if not _images:
        _images.append(whole(BUNDLED)[0])
    return _images[0]


def test_tiles_are_counted(tmp_path, images):
    path = write(tmp_path / "slide.tiff", [lacking(page, (0, 1)) for page in pyramid(KINDS["zstd"], images, TILE)])
    with open_slide(path, "tiff") as reader:
        assert reader.tiles_read() == (0, bytes(9), 0.0)  # 49, 16 and 4 tiles
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: reader.read_region(0, 0, 0, 128, 96), range(50)))
        decoded, seen, _ = reader.tiles_read()
    assert decoded == 50 * 3
    assert np.flatnonzero(np.unpackbits(np.frombuffer(seen, np.uint8))).tolist() == [0, 7, 8]  # not the one without data


@pytest.mark.parametrize("boxes", [[(64, 48), (64, 48)], [(64, 48), (100, 50), (0, 48)]], ids=str)
def test_what_parts_share_is_decoded_once(tmp_path, images, boxes):
    with open_slide(write(tmp_path / "slide.tiff", pyramid(KINDS["zstd"], images, TILE)), "tiff") as reader:
        parts = [(x, y, np.zeros((TILE[1], TILE[0], 3), np.uint8)) for x, y in boxes]
        reader.read_parts(0, parts)
        decoded, seen, _ = reader.tiles_read()
        for x, y, out in parts:
            np.testing.assert_array_equal(out, images[0][y : y + TILE[1], x : x + TILE[0]])
    assert decoded == np.unpackbits(np.frombuffer(seen, np.uint8)).sum()


def test_no_descriptor_is_left(tmp_path, images):
    path = write(tmp_path / "slide.tiff", pyramid(KINDS["jpeg 4:2:0"], images, TILE))
    damaged = write(tmp_path / "grey16.tiff", [replace(KINDS["none"].page(images[0], TILE), photometric=files.YCBCR)])

    def count() -> int:
        total = 0
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the listing's own
                total += os.readlink(f"/proc/self/fd/{name}").startswith(str(tmp_path))
        return total

    with ExitStack() as stack:
        readers = [stack.enter_context(open_slide(it, "auto")) for it in (path, damaged) for _ in range(3)]
        readers[0].read_region(0, 0, 0, 100, 100)
        assert count() <= len(readers)
    assert count() == 0


# what is left to OpenSlide


def _left_to_openslide(images: Sequence[UInt8Array]) -> dict[str, tuple[Page, str]]:
    image = images[0]
    raw, grey = KINDS["none"].page(image, TILE), KINDS["grey"].page(image, TILE)
    rgba = np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], axis=2)
    four = [tile.tobytes() for tile in files.cut_tiles(rgba, TILE)]
    deep = [(tile.astype(np.uint16) * 257).tobytes() for tile in files.cut_tiles(image, TILE)]
    colours = ("H", [value * 257 for value in (*range(256), *range(255, -1, -1), *range(256))])
    return {
        "16 bits": (replace(raw, tiles=deep, bits=16), "16-bit samples"),
        "alpha": (replace(raw, tiles=four, samples=4, tags={338: ("H", [2])}), "4 samples per pixel"),
        "cmyk": (replace(raw, tiles=four, samples=4, photometric=files.CMYK), "4 samples per pixel"),
        "palette": (replace(grey, photometric=files.PALETTE, tags={320: colours}), "PALETTE"),
        "white is 0": (replace(grey, photometric=files.WHITE_IS_0), "MINISWHITE"),
        "jpeg, colours apart": (
            Kind(files.grey_jpeg, files.JPEG, files.RGB, apart=True).page(image, TILE),
            "each colour apart",
        ),
        "turned": (replace(raw, tags={274: ("H", [3])}), "differ from OpenSlide's"),
    }


@pytest.mark.parametrize("name", ["16 bits", "alpha", "cmyk", "palette", "white is 0", "jpeg, colours apart", "turned"])
def test_what_is_not_decoded_directly_is_left_to_openslide_with_a_reason(tmp_path, images, name):
    page, reason = _left_to_openslide(images)[name]
    path = write(tmp_path / "left.tiff", [page])
    with Pair(path, reader="auto") as both:
        assert both.direct.info.reader == "openslide"
        assert both.direct.info.reader_reason is not None and reason in both.direct.info.reader_reason
        both.check_levels()
    with pytest.raises(SlideError, match=r"left\.tiff: its tiles are not decoded directly: "):
        open_slide(path, "tiff")


def test_what_tifffile_finds_odd_is_not_printed(tmp_path, images):
    (page,) = pyramid(KINDS["zstd"], images[:1], TILE)
    path = write(tmp_path / "odd.tiff", [replace(page, tags={42113: ("s", b"no number\0")})])
    code = "import sys; from streamwsi.slides import open_slide; open_slide(sys.argv[1], 'tiff').close()"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_a_slide_of_a_hundred_thousand_tiles_opens_at_once(tmp_path):
    kind = KINDS["jpeg 4:2:0"]
    extent = 100_000
    tile = kind.page(tissue((256, 256)), (256, 256)).tiles[0]
    across = -(-extent // 256)
    tiles = [b""] * across**2
    tiles[0] = tiles[across * 200 + 77] = tile
    page = Page((extent, extent), (256, 256), tiles, files.JPEG, files.YCBCR, tags={530: ("H", [2, 2])})
    path = write(tmp_path / "large.tiff", [page], big=True)
    with open_slide(path, "tiff") as reader:
        assert isinstance(reader, TiffReader)
        pixels = reader.read_region(0, 77 * 256 - 10, 200 * 256 - 10, 276, 276)
    assert np.all(pixels[:10] == WHITE) and pixels[10:-10, 10:-10].std() > 10


def test_noise_is_read_to_the_last_bit(tmp_path):
    levels = noise_levels([(4001, 601), (2000, 300)])
    with open_slide(write_tiff(tmp_path / "noise.tiff", levels), "tiff") as reader:
        region: Region = (600, 10, 1000, 290)
        np.testing.assert_array_equal(reader.read_region(1, *region), cut(levels[1], region, WHITE), strict=True)
