from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import Normalize
from PIL import Image

from streamwsi.chunks import Status
from streamwsi.dataset import Slide
from streamwsi.errors import ConfigError, MapError
from streamwsi.loading.read import read_chunk
from streamwsi.loading.resolve import ReadingOptions, resolve_slide
from streamwsi.maps.pieces import SlidePlan
from streamwsi.maps.raster import Map, read_map
from streamwsi.maps.render import _Sheet, overlay, render, render_all
from streamwsi.resolved import ResolvedSlide
from streamwsi.slides import open_slide
from tests.helpers import noise_levels, write_tiff
from tests.writing.fabricate import resolved_slide, write_patient

GREY = matplotlib.colormaps["gray"]


def picture_of(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def tissue_in(picture: npt.NDArray[np.uint8], heat: Map | tuple[int, int], width_px: int) -> npt.NDArray[np.uint8]:
    """The part of a picture that shows the slide, given its map or its (width, height)."""
    sheet = _Sheet.of(heat.plan.extent_l0 if isinstance(heat, Map) else heat, width_px)
    part = picture[sheet.top : sheet.top + sheet.size[1], sheet.left : sheet.left + sheet.size[0]]
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


@pytest.fixture(scope="module")
def brightness(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mean brightness of the bundled slide's windows, as a patient's file."""
    options = ReadingOptions(
        kernel=(96, 96), stride=(64, 64), border="pad", background=(255, 255, 255), reader="auto",
        on_bad_region="fail", batch_size=32, chunk_px=1 << 22, threads=1, min_chunk_interval_s=0,
    )  # fmt: skip
    with open_slide(bundled) as reader:
        slide = resolve_slide(reader, (0, 0), "CMU-1", Slide(bundled, "CMU-1"), 0, options)
        values = np.empty(len(slide.grid()), np.float32)
        for number in range(len(slide.chunks())):
            chunk = read_chunk(reader, slide, number)
            values[chunk.windows.index] = [piece.pixels.mean() for piece in chunk.small_chunks()]
    return write_patient(tmp_path_factory.mktemp("out"), [slide], [values], columns=("brightness",))


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


def test_cells_have_their_place_and_the_last_is_cut() -> None:
    heat = made_map([[0, 1, 2], [3, 4, 5]], (50, 40), 20)  # the last column is 10 pixels wide
    tissue = np.zeros((80, 100, 3), np.uint8)
    picture = overlay(tissue, heat, GREY, Normalize(0, 5), alpha=1.0)[..., 0]
    shades = 255 * GREY(np.arange(6) / 5)[:, 0]
    expected = np.repeat(np.repeat(shades.reshape(2, 3), 40, axis=0), [40, 40, 20], axis=1)
    np.testing.assert_array_equal(picture, np.rint(expected))


def test_tissue_shows_where_there_is_no_value_and_grey_through_the_colours() -> None:
    heat = made_map([[np.nan, 1.0]], (40, 20), 20)
    tissue = np.empty((20, 40, 3), np.uint8)
    tissue[...] = (200, 100, 150)
    picture = overlay(tissue, heat, matplotlib.colormaps["viridis"], Normalize(0, 1), alpha=0.25)
    assert (picture[:, :20] == (200, 100, 150)).all()
    colour = np.array(matplotlib.colormaps["viridis"](1.0)[:3])
    grey = round(200 * 0.2126 + 100 * 0.7152 + 150 * 0.0722)
    assert (picture[:, 20:] == np.rint(0.75 * grey + 0.25 * 255 * colour)).all()


def test_values_beyond_the_ends_have_the_colours_of_the_ends() -> None:
    heat = made_map([[-np.inf, -1, 2, np.inf]], (80, 20), 20)
    picture = overlay(np.zeros((1, 4, 3), np.uint8), heat, GREY, Normalize(0, 1), alpha=1.0)
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


# ---- the picture


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
    import streamwsi.maps.render as module

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


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "picture.TIFF", "picture.pdf"])
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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cmap": "rainbows"}, "cmap must be .* got 'rainbows'"),
        ({"alpha": 1.5}, "alpha must be from 0 to 1, got 1.5"),
        ({"width_px": 10}, "width_px must be at least 200, got 10"),
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
