"""The fields of a job as options of the command line.

In: what a Job may hold.  Out: click's options; and from their values, a Job.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import PurePath
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import click
import msgspec

from streamwsi.cli.job import Job, choices_of, default_of, help_of, hints, job_of, path_fields
from streamwsi.cli.types import Colour, Numbers, Pair
from streamwsi.errors import ConfigError

OF_EACH = ("collectors", "devices", "batch_size")
"""Fields that may be given for each of several collectors, as NAME=VALUE."""
_NAMED = re.compile(r"([\w-]+)=(.*)", re.DOTALL)


def job_options(
    command: Callable[..., Any], without: Container[str] = (), changed: Mapping[str, dict[str, Any]] = MappingProxyType({})
) -> Callable[..., Any]:
    """Decorate a command with an option for every field of a job, and the argument SLIDES.

    `without` names fields that it does not take, `changed` what click is told otherwise of some.
    """
    for name in reversed(Job.__struct_fields__):
        if name == "slides":
            command = click.argument("slides", nargs=-1, required=True)(command)
        elif name not in without:
            command = click.option(option_name(name), name, **{**_option(name), **changed.get(name, {})})(command)
    return command


def option_name(field: str) -> str:
    """What the option of a field is called."""
    return "SLIDES" if field == "slides" else "--arg" if field == "arguments" else f"--{field.replace('_', '-')}"


def job_from_options(values: dict[str, Any]) -> Job:
    """The job that the values of options mean. Raises ConfigError naming the option that cannot be."""
    given = {name: value for name, value in values.items() if value not in (None, ())}
    given["slides"] = list(values["slides"])
    if "per_label" in given:
        given["per_label"] = _numbers_of(given["per_label"])
    if "paired" in given:
        given["paired"] = _named_values("--paired", given["paired"])
    for name in ("include", "exclude"):
        if name in given:
            given[name] = list(given[name])
    specs = [_split_spec(spec) for spec in given.pop("collector")]
    named = {name: value for name in (*OF_EACH, "arguments") if (value := given.pop(name, None))}
    if len(specs) == 1 and specs[0][0] is None:
        given["collector"] = specs[0][1]
        given["arguments"] = _arguments(named.pop("arguments", ()))
        for name, texts in named.items():
            given[name] = _value(name, texts[-1])
    else:
        given["collectors"] = _tables(specs, named)
        for name in ("batch_size", "devices"):
            of_all = [text for text in named.get(name, ()) if not _NAMED.fullmatch(text)]
            if of_all:
                given[name] = _value(name, of_all[-1])
    return job_of(given, _where)


def _where(names: tuple[str, ...]) -> str:
    """Where a field stands on the command line."""
    if not names:
        return "the command line"
    table = f" {': '.join(names[1:])}" if names[0] == "paired" else ""  # of an image, which is given as one value
    return option_name(names[0] if table else names[-1]) + table


def _tables(specs: list[tuple[str | None, str]], named: dict[str, Iterable[str]]) -> dict[str, dict[str, Any]]:
    """A table for each of several collectors."""
    tables: dict[str, dict[str, Any]] = {}
    for given_name, spec in specs:
        name = given_name or PurePath(spec.rpartition(":")[2]).stem
        if name in tables:
            raise ConfigError(f"--collector: two are called {name!r}; give each a name, as {name}_2={spec}")
        tables[name] = {"collector": spec, "arguments": {}}

    def table_of(name: str, option: str, text: str) -> dict[str, Any]:
        if name not in tables:
            raise ConfigError(f"{option} {text}: there is no collector {name!r}; there are {', '.join(tables)}")
        return tables[name]

    for pair in named.get("arguments", ()):
        name, dot, argument = pair.partition(".")
        if not dot or "=" in name:
            raise ConfigError(f"--arg {pair}: there are several collectors, say whose it is, as {next(iter(tables))}.{pair}")
        table_of(name, "--arg", pair)["arguments"].update(_arguments((argument,)))
    for field in OF_EACH:
        for text in named.get(field, ()):
            if found := _NAMED.fullmatch(text):
                table_of(found[1], option_name(field), text)[field] = _value(field, found[2])
            elif field == "collectors":
                for table in tables.values():
                    table.setdefault(field, _value(field, text))
    return tables


def _split_spec(text: str) -> tuple[str | None, str]:
    found = _NAMED.fullmatch(text)
    return (found[1], found[2]) if found else (None, text)


def _value(field: str, text: str) -> Any:
    if field == "devices":
        return [name.strip() for name in text.split(",") if name.strip()] or [""]  # which is refused
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else text


def _numbers_of(given: Iterable[str]) -> dict[str, int]:
    """LABEL=NUMBER pairs."""
    numbers = {}
    for pair in given:
        label, separator, number = pair.rpartition("=")
        if not separator or not label or not number.isdecimal():
            raise ConfigError(f"--per-label takes LABEL=NUMBER, got {pair!r}")
        numbers[label] = int(number)
    return numbers


def _arguments(given: Iterable[str]) -> dict[str, Any]:
    return _named_values("--arg", given)


def _named_values(option: str, given: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value that is JSON (a number, true, a list) is that, any other is a string."""
    arguments: dict[str, Any] = {}
    for pair in given:
        name, separator, value = pair.partition("=")
        if not separator or not name.isidentifier():
            raise ConfigError(f"{option} takes NAME=VALUE, got {pair!r}")
        try:
            arguments[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            arguments[name] = value
    return arguments


def _option(field: str) -> dict[str, Any]:
    """What click is told of a field's option."""
    said, default = help_of(Job, field), default_of(Job, field)
    if field in ("collector", "arguments", *OF_EACH):
        return _repeatable(field, said)
    if field == "per_label":
        return {"multiple": True, "metavar": "LABEL=NUMBER", "help": f"{said} Repeatable."}
    if field == "paired":
        return {"multiple": True, "metavar": "NAME=PATH", "help": f"{said} Repeatable; or NAME= a table of a job file as JSON."}
    if field in ("include", "exclude"):
        return {"multiple": True, "metavar": "LABEL", "help": f"{said} Repeatable."}
    hint = _without_none(hints(Job)[field])
    option: dict[str, Any] = {"help": said}
    if default is msgspec.NODEFAULT:
        option["required"] = True
    elif default is not None and hint is not bool:
        option |= {"default": default, "show_default": True}
    if hint is bool:
        return {**option, "is_flag": True}
    if choices := choices_of(hint):
        return {**option, "type": click.Choice(choices)}
    if field == "background":
        return {**option, "type": Colour(), "help": f"{said.rstrip('.')}; or #RRGGBB."}
    if field == "shards":
        return {**option, "type": click.STRING, "metavar": "NUMBER|SIZE"}
    if field in path_fields():
        return {**option, "type": click.Path()}
    if get_origin(hint) in (Union, UnionType):
        return {**option, "type": Pair()}
    if get_origin(hint) is list:
        return {**option, "type": Numbers(_without_none(get_args(hint)[0]))}
    kind: Any = {int: click.INT, float: click.FLOAT, str: click.STRING}[hint]
    return {**option, "type": kind}


def _repeatable(field: str, said: str) -> dict[str, Any]:
    """Options that may be given for each of several collectors."""
    if field == "arguments":
        return {
            "multiple": True,
            "metavar": "[COLLECTOR.]NAME=VALUE",
            "help": "Given to the collector's constructor; repeatable.",
        }
    if field == "collector":
        said += " Repeatable, also as NAME=SPEC: each has its files in a folder of its name."
        return {"multiple": True, "required": True, "metavar": "[NAME=]SPEC", "help": said}
    if field == "devices":
        return {"multiple": True, "metavar": "[COLLECTOR=]NAMES", "help": said}
    return {"multiple": True, "metavar": "[COLLECTOR=]INTEGER", "help": said}


def _without_none(hint: Any) -> Any:
    """The type behind what is said of it, and without None."""
    if get_origin(hint) is Annotated:
        return _without_none(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        return _without_none(kinds[0]) if len(kinds) == 1 else hint
    return hint
