"""Lay a map over the slide's thumbnail.

In: a patient file, and the slide it is of.  Out: a picture.  Memory follows the picture's size, not the map's; matplotlib's
global state is not touched.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from streamwsi.chunks import UInt8Array
from streamwsi.errors import ConfigError, MapError, SlideError
from streamwsi.maps.pieces import Pieces, SlidePlan, load, slides_in
from streamwsi.maps.raster import Map, place
from streamwsi.slides.reader import open_slide
from streamwsi.writing.layout import renamed_when_whole

if TYPE_CHECKING:
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

_LEAST_WIDTH_PX = 200
_DPI = 100
_GREY = "0.35"
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
"""Of red, green and blue. Source: ITU-R BT.709."""


def render(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    slide: str | None = None,
    channel: int | str = 0,
    *,
    patient: str | None = None,
    slide_path: str | os.PathLike[str] | None = None,
    cmap: str = "viridis",
    alpha: float = 0.5,
    vmin: float | None = None,
    vmax: float | None = None,
    width_px: int = 1600,
    title: str | None = None,
) -> Path:
    """Lay the map of one slide over its thumbnail, with a colour bar and a title; returns the picture's path.

    Where nothing was processed, and where a value is NaN, the tissue stays as it is.

    Parameters
    ----------
    path, slide, patient
        As for :func:`~streamwsi.maps.pieces.read_pieces`.
    target
        The picture, or a folder for it; its ending says the format. By default ``<patient>[_<slide>]_<column>.png`` beside
        `path`, with the slide where the patient has several.
    channel
        Which of the flattened values: its number, from 0, or its column's name.
    slide_path
        Where the slide lies now, or a folder that holds it under its old name; by default where it lay during the run.
    cmap
        Name of one of matplotlib's colour maps.
    alpha
        Opacity of the map, from 0 to 1. Under the map the tissue is grey, so that the colours are those of the colour bar.
    vmin, vmax
        Values at the ends of the colour bar; by default the least and the greatest of the map.
    width_px
        Width of the whole picture, at least 200; a narrow slide's picture may be narrower.
    title
        By default the patient, and the slide where it is called otherwise.

    Raises
    ------
    ConfigError
        When an option has a value that cannot work.
    MapError
        When the pieces cannot be read back, or the slide is missing or is another one.
    """
    if width_px < _LEAST_WIDTH_PX:
        raise ConfigError(f"width_px must be at least {_LEAST_WIDTH_PX}, got {width_px}")
    colours = _colours(cmap, alpha)
    path = Path(path)
    pieces = load(path, slide, patient, channel)
    target = _target(path, target, pieces, several=len([own for own, _ in slides_in(path) if own == pieces.patient]) > 1)
    if pieces.plan is None:
        place(pieces)  # says why not
        raise MapError(f"{path}: the plan of slide {pieces.slide!r} is not known")
    layout = _Sheet.of(pieces.plan.extent_l0, width_px)
    heat = place(pieces, coarser=_cells_per_pixel(pieces.plan, layout.size))
    norm, extend = _norm(heat, vmin, vmax)
    tissue = _thumbnail(pieces.plan, slide_path, layout.size)
    figure = layout.figure()
    _draw_slide(figure, layout, overlay(tissue, heat, colours, norm, alpha), pieces.plan)
    _draw_bar(figure, layout, colours, norm, extend, alpha, label=pieces.columns[0])
    name = pieces.patient if pieces.slide == pieces.patient else f"{pieces.patient} – {pieces.slide}"
    _draw_texts(figure, layout, name if title is None else title, heat)
    with renamed_when_whole(target) as temporary:
        figure.savefig(temporary, format=target.suffix[1:].lower(), dpi=_DPI)
    return target


def render_all(folder: str | os.PathLike[str], target: str | os.PathLike[str] | None = None, **options: Any) -> list[Path]:
    """One picture for each patient and slide of an output folder, beside the patient files or in the folder `target`.

    `options` are those of :func:`render`; `slide_path` may be a folder that holds the slides. Raises MapError when the folder
    has no patient file; when some pictures cannot be made, the others are, and the message says which and why.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MapError(f"{folder} is not a folder; the output folder of a run was expected")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".h5", ".csv") and not path.name.startswith("."))
    if target is not None and not Path(target).is_dir():
        raise MapError(f"{target} is not a folder; one for the pictures was expected")
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


def overlay(tissue: UInt8Array, heat: Map, colours: Colormap, norm: Normalize, alpha: float) -> UInt8Array:
    """(height, width, 3) uint8: the first channel of `heat` in colour over `tissue`, the whole slide in the same shape."""
    height, width = tissue.shape[:2]
    rows = _cells_at(height, heat.y_edges)
    columns = _cells_at(width, heat.x_edges)
    picture = np.empty_like(tissue)
    for first in range(0, height, 256):  # a strip at a time: colours are four floats a pixel
        strip = slice(first, first + 256)
        shown = heat.values[rows[strip, None], columns, 0]
        rgba = colours(norm(np.ma.masked_invalid(shown) if np.isnan(shown).any() else shown))
        # under the colours the tissue is grey: mixed with pink, they would not be those of the colour bar
        grey = np.rint(tissue[strip] @ _LUMINANCE)[..., None]
        mixed = np.rint(grey * (1 - alpha) + 255 * rgba[..., :3] * alpha)
        picture[strip] = np.where(np.isnan(shown)[..., None], tissue[strip], mixed)
    return picture


def _cells_at(n_px: int, edges_l0: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """The cell in which the centre of each of `n_px` pixels lies, (n_px,)."""
    centres_l0 = (np.arange(n_px) + 0.5) * edges_l0[-1] / n_px
    cells: npt.NDArray[np.intp] = np.searchsorted(edges_l0, centres_l0, side="right") - 1
    return cells


def _cells_per_pixel(plan: SlidePlan, size: tuple[int, int]) -> int:
    """How many cells to take together along each axis, so that a picture does not have more of them than pixels."""
    cells = [extent / stride for extent, stride in zip(plan.extent, plan.stride, strict=True)]
    return max(1, *(math.ceil(n_cells / n_px) for n_cells, n_px in zip(cells, size, strict=True)))


@dataclass(frozen=True)
class _Sheet:
    """Where things stand in the picture, in its pixels, from its upper left corner."""

    width: int
    height: int
    unit: float
    """Pixels of what is one pixel in a picture 1600 wide."""
    left: int
    top: int
    size: tuple[int, int]
    """(width, height) of the slide's picture."""
    bar_height: int

    @classmethod
    def of(cls, extent_l0: tuple[int, int], width_px: int) -> _Sheet:
        """Fit a slide of (width, height) `extent_l0` into a picture of this width, at most a quarter taller than wide."""
        unit = width_px / 1600
        left, right, top, bottom = (round(side * unit) for side in (50, 240, 130, 90))
        room = (width_px - left - right, 1.25 * width_px)
        scale = min(space / side for space, side in zip(room, extent_l0, strict=True))
        size = max(1, round(extent_l0[0] * scale)), max(1, round(extent_l0[1] * scale))
        bar_height = max(size[1], round(300 * unit))
        width = max(left + size[0] + right, width_px * 5 // 8)
        return cls(width, top + bar_height + bottom, unit, left, top, size, bar_height)

    def figure(self) -> Figure:
        """An empty figure of this size, which belongs to no backend."""
        from matplotlib.figure import Figure

        return Figure(figsize=(self.width / _DPI, self.height / _DPI), dpi=_DPI, facecolor="white")

    def box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """(left, bottom, width, height) as matplotlib has it, in parts of the figure."""
        return left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height

    def points(self, px: float) -> float:
        """A length in units as typographic points."""
        return px * self.unit * 72 / _DPI


def _colours(cmap: str, alpha: float) -> Colormap:
    import matplotlib

    if cmap not in matplotlib.colormaps:
        raise ConfigError(
            f"cmap must be the name of one of matplotlib's colour maps (viridis, magma, coolwarm, …), got {cmap!r}"
        )
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must be from 0 to 1, got {alpha}")
    return matplotlib.colormaps[cmap]


def _norm(heat: Map, vmin: float | None, vmax: float | None) -> tuple[Normalize, str]:
    """The scale of the colours, and at which ends values lie outside it."""
    from matplotlib.colors import Normalize

    values = heat.values[np.isfinite(heat.values)]
    low = float(values.min(initial=np.inf)) if vmin is None else vmin
    high = float(values.max(initial=-np.inf)) if vmax is None else vmax
    if vmin is not None and vmax is not None and not vmin < vmax:
        raise ConfigError(f"vmin must be below vmax, got {vmin} and {vmax}")
    if not len(values):
        low, high = (0.0 if vmin is None else vmin), (1.0 if vmax is None else vmax)
    if not low < high:  # a map of one value, or one that lies wholly outside the end that was given
        room = max(abs(low), abs(high), 1.0) / 2
        low, high = (low if vmin is not None else high - room), (high if vmax is not None else low + room)
    below, above = bool((heat.values < low).any()), bool((heat.values > high).any())
    return Normalize(low, high), {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(
        (below, above), "both"
    )


def _thumbnail(plan: SlidePlan, slide_path: str | os.PathLike[str] | None, size: tuple[int, int]) -> UInt8Array:
    """(height, width, 3) uint8: the whole slide in this (width, height)."""
    path = Path(plan.path if slide_path is None else slide_path)
    if slide_path is not None and path.is_dir():
        path = path / Path(plan.path).name
    if not path.exists():
        raise MapError(f"the slide is not at {path}: pass the place where it lies now as slide_path (--slide-path)")
    try:
        with open_slide(path) as reader:
            if reader.info.dimensions != plan.extent_l0:
                raise MapError(
                    f"{path} is another slide: it has {reader.info.dimensions} pixels, the map's has {plan.extent_l0}"
                )
            thumbnail = reader.thumbnail(max(size))
    except SlideError as error:
        raise MapError(f"the thumbnail cannot be made: {error}") from error
    return np.asarray(Image.fromarray(thumbnail).resize(size, Image.Resampling.LANCZOS))


def _target(path: Path, target: str | os.PathLike[str] | None, pieces: Pieces, several: bool) -> Path:
    parts = [pieces.patient, *([pieces.slide] if several else []), *pieces.columns]
    if path.stem.endswith(".partial"):
        parts.append("partial")
    name = re.sub(r'[\x00-\x1f<>:"/\\|?*]', "-", "_".join(parts)) + ".png"
    chosen = path.parent if target is None else Path(target)
    chosen = chosen / name if chosen.is_dir() else chosen
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    formats = FigureCanvasAgg.get_supported_filetypes()
    if chosen.suffix[1:].lower() not in formats:
        raise ConfigError(f"a picture's name must end in one of .{', .'.join(sorted(formats))}; got {chosen.name!r}")
    if not chosen.parent.is_dir():
        raise ConfigError(f"there is no folder {chosen.parent} for the picture")
    return chosen


def _draw_slide(figure: Figure, sheet: _Sheet, picture: UInt8Array, plan: SlidePlan) -> None:
    axes = figure.add_axes(sheet.box(sheet.left, sheet.top, *sheet.size))
    width_l0, height_l0 = plan.extent_l0
    axes.imshow(picture, extent=(0, width_l0, height_l0, 0), interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="0.6", linewidth=sheet.points(1.5))
    if plan.mpp is None:
        return
    length_um = _round_length(width_l0 * plan.mpp[0] / 4)
    length_px = length_um / plan.mpp[0] * sheet.size[0] / width_l0
    bar = figure.add_axes(sheet.box(sheet.left, sheet.top + sheet.size[1] + 22 * sheet.unit, length_px, 7 * sheet.unit))
    bar.set(facecolor="black", xticks=[], yticks=[])
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    bar.text(0, -1.2, text, fontsize=sheet.points(24), va="top", transform=bar.transAxes)


def _draw_bar(figure: Figure, sheet: _Sheet, colours: Colormap, norm: Normalize, extend: str, alpha: float, label: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    # over white, as the map is over bright tissue
    shown = ListedColormap(alpha * colours(np.linspace(0, 1, 256))[:, :3] + 1 - alpha)
    box = sheet.box(sheet.left + sheet.size[0] + 36 * sheet.unit, sheet.top, 36 * sheet.unit, sheet.bar_height)
    ends = 30 * sheet.unit / sheet.bar_height
    bar = figure.colorbar(ScalarMappable(norm, shown), cax=figure.add_axes(box), extend=extend, extendfrac=ends)
    bar.outline.set_linewidth(sheet.points(1.5))
    bar.ax.tick_params(labelsize=sheet.points(24), width=sheet.points(1.5), length=sheet.points(8))
    bar.ax.yaxis.get_offset_text().set_fontsize(sheet.points(22))
    text = bar.ax.set_ylabel(label, fontsize=sheet.points(28), parse_math=False)
    _fit(text, sheet.bar_height)


def _draw_texts(figure: Figure, sheet: _Sheet, title: str, heat: Map) -> None:
    def line(y: float, words: str, size: float, colour: str) -> None:
        place = sheet.left / sheet.width, 1 - y * sheet.unit / sheet.height
        text = figure.text(*place, words, fontsize=sheet.points(size), color=colour, va="center", parse_math=False)
        _fit(text, sheet.width - 2 * sheet.left)

    line(46, title, 38, "black")
    line(96, _about(heat.plan) + ("; not coloured: no value" if np.isnan(heat.values).any() else ""), 22, _GREY)


def _about(plan: SlidePlan) -> str:
    """How the values came about, in one line."""
    (width, height), (stride_x, stride_y) = plan.kernel, plan.stride
    size = f"{width} × {height} px"
    if plan.mpp is not None:
        across, down = (side * plan.downsample * mpp for side, mpp in zip(plan.kernel, plan.mpp, strict=True))
        size += f" ({across:.3g} × {down:.3g} µm)"
    return (
        f"windows of {size}, every {stride_x if stride_x == stride_y else f'{stride_x}, {stride_y}'} px, of level {plan.level}"
    )


def _fit(text: Any, room_px: float) -> None:
    """Make a text smaller, and in the end shorter, until it fits."""

    def length_px() -> float:
        extent = text.get_window_extent()
        return float(max(extent.width, extent.height))

    size, words = text.get_fontsize(), text.get_text()
    for part in (0.85, 0.7, 0.6):
        if length_px() > room_px:
            text.set_fontsize(size * part)
    while length_px() > room_px and words:
        words = words[: min(len(words) - 1, int(len(words) * room_px / length_px()))]
        text.set_text(words + "…")


def _round_length(longest_um: float) -> float:
    """The longest of 1, 2, 5, 10, 20, … that is not above `longest_um`."""
    power = 10.0 ** math.floor(math.log10(longest_um))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= longest_um)
