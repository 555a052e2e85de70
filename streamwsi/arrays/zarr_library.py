"""The Zarr library, which is an extra.

In: what it is needed for.  Out: the module, or an error that says how to install it.
"""

from __future__ import annotations

import importlib
from typing import Any

from streamwsi.errors import ConfigError


def needed_zarr(what_for: str) -> Any:
    """The module ``zarr``. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module("zarr")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what_for} needs Zarr, which is not installed: pip install 'streamwsi[zarr]'") from error


def zarr_major() -> int:
    """The major version of the library: 2 reads and writes version 2 of the format only."""
    return int(str(needed_zarr("this").__version__).partition(".")[0])
