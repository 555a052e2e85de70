"""Splitting and balancing datasets."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from contextlib import suppress
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamwsi.dataset import Dataset, Patient
from streamwsi.errors import DatasetError

Labels = list[str | int | bool]


def dataset_of(labels: Labels) -> Dataset:
    """A patient for each label; every third has two slides."""
    return Dataset(
        Patient(f"p{n}", {f"s{m}": f"{n}-{m}.svs" for m in range(2 if n % 3 == 0 else 1)}, {"label": label})
        for n, label in enumerate(labels)
    )


def label_of(patient: Patient) -> Any:
    return patient.records["label"]


def ids(dataset: Dataset) -> list[str]:
    return [patient.id for patient in dataset]


labels_of_patients = st.lists(st.sampled_from(["a", "b", "c", 1, True, "1"]), min_size=1, max_size=60)
weights_of_parts = st.lists(st.integers(1, 20), min_size=1, max_size=6)


def fractions_of(weights: list[int]) -> dict[str, float]:
    return {f"part{n}": weight / sum(weights) for n, weight in enumerate(weights)}


@given(labels_of_patients, weights_of_parts, st.booleans(), st.integers(-5, 5))
def test_parts_are_complete_disjoint_and_as_large_as_asked(labels, weights, stratified, seed):
    dataset, fractions = dataset_of(labels), fractions_of(weights)
    before = ids(dataset)
    stratify = label_of if stratified else None
    if min(weights) * len(labels) < sum(weights):  # there may be too few patients
        with suppress(DatasetError):
            dataset.split(fractions, stratify=stratify, seed=seed)
        return
    parts = dataset.split(fractions, stratify=stratify, seed=seed)
    assert list(parts) == list(fractions)
    assert sorted(name for part in parts.values() for name in ids(part)) == sorted(before)
    assert ids(dataset) == before
    for part, weight in zip(parts.values(), weights, strict=True):
        assert abs(len(part) - Fraction(weight, sum(weights)) * len(dataset)) < 1
        assert ids(part) == [name for name in before if name in set(ids(part))]
        for patient in part:
            assert patient is dataset[before.index(patient.id)]


@given(labels_of_patients, weights_of_parts, st.integers(0, 5))
def test_every_label_is_dealt_in_proportion(labels, weights, seed):
    dataset, fractions = dataset_of(labels), fractions_of(weights)
    try:
        parts = dataset.split(fractions, stratify=label_of, seed=seed)
    except DatasetError:
        return
    most = 1 if len(weights) <= 4 else 2
    for part, weight in zip(parts.values(), weights, strict=True):
        # True and 1 are different labels, though equal
        found = Counter((type(label_of(patient)), label_of(patient)) for patient in part)
        for label, count in Counter((type(label), label) for label in labels).items():
            assert abs(found[label] - Fraction(weight, sum(weights)) * count) <= most


@given(labels_of_patients, st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_a_dataset_does_not_matter(labels, seed, random):
    if len(labels) < 4:
        return
    dataset = dataset_of(labels)
    shuffled = list(dataset)
    random.shuffle(shuffled)
    once, again = (
        part.split({"train": 0.5, "test": 0.5}, stratify=label_of, seed=seed) for part in (dataset, Dataset(shuffled))
    )
    assert {name: set(ids(part)) for name, part in once.items()} == {name: set(ids(part)) for name, part in again.items()}
    assert ids(dataset.balanced(label_of, seed=seed)) == ids(Dataset(shuffled).balanced(label_of, seed=seed))


@given(labels_of_patients, st.integers(0, 5))
def test_balanced_labels_take_turns(labels, seed):
    dataset = dataset_of(labels)
    before = ids(dataset)
    balanced = dataset.balanced(label_of, seed=seed)
    known = Counter((type(label), label) for label in labels)
    assert len(set(ids(balanced))) == len(balanced) == min(known.values()) * len(known)
    assert ids(dataset) == before
    assert all(patient is dataset[before.index(patient.id)] for patient in balanced)
    counts: Counter[Any] = Counter(dict.fromkeys(known, 0))
    for patient in balanced:
        counts[type(label_of(patient)), label_of(patient)] += 1
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_part_has_all_the_slides_of_its_patients():
    parts = dataset_of(["a"] * 9).split({"train": 0.5, "test": 0.5})
    for patient in (patient for part in parts.values() for patient in part):
        assert len(patient.slides) == (2 if int(patient.id[1:]) % 3 == 0 else 1)


def test_a_tenth_is_a_tenth():
    parts = dataset_of(["a"] * 60 + ["b"] * 30 + ["c"] * 10).split({"train": 0.8, "val": 0.1, "test": 0.1}, stratify=label_of)
    assert {name: Counter(label_of(patient) for patient in part) for name, part in parts.items()} == {
        "train": {"a": 48, "b": 24, "c": 8},
        "val": {"a": 6, "b": 3, "c": 1},
        "test": {"a": 6, "b": 3, "c": 1},
    }


def test_labels_of_one_patient_each_fill_every_part():
    parts = dataset_of([f"label{n}" for n in range(10)]).split({"train": 0.8, "val": 0.1, "test": 0.1}, stratify=label_of)
    assert [len(part) for part in parts.values()] == [8, 1, 1]


def test_thirds_add_up():
    parts = dataset_of(["a"] * 9).split({"one": 1 / 3, "two": 1 / 3, "three": 1 / 3})
    assert [len(part) for part in parts.values()] == [3, 3, 3]


def test_seeds_differ_and_zero_is_one_of_them():
    dataset = dataset_of(["a"] * 40)
    drawn = [frozenset(ids(dataset.split({"one": 0.5, "two": 0.5}, seed=seed)["one"])) for seed in range(5)]
    assert len(set(drawn)) == 5
    assert frozenset(ids(dataset.split({"one": 0.5, "two": 0.5})["one"])) == drawn[0]


def test_what_is_drawn_never_changes():
    """Worked out with ``printf 0:p3 | b2sum -l 128``, which has no part in the code under test."""
    dataset = dataset_of(["a"] * 6)
    assert set(ids(dataset.split({"one": 0.5, "two": 0.5}, seed=0)["one"])) == {"p0", "p1", "p4"}
    assert ids(dataset_of(["a", "b", "a", "b", "a"]).balanced(label_of, seed=7)) == ["p0", "p3", "p4", "p1"]


def test_another_hash_seed_draws_the_same():
    code = (
        "from tests.test_splits import *\n"
        "d = dataset_of(['x', 'y', 'z'] * 9)\n"
        "print({k: ids(v) for k, v in d.split({'a': .7, 'b': .3}, stratify=label_of).items()}, ids(d.balanced(label_of)))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1 and "p26" in said.pop()


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.8, "val": 0.1}, r"must add up to 1, got train 0\.8 \+ val 0\.1 = 0\.9"),
        ({"train": 0.8, "val": 0.3}, r"= 1\.1"),
        ({"train": 1.0, "val": 0.0}, "fraction of part 'val' must be above 0 and at most 1, got 0.0"),
        ({"train": 1.5, "val": -0.5}, "fraction of part 'train' must be above 0 and at most 1, got 1.5"),
        ({"train": float("nan")}, "fraction of part 'train' must be above 0 and at most 1, got nan"),
        ({"train": float("inf")}, "got inf"),
        ({"train": "0.8", "val": 0.2}, "got '0.8'"),
        ({"train": True}, "got True"),
        ({1: 1.0}, "name of a part must be a string, got 1"),
        ({}, "a split has no part"),
        ({"train": 0.9, "test": 0.1}, "part 'test' would be empty: 0.1 of 4 patients"),
    ],
)
def test_fractions_that_cannot_be(fractions, message):
    with pytest.raises(DatasetError, match=message):
        dataset_of(["a"] * 4).split(fractions)


@pytest.mark.parametrize("seed", [None, True, 1.0, "1"])
def test_a_seed_is_an_int(seed):
    with pytest.raises(DatasetError, match="the seed must be an int"):
        dataset_of(["a"] * 4).split({"one": 0.5, "two": 0.5}, seed=seed)
    with pytest.raises(DatasetError, match="the seed must be an int"):
        dataset_of(["a"] * 4).balanced(label_of, seed=seed)


@pytest.mark.parametrize("method", ["split", "balanced"])
def test_a_patient_without_a_label_is_named(method):
    patients = [Patient("anna", {"H&E": "a.svs"}, {"label": 1}), Patient("bert", {"H&E": "b.svs"}, {"grade": 2})]

    def call(label: Any) -> Any:
        dataset = Dataset(patients)
        return dataset.balanced(label) if method == "balanced" else dataset.split({"a": 0.5, "b": 0.5}, stratify=label)

    with pytest.raises(DatasetError, match=r"label of patient 'bert' is not known: KeyError: 'label'; its records are .*grade"):
        call(label_of)
    with pytest.raises(DatasetError, match="label of patient 'bert' must be a string, a number or a boolean, got None"):
        call(lambda patient: patient.records.get("label"))
    with pytest.raises(DatasetError, match=r"label of patient 'anna' must be .*got nan"):
        call(lambda patient: float("nan"))
    with pytest.raises(DatasetError, match="differs between the rows of the patient in the manifest"):
        call(lambda patient: ["1", "2"])
