"""Windows of an array of any dimension, as patches with their boxes.

In: anything array-like, or only its spatial extents.  Out: NumPy patches and where they lie.  Never loads the array whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from streamwsi.arrays.grid import make_grid, spatial_axes
from streamwsi.arrays.padding import Padding
from streamwsi.arrays.sources import AnyArray, Source
from streamwsi.arrays.sweep import Sweeper
from streamwsi.errors import ConfigError
from streamwsi.geometry import Border, Int64Array

Layout = Literal["first", "last"] | Sequence[int]
"""Which axes are spatial: those in front (channels behind), those at the end (batch, channels in front), or which ones."""


class ArraySampler:
    """The windows of an array: ``sampler[i]`` is ``(patch, box)``; a map-style data set for a DataLoader as it is.

    Without an array (``ArraySampler(None, …, shape=(height, width))``), ``sampler[i]`` is the box alone.

    Parameters
    ----------
    array
        NumPy array, memory map, Zarr array, HDF5 dataset, Dask array, tensor: what has ``shape``, ``dtype`` and slices.
        Read when a patch is asked for, and only there.
    patch_size, step
        Whole numbers of at least 1: one for each spatial axis, or one for all of them. `step` is the patch size by default.
    border
        As for slides, one for all axes or one for each: ``pad`` (default), ``edge``, ``squeeze``, ``adaptive``, ``crop``;
        see :func:`streamwsi.geometry.axis_starts`.
    spatial_axes
        ``first`` (default), as in ``(height, width, channels)``; ``last``, as in ``(batch, channels, height, width)``; or the
        axes, ``(1, 2)``, counted from the end where negative. The others are whole in every patch.
    shape
        The spatial extents, where there is no array.
    pad_mode, pad_value
        What stands beyond the end of the array: `pad_value` (``constant``), or what ``numpy.pad`` puts there: ``edge``,
        ``reflect``, ``symmetric``, ``wrap``, and ``linear_ramp`` (to `pad_value`), ``maximum``, ``mean``, ``median``,
        ``minimum``. From ``wrap`` on, they read whole lines of the array for a patch at its end, and all of it for one in its
        last corner.

    A patch is NumPy with the array's dtype and number of axes, and has the size of its box; a view where the array is
    NumPy's, so copy it before writing to it. A box is (spatial axes, 2) int64: first and last index + 1 along each.
    Raises ConfigError for options that cannot work, ArrayError for what is no array.

    >>> sampler = ArraySampler(None, 256, 128, shape=(512, 300))
    >>> len(sampler), sampler[5].tolist()
    (6, [[256, 512], [128, 384]])
    """

    def __init__(
        self,
        array: Any,
        patch_size: int | Sequence[int],
        step: int | Sequence[int] | None = None,
        border: Border | Sequence[Border] = "pad",
        *,
        spatial_axes: Layout = "first",
        shape: Sequence[int] | None = None,
        pad_mode: str = "constant",
        pad_value: float = 0,
    ) -> None:
        if (array is None) == (shape is None):
            raise ConfigError("give an array, or None and the shape of its spatial axes: one of the two")
        self.layout: Layout = spatial_axes
        self.source = None if array is None else Source(array)
        self.spatial: tuple[int, ...] = ()
        if self.source is not None:
            self.spatial = _spatial(self.source, patch_size, spatial_axes)
            shape = [self.source.shape[axis] for axis in self.spatial]
        self.grid = make_grid(shape or (), patch_size, step, border)
        self.padding = Padding(pad_mode, pad_value)

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, index: int) -> Any:
        place = self.grid.place(self._checked(index))
        box = self.grid.box_at(place)
        if self.source is None:
            return box
        ndim = len(self.source.shape)
        return self.padding.patch(self.source.read, ndim, self.grid.axes, self.spatial, place), box

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def box(self, index: int) -> Int64Array:
        """The box of the window `index`, without its patch; (spatial axes, 2) int64."""
        return self.grid.box(self._checked(index))

    def by_chunks(self, max_bytes: int = 256 * 2**20) -> Iterator[tuple[AnyArray, Int64Array]]:
        """All patches with their boxes, in an order in which each chunk of the storage is read once.

        Slabs across the array, cut along its chunks, are read one after the other along the axis for which that takes the
        least memory, and dropped when no patch needs them any more. At most `max_bytes` of slabs are held. Where slabs across
        the whole array do not fit, it is swept in bands, and chunks that two bands share are read for each of them. At
        the end of the array, ``wrap`` and modes that compute from whole lines read those again. Patches are copies.
        Raises ConfigError when there is no array, or the bound is too small for a single column of windows.
        """
        if self.source is None:
            raise ConfigError("by_chunks needs an array; this sampler has only a shape")
        sweeper = Sweeper(self.source, self.grid, self.spatial, self.padding)
        return sweeper.patches(sweeper.plan(max_bytes))

    def _checked(self, index: int) -> int:
        count = len(self.grid)
        if not -count <= index < count:
            raise IndexError(f"window {index} of {count}")
        return index % count


def _spatial(source: Source, patch_size: Any, layout: Layout) -> tuple[int, ...]:
    """Which axes of an array are spatial."""
    ndim = len(source.shape)
    if not isinstance(layout, str):
        return spatial_axes(ndim, len(layout), layout)
    if isinstance(patch_size, Sequence) or hasattr(patch_size, "__len__"):
        return spatial_axes(ndim, len(patch_size), layout)
    if ndim > 1:  # whether the last axis is one of channels cannot be guessed
        raise ConfigError(
            f"patch_size {patch_size} is one number, and it is not said how many of the array's {ndim} axes are spatial: "
            f"give one for each, as ({patch_size}, {patch_size}), or spatial_axes=(0, 1)"
        )
    return spatial_axes(ndim, 1, layout)
