"""Patches put back to an array: blended where they overlap, block by block.

In: patches with their boxes, in any order, from any thread.  Out: the array.  Holds only blocks that patches are missing of.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from streamwsi.arrays.blender import Blender, Postprocess, Total, same_axes
from streamwsi.arrays.blocks import Blocks, Place
from streamwsi.arrays.grid import PatchGrid, Window, spatial_axes, written
from streamwsi.arrays.outputs import Output, checked_path, make_output
from streamwsi.arrays.sampler import ArraySampler, Layout
from streamwsi.arrays.sources import AnyArray, as_numpy
from streamwsi.arrays.sums import Sum, sum_dtype
from streamwsi.arrays.weights import OwnWeights, Weights
from streamwsi.errors import ArrayError, ConfigError
from streamwsi.geometry import Int64Array

_BLOCK_VALUES = 1 << 16
"""Places of a block, about, where neither patches nor the output's chunks ask for more."""
_LONG = 8
"""Blocks that are parts of the result take no memory of their own: they are so many times longer along the last axis, half as
thick along others, so that windows are cut into fewer parts, of whole rows."""
_NAMED = 8
"""So many missing windows are named in a message."""


@dataclass
class _Block:
    """A part of the output that patches are missing of."""

    sum: Sum
    missing: int
    """How many windows that touch it have not been added."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Aggregator:
    """Puts the patches of a sampler, or what a model made of them, back to an array.

    Parameters
    ----------
    sampler
        Whose boxes the patches come with.
    output
        None: in memory. A path that ends in ``.npy``, ``.zarr``, ``.h5`` or ``.hdf5`` (dataset ``data``): a file, written block
        by block, which gets its name when it is complete. Or an array of the result's shape that blocks can be assigned to.
    weights
        ``mean`` (default): all alike. ``gaussian``: with a standard deviation of 1/8 of the patch. ``distance``: proportional
        to the distance from the patch's nearest border. Or your own, not negative: an array of the patch's spatial size, or
        a callable that is given a size and returns such an array.
    dtype
        Of the result: by default the patches', with ``softmax`` float32 or the patches' where that is larger, with
        ``argmax`` the smallest unsigned one that holds the labels, with `postprocess` what it returns. Means are rounded to
        the nearest integer, halves to even, where the type is one of integers.
    spatial_axes
        Of the patches appended: as the sampler's by default (``first``, ``last``, or which ones).
    reduce, axis
        ``softmax`` or ``argmax`` of the blended values over `axis` of a patch (one that is not spatial).
    postprocess
        ``postprocess(block, box)`` is called once for each finished block, after `reduce`, and returns what is written: with
        the same spatial sizes; other axes may change. It may be called from any thread that appends.
    block_size
        Spatial size of a block: one number or one for each axis; by default at least a patch, and about 65 thousand
        places, whole chunks where the output has such; longer along the last axis where patches are summed in the result.
    fill_value
        What stands where no window lies (border ``crop``, a step larger than the patch) or all weights are 0. NaN by
        default; types without NaN need one.

    The memory it needs is that of the blocks that are begun and not finished, and a byte for each window: with patches in
    the sampler's order, or that of :meth:`ArraySampler.by_chunks`, a slab as thick as a patch and two blocks. A result in
    memory of the type of the sums needs no more than itself, as patches are summed there: no `output`, no `reduce` and no
    `postprocess`.

    Sums are exact for integers with ``mean``; else in float32 where at most 8 windows overlap and patches are float32 or
    smaller, in float64 otherwise; no number of overlaps is too many.
    """

    def __init__(
        self,
        sampler: ArraySampler,
        output: Any = None,
        *,
        weights: str | AnyArray | OwnWeights = "mean",
        dtype: Any = None,
        spatial_axes: Layout | None = None,
        reduce: Literal["softmax", "argmax"] | None = None,
        axis: int | None = None,
        postprocess: Postprocess | None = None,
        block_size: int | Sequence[int] | None = None,
        fill_value: float | None = None,
    ) -> None:
        if (reduce is None) != (axis is None) or reduce not in (None, "softmax", "argmax"):
            raise ConfigError(
                f"reduce must be 'softmax' or 'argmax', with the axis to reduce, got {reduce!r} with axis={axis!r}"
            )
        self.grid: PatchGrid = sampler.grid
        if not len(self.grid):
            raise ConfigError("the sampler has no windows: with border 'crop', an array smaller than the patch has none")
        self._weights = Weights(weights, self.grid.patch_size)
        self._layout = sampler.layout if spatial_axes is None else spatial_axes
        self._output_asked = checked_path(output) if isinstance(output, str | os.PathLike) else output
        self._dtype_asked = None if dtype is None else np.dtype(dtype)
        self._reduce, self._axis, self._postprocess = reduce, axis, postprocess
        self._block_asked, self._fill_asked = block_size, fill_value
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._n_adding = 0
        self._writing = threading.Lock()
        self._received = np.zeros(len(self.grid), dtype=bool)
        self._n_received = 0
        self._blender: Blender | None = None
        self._blocks: dict[Place, _Block] = {}
        self._output: Output | None = None
        self._sums: AnyArray | None = None
        """The result, where sums are kept in it."""
        self._failure: BaseException | None = None
        self._block_rest: tuple[int, ...] = ()
        """The sizes of a finished block's axes that are not spatial."""
        self._result: Any = None
        self._closed = False

    @property
    def n_open_blocks(self) -> int:
        """How many blocks are in memory: begun, and not finished."""
        return len(self._blocks)

    def missing(self) -> Int64Array:
        """Places in the plan of the windows that were not appended; (n,) int64, ascending."""
        return np.flatnonzero(~self._received).astype(np.int64)

    def append(self, patch: Any, box: Any) -> None:
        """Add a patch, or a batch of them, with the box that it came with.

        `patch` is a NumPy array, a tensor or the like, of the box's size along the spatial axes; `box` is (spatial axes, 2). A
        batch has one axis more in front in both. May be called from several threads.
        Raises ArrayError when the box is none of the sampler's or was appended before, or when the patch does not fit it;
        nothing of it, or of its batch, is added then. After an error in `postprocess` or in writing, every further call raises.
        """
        boxes = as_numpy(box)
        patches = as_numpy(patch)
        n_axes = len(self.grid.axes)
        if boxes.shape[-2:] != (n_axes, 2) or boxes.ndim not in (2, 3) or boxes.dtype.kind not in "iu":
            raise ArrayError(f"a box must be ({n_axes}, 2) integers, or a batch of such, got {boxes.shape} {boxes.dtype}")
        if boxes.ndim == 2:
            self._append([patches], [boxes])
            return
        if patches.ndim == 0 or len(patches) != len(boxes):
            raise ArrayError(
                f"{len(boxes)} boxes came with patches of shape {patches.shape}: the first axis must be the batch's"
            )
        self._append(list(patches), list(boxes))

    def get_output(self, *, allow_missing: bool = False) -> Any:
        """The whole result: a NumPy array, the array given as output, or the completed file's (memory map, Zarr, HDF5).

        Raises ArrayError when windows are missing, and names them. With `allow_missing`, means are of the windows that there
        are, and places without any have `fill_value`; nothing can be appended then. A second call returns the same array.
        """
        with self._lock:
            self._raise_failure()
            if self._closed:  # read out before, or just now by another thread
                self._idle.wait_for(lambda: not self._n_adding)
                self._raise_failure()
                return self._result
            if self._n_received < len(self.grid) and not allow_missing:
                raise ArrayError(self._missing_message())
            if self._blender is None:
                raise ArrayError("no window was appended: there is nothing to return")
            blender = self._blender
            if self._n_received < len(self.grid):
                blender.fill_value(needed=True)
            self._closed = True
            self._idle.wait_for(lambda: not self._n_adding)
            self._raise_failure()
            self._n_adding += 1
        self._adding(self._complete, blender, allow_missing)
        return self._result

    def _append(self, patches: list[AnyArray], boxes: list[Int64Array]) -> None:
        windows = [self.grid.find(box) for box in boxes]
        if not boxes:
            return
        with self._lock:
            self._raise_failure()
            self._check_new([window.number for window in windows])
            blender = self._blender or self._begin(patches[0], windows[0])
            weights = [blender.weights_for(patch, window) for patch, window in zip(patches, windows, strict=True)]
            for window in windows:
                self._received[window.number] = True
            self._n_received += len(windows)
            self._n_adding += 1
        self._adding(self._add_all, blender, windows, patches, weights)

    def _check_new(self, indices: list[int]) -> None:
        for number, index in enumerate(indices):
            if self._received[index] or index in indices[:number]:
                raise ArrayError(
                    f"window {index}, box {written(self.grid.box(index))}, was appended before: each window counts once; "
                    f"give every patch the box that came with it"
                )
            if self._closed:
                raise ArrayError(
                    f"window {index}, box {written(self.grid.box(index))}, came after get_output(allow_missing=True)"
                )

    def _add_all(self, blender: Blender, windows: list[Window], patches: list[AnyArray], weights: list[AnyArray]) -> None:
        for window, patch, weight in zip(windows, patches, weights, strict=True):
            for place, inside, part in blender.cut(window):
                self._add(blender, place, inside, patch[part], weight[part])

    def _add(self, blender: Blender, place: Place, inside: tuple[slice, ...], patch: AnyArray, weights: AnyArray) -> None:
        """Add what of a patch lies in a block, and finish the block when that was its last."""
        block = self._blocks.get(place) or self._new_block(blender, place)
        with block.lock:
            block.sum.add(inside, patch, weights)
            block.missing -= 1
            if block.missing:
                return
        with self._lock:
            del self._blocks[place]
        self._finish(blender, place, block.sum, blender.total(place, block.sum))

    def _new_block(self, blender: Blender, place: Place) -> _Block:
        with self._lock:
            block = self._blocks.get(place)  # another thread may have been first
            if block is None:
                block = self._blocks[place] = _Block(blender.new_sum(place, self._sums), blender.blocks.n_windows(place))
            return block

    def _finish(self, blender: Blender, place: Place, summed: Sum, total: Total) -> None:
        block = blender.finished(place, summed, total)
        if self._sums is not None:  # it was divided where it lies, in the result
            return
        where = blender.blocks.slices(place)
        with self._writing:
            if self._output is None:
                shape = list(block.values.shape)
                chunks = list(block.values.shape)
                for axis, extent, size in zip(block.spatial, self.grid.extent, blender.blocks.size, strict=True):
                    shape[axis], chunks[axis] = extent, size
                self._output = make_output(self._output_asked, tuple(shape), block.values.dtype, tuple(chunks))
                self._block_rest = _others(block.values.shape, block.spatial)
            if _others(block.values.shape, block.spatial) != self._block_rest:
                raise ArrayError(
                    f"block {written(blender.blocks.box(place))} has shape {block.values.shape} after postprocessing; "
                    f"besides the spatial axes, others had {self._block_rest}"
                )
            at = [slice(None)] * block.values.ndim
            for axis, one in zip(block.spatial, where, strict=True):
                at[axis] = one
            self._output.write(tuple(at), block.values)

    def _complete(self, blender: Blender, allow_missing: bool) -> None:
        """Finish what appending did not: blocks that no window touches, and those that windows are missing of."""
        for place in blender.blocks.places():
            untouched = blender.blocks.n_windows(place) == 0
            if untouched or (allow_missing and not self._all_received(blender, place)):
                begun = self._blocks.pop(place, None)
                summed = begun.sum if begun else blender.new_sum(place, self._sums)
                self._finish(blender, place, summed, blender.total_of(place, summed, self._received))
        if self._output is None:
            raise ArrayError("no block was written; this is a fault of streamwsi")
        self._result = self._output.finish()

    def _begin(self, patch: AnyArray, window: Window) -> Blender:
        """Settle what only a patch tells: its axes, its type, and what follows from them."""
        axes = spatial_axes(patch.ndim, len(self.grid.axes), self._layout)
        if self._axis is not None:
            axis = self._axis + (patch.ndim if self._axis < 0 else 0)
            if not 0 <= axis < patch.ndim or axis in axes:
                raise ConfigError(f"axis {self._axis} of patches of shape {patch.shape} cannot be reduced: {axes} are spatial")
        in_place = self._in_place(patch.dtype)
        blender = Blender(
            self.grid,
            self._weights,
            axes,
            patch.shape,
            patch.dtype,
            Blocks(self.grid, self._block_size(patch.ndim, axes, in_place)),
            self._reduce,
            None if self._axis is None else axis,
            self._postprocess,
            self._dtype_asked,
            self._fill_asked,
        )
        blender.weights_for(patch, window)  # the first one must fit too
        blender.fill_value(needed=self.grid.n_uncovered > 0)
        if in_place:
            self._sums = blender.zeros()
            self._output = make_output(self._sums, self._sums.shape, self._sums.dtype, self._sums.shape)
        self._blender = blender
        return blender

    def _in_place(self, dtype: np.dtype[Any]) -> bool:
        """Whether patches of `dtype` are summed in the result itself: one in memory, of the type of the sums."""
        plain = self._output_asked is None and self._reduce is None and self._postprocess is None
        return plain and dtype.kind in "fc" and sum_dtype(dtype, self.grid.max_overlaps) == (self._dtype_asked or dtype)

    def _block_size(self, ndim: int, axes: tuple[int, ...], in_place: bool) -> tuple[int, ...]:
        n_axes, extent = len(axes), self.grid.extent
        if self._block_asked is not None:
            asked = self._block_asked
            sizes = (asked,) * n_axes if isinstance(asked, int | np.integer) else tuple(int(one) for one in asked)
            if len(sizes) != n_axes or min(sizes) < 1:
                raise ConfigError(f"block_size must be one number, or {n_axes}, of at least 1, got {asked!r}")
            return tuple(min(size, whole) for size, whole in zip(sizes, extent, strict=True))
        chunks = getattr(self._output_asked, "chunks", None)
        per_axis = math.ceil(_BLOCK_VALUES ** (1 / n_axes))
        if chunks and all(isinstance(chunk, int) for chunk in chunks):
            out_axes = same_axes(axes, ndim, len(chunks))
            units = [chunks[axis] for axis in out_axes] if out_axes else [1] * n_axes
        else:
            units = [axis.step for axis in self.grid.axes]
        wanted = [max(axis.patch, per_axis) for axis in self.grid.axes]
        if in_place:
            wanted = [*(-(-size // 2) for size in wanted[:-1]), _LONG * wanted[-1]]
        return tuple(min(-(-size // one) * one, whole) for size, one, whole in zip(wanted, units, extent, strict=True))

    def _all_received(self, blender: Blender, place: Place) -> bool:
        return all(self._received[index] for index in blender.blocks.windows(place))

    def _missing_message(self) -> str:
        missing = self.missing()
        named = ", ".join(f"{index} {written(self.grid.box(index))}" for index in missing[:_NAMED].tolist())
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        return (
            f"{len(missing)} of {len(self.grid)} windows are missing: {named}{more}; "
            f"append them, or take get_output(allow_missing=True)"
        )

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise ArrayError(f"the aggregation failed before: {self._failure!r}") from self._failure

    def _adding(self, change: Callable[..., None], *given: Any) -> None:
        """Change sums. What is raised meanwhile breaks the aggregator, whose sums would not be right any more."""
        try:
            change(*given)
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
            raise
        finally:
            with self._lock:
                self._n_adding -= 1
                if self._closed:  # only then somebody may wait for it
                    self._idle.notify_all()


def _others(shape: tuple[int, ...], spatial: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(extent for axis, extent in enumerate(shape) if axis not in spatial)
