"""The pixels of each window, as they are.

In: batches.  Out: their images, for a writer that stores them.
"""

from __future__ import annotations

from streamwsi.chunks import Batch, UInt8Array
from streamwsi.collecting.collector import StreamCollector


class Patches(StreamCollector):
    """The pixels of each window, for a :class:`streamwsi.ImageStreamWriter` or :class:`streamwsi.MapStreamWriter`: (n, height,
    width, 3) uint8, or (n, resolutions, height, width, 3) where several are read, of which there is no map.

    One's own collector may give fewer windows, or other images, of normalised stains for one:

    >>> class Normalised(StreamCollector):
    ...     def process(self, batch):
    ...         return normalise(batch.pixels)
    """

    def process(self, batch: Batch) -> UInt8Array:
        """The pixels."""
        return batch.pixels
