"""How fast slides stream, against a plain loop over OpenSlide: both in one run, in turn, on the same files.

In: how many copies of the bundled slide to stream, how often.  Out: windows per second of each contestant, and their ratio.

    python benchmarks/throughput.py [--slides 12] [--rounds 5] [--json results.json]

Both make the mean colour of each window. The loop reads window by window in one thread, as most scripts do, and writes
nothing; streamwsi's time includes starting its processes, the journal, and publication.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import openslide

import streamwsi as sw
from streamwsi.config import available_cpus
from streamwsi.geometry import axis_starts

BUNDLED = Path(__file__).parent.parent / "examples" / "data" / "CMU-1-Small-Region.svs"


def plain_loop(slides: list[Path], kernel: int, stride: int) -> int:
    """Windows read one by one."""
    windows = 0
    for path in slides:
        with openslide.OpenSlide(path) as slide:
            width, height = slide.dimensions
            for y in axis_starts(height, kernel, stride).tolist():
                for x in axis_starts(width, kernel, stride).tolist():
                    np.asarray(slide.read_region((x, y), 0, (kernel, kernel)).convert("RGB")).mean(axis=(0, 1))
                    windows += 1
    return windows


def streamed(slides: list[Path], kernel: int, stride: int) -> int:
    """The same through the pipeline."""
    with tempfile.TemporaryDirectory() as out:
        loader = sw.SlidingWindowLoader(sw.Dataset.from_paths(slides), kernel, stride)
        return sw.Pipeline(loader, sw.MeanCollector(), sw.HDF5StreamWriter(out), quiet=True).run().windows


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser()
    options.add_argument("--slides", type=int, default=12)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    results: dict[str, object] = {"machine": f"{platform.machine()}, {available_cpus()} processors", "slides": given.slides}
    with tempfile.TemporaryDirectory() as folder:
        slides = [Path(shutil.copy(BUNDLED, Path(folder, f"{number}.svs"))) for number in range(given.slides)]
        for kernel, stride in ((256, 256), (256, 128)):
            rates: dict[str, list[float]] = {"loop": [], "streamwsi": []}
            for _ in range(given.rounds):
                for name, contestant in (("loop", plain_loop), ("streamwsi", streamed)):
                    begun = time.perf_counter()
                    windows = contestant(slides, kernel, stride)
                    rates[name].append(windows / (time.perf_counter() - begun))
            ratios = [ours / loop for ours, loop in zip(rates["streamwsi"], rates["loop"], strict=True)]
            medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
            spread = (round(min(ratios), 2), round(max(ratios), 2))
            results[f"{kernel}/{stride}"] = {
                "windows_per_second": medians,
                "ratio": round(statistics.median(ratios), 2),
                "ratio_min_max": spread,
            }
            print(f"{kernel}/{stride}: {medians} windows/s; streamwsi / loop {statistics.median(ratios):.2f} {spread}")
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
