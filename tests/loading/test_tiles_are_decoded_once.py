"""Reading all chunks of a slide in order decodes each tile once, or hardly more often."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from streamwsi.chunks import UInt8Array
from streamwsi.loading.read import read_chunk
from streamwsi.memory import BEGIN, CACHE_LINE
from streamwsi.sampling.sampler import Places, Sampler
from streamwsi.sampling.scene import Scene
from streamwsi.slides import open_slide
from streamwsi.slides.tiff import TiffReader
from streamwsi.slides.tile_cache import TileCache
from streamwsi.slides.tile_codecs import CopyingDecoder
from tests.loading.test_read_parity import resolve
from tests.slides.tiff_files import DEFLATE, KINDS, Page, write

MOST = 1.05
"""Decodes for each tile that is read at all."""


def blank_slide(path: Path, extent: tuple[int, int], tile: int) -> Path:
    """A level all of whose tiles are one white tile, stored once."""
    white = KINDS["deflate"].encode(np.full((tile, tile, 3), 255, np.uint8))
    count = -(-extent[0] // tile) * -(-extent[1] // tile)
    elsewhere = {number: (8, len(white)) for number in range(1, count)}
    return write(path, [Page(extent, (tile, tile), [white, *[b" "] * (count - 1)], DEFLATE, wrong=elsewhere)])


def decode_nothing(_: Sequence[bytes], __: UInt8Array) -> None:
    pass


def decodes_per_tile(path: Path, kernel: int, stride: int) -> float:
    with open_slide(path, "tiff") as reader:
        assert isinstance(reader, TiffReader)
        reader.levels = [replace(level, decoder=CopyingDecoder(decode_nothing)) for level in reader.levels]  # only counted here
        resolved = resolve(reader, path, kernel=kernel, stride=stride)
        with ThreadPoolExecutor(2) as threads:
            for _ in threads.map(partial(read_size, reader, resolved), range(len(resolved.chunks()))):
                pass
        decoded, seen, _ = reader.tiles_read()
    return decoded / int(np.unpackbits(np.frombuffer(seen, np.uint8)).sum())


@pytest.mark.parametrize(("kernel", "stride"), [(256, 128), (512, 256), (300, 200)])
def test_no_tile_is_kept_that_all_chunks_have_had(tmp_path, kernel, stride):
    cache = TileCache(192 << 20)
    with open_slide(blank_slide(tmp_path / "slide.tiff", (9000, 6000), 256), "tiff", cache=cache) as reader:
        resolved = resolve(reader, tmp_path / "slide.tiff", kernel=kernel, stride=stride)
        held = [(read_size(reader, resolved, number), cache.held_bytes)[1] for number in range(len(resolved.chunks()))]
    assert held[-1] == 0 < max(held)


@pytest.mark.parametrize(("kernel", "stride"), [(256, 256), (256, 128), (300, 200)])
def test_tiles_are_decoded_where_libjpeg_turbo_does_not_pass_the_caches_by(tmp_path, kernel, stride):
    begins = set()

    def decode(_: Sequence[bytes], out: UInt8Array) -> None:
        begins.add(out.__array_interface__["data"][0] % CACHE_LINE)

    with open_slide(blank_slide(tmp_path / "slide.tiff", (5000, 4000), 256), "tiff") as reader:
        reader.levels = [replace(level, decoder=CopyingDecoder(decode)) for level in reader.levels]
        resolved = resolve(reader, tmp_path / "slide.tiff", kernel=kernel, stride=stride)
        for number in range(len(resolved.chunks())):
            read_chunk(reader, resolved, number)
    assert begins == {BEGIN}


def read_size(reader, resolved, number: int) -> int:
    return read_chunk(reader, resolved, number).pixels.nbytes


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [(256, 256), (240, 240), (256, 128), (256, 64), (512, 512), (512, 128), (224, 224), (300, 200), (1024, 700)],
)
@pytest.mark.parametrize("tile", [240, 256, 512])
def test_each_tile_is_decoded_once(tmp_path, tile, kernel, stride):
    path = blank_slide(tmp_path / "slide.tiff", (9000, 6000), tile)
    assert decodes_per_tile(path, kernel, stride) <= MOST


@pytest.mark.parametrize(("tile", "kernel", "stride"), [(240, 256, 256), (256, 256, 128), (512, 300, 200)])
def test_each_tile_of_a_wide_level_is_decoded_once(tmp_path, tile, kernel, stride):
    path = blank_slide(tmp_path / "wide.tiff", (120_000, 3000), tile)
    assert decodes_per_tile(path, kernel, stride) <= MOST


class Checkered(Sampler):
    """Every other window of a grid, as many as there are whole."""

    def __init__(self, side: int, first: int = 0) -> None:
        self.side, self.first = side, first

    def places(self, scene: Scene) -> Places:
        width, height = scene.extent
        xs, ys = (range(self.first, extent - self.side + 1, self.side) for extent in (width, height))
        start = [(x, y) for row, y in enumerate(ys) for column, x in enumerate(xs) if (row + column) % 2]
        return Places(np.array(start, np.int64), stride=(self.side, self.side))


@pytest.mark.parametrize(("kernel", "first", "kept"), [(256, 0, False), (512, 0, False), (256, 16, True), (300, 0, True)])
def test_tiles_of_sampled_windows_are_decoded_once_and_kept_only_where_others_may_need_them(tmp_path, kernel, first, kept):
    path = blank_slide(tmp_path / "slide.tiff", (6000, 5000), 256)
    cache = TileCache(1 << 30)
    with open_slide(path, "tiff", cache=cache) as reader:
        assert isinstance(reader, TiffReader)
        resolved = resolve(reader, path, kernel=kernel, sampler=Checkered(kernel, first))
        chunks = [read_chunk(reader, resolved.for_chunk(number), number) for number in range(len(resolved.chunks()))]
        assert all((chunk.pixels == 255).all() for chunk in chunks)
        decoded, seen, _ = reader.tiles_read()
        assert decoded <= MOST * int(np.unpackbits(np.frombuffer(seen, np.uint8)).sum())
        assert (cache.held_bytes > 0) == kept
