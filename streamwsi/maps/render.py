"""Pictures of one slide's map: over its thumbnail, beside it, alone, or as a TIFF for viewers.

In: a patient file, and the slide it is of.  Out: a picture.  Memory follows the picture's size, not the map's or the slide's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from streamwsi.addresses import is_zarr, split_address
from streamwsi.chunks import UInt8Array
from streamwsi.config import one_of
from streamwsi.errors import ConfigError, MapError, SlideError
from streamwsi.maps.colours import Colouring, Range, Scale
from streamwsi.maps.pieces import PieceStream, SlidePlan, refuse_images, slides_in, stream
from streamwsi.maps.pyramid import cells_at, level_sizes, write_pyramid
from streamwsi.maps.raster import Map, coarser_for, place, plan_of
from streamwsi.maps.sheet import DPI, Sheet, Words, draw
from streamwsi.microns import believable_mpp
from streamwsi.slides.reader import open_slide
from streamwsi.writing.layout import as_file_name, renamed_when_whole

View = Literal["overlay", "side-by-side", "map"]
VIEWS: tuple[View, ...] = get_args(View)
WIDTH_PX = 1600
"""Of a picture, by default."""
LEAST_WIDTH_PX = 200
_PYRAMID_WIDTH_PX = 16384
"""Of a TIFF, by default, at most: the map's cells are larger than its pixels, or nobody can tell."""
_CELLS_AT_MOST = 4096
"""Of a TIFF's map, along each axis."""
_PYRAMIDS = (".tif", ".tiff")
_JPEG_QUALITY = 92
_STRIP_ROWS = 256
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
"""Of red, green and blue. Source: ITU-R BT.709."""


def render(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    slide: str | None = None,
    channel: int | str = 0,
    *,
    view: View = "overlay",
    patient: str | None = None,
    slide_path: str | os.PathLike[str] | None = None,
    cmap: str = "viridis",
    alpha: float = 0.5,
    vmin: float | None = None,
    vmax: float | None = None,
    threshold: float | None = None,
    weights: Any = None,
    width_px: int | None = None,
    title: str | None = None,
    format: str = "png",
) -> Path:
    """Draw the map of one slide, with a colour bar, a scale bar and a title; returns the picture's path.

    Where nothing was processed, where a value is NaN, and below `threshold`, there is no colour: the tissue stays as it is, and
    the map alone is white.

    Parameters
    ----------
    path, slide, patient
        As for :func:`~streamwsi.maps.pieces.read_pieces`.
    target
        The picture, or a folder for it; its ending says the format: ``.png``, ``.jpg``, or another of matplotlib's. A ``.tif``
        or ``.tiff`` is a tiled pyramid of the colours alone, opaque, of exactly the slide's extent, for viewers such as QuPath;
        the slide is not opened for it, and `view`, `alpha` and `title` do not matter. By default
        ``<patient>[_<slide>]_<column>[_<view>].<format>`` beside `path`, with the slide where the patient has several, and
        the view where it is no overlay.
    channel
        Which of the flattened values: its number, from 0, or its column's name.
    view
        ``"overlay"``: over the slide's thumbnail; ``"side-by-side"``: the thumbnail, and the map beside it (or below, where
        the slide is wide); ``"map"``: the map alone, for which the slide is not opened.
    slide_path
        Where the slide lies now, or a folder that holds it under its old name; by default where it lay during the run.
    cmap
        Name of one of matplotlib's colour maps.
    alpha
        Opacity of an overlay, from 0 to 1. Under the map the tissue is grey, so that the colours are those of the colour bar.
    vmin, vmax
        Values at the ends of the colour bar; by default the least and the greatest that are coloured.
    threshold
        Values below it are not coloured.
    weights
        How windows that overlap are blended, as for :func:`~streamwsi.maps.raster.read_map`; by default as it does.
    width_px
        Width of the whole picture, at least 200, by default 1600; a narrow slide's picture may be narrower. Of a TIFF: of the
        slide in it, by default the slide's own, and 16384 at most.
    title
        By default the patient, and the slide where it is called otherwise.
    format
        The ending of the picture's name, where `target` does not give one.

    Raises
    ------
    ConfigError
        When an option has a value that cannot work.
    MapError
        When the pieces cannot be read back, or the slide is missing or is another one.
    """
    if width_px is not None and width_px < LEAST_WIDTH_PX:
        raise ConfigError(f"width_px must be at least {LEAST_WIDTH_PX}, got {width_px}")
    one_of(view, VIEWS, "view")
    colouring = Colouring(cmap, alpha, vmin, vmax, threshold)
    opacity = alpha if view == "overlay" else 1.0
    path = Path(path)
    pieces = stream(path, slide, patient, channel)
    several = len([own for own, _ in slides_in(path) if own == pieces.patient]) > 1
    target = _target(
        path, target, _name(path, pieces, several, "overlay" if f".{format}" in _PYRAMIDS else view) + f".{format}"
    )
    plan = plan_of(pieces)
    if target.suffix.lower() in _PYRAMIDS:
        _render_pyramid(target, pieces, plan, colouring, width_px, weights)
        return target
    sheet = Sheet.of(plan.extent_l0, WIDTH_PX if width_px is None else width_px, 1 + (view == "side-by-side"))
    heat = place(pieces, coarser_for(plan, sheet.size, weights), weights)
    found = colouring.range_of(heat.values)
    scale = colouring.scale(found)
    panels = _panels(view, heat, scale, opacity, sheet.size, slide_path)
    mpp = believable_mpp(plan.mpp, plan.extent_l0)
    per_px = None if mpp is None else (mpp[0] * plan.extent_l0[0] / sheet.size[0], mpp[1] * plan.extent_l0[1] / sheet.size[1])
    name = pieces.patient if pieces.slide == pieces.patient else f"{pieces.patient} – {pieces.slide}"
    words = Words(name if title is None else title, _about(plan, weights), _note(plan, found, threshold), pieces.columns[0])
    figure = draw(sheet, panels, scale, opacity, words, per_px)
    save(figure, target)
    return target


def render_all(folder: str | os.PathLike[str], target: str | os.PathLike[str] | None = None, **options: Any) -> list[Path]:
    """One picture for each patient and slide of an output folder, beside the patient files or in the folder `target`.

    `options` are those of :func:`render`; `slide_path` may be a folder that holds the slides. Raises MapError when the folder
    has no patient file; when some pictures cannot be made, the others are, and the message says which and why.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MapError(f"{folder} is not a folder; the output folder of a run was expected")
    refuse_images(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".h5", ".csv") and not path.name.startswith("."))
    if target is not None and not Path(target).is_dir():
        raise MapError(
            f"{target} is not a folder; one for the pictures of {folder} was expected: make it, or name one patient's file "
            "there"
        )
    pictures: dict[Path, None] = {}
    failures: list[str] = []
    for path in files:
        try:
            slides = slides_in(path)
        except MapError as error:
            failures.append(str(error))
            continue
        for patient, slide in slides:
            try:
                picture = render(path, target, slide, patient=patient, **options)
            except MapError as error:
                failures.append(str(error))
                continue
            if picture in pictures:
                failures.append(f"{picture} is what the pictures of two slides would be called; the later one is there")
            pictures[picture] = None
    if failures:
        raise MapError(f"{len(failures)} pictures could not be made, {len(pictures)} were: " + "; ".join(failures))
    if not pictures:
        raise MapError(f"{folder} holds no patient file with a slide (<patient>.h5 or <patient>.csv)")
    return list(pictures)


def overlay(tissue: UInt8Array, heat: Map, scale: Scale, alpha: float) -> UInt8Array:
    """(height, width, 3) uint8: the first channel of `heat` in colour over `tissue`, the whole slide in the same shape."""
    colours, coloured = scale.rgb(heat.values[..., 0]), scale.coloured(heat.values[..., 0])
    rows, columns = cells_at(tissue.shape[0], heat.y_edges), cells_at(tissue.shape[1], heat.x_edges)
    picture = np.empty_like(tissue)
    for first in range(0, len(rows), _STRIP_ROWS):
        strip = slice(first, first + _STRIP_ROWS)
        shown = rows[strip, None], columns
        # under the colours the tissue is grey: mixed with pink, they would not be those of the colour bar
        grey = np.rint(tissue[strip] @ _LUMINANCE)[..., None]
        mixed = np.rint(grey * (1 - alpha) + colours[shown] * alpha)
        picture[strip] = np.where(coloured[shown][..., None], mixed, tissue[strip])
    return picture


def map_picture(heat: Map, scale: Scale, size: tuple[int, int]) -> UInt8Array:
    """(height, width, 3) uint8 of this (width, height): the first channel of `heat` in colour, the whole slide."""
    rows, columns = cells_at(size[1], heat.y_edges), cells_at(size[0], heat.x_edges)
    return scale.rgb(heat.values[..., 0])[rows[:, None], columns]


def thumbnail(plan: SlidePlan, slide_path: str | os.PathLike[str] | None, size: tuple[int, int]) -> UInt8Array:
    """(height, width, 3) uint8: the whole slide in this (width, height). Raises MapError when it is not at hand."""
    path = Path(plan.path if slide_path is None else slide_path)
    if slide_path is not None and path.is_dir() and not is_zarr(path):
        file, inside = split_address(plan.path)
        path = path / f"{file.name}{inside}"
    if not split_address(path)[0].exists():
        raise MapError(f"the slide is not at {path}: pass the place where it lies now as slide_path (--slide-path)")
    try:
        with open_slide(path) as reader:
            if reader.info.dimensions != plan.extent_l0:
                raise MapError(
                    f"{path} is another slide: it has {reader.info.dimensions} pixels, the map's has {plan.extent_l0}"
                )
            small = reader.thumbnail(max(size))
    except SlideError as error:
        raise MapError(f"the thumbnail cannot be made: {error}") from error
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.LANCZOS))


def save(figure: Any, target: Path) -> None:
    """Write a figure to a file that appears whole; its ending says the format."""
    kind = target.suffix[1:].lower()
    how = {"pil_kwargs": {"quality": _JPEG_QUALITY, "subsampling": 0}} if kind in ("jpg", "jpeg") else {}
    with renamed_when_whole(target) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI, **how)


def check_picture_name(path: Path, also: tuple[str, ...] = ()) -> None:
    """Raise ConfigError when there is no such format (matplotlib's, but for TIFF, and those in `also`), or no such folder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = {f".{name}" for name in FigureCanvasAgg.get_supported_filetypes()} - set(_PYRAMIDS) | set(also)
    if path.suffix.lower() not in known:
        raise ConfigError(f"a picture's name must end in one of {', '.join(sorted(known))}; got {path.name!r}")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent} for the picture")


def _panels(
    view: View,
    heat: Map,
    scale: Scale,
    alpha: float,
    size: tuple[int, int],
    slide_path: str | os.PathLike[str] | None,
) -> list[UInt8Array]:
    if view == "map":
        return [map_picture(heat, scale, size)]
    tissue = thumbnail(heat.plan, slide_path, size)
    if view == "overlay":
        return [overlay(tissue, heat, scale, alpha)]
    return [tissue, map_picture(heat, scale, size)]


def _render_pyramid(
    target: Path, pieces: PieceStream, plan: SlidePlan, colouring: Colouring, width_px: int | None, weights: Any
) -> None:
    (size, *_) = level_sizes(plan.extent_l0, _PYRAMID_WIDTH_PX if width_px is None else width_px)
    most = min(size[0], _CELLS_AT_MOST), min(size[1], _CELLS_AT_MOST)
    heat = place(pieces, coarser_for(plan, most, weights), weights)
    with renamed_when_whole(target) as temporary:
        write_pyramid(temporary, heat, colouring.scale(colouring.range_of(heat.values)), size[0])


def _name(path: Path, pieces: PieceStream, several: bool, view: View) -> str:
    """What a picture is called by default, without its ending: one of another view does not take the place of an overlay."""
    parts = [pieces.patient, *([pieces.slide] if several else []), *pieces.columns, *([] if view == "overlay" else [view])]
    return as_file_name("_".join([*parts, "partial"] if path.stem.endswith(".partial") else parts))


def _target(path: Path, target: str | os.PathLike[str] | None, name: str) -> Path:
    chosen = path.parent if target is None else Path(target)
    chosen = chosen / name if chosen.is_dir() else chosen
    check_picture_name(chosen, also=_PYRAMIDS)
    return chosen


def _about(plan: SlidePlan, weights: Any = None) -> str:
    """How the values came about, in one line."""
    (width, height), (stride_x, stride_y) = plan.kernel, plan.stride
    size = f"{width} × {height} px"
    mpp = believable_mpp(plan.mpp, plan.extent_l0)
    if mpp is not None:
        across, down = (side * plan.downsample * per_px for side, per_px in zip(plan.kernel, mpp, strict=True))
        size += f" ({across:.3g} × {down:.3g} µm)"
    every = f"every {stride_x if stride_x == stride_y else f'{stride_x}, {stride_y}'} px" if stride_x else "placed freely"
    coarser = "" if plan.zoom == 1 else f", made {plan.zoom:.3g} times coarser"
    blended = "" if weights is None else f", {weights if isinstance(weights, str) else 'own'} weights"
    return f"windows of {size}, {every}, of level {plan.level}{coarser}{blended}"


def _note(plan: SlidePlan, found: Range, threshold: float | None) -> str:
    """What has no colour and why, and why there is no scale bar although the slide has a resolution."""
    without = (["no value"] if found.any_nan else []) + ([f"below {threshold:g}"] if threshold is not None else [])
    notes = [f"not coloured: {', '.join(without)}"] if without else []
    if plan.mpp is not None and believable_mpp(plan.mpp, plan.extent_l0) is None:
        notes.append(f"no scale bar: {plan.mpp[0]:.4g} µm per pixel, as the slide says, cannot be right")
    return "; ".join(notes)
