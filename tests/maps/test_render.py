from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter

from streamwsi.chunks import Status
from streamwsi.dataset import Slide
from streamwsi.errors import ConfigError, MapError
from streamwsi.loading.read import read_chunk
from streamwsi.loading.resolution import Wanted
from streamwsi.loading.resolve import Choices, ReadingOptions, resolve_slide
from streamwsi.maps import render as module
from streamwsi.maps.colours import Scale
from streamwsi.maps.pieces import SlidePlan, read_pieces
from streamwsi.maps.raster import Map, read_map
from streamwsi.maps.render import overlay, render, render_all
from streamwsi.maps.sheet import Sheet
from streamwsi.resolved import ResolvedSlide
from streamwsi.slides import open_slide
from streamwsi.values import ValueSpec
from streamwsi.writing.hdf5_file import HDF5PieceFile
from tests.helpers import noise_levels, write_tiff
from tests.writing.fabricate import resolved_slide, write_patient

GREY = matplotlib.colormaps["gray"]


def scale(low: float, high: float, cmap: str = "gray", threshold: float | None = None) -> Scale:
    return Scale(cmap, low, high, threshold, (False, False))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were drawn, as they were saved."""
    found: list[Any] = []
    real = module.save
    monkeypatch.setattr(module, "save", lambda figure, target: (found.append(figure), real(figure, target)))
    return found


def words_of(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.texts]


def picture_of(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def tissue_in(picture: npt.NDArray[np.uint8], heat: Map | tuple[int, int], width_px: int) -> npt.NDArray[np.uint8]:
    """The part of a picture that shows the slide, given its map or its (width, height)."""
    sheet = Sheet.of(heat.plan.extent_l0 if isinstance(heat, Map) else heat, width_px)
    (left, top), (width, height) = sheet.places[0], sheet.size
    part = picture[top : top + height, left : left + width]
    assert part.shape == (sheet.size[1], sheet.size[0], 3)
    return part


def made_map(values: Any, extent_l0: tuple[int, int], cell: int) -> Map:
    array = np.asarray(values, np.float64)[..., None]
    plan = SlidePlan.of(resolved_slide(extent=extent_l0, kernel=(cell, cell), stride=(cell, cell)))
    edges = [
        np.minimum(np.arange(n + 1) * cell, size).astype(float) for n, size in zip(array.shape[1::-1], extent_l0, strict=True)
    ]
    return Map(array, edges[0], edges[1], ("value",), "p1", "s", plan)


@pytest.fixture
def small_slide(tmp_path: Path) -> ResolvedSlide:
    """A slide of noise, 100 × 80 pixels, that can be opened."""
    (tmp_path / "slides").mkdir()
    return resolved_slide(path=str(write_tiff(tmp_path / "slides" / "s.tif", noise_levels([(100, 80)]))))


def brightness_of(path: Path, folder: Path, kernel: int = 96, stride: int = 64, level: int = 0) -> Path:
    """The mean brightness of a slide's windows, as a patient's file."""
    options = ReadingOptions(
        kernel=(kernel, kernel), stride=(stride, stride), border="pad", background=(255, 255, 255), reader="auto",
        on_bad_region="fail", batch_size=32, chunk_px=1 << 22, threads=1, min_chunk_interval_s=0,
    )  # fmt: skip
    with open_slide(path) as reader:
        slide = resolve_slide(reader, (0, 0), "p", Slide(path, "p"), Choices(Wanted(level)), options)
        values = np.empty(len(slide.grid()), np.float32)
        for number in range(len(slide.chunks())):
            chunk = read_chunk(reader, slide, number)
            values[chunk.windows.index] = [piece.pixels.mean() for piece in chunk.small_chunks()]
    return write_patient(folder, [slide], [values], columns=("brightness",))


@pytest.fixture(scope="module")
def brightness(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brightness_of(bundled, tmp_path_factory.mktemp("out"))


# ---- where the map lies


def seen_in_cells(picture: npt.NDArray[np.uint8], heat: Map) -> npt.NDArray[np.float64]:
    """(rows, columns): the mean brightness of the cells' pixels in a picture of the whole slide."""
    brightness = picture.mean(axis=2)
    (height, width), (rows, columns) = brightness.shape, heat.values.shape[:2]
    row = np.searchsorted(heat.y_edges, (np.arange(height) + 0.5) * heat.y_edges[-1] / height) - 1
    column = np.searchsorted(heat.x_edges, (np.arange(width) + 0.5) * heat.x_edges[-1] / width) - 1
    cell = (row[:, None] * columns + column).ravel()
    counts = np.bincount(cell, minlength=rows * columns)
    return (np.bincount(cell, brightness.ravel(), rows * columns) / counts).reshape(rows, columns)


def likeness(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def test_the_map_lies_on_the_tissue(brightness: Path, bundled: Path) -> None:
    heat = read_map(brightness)
    with open_slide(bundled) as reader:
        thumbnail = reader.thumbnail(1500)
    assert likeness(heat.values[..., 0], seen_in_cells(thumbnail, heat)) > 0.97


def test_the_picture_shows_the_map_on_the_tissue(brightness: Path, tmp_path: Path) -> None:
    heat = read_map(brightness)
    coloured, bare = (
        tissue_in(picture_of(render(brightness, tmp_path / f"{alpha}.png", cmap="gray", alpha=alpha, width_px=800)), heat, 800)
        for alpha in (1, 0)
    )
    shown, tissue = seen_in_cells(coloured, heat), seen_in_cells(bare, heat)
    low, high = np.nanmin(heat.values), np.nanmax(heat.values)
    inner = np.s_[1:-1, 1:-1]  # without the frame's line
    np.testing.assert_allclose(shown[inner], ((heat.values[..., 0] - low) / (high - low) * 255)[inner], atol=3)
    assert likeness(shown, tissue) > 0.95
    assert (
        likeness(shown[inner], tissue[:-2, 1:-1])
        < likeness(shown[inner], tissue[inner])
        > likeness(shown[inner], tissue[1:-1, 2:])
    )


def assert_lies_on_the_tissue(file: Path, folder: Path) -> None:
    """The brightness that a rendered map shows is that of the tissue in the same places of the picture, and not next to them.

    Both are taken from rendered pictures, by the pictures' own geometry.
    """
    heat = read_map(file)
    shown, bare = (
        tissue_in(picture_of(render(file, folder / f"{alpha}.png", cmap="gray", alpha=alpha, width_px=900)), heat, 900)
        for alpha in (1, 0)
    )
    height, width = shown.shape[:2]
    plan = heat.plan
    window_px = round(plan.stride[0] * plan.downsample * width / plan.extent_l0[0])
    # the tissue as coarse as the map is: its mean over the window that lies around each pixel
    tissue = np.asarray(Image.fromarray(bare).convert("L").filter(ImageFilter.BoxBlur(window_px / 2))).astype(float)
    inner = np.s_[2 * window_px : height - 2 * window_px, 2 * window_px : width - 2 * window_px]

    def like(x: int, y: int) -> float:
        """How alike they are when the map is moved by (x, y) windows."""
        moved = np.roll(shown[..., 0].astype(float), (y * window_px, x * window_px), axis=(0, 1))
        return likeness(moved[inner], tissue[inner])

    moved = [like(x, y) for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    assert like(0, 0) > 0.95 > max(moved), (like(0, 0), moved)


def test_a_rendered_map_of_brightness_is_like_the_tissue(bundled: Path, tmp_path: Path) -> None:
    assert_lies_on_the_tissue(brightness_of(bundled, tmp_path, kernel=48, stride=48), tmp_path)


@pytest.mark.parametrize(("level", "kernel"), [(0, 32), (2, 8)])
def test_a_rendered_map_of_a_slide_with_fractional_levels_is_like_the_tissue(
    shared_slides: Path, tmp_path: Path, level: int, kernel: int
) -> None:
    slide = shared_slides / "tiff" / "wsipack_example.tif"
    with open_slide(slide) as reader:
        assert reader.info.level_downsamples[2] % 1 != 0
    assert_lies_on_the_tissue(brightness_of(slide, tmp_path, kernel, kernel, level), tmp_path)


def test_cells_have_their_place_and_the_last_is_cut() -> None:
    heat = made_map([[0, 1, 2], [3, 4, 5]], (50, 40), 20)  # the last column is 10 pixels wide
    tissue = np.zeros((80, 100, 3), np.uint8)
    picture = overlay(tissue, heat, scale(0, 5), alpha=1.0)[..., 0]
    shades = 255 * GREY(np.arange(6) / 5)[:, 0]
    expected = np.repeat(np.repeat(shades.reshape(2, 3), 40, axis=0), [40, 40, 20], axis=1)
    np.testing.assert_array_equal(picture, np.rint(expected))


def test_tissue_shows_where_there_is_no_value_and_grey_through_the_colours() -> None:
    heat = made_map([[np.nan, 1.0]], (40, 20), 20)
    tissue = np.empty((20, 40, 3), np.uint8)
    tissue[...] = (200, 100, 150)
    picture = overlay(tissue, heat, scale(0, 1, "viridis"), alpha=0.25)
    assert (picture[:, :20] == (200, 100, 150)).all()
    colour = np.array(matplotlib.colormaps["viridis"](1.0)[:3])
    grey = round(200 * 0.2126 + 100 * 0.7152 + 150 * 0.0722)
    assert (picture[:, 20:] == np.rint(0.75 * grey + 0.25 * np.rint(255 * colour))).all()


def test_values_beyond_the_ends_have_the_colours_of_the_ends() -> None:
    heat = made_map([[-np.inf, -1, 2, np.inf]], (80, 20), 20)
    picture = overlay(np.zeros((1, 4, 3), np.uint8), heat, scale(0, 1), alpha=1.0)
    assert picture[0, :, 0].tolist() == [0, 0, 255, 255]


def test_the_ends_of_the_colour_bar_are_respected(small_slide: ResolvedSlide, tmp_path: Path) -> None:
    path = write_patient(tmp_path, [small_slide], [np.linspace(0, 1, 35)])
    picture = render(path, cmap="gray", alpha=1.0, vmin=0.4, vmax=0.6, width_px=400)
    shown = tissue_in(picture_of(picture), (100, 80), 400)[3:-3, 3:-3, 0]
    assert (shown == 0).mean() == pytest.approx(0.4, abs=0.05)
    assert (shown == 255).mean() == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize("values", [np.full(35, np.nan), np.full(35, 7.0), np.full(35, np.inf), np.zeros(35, bool)], ids=str)
@pytest.mark.parametrize("end", [{}, {"vmin": 100.0}, {"vmax": -100.0}], ids=str)
def test_a_map_without_a_range_has_a_picture(
    small_slide: ResolvedSlide, tmp_path: Path, values: np.ndarray, end: dict[str, float]
) -> None:
    assert render(write_patient(tmp_path, [small_slide], [values]), width_px=300, **end).exists()


def test_the_map_alone_has_the_colours_of_its_values(tmp_path: Path) -> None:
    # the slide does not exist: it is not opened for this
    slide = resolved_slide(extent=(112, 80))
    status = np.zeros(35, np.uint8)
    status[3] = Status.NONE
    values = np.linspace(-1, 1, 35)
    picture = picture_of(render(write_patient(tmp_path, [slide], [values], [status]), view="map", cmap="magma", width_px=700))
    shown = tissue_in(picture, (112, 80), 700)
    height, width = shown.shape[:2]
    for number, value in enumerate(values):
        row, column = divmod(number, 7)
        colour = shown[int((row + 0.5) * height / 5), int((column + 0.5) * width / 7)]
        expected = np.rint(255 * np.array(matplotlib.colormaps["magma"]((value + 1) / 2)[:3]))
        assert colour.tolist() == ([255, 255, 255] if number == 3 else expected.tolist())


@pytest.mark.parametrize("size", [(300, 200), (200, 300)], ids=str)
def test_side_by_side_are_the_thumbnail_and_the_map(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_tiff(tmp_path / "s.tif", noise_levels([size]))
    slide = resolved_slide(extent=size, kernel=(50, 50), stride=(50, 50), path=str(path))
    file = write_patient(tmp_path, [slide], [np.arange(24.0)])
    picture = picture_of(render(file, view="side-by-side", width_px=900))
    bare = tissue_in(picture_of(render(file, threshold=99, width_px=900)), size, 900)
    sheet = Sheet.of(size, 900, 2)
    (width, height), places = sheet.size, sheet.places
    left, right = (picture[y : y + height, x : x + width] for x, y in places)
    smaller = Image.fromarray(bare).resize((width, height), Image.Resampling.LANCZOS)
    assert likeness(left.astype(float), np.asarray(smaller).astype(float)) > 0.8
    heat = read_map(file)
    expected = module.map_picture(heat, scale(0, 23, "viridis"), (width, height))
    np.testing.assert_array_equal(right, expected)


def test_values_below_the_threshold_leave_the_tissue_as_it_is(
    small_slide: ResolvedSlide, tmp_path: Path, figures: list[Any]
) -> None:
    file = write_patient(tmp_path, [small_slide], [np.arange(35.0)], columns=("density",))
    some, bare = (
        tissue_in(picture_of(render(file, width_px=800, **options)), (100, 80), 800)
        for options in ({"threshold": 20.0}, {"threshold": 1e9})
    )
    same = (some == bare).all(axis=2)
    row = len(some) // 5
    assert same[: 2 * row].all()  # windows 0 to 13
    assert not same[3 * row : 4 * row].all(axis=1).any()  # windows 21 to 27
    assert "not coloured: below 20" in words_of(figures[0])
    (bar,) = [axes for axes in figures[0].axes if axes.get_ylabel()]
    assert bar.get_ylabel() == "density"
    assert bar.get_ylim() == (20, 34)


# ---- the picture


@pytest.mark.parametrize(
    ("width", "extent", "offset", "factor"),
    [
        (200, (3000, 200), 0, 1),
        (200, (200, 3000), 1e6, 1e-3),
        (300, (300, 260), -1.23456e-7, 1e-12),
        (300, (3000, 200), 12345678, 1),
        (1600, (200, 3000), -1.23456e-7, 1e-12),
        (1600, (300, 260), 1e6, 1e-3),
        (4000, (3000, 200), 1e6, 1e-3),
        (4000, (300, 260), 12345678, 1),
    ],
    ids=str,
)
def test_nothing_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, extent: tuple[int, int], offset: float, factor: float
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(module, "save", lambda figure, target: found.append(figure))
    slide = resolved_slide(extent=extent, kernel=(100, 100), stride=(100, 100), patient="A patient's name, " * 9 + "X")
    values = offset + factor * np.random.default_rng(0).random(len(slide.grid()))
    file = tmp_path / "p.h5"
    write_patient(tmp_path, [slide], [values], columns=("a rather long name of a column " * 4,)).rename(file)
    render(file, tmp_path / "p.png", view="map", width_px=width, threshold=-1e9)
    (figure,) = found
    figure.canvas.draw()
    whole = figure.bbox
    for part in [*figure.texts, *figure.axes]:
        extent_px = part.get_tightbbox() if hasattr(part, "get_tightbbox") else part.get_window_extent()
        if extent_px is not None:
            assert extent_px.x0 >= 0 and extent_px.y0 >= 0, part
            assert extent_px.x1 <= whole.x1 and extent_px.y1 <= whole.y1, part


@pytest.mark.parametrize(("mpp", "shown"), [((0.5, 0.5), True), ((352.9, 352.9), False), (None, False)], ids=str)
def test_a_scale_bar_is_there_where_the_resolution_can_be_believed(
    tmp_path: Path, figures: list[Any], mpp: tuple[float, float] | None, shown: bool
) -> None:
    file = write_patient(tmp_path, [resolved_slide(extent=(1000, 800), kernel=(100, 100), stride=(100, 100), mpp=mpp)], [
        np.arange(80.0)
    ])  # fmt: skip
    render(file, view="map", width_px=800)
    bars = [text.get_text() for axes in figures[0].axes for text in axes.texts]
    assert bars == (["100 µm"] if shown else [])
    if shown:
        (bar,) = [axes for axes in figures[0].axes if axes.texts]
        sheet = Sheet.of((1000, 800), 800)
        assert bar.bbox.width == pytest.approx(100 / 0.5 * sheet.size[0] / 1000)
    assert ("352.9 µm per pixel, as the slide says, cannot be right" in "".join(words_of(figures[0]))) == (
        mpp == (352.9, 352.9)
    )


def test_memory_follows_the_picture_not_the_map(tmp_path: Path) -> None:
    n_windows = 2000 * 1000
    slide = resolved_slide(extent=(2000, 1000), kernel=(1, 1), stride=(1, 1), patient="p")
    path = tmp_path / "p.h5"
    file = HDF5PieceFile(path, ValueSpec("float32", (2,)))
    file.begin_slide(slide, n_windows)
    for first in range(0, n_windows, 1 << 18):
        index = np.arange(first, min(n_windows, first + (1 << 18)))
        file.append(slide.grid().windows(index), np.stack([index, -index], axis=1).astype(np.float32))
    file.end_slide([])
    file.close()
    render(path, tmp_path / "small.png", view="map", width_px=300)  # what is imported stays in memory

    def peak_bytes(read: Callable[[], Any]) -> int:
        tracemalloc.start()
        try:
            read()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    drawing = peak_bytes(lambda: render(path, tmp_path / "small.png", view="map", channel=1, width_px=300))
    reading = peak_bytes(lambda: read_pieces(path))
    assert reading > 48 * n_windows  # index, place, size and values of all windows: what drawing must not hold
    assert drawing < 48 << 20


@pytest.mark.parametrize("size", [(1000, 60), (60, 1000), (16, 16), (300, 200)], ids=str)
def test_the_whole_slide_is_shown_in_its_proportions(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_tiff(tmp_path / "s.tif", noise_levels([size]))
    slide = resolved_slide(extent=size, kernel=(16, 16), stride=(16, 16), path=str(path))
    status = np.full(len(slide.grid()), Status.NONE, np.uint8)
    file = write_patient(tmp_path, [slide], [np.zeros(len(status))], [status])
    picture = picture_of(render(file, width_px=800))
    shown = tissue_in(picture, size, 800)
    assert picture.shape[1] <= 800
    assert picture.shape[0] <= 1200
    assert shown.shape[1] / shown.shape[0] == pytest.approx(size[0] / size[1], rel=0.03)
    expected = Image.fromarray(noise_levels([size])[0]).resize(shown.shape[1::-1], Image.Resampling.LANCZOS)
    difference = np.abs(shown.astype(int) - np.asarray(expected))[3:-3, 3:-3]
    assert difference.mean() < 12
    white = (picture == 255).all(axis=2)
    assert white[:2].all() and white[-2:].all() and white[:, :2].all() and white[:, -2:].all()  # nothing is cut off


def test_a_map_with_more_cells_than_pixels_is_drawn_coarser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[Map] = []
    real = module.place
    monkeypatch.setattr(module, "place", lambda *given, **named: placed.append(real(*given, **named)) or placed[-1])
    path = write_tiff(tmp_path / "s.tif", noise_levels([(1200, 900)]))
    slide = resolved_slide(extent=(1200, 900), kernel=(1, 1), stride=(1, 1), path=str(path), block=(100, 1200))
    values = np.repeat(np.arange(900, dtype=np.float32), 1200)
    picture = picture_of(render(write_patient(tmp_path, [slide], [values]), cmap="gray", alpha=1.0, width_px=400))
    shown = tissue_in(picture, (1200, 900), 400)
    assert placed[0].values.shape[0] <= shown.shape[0] and placed[0].values.shape[1] <= shown.shape[1]
    np.testing.assert_allclose(shown[3:-3, 150, 0], np.linspace(0, 255, len(shown))[3:-3], atol=4)


@pytest.mark.parametrize("title", ["", "$x$ costs 5 $", "a long title " * 30, "Gewebe α – H&E"])
def test_a_title_is_shown_as_it_is(small_slide: ResolvedSlide, tmp_path: Path, title: str) -> None:
    picture = picture_of(render(write_patient(tmp_path, [small_slide], [np.zeros(35)]), width_px=400, title=title))
    assert (picture[:, -2:] == 255).all()


def test_the_state_of_matplotlib_is_left_alone(small_slide: ResolvedSlide, tmp_path: Path) -> None:
    before, had_pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    render(write_patient(tmp_path, [small_slide], [np.zeros(35)]), width_px=300)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


# ---- names


def test_a_picture_is_named_after_the_patient_and_the_column(small_slide: ResolvedSlide, tmp_path: Path) -> None:
    path = write_patient(tmp_path, [small_slide], [np.zeros((35, 2))], columns=("red/green", "blue"))
    before = set(tmp_path.iterdir())
    first, second = render(path, width_px=300), render(path, channel="blue", width_px=300)
    assert (first.name, second.name) == ("p1_red-green.png", "p1_blue.png")
    assert set(tmp_path.iterdir()) - before == {first, second}  # nothing half done is left
    assert picture_of(first).shape[1] == 300


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "picture.JPEG", "picture.pdf"])
def test_a_picture_may_have_another_name_and_format(small_slide: ResolvedSlide, tmp_path: Path, name: str) -> None:
    path = write_patient(tmp_path, [small_slide], [np.zeros(35)])
    picture = render(path, tmp_path / name, width_px=300)
    assert picture == tmp_path / name
    if name.endswith("pdf"):
        assert picture.read_bytes().startswith(b"%PDF")
    else:
        assert picture_of(picture).shape[1] == 300


def test_every_slide_of_a_folder_has_a_picture(small_slide: ResolvedSlide, tmp_path: Path) -> None:
    def slide(patient: str, id: str, place: int) -> ResolvedSlide:
        return resolved_slide(patient=patient, id=id, place=(0, place), path=small_slide.path)

    out = tmp_path / "out"
    write_patient(out, [slide("p2", "H&E", 0), slide("p2", "Ki67", 1)], [np.zeros(35)] * 2, columns=("density",))
    write_patient(out, [slide("p1", "p1", 0)], [np.zeros(35)], columns=("density",))
    (out / "report.json").write_text("{}")
    pictures = render_all(out, width_px=300)
    assert [picture.name for picture in pictures] == ["p1_density.png", "p2_H&E_density.png", "p2_Ki67_density.png"]
    assert all(picture.parent == out for picture in pictures)
    (tmp_path / "pictures").mkdir()
    assert [path.parent.name for path in render_all(out, tmp_path / "pictures", width_px=300)] == ["pictures"] * 3


@pytest.mark.parametrize("format", ["csv", "hdf5"])
def test_a_partial_picture_is_named_so(small_slide: ResolvedSlide, tmp_path: Path, format: str) -> None:
    write_patient(tmp_path, [small_slide], [np.zeros(35)], format=format, partial=True)
    assert [picture.name for picture in render_all(tmp_path, width_px=300)] == ["p1_value_partial.png"]


# ---- what goes wrong


def test_a_slide_that_was_moved_is_found_where_it_is_said_to_be(small_slide: ResolvedSlide, tmp_path: Path) -> None:
    path = write_patient(tmp_path, [small_slide], [np.zeros(35)])
    (tmp_path / "elsewhere").mkdir()
    moved = Path(small_slide.path).rename(tmp_path / "elsewhere" / "s.tif")
    with pytest.raises(MapError, match=rf"not at {small_slide.path}: pass the place .* as slide_path"):
        render(path)
    assert render(path, slide_path=moved, width_px=300).exists()
    assert render(path, slide_path=moved.parent, width_px=300).exists()
    assert len(render_all(tmp_path, slide_path=moved.parent, width_px=300)) == 1


def test_another_slide_is_refused(small_slide: ResolvedSlide, tmp_path: Path) -> None:
    path = write_patient(tmp_path, [small_slide], [np.zeros(35)])
    other = write_tiff(tmp_path / "other.tif", noise_levels([(90, 80)]))
    with pytest.raises(MapError, match=r"another slide: it has \(90, 80\) pixels, the map's has \(100, 80\)"):
        render(path, slide_path=other)
    (tmp_path / "broken.tif").write_text("not a slide")
    with pytest.raises(MapError, match="thumbnail cannot be made"):
        render(path, slide_path=tmp_path / "broken.tif")


def test_one_slide_that_is_missing_does_not_keep_the_others_from_being_drawn(
    small_slide: ResolvedSlide, tmp_path: Path
) -> None:
    write_patient(tmp_path, [resolved_slide(patient="a", path="/nowhere/a.svs")], [np.zeros(35)])
    write_patient(tmp_path, [resolved_slide(patient="b", path=small_slide.path)], [np.zeros(35)])
    with pytest.raises(MapError, match=r"1 pictures could not be made, 1 were: the slide is not at /nowhere/a\.svs"):
        render_all(tmp_path, width_px=300)
    assert (tmp_path / "b_value.png").exists()


def test_a_folder_without_patients_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MapError, match="holds no patient file"):
        render_all(tmp_path)
    with pytest.raises(MapError, match="is not a folder"):
        render_all(tmp_path / "nowhere")
    with pytest.raises(MapError, match=r"x\.png is not a folder; .* name one patient's file there"):
        render_all(tmp_path, tmp_path / "x.png")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cmap": "rainbows"}, "cmap must be .* got 'rainbows'"),
        ({"alpha": 1.5}, "alpha must be from 0 to 1, got 1.5"),
        ({"width_px": 10}, "width_px must be at least 200, got 10"),
        ({"view": "beside"}, "view must be one of 'overlay', 'side-by-side', 'map', got 'beside'"),
        ({"format": "docx"}, "must end in one of .*; got 'p1_value.docx'"),
        ({"vmin": 2, "vmax": 1}, "vmin must be below vmax, got 2 and 1"),
        ({"target": "picture.docx"}, "must end in one of .*; got 'picture.docx'"),
        ({"target": "/nowhere/picture.png"}, "there is no folder /nowhere"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_option_that_cannot_work_is_named(
    small_slide: ResolvedSlide, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    path = write_patient(tmp_path, [small_slide], [np.zeros(35)])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=says):
        render(path, **options)
    with pytest.raises(MapError, match="no channel 3"):
        render(path, channel=3)
    assert sorted(tmp_path.iterdir()) == before
