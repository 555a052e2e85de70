"""What of a sampler stands in run.json, so that the same description means the same windows.

In: regions, points, functions.  Out: numbers, strings, lists and dicts.  Content stands as a digest, never a path: files may be
moved, but not changed.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streamwsi.errors import ConfigError
from streamwsi.regions.extra import needed
from streamwsi.regions.mask import Mask
from streamwsi.regions.polygon_mask import PolygonMask
from streamwsi.regions.region import Region
from streamwsi.sampling.regions import Annotated, Tissue, read_files
from streamwsi.sampling.sampler import Sampler


def description_of(sampler: Sampler) -> dict[str, Any]:
    """What a sampler says of itself, as it comes back from a file: tuples as lists, NumPy's numbers as Python's.

    Raises ConfigError where it says what no file holds.
    """
    try:
        written = msgspec.json.encode(sampler.describe(), enc_hook=_plain, order="deterministic")
        return msgspec.json.decode(written, type=dict[str, Any])
    except (TypeError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{type(sampler).__name__}.describe must return a dict of numbers, strings, lists and dicts: {error}"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"got a {type(value).__name__}")


def describe_region(source: Any) -> Any:
    """What stands for a checked region. Reads the files that it is of. Raises ConfigError where one cannot be read."""
    if isinstance(source, Mask):
        shape = f"{source.shape} {source.scale} {source.offset}".encode()
        polygons = (needed("shapely", "a mask of polygons").to_wkb(source.area),) if isinstance(source, PolygonMask) else ()
        return {"mask": digest(shape, np.packbits(source.array).tobytes(), *polygons)}
    if isinstance(source, Tissue):
        return {"tissue": {name: value for name, value in vars(source).items() if value is not None}}
    if isinstance(source, Annotated):
        holes = source.nested_as_holes
        return {
            "annotated": describe_region(source.source),
            "buffer": float(source.buffer),
            "unit": source.unit,
            "inverse": source.inverse,
            "nested_as_holes": sorted(holes) if isinstance(holes, Collection) else holes,
            "areas_only": source.areas_only,
        }
    if isinstance(source, Path):
        return _describe_files(source)
    if isinstance(source, tuple):
        return {"regions": _digest_of_regions(source)}
    return describe_by_slide(source, describe_region)


def describe_by_slide(source: Any, describe: Callable[[Any], Any]) -> Any:
    """What stands for a mapping from slides, for a function, or for what is the same for all slides."""
    if isinstance(source, Mapping):
        entries = ([list(key) if isinstance(key, tuple) else key, describe(value)] for key, value in source.items())
        return {"by_slide": sorted(entries, key=lambda entry: str(entry[0]))}
    if callable(source):
        return {"callable": source_text(source)}
    return describe(source)


def source_text(function: Callable[..., Any]) -> str:
    """What stands for a function: its source, without how it is set; or its name, where there is no source."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = repr(getattr(function, "__qualname__", type(function).__name__))
    return " ".join(source.split())


def digest(*parts: bytes) -> str:
    """32 hexadecimal digits that stand for `parts`, each by itself."""
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()


def _digest_of_regions(regions: Sequence[Region]) -> str:
    shapely = needed("shapely", "a region of polygons")
    parts = []
    for region in regions:
        parts += [shapely.to_wkb(region.polygon), repr(region.label).encode()]
    return digest(*parts)


def _describe_files(path: Path) -> dict[str, str]:
    try:
        if path.is_file():
            return {"file": digest(path.read_bytes())}
        parts = [part for file in read_files(path) for part in (file.relative_to(path).as_posix().encode(), _content(file))]
    except OSError as error:
        raise ConfigError(f"region={path} cannot be read: {error}") from error
    return {"folder": digest(*parts)}


def _content(file: Path) -> bytes:
    return hashlib.blake2b(file.read_bytes()).digest()
