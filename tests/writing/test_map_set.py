"""Maps made of a journal's tiles: files that others open, memory, kills, damage, hostile pieces."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import openslide
import pytest
import tifffile

import streamwsi as sw
from streamwsi.blending.frame import MapFrame
from streamwsi.chunks import BigChunk
from streamwsi.collecting.ahead import ChunkWork
from streamwsi.collecting.main import pieces_message
from streamwsi.collecting.map_rows import MapBlending
from streamwsi.config import OutputOptions
from streamwsi.dataset import Dataset, Patient, Slide
from streamwsi.errors import ConfigError, DiskError, JournalError, OutputError, PieceError, WireError
from streamwsi.map_options import MapOptions, MapOutput
from streamwsi.resolved import ResolvedSlide
from streamwsi.writing import map_set
from streamwsi.writing.journal import ChunkPieces, Journal
from streamwsi.writing.layout import remove_half_written
from streamwsi.writing.main import pieces_of
from streamwsi.writing.map_check import map_problems
from streamwsi.writing.map_manifest import read_manifest
from streamwsi.writing.publish import PublishedPatient, Stop, publish_patient
from tests.pipeline.test_disk import Disk, disk  # the fixture is used by name
from tests.writing.fabricate import patient_of, resolved_slide

__all__ = ["disk"]
ROOT = Path(__file__).parent.parent.parent

SLIDE = resolved_slide((150, 101), (32, 32), (24, 16), "pad", (2, 3))
IMAGE = np.random.default_rng(0).integers(0, 256, (101, 150, 3), np.uint8)
ROOM = np.pad(IMAGE, ((0, 64), (0, 64), (0, 0)))


def options(output: MapOutput = "hdf5", **others: Any) -> MapOptions:
    made = MapOptions(output=output, **{"weights": "mean", "block_px": 32} | others)
    made.check()
    return made


def message_of(
    maps: MapOptions,
    slide: ResolvedSlide,
    number: int,
    images: np.ndarray | None,
    none: Iterable[int] = (),
    skipped: Iterable[int] = (),
    at_once: int = 4,
) -> tuple[Any, list[Any]]:
    """What a collector sends of a chunk; `images` are (windows of the plan, height, width, …), of which some are not given."""
    windows = slide.plan().windows(slide.chunks().indices(number))
    chunk = BigChunk(windows, np.empty((len(windows), 1, 1, 3), np.uint8), None, np.isin(windows.index, list(skipped)))
    rows = MapBlending(maps).chunk(chunk, slide, None, None)
    given = np.flatnonzero(~np.isin(windows.index, [*none, *skipped]))
    for first in range(0, len(given) if images is not None else 0, at_once):
        some = given[first : first + at_once]
        pieces = [sw.ProcessedPiece(windows[row], images[windows.index[row]]) for row in some.tolist()]  # type: ignore[index]
        rows.add(some, pieces)
    patient = Patient(slide.patient_id, {slide.id: slide.path})
    work = ChunkWork(0, number, slide, Slide(Path(slide.path), slide.id), patient, "", chunk)
    work.rows = rows
    return pieces_message(work)


def pieces(maps: MapOptions, slide: ResolvedSlide, number: int, images: np.ndarray | None, **given: Any) -> ChunkPieces:
    """The same, as its writer takes it."""
    message, payload = message_of(maps, slide, number, images, **given)
    views = [memoryview(np.frombuffer(memoryview(part).tobytes(), np.uint8)) for part in payload]
    return pieces_of(message, views, slide, maps)


def own_pixels(slide: ResolvedSlide, reduction: int = 1) -> np.ndarray:
    """The windows' own pixels, beyond the edge too."""
    windows = slide.plan().windows(np.arange(len(slide.plan()), dtype=np.int64))
    (width, height), n = slide.kernel, reduction
    return np.stack([ROOM[y : y + height : n, x : x + width : n] for x, y in windows.start.tolist()])


def filled(
    journal: Journal, maps: MapOptions, slide: ResolvedSlide, images: np.ndarray | None, chunks: Any = None, **given: Any
) -> Journal:
    journal.record_slide(slide)
    for number in range(len(slide.chunks())) if chunks is None else chunks:
        journal.commit([pieces(maps, slide, number, images, **given)])
    return journal


def published(folder: Path, maps: MapOptions, slide: ResolvedSlide, images: np.ndarray | None, **given: Any) -> Path:
    """A patient's folder of maps."""
    of_publication = {name: given.pop(name) for name in ("stop", "partial") if name in given}
    output = OutputOptions(folder=str(folder), format="maps", maps=maps)
    with filled(Journal(folder / ".journal" / "p.sqlite"), maps, slide, images, **given) as journal:
        record = publish_patient(journal, patient_of([slide]), output, **of_publication)
    assert record.maps == 1
    return folder / record.file


def data(folder: Path) -> np.ndarray:
    with h5py.File(folder / "s.h5") as file:
        return np.asarray(file["data"])


def test_windows_own_pixels_come_back_as_a_tiff_that_others_open(tmp_path: Path) -> None:
    folder = published(tmp_path, options("tiff"), SLIDE, own_pixels(SLIDE))
    with tifffile.TiffFile(folder / "s.ome.tiff") as file:
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(101, 150, 3), (51, 75, 3), (26, 38, 3), (13, 19, 3)]
        np.testing.assert_array_equal(levels[0].asarray(), IMAGE)
        assert file.is_ome and 'PhysicalSizeX="0.5"' in str(file.ome_metadata)
    with openslide.OpenSlide(folder / "s.ome.tiff") as slide:
        assert slide.dimensions == (150, 101)
        np.testing.assert_array_equal(np.asarray(slide.read_region((7, 9), 0, (60, 50)))[..., :3], IMAGE[9:59, 7:67])


def test_they_come_back_as_ome_zarr_with_its_levels(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    slide = msgspec.structs.replace(SLIDE, info=msgspec.structs.replace(SLIDE.info, mpp=(0.25, 0.25), power=40.0))
    maps = options("zarr", reduction=2, dtype="float32")  # starts are multiples of 8
    folder = published(tmp_path, maps, slide, own_pixels(slide, reduction=2))
    group = zarr.open(str(folder / "s.ome.zarr"), mode="r")
    np.testing.assert_array_equal(np.moveaxis(np.asarray(group["0"]), 0, -1), IMAGE[::2, ::2])
    (multiscale,) = group.attrs["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "y", "x"]
    assert [level["coordinateTransformations"][0]["scale"] for level in multiscale["datasets"]] == [
        [1.0, 0.5 * 2**n, 0.5 * 2**n] for n in range(3)
    ]
    assert group["2"].shape == (3, 13, 19)
    (entry,) = read_manifest(folder).maps
    assert (entry.shape, entry.dtype, entry.downsample, entry.mpp) == ((51, 75, 3), "float32", 2.0, (0.5, 0.5))


def test_they_come_back_as_hdf5_with_what_is_known_of_them(tmp_path: Path) -> None:
    folder = published(tmp_path, options(), SLIDE, own_pixels(SLIDE)[..., 1])
    np.testing.assert_array_equal(data(folder), IMAGE[..., 1])
    with h5py.File(folder / "s.h5") as file:
        attributes = dict(file["data"].attrs)
        assert file["data"].chunks == (32, 32)
    assert (attributes["axes"], attributes["downsample"], attributes["patient"]) == ("YX", 1.0, "p1")
    np.testing.assert_array_equal(attributes["mpp"], [0.5, 0.5])


def test_the_order_of_arrival_and_of_a_chunk_twice_make_no_difference(tmp_path: Path) -> None:
    images = np.random.default_rng(1).normal(size=(len(SLIDE.plan()), 32, 32)).astype(np.float32)
    maps = options(weights="gaussian")
    numbers = list(range(len(SLIDE.chunks())))
    one = published(tmp_path / "one", maps, SLIDE, images)
    two = published(tmp_path / "two", maps, SLIDE, images, chunks=[*numbers[::-1], *numbers])
    assert (one / "s.h5").read_bytes() == (two / "s.h5").read_bytes()


def test_an_ome_tiff_s_name_follows_from_its_pixels_not_from_how_they_came(tmp_path: Path) -> None:
    images = own_pixels(SLIDE)
    other_chunks = resolved_slide((150, 101), (32, 32), (24, 16), "pad", (1, 2))
    first, again, inverted = (
        published(tmp_path / name, options("tiff"), slide, given) / "s.ome.tiff"
        for name, slide, given in (("a", SLIDE, images), ("b", other_chunks, images), ("c", SLIDE, 255 - images))
    )
    assert first.read_bytes() == again.read_bytes()
    names = [re.findall(r"urn:uuid:[-0-9a-f]{36}", tifffile.TiffFile(path).ome_metadata or "") for path in (first, inverted)]
    assert len(names[0]) == len(names[1]) == 1 and names[0] != names[1]


def test_windows_that_gave_nothing_or_could_not_be_read_and_those_behind_a_stop_are_holes(tmp_path: Path) -> None:
    slide = resolved_slide((96, 64), (32, 32), (32, 32), "pad", (1, 1))
    images = np.ones((6, 32, 32), np.float32)
    found = data(published(tmp_path, options(), slide, images, none=[1], skipped=[2], stop=Stop(0, 3)))
    expected = np.ones((2, 3))
    expected[0, 1:] = expected[1, 1:] = np.nan
    np.testing.assert_array_equal(found[::32, ::32], expected)
    np.testing.assert_array_equal(found, np.kron(expected, np.ones((32, 32))))


def test_a_patient_without_any_image_has_a_map_of_holes(tmp_path: Path) -> None:
    found = data(published(tmp_path, options(), SLIDE, None))
    assert found.shape == (101, 150) and found.dtype == np.float32 and np.isnan(found).all()


def test_a_damaged_tile_is_an_error_that_names_it(tmp_path: Path) -> None:
    output = OutputOptions(folder=str(tmp_path), format="maps", maps=options())
    with filled(Journal(tmp_path / "j.sqlite"), options(), SLIDE, own_pixels(SLIDE)) as journal:
        journal._execute("UPDATE tiles SET sums = x'00112233' WHERE chunk = 3 AND block_row = 1")
        with pytest.raises(JournalError, match=r"chunk 3 of slide 's', block \(1, \d\): 4 bytes that do not hold"):
            publish_patient(journal, patient_of([SLIDE]), output)


def test_a_window_that_is_missing_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"windows are missing from the journal, the first is 0"):
        published(tmp_path, options(), SLIDE, own_pixels(SLIDE), chunks=range(1, len(SLIDE.chunks())))
    assert not (tmp_path / "p1").exists()


def test_publication_holds_some_blocks_whatever_the_size_of_the_map(tmp_path: Path) -> None:
    peaks = []
    for number, side in enumerate((768, 1536)):
        slide = resolved_slide((side, side), (64, 64), (64, 64), "pad", (8, 8))
        maps = options(block_px=128)
        output = OutputOptions(folder=str(tmp_path / str(number)), format="maps", maps=maps)
        image = np.random.default_rng(0).random((64, 64), np.float32)
        images = np.broadcast_to(image, (len(slide.plan()), 64, 64))
        with filled(Journal(tmp_path / f"{number}.sqlite"), maps, slide, images) as journal:
            (tmp_path / str(number)).mkdir()
            tracemalloc.start()
            publish_patient(journal, patient_of([slide]), output)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 500_000 < 3_000_000, peaks  # the larger map has 9.4 MB


KILLED = """
import os, signal, sys
from pathlib import Path
from streamwsi.writing import map_set
from tests.writing.test_map_set import SLIDE, options, own_pixels, published

# its last map is written, and nothing has its final name
map_set.measured = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
published(Path(sys.argv[1]), options(sys.argv[2]), SLIDE, own_pixels(SLIDE))
"""


@pytest.mark.parametrize("output", ["zarr", "tiff"])
def test_a_publication_that_is_killed_leaves_nothing_whole_and_is_done_again(tmp_path: Path, output: MapOutput) -> None:
    if output == "zarr":
        pytest.importorskip("zarr")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), output], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".*.part")
    assert any(left.rglob("*")) and not (tmp_path / "p1").exists()
    remove_half_written(tmp_path)
    assert not left.exists()
    with Journal(tmp_path / ".journal" / "p.sqlite") as journal:
        of_maps = OutputOptions(folder=str(tmp_path), format="maps", maps=options(output))
        record = publish_patient(journal, patient_of([SLIDE]), of_maps)
    assert list(map_problems(tmp_path / "p1", record, 1)) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [".journal", ".published", "p1"]


@pytest.mark.parametrize("output", ["zarr", "tiff", "hdf5"])
def test_a_full_disk_is_said_to_be_one_and_publication_is_done_again(
    disk: Callable[[str], Disk], tmp_path: Path, output: MapOutput
) -> None:
    if output == "zarr":
        pytest.importorskip("zarr")
    small = disk("32k")
    maps = options(output)
    of_maps = OutputOptions(folder=str(small.path), format="maps", maps=maps)
    with filled(Journal(tmp_path / "j.sqlite"), maps, SLIDE, own_pixels(SLIDE)) as journal:
        with pytest.raises(DiskError, match="No space left on device; when that is remedied, run the same command again"):
            publish_patient(journal, patient_of([SLIDE]), of_maps)
        assert not list(small.path.iterdir())
        small.make_room()
        record = publish_patient(journal, patient_of([SLIDE]), of_maps)
    assert list(map_problems(small.path / "p1", record, 1)) == []


def test_what_was_changed_since_is_found(tmp_path: Path) -> None:
    output = OutputOptions(folder=str(tmp_path), format="maps", maps=options())
    with filled(Journal(tmp_path / "j.sqlite"), options(), SLIDE, own_pixels(SLIDE)) as journal:
        record = publish_patient(journal, patient_of([SLIDE]), output)
    folder, path = tmp_path / "p1", tmp_path / "p1" / "s.h5"

    def problems(of: PublishedPatient = record) -> list[str]:
        return list(map_problems(folder, of, 1))

    assert problems() == []
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert problems() == ["p1/s.h5 has changed since its publication: its checksum differs"]
    path.write_bytes(whole + b"x")
    assert problems() == [f"p1/s.h5 has 1 files of {len(whole) + 1} bytes, at publication there were 1 of {len(whole)}"]
    path.write_bytes(whole)
    (folder / "more.txt").touch()
    assert problems() == ["p1/more.txt is none of the maps"]
    (folder / "more.txt").unlink()
    larger = msgspec.structs.replace(record.slides[0], resolved=resolved_slide((151, 101)))
    assert "the plan has (101, 151, 3) at 1" in problems(msgspec.structs.replace(record, slides=[larger]))[0]
    (folder / "maps.json").write_text("{}")
    assert problems() == ["p1/maps.json has changed since its publication: its checksum differs"]


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "p1").mkdir()
    with pytest.raises(OutputError, match="is in the way of a patient's maps"):
        published(tmp_path, options(), SLIDE, own_pixels(SLIDE))


def test_maps_that_would_be_called_the_same_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"slides 'a' and 'A' of patient 'p' would be called the same, 'A\.h5'"):
        map_set.check_map_names(options(), Dataset([Patient("p", {"a": "x", "A": "y"})]))


# ---- what collectors give, and what writers take


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((49, 16, 16), np.uint8), r"these fit reduction=2"),
        (np.zeros((49, 2, 32, 32), np.float32), r"channels come last: move axis 1 to the end"),
        (np.zeros((49,), np.float32), r"process returned float32 of shape \(4,\)"),
        (np.zeros((49, 32, 32, 0), np.uint8), "0 channels"),
        (np.zeros((49, 32, 32), np.int64), "int64: give maps in at most 32 bits"),
        (np.zeros((49, 32, 32), np.int16), r"int16, which files of maps do not hold: .*MapStreamWriter\(dtype=…\)"),
    ],
)
def test_images_that_make_no_map_are_refused_saying_what_would(images: np.ndarray, said: str) -> None:
    with pytest.raises(PieceError, match=said):
        message_of(options(), SLIDE, 0, images)


def test_images_of_another_type_than_before_are_refused(tmp_path: Path) -> None:
    images = own_pixels(SLIDE)
    with Journal(tmp_path / "j.sqlite") as journal:
        filled(journal, options(), SLIDE, images, chunks=[0])
        with pytest.raises(PieceError, match=r"a value is float32 of shape \(32, 32, 3\), those before it were uint8"):
            journal.commit([pieces(options(), SLIDE, 1, images.astype(np.float32))])


def test_tiles_of_nothing_take_no_room() -> None:
    _, payload = message_of(options(), SLIDE, 0, np.zeros((len(SLIDE.plan()), 32, 32), np.float32))
    assert len(payload) > 4 and all(memoryview(part).nbytes == 0 for part in payload[3:])


def test_hostile_tiles_are_refused() -> None:
    maps = options()
    message, payload = message_of(maps, SLIDE, 0, own_pixels(SLIDE))
    views = [memoryview(np.frombuffer(memoryview(part).tobytes(), np.uint8)) for part in payload]
    table = np.frombuffer(views[2], np.int64).reshape(-1, 6)
    assert len(pieces_of(message, views, SLIDE, maps).map.tiles) == message.tiles  # type: ignore[union-attr]

    def with_table(row: int, column: int, value: int) -> list[memoryview]:
        changed = table.copy()
        changed[row, column] = value
        return [*views[:2], memoryview(changed.view(np.uint8).ravel()), *views[3:]]

    replace = msgspec.structs.replace
    other_spec = replace(message.values, shape=(16, 32, 3))
    wrong: list[tuple[Any, list[memoryview]]] = [
        (message, views[:-1]),
        (message, [*views[:-1], memoryview(bytes(1 << 20))]),
        (message, with_table(0, 0, -1)),
        (message, with_table(0, 4, 1000)),
        (message, with_table(0, 2, 40)),
        (replace(message, tiles=None), views),
        (replace(message, tiles=message.tiles + 1), views),
        (replace(message, values=other_spec), views),
        (replace(message, values=replace(message.values, dtype="nonsense")), views),
        (replace(message, rows=message.rows - 1), views),
    ]
    for header, parts in wrong:
        with pytest.raises(WireError):
            pieces_of(header, parts, SLIDE, maps)
    with pytest.raises(WireError):  # tiles for a writer of rows
        pieces_of(message, views, SLIDE)


def test_a_slide_smaller_than_the_window_has_a_map_of_its_own_size(tmp_path: Path) -> None:
    slide = resolved_slide((21, 13), (32, 32), (32, 32), "adaptive")
    assert MapFrame.of(slide, options()).extent == (21, 13)
    found = data(published(tmp_path, options(), slide, IMAGE[None, :13, :21]))
    np.testing.assert_array_equal(found, IMAGE[:13, :21])


def test_partial_maps_are_named_so_and_give_way(tmp_path: Path) -> None:
    images = own_pixels(SLIDE)
    assert published(tmp_path, options(), SLIDE, images, partial=True).name == "p1.partial"
    assert published(tmp_path, options(), SLIDE, images).name == "p1"
    assert not (tmp_path / "p1.partial").exists()


@pytest.mark.parametrize(("dtype", "value"), [("uint8", np.inf), ("uint8", np.nan), ("float32", 1e39), ("uint16", 65536)])
def test_a_fill_value_that_the_type_does_not_hold_is_refused(dtype: str, value: float) -> None:
    with pytest.raises(ConfigError, match="fill_value must be a"):
        options(dtype=dtype, fill_value=value)
