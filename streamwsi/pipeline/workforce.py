"""The workers of a run: started, replaced, told things, watched for stalls, stopped.

In: a job, and where its sockets are.  Out: messages to workers.  Knows who is alive, not what is to be done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import msgspec

from streamwsi.collecting.spec import Shipped
from streamwsi.pipeline.child import ROLES, Role, Startup
from streamwsi.pipeline.job import Job
from streamwsi.pipeline.processes import Processes, Worker
from streamwsi.pipeline.scheduler import Scheduler, SlideKey, Suspect
from streamwsi.wire import messages
from streamwsi.wire.blackbox import make_box
from streamwsi.wire.channels import Address, ControlServer
from streamwsi.wire.messages import Message
from streamwsi.wire.shared_memory import SlotsSpec

_STOP_TIMEOUT_S = 5.0
"""How long workers may take to end once they are told to."""


class Workforce:
    """All workers of a run, by name."""

    def __init__(
        self,
        job: Job,
        processes: Processes,
        control: ControlServer,
        address: Address,
        lock: int | None,
        slots: SlotsSpec | None,
    ) -> None:
        self._job = job
        self._processes = processes
        self._control = control
        self._address = address
        self._lock = lock
        self._slots = slots
        self._workers: dict[str, Worker] = {}

    def start_all(self) -> None:
        """Start as many of each role as were asked for."""
        execution = self._job.execution
        counts: dict[Role, int] = {  # those first without whom the others have nothing to do
            "loader": execution.loaders,
            "writer": execution.writers,
            "collector": execution.collectors,
            "publisher": 1,
        }
        for role, count in counts.items():
            for number in range(count):
                devices = execution.devices if role == "collector" else ()
                self._start(role, number, 1, devices[number % len(devices)] if devices else None)

    def replace(self, gone: Worker) -> None:
        """Start another in the place of one that has ended, and let the others know that nobody listens there any more."""
        if gone.endpoint:
            for other in self._workers.values():
                self.tell(other.name, messages.EndpointGone(gone.endpoint))
        self._start(gone.role, gone.number, int(gone.name.rpartition(".")[2]) + 1, gone.device)

    def remove(self, worker: Worker) -> None:
        """A worker has ended."""
        del self._workers[worker.name]

    def get(self, name: str) -> Worker | None:
        """The worker of that name, if it is one of those that live."""
        return self._workers.get(name)

    def of_role(self, role: Role) -> list[Worker]:
        """The workers of a role."""
        return [worker for worker in self._workers.values() if worker.role == role]

    def endpoint(self, name: str) -> str:
        """Where a worker takes data."""
        return self._workers[name].endpoint

    def tell(self, name: str, message: Message) -> None:
        """Tell a worker. One that cannot be reached has ended, which is noticed and handled as such."""
        self._control.send(name, message)

    def stop(self, wait: Callable[[float], bool], hurry: bool) -> None:
        """Tell all to stop, and wait until they have; those that do not in time are killed by the caller.

        `wait` is given the seconds that are left, returns when something may have happened, and says whether to wait on.
        """
        for worker in self._workers.values():
            worker.told_to_stop = True
            if not (worker.ready and self._control.send(worker.name, messages.Stop())):
                worker.process.kill()  # it is still being set up, and cannot be told
        until = time.monotonic() + (0 if hurry else _STOP_TIMEOUT_S)
        while self._processes.alive and (left := until - time.monotonic()) > 0:
            if not wait(left):
                return

    def _start(self, role: Role, number: int, incarnation: int, device: str | None) -> None:
        job = self._job
        name = f"{role}-{number}.{incarnation}"
        shipped: Shipped | None = None
        if role == "loader":
            options: msgspec.Struct = job.reading
            shipped = job.shipped_level
        elif role == "collector":
            options, shipped = msgspec.structs.replace(job.collecting, device=device), job.collector
        else:
            options, shipped = job.writing, job.collector if role == "publisher" and job.gathers else None
        startup = Startup(
            role=role,
            name=name,
            address=self._address,
            options=msgspec.msgpack.encode(options),
            level=job.level,
            shipped=None if shipped is None else msgspec.msgpack.encode(shipped),
            lock=self._lock,
            box=make_box(),
            slots=self._slots if role in ("loader", "collector") else None,
        )
        self._workers[name] = self._processes.start(startup, number, device)


class Deaths:
    """Which ends of workers count against `max_restarts`."""

    def __init__(self) -> None:
        self._suspects: list[list[Suspect]] = []
        """What was suspected of each end."""
        self._poison: set[Suspect] = set()

    def add(self, suspects: list[Suspect], poison: Iterable[Suspect]) -> None:
        """A worker has ended."""
        self._suspects.append(suspects)
        self._poison.update(poison)

    def counted(self, scheduler: Scheduler) -> int:
        """All but those over a chunk that is poison, or may yet turn out to be."""
        return sum(
            1
            for suspects in self._suspects
            if not any(suspect in self._poison or scheduler.is_suspected(suspect) for suspect in suspects)
        )


class StallWatch:
    """Notices a stage that is set up, has work, and has said nothing for too long."""

    def __init__(self, timeout_s: float) -> None:
        now = time.monotonic()
        self._timeout_s = timeout_s
        self._heard_at = dict.fromkeys(ROLES, now)
        """When a worker of each role last said something, or had nothing to do."""
        self._checked_at = now

    def heard(self, role: Role) -> None:
        """A worker of that role has said something."""
        self._heard_at[role] = time.monotonic()

    def stalled(self, scheduler: Scheduler, workforce: Workforce) -> tuple[Role, list[tuple[SlideKey, int]]] | None:
        """The role that has stalled, and the (slide, chunk) that it was given; None where none has."""
        now = time.monotonic()
        if not self._timeout_s or now - self._checked_at < min(1.0, self._timeout_s / 4):
            return None
        self._checked_at = now
        for role in ROLES:
            waiting = scheduler.waiting_for(role)
            if not waiting or not all(worker.ready for worker in workforce.of_role(role)):
                self._heard_at[role] = now
            elif now - self._heard_at[role] > self._timeout_s:
                return role, waiting
        return None
