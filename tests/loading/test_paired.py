"""Paired images as users describe them: what can be said, where they lie on a slide, and how they are recognised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import h5py
import msgspec
import numpy as np
import pytest

import streamwsi as sw
from streamwsi.dataset import SlideInfo
from streamwsi.errors import ChunkError
from streamwsi.loading.open_paired import OpenPaired
from streamwsi.loading.paired import checked_paired
from streamwsi.loading.read import read_chunk
from streamwsi.loading.resolution import ChoiceError, Wanted
from streamwsi.loading.resolve import Choices, ReadingOptions, resolve_slide
from streamwsi.loading.transforms import TransformError, checked_transforms, transformed
from streamwsi.paired import PairedImage
from streamwsi.slides.tile_cache import TileCache
from tests.slides.zarr_files import write_array, write_image

SIZE = (320, 240)
SLIDE = sw.Slide(Path("/slides/case.7.svs"), "H&E")


def info(size: tuple[int, int] = SIZE) -> SlideInfo:
    return SlideInfo(
        level_dimensions=(size,),
        level_downsamples=(1.0,),
        mpp=None,
        power=None,
        vendor="test",
        tile_sizes=(None,),
        associated_images=(),
        reader="array",
    )


def options_of(side: int, **changed: Any) -> ReadingOptions:
    """Windows of this size side by side."""
    return ReadingOptions(
        **{
            "kernel": (side, side),
            "stride": (side, side),
            "border": "pad",
            "background": (255, 255, 255),
            "reader": "auto",
            "on_bad_region": "fail",
            "batch_size": 4,
            "chunk_px": 1 << 20,
            "threads": 1,
            "min_chunk_interval_s": 0.0,
            **changed,
        }
    )


def opened(paired: Any, slide: sw.Slide = SLIDE, patient: str = "anna") -> OpenPaired:
    (name, each), *_ = checked_paired({"labels": paired}).items()
    return OpenPaired(name, each, slide, patient, info(), TileCache(1 << 20))


def image(paired: Any, downsample: float = 1.0) -> PairedImage:
    return opened(paired).image(downsample)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: sw.Paired(3), "must be a path with fields"),
        (lambda: sw.Paired("labels/{case}.png"), r"there is no \{case\}, only \{slide\}, \{patient\}, \{stem\}, \{folder\}"),
        (lambda: sw.Paired({}), "mapping holds no slide"),
        (lambda: sw.Paired({"a": 3}), "must be paths or arrays by slide, got a int"),
        (lambda: sw.Paired("a", resolution="slide"), "resolution must be"),
        (lambda: sw.Paired("a", axes="YXQ"), "axes must be letters of TCZYX, each once, Y and X among them, got 'YXQ'"),
        (lambda: sw.Paired("a", source_axes="YYX"), "source_axes must be letters"),
        (lambda: sw.Paired("a", at={"Q": 0}), "at must say places by letters"),
        (lambda: sw.Paired("a", at={"Y": 0}), r"at\['Y'\] must be a slice, got 0"),
        (lambda: sw.Paired("a", at={"C": "red"}), r"at\['C'\] must be a slice or a whole number"),
        (lambda: sw.Paired("a", level=-1), "level must be"),
        (lambda: sw.Paired("a", scale=0), "scale must be above 0"),
        (lambda: sw.Paired("a", offset=(1, 1)), "offset= goes with scale="),
        (lambda: sw.Paired("a", outside="white"), "outside must be a number"),
        (lambda: checked_paired(["a"]), "paired must be a dict of images by name"),
        (lambda: checked_paired({"pixels": "a"}), "must be called by a name like 'labels', and none of"),
        (lambda: checked_paired({"two words": "a"}), "must be called by a name"),
        (lambda: checked_transforms({"mask": abs}, ["labels"]), r"must be for one of \('pixels', 'labels'\)"),
        (lambda: checked_transforms({("pixels", "pixels"): abs}, []), "or several in a tuple"),
        (lambda: checked_transforms({"pixels": 3}, []), "must be a function of arrays, got int"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(made: Callable[[], Any], message: str) -> None:
    with pytest.raises(sw.ConfigError, match=message):
        made()


def test_a_description_travels_whole() -> None:
    asked = sw.Paired("{folder}/x.zarr", "window", "TCZYX", "YXC", {"t": 0, "Z": slice(2, 3)}, 1, (4.0, 5.0), (1, 2), 9)
    assert cloudpickle.loads(cloudpickle.dumps(asked)) == asked
    assert asked.describe() == {
        "resolution": "window",
        "outside": 9.0,
        "source_axes": "TCZYX",
        "axes": "YXC",
        "level": 1,
        "scale": [4.0, 5.0],
        "offset": [1.0, 2.0],
        "at": {"T": "0", "Z": "slice(2, 3, None)"},
    }
    assert sw.Paired("a", outside=float("nan")).describe() == sw.Paired("b", outside=np.nan).describe()
    assert sw.Paired("a", level=np.int64(1), at={"C": np.uint8(2)}, outside=np.float32(1)).at == {"C": 2}
    assert "lambda" in sw.Paired(lambda slide: "a.npy").describe()["callable"]


def test_where_an_image_is_found(tmp_path: Path) -> None:
    array = np.zeros((60, 80), np.uint8)
    for name in ("case.7.npy", "H&E-anna.npy", "odd {1} {name}.npy", "odd {1} case.7.npy"):
        np.save(tmp_path / name, array)
    slide = sw.Slide(tmp_path / "case.7.svs", "H&E")
    for source in (
        str(tmp_path / "{stem}.npy"),
        str(tmp_path / "{slide}-{patient}.npy"),
        "{folder}/{stem}.npy",
        {"H&E": tmp_path / "odd {1} {name}.npy"},
        str(tmp_path / "odd {1} {").replace(" {", " {1}", 0) + "stem}.npy",
        {"H&E": tmp_path / "case.7.npy"},
        {("anna", "H&E"): array, "H&E": tmp_path / "not there.npy"},
        lambda slide: slide.path.with_suffix(".npy"),
        lambda slide: np.zeros(tuple(side // 4 for side in slide.dimensions[::-1]), np.uint8),
    ):
        found = opened(sw.Paired(source), slide).image(1.0)
        assert (found.extent, found.scale) == ((80, 60), (4.0, 4.0))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{folder}/none.npy", r"labels of /slides/case.7.svs: .*none.npy does not exist"),
        ({"other": "a.npy"}, r"there is none for 'H&E' or \('anna', 'H&E'\) in the mapping"),
        ({"H&E": np.zeros((60, 60), np.uint8)}, "paired image does not have the form of the slide: 60 × 60"),
        ({"H&E": np.zeros((80, 60), np.uint8)}, "its rows and columns seem to be swapped"),
        ({"H&E": np.zeros((60, 80), "S3")}, "its values must be numbers"),
    ],
)
def test_an_image_that_does_not_fit_fails_its_slide(source: Any, message: str) -> None:
    with pytest.raises(sw.SlideError, match=message):
        image(sw.Paired(source))


def test_what_lies_outside_must_be_a_value_of_the_type() -> None:
    for dtype, outside in ((np.uint8, -1), (np.int32, np.nan), (np.int64, np.inf), (bool, 255), (np.float16, 1e6)):
        with pytest.raises(sw.SlideError, match=rf"{np.dtype(dtype).name}, which has no .* for outside="):
            image(sw.Paired({"H&E": np.zeros((60, 80), dtype)}, outside=outside))
    assert image(sw.Paired({"H&E": np.zeros((60, 80), np.float32)}, outside=float("nan"))).dtype == "<f4"


def test_a_function_that_raises_is_the_users(tmp_path: Path) -> None:
    def raises(slide: sw.Slide) -> Any:
        raise KeyError(slide.id)

    def refuses(slide: sw.Slide) -> Any:
        raise sw.SlideError("not this one")

    with pytest.raises(ChoiceError, match="raised for slide 'H&E'") as caught:
        image(sw.Paired(raises))
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ChoiceError, match="for slide 'H&E': it gave a list: a path or an array is wanted"):
        image(sw.Paired(lambda slide: [1, 2]))
    with pytest.raises(sw.SlideError, match="not this one"):
        image(sw.Paired(refuses))


def test_a_part_of_the_slide_may_have_labels() -> None:
    found = image(sw.Paired({"H&E": np.zeros((10, 20), np.uint8)}, scale=8, offset=(100, 50)))
    assert (found.scale, found.offset, found.extent) == ((8.0, 8.0), (100.0, 50.0), (20, 10))


@pytest.mark.parametrize(
    ("extent", "scale"),
    [
        ((320, 240), (1.0, 1.0)),
        ((159, 120), (2.01, 2.01)),
        ((80, 60), (4.0, 4.0)),
        ((46, 34), (7.0, 7.0)),
        ((45, 35), (7.0, 7.0)),
        ((22, 16), (15.0, 15.0)),
        ((11, 8), (320 / 11, 30.0)),
        ((213, 160), (320 / 213, 1.5)),
    ],
)
def test_the_scale_of_an_image_that_covers_the_slide(extent: tuple[int, int], scale: tuple[float, float]) -> None:
    """A level's, a whole number's with its sides rounded either way, or that of its sides: 27 to 31 give 11 × 8 alike."""
    paired = sw.Paired({"H&E": np.zeros(extent[::-1], np.uint8)})
    with_level = msgspec.structs.replace(info(), level_dimensions=(SIZE, (159, 120)), level_downsamples=(1.0, 2.01))
    found = OpenPaired("labels", paired, SLIDE, "anna", with_level, TileCache(1 << 20)).image(1.0)
    assert found.scale == scale


def test_the_level_of_a_pyramid_is_as_fine_as_the_window(tmp_path: Path) -> None:
    levels = [np.zeros((240 // side, 320 // side), np.uint8) for side in (1, 2, 4)]
    write_image(tmp_path / "p.zarr", levels, "YX", (64, 64), [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0)])
    path = str(tmp_path / "p.zarr")
    assert image(path, 4.0).level == 0
    asked = sw.Paired(path, resolution="window")
    assert [image(asked, down).level for down in (1.0, 1.9, 2.0, 2.00034, 3.0, 4.0, 50.0)] == [0, 0, 1, 1, 1, 2, 2]
    assert image(asked, 4.0).scale == (4.0, 4.0)
    assert image(sw.Paired(path, level=1), 4.0).scale == (2.0, 2.0)
    assert image(sw.Paired(path, "window", at={"X": slice(200, 320)}, scale=1), 4.0).shape == (240, 120)
    with pytest.raises(sw.SlideError, match="it has no level 3: it has levels 0 to 2"):
        image(sw.Paired(path, level=3))


def test_images_are_recognised_by_their_content(tmp_path: Path) -> None:
    array = np.zeros((60, 80), np.uint8)
    other = array.copy()
    other[30, 40] = 1
    stored = write_array(tmp_path / "a.zarr", array, (16, 16))
    np.save(tmp_path / "a.npy", array)
    sources = [{"H&E": array}, {"H&E": other}, {"H&E": stored}, {"H&E": tmp_path / "a.npy"}]
    first, second = ([image(sw.Paired(source)).fingerprint for source in sources] for _ in range(2))
    assert first == second and first[0] != first[1]
    assert image(sw.Paired({"H&E": array}), 2.0).fingerprint == first[0]
    stored[0, 0] = 5
    assert image(sw.Paired(sources[2])).fingerprint != first[2]


def test_with_paired_images_a_chunk_takes_no_more_memory(bundled: Path) -> None:
    """Chunks are cut smaller; `float32` of 4 channels at the windows' own scale are 16 bytes for each pixel beside 3."""
    with sw.open_slide(bundled) as reader:
        width, height = reader.info.dimensions
        deep = sw.Paired({"s": np.zeros((height, width, 4), np.float32)}, source_axes="YXC")
        options = options_of(64)
        slide = sw.Slide(bundled, "s")
        sizes = []
        for paired in ({}, {"labels": OpenPaired("labels", deep, slide, "p", reader.info, TileCache(1 << 20))}):
            resolved = resolve_slide(reader, (0, 0), "p", slide, Choices(Wanted.of()), options, paired)
            sizes.append(max(resolved.chunk_bytes(number) for number in range(len(resolved.chunks()))))
    assert sizes[1] <= sizes[0] * 1.1 < sizes[0] * 19 / 3


def test_windows_that_cannot_be_read_in_an_image_are_skipped_alone(bundled: Path, tmp_path: Path) -> None:
    with sw.open_slide(bundled) as reader:
        width, height = reader.info.dimensions
        write_array(tmp_path / "a.zarr", np.ones((height, width), np.uint8), (256, 256))
        (tmp_path / "a.zarr" / "c" / "1" / "2").write_bytes(b"damaged")
        options = options_of(256, on_bad_region="skip")
        slide = sw.Slide(bundled, "s")
        paired = {
            "labels": OpenPaired("labels", sw.Paired(str(tmp_path / "a.zarr")), slide, "p", reader.info, TileCache(1 << 20))
        }
        resolved = resolve_slide(reader, (0, 0), "p", slide, Choices(Wanted.of()), options, paired)
        readers = {name: each.reader for name, each in paired.items()}
        skipped = []
        for number in range(len(resolved.chunks())):
            chunk = read_chunk(reader, resolved, number, "skip", paired=readers)
            skipped += [(window.x, window.y) for window, bad in zip(chunk.windows, chunk.skipped, strict=True) if bad]
    assert skipped == [(512, 256)]


def batch(n: int = 3) -> sw.Batch:
    pixels = np.arange(n * 4 * 4 * 3, dtype=np.uint8).reshape(n, 4, 4, 3)
    windows = sw.Windows(*(np.zeros((n, 2), np.int64) if two else np.arange(n) for two in (False, True, True, True)))
    return sw.Batch(pixels, windows, SLIDE, None, paired={"labels": pixels[..., 0]})  # type: ignore[arg-type]


def test_arrays_in_files_travel_as_where_they_lie(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((600, 800), np.int32))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = mapped
    with h5py.File(tmp_path / "a.h5") as file:
        asked = sw.Paired({"a": mapped, "b": file["x"]})
        sent = cloudpickle.dumps(asked)
    assert len(sent) < 2000
    for source in cloudpickle.loads(sent).source.values():
        np.testing.assert_array_equal(source.array[...], mapped)


def test_a_part_that_cannot_be_read_leaves_its_neighbours_as_they_are(bundled: Path, tmp_path: Path) -> None:
    """Windows overlap, so that they share the region they are read into; one reaches beyond the image, and is skipped."""
    with sw.open_slide(bundled) as reader:
        write_array(tmp_path / "a.zarr", np.full((256, 140), 7, np.uint8), (128, 128))
        (tmp_path / "a.zarr" / "c" / "0" / "1").write_bytes(b"damaged")
        options = options_of(64, stride=(40, 40), on_bad_region="skip")
        slide = sw.Slide(bundled, "s")
        asked = sw.Paired(str(tmp_path / "a.zarr"), scale=1, outside=255)
        paired = {"labels": OpenPaired("labels", asked, slide, "p", reader.info, TileCache(1 << 20))}
        resolved = resolve_slide(reader, (0, 0), "p", slide, Choices(Wanted.of()), options, paired)
        chunk = read_chunk(reader, resolved, 0, "skip", paired={"labels": paired["labels"].reader})
    assert chunk.origin is not None and chunk.skipped.any()
    for row in np.flatnonzero(~chunk.skipped).tolist():
        window = chunk.windows[row]
        inside = np.full((64, 64), 255, np.uint8)
        inside[: max(256 - window.start_y, 0), : max(140 - window.start_x, 0)] = 7
        np.testing.assert_array_equal(chunk.paired["labels"].of(row), inside)


def test_transforms_take_and_give_modalities_one_after_the_other() -> None:
    seen = []

    def flip(pixels: Any, labels: Any) -> Any:
        seen.append((pixels.shape, labels.shape))
        return pixels[:, :, ::-1], labels[:, :, ::-1]

    made = transformed(
        batch(),
        checked_transforms(
            {"pixels": lambda values: values / 255, "labels": lambda values: values > 20, ("pixels", "labels"): flip},
            ["labels"],
        ),
    )
    np.testing.assert_allclose(made.pixels, batch().pixels[:, :, ::-1] / 255)
    np.testing.assert_array_equal(made.labels, batch().labels[:, :, ::-1] > 20)
    assert seen == [((3, 4, 4, 3), (3, 4, 4))] and len(made) == 3
    assert [small.labels.shape for small in made] == [(4, 4)] * 3


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (
            {"pixels": lambda pixels: pixels[:2]},
            r"for pixels must return 3 rows of pixels, \(n, …\), got shape \(2,",
        ),
        ({"labels": lambda labels: None}, "must return 3 rows of labels, .*, got NoneType"),
        ({("pixels", "labels"): lambda pixels, labels: pixels}, "pixels and labels must return 2 arrays, got ndarray"),
        ({"pixels": lambda pixels: pixels.nothing}, "raised AttributeError"),
    ],
)
def test_a_transform_that_gives_no_batch_is_named(transforms: Any, message: str) -> None:
    with pytest.raises(TransformError, match=message):
        transformed(batch(), checked_transforms(transforms, ["labels"]))


def test_a_chunk_of_another_shape_is_still_refused() -> None:
    with pytest.raises(ChunkError):
        sw.BigChunk(batch().windows, np.zeros((3, 4, 4), np.uint8), None, np.zeros(3, bool))
