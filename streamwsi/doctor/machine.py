"""What the machine gives a process: processors, memory, descriptors, sockets, graphics cards.

In: nothing.  Out: checks.  What is taken is given back.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import subprocess
from collections.abc import Iterator

from streamwsi.config import CHUNK_PX, available_cpus
from streamwsi.doctor.finding import Check, Looked, note, ok, wrong
from streamwsi.limits import allowed_cpus, available_memory_bytes, free_memory_bytes

_SLOTS = 6
"""Chunks that a run with one loader of two threads and one collector has room for."""
_LEAST_FILES = 32
"""Descriptors: a run with one worker of each kind was seen to take 27, and not to begin with 24."""
_FEW_FILES = 256
"""The driver was seen to take 54 for 12 workers; slides of several files (MIRAX, DICOM) take more in the loaders."""
_FEW_THREADS = 32
"""A run with one worker of each kind was seen to have so many, of all its processes together, on two processors."""
_LITTLE_MEMORY_BYTES = 1 << 30
"""Less than that is a note: a run of one loader and one collector takes about a third of it, and the collector's model comes on
top."""
_SLOW_ANSWER_S = 30


def machine_checks() -> Iterator[Check]:
    """Processors, memory, limits, sockets, graphics cards."""
    yield Check("processors", _processors, "")
    yield Check("memory", _memory, "")
    yield Check("shared memory", _shared_memory, "pixels go through sockets (--transport ipc), which is slower")
    yield Check("/dev/shm", _dev_shm, "")
    yield Check("open files", _open_files, "raise the limit: ulimit -n 4096")
    yield Check("processes", _process_limit, "raise the limit: ulimit -u")
    yield Check("locked memory", _locked_memory, "")
    yield Check("sockets", _sockets, "set TMPDIR to a short path that can be written to, or use --transport tcp")
    yield Check("GPU", _gpu, "see whether the driver fits the PyTorch that is installed; collectors can do without a GPU")


def _processors() -> Looked:
    there, quota = os.cpu_count() or 1, allowed_cpus()
    said = f"{available_cpus()} of {there} may be used"
    return ok(said if quota is None or quota > available_cpus() else f"{said}: a control group allows the work of {quota:g}")


def _memory() -> Looked:
    free = free_memory_bytes()
    if free is None:
        return note("how much is free is not known", "watch the memory of a first run")
    said = f"{_mb(free)} free for this process"
    available = available_memory_bytes()
    if available is not None and available > free:
        said += f" (a control group sets the limit; the machine has {_mb(available)})"
    if free < _LITTLE_MEMORY_BYTES:
        return note(said, "give a smaller --chunk-px and --tile-cache-mb, fewer --threads")
    return ok(said)


def _shared_memory() -> Looked:
    """Slots are made as a run makes them, filled, and looked into."""
    from streamwsi.wire.shared_memory import SharedSlots, SlotsError, make_slots, reserve_slots

    if not hasattr(os, "posix_fallocate"):
        return note("this system has none that can be used", "pixels go through sockets, which is slower")
    size = _SLOTS * 3 * CHUNK_PX
    try:
        spec = make_slots(_SLOTS, 3 * CHUNK_PX)
    except SlotsError as error:
        return note(str(error), "pixels go through sockets, which is slower, unless --chunk-px is smaller or memory is freed")
    try:
        reserve_slots(spec)
        slots = SharedSlots(spec)
        for number in range(_SLOTS):
            slots.slot(number)[-1] = number + 1
        same = [int(slots.slot(number)[-1]) for number in range(_SLOTS)] == [*range(1, _SLOTS + 1)]
    except SlotsError as error:
        return note(str(error), "pixels go through sockets, which is slower, unless --chunk-px is smaller or memory is freed")
    finally:
        os.close(spec.descriptor)
    if not same:
        return wrong("it gives back other bytes than were put into it", "give --transport ipc")
    kind = "memory without a name (memfd)" if hasattr(os, "memfd_create") else "files without a name"
    return ok(f"{_mb(size)} of {kind} had and filled")


def _dev_shm() -> Looked:
    """It matters only where there is no memfd_create, and to what users' own code does."""
    if not os.path.isdir("/dev/shm"):
        return ok("there is none; streamwsi does not need it")
    there = os.statvfs("/dev/shm")
    said = f"{_mb(there.f_bavail * there.f_frsize)} free"
    if hasattr(os, "memfd_create"):
        return ok(f"{said}; streamwsi does not use it")
    return ok(said)


def _open_files() -> Looked:
    soft, hard = _limits("RLIMIT_NOFILE")
    said = f"{_number(soft)} at once in a process (it may be raised to {_number(hard)})"
    if soft < _LEAST_FILES:
        return wrong(f"{said}; a run does not begin with fewer than {_LEAST_FILES}", "raise the limit: ulimit -n 4096")
    if soft < _FEW_FILES:
        return note(f"{said}; many workers, or slides of many files, need more", "raise the limit: ulimit -n 4096")
    return ok(said)


def _process_limit() -> Looked:
    soft, _ = _limits("RLIMIT_NPROC")
    said = f"{_number(soft)} of this user, threads counted"
    if soft < _FEW_THREADS:
        return note(
            said, f"a run has about {_FEW_THREADS} threads in all, and more with more workers: raise the limit, ulimit -u"
        )
    return ok(said)


def _locked_memory() -> Looked:
    soft, _ = _limits("RLIMIT_MEMLOCK")
    return ok(f"{'any' if math.isinf(soft) else f'{soft // 1024:.0f} KiB'}; streamwsi locks none itself")


def _limits(name: str) -> tuple[float, float]:
    """The soft and the hard limit of this process; infinite where there is none, or the system has no such thing (Windows)."""
    if importlib.util.find_spec("resource") is None:
        return math.inf, math.inf
    import resource

    soft, hard = (
        math.inf if value == resource.RLIM_INFINITY else float(value) for value in resource.getrlimit(getattr(resource, name))
    )
    return soft, hard


def _number(limit: float) -> str:
    return "any number" if math.isinf(limit) else f"{limit:.0f}"


def _sockets() -> Looked:
    from streamwsi.wire.channels import make_address, remove_address

    address = make_address("auto")
    remove_address(address)
    return ok(f"{address.transport}" + (f", in folders as {address.folder}" if address.folder else ", on loopback"))


def _gpu() -> Looked:
    """What PyTorch can use, if it is installed; and what the driver's own tool sees."""
    seen = _seen_by_driver()
    if not _pytorch_is_there():
        if seen is None:
            return ok("none was found; PyTorch is not installed")
        return note(f"{seen}; PyTorch is not installed", "if collectors are to use it: python -m pip install torch")
    import torch

    said = f"PyTorch {torch.__version__}"
    if not torch.cuda.is_available():
        if seen is None:
            return ok(f"none was found; {said}")
        return note(
            f"{seen}, but {said} can use none", "install the PyTorch that is built for this driver, or do without a GPU"
        )
    names = []
    for number in range(torch.cuda.device_count()):
        device = f"cuda:{number}"
        total = float(torch.ones(1000, device=device).sum())
        if total != 1000:
            return wrong(f"{device} adds 1000 ones up to {total}; {said}", f"leave {device} out of --devices")
        names.append(f"{device} {torch.cuda.get_device_name(number)}")
    return ok(f"{', '.join(names)}; {said}")


def _pytorch_is_there() -> bool:
    return importlib.util.find_spec("torch") is not None


def _seen_by_driver() -> str | None:
    """What nvidia-smi says; None where there is none, or it finds nothing."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=_SLOW_ANSWER_S, check=False)
    if done.returncode:
        return f"nvidia-smi: {(done.stdout + done.stderr).strip()}"
    return ", ".join(line.partition(" (UUID")[0] for line in done.stdout.splitlines()) or None


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB"
