"""What options take that click has no type for.

In: text of the command line.  Out: values.
"""

from __future__ import annotations

import re
from typing import Any

import click


class Pair(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """An int, or two as 256x128 or 256,128."""

    name = "pixels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, (int, tuple)):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).replace("x", ",").split(","))
        except ValueError:
            self.fail(f"{value!r} is neither a number of pixels nor two, as 256x128", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Numbers as 0.5,2."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, list):
            return value
        try:
            return [self._kind(part) for part in str(value).split(",")]
        except ValueError:
            whole = "whole " if self._kind is int else ""
            self.fail(f"{value!r} is not a list of {whole}numbers, as {'0,1' if whole else '0.5,2'}", param, ctx)


class Colour(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A colour as R,G,B or #RRGGBB."""

    name = "colour"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            if value.startswith("#") and len(value) == 7:
                return tuple(bytes.fromhex(value[1:]))
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is neither R,G,B nor #RRGGBB", param, ctx)


def channel_of(text: str) -> int | str:
    """A channel as it is given: its number, or its name."""
    return int(text) if re.fullmatch("[0-9]+", text) else text
