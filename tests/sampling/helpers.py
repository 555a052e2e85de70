"""Scenes that need no file, and what windows cover of a mask, counted pixel by pixel."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import streamwsi as sw


def scene(
    width: int,
    height: int,
    kernel: tuple[int, int] = (8, 8),
    downsample: float = 1.0,
    *,
    mpp: tuple[float, float] | None = (0.5, 0.5),
    patient: str = "p",
    slide: str = "s",
) -> sw.Scene:
    """A slide of `width` × `height` level-0 pixels, read at a downsample."""
    info = sw.SlideInfo(
        level_dimensions=((width, height),),
        level_downsamples=(1.0,),
        mpp=mpp,
        power=None,
        vendor="",
        tile_sizes=(None,),
        associated_images=(),
        reader="none",
    )
    extent = max(int(width / downsample), 1), max(int(height / downsample), 1)
    return sw.Scene(sw.Slide(f"/nowhere/{slide}.svs", slide, info), patient, extent, downsample, kernel)


def random_mask(seed: int, width: int, height: int) -> sw.Mask:
    """A mask of blobs, of any scale, that lies anywhere on the slide."""
    random = np.random.default_rng(seed)
    scale, offset = random.uniform(0.7, 9, 2), random.uniform(0, 0.3, 2) * (width, height)
    columns, rows = np.maximum(((width, height) - offset) // scale, 1).astype(int)
    rough = random.random((rows // 4 + 1, columns // 4 + 1)) < random.choice([0.3, 0.6, 0.95])
    return sw.Mask(np.kron(rough, np.ones((4, 4), bool))[:rows, :columns], scale=tuple(scale), offset=tuple(offset))


def counted_coverage(mask: sw.Mask, scene: sw.Scene, start: np.ndarray) -> np.ndarray:
    """(n,): shares of windows' footprints that are inside: overlaps with every pixel of the mask, added up."""
    low, high = start * scene.downsample, (start + scene.kernel) * scene.downsample
    x, y = (
        np.clip(np.minimum(edges[1:], high[:, axis, None]) - np.maximum(edges[:-1], low[:, axis, None]), 0, None)
        for axis in range(2)
        for edges in [mask.offset[axis] + np.arange(mask.shape[1 - axis] + 1) * mask.scale[axis]]
    )
    return np.einsum("ny,yx,nx->n", y, mask.array.astype(float), x, optimize=True) / np.prod(high - low, axis=1)


def every_place(scene: sw.Scene) -> np.ndarray:
    """(n, 2): all starts of windows inside the slide."""
    x, y = np.meshgrid(*(np.arange(side) for side in scene.room))
    return np.column_stack([x.ravel(), y.ravel()])


def shared(kernel: tuple[int, int], one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n, m): share of its area that each window shares with each other."""
    apart = np.abs(one[:, None] - other[None])
    return np.clip(np.array(kernel) - apart, 0, None).prod(axis=2) / np.prod(kernel)


seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 14)
downsamples = st.sampled_from([1.0, 0.5, 2.0, 4.0058, 1.37])
