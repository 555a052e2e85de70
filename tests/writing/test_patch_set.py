"""Folders and shards of images, from journals to verification."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from streamwsi.chunks import Status
from streamwsi.config import OutputOptions
from streamwsi.dataset import Dataset, Patient, Slide
from streamwsi.errors import ConfigError, DiskError, OutputError
from streamwsi.images.encoding import ImageEncoding
from streamwsi.images.options import NAME, ImageOptions
from streamwsi.resolved import ResolvedSlide
from streamwsi.writing import layout as layout_module
from streamwsi.writing.journal import Journal
from streamwsi.writing.layout import Layout, remove_half_written
from streamwsi.writing.manifest import MANIFEST, windows_in
from streamwsi.writing.patch_check import folder_problems
from streamwsi.writing.patch_set import check_names
from streamwsi.writing.publish import PublishedPatient, checksum_of, publish_patient, read_record
from tests.writing.fabricate import fill, patient_of, resolved_slide

RESOLUTIONS = 2


def options(folder: Path, **changed: Any) -> OutputOptions:
    given: dict[str, Any] = {"format": "png", "quality": None, "name": NAME, "by_label": False, "comment": None, "shards": None}
    return OutputOptions(folder=str(folder), format="images", images=ImageOptions.of(**{**given, **changed}))


def picture(number: int) -> np.ndarray:
    return np.full((4, 5, 3), number, np.uint8)


def pictures(slide: ResolvedSlide, several: int = 0) -> np.ndarray:
    """The file of each window, in which its number stands; or several."""
    n = len(slide.grid())
    values = np.empty((n, several) if several else n, object)
    values.ravel()[:] = [ImageEncoding("png").encoded(picture(number % 256)) for number in range(values.size)]
    return values


Publish = Callable[..., tuple[Path, PublishedPatient]]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    def publish(
        slides: Sequence[ResolvedSlide] = (resolved_slide(),),
        several: int = 0,
        status: np.ndarray | None = None,
        folder: str = "out",
        partial: bool = False,
        **changed: Any,
    ) -> tuple[Path, PublishedPatient]:
        output = options(tmp_path / folder, **changed)
        layout = Layout.of(output)
        with Journal(layout.journal(slides[0].patient_id)) as journal:
            for slide in slides:
                fill(journal, slide, pictures(slide, several), status)
            record = publish_patient(journal, patient_of(slides), output, partial=partial)
        return layout.final_file(slides[0].patient_id, partial), record

    return publish


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / MANIFEST).open(newline="") as file:
        return list(csv.DictReader(file))


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def number_in(data: bytes) -> int:
    image = np.asarray(Image.open(io.BytesIO(data)))
    assert image.shape == (4, 5, 3) and len(np.unique(image)) == 1
    return int(image[0, 0, 0])


# ---- folders


def test_each_image_is_a_file_and_the_manifest_tells_of_it(publish: Publish) -> None:
    slide = resolved_slide()
    folder, record = publish([slide])
    rows = rows_of(folder)
    files = files_below(folder)
    assert set(files) == {row["file"] for row in rows} | {MANIFEST}
    windows = slide.grid().windows(np.arange(35))
    for number, (row, window) in enumerate(zip(rows, windows, strict=True)):
        assert row["file"] == f"s_x{window.x}_y{window.y}.png" and number_in(files[row["file"]]) == number
        told = {name: int(row[name]) for name in ("index", "x", "y", "level", "width", "height", "bytes")}
        assert told == {
            **{"index": number, "x": window.x, "y": window.y, "level": 0, "width": 16, "height": 16},
            "bytes": len(files[row["file"]]),
        }
        assert (row["patient"], row["slide"], row["label"], row["resolution"]) == ("p1", "s", "", "0")
    assert record.images == 35 and record.size_bytes == sum(len(data) for name, data in files.items() if name != MANIFEST)
    assert folder.name == record.file == "p1" and folder_problems(folder, record) == []
    index, xy, size = windows_in(folder, "s")
    np.testing.assert_array_equal(index, windows.index)
    np.testing.assert_array_equal(xy, windows.xy)
    np.testing.assert_array_equal(size, windows.size)


def test_windows_without_an_image_have_no_row(publish: Publish) -> None:
    status = np.arange(35, dtype=np.uint8) % 3
    folder, record = publish(status=status)
    written = np.flatnonzero(status == Status.WRITTEN)
    assert [int(row["index"]) for row in rows_of(folder)] == written.tolist()
    assert [number_in((folder / row["file"]).read_bytes()) for row in rows_of(folder)] == written.tolist()
    assert record.images == len(written) and folder_problems(folder, record) == []


def test_a_patient_without_any_image_has_a_manifest_without_rows(publish: Publish) -> None:
    folder, record = publish(status=np.ones(35, np.uint8))
    assert [path.name for path in folder.iterdir()] == [MANIFEST] and rows_of(folder) == []
    assert record.images == 0 and folder_problems(folder, record) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("{slide}_{index}", "s_3.r1.png"),
        ("{index}-r{resolution}", "3-r1.png"),
        ("{patient}_{x:04}_{y:04}", "p1_0048_0000.r1.png"),
    ],
)
def test_images_of_several_resolutions_are_told_apart(publish: Publish, name: str, expected: str) -> None:
    folder, record = publish(several=RESOLUTIONS, name=name)
    rows = rows_of(folder)
    assert len(rows) == 70 == record.images and rows[7]["file"] == expected and rows[7]["resolution"] == "1"
    assert [number_in((folder / row["file"]).read_bytes()) for row in rows] == list(range(70))
    assert folder_problems(folder, record) == [] and len(windows_in(folder, "s")[0]) == 35


def test_windows_without_a_label_lie_in_a_folder_of_their_own(publish: Publish) -> None:
    folder, record = publish(by_label=True)
    assert rows_of(folder)[0]["file"] == "unlabelled/s_x0_y0.png" and folder_problems(folder, record) == []
    assert {path.name for path in folder.iterdir()} == {MANIFEST, "unlabelled"}


def test_a_comment_stands_in_each_image_and_in_the_manifest(publish: Publish) -> None:
    folder, record = publish(comment="{slide}: {x}, {y} µm")
    for row in rows_of(folder):
        with Image.open(folder / row["file"]) as image:
            assert image.info["Comment"] == row["comment"] == f"s: {row['x']}, {row['y']} µm"
    assert folder_problems(folder, record) == []


# ---- shards


def test_a_comment_of_several_lines_leaves_the_manifest_whole(publish: Publish) -> None:
    folder, record = publish(comment="{slide}\r{x}\n{y}")
    assert [row["comment"] for row in rows_of(folder)][1] == "s\r16\n0" and folder_problems(folder, record) == []


def samples_of(shard: Path) -> dict[str, dict[str, bytes]]:
    """Samples as WebDataset groups them: members next to each other, the same up to the first dot of their base names."""
    found: dict[str, dict[str, bytes]] = {}
    last = None
    with tarfile.open(shard) as tar:
        for member in tar:
            above, slash, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            key = f"{above}{slash}{stem}"
            assert key == last or key not in found, f"{key} does not stand in one place"
            last = key
            content = tar.extractfile(member)
            assert content is not None and extension not in found.setdefault(key, {})
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)
            found[key][extension] = content.read()
    return found


@pytest.mark.parametrize(("several", "endings"), [(0, ["png"]), (RESOLUTIONS, ["r0.png", "r1.png"])])
def test_a_shard_has_a_sample_for_each_window(publish: Publish, several: int, endings: list[str]) -> None:
    slide = resolved_slide(id="s.1")
    folder, record = publish([slide], several=several, shards=10, comment="c{index}")
    shards = sorted(path.name for path in folder.glob("*.tar"))
    assert shards == [f"p1-{number:06}.tar" for number in range(4)]
    each = [samples_of(folder / shard) for shard in shards]
    assert list(map(len, each)) == [10, 10, 10, 5]
    samples = {key: sample for of_shard in each for key, sample in of_shard.items()}
    rows, number = rows_of(folder), 0
    for window, (key, sample) in zip(slide.grid().windows(np.arange(35)), samples.items(), strict=True):
        assert key == f"s_1_x{window.x}_y{window.y}" and list(sample) == [*endings, "json"]
        about = json.loads(sample["json"])
        assert about == {
            **{"patient": "p1", "slide": "s.1", "index": window.index, "x": window.x, "y": window.y, "level": 0},
            **{"width": 16, "height": 16, "label": "", "comment": f"c{window.index}"},
        }
        for ending in endings:
            assert number_in(sample[ending]) == number
            assert rows[number]["file"] == f"{key}.{ending}" and rows[number]["shard"] == shards[window.index // 10]
            number += 1
    assert number == len(rows) == record.images and folder_problems(folder, record) == []


def test_a_shard_may_be_of_a_size(publish: Publish) -> None:
    folder, record = publish(shards="1KB", by_label=True)
    sizes = [
        sum(int(row["bytes"]) for row in rows_of(folder) if row["shard"] == path.name) for path in sorted(folder.glob("*.tar"))
    ]
    assert len(sizes) > 1 and all(1000 <= size < 1200 for size in sizes[:-1])
    assert all(key.startswith("unlabelled/") for key in samples_of(folder / "p1-000000.tar"))
    assert folder_problems(folder, record) == []


@pytest.mark.parametrize("shards", [None, 10])
def test_the_same_images_make_the_same_files(publish: Publish, shards: int | None) -> None:
    first, _ = publish(folder="one", shards=shards)
    second, _ = publish(folder="two", shards=shards)
    assert files_below(first) == files_below(second)


# ---- names


def test_two_images_of_one_name_are_refused_naming_both_and_nothing_is_left(publish: Publish, tmp_path: Path) -> None:
    slide = resolved_slide((12, 12), kernel=(1, 1), stride=(1, 1))
    with pytest.raises(OutputError, match=r"'(\d+\.png)' of window \d+ of slide 's', and '\1' of window \d+ of slide 's'"):
        publish([slide], name="{x}{y}")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".journal"}


def test_names_that_differ_in_case_alone_are_refused(publish: Publish) -> None:
    slides = [resolved_slide(id="S"), resolved_slide(id="s", place=(0, 1))]
    with pytest.raises(
        OutputError, match=r"'S_x0_y0\.png' of window 0 of slide 'S', and 's_x0_y0\.png' of window 0 of slide 's'"
    ):
        publish(slides)


def dataset_of(*slides: str, patient: str = "p") -> Dataset:
    return Dataset([Patient(patient, [Slide(Path(f"/nowhere/{number}.svs"), name) for number, name in enumerate(slides)])])


@pytest.mark.parametrize(
    ("dataset", "changed", "said"),
    [
        (dataset_of("a", "b"), {"name": "{index}"}, r"slides 'a' and 'b' of patient 'p': add \{slide\}"),
        (dataset_of("a", "A"), {}, "slides 'a' and 'A' of patient 'p' would be called the same, where case does not count"),
        (dataset_of("a.b", "a_b"), {"shards": 9}, "dots become _"),
        (dataset_of("s" * 240), {}, r"images of slide 's+' cannot be called so: it has \d+ bytes, 255 are the most"),
        (dataset_of("a", patient="Run.json"), {}, "patient 'Run.json' cannot have a folder of images"),
    ],
)
def test_names_that_cannot_be_are_refused_before_anything_starts(
    tmp_path: Path, dataset: Dataset, changed: dict[str, Any], said: str
) -> None:
    images = options(tmp_path, **changed).images
    assert images is not None
    with pytest.raises(ConfigError, match=said):
        check_names(images, dataset)
    check_names(images, dataset_of("fine"))


# ---- appearing whole, and going


def test_a_folder_that_was_published_and_not_recorded_is_replaced(publish: Publish, tmp_path: Path) -> None:
    folder, record = publish()
    before = files_below(folder)
    Layout.of(options(tmp_path / "out")).published("p1").unlink()
    (folder / "s_x0_y0.png").unlink()
    again, record = publish()
    assert again == folder and files_below(folder) == before and folder_problems(folder, record) == []
    assert {path.name for path in folder.parent.iterdir()} == {".journal", ".published", "p1"}


def test_a_folder_that_is_not_ours_is_not_replaced(publish: Publish, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "p1" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (mine.parent / MANIFEST).write_text("patient,slide,path\n")
    with pytest.raises(OutputError, match="was not made by streamwsi: move it"):
        publish()
    assert mine.read_text() == "mine"


def test_a_whole_folder_takes_a_partial_one_s_place(publish: Publish, tmp_path: Path) -> None:
    layout = Layout.of(options(tmp_path / "out"))
    partial, _ = publish(partial=True)
    assert partial.name == "p1.partial" and read_record(layout, "p1") is None
    assert read_record(layout, "p1", partial=True) is not None
    whole, _ = publish()
    assert whole.exists() and not partial.exists() and read_record(layout, "p1", partial=True) is None
    assert {path.name for path in whole.parent.iterdir()} == {".journal", ".published", "p1"}


def test_what_is_left_half_written_is_removed_and_nothing_else(publish: Publish, tmp_path: Path) -> None:
    folder, _ = publish()
    half = folder.with_name(f".{layout_module.hashed('p1')}.part")
    shutil.copytree(folder, half)
    other = folder.with_name(".mine.part")
    other.mkdir()
    remove_half_written(folder.parent)
    assert not half.exists() and other.exists() and folder.exists()


def test_a_disk_that_refuses_an_image_is_an_error_that_leaves_nothing(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = os.fsync
    left = iter(range(20))

    def fsync(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskError, match=r"p1 cannot be written: No space left on device.*run the same command again"):
        publish()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".journal"}


# ---- verification


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


DAMAGES: list[tuple[int | None, Callable[[Path], object], str]] = [
    (None, lambda folder: (folder / "s_x16_y0.png").unlink(), r"p1/s_x16_y0\.png cannot be read: No such file"),
    (None, lambda folder: change(folder / "s_x16_y0.png"), r"p1/s_x16_y0\.png has changed since its publication"),
    (None, lambda folder: (folder / "s_x16_y0.png").write_bytes(b"x"), r"p1/s_x16_y0\.png has 1 bytes, at publication it had"),
    (None, lambda folder: change(folder / MANIFEST), r"p1/manifest\.csv has changed"),
    (None, lambda folder: (folder / MANIFEST).unlink(), r"p1/manifest\.csv is not there"),
    (None, lambda folder: (folder / "extra.png").write_bytes(b"x"), r"p1/extra\.png is not in the manifest"),
    (10, lambda folder: (folder / "p1-000001.tar").unlink(), r"p1/p1-000001\.tar cannot be read: .*No such file"),
    (10, lambda folder: change_in_shard(folder / "p1-000001.tar"), r"p1/p1-000001\.tar/s_x\d+_y\d+\.png has changed"),
    (10, lambda folder: cut(folder / "p1-000001.tar"), r"p1/p1-000001\.tar cannot be read: unexpected end of data"),
    (10, lambda folder: exchange(folder), r"p1/p1-000000\.tar/s_x48_y16\.png is not in the manifest"),
]


def change_in_shard(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[512 + 40] ^= 1  # of the first image, behind its header
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def exchange(folder: Path) -> None:
    for old, new in (("0", "x"), ("1", "0"), ("x", "1")):
        os.replace(folder / f"p1-00000{old}.tar", folder / f"p1-00000{new}.tar")


@pytest.mark.parametrize(("shards", "damage", "said"), DAMAGES)
def test_what_is_not_as_it_was_is_found(
    publish: Publish, shards: int | None, damage: Callable[[Path], object], said: str
) -> None:
    folder, record = publish(shards=shards)
    damage(folder)
    problems = folder_problems(folder, record)
    assert any(re.match(said, problem) for problem in problems), problems


def test_of_many_wrong_images_some_are_named_and_the_others_counted(publish: Publish) -> None:
    folder, record = publish()
    for path in folder.glob("*.png"):
        change(path)
    *named, rest = folder_problems(folder, record)
    assert len(named) == 5 and rest == "p1: 30 more are wrong"


def test_a_manifest_with_fewer_images_than_were_written_is_found(publish: Publish) -> None:
    folder, record = publish()
    lines = (folder / MANIFEST).read_text().splitlines(keepends=True)
    (folder / MANIFEST).write_text("".join(lines[:-1]))
    forged = msgspec.structs.replace(record, checksum=checksum_of(folder / MANIFEST))
    assert any("lists 34 images" in problem and "35 were written" in problem for problem in folder_problems(folder, forged))
