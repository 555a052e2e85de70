"""Timings taken in turn, their medians and spread, and what machine they come from.

In: contestants.  Out: timings, ratios, rows of a table.  Knows nothing of slides.

A ratio is always that of two contestants in the same round, so that what slows the whole machine for a while slows both.
"""

from __future__ import annotations

import compileall
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import streamwsi

PACKAGES = (
    *("streamwsi", "numpy", "pyzmq", "msgspec", "h5py", "openslide-python", "openslide-bin"),
    *("simplejpeg", "tifffile", "imagecodecs", "torch"),
)


@dataclass(frozen=True)
class Timing:
    """One contestant, once."""

    seconds: float
    windows: int = 0
    unique_px: int = 0
    """Pixels of the level that were wanted, each counted once however many windows it is in."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def windows_per_s(self) -> float:
        """Windows per second."""
        return self.windows / self.seconds

    @property
    def mpx_per_s(self) -> float:
        """Unique megapixels per second."""
        return self.unique_px / self.seconds / 1e6


@dataclass(frozen=True)
class Spread:
    """The median of some values, and how far they lie apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    number: str
    """Which of the numbered aims it answers; empty for what is shown beside them."""
    what: str
    value: Spread
    unit: str = ""
    aim: float | None = None
    at_most: bool = False
    """The value is to be at most `aim`, not at least."""

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the aim; None where there is none."""
        if self.aim is None:
            return None
        return self.value.median <= self.aim if self.at_most else self.value.median >= self.aim

    def as_json(self) -> dict[str, Any]:
        """The row with plain values."""
        value = {name: _rounded(number) for name, number in vars(self.value).items()}
        aim = None if self.aim is None else {"at_most" if self.at_most else "at_least": self.aim}
        return {"number": self.number, "what": self.what, **value, "unit": self.unit, "aim": aim, "met": self.met}


@dataclass
class Outcome:
    """What one experiment has found."""

    rows: list[Row] = field(default_factory=list)
    timings: dict[str, list[Timing]] = field(default_factory=dict)
    text: str = ""
    """What is for people and does not fit into a row."""
    details: dict[str, Any] = field(default_factory=dict)
    """The same as plain values."""

    def as_json(self) -> dict[str, Any]:
        """Rows and every single timing, in plain values."""
        return {
            "rows": [row.as_json() for row in self.rows],
            "timings": {name: [_timing_as_json(timing) for timing in taken] for name, taken in self.timings.items()},
            **self.details,
        }


Contestants = Mapping[str, Callable[[], Timing]]


def interleaved(contestants: Contestants, rounds: int, say: Callable[[str], None]) -> dict[str, list[Timing]]:
    """Run each contestant once in each round, in turn; every second round backwards, so that none always follows the same."""
    taken: dict[str, list[Timing]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants) if number % 2 == 0 else reversed(list(contestants)):
            timing = _with_elsewhere(contestants[name])
            taken[name].append(timing)
            rate = f", {timing.windows_per_s:,.0f} windows/s" if timing.windows else ""
            rate += f", {timing.mpx_per_s:,.0f} Mpx/s" if timing.unique_px else ""
            say(f"  round {number + 1}, {name}: {timing.seconds:.2f} s{rate}")
    return taken


def _with_elsewhere(contestant: Callable[[], Timing]) -> Timing:
    """A timing, with the share of the machine's processors that others used meanwhile (or that its host took away)."""
    begun, busy, own = time.perf_counter(), _busy_s(), _own_s()
    timing = contestant()
    offered = (time.perf_counter() - begun) * (psutil.cpu_count() or 1)
    elsewhere = (_busy_s() - busy) - (_own_s() - own)
    share = min(max(elsewhere / offered, 0.0), 1.0)
    return replace(timing, details={**timing.details, "elsewhere": round(share, 3)})


def _busy_s() -> float:
    """Processor seconds that the machine has spent, those that its host took away included."""
    times = psutil.cpu_times()
    return float(sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal")))


def _own_s() -> float:
    """Processor seconds of this process, and of its children that have ended."""
    return sum(os.times()[:4])


def elsewhere(timings: Iterable[Timing]) -> Spread | None:
    """The share of the machine that others used while these were taken; None where nothing was timed."""
    shares = [timing.details["elsewhere"] for timing in timings if "elsewhere" in timing.details]
    return Spread.of(shares) if shares else None


def windows_per_s(timing: Timing) -> float:
    """The rate that most ratios are made of."""
    return timing.windows_per_s


def mpx_per_s(timing: Timing) -> float:
    """The rate against the decoder, which knows no windows."""
    return timing.mpx_per_s


def ratio(over: Sequence[Timing], under: Sequence[Timing], rate: Callable[[Timing], float] = windows_per_s) -> Spread:
    """`over`'s rate by `under`'s, round by round."""
    return Spread.of(rate(mine) / rate(theirs) for mine, theirs in zip(over, under, strict=True))


def without(timings: Sequence[Timing], fixed: Sequence[Timing]) -> list[Timing]:
    """Timings less what a run over next to nothing took in the same round."""
    pairs = zip(timings, fixed, strict=True)
    return [
        Timing(max(timing.seconds - start.seconds, 1e-9), timing.windows, timing.unique_px, timing.details)
        for timing, start in pairs
    ]


def best(*contestants: Sequence[Timing]) -> list[Timing]:
    """Round by round the fastest of some contestants that did the same."""
    return [min(taken, key=lambda timing: timing.seconds) for taken in zip(*contestants, strict=True)]


def compile_package() -> None:
    """Have streamwsi compiled, as pip does with what it installs, whatever the environment says of keeping bytecode.

    Else each process of a run would compile every module again when it starts, where a checkout is measured.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for folder in (Path(streamwsi.__file__).parent, Path(__file__).parent):
        compileall.compile_dir(folder, quiet=1)


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": _cpu_model(),
        "cpus": available_cpus(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
        "commit": _commit(),
        "load_before": [round(load, 2) for load in psutil.getloadavg()],
    }


def table(rows: Iterable[Row]) -> str:
    """Rows for people."""
    lines = [f"{'':4}{'':68}{'median':>10}   {'low … high':18}{'':10}aim"]
    for row in rows:
        verdict = {True: "met", False: "NOT MET", None: ""}[row.met]
        aim = "" if row.aim is None else f"{'≤' if row.at_most else '≥'} {_short(row.aim)}"
        spread = f"{_short(row.value.low)} … {_short(row.value.high)}"
        lines.append(
            f"{row.number:4}{row.what:68}{_short(row.value.median):>10}   {spread:18}{row.unit:10}{aim:10}{verdict}".rstrip()
        )
    return "\n".join(lines)


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _rounded(number: float) -> float:
    return float(f"{number:.5g}")


def _timing_as_json(timing: Timing) -> dict[str, Any]:
    rates = {"windows_per_s": timing.windows_per_s, "mpx_per_s": timing.mpx_per_s}
    return {
        "seconds": round(timing.seconds, 4),
        "windows": timing.windows,
        "unique_px": timing.unique_px,
        **{name: round(rate, 1) for name, rate in rates.items() if rate},
        **timing.details,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str | None:
    """The commit that is checked out, with ``+`` where files differ from it; None outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
