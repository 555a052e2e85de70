"""Pixels begin where libjpeg-turbo does not write them past the caches, in memory that is theirs alone."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from streamwsi.memory import BEGIN, CACHE_LINE, block_bytes, empty_pixels, idle
from tests.writing.fabricate import resolved_slide


def place(pixels: np.ndarray) -> int:
    return int(pixels.__array_interface__["data"][0])


@given(shape=st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple))
def test_an_array_begins_where_pixels_should_and_lies_in_its_block(shape: tuple[int, ...]) -> None:
    block = np.zeros(block_bytes(shape), np.uint8)
    pixels = empty_pixels(shape, block)
    assert pixels.shape == shape and pixels.flags.c_contiguous and place(pixels) % CACHE_LINE == BEGIN
    pixels[...] = 1
    assert block.sum() == pixels.size and pixels.base is block
    assert place(empty_pixels(shape)) % CACHE_LINE == BEGIN


def test_a_block_that_is_a_view_is_refused() -> None:
    with pytest.raises(ValueError, match="a view of other memory"):
        empty_pixels((2, 3), np.zeros(200, np.uint8)[: block_bytes((2, 3))])


@pytest.mark.parametrize("register_bytes", [16, 32])
@pytest.mark.parametrize("tile_px", range(16, 1025, 16))
def test_no_row_of_a_tile_begins_at_a_multiple_of_a_register(tile_px: int, register_bytes: int) -> None:
    assert all((BEGIN + row * tile_px * 3) % register_bytes for row in range(tile_px))


def test_so_do_the_pixels_of_a_chunk() -> None:
    assert place(resolved_slide().blank_chunk(0).pixels) % CACHE_LINE == BEGIN


def test_a_block_is_idle_once_no_view_into_it_is_held() -> None:
    blocks = [np.empty(block_bytes((4, 5, 3)), np.uint8) for _ in range(3)]
    held = empty_pixels((4, 5, 3), blocks[1])[2:]
    assert idle(blocks) == [True, False, True]
    del held
    assert idle(blocks) == [True, True, True]
