"""How a collector gets from the user's process into its own.

In: a collector (or where one is found).  Out: bytes for a child's standard input, and the collector again on the other side.

Classes of importable modules travel by name, those of scripts, notebooks and REPLs by value (cloudpickle). A collector
named by file path is loaded from that file in the child too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import msgspec

from streamwsi.collecting.collector import StreamCollector
from streamwsi.collecting.models import MODELS
from streamwsi.collecting.ready_made import READY_MADE
from streamwsi.errors import ConfigError


class Shipped(msgspec.Struct, frozen=True):
    """An object on its way to a child."""

    pickled: bytes
    files: tuple[str, ...]
    """Modules that were loaded from a file, to be loaded again before unpickling."""


def ship(thing: Any, what: str) -> Shipped:
    """`thing` as bytes. Raises ConfigError naming the attribute that cannot be serialised."""
    try:
        with _by_value(_unimportable(thing)):
            return Shipped(cloudpickle.dumps(thing), tuple(_loaded_files))
    except Exception as error:
        culprit = _culprit(thing)
        raise ConfigError(
            f"{what} cannot be sent to its process: {culprit or type(thing).__name__} cannot be serialised ({error}); "
            f"create such things in setup(), which runs there"
        ) from error


def unship(shipped: Shipped) -> Any:
    """The object again. Only ever fed from a child's own standard input."""
    for file in shipped.files:
        load_file(Path(file))
    return cloudpickle.loads(shipped.pickled)


def find_collector(name: str, arguments: dict[str, Any] | None = None) -> StreamCollector:
    """A collector by its ready-made name, as a model's file (``torchscript:model.pt``, ``export:model.pt2``), or as a class:
    ``file.py:Class`` or ``package.module:Class``.

    Raises ConfigError when there is none, saying which there are.
    """
    arguments = arguments or {}
    if ":" not in name:
        if name not in READY_MADE:
            known = ", ".join(sorted(READY_MADE))
            raise ConfigError(
                f"there is no collector {name!r}; there are {known}, a model as torchscript:model.pt or export:model.pt2, or "
                "your own as my_model.py:MyCollector"
            )
        return _given(_made(name, READY_MADE[name], arguments), arguments)
    kind, _, path = name.partition(":")
    if kind in MODELS:  # which says itself what of its arguments decides the results: where its files lie does not
        return _made(name, partial(MODELS[kind], path), arguments)
    source, _, class_name = name.rpartition(":")
    if source.endswith(".py"):
        if not Path(source).is_file():
            raise ConfigError(f"collector {name!r}: there is no file {source}")
        module = load_file(Path(source))
    else:
        try:
            module = importlib.import_module(source)
        except ImportError as error:
            raise ConfigError(f"collector {name!r}: module {source} cannot be imported: {error}") from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, StreamCollector)):
        there = [key for key, value in vars(module).items() if _is_collector(value)]
        raise ConfigError(
            f"collector {name!r}: {source} has no subclass of StreamCollector called {class_name!r}; "
            f"it has {', '.join(there) or 'none at all'}"
        )
    return _given(_made(name, found, arguments), arguments)


def _made(name: str, make: Callable[..., StreamCollector], arguments: dict[str, Any]) -> StreamCollector:
    try:
        return make(**arguments)
    except TypeError as error:
        raise ConfigError(f"collector {name!r} cannot be made with arguments {arguments}: {error}") from error


def _given(collector: StreamCollector, arguments: dict[str, Any]) -> StreamCollector:
    collector.given_arguments = arguments
    return collector


def load_file(path: Path) -> ModuleType:
    """The module in a file, with its folder importable, as a script has it; loaded once for each file."""
    path = Path(os.path.abspath(path))
    name = f"{path.stem}_{hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()}"
    if str(path) in _loaded_files:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be loaded as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _loaded_files.append(str(path))
    return module


_loaded_files: list[str] = []
"""Files loaded in this process: a register like `sys.modules`, which has no place for a module's file as its key."""


def collector_name(collector: StreamCollector) -> str:
    """What a collector is called in reports: its class's name, with its module's where that is importable."""
    kind = type(collector)
    for name, known in {**READY_MADE, **MODELS}.items():
        if kind is known:
            return name
    return kind.__qualname__.replace("<locals>.", "")


def collector_arguments(collector: StreamCollector) -> dict[str, Any]:
    """The attributes that a collector says decide its results, and what it was made with by name, as plain values."""
    values = {}
    named = {name: getattr(collector, name, None) for name in type(collector).arguments}
    for name, value in {**named, **collector.given_arguments}.items():
        values[name] = value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
    return values


def source_hash(collector: StreamCollector) -> str | None:
    """A hash of the source of a collector's class; None where it has none (a REPL)."""
    try:
        source = inspect.getsource(type(collector))
    except (OSError, TypeError):
        return None
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()


def _unimportable(thing: Any) -> list[ModuleType]:
    """Modules of `thing`'s classes that no child can import by name (made by runpy or a test runner, say)."""
    names = {kind.__module__ for kind in type(thing).__mro__} | {getattr(thing, "__module__", "builtins")}
    found = []
    for name in names - {"__main__", "builtins"}:
        module = sys.modules.get(name)
        loaded_here = getattr(module, "__file__", None) in _loaded_files
        try:
            known = loaded_here or importlib.util.find_spec(name) is not None
        except (ValueError, ImportError):  # it has no spec, or its parent is gone
            known = False
        if module is not None and not known:
            found.append(module)
    return found


@contextmanager
def _by_value(modules: list[ModuleType]) -> Iterator[None]:
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _is_collector(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, StreamCollector) and value is not StreamCollector


def _culprit(thing: Any) -> str | None:
    """The attribute of `thing` that cannot be serialised."""
    for name, value in getattr(thing, "__dict__", {}).items():
        try:
            cloudpickle.dumps(value)
        except Exception:  # noqa: BLE001 - that it fails is the answer
            return f"attribute {name!r} ({type(value).__name__})"
    return None
