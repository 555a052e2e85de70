from __future__ import annotations

import copy
import os
import pickle
import shutil
import sys
from pathlib import Path

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamwsi.dataset import Dataset, Patient, Slide, SlideInfo, check_id
from streamwsi.errors import DatasetError, SlideError

INFO = SlideInfo(
    level_dimensions=((2220, 2967), (555, 741)),
    level_downsamples=(1.0, 4.002),
    mpp=(0.499, 0.499),
    power=20.0,
    vendor="aperio",
    tile_sizes=((240, 240), None),
    associated_images=("label",),
    reader="openslide",
)

BAD_IDS = [
    "../x",
    "a/b",
    "a\\b",
    "",
    "  ",
    "a\0b",
    "a\nb",
    ".",
    "..",
    ".hidden",
    "ends in a dot.",
    "ends in a space ",
    "what?",
    "C:x",
    "con",
    "NUL",
    "aux.svs",
    "COM1",
    "x" * 250,
    "é" * 130,
    "half a pair \ud800",
    "not UTF-8 \udcff",
]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def manifest(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "manifest.csv"
    path.write_bytes(text.encode(encoding))
    return path


def ids(dataset: Dataset) -> list[str]:
    return [patient.id for patient in dataset]


# ids


@pytest.mark.parametrize("bad", BAD_IDS)
def test_an_id_that_cannot_name_a_file_is_refused_and_shown(bad):
    with pytest.raises(DatasetError, match=r"patient id .* cannot name a file") as refused:
        Patient(bad, {"H&E": "a.svs"})
    assert repr(bad) in str(refused.value)
    with pytest.raises(DatasetError, match=r"slide id .* cannot name a file"):
        Slide(Path("a.svs"), bad)


@pytest.mark.parametrize("good", ["p1", "H&E", "Ki-67 (2)", "α-SMA", "患者", "consult", "a.b", "x" * 200])
def test_an_id_that_can_name_a_file_is_kept_as_it_is(good):
    assert check_id(good, "patient id") == good


def test_an_id_that_is_no_string_is_refused():
    with pytest.raises(DatasetError, match="patient id must be a string, got int 7"):
        Patient(7, {"H&E": "a.svs"})


@pytest.mark.parametrize("name", ["coords", "features"])
def test_a_slide_is_not_called_as_the_datasets_of_the_file_are(name):
    with pytest.raises(DatasetError, match=f"slide id '{name}' is reserved"):
        Patient("p1", {name: "a.svs"})
    assert Patient(name, {"H&E": "a.svs"}).id == name


# slides and patients


def test_a_patient_names_its_slides_in_order():
    patient = Patient("p1", {"H&E": "a.svs", "Ki67": Path("b.svs")}, records={"age": 61})
    assert [(slide.id, slide.path.name) for slide in patient.slides] == [("H&E", "a.svs"), ("Ki67", "b.svs")]
    assert all(slide.path.is_absolute() for slide in patient.slides)
    assert patient.records["age"] == 61


@pytest.mark.parametrize("slides", [{}, []])
def test_a_patient_without_slides_is_refused(slides):
    with pytest.raises(DatasetError, match="patient 'p1' has no slides"):
        Patient("p1", slides)


def test_a_patient_with_two_slides_of_one_name_is_refused():
    with pytest.raises(DatasetError, match="patient 'p1' has two slides called 'H&E'"):
        Patient("p1", [Slide(Path("a.svs"), "H&E"), Slide(Path("b.svs"), "H&E")])


@pytest.mark.parametrize("slides", ["a.svs", Path("a.svs"), ["a.svs"], [Path("a.svs")]])
def test_paths_without_names_are_refused_and_the_way_out_shown(slides):
    with pytest.raises(DatasetError, match=r"slides of patient 'p1' must be .*Slide.*a\.svs"):
        Patient("p1", slides)


@pytest.mark.parametrize(
    "records",
    [{"model": object()}, {"f": len}, {"huge": 1 << 70}, {"text": "\ud800"}, {"z": 1j}],
    ids=["object", "function", "huge integer", "half a pair", "complex"],
)
def test_records_that_cannot_be_written_down_are_refused(records):
    with pytest.raises(DatasetError, match="records of patient 'p1' must be strings, numbers"):
        Patient("p1", {"H&E": "a.svs"}, records)


def test_records_cannot_be_changed_and_do_not_follow_the_dict_they_came_from():
    given_records = {"age": 61}
    patient = Patient("p1", {"H&E": "a.svs"}, given_records)
    given_records["age"] = 62
    assert patient.records["age"] == 61
    with pytest.raises(TypeError):
        patient.records["age"] = 63


@pytest.mark.parametrize("name", ["mpp", "power", "dimensions", "level_dimensions", "level_downsamples", "level_count"])
def test_a_slide_that_was_not_opened_says_so_when_asked_what_only_its_reader_knows(name):
    with pytest.raises(SlideError, match=f"slide 'H&E' is not open: {name} is known only once"):
        getattr(Slide(Path("a.svs"), "H&E"), name)


def test_an_opened_slide_answers_for_its_info():
    slide = Slide(Path("a.svs"), "H&E", INFO)
    assert slide.mpp == (0.499, 0.499)
    assert slide.power == 20.0
    assert slide.dimensions == (2220, 2967)
    assert slide.level_count == 2
    assert not hasattr(slide, "colour")


@pytest.mark.parametrize("info", [None, INFO], ids=["closed", "opened"])
@pytest.mark.parametrize(
    "through",
    [
        lambda it: pickle.loads(pickle.dumps(it)),
        lambda it: cloudpickle.loads(cloudpickle.dumps(it)),
        copy.copy,
        copy.deepcopy,
    ],
    ids=["pickle", "cloudpickle", "copy", "deepcopy"],
)
def test_slides_patients_and_datasets_survive_pickling_and_copying(through, info):
    slide = Slide(Path("a.svs"), "H&E", info)
    patient = Patient("p1", [slide], {"age": 61, "stains": ["H&E"]})
    assert through(slide) == slide
    assert through(patient) == patient
    assert hash(through(patient)) == hash(patient)
    assert list(through(Dataset([patient]))) == [patient]


# datasets


def test_an_empty_dataset_is_refused():
    with pytest.raises(DatasetError, match="empty"):
        Dataset([])


def test_two_patients_with_one_id_are_refused():
    with pytest.raises(DatasetError, match="two patients have the id 'p1'"):
        Dataset([Patient("p1", {"H&E": "a.svs"}), Patient("p1", {"H&E": "b.svs"})])


def test_one_slide_for_two_patients_is_refused():
    with pytest.raises(DatasetError, match=r"a\.svs stands in the dataset twice: for patient 'p1' and for 'p2'"):
        Dataset([Patient("p1", {"H&E": "a.svs"}), Patient("p2", {"H&E": "x/../a.svs"})])


def test_one_slide_twice_in_one_patient_is_refused():
    with pytest.raises(DatasetError, match=r"a\.svs stands in the dataset twice"):
        Dataset([Patient("p1", {"H&E": "a.svs", "Ki67": "a.svs"})])


def test_a_link_to_a_slide_is_that_slide(tmp_path):
    touch(tmp_path, "a.svs")
    (tmp_path / "b.svs").symlink_to("a.svs")
    with pytest.raises(DatasetError, match="stands in the dataset twice"):
        Dataset.from_folder(tmp_path)


def test_a_slide_named_twice_on_the_command_line_is_called_a_slide_twice(tmp_path):
    with pytest.raises(DatasetError, match=r"a\.svs stands in the dataset twice"):
        Dataset.from_paths([tmp_path / "a.svs", tmp_path / "a.svs"])


def test_a_part_of_a_dataset_is_a_dataset():
    dataset = Dataset([Patient(f"p{n}", {"H&E": f"{n}.svs"}) for n in range(4)])
    assert len(dataset) == 4
    assert dataset[2].id == "p2"
    assert ids(dataset[1:3]) == ["p1", "p2"]
    assert repr(dataset[1:3]) == "Dataset(2 patients, 2 slides)"


# from a folder


def test_a_folder_is_searched_to_the_bottom_in_the_order_of_its_paths(tmp_path):
    touch(tmp_path, "b.svs", "a/z.tif", "a/b/c.ndpi", "c.mrxs", "B.svs")
    dataset = Dataset.from_folder(tmp_path)
    assert ids(dataset) == ["B", "a__b__c.ndpi", "z", "b", "c.mrxs"]
    assert [slide.path for patient in dataset for slide in patient.slides] == [
        tmp_path / name for name in ("B.svs", "a/b/c.ndpi", "a/z.tif", "b.svs", "c.mrxs")
    ]
    assert all(patient.slides[0].id == patient.id for patient in dataset)


def test_only_slides_count_and_hidden_files_and_folders_do_not(tmp_path):
    touch(tmp_path, "a.svs", "notes.txt", ".b.svs", "._a.svs", ".trash/c.svs", "d.svs.part", "Thumbs.db", "svs")
    assert ids(Dataset.from_folder(tmp_path)) == ["a"]


def test_a_folder_that_is_called_like_a_slide_is_a_folder(tmp_path):
    touch(tmp_path, "a.svs/b.svs")
    assert ids(Dataset.from_folder(tmp_path)) == ["b"]


def test_extensions_count_in_any_case(tmp_path):
    touch(tmp_path, "a.SVS", "b.Tiff")
    assert ids(Dataset.from_folder(tmp_path)) == ["a", "b"]


def test_one_stem_in_two_folders_gives_two_ids_made_of_the_paths(tmp_path):
    touch(tmp_path, "site1/slide.svs", "site2/slide.svs", "other.svs")
    assert ids(Dataset.from_folder(tmp_path)) == ["other", "site1__slide.svs", "site2__slide.svs"]


def test_one_stem_with_two_extensions_gives_two_ids(tmp_path):
    touch(tmp_path, "slide.svs", "slide.tif")
    assert ids(Dataset.from_folder(tmp_path)) == ["slide.svs", "slide.tif"]


def test_ids_do_not_depend_on_where_the_folder_lies_or_how_it_is_named(tmp_path, monkeypatch):
    names = ("x/s.svs", "y/s.svs", "x__s.svs.tif", "con.svs", "coords.svs", "what?.svs", "series/s.dcm")
    here, there = touch(tmp_path / "here", *names), touch(tmp_path / "there" / "below", *names)
    monkeypatch.chdir(here)
    first = ids(Dataset.from_folder(here))
    assert len(set(first)) == len(names)
    assert ids(Dataset.from_folder(there)) == ids(Dataset.from_folder(".")) == first


def test_files_whose_names_cannot_be_ids_get_safe_ones(tmp_path):
    touch(tmp_path, "con.svs", "coords.svs", "a:b.svs", "é" * 124 + ".svs")
    dataset = Dataset.from_folder(tmp_path)
    for patient in dataset:
        check_id(patient.id, "patient id")
    assert "a_b" in ids(dataset)
    assert [patient.slides[0].id for patient in dataset if patient.id == "coords"] == ["coords-slide"]


@given(st.lists(st.lists(st.text('ab.:? é"_', min_size=1), min_size=1, max_size=3), min_size=1, max_size=12))
def test_every_set_of_files_gets_distinct_ids_that_are_allowed(names):
    paths = {Path("/slides", *parts[:-1], parts[-1] + ".svs") for parts in names}
    dataset = Dataset.from_paths(paths)
    assert len(set(ids(dataset))) == len(paths)
    assert ids(Dataset.from_paths(sorted(paths))) == ids(dataset)


def test_long_names_that_differ_only_in_what_an_id_cannot_hold_get_ids(tmp_path):
    dataset = Dataset.from_paths([tmp_path / f"{'é' * 119}{mark}.svs" for mark in ":?"])
    assert len(set(ids(dataset))) == 2


@pytest.mark.skipif(os.name == "nt", reason="file names are always text on Windows")
def test_a_file_whose_name_is_not_text_is_refused_by_name(tmp_path):
    with pytest.raises(DatasetError, match=r"udcff\.svs', is not valid text: rename the file"):
        Dataset.from_paths([tmp_path / "good.svs", tmp_path / os.fsdecode(b"\xff.svs")])


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        Dataset.from_folder(tmp_path / "nowhere")


def test_a_folder_without_slides_is_refused_and_what_was_looked_for_named(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(DatasetError, match=r"holds no slide: no file below it ends in .*\.svs"):
        Dataset.from_folder(tmp_path)


def test_a_dicom_series_is_one_slide(shared_slides):
    dataset = Dataset.from_folder(shared_slides / "dicom")
    assert ids(dataset) == ["jpeg2000", "multi_frame_jpeg_camelyon_challenge_image", "cmu1_small_region"]
    series = shared_slides / "dicom" / "cmu1_small_region"
    assert dataset[2].slides[0].path == min(series.glob("*.dcm"))


def test_a_dicom_series_in_the_folder_itself_is_named_after_it(shared_slides, monkeypatch):
    series = shared_slides / "dicom" / "cmu1_small_region"
    monkeypatch.chdir(series)
    assert ids(Dataset.from_folder(".")) == ids(Dataset.from_folder(series)) == ["cmu1_small_region"]


def test_two_dicom_series_in_one_folder_are_two_slides(shared_slides, tmp_path):
    for path in (shared_slides / "dicom").glob("*/*.dcm"):
        shutil.copy(path, tmp_path)
    first = min((shared_slides / "dicom" / "cmu1_small_region").glob("*.dcm"))
    assert ids(Dataset.from_folder(tmp_path)) == [
        first.stem,
        "jpeg2000",
        "multi_frame_jpeg_camelyon_challenge_image",
    ]


def test_one_dicom_series_in_two_folders_is_two_slides(shared_slides, tmp_path):
    for name in ("left", "right"):
        shutil.copytree(shared_slides / "dicom" / "cmu1_small_region", tmp_path / name)
    assert ids(Dataset.from_folder(tmp_path)) == ["left", "right"]


def test_files_that_only_pretend_to_be_dicom_are_slides_of_their_own(tmp_path):
    touch(tmp_path, "a.dcm", "b.dcm")
    assert ids(Dataset.from_folder(tmp_path)) == ["a", "b"]


# from a manifest


def test_a_manifest_names_patients_slides_and_paths_relative_to_itself(tmp_path):
    dataset = Dataset.from_csv(manifest(tmp_path, "patient,slide,path\np2,H&E,in/a.svs\np1,H&E,b.svs\np2,Ki67,c.svs\n"))
    assert ids(dataset) == ["p2", "p1"]
    assert [(slide.id, slide.path) for slide in dataset[0].slides] == [
        ("H&E", tmp_path / "in" / "a.svs"),
        ("Ki67", tmp_path / "c.svs"),
    ]


def test_an_absolute_path_in_a_manifest_stays(tmp_path):
    elsewhere = tmp_path / "elsewhere" / "a.svs"
    dataset = Dataset.from_csv(manifest(tmp_path, f"patient,slide,path\np1,H&E,{elsewhere}\n"))
    assert dataset[0].slides[0].path == elsewhere


def test_further_columns_are_kept_as_records(tmp_path):
    text = "age,patient,slide,path,batch\n61,p1,H&E,a.svs,1\n61,p1,Ki67,b.svs,2\n,p2,H&E,c.svs,1\n"
    dataset = Dataset.from_csv(manifest(tmp_path, text))
    assert dict(dataset[0].records) == {"age": "61", "batch": ["1", "2"]}
    assert dict(dataset[1].records) == {"age": "", "batch": "1"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_manifest_saved_by_a_spreadsheet_is_read(tmp_path, encoding, newline):
    text = newline.join(["patient,slide,path,note", 'pä,"H,E",a.svs,"two', 'lines"', "p2,H&E,b.svs,one", ""])
    dataset = Dataset.from_csv(manifest(tmp_path, text, encoding))
    assert ids(dataset) == ["pä", "p2"]
    assert dataset[0].slides[0].id == "H,E"
    assert dataset[0].records["note"] == f"two{newline}lines"


def test_blank_lines_in_a_manifest_are_passed_over(tmp_path):
    assert ids(Dataset.from_csv(manifest(tmp_path, "patient,slide,path\n\np1,H&E,a.svs\n\n"))) == ["p1"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "column 'patient' is missing; found nothing"),
        ("patient,path\np1,a.svs\n", "column 'slide' is missing; found patient, path"),
        ("patient;slide;path\np1;H&E;a.svs\n", "column 'patient' is missing; found patient;slide;path"),
        ("patient,slide,path\n", "empty"),
        ("patient,slide,path\np1,H&E,a.svs\np2,H&E,\n", "line 3: path is empty"),
        ("patient,slide,path\np1,H&E\n", "line 2: path is empty"),
        ("patient,slide,path\n ,H&E,a.svs\n", "line 2: patient is empty"),
        ("patient,slide,path\np1,H&E,a.svs,surplus\n", "line 2: more values than columns"),
        ('patient,slide,path,note\np1,H&E,a.svs,"x\ny"\np2,a/b,b.svs,\n', "line 4: slide id 'a/b' cannot name a file"),
        ("patient,slide,path\n../p1,H&E,a.svs\n", "line 2: patient id '../p1' cannot name a file"),
        ("patient,slide,path\np1,coords,a.svs\n", "line 2: slide id 'coords' is reserved"),
        ("patient,slide,path\np1,H&E,a.svs\np1,H&E,b.svs\n", "patient 'p1' has two slides called 'H&E'"),
        ("patient,slide,path\np1,H&E,a.svs\np2,H&E,a.svs\n", "stands in the dataset twice"),
        ('patient,slide,path\np1,"H&E,a.svs\np2,H&E,b.svs\n', "line 3: unexpected end of data"),
        ("patient,slide,path\np1,H&E,a\0.svs\n", "is not valid text" if sys.version_info >= (3, 11) else "NUL"),
        ("patient,slide,path\np1,H&E,a.svs" + "x" * 200_000, "line 2: field larger than field limit"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_with_the_place(tmp_path, text, complaint):
    with pytest.raises(DatasetError, match="(?s)" + complaint.replace(".", r"\.")):
        Dataset.from_csv(manifest(tmp_path, text))


def test_a_manifest_in_another_encoding_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"manifest\.csv cannot be read as a manifest"):
        Dataset.from_csv(manifest(tmp_path, "patient,slide,path\np1,H&E,a.svs\n", "utf-16"))


def test_a_missing_manifest_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.csv cannot be read as a manifest: .*No such file"):
        Dataset.from_csv(tmp_path / "nowhere.csv")


def test_what_a_run_has_written_into_a_folder_of_slides_is_no_slide(tmp_path: Path) -> None:
    for name in ("a.tiff", "out/run.json", "out/b.tiff", "out/deep/c.svs", "several/mean/run.json", "several/mean/d.tiff"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"streamwsi_version": "0.1.0"}' if path.name == "run.json" else "")
    assert [patient.id for patient in Dataset.from_folder(tmp_path)] == ["a"]
    (tmp_path / "out" / "run.json").write_text('{"of": "another program"}')
    assert [patient.id for patient in Dataset.from_folder(tmp_path)] == ["a", "b", "c"]
    assert [patient.id for patient in Dataset.from_folder(tmp_path / "out")] == ["b", "c"]  # asked for by name
