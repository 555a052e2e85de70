"""A picture for people: panels of a slide, a title, a colour bar, a scale bar.

In: panels as pixels, and what is to be said of them.  Out: a figure.  Never opens a file; matplotlib's global state is not
touched.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamwsi.chunks import UInt8Array
from streamwsi.maps.colours import NOT_COLOURED, Scale
from streamwsi.maps.scale_bar import round_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
_GREY = "0.35"
_LEAST_UNIT = 0.42
"""Texts do not become smaller than in a picture 670 wide: they could not be read."""
_LEAST_TEXT_PX = 8.5
"""Nor are they made smaller than this to fit; they are cut."""
_WIDE = 1.5
"""Slides so much wider than high are shown above each other, not beside each other."""


@dataclass(frozen=True)
class Sheet:
    """Where things stand in the picture, in its pixels, from its upper left corner."""

    width: int
    height: int
    unit: float
    """Pixels of what is one pixel in a picture 1600 wide."""
    size: tuple[int, int]
    """(width, height) of a panel."""
    places: tuple[tuple[int, int], ...]
    """(left, top) of each panel."""
    bar_height: int

    @classmethod
    def of(cls, extent_l0: tuple[int, int], width_px: int, n_panels: int = 1) -> Sheet:
        """Fit panels of a slide of (width, height) `extent_l0` into a picture this wide, at most a quarter taller than that.

        Several panels stand beside each other, or one above the other where the slide is wide.
        """
        unit = max(width_px / 1600, _LEAST_UNIT)
        left, right, top, bottom, gap = (round(side * unit) for side in (50, 240, 152, 90, 40))
        gaps = gap * (n_panels - 1)
        across, down = max(1, width_px - left - right), 1.25 * width_px

        stacked = extent_l0[0] > _WIDE * extent_l0[1]
        room = (across, (down - gaps) / n_panels) if stacked else ((across - gaps) / n_panels, down)
        scale = min(space / side for space, side in zip(room, extent_l0, strict=True))
        size = max(1, round(extent_l0[0] * scale)), max(1, round(extent_l0[1] * scale))
        steps = [(0, n * (size[1] + gap)) if stacked else (n * (size[0] + gap), 0) for n in range(n_panels)]
        bar_height = max(steps[-1][1] + size[1], round(300 * unit))
        width = max(left + steps[-1][0] + size[0] + right, width_px * 5 // 8)
        places = tuple((left + x, top + y) for x, y in steps)
        return cls(width, top + bar_height + bottom, unit, size, places, bar_height)

    @property
    def right(self) -> int:
        """Where the panels end."""
        return self.places[-1][0] + self.size[0]

    @property
    def lowest(self) -> int:
        """Where the panels end below."""
        return self.places[-1][1] + self.size[1]


@dataclass(frozen=True)
class Words:
    """What is said of a picture."""

    title: str
    about: str
    """How the values came about."""
    note: str
    """What one must know to read the picture."""
    label: str
    """Of the colour bar: the column's name."""


class Drawing:
    """A figure of a given size, drawn on in its pixels from its upper left corner; no window ever shows it."""

    def __init__(self, width: int, height: int, unit: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height, self.unit = width, height, unit
        self.figure: Figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)  # measures texts; without one, matplotlib makes a canvas for each measurement

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes of this box."""
        box = left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height
        return self.figure.add_axes(box)

    def points(self, px: float) -> float:
        """A length in units as typographic points."""
        return px * self.unit * 72 / DPI

    def picture(self, pixels: UInt8Array, left: int, top: int) -> None:
        """(height, width, 3) uint8, pixel for pixel, in a thin frame that lies around them."""
        height, width = pixels.shape[:2]
        line = max(1.0, 1.5 * self.unit)
        frame = self.axes(left - line, top - line, width + 2 * line, height + 2 * line)
        frame.set(facecolor="0.6", xticks=[], yticks=[])
        for spine in frame.spines.values():
            spine.set_visible(False)
        self.pixels(pixels, left, top)

    def pixels(self, pixels: UInt8Array, left: int, top: int) -> None:
        """(height, width, 3) uint8, pixel for pixel."""
        self.figure.add_artist(_pixels_artist(pixels, left, self.height - top - len(pixels)))

    def text(self, words: str, x: float, y: float, size: float, room_px: float, colour: str = "black", **how: Any) -> None:
        """A line of text at (x, y), made smaller and in the end shorter until it fits."""
        how = {"va": "center"} | how
        place = x / self.width, 1 - y / self.height
        fit(self.figure.text(*place, words, fontsize=self.points(size), color=colour, parse_math=False, **how), room_px)

    def paragraph(self, words: str, middle: float, top: float, size: float, width: float, height: float) -> None:
        """Centred lines of text in a box of this width and height, cut where there is no room for more."""
        line = max(size * self.unit, _LEAST_TEXT_PX)
        per_line, n_lines = max(1, int(width / (0.6 * line))), max(1, int(height / (1.35 * line)))
        lines = textwrap.wrap(words, per_line, max_lines=n_lines, placeholder=" …")
        place = middle / self.width, 1 - top / self.height
        self.figure.text(
            *place, "\n".join(lines), fontsize=line * 72 / DPI, color=_GREY, ha="center", va="top", parse_math=False
        )

    def colour_bar(self, scale: Scale, alpha: float, label: str, left: float, top: float, height: float) -> None:
        """The colours of a scale, as they look over white, and its values."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap

        width, ends = 36 * self.unit, 30 * self.unit
        colours = alpha * scale.colormap(np.linspace(0, 1, 256))[:, :3] + 1 - alpha
        if scale.threshold is not None:
            below = np.linspace(scale.low, scale.high, 256) < scale.threshold
            colours[below] = np.array(NOT_COLOURED) / 255
        extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(scale.extend, "both")
        bar = self.figure.colorbar(
            ScalarMappable(scale.norm, ListedColormap(colours)),
            cax=self.axes(left, top, width, height),
            extend=extend,
            extendfrac=ends / height,
        )
        bar.outline.set_linewidth(self.points(1.5))
        bar.ax.tick_params(labelsize=self.points(24), width=self.points(1.5), length=self.points(8))
        offset = bar.ax.yaxis.get_offset_text()
        offset.set_fontsize(self.points(22))
        text = bar.ax.set_ylabel(label, fontsize=self.points(28), labelpad=self.points(10), parse_math=False)
        fit(text, height)
        for part in (0.85, 0.7, 0.55, 0.4):  # numbers may be long
            extent = bar.ax.get_tightbbox()
            if extent is not None and extent.x1 > self.width - 4:
                bar.ax.tick_params(labelsize=self.points(24) * part)
                text.set_fontsize(min(text.get_fontsize(), self.points(28) * part))

    def scale_bar(self, left: float, top: float, width: float, um_per_px: float) -> None:
        """A bar of a round length, about a quarter of `width`, both in pixels."""
        length_um = round_length(width * um_per_px / 4)
        bar = self.axes(left, top, length_um / um_per_px, max(1.0, 7 * self.unit))
        bar.set(facecolor="black", xticks=[], yticks=[])
        words = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
        bar.text(0, -1.2, words, fontsize=self.points(24), va="top", transform=bar.transAxes)


def draw(
    sheet: Sheet, panels: list[UInt8Array], scale: Scale, alpha: float, words: Words, mpp: tuple[float, float] | None
) -> Figure:
    """The whole picture; `mpp` are micrometres per pixel of a panel, None where that is not known."""
    drawing = Drawing(sheet.width, sheet.height, sheet.unit)
    left, top = sheet.places[0]
    for pixels, place in zip(panels, sheet.places, strict=True):
        drawing.picture(pixels, *place)
    if mpp is not None:
        drawing.scale_bar(left, sheet.lowest + 22 * sheet.unit, sheet.size[0], mpp[0])
    drawing.colour_bar(scale, alpha, words.label, sheet.right + 36 * sheet.unit, top, sheet.bar_height)
    room = sheet.width - 2 * left
    drawing.text(words.title, left, 46 * sheet.unit, 38, room)
    drawing.text(words.about, left, 92 * sheet.unit, 22, room, _GREY)
    drawing.text(words.note, left, 124 * sheet.unit, 22, room, _GREY)
    return drawing.figure


def _pixels_artist(pixels: UInt8Array, left: int, bottom: int) -> Any:
    """An artist that draws pixels as they are; matplotlib's own resample them, in a hundred bytes of memory for each."""
    from matplotlib.artist import Artist
    from matplotlib.transforms import Affine2D

    height, width = pixels.shape[:2]

    class Pixels(Artist):
        def draw(self, renderer: Any) -> None:
            figure = self.get_figure()
            if figure is None:
                return
            rgba = np.full((height, width, 4), 255, np.uint8)
            rgba[..., :3] = pixels
            context = renderer.new_gc()
            unit = figure.dpi / DPI  # formats made of lines have units of their own
            if renderer.option_scale_image():
                size = Affine2D().scale(width * unit, height * unit)
                renderer.draw_image(context, left * unit, bottom * unit, rgba[::-1], size)
            else:
                renderer.draw_image(context, left, bottom, rgba[::-1])
            context.restore()

    artist = Pixels()
    artist.set_zorder(1)  # above axes, below texts
    return artist


def fit(text: Any, room_px: float) -> None:
    """Make a text smaller, as long as it can be read, and in the end shorter, until it fits."""

    def length_px() -> float:
        extent = text.get_window_extent()
        return float(max(extent.width, extent.height))

    size, words = text.get_fontsize(), text.get_text()
    for part in (0.85, 0.7, 0.6):
        if length_px() > room_px and size * part * DPI / 72 >= _LEAST_TEXT_PX:
            text.set_fontsize(size * part)
    while length_px() > room_px and words:
        words = words[: min(len(words) - 1, int(len(words) * room_px / length_px()))]
        text.set_text(words + "…")
