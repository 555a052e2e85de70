from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from streamwsi.chunks import ProcessedPiece, Status
from streamwsi.config import OutputOptions
from streamwsi.dataset import Patient
from streamwsi.errors import JournalError, PieceError
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec, decode_result
from streamwsi.writing.journal import Journal
from streamwsi.writing.layout import Layout
from streamwsi.writing.publish import Stop, checksum_of, publish_all, publish_patient, read_record
from tests.writing.fabricate import all_written, fill, labelled_slide, numbers, patient_of, resolved_slide, write_patient

FORMATS = ("csv", "hdf5")


@pytest.fixture(params=FORMATS)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> OutputOptions:
    return OutputOptions(folder=str(tmp_path / "out"), format=request.param)


@pytest.fixture
def layout(output: OutputOptions) -> Layout:
    layout = Layout.of(output)
    layout.folder.mkdir()
    return layout


@pytest.fixture
def journal(layout: Layout) -> Any:
    with Journal(layout.journal("p1")) as journal:
        yield journal


def rows_of(path: Path, slide: str = "s") -> np.ndarray:
    """(N, 1 + …): places in the plan and values of a slide's rows."""
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table[table["slide"] == slide].iloc[:, [1, *range(7, table.shape[1])]].to_numpy()
    with h5py.File(path, "r") as file:
        index, features = file[slide]["index"][:], file[slide]["features"][:]
        return np.column_stack([index, features.reshape(len(index), features[:1].size if len(index) else 1)])


def edit(journal: Journal, statement: str) -> None:
    """Do to a journal what no code here would do."""
    journal.close()
    with sqlite3.connect(journal.path) as database:
        database.execute(statement)
    database.close()


def nothing_is_left(layout: Layout) -> bool:
    return [path.name for path in layout.folder.iterdir()] == [".journal"]


def test_a_patient_is_published_with_a_record(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slide = resolved_slide()
    values = np.linspace(-1, 1, 70, dtype=np.float32).reshape(35, 2)
    fill(journal, slide, values, columns=("a", "b"))
    record = publish_patient(journal, patient_of([slide]), output)
    path = layout.final_file("p1")
    assert record.file == path.name
    assert record.size_bytes == path.stat().st_size
    assert record.checksum == checksum_of(path)
    assert record.values == ValueSpec("float32", (2,), ("a", "b"))
    assert record.slides[0].resolved == slide
    assert (record.slides[0].written, record.slides[0].not_written) == (35, [])
    assert read_record(layout, "p1") == record
    assert read_record(layout, "p2") is None
    found = rows_of(path)
    np.testing.assert_array_equal(found[:, 0], np.arange(35))
    np.testing.assert_array_equal(found[:, 1:].astype(np.float32), values)


def test_a_record_without_its_file_does_not_count(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slide = resolved_slide()
    fill(journal, slide, np.zeros(35))
    publish_patient(journal, patient_of([slide]), output)
    layout.final_file("p1").unlink()
    assert read_record(layout, "p1") is None


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_does_not_depend_on_blocks_or_on_the_order_of_commits(tmp_path: Path, format: str) -> None:
    values = numbers("float64", (35, 2))
    status = np.resize(np.array([0, 0, 1, 0, 2], np.uint8), 35)
    written = []
    for block, backwards in (((2, 3), False), ((1, 1), True), ((5, 7), True), ((3, 2), True)):
        slide = resolved_slide(block=block)
        folder = tmp_path / f"{block}"
        output = OutputOptions(folder=str(folder), format=format)  # type: ignore[arg-type]
        with Journal(folder / "j.sqlite") as journal:
            chunks = range(len(slide.chunks()))
            fill(journal, slide, values, status, reversed(chunks) if backwards else chunks)
            record = publish_patient(journal, patient_of([slide]), output)
        written.append((folder / record.file).read_bytes())
        assert record.slides[0].not_written[:3] == [(2, 2, 1), (4, 4, 2), (7, 7, 1)]
    assert all(data == written[0] for data in written)


def test_each_window_ends_with_one_status(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slide = resolved_slide()  # 5 rows of 7
    status = all_written(slide)
    status[3:9] = Status.NONE
    status[9:11] = Status.SKIPPED
    status[34] = Status.NONE
    fill(journal, slide, np.arange(35), status)
    published = publish_patient(journal, patient_of([slide]), output).slides[0]
    assert (published.written, published.none, published.skipped, published.stopped) == (26, 7, 2, 0)
    assert published.not_written == [(3, 8, Status.NONE), (9, 10, Status.SKIPPED), (34, 34, Status.NONE)]
    np.testing.assert_array_equal(rows_of(layout.final_file("p1"))[:, 0], np.flatnonzero(status == Status.WRITTEN))


def test_a_patient_may_have_no_row_at_all(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slide = resolved_slide()
    fill(journal, slide, np.zeros(35), np.full(35, Status.NONE, np.uint8))
    record = publish_patient(journal, patient_of([slide]), output)
    assert record.values is None
    assert record.slides[0].not_written == [(0, 34, Status.NONE)]
    assert layout.final_file("p1").exists()


def test_a_slide_that_no_window_fits_is_published(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slide = resolved_slide(extent=(10, 10), border="crop")
    fill(journal, slide, np.zeros(0))
    record = publish_patient(journal, patient_of([slide]), output)
    assert (record.slides[0].written, record.slides[0].not_written) == (0, [])


# ---- holes and doubles


def test_a_missing_window_is_named_and_nothing_is_written(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slide = resolved_slide()  # chunks of 2 × 3 windows: number 4 begins with window 17, number 5 with window 20
    fill(journal, slide, np.zeros(35), chunks=[0, 1, 2, 3, 6, 7, 8])
    with pytest.raises(JournalError, match=r"slide 's' of patient 'p1': .* missing from the journal, the first is 17"):
        publish_patient(journal, patient_of([slide]), output)
    assert nothing_is_left(layout)


def test_windows_that_vanished_from_a_journal_are_named(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slide = resolved_slide()
    fill(journal, slide, np.zeros(35))
    edit(journal, "DELETE FROM pieces WHERE key = 14")
    with (
        Journal(journal.path) as again,
        pytest.raises(JournalError, match="3 windows are missing from the journal, the first is 14"),
    ):
        publish_patient(again, patient_of([slide]), output)
    assert nothing_is_left(layout)


def test_a_window_that_stands_there_twice_is_named(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slide = resolved_slide()
    fill(journal, slide, np.zeros(35))
    edit(journal, "INSERT INTO pieces SELECT 15, chunk, written, status, vals FROM pieces WHERE key = 14")
    with Journal(journal.path) as again, pytest.raises(JournalError, match="window 15 stands in the journal twice"):
        publish_patient(again, patient_of([slide]), output)
    assert nothing_is_left(layout)


def test_a_window_behind_the_plan_is_named(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slide = resolved_slide()
    fill(journal, slide, np.zeros(35))
    edit(journal, "INSERT INTO pieces SELECT 35, chunk, written, status, vals FROM pieces WHERE key = 34")
    with Journal(journal.path) as again, pytest.raises(JournalError, match="holds window 35, the plan has 35"):
        publish_patient(again, patient_of([slide]), output)
    assert nothing_is_left(layout)


def test_a_slide_that_is_not_in_the_journal_is_named(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slides = [resolved_slide(id="a"), resolved_slide(id="b", place=(0, 1))]
    fill(journal, slides[0], np.zeros(35))
    with pytest.raises(JournalError, match="slide 'b' of patient 'p1' is missing"):
        publish_patient(journal, patient_of(slides), output)
    publish_patient(journal, patient_of(slides), output, stop=Stop(0, 3))
    assert layout.final_file("p1").exists()


def test_a_file_that_cannot_be_finished_gets_no_name(
    journal: Journal, output: OutputOptions, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = resolved_slide()
    fill(journal, slide, np.zeros(35))
    layout.final_file("p1").write_text("what was there before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        publish_patient(journal, patient_of([slide]), output)
    assert sorted(path.name for path in layout.folder.iterdir()) == [".journal", layout.final_file("p1").name]
    assert layout.final_file("p1").read_text() == "what was there before"


# ---- stopped and partial


def test_windows_behind_the_stop_have_no_row(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    first, second = resolved_slide(id="a"), resolved_slide(id="b", place=(0, 1))
    fill(journal, first, np.arange(35), chunks=[0, 1, 2, 3, 4, 8])  # chunk 8 came early, the others never
    fill(journal, second, np.arange(35), chunks=[0])
    record = publish_patient(journal, patient_of([first, second]), output, stop=Stop(slide=0, chunk=4))
    kept = np.sort(np.concatenate([first.chunks().indices(chunk) for chunk in range(5)]))
    found = rows_of(layout.final_file("p1"), "a")
    np.testing.assert_array_equal(found, np.column_stack([kept, kept]))
    one, two = record.slides
    assert (one.written, one.stopped) == (len(kept), 35 - len(kept))
    assert (two.written, two.stopped, two.not_written) == (0, 35, [(0, 34, Status.STOPPED)])
    assert len(rows_of(layout.final_file("p1"), "b")) == 0


def test_a_hole_before_the_stop_is_one(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slide = resolved_slide()
    fill(journal, slide, np.zeros(35), chunks=[0, 2, 3, 4])
    with pytest.raises(JournalError, match="the first is 3"):
        publish_patient(journal, patient_of([slide]), output, stop=Stop(0, 4))
    assert nothing_is_left(layout)


def test_a_partial_file_has_the_slides_that_are_complete(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slides = [resolved_slide(id=name, place=(0, number)) for number, name in enumerate("abc")]
    fill(journal, slides[0], np.arange(35))
    fill(journal, slides[1], np.arange(35), chunks=[0, 1])
    record = publish_patient(journal, patient_of(slides), output, partial=True)
    path = layout.final_file("p1", partial=True)
    assert record.file == path.name
    assert [slide.resolved.id for slide in record.slides] == ["a"]
    np.testing.assert_array_equal(rows_of(path, "a")[:, 1], np.arange(35))
    assert read_record(layout, "p1") is None
    assert read_record(layout, "p1", partial=True) == record
    assert not layout.final_file("p1").exists()


def test_the_whole_file_takes_the_place_of_a_partial_one(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    slides = [resolved_slide(id=name, place=(0, number)) for number, name in enumerate("ab")]
    fill(journal, slides[0], np.arange(35))
    publish_patient(journal, patient_of(slides), output, partial=True)
    fill(journal, slides[1], np.arange(35))
    publish_patient(journal, patient_of(slides), output)
    assert layout.final_file("p1").exists()
    assert not layout.final_file("p1", partial=True).exists()
    assert [path.name for path in layout.published_dir.iterdir()] == [layout.published("p1").name]


# ---- gathering


class Gathering:
    def __init__(self, mode: str) -> None:
        self.mode = mode

    def accumulate(self, previous: Any, piece: ProcessedPiece, patient: Patient) -> Any:
        assert piece.slide is not None
        seen = previous or {"patient": patient.id, "order": [], "sum": np.zeros(2)}
        seen["order"].append([piece.slide.id, piece.window.index])
        return {**seen, "sum": seen["sum"] + piece.value}

    def collate(self, patient: Patient, pieces: list[ProcessedPiece]) -> Any:
        result: Any = None
        for piece in pieces:
            result = self.accumulate(result, piece, patient)
        return result


@pytest.mark.parametrize("mode", ["accumulate", "collect"])
def test_pieces_are_gathered_in_window_order_over_all_slides(
    journal: Journal, output: OutputOptions, layout: Layout, mode: str
) -> None:
    slides = [resolved_slide(id="b"), resolved_slide(id="a", place=(0, 1), extent=(50, 40))]
    values = [numbers("int32", (len(slide.grid()), 2)) for slide in slides]
    status = all_written(slides[0])
    status[5] = Status.NONE
    fill(journal, slides[1], values[1], chunks=reversed(range(len(slides[1].chunks()))))
    fill(journal, slides[0], values[0], status, chunks=reversed(range(len(slides[0].chunks()))))
    record = publish_patient(journal, patient_of(slides), output, gatherer=Gathering(mode))
    result = decode_result(layout.result_file("p1").read_bytes())
    kept = np.delete(values[0], 5, axis=0)
    order = [["b", index] for index in range(35) if index != 5] + [["a", index] for index in range(len(values[1]))]
    assert result["patient"] == "p1"
    assert result["order"] == order
    np.testing.assert_array_equal(result["sum"], np.concatenate([kept, values[1]]).sum(axis=0, dtype=np.float64))
    assert record.file == "p1.result"
    assert not layout.final_file("p1").exists()


def test_what_a_gathering_collector_raises_comes_through_and_leaves_nothing(
    journal: Journal, output: OutputOptions, layout: Layout
) -> None:
    class Failing(Gathering):
        def collate(self, patient: Patient, pieces: list[ProcessedPiece]) -> Any:
            raise ZeroDivisionError("the user's own")

    fill(journal, resolved_slide(), np.zeros((35, 2)))
    with pytest.raises(ZeroDivisionError, match="the user's own"):
        publish_patient(journal, patient_of([resolved_slide()]), output, gatherer=Failing("collect"))
    assert nothing_is_left(layout)


@pytest.mark.parametrize(("mode", "method"), [("collect", "collate"), ("accumulate", "accumulate")])
def test_what_is_gathered_and_cannot_be_stored_is_an_error_that_says_of_whom(
    journal: Journal, output: OutputOptions, layout: Layout, mode: str, method: str
) -> None:
    class Odd(Gathering):
        def accumulate(self, previous: Any, piece: ProcessedPiece, patient: Patient) -> Any:
            return 1j

    fill(journal, resolved_slide(), np.zeros((35, 2)))
    with pytest.raises(PieceError, match=f"what {method} returns for patient 'p1' cannot be stored: a result must be numbers"):
        publish_patient(journal, patient_of([resolved_slide()]), output, gatherer=Odd(mode))
    assert nothing_is_left(layout)


def test_a_hole_is_an_error_for_a_gathering_collector_too(journal: Journal, output: OutputOptions, layout: Layout) -> None:
    fill(journal, resolved_slide(), np.zeros((35, 2)), chunks=[0, 1])
    with pytest.raises(JournalError, match="missing"):
        publish_patient(journal, patient_of([resolved_slide()]), output, gatherer=Gathering("accumulate"))
    assert nothing_is_left(layout)


# ---- one file for all


@pytest.fixture
def journals(layout: Layout) -> Callable[[str], Journal]:
    return lambda patient: Journal(layout.journal(patient))


def three_patients() -> list[ResolvedSlide]:
    return [resolved_slide(patient=f"p{number}", place=(number, 0)) for number in range(3)]


def of_all(output: OutputOptions) -> OutputOptions:
    return OutputOptions(folder=output.folder, format=output.format, one_file=True)


def test_one_file_holds_all_patients_in_order(
    journals: Callable[[str], Journal], output: OutputOptions, layout: Layout
) -> None:
    for slide in three_patients():
        with journals(slide.patient_id) as journal:
            chunks = [0, 1, 2] if slide.patient_id == "p1" else None
            fill(journal, slide, np.arange(35) + 100 * slide.patient, chunks=chunks)
    records = publish_all(journals, ["p0", "p1", "p2"], {"p1": Stop(0, 2)}, of_all(output), partial=False)
    path = layout.final_file("all")
    assert [record.patient_id for record in records] == ["p0", "p1", "p2"]
    assert {record.checksum for record in records} == {checksum_of(path)}
    assert [record.slides[0].stopped for record in records] == [0, 21, 0]
    assert read_record(layout, "p1") == records[1]
    if output.format == "csv":
        table = pd.read_csv(path)
        assert list(table.columns[:2]) == ["patient", "slide"]
        assert list(dict.fromkeys(table["patient"])) == ["p0", "p1", "p2"]
        values = {name: rows["value"].to_numpy() for name, rows in table.groupby("patient")}
    else:
        with h5py.File(path, "r") as file:
            assert set(file) == {"p0", "p1", "p2"}
            values = {name: file[name]["s"]["features"][:] for name in file}
    np.testing.assert_array_equal(values["p0"], np.arange(35))
    np.testing.assert_array_equal(values["p1"], 100 + np.sort(np.concatenate([slide_chunk(n) for n in range(3)])))
    np.testing.assert_array_equal(values["p2"], np.arange(35) + 200)


def slide_chunk(chunk: int) -> np.ndarray:
    return resolved_slide().chunks().indices(chunk)


def test_a_hole_in_one_patient_leaves_no_file_of_all(
    journals: Callable[[str], Journal], output: OutputOptions, layout: Layout
) -> None:
    for slide in three_patients():
        with journals(slide.patient_id) as journal:
            fill(journal, slide, np.arange(35), chunks=[0] if slide.patient_id == "p2" else None)
    with pytest.raises(JournalError, match="slide 's' of patient 'p2'"):
        publish_all(journals, ["p0", "p1", "p2"], {}, of_all(output), partial=False)
    assert nothing_is_left(layout)
    records = publish_all(journals, ["p0", "p1", "p2"], {}, of_all(output), partial=True)
    assert [len(record.slides) for record in records] == [1, 1, 0]
    assert layout.final_file("all", partial=True).exists()
    assert read_record(layout, "p0") is None


def test_patients_of_one_file_must_have_values_of_one_kind(
    journals: Callable[[str], Journal], output: OutputOptions, layout: Layout
) -> None:
    for slide in three_patients():
        with journals(slide.patient_id) as journal:
            fill(journal, slide, np.zeros(35, np.float64 if slide.patient == 2 else np.float32))
    with pytest.raises(PieceError, match="patient 'p2' is float64 of shape"):
        publish_all(journals, ["p0", "p1", "p2"], {}, of_all(output), partial=False)
    assert nothing_is_left(layout)


# ---- the HDF5 file as other tools read it


class ReadAsCLAMDoes:
    """Source: CLAM, ``dataset_modules/dataset_h5.py`` (Whole_Slide_Bag_FP) and ``dataset_generic.py`` (features)."""

    def __init__(self, path: Path) -> None:
        with h5py.File(path, "r") as file:
            coords = file["coords"]
            self.patch_level = coords.attrs["patch_level"]
            self.patch_size = coords.attrs["patch_size"]
            self.length = len(coords)
            self.coords = file["coords"][:]
            self.features = file["features"][:]
            self.level_dim = coords.attrs["level_dim"]
            self.downsample = coords.attrs["downsample"]


class ReadAsTRIDENTDoes:
    """Source: TRIDENT, ``trident/IO.py`` (read_coords) and its loading of features."""

    def __init__(self, path: Path) -> None:
        with h5py.File(path, "r") as file:
            self.attributes = dict(file["coords"].attrs)
            self.coords = file["coords"][:]
            self.features = np.squeeze(file["features"][:])
        self.patch_size = self.attributes.get("patch_size")
        self.patch_size_level0 = self.attributes.get("patch_size_level0")
        self.level0_magnification = self.attributes.get("level0_magnification")
        self.target_magnification = self.attributes.get("target_magnification")
        self.overlap = self.attributes.get("overlap")


def test_readers_of_other_tools_find_what_they_look_for(tmp_path: Path) -> None:
    slide = resolved_slide(downsample=4.0, kernel=(20, 20), stride=(10, 10))
    features = numbers("float16", (len(slide.grid()), 8))
    path = write_patient(tmp_path, [slide], [features])
    clam, trident = ReadAsCLAMDoes(path), ReadAsTRIDENTDoes(path)
    assert (clam.patch_level, clam.patch_size, clam.length) == (1, 20, len(features))
    assert clam.level_dim.tolist() == [100, 80]
    assert clam.downsample.tolist() == [4.0, 4.0]
    assert (trident.patch_size, trident.patch_size_level0, trident.overlap) == (20, 80, 10)
    assert (trident.level0_magnification, trident.target_magnification) == (20.0, 5.0)
    for reader in (clam, trident):
        np.testing.assert_array_equal(reader.coords, slide.grid().windows(np.arange(len(features))).xy)
        np.testing.assert_array_equal(reader.features.view(np.uint16), features.view(np.uint16))


def test_two_slides_are_two_groups(tmp_path: Path) -> None:
    slides = [resolved_slide(id="H&E"), resolved_slide(id="Ki67", place=(0, 1))]
    path = write_patient(tmp_path, slides, [np.zeros(35), np.ones(35)])
    with h5py.File(path, "r") as file:
        assert set(file) == {"H&E", "Ki67"}
        assert file["Ki67"]["features"][:].tolist() == [1.0] * 35
        assert file["Ki67"]["coords"].attrs["patch_level"] == 0


def test_the_record_does_not_hold_the_tables_of_windows(journal: Journal, output: OutputOptions) -> None:
    slide = labelled_slide(["a", None])
    fill(journal, slide, np.arange(2))
    record = publish_patient(journal, patient_of([slide]), output)
    (published,) = record.slides
    assert published.resolved == slide and not vars(published.resolved)
