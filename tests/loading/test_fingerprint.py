"""A slide is recognised by what it holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from streamwsi.loading.fingerprint import fingerprint
from tests.slides.zarr_files import write_image


@pytest.fixture(params=["0.4", "0.5"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    levels = [random.integers(0, 256, (side, side), np.uint8) for side in (200, 100)]
    return write_image(tmp_path / "a.zarr", levels, "YX", (64, 64), version=request.param)


def test_a_copy_of_a_folder_has_the_same(image, tmp_path):
    shutil.copytree(image, tmp_path / "elsewhere" / "b.zarr")
    assert fingerprint(tmp_path / "elsewhere" / "b.zarr") == fingerprint(image)


def test_what_of_an_array_is_meant_counts(image):
    assert len({fingerprint(f"{image}{inside}") for inside in ("", "::z=1", "::z=2")}) == 3


def test_metadata_chunks_and_their_places_count(image):
    before = fingerprint(image)
    chunks = sorted(path for path in (image / "0").rglob("*") if path.is_file() and path.name.isdigit())
    assert len(chunks) == 16
    for path in (chunks[0], chunks[-1], next(path for path in image.iterdir() if path.is_file())):
        kept = path.read_bytes()
        path.write_bytes(kept + b" ")
        assert fingerprint(image) != before
        path.write_bytes(kept)
    assert fingerprint(image) == before
    chunks[0].rename(chunks[0].with_name("9"))
    assert fingerprint(image) != before


def test_few_files_are_read_of_an_array_of_many(image, monkeypatch):
    opened = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *given, **named: opened.append(path) or original(path, *given, **named))
    fingerprint(image)
    chunks = [path for path in opened if path.name.isdigit()]
    assert len([path for path in chunks if path.is_relative_to(image / "0")]) == 8
    assert len([path for path in chunks if path.is_relative_to(image / "1")]) == 4


def test_what_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "a.zarr::z=1")
