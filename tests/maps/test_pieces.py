from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pandas as pd
import pytest

from streamwsi.chunks import Status
from streamwsi.config import OutputOptions
from streamwsi.errors import MapError
from streamwsi.maps import pieces as module
from streamwsi.maps.pieces import SlidePlan, load, read_pieces, slides_in, stream
from streamwsi.writing.journal import Journal
from streamwsi.writing.publish import publish_all
from tests.writing.fabricate import EVERY_DTYPE, assert_same, fill, labelled_slide, numbers, resolved_slide, write_patient

FORMATS = ("csv", "hdf5")
both_formats = pytest.mark.parametrize("format", FORMATS)


def two_slides(folder: Path, format: str) -> Path:
    slides = [resolved_slide(id="H&E"), resolved_slide(id="NA", place=(0, 1), extent=(40, 40))]
    values = [np.arange(len(slide.grid())) + 100 * slide.slide for slide in slides]
    return write_patient(folder, slides, values, format=format)


def three_patients(folder: Path, format: str) -> Path:
    output = OutputOptions(folder=str(folder), format=format, one_file=True)  # type: ignore[arg-type]
    for number, names in enumerate((["s"], ["s", "t"], ["u"])):
        with Journal(folder / ".journal" / f"p{number}.sqlite") as journal:
            for place, name in enumerate(names):
                slide = resolved_slide(patient=f"p{number}", id=name, place=(number, place))
                status = None if name != "u" else np.full(35, Status.NONE, np.uint8)
                fill(journal, slide, np.float32(0.1) * (np.arange(35, dtype=np.float32) + 100 * number + 50 * place), status)
    publish_all(lambda name: Journal(folder / ".journal" / f"{name}.sqlite"), ["p0", "p1", "p2"], {}, output, False)
    return folder / ("all.csv" if format == "csv" else "all.h5")


@both_formats
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_pieces_come_back_exactly_as_they_were_sent(tmp_path: Path, dtype: str, shape: tuple[int, ...], format: str) -> None:
    slide = resolved_slide(kernel=(10, 12), stride=(7, 9), border="adaptive", downsample=4.0058)
    n = len(slide.grid())
    status = np.resize(np.array([0, 0, 0, 1, 0, 2], np.uint8), n)
    values = numbers(dtype, (n, *shape))
    read = read_pieces(write_patient(tmp_path, [slide], [values], [status], format=format))
    written = np.flatnonzero(status == Status.WRITTEN)
    windows = slide.grid().windows(written)
    assert_same(read.values, values[written])
    assert_same(read.index, written)
    assert_same(read.coords, windows.xy)
    assert_same(read.size, windows.size)
    assert (read.patient, read.slide, read.level, len(read)) == ("p1", "s", 1, len(written))
    assert read.plan == SlidePlan.of(slide)
    assert read.plan is not None and read.plan.grid() == slide.grid()


@both_formats
def test_large_files_are_read_in_parts(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", 50)
    values = numbers("float32", (35, 3))
    path = write_patient(tmp_path, [resolved_slide()], [values], format=format)
    assert_same(read_pieces(path).values, values)


@both_formats
def test_a_stream_is_the_pieces_in_parts(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 8)
    path = write_patient(tmp_path, [resolved_slide()], [numbers("float32", (35, 3))], format=format, columns=("a", "b", "c"))
    whole, parts = read_pieces(path), stream(path, None, None)
    for _ in range(2):  # the file is read anew
        found = list(parts)
        assert [len(part) for part in found] == [8, 8, 8, 8, 3]
        for name in ("index", "coords", "size", "values"):
            assert_same(np.concatenate([getattr(part, name) for part in found]), getattr(whole, name))
    alone = list(stream(path, None, None, "b"))
    assert_same(np.concatenate([part.values for part in alone]), whole.values[:, 1])
    assert (parts.patient, parts.slide, parts.columns, parts.plan) == ("p1", "s", whole.columns, whole.plan)


@both_formats
def test_a_stream_of_nothing_ends(tmp_path: Path, format: str) -> None:
    nothing = np.full(35, Status.NONE, np.uint8)
    path = write_patient(tmp_path, [resolved_slide()], [np.zeros(35)], [nothing], format=format)
    assert sum(len(part) for part in stream(path, None, None)) == 0


def test_what_is_wrong_across_the_parts_of_a_stream_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 8)
    path = write_patient(tmp_path, [resolved_slide()], [np.arange(35.0)])
    with h5py.File(path, "r+") as file:
        index = file["s/index"]
        index[8] = 7  # the last one of the part before
    with pytest.raises(MapError, match="window 7 stands there twice"):
        list(stream(path, None, None))
    with h5py.File(path, "r+") as file:
        for name in ("index", "coords", "features"):
            file[f"s/{name}"].resize(32, axis=0)
        file["s/index"][8] = 8
    with pytest.raises(MapError, match="32 windows, expected 35"):
        list(stream(path, None, None))


@both_formats
def test_the_slide_must_be_named_where_there_are_several(tmp_path: Path, format: str) -> None:
    path = two_slides(tmp_path, format)
    assert slides_in(path) == [("p1", "H&E"), ("p1", "NA")]
    with pytest.raises(MapError, match="several slides, 'H&E', 'NA': say which with slide="):
        read_pieces(path)
    with pytest.raises(MapError, match="does not hold slide 'Ki67'; it holds 'H&E', 'NA'"):
        read_pieces(path, "Ki67")
    np.testing.assert_array_equal(read_pieces(path, slide="H&E").values, np.arange(35))
    np.testing.assert_array_equal(read_pieces(path, "NA").values, np.arange(9) + 100)


@both_formats
@pytest.mark.parametrize("with_records", [True, False])
def test_one_patient_of_the_file_of_all_is_read(tmp_path: Path, format: str, with_records: bool) -> None:
    path = three_patients(tmp_path, format)
    if not with_records:
        shutil.rmtree(tmp_path / ".published")
    without_rows = [("p2", "u")] if with_records or format == "hdf5" else []
    assert slides_in(path) == [("p0", "s"), ("p1", "s"), ("p1", "t"), *without_rows]
    second = read_pieces(path, "t", patient="p1")
    assert (second.patient, second.slide) == ("p1", "t")
    np.testing.assert_allclose(second.values, 0.1 * (np.arange(35) + 150), rtol=1e-6)
    assert read_pieces(path, patient="p0").slide == "s"
    assert read_pieces(path, "t").patient == "p1"
    with pytest.raises(MapError, match="several patients, 'p0', 'p1': say which with patient="):
        read_pieces(path, "s")
    with pytest.raises(MapError, match="several slides, 's', 't'"):
        read_pieces(path, patient="p1")
    with pytest.raises(MapError, match="does not hold patient 'p9'; it holds 'p0', 'p1'"):
        read_pieces(path, patient="p9")
    if with_records:
        assert second.plan == SlidePlan.of(resolved_slide(patient="p1", id="t", place=(1, 1)))
        assert_same(read_pieces(path, patient="p2").values, np.empty(0, np.float32))


@both_formats
def test_a_slide_without_a_row_is_read(tmp_path: Path, format: str) -> None:
    slides = [resolved_slide(id="a"), resolved_slide(id="b", place=(0, 1))]
    nothing = np.full(35, Status.NONE, np.uint8)
    path = write_patient(tmp_path, slides, [numbers("float32", (35, 2))] * 2, [None, nothing], format=format)
    read = read_pieces(path, "b")
    assert_same(read.values, np.empty((0, 2), np.float32))
    assert (read.coords.shape, read.size.shape, read.level, len(read)) == ((0, 2), (0, 2), 0, 0)
    assert list(read.to_dataframe().columns[-2:]) == ["value_0", "value_1"]


@both_formats
def test_a_patient_without_a_value_is_read(tmp_path: Path, format: str) -> None:
    nothing = np.full(35, Status.NONE, np.uint8)
    path = write_patient(tmp_path, [resolved_slide()], [np.zeros(35)], [nothing], format=format)
    assert read_pieces(path).values.shape == (0,)


@both_formats
def test_a_table_has_the_columns_of_the_csv_file(tmp_path: Path, format: str) -> None:
    slide = resolved_slide(border="adaptive", downsample=4.0)
    values = np.linspace(0, 1, 70).reshape(35, 2)
    path = write_patient(tmp_path / format, [slide], [values], format=format, columns=("x", "red"))
    table = read_pieces(path).to_dataframe()
    other = write_patient(tmp_path / "csv2", [slide], [values], format="csv", columns=("x", "red"))
    expected = pd.read_csv(other, header=None, skiprows=1, float_precision="round_trip")
    assert list(table.columns) == ["slide", "index", "x", "y", "level", "width", "height", "x", "red"]
    assert table.shape == expected.shape
    for number in range(1, 9):
        assert_same(table.iloc[:, number].to_numpy(), expected[number].to_numpy())
    assert set(table["slide"]) == {"s"}


@both_formats
def test_a_table_keeps_the_dtype_and_flattens_the_shape(tmp_path: Path, format: str) -> None:
    path = write_patient(tmp_path, [resolved_slide()], [numbers("float16", (35, 2, 2))], format=format)
    table = read_pieces(path).to_dataframe()
    assert [str(dtype) for dtype in table.dtypes[-4:]] == ["float16"] * 4
    assert list(table.columns[-4:]) == ["value_0", "value_1", "value_2", "value_3"]


@both_formats
@pytest.mark.parametrize("channel", [2, "c"])
def test_one_channel_alone_is_read(tmp_path: Path, format: str, channel: int | str) -> None:
    values = numbers("float32", (35, 2, 2))
    path = write_patient(tmp_path, [resolved_slide()], [values], format=format, columns=("a", "b", "c", "d"))
    read = load(path, None, None, channel)
    assert_same(read.values, values[:, 1, 0])
    assert read.columns == ("c",)
    for unknown in (4, -1, "e"):
        with pytest.raises(MapError, match=f"no channel {unknown!r}; it has 4, from 0: 'a', 'b', 'c', 'd'"):
            load(path, None, None, unknown)


def test_a_partial_file_is_read_with_its_record(tmp_path: Path) -> None:
    for format in FORMATS:
        path = write_patient(tmp_path / format, [resolved_slide()], [numbers("bool", (35,))], format=format, partial=True)
        assert path.stem == "p1.partial"
        read = read_pieces(path)
        assert (read.patient, read.values.dtype, read.plan) == ("p1", np.dtype(bool), SlidePlan.of(resolved_slide()))


# ---- a CSV file alone


def moved(tmp_path: Path, values: np.ndarray, columns: tuple[str, ...] | None = None) -> Path:
    path = write_patient(tmp_path / "out", [resolved_slide()], [values], format="csv", columns=columns)
    return Path(shutil.copy(path, tmp_path))


@pytest.mark.parametrize(
    ("dtype", "found"),
    [
        ("float64", "float64"),
        ("float32", "float64"),
        ("int64", "int64"),
        ("uint64", "uint64"),
        ("int8", "int64"),
        ("bool", "int64"),
    ],
)
def test_a_csv_file_alone_gives_numbers_in_the_widest_dtype(tmp_path: Path, dtype: str, found: str) -> None:
    values = numbers(dtype, (35, 2, 2))
    read = read_pieces(moved(tmp_path, values))
    assert read.plan is None
    assert read.level == 0
    assert read.values.shape == (35, 4)
    assert read.values.dtype == found
    assert_same(read.values.reshape(values.shape).astype(dtype), values)


def test_a_csv_file_alone_is_guessed_the_same_whatever_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", 40)
    values = np.zeros(35, np.uint64)
    values[30] = 2**64 - 1
    assert_same(read_pieces(moved(tmp_path, values)).values, values)


def test_a_single_column_of_numbers_is_flat(tmp_path: Path) -> None:
    assert read_pieces(moved(tmp_path, np.zeros(35))).values.shape == (35,)
    assert read_pieces(moved(tmp_path / "named", np.zeros(35), columns=("red",))).values.shape == (35, 1)


def test_the_run_tells_the_dtype_where_there_is_no_record(tmp_path: Path) -> None:
    values = numbers("float32", (35, 2, 2))
    path = moved(tmp_path, values)
    run = {"streamwsi": "0", "values": {"dtype": "float32", "shape": [2, 2], "columns": None}}
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(run))
    assert_same(read_pieces(path).values, values)
    (tmp_path / "run.json").write_bytes(msgspec.json.encode({"streamwsi": "0", "values": None}))
    assert read_pieces(path).values.shape == (35, 4)


# ---- what is wrong with a file


def changed(path: Path, edit: Any) -> Path:
    """Edit the lines of a CSV file."""
    lines = path.read_text().splitlines(keepends=True)
    edit(lines)
    path.write_text("".join(lines))
    return path


def test_a_csv_file_that_lost_or_doubled_a_row_is_refused(tmp_path: Path) -> None:
    path = write_patient(tmp_path, [resolved_slide()], [np.arange(35)], format="csv")
    whole = path.read_text()
    for edit, says in (
        (lambda lines: lines.pop(), "34 windows, expected 35"),
        (lambda lines: lines.insert(5, lines[4]), "window 3 stands there twice"),
        (lambda lines: lines.append(lines[4]), "window 3 stands there twice"),
        (lambda lines: lines.insert(9, lines.pop(7)), "window 6 comes after window 8"),
        (
            lambda lines: lines.__setitem__(8, lines[8].replace(",0,16,", ",1,16,")),
            r"window 7 lies at \(1, 16\), the plan has it at \(0, 16\)",
        ),
        (lambda lines: lines.__setitem__(35, lines[35].replace("s,34", "s,35")), "window 35 is not in the plan, which has 35"),
        (lambda lines: lines.__setitem__(20, lines[20].replace(",19", ",many")), "damaged, or it was changed"),
        (lambda lines: lines.__setitem__(20, "s,19,80,32\n"), "damaged, or it was changed"),
        (
            lambda lines: lines.__setitem__(0, lines[0].replace("value", "score")),
            r"has columns \('score',\), its record says \('value',\)",
        ),
    ):
        path.write_text(whole)
        with pytest.raises(MapError, match=says):
            read_pieces(changed(path, edit))
    path.write_text(whole)
    assert len(read_pieces(path)) == 35


def test_an_hdf5_file_that_lost_or_doubled_a_window_is_refused(tmp_path: Path) -> None:
    def edit(file: h5py.File, name: str, row: int | slice, value: Any) -> None:
        file[f"s/{name}"][row] = value

    path = write_patient(tmp_path / "out", [resolved_slide()], [np.arange(35)])
    for name, row, value, says in (
        ("index", 4, 3, "window 3 stands there twice"),
        ("index", 34, 99, "window 99 is not in the plan"),
        ("coords", 7, (5, 16), r"window 7 lies at \(5, 16\), the plan has it at \(0, 16\)"),
    ):
        copy = Path(shutil.copy(path, tmp_path))
        with h5py.File(copy, "r+") as file:
            edit(file, name, row, value)
        with pytest.raises(MapError, match=says):
            read_pieces(copy)
    copy = Path(shutil.copy(path, tmp_path))
    with h5py.File(copy, "r+") as file:
        for name in ("coords", "index", "features"):
            file[f"s/{name}"].resize(30, axis=0)
    with pytest.raises(MapError, match="30 windows, expected 35"):
        read_pieces(copy)


def test_what_is_not_a_patient_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("patient,slide,path\np1,s,a.svs\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "half.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "notes.txt").write_text("nothing")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weights"] = np.zeros(3)
    with h5py.File(tmp_path / "clam.h5", "w") as file:
        file["slide/coords"] = np.zeros((3, 2))
    for name, says in (
        ("nowhere.h5", "is not a file"),
        ("", "is not a file"),
        ("notes.txt", "does not end in .h5 or .csv"),
        ("manifest.csv", "was not written by streamwsi"),
        ("empty.csv", "was not written by streamwsi"),
        ("binary.csv", "cannot be read as CSV"),
        ("half.h5", "is not an HDF5 file, or it is damaged"),
        ("other.h5", "was not written by streamwsi"),
        ("clam.h5", "was not written by streamwsi"),
    ):
        with pytest.raises(MapError, match=says):
            read_pieces(tmp_path / name)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = write_patient(tmp_path, [resolved_slide()], [np.arange(35)], format="csv")
    (record,) = (tmp_path / ".published").iterdir()
    record.write_text(record.read_text()[:100])
    with pytest.raises(MapError, match=f"{record.name} is damaged"):
        read_pieces(path)


@pytest.mark.parametrize("locking", [None, True, False])
def test_a_file_may_be_open_elsewhere_in_the_process(tmp_path: Path, locking: bool | None) -> None:
    path = write_patient(tmp_path, [resolved_slide()], [np.arange(35)])
    path.chmod(0o444)
    with h5py.File(path, "r", locking=locking):
        assert len(read_pieces(path)) == 35


@both_formats
def test_labels_come_back_whatever_is_in_them(tmp_path: Path, format: str) -> None:
    labels = ["a, b", 'a "b"', "a\nb", "a\rb", "a\r\nb", "a/b", "nan", "NA", " a", "µ", None]
    path = write_patient(tmp_path, [labelled_slide(labels)], [np.arange(len(labels))], format=format)
    found = read_pieces(path).labels
    assert found is not None and found.tolist() == [label or "" for label in labels]


@both_formats
def test_each_window_may_have_a_label_of_its_own(tmp_path: Path, format: str) -> None:
    labels = [f"nucleus {number}" for number in range(5000)]
    path = write_patient(tmp_path, [labelled_slide(labels)], [np.arange(len(labels))], format=format)
    found = read_pieces(path).labels
    assert found is not None and found.tolist() == labels
