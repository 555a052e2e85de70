"""Which patients go into which part of a dataset, and which make its labels equally frequent.

In: patients' ids with their labels, fractions, a seed.  Out: ids.  Never sees a patient, a slide or a file.

What is drawn depends on the seed and the ids alone: patients stand in the order of a hash (BLAKE2b) of both. It is the same on
every machine and in every version of Python, and whatever order the patients came in.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from streamwsi.errors import DatasetError

Label = str | int | float | bool
"""What patients are told apart by."""

_SUM_TOLERANCE = Fraction(1, 10**9)
"""Three times 1/3, as floats, is not 1."""


def draw_parts(labels: Mapping[str, Label], fractions: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """The ids of each part: of all ids in `labels`, and as far as can be of those of each label, the fraction asked for.

    Every id is in one part. A part has its fraction of all ids, rounded (what is left over goes to the largest remainders). Of
    the ids of one label it has at most one more or less than its fraction, up to four parts; beyond four, less than two.

    Raises DatasetError naming a fraction that cannot be, or a part that would be empty.
    """
    shares = _exact(fractions)
    _check_seed(seed)
    sizes = _largest_remainders(shares, len(labels))
    for part, size in zip(fractions, sizes, strict=True):
        if size == 0:
            raise DatasetError(
                f"part {part!r} would be empty: {fractions[part]:g} of {len(labels)} patients; give it a larger fraction, or "
                "leave it out"
            )
    parts: dict[str, list[str]] = {part: [] for part in fractions}
    for ids, counts in zip(*_counts_of_labels(labels, shares, sizes, seed), strict=True):
        start = 0
        for part, count in zip(parts, counts, strict=True):
            parts[part] += ids[start : start + count]
            start += count
    return parts


def draw_balanced(labels: Mapping[str, Label], seed: int) -> list[str]:
    """As many ids of each label as the rarest has, drawn at random, in an order in which labels take turns."""
    _check_seed(seed)
    return [name for turn in zip(*_by_label(labels, seed), strict=False) for name in turn]


def check_label(value: Any, patient_id: str) -> Label:
    """`value` if patients can be told apart by it; else DatasetError naming the patient."""
    if not isinstance(value, (str, int, float)) or value != value:
        hint = ": the record differs between the rows of the patient in the manifest" if isinstance(value, list) else ""
        raise DatasetError(
            f"the label of patient {patient_id!r} must be a string, a number or a boolean, got {value!r}{hint}; give it "
            "one, or leave the patient out"
        )
    return value


def _exact(fractions: Mapping[str, float]) -> list[Fraction]:
    """The fractions as they were written (0.1 is a tenth), which together are 1."""
    if not fractions:
        raise DatasetError("a split has no part: give the fractions of some, as {'train': 0.8, 'test': 0.2}")
    exact = []
    for part, value in fractions.items():
        if not isinstance(part, str):
            raise DatasetError(f"the name of a part must be a string, got {part!r}")
        usable = isinstance(value, (int, float, Fraction)) and not isinstance(value, bool) and math.isfinite(value)
        if not usable or not 0 < value <= 1:
            raise DatasetError(f"the fraction of part {part!r} must be above 0 and at most 1, got {value!r}")
        exact.append(Fraction(str(float(value))) if isinstance(value, float) else Fraction(value))
    total = sum(exact, Fraction())
    if abs(total - 1) > _SUM_TOLERANCE:
        listed = " + ".join(f"{part} {value:g}" for part, value in fractions.items())
        raise DatasetError(f"the fractions must add up to 1, got {listed} = {float(total):g}")
    return [value / total for value in exact]


def _check_seed(seed: Any) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise DatasetError(f"the seed must be an int (0 is one), got {seed!r}")


def _by_label(labels: Mapping[str, Label], seed: int) -> list[list[str]]:
    """The ids of each label, shuffled; labels in the order of their types and values."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted(labels, key=lambda name: (_drawn(seed, name), name)):
        groups[type(labels[name]).__name__, repr(labels[name])].append(name)
    return [groups[key] for key in sorted(groups)]


def _drawn(seed: int, patient_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{patient_id}".encode(), digest_size=16).digest()


def _largest_remainders(shares: list[Fraction], total: int) -> list[int]:
    """`total` in whole numbers, by shares. Source: Hamilton's method of apportionment."""
    exact = [share * total for share in shares]
    sizes = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda part: sizes[part] - exact[part])
    for part in by_remainder[: total - sum(sizes)]:
        sizes[part] += 1
    return sizes


def _counts_of_labels(
    labels: Mapping[str, Label], shares: list[Fraction], sizes: list[int], seed: int
) -> tuple[list[list[str]], list[list[int]]]:
    """The ids of each label, and how many of them each part gets.

    Every label first gives each part its share, rounded down. What is left of a label goes to different parts, those that miss
    most: labels with most left go first. This finds a table with these sums of rows and columns wherever there is one (up to
    four parts there always is: for there to be none, largest remainders of more than 1 in all would have to be rounded up, and
    of more than 1 down). Source: Gale 1957, Ryser 1957, matrices of zeros and ones.
    """
    groups = _by_label(labels, seed)
    counts = [[math.floor(share * len(ids)) for share in shares] for ids in groups]
    missing = [size - sum(column) for size, column in zip(sizes, zip(*counts, strict=True), strict=True)]
    left = [len(ids) - sum(row) for ids, row in zip(groups, counts, strict=True)]
    for label in sorted(range(len(groups)), key=lambda label: -left[label]):
        row, total = counts[label], len(groups[label])
        given: set[int] = set()
        for _ in range(left[label]):
            part = min(
                (part for part in range(len(shares)) if missing[part] > 0),
                key=lambda part: (part in given, -missing[part], row[part] - shares[part] * total),
            )
            given.add(part)
            row[part] += 1
            missing[part] -= 1
    return groups, counts
