"""Names of image files, and comments, made from a template.

In: a template such as ``{slide}_x{x}_y{y}`` and what is known of a window.  Out: text.  Never touches a file.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from streamwsi.errors import ConfigError, OutputError

FIELDS: dict[str, str | int] = {
    "patient": "p",
    "slide": "s",
    "index": 0,
    "x": 0,
    "y": 0,
    "level": 0,
    "width": 1,
    "height": 1,
    "label": "",
    "resolution": 0,
}
"""What a template may name, each with a value of its type."""
LONGEST_BYTES = 255
"""Of a name, on most file systems."""
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\<>:"|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Source: Microsoft, "Naming Files, Paths, and Namespaces"."""


def check_template(template: Any, what: str) -> None:
    """Raise ConfigError when `template` is no format string of :data:`FIELDS`; `what` names it in the message."""
    for name in fields_of(template, what):
        if name not in FIELDS:
            raise ConfigError(f"{what} {template!r}: there is no field {{{name}}}; there are {', '.join(FIELDS)}")
    try:
        template.format(**FIELDS)
    except (ValueError, IndexError, KeyError) as error:
        raise ConfigError(f"{what} {template!r} cannot be filled in: {error}") from error


def check_name(template: Any) -> None:
    """Raise ConfigError when names made of `template` cannot be file names, or are the same for windows of one slide."""
    check_template(template, "name")
    named = fields_of(template, "name")
    if "index" not in named and not {"x", "y"} <= set(named):
        raise ConfigError(
            f"name {template!r} is the same for different windows of a slide: it must hold {{index}}, or {{x}} and {{y}}"
        )
    if why := unfit(template.format(**FIELDS)):
        raise ConfigError(f"name {template!r} makes no file names: {why}")


def fields_of(template: Any, what: str) -> list[str]:
    """The fields that a template names, in order. Raises ConfigError when it is no template."""
    if not isinstance(template, str):
        raise ConfigError(f"{what} must be text, got {template!r}")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{what} {template!r} is no template: {error}") from error
    for _, name, spec, conversion in parts:
        if conversion or (spec and "{" in spec):
            raise ConfigError(f"{what} {template!r}: write {{{name}}}, or {{{name}:06}} for a number of six digits")
    return [name for _, name, _, _ in parts if name is not None]


def quoted(label: str) -> str:
    """A label as a part of names, whatever is in it; different labels stay different: ``%2F`` stands for a slash."""
    kept = re.sub(f"%|{_FORBIDDEN.pattern}|^[. ]|[. ]$", lambda found: f"%{ord(found[0]):02X}", label)
    return f"%{ord(kept[0]):02X}{kept[1:]}" if _RESERVED.fullmatch(kept) else kept


def filled(template: str, values: Mapping[str, Any]) -> str:
    """The template with the values of a window; of its label as it is in names."""
    return template.format(**{**values, "label": quoted(values["label"])})


def unfit(name: str) -> str:
    """Why `name` cannot name a file on every system; empty when it can."""
    if found := _FORBIDDEN.search(name):
        return f"it holds {found.group()!r}"
    if not name or name.startswith(".") or name.endswith((".", " ")):
        return "it is empty, begins with a dot, or ends with a dot or a space"
    if _RESERVED.fullmatch(name):
        return "Windows reserves it"
    if (length := len(name.encode("utf-8", "surrogateescape"))) > LONGEST_BYTES:
        return f"it has {length} bytes, {LONGEST_BYTES} are the most"
    return ""


def fit(name: str, what: str) -> str:
    """`name`, if it can name a file; else OutputError, in which `what` says whose it is."""
    if why := unfit(name):
        raise OutputError(f"{what}: {name!r} cannot name a file: {why}; choose another name= for the images")
    return name
