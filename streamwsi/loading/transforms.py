"""Functions of the user that change what a batch holds before anybody has it: augmentation, normalisation, other label codes.

In: a batch, functions by the modalities they take.  Out: another batch of the same windows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from streamwsi.chunks import Batch, MixedBatch
from streamwsi.errors import CollectorError, ConfigError

Transforms = dict[tuple[str, ...], Callable[..., Any]]
"""By the names of the modalities that it takes and returns."""
AnyBatch = TypeVar("AnyBatch", bound="Batch | MixedBatch")
PIXELS = "pixels"


class TransformError(CollectorError):
    """A transform raised, or what it returned is no such batch; the cause is its exception, where it raised."""


def checked_transforms(transforms: Mapping[Any, Any] | None, paired: Collection[str]) -> Transforms:
    """Transforms by names. Raises ConfigError for names of nothing, and for what cannot be called."""
    known = (PIXELS, *paired)
    found: Transforms = {}
    for key, function in dict(transforms or {}).items():
        names = (key,) if isinstance(key, str) else tuple(key) if isinstance(key, tuple) else ()
        unknown = [name for name in names if name not in known]
        if not names or unknown or len(set(names)) < len(names):
            raise ConfigError(f"transforms must be for one of {known}, or several in a tuple, got {key!r}")
        if not callable(function):
            raise ConfigError(f"the transform for {key!r} must be a function of arrays, got {type(function).__name__}")
        found[names] = function
    return found


def transformed(batch: AnyBatch, transforms: Transforms) -> AnyBatch:
    """The batch as transforms make it, one after the other. Raises TransformError."""
    if not transforms:
        return batch
    held: dict[str, Any] = {PIXELS: batch.pixels, **batch.paired}
    for names, function in transforms.items():
        called = f"the transform for {' and '.join(names)}"
        try:
            result = function(*(held[name] for name in names))
        except Exception as error:
            raise TransformError(f"{called} raised {type(error).__name__}: {error}") from error
        arrays = (result,) if len(names) == 1 else result
        if len(names) > 1 and (not isinstance(arrays, (tuple, list)) or len(arrays) != len(names)):
            raise TransformError(f"{called} must return {len(names)} arrays, got {type(result).__name__}")
        for name, array in zip(names, arrays, strict=True):
            shape: tuple[int, ...] = tuple(getattr(array, "shape", ()))
            if not shape or shape[0] != len(batch):
                raise TransformError(f"{called} must return {len(batch)} rows of {name}, (n, …), got {_said(array)}")
            held[name] = array
    pixels = held.pop(PIXELS)
    return replace(batch, pixels=pixels, paired=held)


def _said(array: Any) -> str:
    shape = getattr(array, "shape", None)
    return type(array).__name__ if shape is None else f"shape {tuple(shape)}"
