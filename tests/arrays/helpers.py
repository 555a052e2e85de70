"""What several tests of arrays need: shapes and options drawn at random, arrays that count what is read of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from streamwsi.geometry import BORDERS


@dataclass(frozen=True)
class Problem:
    """An array and how to sample it."""

    shape: tuple[int, ...]
    spatial_axes: Any
    n_spatial: int
    patch: tuple[int, ...]
    step: tuple[int, ...]
    border: tuple[str, ...]
    seed: int

    @property
    def options(self) -> dict[str, Any]:
        return {"patch_size": self.patch, "step": self.step, "border": self.border, "spatial_axes": self.spatial_axes}


@st.composite
def problems(draw: st.DrawFn, gaps: bool = False) -> Problem:
    """Arrays of one to three spatial axes, other axes before or behind or none; without `gaps`, every place is in a window."""
    n = draw(st.integers(1, 3))
    extent = [draw(st.integers(1, (60, 20, 9)[n - 1])) for _ in range(n)]
    patch = [draw(st.integers(1, size + 3)) for size in extent]
    step = [draw(st.integers(1, size + (3 if gaps else 0))) for size in patch]
    borders = [border for border in BORDERS if gaps or border != "crop"]
    border = [draw(st.sampled_from(borders)) for _ in range(n)]
    others = draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
    layout = draw(st.sampled_from(["first", "last"]))
    shape = (*extent, *others) if layout == "first" else (*others, *extent)
    return Problem(tuple(shape), layout, n, tuple(patch), tuple(step), tuple(border), draw(st.integers(0, 2**31)))


def random_array(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    """Values over most of the type's range, its ends among them; floats from 1e-4 to 1e4 of either sign."""
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "ui":
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        ends = rng.random(shape)
        return np.where(ends < 0.1, info.max, np.where(ends > 0.9, info.min, values)).astype(dtype)
    values = 10 ** rng.uniform(-4, 4, shape) * rng.choice([-1, 1], shape)
    return (values + 1j * values[..., ::-1]).astype(dtype) if dtype.kind == "c" else values.astype(dtype)


@dataclass
class CountingArray:
    """An array stored in chunks, which counts how often each was read."""

    data: np.ndarray
    chunks: tuple[int, ...]
    reads: dict[tuple[int, ...], int] = field(default_factory=dict)
    largest: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        found = self.data[where]
        spans = [one.indices(extent) for one, extent in zip(where, self.shape, strict=True)]
        touched = [range(a // c, -(-b // c)) if a < b else range(0) for (a, b, _), c in zip(spans, self.chunks, strict=True)]
        for chunk in itertools.product(*touched):
            self.reads[chunk] = self.reads.get(chunk, 0) + 1
        self.largest = max(self.largest, found.nbytes)
        return found.copy()
