"""The workers of a run: started, replaced, told things, watched for stalls, stopped.

In: a job, and where its sockets are.  Out: messages to workers.  Knows who is alive, not what is to be done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from streamwsi.collecting.spec import Shipped
from streamwsi.pipeline.branch import Branch
from streamwsi.pipeline.child import ROLES, Role, Startup
from streamwsi.pipeline.decisions import SlideKey, Suspect
from streamwsi.pipeline.job import Job
from streamwsi.pipeline.processes import Processes, Worker
from streamwsi.pipeline.scheduler import Scheduler
from streamwsi.wire import messages
from streamwsi.wire.blackbox import make_box
from streamwsi.wire.channels import Address, ControlServer
from streamwsi.wire.messages import Message
from streamwsi.wire.shared_memory import SlotsSpec

STOP_TIMEOUT_S = 5.0
"""How long workers may take to end once they are told to."""


_LATE_S = 2.0
"""How late a check for stalls may be on a busy machine."""


class Workforce:
    """All workers of a run, by name."""

    def __init__(
        self,
        job: Job,
        branches: Sequence[Branch],
        processes: Processes,
        control: ControlServer,
        address: Address,
        slots: SlotsSpec | None,
    ) -> None:
        self._job = job
        self._branches = branches
        self._processes = processes
        self._control = control
        self._address = address
        self._slots = slots
        self._workers: dict[str, Worker] = {}

    def start_all(self) -> None:
        """Start as many of each role as were asked for."""
        for number in range(self._job.execution.loaders):
            self._start("loader", number, 1)
        started: dict[Role, int] = dict.fromkeys(ROLES, 0)
        roles: tuple[Role, ...] = ("writer", "collector", "publisher")  # those first without whom the others can do nothing
        for role in roles:
            for branch, of in enumerate(self._branches):
                execution = of.job.execution
                devices = execution.devices if role == "collector" else ()
                for place in range({"writer": execution.writers, "collector": execution.collectors}.get(role, 1)):
                    self._start(role, started[role], 1, branch, devices[place % len(devices)] if devices else None)
                    started[role] += 1

    def replace(self, gone: Worker) -> None:
        """Start another in the place of one that has ended, and let the others know that nobody listens there any more."""
        if gone.endpoint:
            for other in self._workers.values():
                self.tell(other.name, messages.EndpointGone(gone.endpoint))
        self._start(gone.role, gone.number, int(gone.name.rpartition(".")[2]) + 1, gone.branch, gone.device)

    def remove(self, worker: Worker) -> None:
        """A worker has ended."""
        del self._workers[worker.name]

    def get(self, name: str) -> Worker | None:
        """The worker of that name, if it is one of those that live."""
        return self._workers.get(name)

    def of_role(self, role: Role, branch: int = 0) -> list[Worker]:
        """The loaders, or a branch's workers of another role."""
        return [worker for worker in self._workers.values() if worker.role == role and worker.branch == branch]

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
                worker.killed = True  # it is still being set up, and cannot be told
                worker.process.kill()
        until = time.monotonic() + (0 if hurry else STOP_TIMEOUT_S)
        while self._processes.alive and (left := until - time.monotonic()) > 0:
            if not wait(left):
                return

    def _start(self, role: Role, number: int, incarnation: int, branch: int = 0, device: str | None = None) -> None:
        name = f"{role}-{number}.{incarnation}"
        of = self._branches[branch].job
        shipped: Shipped | None = None
        if role == "loader":
            options: msgspec.Struct = self._job.loaders.reading
            shipped = self._job.loaders.choices
        elif role == "collector":
            options, shipped = msgspec.structs.replace(of.collecting, device=device), of.collector
        else:
            options, shipped = of.writing, of.collector if role == "publisher" and of.gathers else None
        folders = [own.folder for own in (self._branches if role == "loader" else self._branches[branch : branch + 1])]
        locks = [None if folder.lock is None else folder.lock.descriptor for folder in folders]
        startup = Startup(
            role=role,
            name=name,
            address=self._address,
            options=msgspec.msgpack.encode(options),
            level=self._job.loaders.level,
            shipped=None if shipped is None else msgspec.msgpack.encode(shipped),
            locks=tuple(lock for lock in locks if lock is not None),
            box=make_box(),
            slots=self._slots if role in ("loader", "collector") else None,
        )
        self._workers[name] = self._processes.start(startup, number, branch, device)


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
    """Notices a stage that is set up, has work, and has said nothing for too long: the loaders, or one of a branch's."""

    def __init__(self, timeout_s: float, n_branches: int) -> None:
        now = time.monotonic()
        self._timeout_s = timeout_s
        stages: list[tuple[Role, int]] = [(role, branch) for role in ROLES for branch in range(n_branches)]
        self._heard_at = {(role, branch): now for role, branch in stages if role != "loader" or branch == 0}
        """When a worker of each role and branch last said something, or had nothing to do."""
        self._checked_at = now

    def heard(self, worker: Worker) -> None:
        """A worker has said something."""
        self._heard_at[worker.role, worker.branch] = time.monotonic()

    def stalled(self, scheduler: Scheduler, workforce: Workforce) -> tuple[Role, int, list[tuple[SlideKey, int]]] | None:
        """The role and branch that have stalled, and the (slide, chunk) that they were given; None where none have."""
        now = time.monotonic()
        interval_s = min(1.0, self._timeout_s / 4)
        since_s = now - self._checked_at
        if not self._timeout_s or since_s < interval_s:
            return None
        self._checked_at = now
        if since_s > 2 * interval_s + _LATE_S:  # this process has stood still (suspended, say), and so may have all others
            self._heard_at = {stage: heard_at + since_s for stage, heard_at in self._heard_at.items()}
        for (role, branch), heard_at in self._heard_at.items():
            waiting = scheduler.waiting_for(role, branch)
            if not waiting or not all(worker.ready for worker in workforce.of_role(role, branch)):
                self._heard_at[role, branch] = now
            elif now - heard_at > self._timeout_s:
                return role, branch, waiting
        return None
