"""A picture of where windows lie.

In: a sampler, a slide.  Out: the slide's thumbnail with the windows, the region and its outline on it.  Reads the thumbnail,
and what the region needs.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from streamwsi.chunks import UInt8Array
from streamwsi.config import at_least, positive_pair
from streamwsi.dataset import Dataset, Slide
from streamwsi.errors import ConfigError
from streamwsi.regions.facts import SlideLike, opened
from streamwsi.regions.overlay import EDGE, edge_of, edge_px, picture_path, pixel_centres, veil, write_picture
from streamwsi.sampling.options import RegionSampler
from streamwsi.sampling.sampler import Places, Sampler
from streamwsi.sampling.scene import Scene

_COLOURS = ((0, 70, 255), (230, 100, 0), (0, 190, 140), (240, 228, 66), (120, 200, 255), (230, 80, 200), (150, 0, 0), (0, 0, 0))
"""RGB of labels, the first that of windows without labels: vivid, to be seen on stained tissue and on glass, and such that
people who are colour-blind can tell the first ones apart. They begin again where there are more."""
_NONE = (90, 90, 90)
"""RGB of a window that has no label where others have one."""
_LEGEND_SHARE = 1 / 50
"""Height of a line of the legend, of the picture's longer side."""
_UNNAMED = "no label"


def preview(
    sampler: Sampler,
    slide: SlideLike,
    kernel_size: int | tuple[int, int],
    level: int,
    patient_id: str | None,
    path: str | os.PathLike[str] | None,
    longest_px: int,
) -> UInt8Array:
    """See :meth:`streamwsi.sampling.sampler.Sampler.preview`."""
    kernel = positive_pair(kernel_size, "kernel_size")
    with opened(slide) as reader:
        info = reader.info
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < info.level_count:
            raise ConfigError(f"the slide has no level {level!r}: it has levels 0 to {info.level_count - 1}")
        given, owner = _named(slide)
        scene = Scene(
            Slide(given.path, given.id, info),
            patient_id or owner,
            info.level_dimensions[level],
            info.level_downsamples[level],
            kernel,
            reader,
        )
        return picture_of(sampler, scene, path, longest_px)


def picture_of(
    sampler: Sampler, scene: Scene, path: str | os.PathLike[str] | None = None, longest_px: int = 1600
) -> UInt8Array:
    """The same for a scene, whose `reader` must be there. Raises as the sampler's ``places``."""
    at_least(longest_px, 16, "longest_px")
    target = picture_path(path)
    if scene.reader is None:
        raise ConfigError("a picture needs the open slide: Scene(…, reader=…)")
    places = sampler.places(scene)
    picture = scene.reader.thumbnail(longest_px)
    if isinstance(sampler, RegionSampler):
        picture = _with_region(picture, sampler, scene)
    drawn = _with_windows(picture, places, scene)
    if places.names:
        drawn = _with_legend(drawn, places)
    whole = np.array(drawn)
    if target is not None:
        write_picture(whole, target)
    return whole


def _named(slide: SlideLike) -> tuple[Slide, str]:
    """The slide as a dataset calls it, and whose it is."""
    if isinstance(slide, Slide):
        return slide, slide.id
    path = slide if isinstance(slide, (str, os.PathLike)) else getattr(slide, "path", None)
    if path is None:
        raise ConfigError("the slide does not say its path: give it as a path or a Slide")
    (patient,) = Dataset.from_paths([path])
    return patient.slides[0], patient.id


def _with_region(picture: UInt8Array, sampler: RegionSampler, scene: Scene) -> UInt8Array:
    """What is outside greyed, and outlines: polygons as they are, of masks the edge of their pixels."""
    area = sampler.field(scene).area
    if area is None:
        return picture
    shape = (picture.shape[0], picture.shape[1])
    centres = pixel_centres(shape, scene.info.dimensions)
    inside = area.whole.contains(centres).reshape(shape)
    veil(picture, ~inside)
    rings = area.whole.rings()
    if not rings:
        picture[edge_of(inside, edge_px(picture))] = EDGE
        return picture
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for ring in rings:
        draw.line([tuple(point) for point in (ring * _scale(picture, scene)).tolist()], fill=EDGE, width=edge_px(picture))
    return np.array(image)


def _with_windows(picture: UInt8Array, places: Places, scene: Scene) -> Image.Image:
    """Windows as boxes."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    low = places.start * scene.downsample
    high = (places.start + scene.kernel) * scene.downsample
    corners = np.column_stack([low, high]) * np.tile(_scale(picture, scene), 2)
    codes = np.full(len(places), -1) if places.label is None else places.label
    for (left, top, right, bottom), code in zip(corners.round().tolist(), codes.tolist(), strict=True):
        # a window ends where the next begins: their lines are beside each other
        draw.rectangle(
            (left, top, max(right - 1, left), max(bottom - 1, top)), outline=_colour(code, places), width=edge_px(picture)
        )
    return image


def _with_legend(image: Image.Image, places: Places) -> Image.Image:
    """The labels, their colours and numbers, below the picture."""
    codes = places.label if places.label is not None else np.empty(0, np.int64)
    lines = [(code, name) for code, name in enumerate(places.names)] + ([(-1, _UNNAMED)] if (codes < 0).any() else [])
    height = max(round(max(image.size) * _LEGEND_SHARE), 12)
    font = ImageFont.load_default(height * 0.8)
    whole = Image.new("RGB", (image.width, image.height + height * (len(lines) + 1)), (255, 255, 255))
    whole.paste(image)
    draw = ImageDraw.Draw(whole)
    for row, (code, name) in enumerate(lines):
        top = image.height + height * row + height // 2
        draw.rectangle((height // 2, top + 2, height * 3 // 2, top + height - 3), fill=_colour(code, places))
        draw.text((height * 2, top), f"{name}: {int((codes == code).sum())}", fill=(0, 0, 0), font=font)
    return whole


def _colour(code: int, places: Places) -> tuple[int, int, int]:
    return _NONE if code < 0 and places.names else _COLOURS[max(code, 0) % len(_COLOURS)]


def _scale(picture: UInt8Array, scene: Scene) -> Any:
    """(x, y): pixels of the picture per level-0 pixel."""
    width, height = scene.info.dimensions
    return np.array([picture.shape[1] / width, picture.shape[0] / height])
