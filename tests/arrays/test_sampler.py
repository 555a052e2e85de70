from __future__ import annotations

import io
import pickle

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamwsi as sw
from streamwsi.arrays.padding import PAD_MODES
from streamwsi.errors import ArrayError, ConfigError
from streamwsi.geometry import axis_sizes, axis_starts
from tests.arrays.helpers import CountingArray, problems, random_array


def padded(array: np.ndarray, sampler: sw.ArraySampler, mode: str = "constant", **options) -> np.ndarray:
    """The array as numpy.pad makes it, large enough for every box."""
    widths = [(0, 0)] * array.ndim
    for axis, number in zip(sampler.grid.axes, sampler.spatial, strict=True):
        widths[number] = (0, max([axis.extent, *axis.stops]) - axis.extent)
    return np.pad(array, widths, mode, **options)


def crop(array: np.ndarray, sampler: sw.ArraySampler, box: np.ndarray) -> np.ndarray:
    where = [slice(None)] * array.ndim
    for number, (start, stop) in zip(sampler.spatial, box.tolist(), strict=True):
        where[number] = slice(start, stop)
    return array[tuple(where)]


# which windows there are


@given(problems(gaps=True))
def test_windows_along_each_axis_are_those_of_slides(problem):
    sampler = sw.ArraySampler(np.zeros(problem.shape, np.int8), **problem.options)
    boxes = [sampler.box(index) for index in range(len(sampler))]
    axes = []
    for number, axis in enumerate(sampler.spatial):
        numbers = problem.shape[axis], problem.patch[number], problem.step[number], problem.border[number]
        starts = axis_starts(*numbers)
        sizes = axis_sizes(starts, numbers[0], numbers[1], numbers[3])
        axes.append(np.stack([starts, starts + sizes], axis=1))
    grids = np.meshgrid(*(range(len(axis)) for axis in axes), indexing="ij")
    expected = [[axes[i][g] for i, g in enumerate(place)] for place in zip(*(grid.ravel() for grid in grids), strict=True)]
    assert np.array_equal(np.array(boxes), np.array(expected)) or not expected
    assert len(boxes) == len(expected)


def test_without_an_array_there_are_boxes_alone():
    sampler = sw.ArraySampler(None, 4, 3, shape=(8, 5))
    boxes = list(sampler)
    assert [box.tolist() for box in boxes][-1] == [[6, 10], [3, 7]]
    assert len(sampler) == len(boxes) == 6
    with pytest.raises(ConfigError, match="only a shape"):
        sampler.by_chunks()


def test_windows_are_counted_from_the_end_too_and_end():
    sampler = sw.ArraySampler(np.arange(10), 4, 3)
    assert np.array_equal(sampler[-1][0], sampler[len(sampler) - 1][0])
    for index in (len(sampler), -len(sampler) - 1):
        with pytest.raises(IndexError):
            sampler[index]


# what is in a patch


@given(problems(gaps=True), st.sampled_from(PAD_MODES))
def test_a_patch_is_the_crop_of_the_array_as_numpy_pads_it(problem, mode):
    array = random_array(problem.shape, np.int32, problem.seed) // 1000
    sampler = sw.ArraySampler(array, **problem.options, pad_mode=mode)
    whole = padded(array, sampler, mode)
    for patch, box in sampler:
        assert np.array_equal(patch, crop(whole, sampler, box))
        assert patch.dtype == array.dtype


def test_values_beyond_the_end_are_those_asked_for():
    array = np.arange(5.0)
    assert sw.ArraySampler(array, 4, 4, pad_value=-1)[1][0].tolist() == [4, -1, -1, -1]
    assert sw.ArraySampler(array, 4, 4, pad_mode="linear_ramp", pad_value=1)[1][0].tolist() == [4, 3, 2, 1]


def test_spatial_axes_may_lie_between_others():
    array = np.arange(2 * 6 * 3 * 5).reshape(2, 6, 3, 5)
    sampler = sw.ArraySampler(array, (4, 2), spatial_axes=(1, -1))
    assert all(np.array_equal(patch, crop(padded(array, sampler), sampler, box)) for patch, box in sampler)
    assert sampler[0][0].shape == (2, 4, 3, 2)


# sources


def sources(kind: str, array: np.ndarray, tmp_path):
    if kind == "memmap":
        mapped = np.memmap(tmp_path / "a", array.dtype, "w+", shape=array.shape)
        mapped[:] = array
        mapped.flush()
        return mapped
    if kind == "memmap view":
        return sources("memmap", np.concatenate([array, array]), tmp_path)[len(array) :]
    if kind == "fortran memmap":
        mapped = np.memmap(tmp_path / "a", array.dtype, "w+", shape=array.shape, order="F")
        mapped[:] = array
        return mapped
    if kind == "hdf5":
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("a", data=array, chunks=(4, 4, 1))
        return h5py.File(tmp_path / "a.h5", "r")["a"]
    if kind.startswith("zarr"):
        zarr = pytest.importorskip("zarr")
        made = zarr.open_array(str(tmp_path / "a.zarr"), mode="w", shape=array.shape, dtype=array.dtype, chunks=(4, 4, 3))
        made[:] = array
        return made
    if kind == "dask":
        return pytest.importorskip("dask.array").from_array(array, chunks=((3, 8), (5, 5, 3), (3,)))
    if kind == "tensor":
        return pytest.importorskip("torch").tensor(array, requires_grad=True)
    return array


KINDS = ("numpy", "memmap", "memmap view", "fortran memmap", "hdf5", "zarr", "dask", "tensor")


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_every_kind_give_the_same_patches(kind, tmp_path):
    array = random_array((11, 13, 3), np.float32, 1)
    expected = list(sw.ArraySampler(array, (5, 6), (3, 4), pad_mode="reflect"))
    sampler = sw.ArraySampler(sources(kind, array, tmp_path), (5, 6), (3, 4), pad_mode="reflect")
    for found in (sampler, pickle.loads(pickle.dumps(sampler))):
        for (patch, box), (wanted, wanted_box) in zip(found, expected, strict=True):
            assert type(patch) is np.ndarray or isinstance(patch, np.memmap)
            assert np.array_equal(patch, wanted) and patch.dtype == wanted.dtype
            assert np.array_equal(box, wanted_box)
    in_order = {tuple(box.ravel()): patch for patch, box in sampler.by_chunks()}
    assert all(np.array_equal(in_order[tuple(box.ravel())], patch) for patch, box in expected)


@pytest.mark.parametrize("kind", ["memmap", "hdf5"])
def test_arrays_in_files_are_pickled_as_where_they_lie(kind, tmp_path):
    sampler = sw.ArraySampler(sources(kind, np.zeros((400, 400, 3), np.float32), tmp_path), (5, 6))
    assert len(pickle.dumps(sampler)) < 10_000


def test_a_data_loader_takes_the_sampler_as_it_is():
    data = pytest.importorskip("torch.utils.data")
    array = random_array((3, 20, 17), np.float32, 2)
    sampler = sw.ArraySampler(array, (8, 8), (4, 4), border="squeeze", spatial_axes="last")
    aggregator = sw.Aggregator(sampler, weights="gaussian")
    for patches, boxes in data.DataLoader(sampler, batch_size=4, shuffle=True):
        aggregator.append(patches, boxes)
    np.testing.assert_allclose(aggregator.get_output(), array, rtol=1e-6)


# by chunks


@given(problems(), st.data())
def test_each_chunk_is_read_once_within_the_bound(problem, data):
    array = random_array(problem.shape, np.int16, problem.seed)
    chunks = tuple(data.draw(st.integers(1, extent)) for extent in problem.shape)
    counted = CountingArray(array, chunks)
    sampler = sw.ArraySampler(counted, **problem.options)
    found = {tuple(box.ravel()): patch for patch, box in sampler.by_chunks(max_bytes=array.nbytes)}
    assert set(counted.reads.values()) == {1}
    assert len(found) == len(sampler)
    for patch, box in sampler:
        assert np.array_equal(found[tuple(box.ravel())], patch)


@given(problems(gaps=True), st.sampled_from(PAD_MODES), st.integers(1, 4000))
def test_any_bound_gives_the_same_patches_or_says_what_it_needs(problem, mode, max_bytes):
    array = random_array(problem.shape, np.int16, problem.seed)
    counted = CountingArray(array, (4,) * array.ndim)
    sampler = sw.ArraySampler(counted, **problem.options, pad_mode=mode)
    expected = {tuple(box.ravel()): patch for patch, box in sampler}
    counted.largest = 0
    try:
        patches = sampler.by_chunks(max_bytes)
    except ConfigError:
        with pytest.raises(ConfigError, match="max_bytes"):
            sampler.by_chunks(max_bytes)
        return
    found = [(tuple(box.ravel()), patch) for patch, box in patches]
    assert sorted(box for box, _ in found) == sorted(expected)
    assert all(np.array_equal(patch, expected[box]) for box, patch in found)
    if mode in ("constant", "edge", "reflect", "symmetric"):
        assert counted.largest <= max_bytes


def test_a_thick_volume_is_swept_along_its_longest_axis_and_kept_in_bound():
    array = random_array((8, 300, 20), np.uint8, 3)
    counted = CountingArray(array, (4, 16, 8))
    sampler = sw.ArraySampler(counted, (8, 16, 16), (4, 8, 8))
    n_patches = sum(1 for _ in sampler.by_chunks(max_bytes=8 * 20 * 48))
    assert n_patches == len(sampler)
    assert set(counted.reads.values()) == {1}
    assert counted.largest <= 8 * 20 * 16


def test_patches_stay_as_they_are_while_the_sweep_goes_on():
    array = random_array((40, 10), np.int32, 4)
    sampler = sw.ArraySampler(array, (6, 6), (2, 2), border="crop")
    kept = list(sampler.by_chunks())
    for patch, _ in kept:
        patch += 1
    assert np.array_equal(array, random_array((40, 10), np.int32, 4))
    assert all(np.array_equal(patch - 1, crop(array, sampler, box)) for patch, box in kept)


# what cannot work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 4}, "one number"),
        ({"patch_size": (4, 4, 4)}, "3 axes are to be spatial"),
        ({"patch_size": (4, 0)}, "at least 1"),
        ({"patch_size": (4, 2.5)}, "whole numbers"),
        ({"patch_size": (4, 4), "step": (1, 1, 1)}, "step"),
        ({"patch_size": (4, 4), "border": "fold"}, "border"),
        ({"patch_size": (4, 4), "border": ("pad",)}, "border"),
        ({"patch_size": (4, 4), "pad_mode": "empty"}, "pad_mode"),
        ({"patch_size": (4, 4), "pad_mode": "edge", "pad_value": 3}, "pad_value"),
        ({"patch_size": (4, 4), "spatial_axes": "middle"}, "spatial_axes"),
        ({"patch_size": (4, 4), "spatial_axes": (1, 0)}, "transpose"),
        ({"patch_size": (4, 4), "spatial_axes": (0, 2)}, "spatial_axes"),
        ({"patch_size": (4, 4), "shape": (9, 9)}, "one of the two"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        sw.ArraySampler(np.zeros((9, 9)), **options)


def test_what_is_no_array_is_refused():
    with pytest.raises(ArrayError, match="no 'shape'"):
        sw.ArraySampler(io.BytesIO(), (4, 4))


def test_a_tensor_of_a_type_that_numpy_has_not_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ArrayError, match="convert it"):
        sw.ArraySampler(torch.zeros((9, 9), dtype=torch.bfloat16), (4, 4))
