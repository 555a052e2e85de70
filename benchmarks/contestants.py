"""What is measured side by side, one function for each contestant.

In: a slide and what to do on it.  Out: a Timing.  What a time includes stands with each function.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import simplejpeg
import tifffile

import streamwsi as sw
from benchmarks.collectors import Touch, touch
from benchmarks.measure import Timing, available_cpus
from benchmarks.slides import BUNDLED, TILE_PX
from streamwsi.memory import empty_pixels

BATCH_SIZE = 32
BLOCK_TILES = 128
"""Tiles of 256 px in a block: larger ones would be mostly fresh memory, which is slower than what runs have."""
REGION_WIDTH_PX = 8192
"""Window-by-window readers are given a region so wide, not the slide's whole width: OpenSlide's cache holds its rows of tiles,
so that overlapping rows are not decoded twice. This favours them."""

HAS_TORCH = importlib.util.find_spec("torch") is not None


# ---- the decoder alone


@dataclass(frozen=True)
class Tiles:
    """Where a level's tiles lie in a file."""

    path: Path
    offsets: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Tiles:
        """Those of the finest level."""
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            return cls(path, tuple(page.dataoffsets), tuple(page.databytecounts))

    def shares(self, n: int) -> list[Tiles]:
        """The tiles dealt to `n` workers, each a run of neighbours."""
        cuts = [round(number * len(self.offsets) / n) for number in range(n + 1)]
        return [Tiles(self.path, self.offsets[a:b], self.counts[a:b]) for a, b in pairwise(cuts)]

    def decode(self, take: Callable[[], np.ndarray]) -> int:
        """Read and decode each tile once, into what `take` gives for it: (256, 256, 3) uint8. Returns how many."""
        file = os.open(self.path, os.O_RDONLY)
        try:
            for offset, count in zip(self.offsets, self.counts, strict=True):
                simplejpeg.decode_jpeg(os.pread(file, count, offset), buffer=take())
        finally:
            os.close(file)
        return len(self.offsets)

    def decode_and_forget(self) -> int:
        """Decode each tile into the same buffer, which stays in the cache: see :mod:`streamwsi.memory` for where it begins."""
        buffer = empty_pixels((TILE_PX, TILE_PX, 3))
        return self.decode(lambda: buffer)


def decode_in_threads(path: Path) -> Timing:
    """Every tile of the finest level decoded once, by a thread for each processor.

    Includes reading the tiles' bytes; not the file's directory, nor starting the threads.
    """
    cpus = available_cpus()
    tiles = Tiles.of(path)
    with ThreadPoolExecutor(cpus) as pool:
        gate = threading.Barrier(cpus)
        list(pool.map(lambda _: gate.wait(), range(cpus)))
        begun = time.perf_counter()
        decoded = sum(pool.map(Tiles.decode_and_forget, tiles.shares(cpus)))
        return Timing(time.perf_counter() - begun, unique_px=decoded * TILE_PX**2)


def decode_in_processes(path: Path) -> Timing:
    """The same by a process for each processor; includes neither the directory nor starting them."""
    tiles = Tiles.of(path)
    with _children(_decode_when_told, tiles.shares(available_cpus())) as pipes:
        begun = time.perf_counter()
        for pipe in pipes:
            pipe.send(None)
        decoded = sum(pipe.recv() for pipe in pipes)
        return Timing(time.perf_counter() - begun, unique_px=decoded * TILE_PX**2)


def _decode_when_told(pipe: Connection, tiles: Tiles) -> None:
    pipe.send(None)
    pipe.recv()
    pipe.send(tiles.decode_and_forget())


def decode_to_memory(path: Path) -> Timing:
    """The same by threads, but that each tile has a place of its own, in memory used in turn, and is touched there once.

    That is about the least that any pipeline does whose pixels are looked at by another than who decoded them. Each thread
    fills one block of 128 tiles (half of what a chunk may hold) after the other, of four that it has, and touches it when it is
    full.
    """
    cpus = available_cpus()
    tiles = Tiles.of(path)
    with ThreadPoolExecutor(cpus) as pool:
        gate = threading.Barrier(cpus)
        list(pool.map(lambda _: gate.wait(), range(cpus)))
        begun = time.perf_counter()
        decoded = sum(pool.map(_decode_into_blocks, tiles.shares(cpus)))
        return Timing(time.perf_counter() - begun, unique_px=decoded * TILE_PX**2)


def _decode_into_blocks(tiles: Tiles) -> int:
    return tiles.decode(iter(_places()).__next__)


def _places() -> Iterator[np.ndarray]:
    """(256, 256, 3) uint8, over and over; what was filled is touched when the last place of a block is gone."""
    blocks = [empty_pixels((BLOCK_TILES, TILE_PX, TILE_PX, 3)) for _ in range(4)]
    while True:
        for block in blocks:
            yield from block
            touch(block)


# ---- streamwsi


def stream(
    slides: Sequence[Path],
    kernel: int,
    stride: int,
    *,
    collector: sw.StreamCollector | None = None,
    reader: str = "auto",
    collectors: int = 1,
) -> Timing:
    """A whole run with defaults and HDF5 files: ``Pipeline(…).run()``.

    Includes starting and ending the processes, opening the slides, journals, publication, and the report.
    """
    loader = sw.SlidingWindowLoader(sw.Dataset.from_paths(slides), kernel, stride, reader=reader)
    with tempfile.TemporaryDirectory(prefix="bench-") as out:
        writer = sw.HDF5StreamWriter(out)
        begun = time.perf_counter()
        report = (collector or Touch()).start_collecting(loader, writer, collectors=collectors, quiet=True)
        seconds = time.perf_counter() - begun
    if report.exit_code:
        raise RuntimeError(f"streamwsi did not finish: {report.failed_slides[0].reason}")
    return Timing(seconds, report.windows, sum(_level_px(path) for path in slides), _of_report(report))


def stream_to_several(slide: Path, kernel: int, stride: int, collectors: dict[str, sw.StreamCollector]) -> Timing:
    """A whole run with several collectors on one stream."""
    loader = sw.SlidingWindowLoader(sw.Dataset.from_paths([slide]), kernel, stride)
    with tempfile.TemporaryDirectory(prefix="bench-") as out:
        pipeline = sw.Pipeline(loader, collectors, sw.HDF5StreamWriter(out), quiet=True)
        begun = time.perf_counter()
        reports = pipeline.run()
        seconds = time.perf_counter() - begun
    if not isinstance(reports, dict):
        raise TypeError("several collectors have a report each")
    first = next(iter(reports.values()))
    return Timing(seconds, first.windows, _level_px(slide), _of_report(first))


def stream_apart(slide: Path, kernel: int, stride: int, collectors: dict[str, sw.StreamCollector]) -> Timing:
    """The same collectors, each in a run of its own, one after the other."""
    timings = [stream([slide], kernel, stride, collector=collector) for collector in collectors.values()]
    return Timing(sum(timing.seconds for timing in timings), timings[0].windows, timings[0].unique_px)


def _of_report(report: sw.Report) -> dict[str, Any]:
    """What a report adds to a timing."""
    stages = {
        name: {"busy": stage.busy, "wait_input": stage.wait_input, "wait_output": stage.wait_output}
        for name, stage in report.stages.items()
    }
    slides = [slide for patient in report.patients for slide in patient.slides]
    tiles = {}
    for name in ("tiles_decoded", "tiles_distinct"):
        counts = [getattr(slide, name, None) for slide in slides]
        if all(count is not None for count in counts):
            tiles[name] = sum(counts)
    return {"stages": stages, "limiting_stage": report.limiting_stage, **tiles}


def _level_px(path: Path) -> int:
    with openslide.OpenSlide(path) as slide:
        width, height = slide.dimensions
    return width * height


# ---- window by window through OpenSlide


def region_windows(path: Path, kernel: int, stride: int, n_windows: int) -> list[tuple[int, int]]:
    """(x, y) of about `n_windows` windows, row by row, of a region from the slide's corner; no more than the slide has."""
    with openslide.OpenSlide(path) as slide:
        width, height = slide.dimensions
    columns = range(0, min(width, REGION_WIDTH_PX) - kernel + 1, stride)
    rows = range(0, height - kernel + 1, stride)[: max(1, round(n_windows / len(columns)))]
    return [(x, y) for y in rows for x in columns]


def _region_px(windows: Sequence[tuple[int, int]], kernel: int) -> int:
    (left, top), (right, bottom) = windows[0], windows[-1]
    return (right + kernel - left) * (bottom + kernel - top)


def openslide_loop(path: Path, kernel: int, stride: int, n_windows: int) -> Timing:
    """One window after the other, in one thread, as scripts do; batches of the same size are touched.

    Includes opening the slide. Writes nothing.
    """
    windows = region_windows(path, kernel, stride, n_windows)
    begun = time.perf_counter()
    with openslide.OpenSlide(path) as slide:
        for first in range(0, len(windows), BATCH_SIZE):
            touch(np.stack([_window(slide, place, kernel) for place in windows[first : first + BATCH_SIZE]]))
    return Timing(time.perf_counter() - begun, len(windows), _region_px(windows, kernel))


def _window(slide: openslide.OpenSlide, place: tuple[int, int], kernel: int) -> np.ndarray:
    return np.asarray(slide.read_region(place, 0, (kernel, kernel)).convert("RGB"))


class OpenSlideWindows:
    """A map-style dataset for PyTorch: each worker opens the slide when it first needs it."""

    def __init__(self, path: Path, windows: Sequence[tuple[int, int]], kernel: int) -> None:
        self._path, self._windows, self._kernel = path, windows, kernel
        self._slide: openslide.OpenSlide | None = None

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, number: int) -> Any:
        """(kernel, kernel, 3) uint8, as a tensor."""
        import torch

        if self._slide is None:
            self._slide = openslide.OpenSlide(self._path)
        picture = self._slide.read_region(self._windows[number], 0, (self._kernel, self._kernel)).convert("RGB")
        return torch.from_numpy(np.array(picture))


def data_loader(path: Path, kernel: int, stride: int, n_windows: int) -> Timing:
    """PyTorch's DataLoader over OpenSlide with a worker for each processor, other options as they are; batches are touched.

    Includes starting its workers and opening the slide in each; not the import of PyTorch. Writes nothing.
    """
    windows = region_windows(path, kernel, stride, n_windows)
    return Timing(_data_loader_s(path, windows, kernel), len(windows), _region_px(windows, kernel))


def data_loader_over(path: Path, windows: Sequence[tuple[int, int]], kernel: int) -> Timing:
    """The same over given windows, none of which overlap."""
    return Timing(_data_loader_s(path, windows, kernel), len(windows), len(windows) * kernel**2)


def _data_loader_s(path: Path, windows: Sequence[tuple[int, int]], kernel: int) -> float:
    from torch.utils.data import DataLoader

    begun = time.perf_counter()
    loader = DataLoader(OpenSlideWindows(path, windows, kernel), batch_size=BATCH_SIZE, num_workers=available_cpus())
    for batch in loader:
        touch(batch.numpy())
    return time.perf_counter() - begun


# ---- windows under a mask


def on_tissue(path: Path) -> sw.GridSampler:
    """Windows side by side at least half of which is tissue.

    The slides built here are tissue from edge to edge; what is taken for it has the outlines that the bundled slide's has,
    stretched over the whole slide.
    """
    with openslide.OpenSlide(path) as slide:
        width, height = slide.dimensions
    shape = sw.TissueMask(BUNDLED, mpp=4).array
    mask = sw.Mask(shape, scale=(width / shape.shape[1], height / shape.shape[0]), offset=(0, 0))
    return sw.GridSampler(border="crop", region=mask, min_coverage=0.5)


def sampled_windows(path: Path, kernel: int, sampler: sw.GridSampler) -> list[tuple[int, int]]:
    """(x, y) of a sampler's windows, in their order."""
    with sw.open_slide(path) as reader:
        slide = sw.Slide(path, path.stem, reader.info)
        places = sampler.places(sw.Scene(slide, path.stem, reader.info.dimensions, 1.0, (kernel, kernel), reader))
    return [(x, y) for x, y in places.start.tolist()]


def stream_here(path: Path, kernel: int, sampler: sw.GridSampler, **options: Any) -> Timing:
    """``sw.stream`` over a sampler's windows, none of which overlap, with defaults; batches are touched in this process.

    Includes starting and ending the loaders, opening the slide and placing the windows; not finding the tissue.
    """
    windows_here = sw.stream(sw.WindowLoader(sw.Dataset.from_paths([path]), kernel, sampler), batch_size=BATCH_SIZE, **options)
    begun = time.perf_counter()
    there = 0
    for batch in windows_here:
        touch(batch.pixels)
        there += len(batch)
    seconds = time.perf_counter() - begun
    return Timing(seconds, there, there * kernel**2)


# ---- another transport


def queue_transport(path: Path) -> Timing:
    """Tiles decoded directly by a process for each processor, batches of them sent through one multiprocessing.Queue, touched.

    As windows of one tile each, so that nothing but decoding and the queue is in it; the best that this transport allows.
    Includes neither starting the processes nor reading the file's directory. Writes nothing.
    """
    context = multiprocessing.get_context("spawn")
    batches = context.Queue(maxsize=4 * available_cpus())
    shares = Tiles.of(path).shares(available_cpus())
    with _children(_decode_into_queue, [(tiles, batches) for tiles in shares]) as pipes:
        begun = time.perf_counter()
        for pipe in pipes:
            pipe.send(None)
        windows, running = 0, len(pipes)
        while running:
            batch = batches.get()
            if batch is None:
                running -= 1
            else:
                touch(batch)
                windows += len(batch)
        return Timing(time.perf_counter() - begun, windows, windows * TILE_PX**2)


def _decode_into_queue(pipe: Connection, given: tuple[Tiles, Any]) -> None:
    tiles, batches = given
    pipe.send(None)
    pipe.recv()
    for first in range(0, len(tiles.offsets), BATCH_SIZE):
        part = Tiles(tiles.path, tiles.offsets[first : first + BATCH_SIZE], tiles.counts[first : first + BATCH_SIZE])
        pixels = empty_pixels((len(part.offsets), TILE_PX, TILE_PX, 3))  # the queue's thread may still hold the last
        part.decode(iter(pixels).__next__)
        batches.put(pixels)
    batches.put(None)


@contextmanager
def _children(target: Callable[[Connection, Any], None], jobs: Sequence[Any]) -> Iterator[list[Connection]]:
    """A process for each job, started afresh and ready; gone when the block is left."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes: list[BaseProcess] = []
    try:
        for job in jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(theirs, job), daemon=True)
            process.start()
            theirs.close()  # so that its end is noticed
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            pipe.recv()
        yield pipes
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()
