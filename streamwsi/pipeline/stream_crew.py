"""The loaders of a stream, and what lies between them and the user's process: sockets and shared memory.

In: what is to be read.  Out: what loaders say, and big chunks.  Decides nothing.

A crew belongs to the process that made it: one that was forked from that leaves it alone.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from streamwsi.chunks import BigChunk, UInt8Array
from streamwsi.config import Transport
from streamwsi.pipeline.child import Startup
from streamwsi.pipeline.processes import Processes, Worker
from streamwsi.pipeline.reading import LoaderStartup
from streamwsi.pipeline.slots import Slots
from streamwsi.resolved import ResolvedSlide
from streamwsi.wire import messages
from streamwsi.wire.blackbox import make_box
from streamwsi.wire.channels import Address, Context, ControlServer, DataInput, Poll, Wakeup, make_address, remove_address
from streamwsi.wire.messages import Message, PatientRef
from streamwsi.wire.shared_memory import SharedSlots, SlotsError, SlotsSpec, can_be_shared, make_slots, reserve_slots

_USER = "user"
"""Who holds the slots that the user's process has."""
_CHUNK_SLACK_BYTES = 1 << 20
_ANY_CHUNK_BYTES = 1 << 30
"""What a data socket takes at least: it drops who sends it more."""


@dataclass(frozen=True, kw_only=True)
class CrewOptions:
    """What a crew is made of."""

    loaders: int
    startup: LoaderStartup
    transport: Transport
    n_slots: int
    chunk_bytes: int
    """What a slot is to hold."""


class Crew:
    """Running loaders. Closing it ends them, at once, and may be done twice."""

    def __init__(self, options: CrewOptions) -> None:
        """Start them. Raises ConfigError where there can be no sockets."""
        self._options = options
        self._pid = os.getpid()
        self._closed = False
        self._spec: SlotsSpec | None = None
        self._memory: SharedSlots | None = None
        self._slots = Slots(0)
        self._kept: dict[int, weakref.ref[UInt8Array]] = {}
        """Slots that lie in the user's hands, by lease."""
        self._returned: deque[int] = deque()
        """Those of them that nobody holds any more."""
        self._workers: dict[str, Worker] = {}
        self.warning: str | None = None
        """Why there is no shared memory, where it was wanted."""
        self.leases = itertools.count()
        """Numbers for what is ordered; none is given twice, by whatever passes the crew serves."""
        self._wakeup = Wakeup()
        self._processes = Processes(self._wakeup.set)
        self._address: Address | None = None
        self._context: Context | None = None
        try:
            address = self._address = make_address(options.transport)
            context = self._context = Context(address)
            self._control = ControlServer(context)
            self._data = DataInput(context, _USER, max(options.chunk_bytes + _CHUNK_SLACK_BYTES, _ANY_CHUNK_BYTES))
            self._address = msgspec.structs.replace(address, driver=self._control.endpoint)
            self._poll = Poll(self._control, self._data, self._wakeup)
            self._make_slots()
            for number in range(options.loaders):
                self._start(number, 1)
            self._reserve_slots()  # which takes a while, in which they start
        except BaseException:
            self.close()
            raise

    @property
    def transport(self) -> str:
        """What pixels go through: ``shm``, ``ipc`` or ``tcp``."""
        return self._sockets().transport if self._memory is None else "shm"

    @property
    def is_ours(self) -> bool:
        """It was made in this process, not in one that this was forked from."""
        return self._pid == os.getpid()

    @property
    def is_open(self) -> bool:
        """It can be used."""
        return self.is_ours and not self._closed

    @property
    def ready(self) -> list[str]:
        """Names of the loaders that are set up."""
        return [worker.name for worker in self._workers.values() if worker.ready]

    # ---- speaking and hearing

    def tell(self, name: str, message: Message) -> None:
        """Tell a loader. One that cannot be reached has ended, which is noticed and handled as such."""
        self._control.send(name, message)

    def tell_all(self, message: Message) -> None:
        """Tell every loader."""
        for name in self.ready:
            self.tell(name, message)

    def read(self, name: str, lease: int, slide: ResolvedSlide, chunk: int) -> None:
        """Have a loader read a chunk, into a slot if one is free."""
        self._return_slots()
        slot = None if self._memory is None else self._slots.take(lease, name)
        self.tell(name, messages.ReadChunk(lease, slide.for_chunk(chunk), chunk, slot))

    def send(self, name: str, lease: int, patient: PatientRef) -> None:
        """Have a loader send a chunk that lies in no slot."""
        self._slots.unread(lease)
        self.tell(name, messages.SendChunk(lease, self._data.endpoint, "", patient))

    def drop(self, name: str, lease: int) -> None:
        """A chunk that was ordered is not wanted any more."""
        self._slots.drop(lease)
        self.tell(name, messages.DropChunk(lease))

    def not_read(self, lease: int) -> None:
        """A loader has read nothing into a slot, or nothing that is wanted."""
        self._slots.unread(lease)

    def in_slot(self, message: messages.ChunkRead, resolved: ResolvedSlide, chunk: int) -> BigChunk:
        """A chunk that lies in its slot, which is free again once nobody, in whatever thread, holds any of its pixels."""
        lease, slot = message.lease, self._slots.slot_of(message.lease)
        if self._memory is None or slot is None:
            raise RuntimeError(f"chunk {chunk} of slide {resolved.id!r} was said to lie in a slot, and has none")
        self._slots.filled(lease, message.skipped)
        skipped = self._slots.pass_on(lease, _USER)
        memory = self._memory.slot(slot)
        returned, wakeup = self._returned, self._wakeup

        def let_go(_: object) -> None:
            returned.append(lease)
            wakeup.set()

        self._kept[lease] = weakref.ref(memory, let_go)
        big = resolved.blank_chunk(chunk, memory)
        if skipped:
            big.skipped[...] = np.frombuffer(skipped, np.bool_)
        return big

    def hear(self) -> Iterator[tuple[Worker, Any]]:
        """What loaders have said since this was last asked."""
        for name, message in self._control.receive():
            worker = self._workers.get(name)
            if worker is None:
                continue  # it was replaced; what it held is done again
            if isinstance(message, messages.Hello):
                worker.ready = True
            yield worker, message

    def chunks(self) -> Iterator[tuple[messages.Chunk, list[memoryview]]]:
        """Chunks that have come through sockets."""
        for message, payload in self._data.receive():
            if isinstance(message, messages.Chunk):
                yield message, payload

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when there may be something to hear, or a loader has ended, or a slot has come back."""
        self._poll.wait(timeout_s)
        self._return_slots()

    def wake(self) -> None:
        """Have a wait return, in whatever thread it is."""
        self._wakeup.set()

    def ended(self) -> list[tuple[Worker, int]]:
        """Loaders that have ended, with their exit codes. They are still heard: what they said last may be on its way."""
        return self._processes.ended()

    def remove(self, gone: Worker) -> None:
        """Hear a loader that has ended no more."""
        self._workers.pop(gone.name, None)

    def replace(self, gone: Worker) -> None:
        """Start another in the place of a loader that has ended."""
        self._slots.holder_went(gone.name)
        self._start(gone.number, int(gone.name.rpartition(".")[2]) + 1)

    def close(self) -> None:
        """End the loaders and close the sockets. Pixels that the user holds stay."""
        if not self.is_open:
            return
        self._closed = True
        try:
            self._processes.kill_all()
        finally:
            if self._context is not None:
                self._context.close()
            if self._address is not None:
                remove_address(self._address)
            self._wakeup.close()
            self._memory = None
            if self._spec is not None:
                os.close(self._spec.descriptor)

    # ---- starting

    def _start(self, number: int, incarnation: int) -> None:
        name = f"loader-{number}.{incarnation}"
        loader = self._options.startup
        startup = Startup(
            role="loader",
            name=name,
            address=self._sockets(),
            options=msgspec.msgpack.encode(loader.reading),
            level=loader.level,
            shipped=None if loader.choices is None else msgspec.msgpack.encode(loader.choices),
            box=make_box(),
            slots=self._spec,
        )
        self._workers[name] = self._processes.start(startup, number, 0)

    def _make_slots(self) -> None:
        if not can_be_shared(self._options.transport):
            return
        try:
            self._spec = make_slots(self._options.n_slots, self._options.chunk_bytes)
        except SlotsError as error:
            self._without_slots(error)

    def _reserve_slots(self) -> None:
        if self._spec is None:
            return
        try:
            reserve_slots(self._spec)
            self._memory = SharedSlots(self._spec)
        except (SlotsError, OSError) as error:
            self._without_slots(error)
            return
        self._slots = Slots(self._spec.count)

    def _without_slots(self, error: Exception) -> None:
        self.warning = f"no shared memory: {error}; pixels go through {self._sockets().transport} sockets"

    def _sockets(self) -> Address:
        if self._address is None:
            raise RuntimeError("the crew has no sockets yet")
        return self._address

    def _return_slots(self) -> None:
        while self._returned:
            lease = self._returned.popleft()
            del self._kept[lease]
            self._slots.give_back(lease, _USER)
