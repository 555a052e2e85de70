"""What every worker process has: a name, its sockets to the driver, and a clock; and how it reports that it cannot go on.

In: control messages.  Out: control messages.  Knows nothing of what the worker does.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from streamwsi.wire.blackbox import BlackBox
from streamwsi.wire.channels import Address, Context, ControlClient
from streamwsi.wire.messages import Clock, Hello, StillAtWork, WorkerFailed

_SIGN_EVERY_S = 0.5
"""How often a worker says that it is still at it."""


USERS_ERRORS = (Exception, SystemExit, KeyboardInterrupt)
"""What is the user's code's to answer for when it comes from there."""


class UserCodeError(Exception):
    """The user's code raised; the cause is its exception, the message says what was being done."""


class Stopwatch:
    """Adds up where a worker's time goes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._spent = {"busy": 0.0, "wait_input": 0.0, "wait_output": 0.0}
        self._spending: tuple[str, float] | None = None
        """What is being counted, since when."""

    @contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the block's time as ``busy``, ``wait_input`` or ``wait_output``."""
        begun = time.monotonic()
        self._spending = kind, begun
        try:
            yield
        finally:
            self._spending = None
            self._spent[kind] += time.monotonic() - begun

    def add(self, kind: str, seconds: float) -> None:
        """Count time that was measured elsewhere."""
        self._spent[kind] += seconds

    def read(self) -> Clock:
        """What has been counted so far, what is under way included; and what the worker's sockets have refused."""
        spent = dict(self._spent)
        if self._spending is not None:
            kind, begun = self._spending
            spent[kind] += time.monotonic() - begun
        return Clock(spent["busy"], spent["wait_input"], spent["wait_output"], self._context.refused)


class Seat:
    """A worker's place in the run. Leaving it with an exception tells the driver; leaving it closes all sockets."""

    def __init__(self, address: Address, name: str, box: int | None = None) -> None:
        self.name = name
        self.doing = BlackBox(box)
        self.context = Context(address)
        self.control = ControlClient(self.context, name)
        self.clock = Stopwatch(self.context)
        self._failed = False

    def ready(self, endpoint: str = "") -> None:
        """Tell the driver that this worker is set up, and where it takes data."""
        self.control.send(Hello(os.getpid(), endpoint))

    def fail(self, error: BaseException) -> None:
        """Tell the driver of an exception that will end this worker; it is told once."""
        if not self._failed:
            self._failed = True
            self.control.send(failure(error))

    def __enter__(self) -> Seat:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.fail(error)
        self.control.close()
        # Not destroyed: what was sent last has two seconds to leave.
        self.context.finish()


class Signs:
    """Tells the driver, now and then, that something goes on that may rightly take longer than a stall."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._given = time.monotonic()

    def give(self) -> None:
        """A part of it was done."""
        if time.monotonic() - self._given > _SIGN_EVERY_S:
            self._given = time.monotonic()
            self._seat.control.send(StillAtWork(self._seat.clock.read()))


def failure(error: BaseException) -> WorkerFailed:
    """What the driver is told of an exception: the user's with the user's frames only, ours in full."""
    if isinstance(error, UserCodeError) and error.__cause__ is not None:
        cause = error.__cause__
        frames = cause.__traceback__
        while frames is not None and frames.tb_next is not None and _is_ours(frames):
            frames = frames.tb_next
        text = "".join(traceback.format_exception(type(cause), cause, frames))
        return WorkerFailed(str(error), _one_line(cause), text, user_code=True)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return WorkerFailed("", _one_line(error), text, user_code=False)


def _is_ours(frame: TracebackType) -> bool:
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return frame.tb_frame.f_code.co_filename.startswith(package + os.sep)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
