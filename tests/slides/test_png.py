"""Label images and masks in PNG have the values that are stored, whatever a reader of pictures makes of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import streamwsi as sw
from streamwsi.slides.png import stored_values
from tests.regions.test_mask_files import SLIDE, TABLE


def png(path: Path, values: np.ndarray, depth: int, colour_type: int = 0) -> Path:
    """A PNG written by hand: values of so many bits, (rows, columns) or (rows, columns, channels), big-endian and packed."""
    rows = []
    for row in values.reshape(len(values), -1).tolist():
        bits = "".join(format(value, f"0{depth}b") for value in row)
        rows.append(b"\0" + int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big"))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], len(values), depth, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_values_are_those_that_are_stored(tmp_path: Path, depth: int) -> None:
    values = np.random.default_rng(depth).integers(0, 1 << depth, (5, 7))
    with Image.open(png(tmp_path / "m.png", values, depth)) as picture:
        found = stored_values(tmp_path / "m.png", np.asarray(picture))
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_a_mask_is_where_its_value_is(tmp_path: Path, depth: int) -> None:
    path = png(tmp_path / "m.png", np.where(TABLE, 3, 1), depth)
    np.testing.assert_array_equal(sw.read_mask(path, slide=SLIDE, inside=[3]).array, TABLE)


def test_labels_that_are_paired_are_those_that_are_stored(tmp_path: Path, bundled: Path) -> None:
    path = png(tmp_path / "labels.png", np.full((2967, 2220), 2), 4)
    loader = sw.SlidingWindowLoader(sw.Dataset.from_paths([bundled]), 1024, paired={"labels": path})
    assert {int(value) for batch in sw.stream(loader) for value in np.unique(batch.paired["labels"])} <= {0, 2}


def test_colours_of_16_bits_are_refused(tmp_path: Path, bundled: Path) -> None:
    path = png(tmp_path / "m.png", np.full((*TABLE.shape, 3), 260), 16, colour_type=2)
    with pytest.raises(sw.MaskError, match=r"m\.png cannot be read as a mask: it has colours of 16 bits"):
        sw.read_mask(path, slide=SLIDE)
    loader = sw.SlidingWindowLoader(sw.Dataset.from_paths([bundled]), 256, paired={"labels": path})
    with pytest.raises(sw.SlideError, match="colours of 16 bits"):
        next(iter(sw.stream(loader)))
