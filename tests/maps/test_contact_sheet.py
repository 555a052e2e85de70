from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from streamwsi.errors import ConfigError, MapError
from streamwsi.maps import contact_sheet as module
from streamwsi.maps.contact_sheet import _Page, contact_sheet
from streamwsi.pipeline.report import SlideReport
from streamwsi.values import ValueSpec
from tests.helpers import noise_levels, write_tiff
from tests.writing.fabricate import resolved_slide, write_patient
from tests.writing.fabricate_run import write_report, write_run

SPEC = ValueSpec("float64", (), ("density",))


def write_slide(folder: Path, patient: str, values: npt.NDArray[Any], slide: Path | str = "/nowhere/s.svs") -> None:
    """A patient whose only slide is called like it."""
    resolved = resolved_slide(patient=patient, id=patient, path=str(slide))
    write_patient(folder, [resolved], [values], columns=SPEC.columns)


def tile(picture: npt.NDArray[np.uint8], page: _Page, number: int) -> npt.NDArray[np.uint8]:
    left, top = page.place(number)
    return picture[page.top + top : page.top + top + page.tile, page.left + left : page.left + left + page.tile]


def picture_of(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What stands on each page; and everything lies within it."""
    found: list[list[str]] = []
    real = module.save

    def save(figure: Any, target: Path) -> None:
        found.append([text.get_text().replace("\n", " ") for text in figure.texts])
        for text in figure.texts:
            extent = text.get_window_extent()
            assert extent.x0 >= 0 and extent.x1 <= figure.bbox.x1 and extent.y0 >= 0 and extent.y1 <= figure.bbox.y1
        real(figure, target)

    monkeypatch.setattr(module, "save", save)
    return found


def test_every_slide_has_a_tile_in_the_colours_of_all(tmp_path: Path, words: list[list[str]]) -> None:
    slide = write_tiff(tmp_path / "a.tif", noise_levels([(100, 80)]))
    write_run(tmp_path / "out", {name: {name: f"/nowhere/{name}.svs"} for name in ("a", "b", "c")}, SPEC)
    write_slide(tmp_path / "out", "a", np.full(35, 1.0), slide)
    write_slide(tmp_path / "out", "b", np.full(35, 5.0))
    write_slide(tmp_path / "out", "c", np.full(35, 3.0))
    write_report(tmp_path / "out", [])
    (path,) = contact_sheet(tmp_path / "out", alpha=1.0, cmap="viridis")
    assert path == tmp_path / "out" / "contact-sheet_density.png"
    picture, page = picture_of(path), _Page.of(3, 1600)
    for number, place in enumerate((0.0, 1.0, 0.5)):
        shown = tile(picture, page, number)
        expected = np.rint(255 * np.array(matplotlib.colormaps["viridis"](place)[:3]))
        assert shown[page.tile // 2, page.tile // 2].tolist() == expected.tolist()
        assert (shown[2] == 255).all()  # a slide of 100 × 80 in a square
    (said,) = words
    assert {"a", "b", "c", "no thumbnail", "Redness; 3 slides: 3 done", "the same colours for all"} <= set(said)
    assert said.count("no thumbnail") == 2


def test_slides_that_failed_or_are_not_finished_are_shown_as_such(tmp_path: Path, words: list[list[str]]) -> None:
    names = ("good", "torn", "later", "changed")
    write_run(tmp_path, {name: {name: f"/nowhere/{name}.svs"} for name in names}, SPEC)
    write_slide(tmp_path, "good", np.arange(35.0))
    write_slide(tmp_path, "changed", np.arange(35.0))
    (tmp_path / "changed.h5").write_bytes(b"something else")
    failed = SlideReport(id="torn", path="/nowhere/torn.svs", state="failed", reason="/nowhere/torn.svs: a tile is torn")
    write_report(tmp_path, [("torn", failed)], state="interrupted")
    (path,) = contact_sheet(tmp_path)
    picture, page = picture_of(path), _Page.of(4, 1600)
    for number, colour in ((1, (250, 222, 220)), (2, (232, 232, 232)), (3, (250, 222, 220))):
        assert (tile(picture, page, number)[[0, -1]] == colour).all()
    (said,) = words
    together = " ".join(said)
    assert {"failed", "unfinished", "unreadable", "a tile is torn"} <= set(said)
    assert "4 slides: 1 done, 1 failed, 1 unfinished, 1 unreadable" in together
    assert "the run was interrupted" in together
    assert "is not an HDF5 file" in together


def test_very_many_slides_stand_on_several_pages(tmp_path: Path, words: list[list[str]]) -> None:
    names = [f"patient {number:03}" for number in range(150)]
    write_run(tmp_path, {name: {name: f"/nowhere/{name}.svs"} for name in names}, SPEC)
    write_slide(tmp_path, names[0], np.arange(35.0))
    write_slide(tmp_path, names[149], np.arange(35.0) + 100)
    write_report(tmp_path, [])
    pages = contact_sheet(tmp_path, tmp_path / "sheet.png", title="All of them")
    assert [page.name for page in pages] == ["sheet_1.png", "sheet_2.png"]
    shown = [name for page in words for name in page if name.startswith("patient ")]
    assert shown == names
    assert [f"page {n} of 2" in " ".join(words[n - 1]) for n in (1, 2)] == [True, True]
    assert all("All of them" in page for page in words)
    assert max(Image.open(page).size[1] for page in pages) < 1.7 * 1600


@pytest.mark.parametrize("width", [200, 400, 4000])
@pytest.mark.parametrize("n_tiles", [1, 2, 7, 500])
def test_tiles_fit_their_page(n_tiles: int, width: int) -> None:
    page = _Page.of(n_tiles, width)
    assert page.tile >= min(96, width - page.left - page.right)
    right = page.left + page.place(page.columns - 1)[0] + page.tile
    assert right <= width - page.right
    assert page.place(page.rows * page.columns - 1)[1] + page.tile <= 1.5 * width or page.rows == 1


def test_ends_and_threshold_are_those_that_were_asked_for(tmp_path: Path, words: list[list[str]]) -> None:
    write_run(tmp_path, {"a": {"a": "/nowhere/a.svs"}}, SPEC)
    write_slide(tmp_path, "a", np.arange(35.0))
    write_report(tmp_path, [])
    (path,) = contact_sheet(tmp_path, cmap="gray", alpha=1.0, vmin=-34.0, vmax=34.0, threshold=14.0, width_px=800)
    shown = tile(picture_of(path), _Page.of(1, 800), 0)
    middle = shown[len(shown) // 2]  # the third row of five: windows 14 to 20
    assert middle[5].tolist() == [round(255 * matplotlib.colormaps["gray"]((14 + 34) / 68)[0])] * 3
    assert (shown[len(shown) // 5] == 255).all()  # windows 0 to 6
    assert "the same colours for all; not coloured: below 14" in words[0]


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    write_run(tmp_path, {"a": {"a": "/nowhere/a.svs"}}, SPEC)
    write_slide(tmp_path, "a", np.arange(35.0))
    with pytest.raises(MapError, match="has no channel 'colour'; it has 1, from 0: density"):
        contact_sheet(tmp_path, channel="colour")
    with pytest.raises(ConfigError, match="width_px must be at least 200, got 100"):
        contact_sheet(tmp_path, width_px=100)
    with pytest.raises(ConfigError, match=r"must end in one of .*; got 'sheet\.tiff'"):
        contact_sheet(tmp_path, tmp_path / "sheet.tiff")
    write_run(tmp_path / "gathered", {"a": {"a": "/nowhere/a.svs"}}, mode="accumulate")
    with pytest.raises(MapError, match=r"gathers results \(accumulate\), of which there is no map"):
        contact_sheet(tmp_path / "gathered")
