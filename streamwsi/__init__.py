"""Stream whole-slide images through a pipeline of processes.

>>> import streamwsi as sw
>>> dataset = sw.Dataset.from_folder("slides/")                                     # doctest: +SKIP
>>> loader = sw.SlidingWindowLoader(dataset, kernel_size=256, stride=256, level=0)  # doctest: +SKIP
>>> writer = sw.HDF5StreamWriter("out/")                                            # doctest: +SKIP
>>> report = sw.Pipeline(loader, sw.MeanCollector(), writer).run()                  # doctest: +SKIP

Public names are imported when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from streamwsi._version import __version__

if TYPE_CHECKING:
    from streamwsi.arrays.aggregator import Aggregator
    from streamwsi.arrays.ome_tiff import write_ome_tiff
    from streamwsi.arrays.ome_zarr import write_ome_zarr
    from streamwsi.arrays.sampler import ArraySampler
    from streamwsi.chunks import Batch, BigChunk, MixedBatch, ProcessedPiece, SmallChunk, Status
    from streamwsi.collecting.collector import StreamCollector
    from streamwsi.collecting.models import ExportedProgramCollector, ModelCollector, TorchScriptCollector
    from streamwsi.collecting.ready_made import (
        FocusCollector,
        HematoxylinCollector,
        MeanCollector,
        Patches,
        StainCollector,
        TissueCollector,
    )
    from streamwsi.collecting.tensors import as_tensor
    from streamwsi.dataset import Dataset, Patient, Slide, SlideInfo
    from streamwsi.errors import (
        AnnotationError,
        ArrayError,
        CollectorError,
        ConfigError,
        DatasetError,
        DiskError,
        Interrupted,
        MapError,
        MaskError,
        ModelError,
        OutputError,
        RunError,
        SamplingError,
        SlideError,
        StreamwsiError,
        WorkerDied,
    )
    from streamwsi.geometry import Window, Windows
    from streamwsi.loading.level_at_mpp import LevelAtMpp
    from streamwsi.loading.paired import Paired
    from streamwsi.loading.sliding_window import SlidingWindowLoader
    from streamwsi.loading.window_loader import WindowLoader
    from streamwsi.maps.contact_sheet import contact_sheet
    from streamwsi.maps.geojson import export_all, export_geojson
    from streamwsi.maps.pieces import read_pieces
    from streamwsi.maps.raster import read_map
    from streamwsi.maps.render import render, render_all
    from streamwsi.pipeline.pipeline import Pipeline
    from streamwsi.pipeline.report import Report
    from streamwsi.pipeline.stream import Stream, StreamReport, stream
    from streamwsi.regions.annotations import read_annotations
    from streamwsi.regions.geojson import write_geojson
    from streamwsi.regions.mask import Mask
    from streamwsi.regions.mask_files import read_mask
    from streamwsi.regions.polygon_mask import PolygonMask
    from streamwsi.regions.region import Region, nested_as_holes
    from streamwsi.regions.tissue import TissueMask
    from streamwsi.sampling.grid_sampler import GridSampler
    from streamwsi.sampling.point_files import read_points
    from streamwsi.sampling.point_sampler import PointSampler
    from streamwsi.sampling.poisson_sampler import PoissonDiskSampler
    from streamwsi.sampling.random_sampler import RandomSampler
    from streamwsi.sampling.regions import Annotated, Tissue
    from streamwsi.sampling.sampler import Places, Sampler
    from streamwsi.sampling.scene import Scene
    from streamwsi.slides.reader import open_slide
    from streamwsi.summary import Summary, summarize
    from streamwsi.verification import verify
    from streamwsi.writing.stream_writer import CSVStreamWriter, HDF5StreamWriter, ImageStreamWriter, MapStreamWriter

_WHERE = {
    "arrays.aggregator": ("Aggregator",),
    "arrays.ome_tiff": ("write_ome_tiff",),
    "arrays.ome_zarr": ("write_ome_zarr",),
    "arrays.sampler": ("ArraySampler",),
    "chunks": ("Batch", "BigChunk", "MixedBatch", "ProcessedPiece", "SmallChunk", "Status"),
    "collecting.collector": ("StreamCollector",),
    "collecting.models": ("ExportedProgramCollector", "ModelCollector", "TorchScriptCollector"),
    "collecting.ready_made": (
        "FocusCollector",
        "HematoxylinCollector",
        "MeanCollector",
        "Patches",
        "StainCollector",
        "TissueCollector",
    ),
    "collecting.tensors": ("as_tensor",),
    "dataset": ("Dataset", "Patient", "Slide", "SlideInfo"),
    "errors": (
        "AnnotationError",
        "ArrayError",
        "CollectorError",
        "ConfigError",
        "DatasetError",
        "DiskError",
        "Interrupted",
        "MapError",
        "MaskError",
        "ModelError",
        "OutputError",
        "RunError",
        "SamplingError",
        "SlideError",
        "StreamwsiError",
        "WorkerDied",
    ),
    "geometry": ("Window", "Windows"),
    "loading.level_at_mpp": ("LevelAtMpp",),
    "loading.paired": ("Paired",),
    "loading.sliding_window": ("SlidingWindowLoader",),
    "loading.window_loader": ("WindowLoader",),
    "maps.contact_sheet": ("contact_sheet",),
    "maps.pieces": ("read_pieces",),
    "maps.raster": ("read_map",),
    "maps.geojson": ("export_all", "export_geojson"),
    "maps.render": ("render", "render_all"),
    "pipeline.pipeline": ("Pipeline",),
    "pipeline.report": ("Report",),
    "pipeline.stream": ("Stream", "StreamReport", "stream"),
    "regions.annotations": ("read_annotations",),
    "regions.geojson": ("write_geojson",),
    "regions.mask": ("Mask",),
    "regions.mask_files": ("read_mask",),
    "regions.polygon_mask": ("PolygonMask",),
    "regions.region": ("Region", "nested_as_holes"),
    "regions.tissue": ("TissueMask",),
    "sampling.grid_sampler": ("GridSampler",),
    "sampling.point_files": ("read_points",),
    "sampling.point_sampler": ("PointSampler",),
    "sampling.poisson_sampler": ("PoissonDiskSampler",),
    "sampling.random_sampler": ("RandomSampler",),
    "sampling.regions": ("Annotated", "Tissue"),
    "sampling.sampler": ("Places", "Sampler"),
    "sampling.scene": ("Scene",),
    "slides.reader": ("open_slide",),
    "summary": ("Summary", "summarize"),
    "verification": ("verify",),
    "writing.stream_writer": ("CSVStreamWriter", "HDF5StreamWriter", "ImageStreamWriter", "MapStreamWriter"),
}
_MODULE_OF = {name: f"streamwsi.{module}" for module, names in _WHERE.items() for name in names}

__all__ = [
    "__version__",
    *sorted(_MODULE_OF),
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'streamwsi' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
