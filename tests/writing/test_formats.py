"""What every format of patient files must do, and what is particular to each."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from streamwsi.config import OutputOptions
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec
from streamwsi.writing.csv_file import WINDOW_COLUMNS, CSVPieceFile
from streamwsi.writing.formats import PieceFile, create_piece_file
from streamwsi.writing.hdf5_file import HDF5PieceFile
from tests.writing.fabricate import EVERY_DTYPE, assert_same, numbers, resolved_slide

Rows = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[Any]]
"""Places in the plan (N,), level-0 corners (N, 2), values (N, …)."""


class PieceFileContract:
    """Every format passes this: a subclass says how the file is made, and how a stranger reads it who knows the dtype."""

    format: ClassVar[str]
    kind: ClassVar[type]

    def read(self, path: Path, slide: str, spec: ValueSpec, patient: str | None = None) -> Rows:
        """The rows of a slide, without any code of this package."""
        raise NotImplementedError

    def columns(self, path: Path, slide: str) -> tuple[str, ...]:
        """Names of the values as the file has them."""
        raise NotImplementedError

    def write(
        self,
        path: Path,
        spec: ValueSpec,
        slides: list[tuple[ResolvedSlide, npt.NDArray[np.int64], npt.NDArray[Any]]],
        **options: Any,
    ) -> None:
        file = create_piece_file(path, spec, OutputOptions(folder=str(path.parent), format=self.format, **options))  # type: ignore[arg-type]
        assert isinstance(file, self.kind)
        for slide, index, values in slides:
            file.begin_slide(slide, len(index))
            for part in np.array_split(np.arange(len(index)), 3):
                file.append(slide.grid().windows(index[part]), values[part])
            file.end_slide([(0, 0, 1)] if len(index) < len(slide.grid()) else [])
        file.close()

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "patient.file"

    @pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)], ids=str)
    @pytest.mark.parametrize("dtype", EVERY_DTYPE)
    def test_values_come_back_exactly(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        slide = resolved_slide(extent=(320, 320), kernel=(10, 10), stride=(10, 10))
        index = np.arange(len(slide.grid()))
        values = numbers(dtype, (len(index), *shape))
        spec = ValueSpec.of(values)
        self.write(path, spec, [(slide, index, values)])
        found_index, xy, found = self.read(path, "s", spec)
        assert_same(found, values)
        np.testing.assert_array_equal(found_index, index)
        np.testing.assert_array_equal(xy, slide.grid().windows(index).xy)

    def test_every_float16_comes_back_exactly(self, path: Path) -> None:
        slide = resolved_slide(extent=(256, 256), kernel=(1, 1), stride=(1, 1))
        values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
        self.write(path, ValueSpec("float16", ()), [(slide, np.arange(1 << 16), values)])
        assert_same(self.read(path, "s", ValueSpec("float16", ()))[2], values)

    def test_windows_without_a_row_have_none(self, path: Path) -> None:
        slide = resolved_slide(downsample=4.0058)
        index = np.array([0, 3, 4, 17, 34])
        self.write(path, ValueSpec("int32", ()), [(slide, index, index.astype(np.int32))])
        found, xy, values = self.read(path, "s", ValueSpec("int32", ()))
        np.testing.assert_array_equal(found, index)
        np.testing.assert_array_equal(values, index)
        np.testing.assert_array_equal(xy, np.floor(slide.grid().windows(index).start * 4.0058))

    @pytest.mark.parametrize("shape", [(), (3,)], ids=str)
    def test_a_slide_may_have_no_row(self, path: Path, shape: tuple[int, ...]) -> None:
        spec = ValueSpec("float32", shape)
        self.write(path, spec, [(resolved_slide(), np.arange(0), spec.empty())])
        found, xy, values = self.read(path, "s", spec)
        assert found.shape == (0,)
        assert xy.shape == (0, 2)
        assert_same(values, spec.empty())

    def test_slides_of_one_patient_are_kept_apart(self, path: Path) -> None:
        first, second = resolved_slide(id="H&E"), resolved_slide(id='a, "b"', place=(0, 1), extent=(40, 40))
        spec = ValueSpec("float64", (2,))
        rows = [(slide, np.arange(len(slide.grid())), numbers("float64", (len(slide.grid()), 2))) for slide in (first, second)]
        self.write(path, spec, rows)
        for slide, index, values in rows:
            found, _, read = self.read(path, slide.id, spec)
            np.testing.assert_array_equal(found, index)
            assert_same(read, values)

    @pytest.mark.parametrize("name", ["index", "not_written", "columns", "NA", "nan", "value"])
    def test_a_slide_may_be_called_as_other_things_are(self, path: Path, name: str) -> None:
        spec = ValueSpec("int64", ())
        self.write(path, spec, [(resolved_slide(id=name), np.arange(35), np.arange(35))])
        np.testing.assert_array_equal(self.read(path, name, spec)[2], np.arange(35))

    def test_values_are_called_as_the_collector_says(self, path: Path) -> None:
        spec = ValueSpec("float32", (2,), ("mean, red", 'the "other"'))
        self.write(path, spec, [(resolved_slide(), np.arange(35), np.zeros((35, 2), np.float32))])
        assert self.columns(path, "s") == spec.columns

    def test_values_may_be_very_many(self, path: Path) -> None:
        spec = ValueSpec("uint8", (6000,), tuple(f"gene {number}" for number in range(6000)))
        values = numbers("uint8", (4, 6000))
        self.write(path, spec, [(resolved_slide(extent=(32, 32)), np.arange(4), values)])
        assert self.columns(path, "s") == spec.columns
        assert_same(self.read(path, "s", spec)[2], values)

    def test_one_file_may_hold_all_patients(self, path: Path) -> None:
        slides = [resolved_slide(patient=f"p{number}", place=(number, 0)) for number in range(2)]
        spec = ValueSpec("int64", ())
        self.write(path, spec, [(slide, np.arange(35), np.arange(35) + slide.patient) for slide in slides], one_file=True)
        for slide in slides:
            values = self.read(path, "s", spec, slide.patient_id)[2]
            np.testing.assert_array_equal(values, np.arange(35) + slide.patient)

    def test_the_same_rows_give_the_same_file_however_they_are_appended(self, path: Path) -> None:
        slide, values = resolved_slide(), numbers("float32", (35, 3))
        written = []
        for parts in (1, 7):
            file: PieceFile = create_piece_file(
                path,
                ValueSpec("float32", (3,)),
                OutputOptions(folder=str(path.parent), format=self.format),  # type: ignore[arg-type]
            )
            file.begin_slide(slide, 35)
            for part in np.array_split(np.arange(35), parts):
                file.append(slide.grid().windows(part), values[part])
            file.end_slide([])
            file.close()
            written.append(path.read_bytes())
        assert written[0] == written[1]

    def test_rows_without_a_slide_are_a_mistake(self, path: Path) -> None:
        file = create_piece_file(
            path,
            ValueSpec("float64", ()),
            OutputOptions(folder=str(path.parent), format=self.format),  # type: ignore[arg-type]
        )
        with pytest.raises(RuntimeError, match="before begin_slide"):
            file.append(resolved_slide().grid().windows(np.arange(1)), np.zeros(1))
        file.close()

    def test_a_file_that_was_given_up_inside_a_slide_can_be_closed_twice(self, path: Path) -> None:
        file = create_piece_file(
            path,
            ValueSpec("float64", ()),
            OutputOptions(folder=str(path.parent), format=self.format),  # type: ignore[arg-type]
        )
        file.begin_slide(resolved_slide(), 35)
        file.close()
        file.close()


class TestCSVPieceFile(PieceFileContract):
    format = "csv"
    kind = CSVPieceFile

    def read(self, path: Path, slide: str, spec: ValueSpec, patient: str | None = None) -> Rows:
        lead = int(patient is not None)
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in list(csv.reader(file))[1:] if row[lead] == slide and patient in (None, row[0])]
        places = np.array([row[lead + 1 : lead + 7] for row in rows], np.int64).reshape(-1, 6)
        number = float if np.dtype(spec.dtype).kind == "f" else int
        texts = [[number(text) for text in row[lead + 7 :]] for row in rows]
        return places[:, 0], places[:, 1:3], np.array(texts, spec.dtype).reshape(-1, *spec.shape)

    def columns(self, path: Path, slide: str) -> tuple[str, ...]:
        with path.open(encoding="utf-8", newline="") as file:
            return tuple(next(csv.reader(file))[7:])

    def test_a_row_says_where_its_window_lies(self, path: Path) -> None:
        slide = resolved_slide(border="adaptive", downsample=4.0)
        self.write(path, ValueSpec("bool", ()), [(slide, np.array([0, 6, 34]), np.array([True, False, True]))])
        assert path.read_text() == (
            ",".join([*WINDOW_COLUMNS, "value"]) + "\n"
            "s,0,0,0,1,16,16,1\n"
            "s,6,384,0,1,4,16,0\n"
            "s,34,384,256,1,4,16,1\n"
        )  # fmt: skip

    def test_a_number_has_the_fewest_digits_that_are_exact(self, path: Path) -> None:
        values = np.array([0.1, 1 / 3, 1e-45, 16777216, np.nan, -np.inf, -0.0], np.float32)
        self.write(path, ValueSpec("float32", ()), [(resolved_slide(), np.arange(7), values)])
        texts = [line.split(",")[-1] for line in path.read_text().splitlines()[1:]]
        large = str(np.float32(16777216))  # NumPy 2.3 and later write an exponent, earlier ones do not
        assert texts == ["0.1", "0.33333334", "1e-45", large, "nan", "-inf", "-0.0"]
        assert large in ("1.6777216e+07", "16777216.0")

    def test_the_file_has_unix_line_ends_and_utf8(self, path: Path) -> None:
        self.write(path, ValueSpec("int8", ()), [(resolved_slide(id="Gewebe α"), np.arange(2), np.zeros(2, np.int8))])
        assert b"\r" not in path.read_bytes()
        assert "\nGewebe α,0," in path.read_text("utf-8")

    def test_pandas_reads_it_without_being_told(self, path: Path) -> None:
        values = numbers("float64", (35, 2), seed=3)
        self.write(path, ValueSpec("float64", (2,)), [(resolved_slide(), np.arange(35), values)])
        table = pd.read_csv(path)
        assert list(table.columns) == [*WINDOW_COLUMNS, "value_0", "value_1"]
        np.testing.assert_array_equal(table["index"], np.arange(35))


class TestHDF5PieceFile(PieceFileContract):
    format = "hdf5"
    kind = HDF5PieceFile

    def read(self, path: Path, slide: str, spec: ValueSpec, patient: str | None = None) -> Rows:
        with h5py.File(path, "r") as file:
            group = file[slide if patient is None else f"{patient}/{slide}"]
            return group["index"][:], group["coords"][:], group["features"][:]

    def columns(self, path: Path, slide: str) -> tuple[str, ...]:
        with h5py.File(path, "r") as file:
            if "columns" in file[slide]:
                return tuple(file[slide]["columns"].asstr()[:])
            return tuple(file[slide]["features"].attrs["columns"])

    @pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
    def test_values_may_be_compressed(self, path: Path, compression: str | None) -> None:
        spec, values = ValueSpec("float32", (50,)), np.zeros((35, 50), np.float32)
        self.write(path, spec, [(resolved_slide(), np.arange(35), values)], compression=compression)
        assert_same(self.read(path, "s", spec)[2], values)
        with h5py.File(path, "r") as file:
            assert file["s/features"].compression == compression

    def test_coords_have_the_attributes_that_tools_look_for(self, path: Path) -> None:
        slide = resolved_slide(kernel=(20, 20), stride=(15, 15), downsample=4.0, path="/data/case 1.svs")
        self.write(path, ValueSpec("int8", ()), [(slide, np.arange(1), np.zeros(1, np.int8))])
        with h5py.File(path, "r") as file:
            attributes = {key: np.asarray(value).tolist() for key, value in file["s/coords"].attrs.items()}
        version = attributes.pop("streamwsi_version")
        assert isinstance(version, str)
        assert attributes == {
            "name": "case 1",
            "patch_size": 20,
            "patch_level": 1,
            "patch_size_level0": 80,
            "overlap": 5,
            "downsample": [4.0, 4.0],
            "level_dim": [100, 80],
            "downsampled_level_dim": [100, 80],
            "level0_width": 400,
            "level0_height": 320,
            "level0_magnification": 20.0,
            "target_magnification": 5.0,
            "kernel_size": [20, 20],
            "stride": [15, 15],
            "border": "pad",
            "grid_shape": list(slide.grid().shape),
            "slide_id": "s",
            "slide_path": "/data/case 1.svs",
            "fingerprint": "0" * 32,
            "reader": "openslide",
            "mpp": [0.5, 0.5],
        }

    def test_what_a_slide_does_not_say_is_left_out(self, path: Path) -> None:
        self.write(path, ValueSpec("int8", ()), [(resolved_slide(mpp=None), np.arange(1), np.zeros(1, np.int8))])
        with h5py.File(path, "r") as file:
            assert "mpp" not in file["s/coords"].attrs

    def test_windows_without_a_row_are_listed(self, path: Path) -> None:
        self.write(path, ValueSpec("int8", ()), [(resolved_slide(), np.arange(1, 35), np.zeros(34, np.int8))])
        with h5py.File(path, "r") as file:
            assert file["s/not_written"][:].tolist() == [[0, 0, 1]]

    def test_an_only_slide_is_linked_at_the_root_and_several_are_not(self, path: Path) -> None:
        one, two = resolved_slide(id="a"), resolved_slide(id="b", place=(0, 1))
        rows = np.zeros(35, np.int8)
        self.write(path, ValueSpec("int8", ()), [(one, np.arange(35), rows)])
        with h5py.File(path, "r") as file:
            assert file["features"] == file["a/features"]
            assert set(file) == {"a", "coords", "features", "index", "not_written"}
        self.write(path, ValueSpec("int8", ()), [(one, np.arange(35), rows), (two, np.arange(35), rows)])
        with h5py.File(path, "r") as file:
            assert set(file) == {"a", "b"}
