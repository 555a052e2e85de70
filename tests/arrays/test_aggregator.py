from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamwsi as sw
from streamwsi.arrays.sums import make_sum, sum_dtype, unit
from streamwsi.errors import ArrayError, ConfigError, OutputError
from tests.arrays.helpers import Problem, problems, random_array

INTEGERS = ("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLOATS = ("float16", "float32", "float64", "complex64")
WEIGHTS = ("mean", "gaussian", "distance")


def put_back(sampler: sw.ArraySampler, aggregator: sw.Aggregator, seed: int | None = None) -> np.ndarray:
    order = range(len(sampler)) if seed is None else np.random.default_rng(seed).permutation(len(sampler)).tolist()
    for index in order:
        aggregator.append(*sampler[index])
    return aggregator.get_output()


def dense(patches: list, shape: tuple[int, ...], weights: np.ndarray) -> np.ndarray:
    """The blend by its definition, for arrays all of whose axes but the last ones are spatial."""
    rest = (1,) * (len(shape) - weights.ndim)
    values, total = np.zeros(shape), np.zeros((*shape[: weights.ndim], *rest))
    for patch, box in patches:
        inside = tuple(slice(start, min(stop, extent)) for (start, stop), extent in zip(box.tolist(), shape, strict=False))
        part = tuple(slice(0, one.stop - one.start) for one in inside)
        scaled = weights[part].reshape(*weights[part].shape, *rest)
        values[inside] += patch[part] * scaled
        total[inside] += scaled
    return values / total


# an array comes back


@given(problems(), st.sampled_from(INTEGERS), st.integers(1, 30))
def test_integers_come_back_exactly(problem, dtype, block_size):
    array = random_array(problem.shape, dtype, problem.seed)
    sampler = sw.ArraySampler(array, **problem.options)
    found = put_back(sampler, sw.Aggregator(sampler, block_size=block_size), seed=problem.seed)
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@given(problems(), st.sampled_from(FLOATS), st.sampled_from(WEIGHTS), st.integers(1, 30))
def test_floats_come_back_within_a_millionth(problem, dtype, weights, block_size):
    array = random_array(problem.shape, dtype, problem.seed)
    sampler = sw.ArraySampler(array, **problem.options)
    found = put_back(sampler, sw.Aggregator(sampler, weights=weights, block_size=block_size), seed=problem.seed)
    assert found.dtype == array.dtype
    np.testing.assert_allclose(found, array, rtol=1e-6)


@given(problems(gaps=True), st.sampled_from(["uint8", "float32"]))
def test_places_without_a_window_have_the_fill_value(problem, dtype):
    array = random_array(problem.shape, dtype, problem.seed)
    sampler = sw.ArraySampler(array, **problem.options)
    if not len(sampler):
        with pytest.raises(ConfigError, match="no windows"):
            sw.Aggregator(sampler)
        return
    covered = np.zeros([problem.shape[axis] for axis in sampler.spatial], dtype=bool)
    for index in range(len(sampler)):
        covered[tuple(slice(*span) for span in sampler.box(index).tolist())] = True
    found = put_back(sampler, sw.Aggregator(sampler, block_size=3, fill_value=7))
    expected = np.moveaxis(array.copy(), sampler.spatial, range(problem.n_spatial))
    expected[~covered] = 7
    np.testing.assert_allclose(np.moveaxis(found, sampler.spatial, range(problem.n_spatial)), expected, rtol=1e-6)


def test_places_without_a_window_are_nan_and_types_without_nan_need_a_value():
    sampler = sw.ArraySampler(np.arange(10.0), 3, 4, border="crop")
    found = put_back(sampler, sw.Aggregator(sampler))
    assert np.flatnonzero(np.isnan(found)).tolist() == [3, 7, 8, 9]
    integers = sw.ArraySampler(np.arange(10), 3, 4, border="crop")
    with pytest.raises(ArrayError, match="give a fill_value"):
        put_back(integers, sw.Aggregator(integers))


# any number of overlaps


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 255), ("int16", -32768), ("uint64", 2**64 - 1), ("float16", 60000)])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_constant_stays_itself_under_more_than_255_overlaps(dtype, value, weights):
    array = np.full((60, 50), value, dtype)
    sampler = sw.ArraySampler(array, 20, 1, spatial_axes=(0, 1))
    found = put_back(sampler, sw.Aggregator(sampler, weights=weights))
    if weights == "mean" or dtype != "uint64":
        assert np.array_equal(found, array)
    else:  # weights are floating-point numbers, which hold 53 bits
        np.testing.assert_allclose(found.astype(float), array.astype(float), rtol=1e-12)


@pytest.mark.parametrize(("dtype", "weights"), [("uint8", "mean"), ("float32", "gaussian")])
def test_an_array_comes_back_from_more_than_65_535_overlaps(dtype, weights):
    array = random_array((131_073,), dtype, 5)
    sampler = sw.ArraySampler(array, 65_537, 1)
    assert sampler.grid.max_overlaps == 65_537
    found = put_back(sampler, sw.Aggregator(sampler, weights=weights))
    np.testing.assert_allclose(found, array, rtol=0 if dtype == "uint8" else 1e-6)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS, "longdouble"])
def test_sums_are_right_for_any_number_of_overlaps(dtype):
    n = 70_000
    array = random_array((8,), dtype, 6)
    exact = array.dtype.kind in "bui"
    summed = make_sum((8,), array.dtype, exact, n)
    weights = np.full(8, 1 if exact else unit(n), np.int8 if exact else sum_dtype(array.dtype, n).type(0).real.dtype)
    for _ in range(n):
        summed.add((slice(None),), array, weights)
    found = summed.mean(np.full(8, n if exact else n * unit(n), summed.divisor_dtype), array.dtype)
    np.testing.assert_allclose(found, array, rtol=0 if exact else 1e-6)


def test_sums_neither_overflow_nor_lose_small_values():
    array = np.array([3.4e38, -3.4e38, 1e-30, 0], np.float32)
    sampler = sw.ArraySampler(np.tile(array, 10), 16, 1)
    for weights in WEIGHTS:
        np.testing.assert_allclose(put_back(sampler, sw.Aggregator(sampler, weights=weights)), np.tile(array, 10), rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "values", "mean"),
    [
        ("int32", [2, 3], 2),
        ("int32", [3, 4], 4),
        ("int32", [-3, -2], -2),
        ("int64", [2**63 - 1, 2**63 - 3], 2**63 - 2),
        ("int64", [-(2**63), 2**63 - 1], 0),
        ("int64", [-3, -2], -2),
        ("uint64", [2**64 - 1, 0], 2**63),
        ("uint64", [2**64 - 1, 2**64 - 3], 2**64 - 2),
        ("bool", [True, False], False),
    ],
)
def test_means_of_integers_are_the_nearest_and_halves_go_to_even(dtype, values, mean):
    sampler = sw.ArraySampler(None, 2, 1, shape=(3,))  # index 1 is in both windows, 0:2 and 1:3
    aggregator = sw.Aggregator(sampler)
    aggregator.append(np.array([values[0]] * 2, dtype), [[0, 2]])
    aggregator.append(np.array([values[1]] * 2, dtype), [[1, 3]])
    assert aggregator.get_output()[1] == np.array(mean, dtype)


def test_means_of_integers_may_be_asked_for_as_floats():
    sampler = sw.ArraySampler(None, 2, 1, "crop", shape=(3,))
    aggregator = sw.Aggregator(sampler, dtype="float32")
    aggregator.append(np.array([2, 2]), [[0, 2]])
    aggregator.append(np.array([3, 3]), [[1, 3]])
    assert aggregator.get_output().tolist() == [2, 2.5, 3]


# weights


@pytest.mark.parametrize("weights", ["gaussian", "distance", "array", "callable"])
@pytest.mark.parametrize("border", ["pad", "edge", "squeeze"])
def test_blends_equal_their_definition(weights, border):
    shape, size = (23, 19, 2), (8, 6)
    sampler = sw.ArraySampler(None, size, (3, 4), border, shape=shape[:2])
    rng = np.random.default_rng(7)
    patches = [(rng.normal(size=(*size, 2)), box) for box in sampler]
    y, x = (np.arange(extent) for extent in size)
    own = rng.random(size)
    expected_weights = {
        "gaussian": np.exp(-((y - 3.5) ** 2) / 2)[:, None] * np.exp(-((x - 2.5) ** 2) / (2 * 0.75**2)),
        "distance": np.minimum.outer(np.minimum(y + 1, 8 - y), np.minimum(x + 1, 6 - x)),
    }.get(weights, own)
    asked = {"array": own, "callable": lambda wanted: own[: wanted[0], : wanted[1]]}.get(weights, weights)
    aggregator = sw.Aggregator(sampler, weights=asked, block_size=(5, 7))
    for patch, box in patches:
        aggregator.append(patch, box)
    np.testing.assert_allclose(aggregator.get_output(), dense(patches, shape, expected_weights), rtol=1e-12)


def test_a_patch_cut_at_the_edge_has_weights_of_its_own_size():
    sampler = sw.ArraySampler(None, 4, 3, "adaptive", shape=(6,))
    sizes = []

    def weights(size):
        sizes.append(size)
        return np.ones(size)

    aggregator = sw.Aggregator(sampler, weights=weights)
    for box in sampler:
        aggregator.append(np.ones(box[0, 1] - box[0, 0]), box)
    assert set(sizes) == {(4,), (3,)}
    assert aggregator.get_output().tolist() == [1] * 6


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("tent", "weights must be"),
        (np.ones((3, 4)), "spatial size"),
        (np.zeros((4, 4)), "not all zero"),
        (-np.ones((4, 4)), "not negative"),
        (np.full((4, 4), np.nan), "finite"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights, message):
    sampler = sw.ArraySampler(None, 4, shape=(8, 8))
    with pytest.raises(ConfigError, match=message):
        sw.Aggregator(sampler, weights=weights)


# reduced, postprocessed


@given(problems(), st.sampled_from(["softmax", "argmax"]), st.integers(2, 30))
def test_blends_are_reduced_as_the_dense_one_would_be(problem, reduce, block_size):
    sampler = sw.ArraySampler(None, problem.patch, problem.step, problem.border, shape=_extent(problem))
    first = problem.spatial_axes == "first"
    rng = np.random.default_rng(problem.seed)
    patches = []
    for box in sampler:
        size = (box[:, 1] - box[:, 0]).tolist()
        patches.append((rng.normal(size=(*size, 5) if first else (5, *size)), box))
    axis = -1 if first else 0
    plain = sw.Aggregator(sampler, weights="gaussian", spatial_axes=problem.spatial_axes)
    reduced = sw.Aggregator(
        sampler, weights="gaussian", spatial_axes=problem.spatial_axes, reduce=reduce, axis=axis, block_size=block_size
    )
    for patch, box in patches:
        plain.append(patch, box)
        reduced.append(patch, box)
    blended = plain.get_output()
    if reduce == "argmax":
        assert np.array_equal(reduced.get_output(), blended.argmax(axis))
        assert reduced.get_output().dtype == np.uint8
    else:
        exponentials = np.exp(blended)
        np.testing.assert_allclose(reduced.get_output(), exponentials / exponentials.sum(axis, keepdims=True), rtol=1e-9)


def _extent(problem: Problem) -> tuple[int, ...]:
    n = problem.n_spatial
    return problem.shape[:n] if problem.spatial_axes == "first" else problem.shape[-n:]


def test_each_block_is_postprocessed_once_and_may_drop_axes_that_are_not_spatial():
    array = random_array((3, 20, 31), np.float32, 8)
    sampler = sw.ArraySampler(array, (8, 8), (5, 5), spatial_axes="last")
    seen = []

    def brightest(block, box):
        seen.append(tuple(box.ravel()))
        return block.max(axis=0) > 0

    found = put_back(sampler, sw.Aggregator(sampler, postprocess=brightest, block_size=(7, 16)))
    assert found.dtype == bool
    assert np.array_equal(found, array.max(axis=0) > 0)
    assert sorted(seen) == [(y, min(y + 7, 20), x, min(x + 16, 31)) for y in range(0, 20, 7) for x in range(0, 31, 16)]


def test_postprocessing_that_changes_the_size_of_a_block_is_refused():
    sampler = sw.ArraySampler(np.zeros((8, 8)), (4, 4))
    aggregator = sw.Aggregator(sampler, postprocess=lambda block, box: block[:2], block_size=4)
    with pytest.raises(ArrayError, match=r"block \[0:4, 0:4\] must keep"):
        aggregator.append(*sampler[0])


# missing, doubled, foreign


def test_missing_windows_are_named_and_none_is_made_up():
    sampler = sw.ArraySampler(np.arange(64.0).reshape(8, 8), (4, 4))
    aggregator = sw.Aggregator(sampler)
    for index in (0, 3):
        aggregator.append(*sampler[index])
    with pytest.raises(ArrayError, match=r"2 of 4 windows are missing: 1 \[0:4, 4:8\], 2 \[4:8, 0:4\]"):
        aggregator.get_output()
    assert aggregator.missing().tolist() == [1, 2]
    aggregator.append(*sampler[1])
    aggregator.append(*sampler[2])
    assert np.array_equal(aggregator.get_output(), np.arange(64.0).reshape(8, 8))


@given(problems(), st.sampled_from(WEIGHTS), st.data())
def test_with_windows_missing_the_blend_is_of_those_there_are(problem, weights, data):
    array = random_array(problem.shape, np.float64, problem.seed)
    sampler = sw.ArraySampler(array, **problem.options)
    kept = data.draw(st.sets(st.integers(0, len(sampler) - 1), min_size=1, max_size=12))
    aggregator = sw.Aggregator(sampler, weights=weights, block_size=4)
    covered = np.zeros([problem.shape[axis] for axis in sampler.spatial], dtype=bool)
    for index in kept:
        patch, box = sampler[index]
        aggregator.append(patch, box)
        covered[tuple(slice(*span) for span in box.tolist())] = True
    found = np.moveaxis(aggregator.get_output(allow_missing=True), sampler.spatial, range(problem.n_spatial))
    expected = np.moveaxis(array, sampler.spatial, range(problem.n_spatial))
    assert np.isnan(found[~covered]).all()
    np.testing.assert_allclose(found[covered], expected[covered], rtol=1e-6)
    if len(kept) < len(sampler):
        missing = min(set(range(len(sampler))) - kept)
        with pytest.raises(ArrayError, match="came after"):
            aggregator.append(*sampler[missing])


def test_a_window_that_comes_twice_is_named_and_not_counted():
    sampler = sw.ArraySampler(np.arange(8.0), 4, 2)
    aggregator = sw.Aggregator(sampler)
    aggregator.append(*sampler[0])
    with pytest.raises(ArrayError, match=r"window 0, box \[0:4\], was appended before"):
        aggregator.append(np.full(4, 99.0), sampler.box(0))
    for index in range(1, len(sampler)):
        aggregator.append(*sampler[index])
    assert np.array_equal(aggregator.get_output(), np.arange(8.0))
    with pytest.raises(ArrayError, match="was appended before"):
        aggregator.append(*sampler[0])


@pytest.mark.parametrize(
    ("patch", "box", "message"),
    [
        (np.zeros((4, 4)), [[0, 4], [1, 5]], "none of the sampler's"),
        (np.zeros((4, 4)), [[0, 4], [4, 7]], "none of the sampler's"),
        (np.zeros((4, 4)), [[-4, 0], [0, 4]], "none of the sampler's"),
        (np.zeros((4, 3)), [[0, 4], [4, 8]], "must be"),
        (np.zeros((4, 4, 1)), [[0, 4], [4, 8]], "must be"),
        (np.zeros((4, 4), np.float32), [[0, 4], [4, 8]], "dtype"),
        (np.zeros((4, 4)), [0, 4, 4, 8], "a box must be"),
        (np.zeros((4, 4)), [[0.0, 4.0], [4.0, 8.0]], "a box must be"),
        (np.zeros((3, 4, 4)), [[[0, 4], [4, 8]]] * 2, "2 boxes"),
        (np.zeros((2, 4, 4)), [[[0, 4], [4, 8]], [[0, 4], [0, 4]]], "appended before"),
        (np.zeros((2, 4, 4)), [[[0, 4], [4, 8]], [[0, 4], [4, 8]]], "appended before"),
        (np.full((4, 4), "a"), [[0, 4], [4, 8]], "dtype"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing_behind(patch, box, message):
    array = np.arange(64.0).reshape(8, 8)
    sampler = sw.ArraySampler(array, (4, 4))
    aggregator = sw.Aggregator(sampler)
    aggregator.append(*sampler[0])
    with pytest.raises(ArrayError, match=message):
        aggregator.append(patch, box)
    for index in (1, 2, 3):
        aggregator.append(*sampler[index])
    assert np.array_equal(aggregator.get_output(), array)


def test_reading_out_twice_gives_the_same():
    array = random_array((30, 30), np.float32, 9)
    sampler = sw.ArraySampler(array, (8, 8), (3, 3))
    aggregator = sw.Aggregator(sampler, weights="gaussian")
    first = put_back(sampler, aggregator).copy()
    assert np.array_equal(aggregator.get_output(), first)
    assert np.array_equal(aggregator.get_output(allow_missing=True), first)


# threads


def test_several_threads_put_an_array_back():
    array = random_array((200, 160, 2), np.uint16, 10)
    sampler = sw.ArraySampler(array, (32, 32), (8, 8))
    aggregator = sw.Aggregator(sampler, block_size=20)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: aggregator.append(*sampler[index]), range(len(sampler))))
    assert np.array_equal(aggregator.get_output(), array)
    assert aggregator.n_open_blocks == 0


def test_of_several_threads_with_one_window_one_is_taken():
    sampler = sw.ArraySampler(np.ones((64, 64)), (64, 64), (64, 64))
    aggregator = sw.Aggregator(sampler)
    start = threading.Barrier(8)

    def append(_):
        start.wait()
        try:
            aggregator.append(*sampler[0])
        except ArrayError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(append, range(8))) == 1
    assert np.array_equal(aggregator.get_output(), np.ones((64, 64)))


def test_the_result_waits_for_a_thread_that_is_not_done():
    sampler = sw.ArraySampler(np.ones((8,)), 4, 4)
    began, go_on = threading.Event(), threading.Event()

    def slowly(block, box):
        if box[0, 0] == 4:
            began.set()
            assert go_on.wait(60)
        return block * 2

    aggregator = sw.Aggregator(sampler, postprocess=slowly, block_size=4)
    aggregator.append(*sampler[0])
    with ThreadPoolExecutor(2) as pool:
        appended = pool.submit(aggregator.append, *sampler[1])
        assert began.wait(60)
        result = pool.submit(aggregator.get_output)
        assert not result.done()
        go_on.set()
        appended.result(60)
        assert result.result(60).tolist() == [2] * 8


def test_an_error_in_a_thread_reaches_whoever_reads_out():
    array = np.arange(64.0).reshape(8, 8)
    sampler = sw.ArraySampler(array, (4, 4))

    def fails(block, box):
        raise KeyError("no such tissue")

    aggregator = sw.Aggregator(sampler, postprocess=fails, block_size=4)
    with ThreadPoolExecutor(2) as pool:
        failed = [pool.submit(aggregator.append, *sampler[index]).exception() for index in range(4)]
    assert any(isinstance(error, KeyError) for error in failed)
    with pytest.raises(ArrayError, match="no such tissue"):
        aggregator.get_output()


# outputs


@pytest.mark.parametrize("name", ["map.npy", "map.zarr", "map.h5"])
def test_a_file_gets_its_name_when_it_is_complete(name, tmp_path):
    if name.endswith("zarr"):
        pytest.importorskip("zarr")
    array = random_array((3, 50, 41), np.float32, 11)
    sampler = sw.ArraySampler(array, (16, 16), (8, 8), spatial_axes="last")
    for _ in range(2):  # the first one is given up
        aggregator = sw.Aggregator(sampler, tmp_path / name, block_size=16)
        for index in range(len(sampler) - 1):
            aggregator.append(*sampler[index])
        assert not (tmp_path / name).exists()
    aggregator.append(*sampler[len(sampler) - 1])
    found = aggregator.get_output()
    np.testing.assert_allclose(found[:], array, rtol=1e-6)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert aggregator.get_output() is found
    if name.endswith("h5"):
        with h5py.File(tmp_path / name, "r") as file:
            assert file["data"].chunks == (3, 16, 16)
    with pytest.raises(OutputError, match="exists"):
        sw.Aggregator(sampler, tmp_path / name)


@pytest.mark.parametrize("kind", ["numpy", "memmap", "zarr", "hdf5", "tensor"])
def test_blocks_go_to_an_array_of_the_callers(kind, tmp_path):
    array = random_array((50, 41, 3), np.float32, 12)
    sampler = sw.ArraySampler(array, (16, 16), (8, 8))
    if kind == "zarr":
        output = pytest.importorskip("zarr").open_array(
            str(tmp_path / "a.zarr"), mode="w", shape=array.shape, dtype=array.dtype, chunks=(10, 10, 3)
        )
    elif kind == "tensor":
        output = pytest.importorskip("torch").zeros(array.shape)
    elif kind == "hdf5":
        output = h5py.File(tmp_path / "a.h5", "w").create_dataset("x", array.shape, array.dtype, chunks=(10, 10, 1))
    elif kind == "memmap":
        output = np.memmap(tmp_path / "a", array.dtype, "w+", shape=array.shape)
    else:
        output = np.empty(array.shape, array.dtype)
    found = put_back(sampler, sw.Aggregator(sampler, output))
    assert found is output
    np.testing.assert_allclose(np.asarray(found[:]), array, rtol=1e-6)


@given(problems(gaps=True), st.sampled_from(["float32", "float64", "complex64"]), st.sampled_from(WEIGHTS))
def test_sums_kept_in_the_result_are_those_of_blocks(problem, dtype, weights):
    array = random_array(problem.shape, dtype, problem.seed)
    sampler = sw.ArraySampler(array, **problem.options)
    if not len(sampler):
        return
    in_blocks = sw.Aggregator(sampler, np.empty_like(array), weights=weights, block_size=3)
    in_place = sw.Aggregator(sampler, weights=weights, block_size=5)
    expected = put_back(sampler, in_blocks, seed=problem.seed)
    assert np.array_equal(put_back(sampler, in_place, seed=problem.seed), expected, equal_nan=True)


def test_an_output_that_does_not_fit_is_refused(tmp_path):
    sampler = sw.ArraySampler(np.zeros((8, 8)), (4, 4))
    with pytest.raises(ConfigError, match=r"end in one of \.npy"):
        sw.Aggregator(sampler, tmp_path / "map.png")
    with pytest.raises(ArrayError, match="has shape"):
        put_back(sampler, sw.Aggregator(sampler, np.zeros((8, 9))))
    with pytest.raises(ArrayError, match="dtype"):
        put_back(sampler, sw.Aggregator(sampler, np.zeros((8, 8), np.uint8)))


@pytest.mark.parametrize("order", ["plan", "chunks"])
def test_memory_is_bounded_by_the_blocks_in_flight(order):
    array = np.broadcast_to(np.float32(1), (4000, 60))  # long and narrow
    sampler = sw.ArraySampler(array, (20, 20), (10, 10))
    aggregator = sw.Aggregator(sampler, block_size=20)
    largest = 0
    for patch, box in sampler if order == "plan" else sampler.by_chunks():
        aggregator.append(patch, box)
        largest = max(largest, aggregator.n_open_blocks)
    assert largest <= 2 * 3
    assert aggregator.n_open_blocks == 0
    assert np.array_equal(aggregator.get_output(), array)


@pytest.mark.parametrize(
    "options",
    [{"reduce": "softmax"}, {"axis": 0}, {"reduce": "sum", "axis": 0}, {"block_size": 0}, {"block_size": (4, 4, 4)}],
)
def test_options_that_cannot_work_are_refused(options):
    sampler = sw.ArraySampler(np.zeros((8, 8)), (4, 4))
    with pytest.raises(ConfigError):
        put_back(sampler, sw.Aggregator(sampler, **options))


def test_a_spatial_axis_cannot_be_reduced():
    sampler = sw.ArraySampler(np.zeros((8, 8, 2)), (4, 4))
    for axis in (0, 1, -2, 3):
        with pytest.raises(ConfigError, match="cannot be reduced"):
            put_back(sampler, sw.Aggregator(sampler, reduce="argmax", axis=axis))
