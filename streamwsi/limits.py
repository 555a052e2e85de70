"""What the system, and the control groups of this process, leave it of memory and of processors' time.

In: what the kernel says of itself.  Out: numbers.  Changes nothing.

Containers are control groups. Those of version 1 are folders of their own for memory and for processors, those of version 2 one
for all; a process may be in both. What a group has read of files counts as its memory, until it needs it for something else.
Source: proc(5), ``MemAvailable``; cgroups(7); Linux, ``admin-guide/cgroup-v2`` and ``admin-guide/cgroup-v1/memory``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def free_memory_bytes() -> int | None:
    """What this process may still take; None where that is not known."""
    free = [_left_in(folder, "memory.max", "memory.current", "") for folder in _folders("")]
    free += [_left_in(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_") for folder in _folders("memory")]
    free.append(available_memory_bytes())
    return min((bytes_ for bytes_ in free if bytes_ is not None), default=None)


def available_memory_bytes() -> int | None:
    """What the system has left, whatever control groups allow; None where it does not say."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (_PROC / "meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return None


def allowed_cpus() -> float | None:
    """Processors' worth of time that control groups allow; None where they do not say."""
    allowed = []
    for folder in _folders(""):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            most, period = (folder / "cpu.max").read_text().split()
            if most != "max":
                allowed.append(int(most) / int(period))
    for folder in _folders("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                allowed.append(int(quota) / int(period))
    return min(allowed, default=None)


def _left_in(folder: Path, limit: str, used: str, prefix: str) -> int | None:
    """What a group has left; None where it has no limit."""
    with contextlib.suppress(OSError, ValueError):
        most = int((folder / limit).read_text())  # version 2 says "max" where there is none, version 1 a huge number
        taken = int((folder / used).read_text())
        return max(0, most - max(0, taken - _of_files(folder, prefix)))
    return None


def _of_files(folder: Path, prefix: str) -> int:
    """Bytes of a group's memory that hold what stands in files too; what only memory holds, of a memfd, say, is not counted."""
    with contextlib.suppress(OSError, ValueError):
        said = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(said.get(f"{prefix}inactive_file", 0)) + int(said.get(f"{prefix}active_file", 0))
    return 0


def _folders(controller: str) -> Iterator[Path]:
    """The group of this process and those above it, of version 1 for a controller, of version 2 for none.

    In a container the group may be called as it is outside, where nobody can look: then the topmost that is seen is its own.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in (_PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controller in controllers.split(","):  # of version 2 there are none: "".split(",") is [""]
                root = _GROUPS / controller
                yield from (root / str(group).lstrip("/") for group in (Path(own), *Path(own).parents))
