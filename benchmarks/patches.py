"""Windows written as PNG: ``streamwsi extract`` beside the script that people write.

In: a slide.  Out: a Timing each. Both are commands that are started afresh, and write the same windows.

    python -m benchmarks.patches SLIDE OUT KERNEL        the script: two processes, OpenSlide and Pillow, PNG as Pillow has it
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import openslide

from benchmarks.measure import Timing
from benchmarks.watching import streamwsi_command

PROCESSES = 2
KERNEL = 256


def extract(slide: Path, *options: str) -> Timing:
    """``streamwsi extract``, everything in it: its start, journals, a manifest with checksums, files synced."""
    return _timed([*streamwsi_command(), "extract", str(slide), "--quiet", "--border", "crop", *options, "--out"], slide)


def script(slide: Path) -> Timing:
    """The script, its start and the import of what it needs in it; it syncs nothing."""
    return _timed([sys.executable, "-m", "benchmarks.patches", str(slide)], slide, str(KERNEL))


def _timed(command: list[str], slide: Path, *more: str) -> Timing:
    with openslide.OpenSlide(slide) as opened:
        windows = len(_corners(opened.dimensions, KERNEL))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out = Path(folder, "out")
        begun = time.perf_counter()
        subprocess.run([*command, str(out), *more], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        sizes = [path.stat().st_size for path in out.rglob("*.png")]
    if len(sizes) != windows:
        raise RuntimeError(f"{command[0]} wrote {len(sizes)} images, {windows} were expected")
    return Timing(seconds, windows, windows * KERNEL**2, {"bytes": sum(sizes)})


def _corners(size: tuple[int, int], kernel: int) -> list[tuple[int, int]]:
    """(x, y) of every whole window."""
    return [(x, y) for y in range(0, size[1] - kernel + 1, kernel) for x in range(0, size[0] - kernel + 1, kernel)]


def _write(path: str, out: str, kernel: int, corners: list[tuple[int, int]]) -> None:
    with openslide.OpenSlide(path) as slide:
        for x, y in corners:
            slide.read_region((x, y), 0, (kernel, kernel)).convert("RGB").save(f"{out}/{Path(path).stem}_x{x}_y{y}.png")


def main(path: str, out: str, kernel: int) -> None:
    """Write every whole window of a slide, half of them in each process."""
    Path(out).mkdir(parents=True)
    with openslide.OpenSlide(path) as slide:
        corners = _corners(slide.dimensions, kernel)
    half = -(-len(corners) // PROCESSES)
    with get_context("spawn").Pool(PROCESSES) as pool:
        pool.starmap(_write, [(path, out, kernel, corners[first : first + half]) for first in range(0, len(corners), half)])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
