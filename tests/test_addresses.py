"""Paths that say what of a file is meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamwsi as sw
from streamwsi.addresses import ArrayAddress, is_array, make_address, parse_address, split_address
from streamwsi.errors import SlideError

AXES = st.permutations("TCZYX").map("".join)
NAMES = st.text("abc01/_. =,", min_size=1, max_size=9)


@given(
    st.sampled_from(["/s/a.zarr", "/s/a.zarr/0", "/s/a.NPY", "/s/x::y/a.h5", "a.ome.zarr"]),
    st.none() | AXES,
    st.dictionaries(st.sampled_from("tcz"), st.integers(0, 999)),
)
def test_an_address_means_what_it_was_made_of(file, axes, at):
    assert parse_address(make_address(file, None, axes, at)) == ArrayAddress(Path(file), None, axes, tuple(at.items()))


@given(NAMES, st.none() | AXES)
def test_a_dataset_is_found_again_or_refused(name, axes):
    try:
        path = make_address("/s/a.h5", name, axes)
    except SlideError:  # its name is like that of an index
        assert "=" in name or "/" in name or name in "..", name
    else:
        assert parse_address(path) == ArrayAddress(Path("/s/a.h5"), name, axes)


@pytest.mark.parametrize("path", ["/s/a.svs", "/s/a::b.svs", "/s/a.h5", "/s/z=1/a.tiff", "", "."])
def test_other_paths_are_left_as_they_are(path):
    assert split_address(path) == (Path(path), "")


def test_what_is_an_array_is_known_by_its_name_or_by_what_a_folder_holds(tmp_path):
    assert is_array("a.npy") and is_array("a.H5") and is_array("a.hdf5::x") and is_array("a.zarr/0::z=1")
    assert not is_array("a.svs") and not is_array(tmp_path) and not is_array("n" * 300)
    (tmp_path / "zarr.json").touch()
    assert is_array(tmp_path)


def test_a_slide_of_an_array_says_in_its_path_what_is_meant():
    slide = sw.Slide.of_array("/s/v.h5", "plane", dataset="raw", axes="zyx", at={"Z": 3})
    assert (str(slide.path), slide.id) == ("/s/v.h5::raw::axes=ZYX::z=3", "plane")
    assert sw.Slide.of_array("/s/v.zarr", "whole").path == Path("/s/v.zarr")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": {"z": -1}}, "an index must be a whole number from 0 on, got -1"),
        ({"at": {"z": 1.5}}, "got 1.5"),
        ({"at": {"z": True}}, "got True"),
        ({"axes": "YXYX"}, "axes must be letters of TCZYX"),
        ({"axes": "QYX"}, "axes must be letters of TCZYX"),
        ({"dataset": "raw"}, "does not say what of v.zarr is meant"),
        ({"at": {"z 1": 1}}, "does not say what of v.zarr is meant"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(sw.DatasetError, match=message):
        sw.Slide.of_array("/s/v.zarr", "plane", **options)
