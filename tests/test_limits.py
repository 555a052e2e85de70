"""What control groups leave a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamwsi import limits
from streamwsi.config import available_cpus

MB = 1_000_000


class System:
    """A /proc and a /sys/fs/cgroup made up."""

    def __init__(self, root: Path) -> None:
        self.proc, self.groups = root / "proc", root / "groups"
        self.write(self.proc / "meminfo", "MemTotal: 900 kB\nMemAvailable: 200000 kB\n")

    def write(self, path: Path, text: str) -> None:
        """A file of the kernel's."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def is_in(self, *lines: str) -> None:
        """The groups of this process."""
        self.write(self.proc / "self" / "cgroup", "".join(f"{line}\n" for line in lines))

    def group(self, name: str, **files: object) -> None:
        """A group, and what its files say; `_` stands for the dot in their names."""
        for file, said in files.items():
            self.write(self.groups / name / file.replace("_", ".", 1), f"{said}\n")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    made = System(tmp_path)
    monkeypatch.setattr(limits, "_PROC", made.proc)
    monkeypatch.setattr(limits, "_GROUPS", made.groups)
    return made


def test_without_groups_the_system_says(system: System) -> None:
    assert limits.free_memory_bytes() == limits.available_memory_bytes() == 204_800_000
    assert limits.allowed_cpus() is None
    system.is_in("0::/a/b", "4:memory:/c", "nonsense")
    assert limits.free_memory_bytes() == 204_800_000


def test_where_nobody_says_anything_nothing_is_known(system: System) -> None:
    (system.proc / "meminfo").write_text("what?\n")
    assert limits.free_memory_bytes() is limits.available_memory_bytes() is None


def test_the_least_that_a_group_or_one_above_it_leaves_counts(system: System) -> None:
    system.is_in("0::/pod/mine")
    system.group("pod/mine", memory_max="max", memory_current=10 * MB, cpu_max="max 100000")
    system.group("pod", memory_max=100 * MB, memory_current=70 * MB, cpu_max="150000 100000")
    system.group("", memory_max=900 * MB, memory_current=100 * MB)
    assert limits.free_memory_bytes() == 30 * MB
    assert limits.allowed_cpus() == 1.5
    assert available_cpus() == min(2, len(os.sched_getaffinity(0)))
    system.group("pod", memory_current=170 * MB)
    assert limits.free_memory_bytes() == 0


def test_what_was_read_of_files_can_be_had_again(system: System) -> None:
    system.is_in("0::/")
    stat = f"anon {20 * MB}\nfile {75 * MB}\ninactive_file {60 * MB}\nactive_file {10 * MB}\nshmem {5 * MB}"
    system.group("", memory_max=100 * MB, memory_current=95 * MB, memory_stat=stat)
    assert limits.free_memory_bytes() == 75 * MB  # what only memory holds stays


def test_groups_of_the_first_version_count_too(system: System) -> None:
    system.is_in("4:memory:/docker/abc", "2:cpu,cpuacct:/docker/abc", "0::/")
    stat = f"inactive_file 1\ntotal_inactive_file {30 * MB}\ntotal_active_file {MB}"
    # in a container the group is called as it is outside, and only its own folder can be seen
    system.group("memory", memory_limit_in_bytes=80 * MB, memory_usage_in_bytes=60 * MB, memory_stat=stat)
    system.group("cpu", cpu_cfs_quota_us=50_000, cpu_cfs_period_us=100_000)
    assert limits.free_memory_bytes() == 51 * MB
    assert limits.allowed_cpus() == 0.5
    system.group("cpu", cpu_cfs_quota_us=-1)
    system.group("memory", memory_limit_in_bytes=9223372036854771712)
    assert limits.allowed_cpus() is None
    assert limits.free_memory_bytes() == 204_800_000
