"""What every reader of slides does, and how one is chosen.

In: a path.  Out: a SlideReader.  Readers give the level's own pixels; nothing here knows of windows or chunks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol

import msgspec

from streamwsi.addresses import is_array
from streamwsi.chunks import UInt8Array
from streamwsi.dataset import SlideInfo
from streamwsi.errors import ConfigError, SlideError
from streamwsi.slides.tile_cache import TileCache

READERS = ("auto", "openslide", "tiff", "array")
"""Names that :func:`open_slide` knows."""
_log = logging.getLogger(__name__)

Part = tuple[int, int, UInt8Array]
"""(x, y, out): a region of a level, in its pixels, and where its pixels go: (height, width, 3) uint8, of any strides whose last
two axes are contiguous."""
Rectangle = tuple[int, int, int, int]
"""(left, top, right, bottom), in pixels of a level."""


class TilesRead(NamedTuple):
    """What a reader has decoded so far."""

    decoded: int
    """Tiles, counted as often as they were decoded."""
    seen: bytes
    """A bit for each tile of each level: whether it was ever decoded; tiles without data never are."""
    shifted_px: float = 0.0
    """Largest shift, in pixels of its level, of a tile that could only be had resampled; 0: there was none."""


class SlideReader(Protocol):
    """An open slide. Reads may come from several threads at once. Closing twice is harmless."""

    @property
    def info(self) -> SlideInfo:
        """What the reader says of the slide."""
        ...

    def read_region(self, level: int, x: int, y: int, width: int, height: int) -> UInt8Array:
        """The level's own pixels: exactly ``level_image[y:y+height, x:x+width]``.

        Parameters
        ----------
        level
            0 is the finest.
        x, y, width, height
            In pixels of the level; may reach outside it, where pixels are the background colour.

        Returns
        -------
        (height, width, 3) uint8, RGB, writable; transparent pixels are composed over the background colour.

        Raises
        ------
        SlideError
            The slide has no such level.
        RegionError
            The region cannot be read, on a fresh handle too. Other regions still can: the reader reopens what it must.
        """
        ...

    def read_into(self, level: int, x: int, y: int, out: UInt8Array) -> None:
        """As `read_region`, into an array that is there already: no copy in between.

        Parameters
        ----------
        level, x, y
            As for `read_region`.
        out
            (height, width, 3) uint8, RGB; its last two axes contiguous, its rows anywhere. All of it is written, the
            background too.

        Raises
        ------
        SlideError, RegionError
            As `read_region`. What `out` then holds is undefined.
        """
        ...

    def read_parts(self, level: int, parts: Sequence[Part], own: Rectangle | None = None) -> None:
        """Several regions of `level` at once, the `parts`, each as :meth:`read_into`; what they share is decoded once.

        `own` is what nobody will read again: what lies beyond it is worth keeping for whoever reads next to it.
        """
        ...

    def tiles_read(self) -> TilesRead | None:
        """How many tiles were decoded, and which; None where that is not known."""
        ...

    def resampled_px(self, level: int) -> float:
        """Largest shift, in pixels of the level, of what `read_region` gives against the level read whole; 0: exact."""
        ...

    def thumbnail(self, longest_px: int) -> UInt8Array:
        """(height, width, 3) uint8, RGB: the whole slide, its longer side `longest_px` pixels or its own, if smaller."""
        ...

    def close(self) -> None:
        """Release handles and memory."""
        ...

    def __enter__(self) -> SlideReader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_slide(
    path: str | os.PathLike[str],
    reader: str = "auto",
    background: tuple[int, int, int] = (255, 255, 255),
    cache: TileCache | None = None,
) -> SlideReader:
    """Open the slide at `path` with the reader called `reader`.

    ``auto`` decodes tiles directly where the slide is made of them and the pixels are proven to be OpenSlide's, and leaves
    every other slide to OpenSlide; ``info.reader_reason`` says why. Arrays are read as such: folders of Zarr and OME-Zarr, and
    ``.npy``, ``.h5`` and ``.hdf5`` files, see :meth:`streamwsi.Slide.of_array`. `cache` keeps tiles that are needed again.
    `background` is the colour, (R, G, B), of what lies outside the slide and where it has no data.

    Raises SlideError when the slide is missing or cannot be opened (or, with ``"tiff"``, not by decoding tiles), ConfigError
    for an unknown reader.
    """
    if reader not in READERS:
        raise ConfigError(f"reader must be one of {', '.join(READERS)}, got {reader!r}")
    if reader == "array" or (reader == "auto" and is_array(path)):
        from streamwsi.slides.array import ArrayReader

        return ArrayReader(path, background, cache)
    from streamwsi.slides.openslide import OpenSlideReader

    through = OpenSlideReader(path, background)
    if reader == "openslide":
        return through
    from streamwsi.slides.proof import DifferingError, prove
    from streamwsi.slides.tiff import TiffReader
    from streamwsi.slides.tile_codecs import UnfitError

    try:
        direct = TiffReader(through, cache)
        prove(direct)
        return direct
    except (UnfitError, DifferingError) as error:
        reason = f"its tiles are not decoded directly: {error}"
        if reader == "tiff":
            through.close()
            raise SlideError(f"{os.fspath(path)}: {reason}") from error
        _log.log(logging.WARNING if isinstance(error, DifferingError) else logging.INFO, "%s: %s", os.fspath(path), reason)
    through.info = msgspec.structs.replace(through.info, reader_reason=reason)
    return through


def fill(pixels: UInt8Array, background: tuple[int, int, int]) -> None:
    """Make all of `pixels`, (height, width, 3) uint8, the background colour."""
    for channel, value in enumerate(background):  # a fifth of the time that all channels at once take
        pixels[..., channel] = value
