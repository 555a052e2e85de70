"""OME-Zarr images made for the purpose, each level and each word of the metadata as a test wants it.

Nothing here uses the code under test.  Source: NGFF 0.4 and 0.5, https://ngff.openmicroscopy.org.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

zarr = pytest.importorskip("zarr", minversion="3")  # older ones, of Python 3.10, know no format 3


def write_array(path: Path, values: npt.NDArray[Any], chunks: tuple[int, ...], version: int = 3, **options: Any) -> Any:
    """A Zarr array of this format version, its chunks in folders."""
    if version == 2:
        options |= {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    array = zarr.create_array(
        store=str(path), shape=values.shape, chunks=chunks, dtype=values.dtype, zarr_format=version, **options
    )
    array[...] = values
    return array


def multiscales(
    axes: str, scales: Sequence[Sequence[float]], unit: str | None = "micrometer", version: str = "0.5"
) -> dict[str, Any]:
    """The attributes of a group whose levels are called 0, 1, …"""
    kinds = {"t": "time", "c": "channel"}
    named = [
        {"name": axis, "type": kinds.get(axis, "space"), **({"unit": unit} if unit and axis not in kinds else {})}
        for axis in axes.lower()
    ]
    image = {
        "name": "image",
        "axes": named,
        "datasets": [
            {"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": list(scale)}]}
            for number, scale in enumerate(scales)
        ],
    }
    return (
        {"ome": {"version": "0.5", "multiscales": [image]}}
        if version == "0.5"
        else {"multiscales": [{**image, "version": version}]}
    )


def write_group(path: Path, attributes: dict[str, Any], version: str = "0.5") -> Path:
    """A group, or other attributes of one that is there."""
    path.mkdir(parents=True, exist_ok=True)
    if version == "0.5":
        (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))
    else:
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps(attributes))
    return path


def write_image(
    path: Path,
    levels: Sequence[npt.NDArray[Any]],
    axes: str,
    chunks: tuple[int, ...],
    scales: Sequence[Sequence[float]] | None = None,
    unit: str | None = "micrometer",
    version: str = "0.5",
) -> Path:
    """An OME-Zarr image of these levels; without scales, those of their sizes."""
    if scales is None:
        scales = [[mine / its for mine, its in zip(levels[0].shape, level.shape, strict=True)] for level in levels]
        unit = None
    write_group(path, multiscales(axes, scales, unit, version), version)
    for number, level in enumerate(levels):
        write_array(path / str(number), level, chunks, 3 if version == "0.5" else 2)
    return path


def planes(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(height, width, 3) as (3, height, width)."""
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
