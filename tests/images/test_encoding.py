from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamwsi.errors import ConfigError, PieceError
from streamwsi.images.comments import with_comment
from streamwsi.images.encoding import FORMATS, ImageEncoding, ImageFormat
from tests.helpers import BUNDLED, level_image

TISSUE = level_image(BUNDLED, 0)[1000:1256, 720:976]
PIL_NAMES = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 5))
def test_a_png_gives_every_pixel_back(height: int, width: int, grey: bool, seed: int) -> None:
    shape = (height, width) if grey else (height, width, 3)
    image = np.random.default_rng(seed).integers(0, 256 >> seed, shape, np.uint8)
    found = decoded(ImageEncoding("png").encoded(image))
    assert found.mode == ("L" if grey else "RGB")
    np.testing.assert_array_equal(np.asarray(found), image)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_lossy_formats_come_close_and_closer_with_quality(format: ImageFormat) -> None:
    off, sizes = [], []
    for quality in (30, None, 100):
        data = ImageEncoding(format, quality).encoded(TISSUE)
        off.append(np.abs(np.asarray(decoded(data)).astype(int) - TISSUE).mean())
        sizes.append(len(data))
    assert off[0] > off[1] > off[2] and off[1] < 6 and sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("format", FORMATS)
def test_images_are_of_the_format_and_the_same_each_time(format: ImageFormat) -> None:
    encoding = ImageEncoding(format)
    data = encoding.encoded(TISSUE)
    assert decoded(data).format == PIL_NAMES[format] and encoding.is_begun_by(data)
    assert encoding.encoded(TISSUE.copy()) == data == encoding.encoded(np.asfortranarray(TISSUE))
    assert [other for other in FORMATS if ImageEncoding(other).is_begun_by(data)] == [format]
    grey = decoded(encoding.encoded(TISSUE[..., 0]))
    assert np.abs(np.asarray(grey.convert("L")).astype(int) - TISSUE[..., 0]).mean() < 6


def test_a_png_is_hardly_larger_than_pillows() -> None:
    theirs = io.BytesIO()
    Image.fromarray(TISSUE).save(theirs, "PNG")
    assert len(ImageEncoding("png").encoded(TISSUE)) < 1.05 * len(theirs.getvalue())


@pytest.mark.parametrize(("format", "shape"), [("webp", (1, 16384, 3)), ("jpeg", (65536, 1, 3)), ("png", (0, 4, 3))])
def test_a_size_that_a_format_cannot_have_is_refused(format: ImageFormat, shape: tuple[int, ...]) -> None:
    with pytest.raises(PieceError, match=rf"{shape[1]}x{shape[0]} px cannot be a {format}"):
        ImageEncoding(format).encoded(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("format", "quality", "said"),
    [
        ("bmp", None, "'png', 'jpeg', 'webp'"),
        ("png", 90, "gives every pixel back"),
        ("jpeg", 0, "1 to 100"),
        ("webp", True, "1 to"),
    ],
)
def test_an_encoding_that_cannot_be_is_refused(format: ImageFormat, quality: int | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ImageEncoding(format, quality).check()


# ---- comments


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1))
def test_a_comment_is_read_again_and_the_pixels_stay(text: str) -> None:
    image = TISSUE[:8, :8]
    png = decoded(with_comment(ImageEncoding("png").encoded(image), "png", text))
    jpeg = decoded(with_comment(ImageEncoding("jpeg").encoded(image), "jpeg", text))
    assert png.info["Comment"] == text and jpeg.info["comment"] == text.encode()
    np.testing.assert_array_equal(np.asarray(png), image)
    np.testing.assert_array_equal(np.asarray(jpeg), np.asarray(decoded(ImageEncoding("jpeg").encoded(image))))


def test_a_comment_that_is_too_long_for_a_jpeg_is_refused_and_a_webp_has_none() -> None:
    with pytest.raises(PieceError, match="65534 bytes is too long"):
        with_comment(ImageEncoding("jpeg").encoded(TISSUE), "jpeg", "é" * 32767)
    data = ImageEncoding("webp").encoded(TISSUE)
    assert with_comment(data, "webp", "hello") == data


def test_a_comment_in_a_jpeg_without_a_jfif_header_comes_first() -> None:
    data = ImageEncoding("jpeg").encoded(TISSUE)
    assert data[2:4] == b"\xff\xe0"
    bare = data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]
    assert with_comment(bare, "jpeg", "hello")[2:4] == b"\xff\xfe"
    assert decoded(with_comment(bare, "jpeg", "hello")).info["comment"] == b"hello"
