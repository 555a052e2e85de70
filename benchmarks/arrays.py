"""Overlapping patches blended back to an array, beside patchly and a plain copy: ``python -m benchmarks.arrays``.

In: sizes.  Out: a table of ratios; peak memory and correctness of a result that is much larger than that.

patchly takes part where it is installed (``pip install patchly==0.0.19``). In memory, contestants take turns in one process,
and the first turn of each is not counted. The large array is made up as it is read, and what stands for a model adds something
of its own to every window, so that blending matters; crops are compared with the blend by its definition, in float64. It is
blended in a process of its own, whose peak memory counts all that it has, the pages of the file too.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

import streamwsi as sw
from benchmarks.measure import Row, Spread, Timing, elsewhere, interleaved, ratio, table

HAS_PATCHLY = importlib.util.find_spec("patchly") is not None
CHANNELS = 4
IN_MEMORY = {"patch": 256, "step": 128}
LARGE = {"patch": 512, "step": 256}
N_CROPS = 12


class MadeUp:
    """A (size, size, channels) float32 array that is computed where it is read."""

    def __init__(self, size: int) -> None:
        self.shape = (size, size, CHANNELS)
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        """The array there; no two places within a patch of each other are alike."""
        y, x, channel = (
            np.arange(*one.indices(extent), dtype=np.float32) for one, extent in zip(where, self.shape, strict=True)
        )
        row = np.add.outer(x * np.float32(1e-3), channel)
        return np.add.outer(y * np.float32(7e-4), row)


def model(patch: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What a network would do: something that differs from window to window over the same place."""
    return patch + np.float32((box[0, 0] // 256 * 31 + box[1, 0] // 256 * 17) % 101)


def blend(array: np.ndarray, threads: int) -> Timing:
    """Sample and aggregate an array in memory."""
    begun = time.perf_counter()
    sampler = sw.ArraySampler(array, (IN_MEMORY["patch"],) * 2, (IN_MEMORY["step"],) * 2, border="edge")
    aggregator = sw.Aggregator(sampler, weights="gaussian")

    def append(indices: range) -> None:
        for index in indices:
            aggregator.append(*sampler[index])

    share = -(-len(sampler) // threads)
    parts = [range(low, min(low + share, len(sampler))) for low in range(0, len(sampler), share)]
    if threads == 1:
        append(parts[0])
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(append, parts))
    found = aggregator.get_output()
    return Timing(time.perf_counter() - begun, len(sampler), details={"error": float(np.abs(found - array).max())})


def blend_with_patchly(array: np.ndarray) -> Timing:
    """The same with patchly, as its examples have it."""
    import patchly  # here, as it imports PyTorch, which would count as memory of the large array's process

    begun = time.perf_counter()
    sampler = patchly.GridSampler(
        image=array,
        spatial_size=array.shape[:2],
        patch_size=(IN_MEMORY["patch"],) * 2,
        step_size=(IN_MEMORY["step"],) * 2,
        mode=patchly.SamplingMode.SAMPLE_EDGE,
    )
    aggregator = patchly.Aggregator(sampler=sampler, output_size=array.shape, weights="gaussian")
    for patch, box in sampler:
        aggregator.append(patch, box)
    found = aggregator.get_output()
    return Timing(time.perf_counter() - begun, len(sampler), details={"error": float(np.abs(found - array).max())})


def copy(array: np.ndarray, windows: int) -> Timing:
    """One read and one write of the array."""
    begun = time.perf_counter()
    array.copy()
    return Timing(time.perf_counter() - begun, windows)


def blend_large(size: int, output: Path) -> dict[str, Any]:
    """Blend an array much larger than memory should be into a file; seconds, peak memory, deviation from the definition."""
    begun = time.perf_counter()
    sampler = sw.ArraySampler(MadeUp(size), (LARGE["patch"],) * 2, (LARGE["step"],) * 2)
    aggregator = sw.Aggregator(sampler, output, weights="gaussian")
    for patch, box in sampler.by_chunks():
        aggregator.append(model(patch, box), box)
    result = aggregator.get_output()
    seconds = time.perf_counter() - begun
    # not getrusage: a process begins there with what the one that started it had
    status = Path("/proc/self/status").read_text()
    peak_mb = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024
    return {
        "seconds": seconds,
        "windows": len(sampler),
        "peak_mb": peak_mb,
        "result_mb": size * size * CHANNELS * 4 / 2**20,
        "deviation": max(deviation(sampler, result, corner) for corner in crops(size)),
    }


def crops(size: int) -> list[tuple[int, int]]:
    """Corners of crops of 300 px: the array's, and some drawn at random."""
    ends = (0, size - 300)
    drawn = np.random.default_rng(0).integers(0, size - 300, (N_CROPS - 4, 2)).tolist()
    return [(y, x) for y in ends for x in ends] + [(y, x) for y, x in drawn]


def deviation(sampler: sw.ArraySampler, result: Any, corner: tuple[int, int], extent: int = 300) -> float:
    """The largest relative deviation of a crop from the blend by its definition."""
    low, high = np.array(corner), np.array(corner) + extent
    offset = np.arange(LARGE["patch"]) - (LARGE["patch"] - 1) / 2
    vector = np.exp(-0.5 * (offset / (LARGE["patch"] / 8)) ** 2)
    weights = np.multiply.outer(vector, vector)[..., None]
    values, total = np.zeros((extent, extent, CHANNELS)), np.zeros((extent, extent, 1))
    for index in range(len(sampler)):
        box = sampler.box(index)
        first, last = np.maximum(box[:, 0], low), np.minimum(box[:, 1], high)
        if (first >= last).any():
            continue
        inside = tuple(slice(*span) for span in zip(first - low, last - low, strict=True))
        part = tuple(slice(*span) for span in zip(first - box[:, 0], last - box[:, 0], strict=True))
        values[inside] += model(sampler[index][0], box)[part] * weights[part]
        total[inside] += weights[part]
    there = np.asarray(result[tuple(slice(*span) for span in zip(low, high, strict=True))])
    expected = values / total
    return float(np.max(np.abs(there - expected) / np.maximum(np.abs(expected), 1)))


def in_memory(size: int, rounds: int, say: Callable[[str], None]) -> tuple[list[Row], dict[str, list[Timing]]]:
    """An array that fits in memory: this package, patchly, a copy."""
    array = np.random.default_rng(0).random((size, size, CHANNELS), dtype=np.float32)
    contestants: dict[str, Callable[[], Timing]] = {
        "streamwsi": partial(blend, array, 1),
        "streamwsi, 2 threads": partial(blend, array, 2),
    }
    windows = blend(array, 1).windows
    contestants["copy"] = partial(copy, array, windows)
    if HAS_PATCHLY:
        contestants["patchly"] = partial(blend_with_patchly, array)
    taken = {name: timings[1:] for name, timings in interleaved(contestants, rounds + 1, say).items()}
    ours = taken["streamwsi"]
    rows = [Row("", "in memory", Spread.of(timing.seconds for timing in ours), "s")]
    if HAS_PATCHLY:
        rows.append(Row("", "in memory ÷ patchly", ratio(ours, taken["patchly"]), aim=3))
        rows.append(Row("", "  two threads ÷ patchly, which has one", ratio(taken["streamwsi, 2 threads"], taken["patchly"])))
    rows.append(Row("", "a copy of the array ÷ in memory", ratio(taken["copy"], ours)))
    return rows, taken


def larger_than_memory(size: int, suffix: str) -> tuple[list[Row], dict[str, Any]]:
    """A result in a file, by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / f"blended{suffix}"
        command = [sys.executable, "-m", "benchmarks.arrays", "--child", str(output), "--size", str(size)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    rows = [
        Row("", f"{size} x {size} x {CHANNELS} to {suffix}: peak memory", _one(found["peak_mb"]), "MB", aim=1000, at_most=True),
        Row("", "  largest relative deviation on crops", _one(found["deviation"]), "", aim=1e-6, at_most=True),
        Row("", f"  time; the result has {found['result_mb']:,.0f} MB", _one(found["seconds"]), "s"),
    ]
    return rows, found


def _one(value: float) -> Spread:
    return Spread(value, value, value)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--size", type=click.IntRange(1024), default=20000, show_default=True, help="Of the large array, along each axis."
)
@click.option("--memory-size", type=click.IntRange(512), default=2048, show_default=True, help="Of the one in memory.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--suffix", multiple=True, default=[".npy"], show_default=True, help="Of the file: .npy, .zarr, .h5; repeatable.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Where to write all figures.")
@click.option("--child", type=click.Path(path_type=Path), hidden=True)
def main(size: int, memory_size: int, rounds: int, suffix: tuple[str, ...], json_file: Path | None, child: Path | None) -> None:
    """Overlapping patches blended back to an array: how fast, how much memory, how right."""
    if child is not None:
        click.echo(json.dumps(blend_large(size, child)))
        return
    if not HAS_PATCHLY:
        click.echo("patchly is not installed: nothing is compared with it")
    rows, taken = in_memory(memory_size, rounds, click.echo)
    figures: dict[str, Any] = {name: [timing.seconds for timing in timings] for name, timings in taken.items()}
    for one in suffix:
        more, figures[one] = larger_than_memory(size, one)
        rows += more
    click.echo("\n" + table(rows))
    others = elsewhere(timing for timings in taken.values() for timing in timings)
    if others is not None:
        click.echo(f"\nothers used {others.median:.0%} of the machine meanwhile, up to {others.high:.0%}")
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
