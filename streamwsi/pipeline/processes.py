"""Child processes: started afresh, watched, and ended.

In: what a child is told.  Out: workers, and word of those that ended.  Every process that is started here is reaped here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from streamwsi.pipeline.child import Role, Startup, write_startup
from streamwsi.wire.blackbox import Work, read_box


@dataclass(eq=False)
class Worker:
    """One child process."""

    role: Role
    number: int
    """Its place among the workers of its role; one that replaces another has the same."""
    name: str
    process: subprocess.Popen[bytes]
    branch: int = 0
    """The branch it belongs to; a loader serves all."""
    device: str | None = None
    box: int | None = None
    """The descriptor of its notes on what it is doing."""
    last_work: Work = field(default_factory=Work)
    """What it was doing when it ended."""
    endpoint: str = ""
    """Where it takes data, once it is ready."""
    ready: bool = False
    told_to_stop: bool = False
    killed: bool = False
    """By the driver itself."""

    def close(self) -> None:
        """Let go of the pipe and the notes of a child that has ended."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        if self.box is not None:
            self.last_work = read_box(self.box)
            os.close(self.box)
            self.box = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


def describe_exit(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with exit code {code}, without saying so"


class Processes:
    """All children of a run."""

    def __init__(self, on_exit: Callable[[], None]) -> None:
        """`on_exit` is called, from another thread, when a child has ended."""
        self._on_exit = on_exit
        self._ended: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._started = 0
        self.alive: dict[str, Worker] = {}
        """Children that have not been seen to end, by name."""

    def start(self, startup: Startup, number: int, branch: int, device: str | None = None) -> Worker:
        """Start a child: a new interpreter with this one's module path, and nothing else of it."""
        self._started += 1
        path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
        code = f"import sys; sys.path[:] = {path!r}; from streamwsi.pipeline.child import main; main()"
        with _signals_held():
            process = subprocess.Popen(
                [sys.executable, "-c", code, f"streamwsi-{startup.role}", str(number)],
                stdin=subprocess.PIPE,
                pass_fds=startup.descriptors(),
                env=_environment(startup.role),
            )
        worker = Worker(startup.role, number, startup.name, process, branch, device, startup.box)
        self.alive[worker.name] = worker
        threading.Thread(target=self._watch, args=(worker,), name=f"watch-{worker.name}", daemon=True).start()
        try:
            if process.stdin is not None:
                write_startup(startup, process.stdin)
        except BrokenPipeError:
            pass  # it has ended already, which is noticed as every end is
        return worker

    def ended(self) -> list[tuple[Worker, int]]:
        """Children that have ended since this was last asked, with their exit codes."""
        found = []
        while not self._ended.empty():
            worker = self._ended.get()
            if self.alive.pop(worker.name, None) is not None:
                worker.close()
                found.append((worker, worker.process.returncode))
        return found

    def kill_all(self) -> None:
        """End what is still alive at once, and wait until it has."""
        for worker in self.alive.values():
            if worker.process.poll() is None:
                worker.process.kill()
        for worker in self.alive.values():
            worker.process.wait()
            worker.close()
        self.alive.clear()

    def _watch(self, worker: Worker) -> None:
        worker.process.wait()
        self._ended.put(worker)
        self._on_exit()


def _environment(role: Role) -> dict[str, str]:
    """What a child inherits.

    Those without user code start no threads for linear algebra. Elsewhere NumPy's threads keep a processor busy for no more
    than 2**20 cycles when they have nothing to do (OpenBLAS' own default is 2**26): a run starts 0.05 s earlier.
    """
    own = {"OPENBLAS_NUM_THREADS": "1"} if role in ("loader", "writer") else {"OPENBLAS_THREAD_TIMEOUT": "20"}
    return {**own, **os.environ}


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while a child is started: it inherits that, and lets them in when they do nothing."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    held = (signal.SIGINT, signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
