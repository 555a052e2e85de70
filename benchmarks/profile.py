"""Where the time of a run goes, stage by stage: ``python -m benchmarks.profile``.

In: a slide, a window.  Out: processor seconds of each process, and of the steps in it, as shares of what the machine had.

Processes are measured from outside, by what the system says they used; what a run over one window uses is start and end. Steps
inside a process are measured alone, in one thread, on a part of the slide, and scaled to all of it: tiles decoded as the raw
limit does; chunks read as loaders read them, into memory used in turn; batches touched. What is left of the process is the
rest. No code under measurement is changed or slowed for it. A step alone has the caches to itself, so its share is a lower
bound.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

import benchmarks.collectors
import streamwsi as sw
from benchmarks.collectors import touch
from benchmarks.contestants import BATCH_SIZE, Tiles
from benchmarks.measure import available_cpus, compile_package, machine
from benchmarks.slides import TILE_PX, Slides, default_folder, parsed_size, read_into_page_cache
from benchmarks.watching import Seen, heatmap_command, watch
from streamwsi.config import SMALL_CHUNK_PX, TILE_CACHE_BYTES
from streamwsi.loading.read import read_chunk
from streamwsi.loading.resolution import Wanted
from streamwsi.loading.resolve import Choices, resolve_slide
from streamwsi.memory import empty_pixels
from streamwsi.pipeline.reading import default_chunk_px, loader_startup
from streamwsi.resolved import ResolvedSlide
from streamwsi.slides.reader import SlideReader, open_slide

ROLES = ("loader", "collector", "writer", "publisher", "driver")
_SLOTS = 4
"""Pieces of memory that chunks are read into in turn."""
_SAMPLE_PX = 1 << 27
"""How much of the slide a step alone is measured on."""


@dataclass(frozen=True)
class Stage:
    """The processes of one role."""

    cpu_s: float
    system_s: float
    """The part of it in the kernel."""
    start_and_end_s: float
    """What a run over one window takes."""
    share: float
    """Of wall time × processors."""
    clocks: dict[str, float] | None
    """busy, wait_input, wait_output, as the report has them."""


@dataclass(frozen=True)
class Profile:
    """Where one run's time went."""

    kernel: int
    stride: int
    reader: str
    """What was asked for, and what the run took."""
    cpus: int
    wall_s: float
    windows: int
    mpx: float
    limiting_stage: str | None
    stages: dict[str, Stage]
    steps: dict[str, float]
    """Processor seconds of each step for the whole slide; the rests may come out below 0 where steps overlap."""
    idle: float
    """Share of wall time × processors that no process of the run used."""

    def as_text(self) -> str:
        """For people."""
        total = self.wall_s * self.cpus
        lines = [
            f"{self.kernel}/{self.stride}, reader {self.reader}: {self.windows} windows, {self.mpx:.0f} Mpx in "
            f"{self.wall_s:.2f} s on {self.cpus} processors; the report names the {self.limiting_stage} as limiting",
            f"{'':28}{'cpu s':>8}{'kernel':>8}{'start, end':>12}{'share':>8}{'us/window':>11}   busy / waits in / out",
        ]
        for role, stage in self.stages.items():
            clocks = " / ".join(f"{value:.2f}" for value in stage.clocks.values()) if stage.clocks else ""
            lines.append(
                f"{role:28}{stage.cpu_s:8.2f}{stage.system_s:8.2f}{stage.start_and_end_s:12.2f}{stage.share:8.1%}"
                f"{stage.cpu_s / self.windows * 1e6:11.1f}   {clocks}"
            )
            for name, seconds in self.steps.items():
                if name.startswith(role):
                    step = name.removeprefix(f"{role}: ")
                    lines.append(f"  {step:26}{seconds:8.2f}{'':20}{seconds / total:8.1%}{seconds / self.windows * 1e6:11.1f}")
        lines.append(f"{'idle, or others':28}{self.idle * total:8.2f}{'':20}{self.idle:8.1%}")
        return "\n".join(line.rstrip() for line in lines)


def profile_run(slide: Path, single: Path, kernel: int = 256, stride: int = 256, reader: str = "auto") -> Profile:
    """Run over `slide` with a collector that only touches its pixels, and say where the time went.

    `single` is a slide of one window, for what start and end take.
    """
    read_into_page_cache(slide)
    seen, report = _run(slide, kernel, stride, reader)
    fixed, _ = _run(single, kernel, stride, reader)
    facts = report["patients"][0]["slides"][0]
    cpus = available_cpus()
    total = seen.seconds * cpus
    cpu_s = {role: seen.user_s.get(role, 0.0) + seen.system_s.get(role, 0.0) for role in ROLES}
    stages = {
        role: Stage(
            cpu_s=cpu_s[role],
            system_s=seen.system_s.get(role, 0.0),
            start_and_end_s=fixed.user_s.get(role, 0.0) + fixed.system_s.get(role, 0.0),
            share=cpu_s[role] / total,
            clocks=_clocks(report, role),
        )
        for role in ROLES
    }
    tiles = Tiles.of(slide)
    px, windows = len(tiles.offsets) * TILE_PX**2, int(report["windows"])
    return Profile(
        kernel=kernel,
        stride=stride,
        reader=f"{reader} ({facts['reader']})",
        cpus=cpus,
        wall_s=seen.seconds,
        windows=windows,
        mpx=px / 1e6,
        limiting_stage=report["limiting_stage"],
        stages=stages,
        steps=_steps(slide, tiles, reader, stages, windows, kernel, stride),
        idle=max(0.0, 1 - sum(cpu_s.values()) / total),
    )


def _run(slide: Path, kernel: int, stride: int, reader: str) -> tuple[Seen, dict[str, Any]]:
    touching = f"{Path(benchmarks.collectors.__file__).resolve()}:Touch"
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out = Path(folder, "out")
        options = ("--collector", touching, "--kernel-size", kernel, "--stride", stride, "--reader", reader)
        seen = watch(heatmap_command(slide, out, *options))
        return seen, json.loads((out / "report.json").read_text())


def _clocks(report: dict[str, Any], role: str) -> dict[str, float] | None:
    stage = report["stages"].get(role)
    return None if stage is None else {name: stage[name] for name in ("busy", "wait_input", "wait_output")}


def _steps(
    slide: Path, tiles: Tiles, reader: str, stages: dict[str, Stage], windows: int, kernel: int, stride: int
) -> dict[str, float]:
    """Processor seconds of what can be measured alone, for the whole slide, and of what is left of each process."""
    level_px = len(tiles.offsets) * TILE_PX**2
    decode = _alone(lambda: _decode_some(tiles)) * level_px
    with open_slide(slide, reader) as opened:
        resolved = _resolved(opened, slide, kernel, stride)
    read = _alone(lambda: _read_some(slide, reader, resolved)) * level_px
    touched = _alone(lambda: _touch_some(kernel)) * windows * kernel**2
    loader, collector = stages["loader"], stages["collector"]
    return {
        "loader: decode the tiles": decode,
        "loader: read chunks, beyond that": read - decode,
        "loader: start and end": loader.start_and_end_s,
        "loader: send, speak, rest": loader.cpu_s - read - loader.start_and_end_s,
        "collector: touch": touched,
        "collector: start and end": collector.start_and_end_s,
        "collector: receive, cut, rest": collector.cpu_s - touched - collector.start_and_end_s,
    }


def _alone(work: Callable[[], int]) -> float:
    """Processor seconds for each pixel that `work` says it did; the better of two."""
    costs = []
    for _ in range(2):
        begun = time.process_time()
        px = work()
        costs.append((time.process_time() - begun) / px)
    return min(costs)


def _decode_some(tiles: Tiles) -> int:
    n = min(len(tiles.offsets), _SAMPLE_PX // TILE_PX**2)
    return Tiles(tiles.path, tiles.offsets[:n], tiles.counts[:n]).decode_and_forget() * TILE_PX**2


def _resolved(reader: SlideReader, slide: Path, kernel: int, stride: int) -> ResolvedSlide:
    """What a run with defaults makes of the slide."""
    loader = sw.SlidingWindowLoader(sw.Dataset.from_paths([slide]), kernel, stride)
    reading = loader_startup(
        loader,
        batch_size=BATCH_SIZE,
        chunk_px=default_chunk_px("auto", images=False),
        openslide_chunk_px=SMALL_CHUNK_PX,
        threads=1,
        tile_cache_bytes=TILE_CACHE_BYTES,
    ).reading
    return resolve_slide(reader, (0, 0), slide.stem, sw.Slide(slide, slide.stem), Choices(Wanted.of()), reading)


def _read_some(slide: Path, reader: str, resolved: ResolvedSlide) -> int:
    chunks = range(len(resolved.chunks()))
    largest = max(resolved.blank_chunk(number).pixels.nbytes for number in chunks[:_SLOTS])
    slots = [empty_pixels((largest,)) for _ in range(_SLOTS)]
    done = 0
    with open_slide(slide, reader) as opened:  # anew: no tile is in its cache
        for number in chunks:
            if done >= _SAMPLE_PX:
                break
            chunk = read_chunk(opened, resolved, number, memory=slots[number % _SLOTS])
            done += len(chunk.windows) * resolved.stride[0] * resolved.stride[1]
    return done


def _touch_some(kernel: int) -> int:
    batches = np.zeros((2, BATCH_SIZE, kernel, kernel, 3), np.uint8)
    done = 0
    while done < _SAMPLE_PX * 4:
        touch(batches[done % 2])
        done += BATCH_SIZE * kernel**2
    return done


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--size", type=parsed_size, default="24576x20480", show_default=True, help="Of the slide, WIDTHxHEIGHT in pixels."
)
@click.option("--kernel-size", "kernel", type=click.IntRange(1), default=256, show_default=True)
@click.option("--stride", type=click.IntRange(1), default=256, show_default=True)
@click.option("--reader", default="auto", show_default=True)
@click.option("--slides", type=click.Path(file_okay=False, path_type=Path), help="Where the slides are built and kept.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Where to write all figures.")
def main(size: tuple[int, int], kernel: int, stride: int, reader: str, slides: Path | None, json_file: Path | None) -> None:
    """Where the time of a run goes, stage by stage."""
    compile_package()
    built = Slides(slides or default_folder(), *size)
    about = machine()
    found = profile_run(built.large, built.single, kernel, stride, reader)
    click.echo(found.as_text())
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps({"machine": about, "profile": asdict(found)}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
