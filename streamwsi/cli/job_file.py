"""Jobs as files.

In: TOML.  Out: a Job, or an error that names line and field; and the other way round.  Runs nothing.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec

from streamwsi.cli.job import CollectorJob, Job, PairedJob, anchored, choices_of, example_of, help_of, hints, job_of
from streamwsi.errors import ConfigError

_WIDTH = 100
_LIVE = ("slides", "out", "collector")
"""What the template sets; everything else stands in it as a comment."""
_HEADINGS = {
    "slides": "What is read, where it goes, and what makes the values",
    "kernel_size": "The window",
    "sampler": "Where to look",
    "format": "The files",
    "collectors": "How the work is done (results do not depend on it, but for batch_size)",
    "transport": "Between the processes",
}


def read_job(path: Path) -> Job:
    """The job in a file, its paths absolute: they are relative to the file.

    Raises ConfigError naming the line and the field of what cannot be.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a job: {getattr(error, 'strerror', None) or error}") from error
    try:
        values = _toml().loads(text)
    except _toml().TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        number = line[1] if line else len(text.splitlines())
        raise ConfigError(f"{path}, line {number}: this is not TOML: {error}") from error

    def where(names: tuple[str, ...]) -> str:
        line = line_of(text, names)
        return ", ".join([str(path), *([] if line is None else [f"line {line}"]), *([".".join(names)] if names else [])])

    return anchored(job_of(values, where), str(path.parent))


def line_of(text: str, names: tuple[str, ...]) -> int | None:
    """The line, counted from 1, where the field that these names lead to is given in a TOML document.

    It is the first line of the statement that ends where the document, read up to there, has the field.
    """
    lines = text.splitlines(keepends=True)
    start = 0
    if not names:
        return None
    for end in range(1, len(lines) + 1):
        try:
            value: Any = _toml().loads("".join(lines[:end]))
        except _toml().TOMLDecodeError:
            continue  # within a value of several lines
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            return start + 1
        start = end
    return None


def written(job: Job, heading: str) -> bytes:
    """A job as a file. Raises ConfigError where an argument has a value that TOML does not have."""
    import tomli_w

    values = {name: value for name in Job.__struct_fields__ if (value := getattr(job, name)) not in (None, {})}
    try:
        body = tomli_w.dumps(values)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the job cannot be written as a file: {error} (TOML has no null, and no such value within another); leave that "
            "argument of the collector out"
        ) from error
    return f"{_comment(heading)}\n{body}".encode()


def template() -> str:
    """A job with every field and what it means; those that need not be given are comments, with their defaults or examples."""
    parts = [
        _comment(
            "A job for 'streamwsi run'. Relative paths are relative to this file. A line that begins with '#' and a name shows "
            "the default, or, where the default depends on other things, an example: remove the '#' to set it."
        )
    ]
    for name in Job.__struct_fields__:
        if name in _HEADINGS:
            parts.append(f"## {_HEADINGS[name]}\n")
        if name not in ("arguments", "per_label", "paired"):  # tables: what stands below one belongs to it
            parts.append(_explained(Job, name, live=name in _LIVE))
    parts.append(f"{_comment(help_of(Job, 'per_label'))}#[per_label]\n#tumour = 500\n")
    parts.append(
        f"{_comment(help_of(Job, 'paired') + ' More of one is said in a table of its own.')}"
        + "#[paired]\n#labels = 'labels/{stem}.png'\n"
        + "##[paired.mask]\n"
        + "".join(_explained(PairedJob, name, False, "##") for name in PairedJob.__struct_fields__)
    )
    parts.append(f"{_comment(help_of(Job, 'arguments'))}#[arguments]\n#threshold = 0.5\n")
    parts.append(
        _comment(
            "Several collectors on one stream: a table of each, in place of 'collector' and '[arguments]' above. What a table "
            "does not say is as said above for all. Files of each go to a folder of its name in 'out'."
        )
        + "##[collectors.tissue]\n"
        + "".join(_explained(CollectorJob, name, False, "##") for name in CollectorJob.__struct_fields__ if name != "arguments")
        + "##[collectors.tissue.arguments]\n##threshold = 0.5\n"
    )
    return "\n".join(parts)


def _explained(kind: type[msgspec.Struct], name: str, live: bool, mark: str = "#") -> str:
    """A field with its comment."""
    choices = choices_of(hints(kind)[name])
    said = help_of(kind, name) + (f" One of {', '.join(map(str, choices))}." if choices else "")
    return f"{_comment(said)}{'' if live else mark}{name} = {_value(example_of(kind, name))}\n"


def _value(value: Any) -> str:
    """A value in one line."""
    import tomli_w

    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {_value(one)}' for name, one in value.items())} }}"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def _comment(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) + "\n"


def _toml() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib
    import tomli

    return tomli
