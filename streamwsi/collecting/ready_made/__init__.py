"""Collectors that need no model, one to a file.

In: batches.  Out: a few numbers per window, which depend on that window alone.
"""

from __future__ import annotations

from streamwsi.collecting.collector import StreamCollector
from streamwsi.collecting.ready_made.focus import FocusCollector
from streamwsi.collecting.ready_made.hematoxylin import HematoxylinCollector
from streamwsi.collecting.ready_made.mean import MeanCollector
from streamwsi.collecting.ready_made.patches import Patches
from streamwsi.collecting.ready_made.stain import StainCollector
from streamwsi.collecting.ready_made.tissue import TissueCollector

__all__ = [
    "READY_MADE",
    "FocusCollector",
    "HematoxylinCollector",
    "MeanCollector",
    "Patches",
    "StainCollector",
    "TissueCollector",
]

READY_MADE: dict[str, type[StreamCollector]] = {
    "mean": MeanCollector,
    "hematoxylin": HematoxylinCollector,
    "stain": StainCollector,
    "tissue": TissueCollector,
    "focus": FocusCollector,
    "patches": Patches,
}
"""By the names that the command line knows."""
