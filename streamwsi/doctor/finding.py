"""What a check finds.

In: checks.  Out: findings, one for each.  A check that raises has found something wrong; it never ends the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import msgspec

State = Literal["ok", "note", "wrong"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check has found."""

    name: str
    """What was looked at."""
    state: State
    """``ok``; ``note``: it works, but there is something to know; ``wrong``: something will not work."""
    said: str
    """What was found."""
    remedy: str | None = None
    """What to do, where it is not ``ok``."""


class Check(NamedTuple):
    """Something to be looked at."""

    name: str
    look: Callable[[], tuple[State, str, str | None]]
    """Returns (state, what was found, what to do); whatever it raises is what is wrong."""
    remedy: str
    """What to do where it raises."""


Looked = tuple[State, str, str | None]
"""What the function of a check returns."""


def ok(said: str) -> Looked:
    """All is well."""
    return "ok", said, None


def note(said: str, remedy: str) -> Looked:
    """It works, but there is something to know."""
    return "note", said, remedy


def wrong(said: str, remedy: str) -> Looked:
    """Something will not work."""
    return "wrong", said, remedy


def carry_out(checks: Iterable[Check]) -> list[Finding]:
    """The findings of checks, in their order."""
    return [_found(check) for check in checks]


def _found(check: Check) -> Finding:
    try:
        state, said, remedy = check.look()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is wrong
        return Finding(name=check.name, state="wrong", said=f"{type(error).__name__}: {error}", remedy=check.remedy)
    return Finding(name=check.name, state=state, said=said, remedy=remedy)
