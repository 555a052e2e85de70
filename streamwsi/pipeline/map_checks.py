"""Whether maps can be made of what is to be read, as far as that is known before a slide is opened.

In: a loader, and what maps are to be.  Out: an error that names what cannot be; how large chunks may be.  Starts nothing.
"""

from __future__ import annotations

from streamwsi.arrays.weights import Weights
from streamwsi.arrays.zarr_library import needed_zarr
from streamwsi.collecting.map_rows import image_size, own_weights
from streamwsi.errors import ConfigError
from streamwsi.loading.window_loader import WindowLoader
from streamwsi.map_options import MapOptions
from streamwsi.pipeline.reading import window_px
from streamwsi.writing.map_set import check_map_names

_CHUNK_PX = 1 << 22
"""Of the map, in a chunk: 64 MiB of sums for 4 channels of float32."""


def check_maps(options: MapOptions, loader: WindowLoader) -> None:
    """Raise ConfigError where maps of these windows cannot be made, or cannot be called as they are to be.

    Where windows begin at an edge or where a sampler has placed them, a slide says whether they can; it fails if not.
    """
    reduction, kernel = options.reduction, loader.kernel_size
    if any(side % reduction for side in kernel):
        raise ConfigError(f"kernel_size {kernel} is no multiple of reduction={reduction}: images would have a part of a pixel")
    on_stride = loader.sampler is None and loader.border in ("pad", "adaptive", "crop")
    if on_stride and any(step % reduction for step in loader.stride):
        raise ConfigError(
            f"stride {loader.stride} is no multiple of reduction={reduction}: windows would begin between two pixels of the "
            "map; take a stride that is one, or images of the windows' own size"
        )
    if options.output == "zarr":
        needed_zarr("output='zarr'")
    size = image_size(kernel, reduction)
    Weights(own_weights(options), size).of(size)
    check_map_names(options, loader.dataset)


def most_chunk_px(options: MapOptions, loader: WindowLoader, batch_size: int) -> int:
    """Pixels of what is read that a chunk may have: its sums are held by its collector and sent in one message.

    A batch may be as large in any case: its images are what the collector gives at once.
    """
    return max(_CHUNK_PX * options.reduction**2, batch_size * window_px(loader) * loader.resolution.count)
