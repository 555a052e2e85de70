"""What regions need beyond what every installation has.

In: the name of a module.  Out: the module, or an error that says how to install it.
"""

from __future__ import annotations

import importlib
from typing import Any

from streamwsi.errors import ConfigError


def needed(module: str, what_for: str, install: str = "streamwsi[regions]") -> Any:
    """The module called `module`. Raises ConfigError, with the way out, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what_for} needs {module}, which is not installed: pip install '{install}'") from error
