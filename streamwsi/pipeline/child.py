"""What a worker process runs: the main loop of its role.

In: its place in the run, over standard input.  Out: an exit code.

Standard input stays open for as long as the driver lives: its end is how a child learns, whatever kills the driver, that it
is alone. A child then removes the run's sockets and ends at once; what it had not committed is done again by a later run.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import traceback
from typing import IO, Any, BinaryIO, Literal

import msgspec

from streamwsi.wire.channels import Address, remove_address
from streamwsi.wire.seat import USERS_ERRORS, Seat, UserCodeError
from streamwsi.wire.shared_memory import SharedSlots, SlotsSpec

Role = Literal["loader", "collector", "writer", "publisher"]
ROLES: tuple[Role, ...] = ("loader", "collector", "writer", "publisher")
_EXIT_FAILED = 1
_EXIT_ALONE = 70


class Startup(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is told over its standard input."""

    role: Role
    name: str
    address: Address
    options: bytes
    """The options of its role, encoded: only that role's modules are imported."""
    level: int = 0
    shipped: bytes | None = None
    """The collector; for a loader what chooses resolutions and windows, where that is more than a number; encoded too."""
    locks: tuple[int, ...] = ()
    """Descriptors of its folders' locks, held while this process lives, and not by those that the user's code starts."""
    box: int | None = None
    """The descriptor of its notes on what it is doing."""
    slots: SlotsSpec | None = None
    """The shared memory that pixels go through; None: they go through sockets."""

    def descriptors(self) -> list[int]:
        """The descriptors that it inherits."""
        found = (*self.locks, self.box, None if self.slots is None else self.slots.descriptor)
        return [descriptor for descriptor in found if descriptor is not None]


def write_startup(startup: Startup, pipe: IO[bytes]) -> None:
    """Tell a child what it is."""
    data = msgspec.msgpack.encode(startup)
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def main() -> None:
    """Serve in the role that standard input says."""
    faulthandler.enable()
    _take_no_signals()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    pipe = _private_stdin()
    length = int.from_bytes(_read(pipe, 8), "little")
    data = _read(pipe, length)
    if not length or len(data) < length:
        sys.exit(_EXIT_ALONE)
    startup = msgspec.msgpack.decode(data, type=Startup)
    for descriptor in startup.descriptors():
        os.set_inheritable(descriptor, False)
    _let_go_at_fork(startup.locks)
    threading.Thread(target=_end_when_alone, args=(pipe, startup.address), name="driver-watch", daemon=True).start()
    try:
        seat = Seat(startup.address, startup.name, startup.box)
    except BaseException:  # noqa: BLE001 - there is no other way to tell
        traceback.print_exc()
        _exit(_EXIT_FAILED)
    try:
        with seat:
            _serve(seat, startup)
    except BaseException:  # noqa: BLE001 - the seat has told the driver, who shows it
        _exit(_EXIT_FAILED)
    _exit(0)


def _take_no_signals() -> None:
    """Do nothing when a terminal's Ctrl-C or a cluster's signal reaches all processes: the driver decides.

    Ctrl-C is ignored, by what the user's code starts too: it may be needed for what is in work. SIGTERM is not: programs end
    those that they have started with it, and would wait for them in vain.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _do_nothing)
    if hasattr(signal, "siginterrupt"):
        signal.siginterrupt(signal.SIGTERM, False)


def _do_nothing(number: int, frame: object) -> None:
    pass


def _let_go_at_fork(locks: tuple[int, ...]) -> None:
    """What the user's code forks off ends when it is told to, at once too, and does not keep the run's folders."""
    if not hasattr(os, "register_at_fork"):
        return
    of_thread, held = threading.local(), list(locks)

    def hold() -> None:
        of_thread.mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))

    def go_on() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, of_thread.mask)

    def let_go() -> None:
        if signal.getsignal(signal.SIGTERM) is _do_nothing:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while held:  # once: what it forks off in turn may have other files of these numbers
            with contextlib.suppress(OSError):
                os.close(held.pop())
        go_on()

    os.register_at_fork(before=hold, after_in_parent=go_on, after_in_child=let_go)


def _read(pipe: BinaryIO, n_bytes: int) -> bytes:
    """So many bytes, fewer only where the pipe ends: one read gives no more than the pipe holds (64 KiB on Linux)."""
    data = bytearray()
    while len(data) < n_bytes and (part := pipe.read(n_bytes - len(data))):
        data += part
    return bytes(data)


def _serve(seat: Seat, startup: Startup) -> None:
    """Run the main loop of a role. What the others need is not imported: that takes time."""
    shipped: Any = None if startup.shipped is None else _unshipped(startup)
    if startup.role == "loader":
        from streamwsi.loading.main import run_loader
        from streamwsi.loading.resolution import Wanted
        from streamwsi.loading.resolve import Choices, ReadingOptions

        reading = msgspec.msgpack.decode(startup.options, type=ReadingOptions)
        run_loader(seat, reading, Choices(Wanted(startup.level)) if shipped is None else shipped, _slots(startup))
    elif startup.role == "collector":
        from streamwsi.collecting.main import CollectingOptions, run_collector

        collecting = msgspec.msgpack.decode(startup.options, type=CollectingOptions)
        run_collector(seat, collecting, shipped, _slots(startup))
    else:
        from streamwsi.writing.main import WritingOptions, run_publisher, run_writer

        writing = msgspec.msgpack.decode(startup.options, type=WritingOptions)
        if startup.role == "writer":
            run_writer(seat, writing)
        else:
            run_publisher(seat, writing, shipped)


def _unshipped(startup: Startup) -> Any:
    from streamwsi.collecting.spec import Shipped, unship

    try:
        return unship(msgspec.msgpack.decode(startup.shipped or b"", type=Shipped))
    except USERS_ERRORS as error:
        what = "what chooses resolutions and windows" if startup.role == "loader" else "the collector"
        raise UserCodeError(f"loading {what}") from error


def _slots(startup: Startup) -> SharedSlots | None:
    if startup.slots is None:
        return None
    slots = SharedSlots(startup.slots)
    os.close(startup.slots.descriptor)  # the mapping has its own
    return slots


def _private_stdin() -> BinaryIO:
    """Standard input, moved away from the user's code, which then finds it empty; what it prints goes to standard error."""
    pipe = os.fdopen(os.dup(0), "rb", buffering=0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return pipe


def _end_when_alone(pipe: BinaryIO, address: Address) -> None:
    while pipe.read(4096):
        pass
    remove_address(address)
    os._exit(_EXIT_ALONE)


def _exit(code: int) -> None:
    """End without waiting for threads that the user's code may have left behind."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
