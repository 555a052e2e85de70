"""All slides of a run on one sheet, in the same colours: whether it went well, at a glance.

In: an output folder.  Out: pictures, of as many slides as can be told apart on each.  Slides that have failed, or are not
finished, are shown as such.  Memory follows a page, not the number of slides or their maps.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamwsi.chunks import UInt8Array
from streamwsi.errors import ConfigError, MapError
from streamwsi.maps.colours import Colouring, Range, Scale
from streamwsi.maps.pieces import stream
from streamwsi.maps.raster import Map, coarser_for, place, plan_of
from streamwsi.maps.render import (
    LEAST_WIDTH_PX,
    WIDTH_PX,
    check_picture_name,
    overlay,
    save,
    thumbnail,
)
from streamwsi.maps.sheet import Drawing
from streamwsi.writing.layout import as_file_name
from streamwsi.writing.outcome import Outcome, SlideOutcome, read_outcome

_MOST_COLUMNS = 10
_LEAST_TILE_PX = 96
_BACKGROUNDS = {"failed": (250, 222, 220), "unfinished": (232, 232, 232), "stopped": (232, 232, 232)}
"""RGB of a tile without a map, by the state of its slide; one whose file cannot be read looks like one that has failed."""
_INKS = {"failed": "#a01010", "unfinished": "0.3", "stopped": "0.3"}


@dataclass
class _Tile:
    """One slide on the sheet."""

    patient: str
    slide: SlideOutcome
    file: Path | None
    """Where its map is; None where it has none."""
    note: str = ""
    """What went wrong with it."""

    @property
    def name(self) -> str:
        """What stands below it."""
        return self.patient if self.slide.id == self.patient else f"{self.patient} – {self.slide.id}"


@dataclass(frozen=True)
class _Page:
    """Where tiles stand on a page, in its pixels."""

    width: int
    unit: float
    tile: int
    """Side of a tile."""
    columns: int
    rows: int
    """Of a full page."""

    @classmethod
    def of(cls, n_tiles: int, width_px: int) -> _Page:
        """Tiles as large as lets all stand on one page, but not smaller than can be told apart."""
        unit = max(width_px / 1600, 0.42)
        page = cls(width_px, unit, 0, 0, 0)
        room = width_px - page.left - page.right
        columns = max(1, min(_MOST_COLUMNS, math.ceil(math.sqrt(n_tiles)), (room + page.gap) // (_LEAST_TILE_PX + page.gap)))
        tile = (room + page.gap) // columns - page.gap
        rows = max(1, int(1.4 * width_px) // (tile + page.caption + page.gap))
        return cls(width_px, unit, tile, columns, rows)

    @property
    def left(self) -> int:
        """Margin left of the tiles."""
        return round(50 * self.unit)

    @property
    def right(self) -> int:
        """Margin right of the tiles, with the colour bar."""
        return round(240 * self.unit)

    @property
    def top(self) -> int:
        """Margin above the tiles, with the title."""
        return round(152 * self.unit)

    @property
    def gap(self) -> int:
        """Between tiles."""
        return round(14 * self.unit)

    @property
    def caption(self) -> int:
        """Height of the two lines below a tile."""
        return round(52 * self.unit)

    def place(self, number: int) -> tuple[int, int]:
        """(left, top) of a tile of the page, counted row by row, from the corner of the first."""
        row, column = divmod(number, self.columns)
        return column * (self.tile + self.gap), row * (self.tile + self.caption + self.gap)


def contact_sheet(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    channel: int | str = 0,
    *,
    slide_path: str | os.PathLike[str] | None = None,
    cmap: str = "viridis",
    alpha: float = 0.5,
    vmin: float | None = None,
    vmax: float | None = None,
    threshold: float | None = None,
    width_px: int | None = None,
    title: str | None = None,
) -> list[Path]:
    """All slides of a run, each with its map over its thumbnail, in one scale of colours; returns the pages' paths.

    Slides stand in the order of the dataset, also those that have failed or are not finished, which say why. A map whose slide
    is not at hand, or is another one, stands alone. There are up to some hundred slides on a page.

    Parameters
    ----------
    folder
        The output folder of a run.
    target
        The picture, or a folder for it; where there are several pages, ``_1``, ``_2``, … are added. By default
        ``contact-sheet_<column>.png`` in `folder`.
    channel, cmap, alpha, vmin, vmax, threshold
        As for :func:`~streamwsi.maps.render.render`; the default ends of the colour bar are the least and the greatest value of
        all maps, drawn as small as they are here.
    slide_path
        A folder that holds the slides under their old names; by default they are where they lay during the run.
    width_px
        Width of a page, at least 200, by default 1600.
    title
        By default the folder's name.

    Raises
    ------
    ConfigError
        When an option has a value that cannot work.
    OutputError
        When the folder holds no run.
    MapError
        When the run made no maps, or none of them has such a channel.
    """
    width_px = WIDTH_PX if width_px is None else width_px
    if width_px < LEAST_WIDTH_PX:
        raise ConfigError(f"width_px must be at least {LEAST_WIDTH_PX}, got {width_px}")
    colouring = Colouring(cmap, alpha, vmin, vmax, threshold)
    outcome = read_outcome(folder)
    if outcome.collector_mode != "stream":
        raise MapError(f"{outcome.folder}: its collector gathers results ({outcome.collector_mode}), of which there is no map")
    if outcome.format == "images":
        raise MapError(f"{outcome.folder}: its run has written images, of which there is no map")
    if outcome.format == "maps":
        raise MapError(f"{outcome.folder}: its run has written maps, which are pictures themselves")
    tiles = list(_tiles(outcome))
    if not tiles:
        raise MapError(f"{outcome.folder}: its run has no slides")
    column = _column_name(outcome, channel)
    chosen = _target(Path(outcome.folder), target, column)
    page = _Page.of(len(tiles), width_px)
    found = Range()
    for tile in tiles:
        found |= _range(tile, channel, page, colouring)
    scale = colouring.scale(found)
    per_page = page.columns * page.rows
    n_pages = -(-len(tiles) // per_page)
    pages = []
    for number in range(n_pages):
        some = tiles[number * per_page : (number + 1) * per_page]
        note = _note(found, threshold, number, n_pages)
        drawing = _draw(page, some, scale, channel, colouring, slide_path)
        room = page.width - 2 * page.left
        drawing.text(Path(outcome.folder).name if title is None else title, page.left, 46 * page.unit, 38, room)
        drawing.text(_about(outcome, tiles), page.left, 92 * page.unit, 22, room, "0.35")
        drawing.text(note, page.left, 124 * page.unit, 22, room, "0.35")
        height = min(drawing.height - page.top - page.caption, round(700 * page.unit))
        drawing.colour_bar(scale, alpha, column, page.width - page.right + 36 * page.unit, page.top, height)
        pages.append(chosen if n_pages == 1 else chosen.with_stem(f"{chosen.stem}_{number + 1}"))
        save(drawing.figure, pages[-1])
    return pages


def _tiles(outcome: Outcome) -> Iterator[_Tile]:
    for patient in outcome.patients:
        for slide in patient.slides:
            file = Path(outcome.folder, patient.file) if patient.file and slide.state == "done" else None
            reason = (slide.reason or "").removeprefix(f"{slide.path}: ")
            yield _Tile(patient.id, slide, file, reason)


def _column_name(outcome: Outcome, channel: int | str) -> str:
    """The column that is drawn; MapError where there is none."""
    columns = outcome.values.column_names if outcome.values else ()
    if isinstance(channel, str) and (channel in columns or not columns):
        return channel
    if isinstance(channel, int) and (0 <= channel < len(columns) or not columns):
        return columns[channel] if columns else f"value {channel}"
    raise MapError(f"{outcome.folder} has no channel {channel!r}; it has {len(columns)}, from 0: {', '.join(columns[:8])}")


def _map(tile: _Tile, channel: int | str, page: _Page) -> Map:
    if tile.file is None:
        raise MapError(tile.note)
    pieces = stream(tile.file, tile.slide.id, tile.patient, channel)
    plan = plan_of(pieces)
    return place(pieces, coarser_for(plan, _fitted(plan.extent_l0, page.tile)))


def _range(tile: _Tile, channel: int | str, page: _Page, colouring: Colouring) -> Range:
    """What values a tile has; one whose file cannot be read becomes a failed one."""
    if tile.file is None:
        return Range()
    try:
        return colouring.range_of(_map(tile, channel, page).values)
    except MapError as error:
        tile.file, tile.note = None, str(error).removeprefix(f"{tile.file}, ")
        return Range()


def _draw(
    page: _Page,
    tiles: list[_Tile],
    scale: Scale,
    channel: int | str,
    colouring: Colouring,
    slide_path: str | os.PathLike[str] | None,
) -> Drawing:
    """A page with its tiles and their captions."""
    right, bottom = page.place(page.columns - 1)[0] + page.tile, page.place(len(tiles) - 1)[1] + page.tile + page.caption
    canvas = np.full((bottom, right, 3), 255, np.uint8)
    drawing = Drawing(page.width, page.top + max(bottom, round(300 * page.unit)) + page.left, page.unit)
    for number, tile in enumerate(tiles):
        left, top = page.place(number)
        state = tile.slide.state if tile.slide.state in _BACKGROUNDS else "failed"
        middle = page.left + left + page.tile / 2
        if tile.file is None:
            canvas[top : top + page.tile, left : left + page.tile] = _BACKGROUNDS[state]
            word = state if tile.slide.state in _BACKGROUNDS else "unreadable"
            drawing.text(word, middle, page.top + top + page.tile / 4, 24, page.tile, _INKS[state], ha="center")
            size = min(17, page.tile / page.unit / 9)
            drawing.paragraph(tile.note, middle, page.top + top + 0.4 * page.tile, size, 0.9 * page.tile, 0.55 * page.tile)
            note = ""
        else:
            picture, note = _picture(tile, channel, page, scale, colouring.alpha, slide_path)
            height, width = picture.shape[:2]
            x, y = left + (page.tile - width) // 2, top + (page.tile - height) // 2
            canvas[y : y + height, x : x + width] = picture
        below = page.top + top + page.tile
        drawing.text(tile.name, middle, below + 14 * page.unit, 20, page.tile, ha="center")
        drawing.text(note, middle, below + 38 * page.unit, 17, page.tile, _INKS["failed"], ha="center")
    drawing.pixels(canvas, page.left, page.top)
    return drawing


def _picture(
    tile: _Tile, channel: int | str, page: _Page, scale: Scale, alpha: float, slide_path: str | os.PathLike[str] | None
) -> tuple[UInt8Array, str]:
    """The slide with its map, and what is to be said of it."""
    heat = _map(tile, channel, page)
    size = _fitted(heat.plan.extent_l0, page.tile)
    notes = [f"{tile.slide.skipped} skipped"] if tile.slide.skipped else []
    try:
        picture = overlay(thumbnail(heat.plan, slide_path, size), heat, scale, alpha)
    except MapError:
        picture = overlay(np.full((size[1], size[0], 3), 255, np.uint8), heat, scale, alpha)
        notes.append("no thumbnail")
    return picture, ", ".join(notes)


def _fitted(extent_l0: tuple[int, int], side_px: int) -> tuple[int, int]:
    """(width, height) of a slide whose longer side has so many pixels."""
    scale = side_px / max(extent_l0)
    return max(1, round(extent_l0[0] * scale)), max(1, round(extent_l0[1] * scale))


def _about(outcome: Outcome, tiles: list[_Tile]) -> str:
    """How many slides there are, and what has become of them."""
    states = Counter("unreadable" if t.slide.state == "done" and t.file is None else t.slide.state for t in tiles)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"{outcome.collector}; {len(tiles)} slide{'s' if len(tiles) != 1 else ''}: {counts}"


def _note(found: Range, threshold: float | None, page: int, n_pages: int) -> str:
    without = (["no value"] if found.any_nan else []) + ([f"below {threshold:g}"] if threshold is not None else [])
    notes = ["the same colours for all"] + ([f"not coloured: {', '.join(without)}"] if without else [])
    return "; ".join(notes + ([f"page {page + 1} of {n_pages}"] if n_pages > 1 else []))


def _target(folder: Path, target: str | os.PathLike[str] | None, column: str) -> Path:
    chosen = folder if target is None else Path(target)
    chosen = chosen / as_file_name(f"contact-sheet_{column}.png") if chosen.is_dir() else chosen
    check_picture_name(chosen)
    return chosen
