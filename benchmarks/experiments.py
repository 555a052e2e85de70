"""The experiments: which contestants run side by side, and which rows of the table that gives.

In: slides, and how many rounds.  Out: an Outcome each.  The numbers are those of the aims in ``benchmarks/README.md``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import streamwsi as sw
from benchmarks.collectors import Device, Features, Touch
from benchmarks.contestants import (
    HAS_TORCH,
    data_loader,
    data_loader_over,
    decode_in_processes,
    decode_in_threads,
    decode_to_memory,
    on_tissue,
    openslide_loop,
    queue_transport,
    sampled_windows,
    stream,
    stream_apart,
    stream_here,
    stream_to_several,
)
from benchmarks.measure import Outcome, Row, Spread, Timing, best, interleaved, mpx_per_s, ratio, without
from benchmarks.patches import extract, script
from benchmarks.profile import Profile, profile_run
from benchmarks.simulation import simulate
from benchmarks.slides import BUNDLED, Slides, read_into_page_cache
from benchmarks.watching import first_commit_seconds, heatmap_command, help_seconds, repeated, watch

N_WINDOWS = {(256, 256): 4096, (256, 128): 2048, (512, 256): 1024}
"""How many windows the window-by-window readers are given: some seconds' worth."""


@dataclass(frozen=True)
class Setting:
    """What an experiment has to work with."""

    slides: Slides
    rounds: int
    brief: bool
    """A quick look: less of everything, and no figures to rely on."""
    say: Callable[[str], None]

    def windows(self, kernel: int, stride: int) -> int:
        """How many windows window-by-window readers are given."""
        return N_WINDOWS[kernel, stride] // (4 if self.brief else 1)

    def race(self, contestants: dict[str, Callable[[], Timing]], *slides: Path) -> dict[str, list[Timing]]:
        """Run contestants in turn, with their slides in the page cache."""
        for path in slides:
            read_into_page_cache(path)
        return interleaved(contestants, self.rounds, self.say)


def throughput(setting: Setting) -> Outcome:
    """Windows of 256 px side by side: against the decoder, and against what else one could use."""
    large, quarter, single = setting.slides.large, setting.slides.quarter, setting.slides.single
    n_windows = setting.windows(256, 256)
    contestants: dict[str, Callable[[], Timing]] = {
        "decoder, threads": partial(decode_in_threads, quarter),
        "decoder, processes": partial(decode_in_processes, quarter),
        "decoder, to memory": partial(decode_to_memory, quarter),
        "streamwsi": partial(stream, [large], 256, 256),
        "streamwsi, reader openslide": partial(stream, [quarter], 256, 256, reader="openslide"),
        "streamwsi, one window": partial(stream, [single], 256, 256),
        "OpenSlide loop": partial(openslide_loop, large, 256, 256, n_windows // 2),
        "multiprocessing.Queue": partial(queue_transport, quarter),
    }
    if HAS_TORCH:
        contestants["DataLoader"] = partial(data_loader, large, 256, 256, n_windows)
    taken = setting.race(contestants, large, quarter)
    ours, start = taken["streamwsi"], taken["streamwsi, one window"]
    limit = best(taken["decoder, threads"], taken["decoder, processes"])
    through_openslide, to_memory = taken["streamwsi, reader openslide"], taken["decoder, to memory"]
    rows = [
        Row("1", "256/256: end to end ÷ raw decode limit, unique pixels/s", ratio(ours, limit, mpx_per_s), aim=0.85),
        Row("", "  the same without a run's start and end", ratio(without(ours, start), limit, mpx_per_s)),
        Row("", "  decoding to memory, touched there once ÷ raw decode limit", ratio(to_memory, limit, mpx_per_s)),
        Row("", "  without start and end ÷ decoding to memory", ratio(without(ours, start), to_memory, mpx_per_s)),
        Row("", "  raw decode limit", Spread.of(timing.mpx_per_s for timing in limit), "Mpx/s"),
        Row("", "  end to end", Spread.of(timing.mpx_per_s for timing in ours), "Mpx/s"),
        Row("", "  start and end: a run over one window", Spread.of(timing.seconds for timing in start), "s"),
    ]
    if HAS_TORCH:
        rows.append(Row("2", "256/256: end to end ÷ DataLoader over OpenSlide", ratio(ours, taken["DataLoader"]), aim=5))
        rows.append(
            Row("4", '256/256: reader="openslide" ÷ DataLoader', ratio(through_openslide, taken["DataLoader"]), aim=1.1),
        )
        rows.append(
            Row("", "  the same without a run's start and end", ratio(without(through_openslide, start), taken["DataLoader"]))
        )
    rows += [
        Row("", "256/256: end to end ÷ plain OpenSlide loop", ratio(ours, taken["OpenSlide loop"])),
        Row("", "256/256: end to end ÷ decoding through multiprocessing.Queue", ratio(ours, taken["multiprocessing.Queue"])),
    ]
    return Outcome(rows, taken)


def overlap(setting: Setting) -> Outcome:
    """Overlapping windows, against DataLoader over OpenSlide."""
    large, quarter = setting.slides.large, setting.slides.quarter
    contestants: dict[str, Callable[[], Timing]] = {
        "streamwsi, 256/128": partial(stream, [large], 256, 128),
        "streamwsi, 512/256": partial(stream, [large], 512, 256),
        "streamwsi, 256/128, reader openslide": partial(stream, [quarter], 256, 128, reader="openslide"),
    }
    for kernel, stride in ((256, 128), (512, 256)):
        shape = f"{kernel}/{stride}"
        contestants[f"OpenSlide loop, {shape}"] = partial(
            openslide_loop, large, kernel, stride, setting.windows(kernel, stride) // 2
        )
        if HAS_TORCH:
            contestants[f"DataLoader, {shape}"] = partial(data_loader, large, kernel, stride, setting.windows(kernel, stride))
    taken = setting.race(contestants, large, quarter)
    rows = []
    if HAS_TORCH:
        for shape in ("256/128", "512/256"):
            over = ratio(taken[f"streamwsi, {shape}"], taken[f"DataLoader, {shape}"])
            rows.append(Row("3", f"{shape}: end to end ÷ DataLoader over OpenSlide", over, aim=12))
        over = ratio(taken["streamwsi, 256/128, reader openslide"], taken["DataLoader, 256/128"])
        rows.append(Row("4", '256/128: reader="openslide" ÷ DataLoader', over, aim=3))
    for shape in ("256/128", "512/256"):
        over = ratio(taken[f"streamwsi, {shape}"], taken[f"OpenSlide loop, {shape}"])
        rows.append(Row("", f"{shape}: end to end ÷ plain OpenSlide loop", over))
    return Outcome(rows + _tiles_row("256/128", taken["streamwsi, 256/128"]), taken)


def masked(setting: Setting) -> Outcome:
    """Windows of 256 px on tissue, in the process that uses them: ``sw.stream`` against DataLoader over OpenSlide."""
    large, single = setting.slides.large, setting.slides.single
    sampler = on_tissue(large)
    windows = sampled_windows(large, 256, sampler)
    contestants: dict[str, Callable[[], Timing]] = {
        "sw.stream": partial(stream_here, large, 256, sampler),
        "sw.stream, shuffled": partial(stream_here, large, 256, sampler, shuffle=0),
        "sw.stream, one window": partial(stream_here, single, 256, sw.GridSampler()),
    }
    if HAS_TORCH:
        contestants["DataLoader"] = partial(data_loader_over, large, windows, 256)
    taken = setting.race(contestants, large)
    counts = {timing.windows for name in ("sw.stream", "sw.stream, shuffled") for timing in taken[name]}
    if counts != {len(windows)}:
        raise RuntimeError(f"sw.stream gave {counts} windows, DataLoader was given {len(windows)}")
    ours, shuffled, start = taken["sw.stream"], taken["sw.stream, shuffled"], taken["sw.stream, one window"]
    rows = []
    if HAS_TORCH:
        theirs = taken["DataLoader"]
        rows = [
            Row("13", "256 px on tissue: sw.stream ÷ DataLoader over OpenSlide", ratio(ours, theirs), aim=4),
            Row("", "  the same without a pass's start and end", ratio(without(ours, start), theirs)),
            Row("", "  shuffled (DataLoader reads in order)", ratio(shuffled, theirs)),
        ]
    rows.append(Row("", "  start and end: a pass over one window", Spread.of(timing.seconds for timing in start), "s"))
    return Outcome(rows, taken)


def tiles(setting: Setting) -> Outcome:
    """How often a tile is decoded, where windows overlap eightfold along each axis."""
    eighth = setting.slides.eighth
    taken = {"streamwsi, 256/64": [stream([eighth], 256, 64)]}
    rows = _tiles_row("256/64", taken["streamwsi, 256/64"])
    if not rows:
        setting.say("  the report does not count tiles with this reader")
    return Outcome(rows, taken)


def _tiles_row(shape: str, timings: list[Timing]) -> list[Row]:
    """The row of tiles decoded, where the reports count them."""
    counts = [(timing.details.get("tiles_decoded"), timing.details.get("tiles_distinct")) for timing in timings]
    shares = [decoded / distinct for decoded, distinct in counts if decoded and distinct]
    return [Row("11", f"{shape}: tiles decoded ÷ distinct tiles", Spread.of(shares), aim=1.05, at_most=True)] if shares else []


def many(setting: Setting) -> Outcome:
    """Forty slides of the area of one."""
    large, several = setting.slides.large, setting.slides.many
    contestants = {"one slide": partial(stream, [large], 256, 256), "40 slides": partial(stream, several, 256, 256)}
    taken = setting.race(contestants, large, *several)
    value = ratio(taken["40 slides"], taken["one slide"])
    return Outcome([Row("5", "40 small slides ÷ one large slide of the same area", value, aim=0.85)], taken)


def devices(setting: Setting) -> Outcome:
    """A device that takes 20 ms for each batch, and two of them."""
    large = setting.slides.large
    contestants = {
        f"{number} collector{'s' if number > 1 else ''}": partial(
            stream, [large], 256, 256, collector=Device(0.020), collectors=number
        )
        for number in (1, 2)
    }
    taken = setting.race(contestants, large)
    value = ratio(taken["2 collectors"], taken["1 collector"])
    return Outcome([Row("6", "two collectors ÷ one, 20 ms on a device per batch of 32", value, aim=1.9)], taken)


def features(setting: Setting) -> Outcome:
    """As many values as an encoder gives, written to HDF5."""
    large = setting.slides.large
    contestants = {
        "mean": partial(stream, [large], 256, 256, collector=sw.MeanCollector()),
        "1024 features": partial(stream, [large], 256, 256, collector=Features()),
    }
    taken = setting.race(contestants, large)
    value = ratio(taken["1024 features"], taken["mean"])
    return Outcome([Row("7", "1024 float32 per window to HDF5 ÷ the mean collector", value, aim=0.8)], taken)


def several(setting: Setting) -> Outcome:
    """Two collectors on one stream, and each in a run of its own: two light ones, and one that writes much."""
    large = setting.slides.large
    touch, rows, all_taken = Touch(), [], {}
    for number, name, other, aim in (("12", "mean", sw.MeanCollector(), 0.6), ("", "1024 features", Features(), None)):
        collectors: dict[str, sw.StreamCollector] = {"touch": touch, "other": other}
        contestants = {
            f"touch and {name}, one stream": partial(stream_to_several, large, 256, 256, collectors),
            f"touch and {name}, two runs": partial(stream_apart, large, 256, 256, collectors),
        }
        taken = setting.race(contestants, large)
        one_stream, two_runs = taken.values()
        shares = Spread.of([one.seconds / two.seconds for one, two in zip(one_stream, two_runs, strict=True)])
        rows.append(Row(number, f"touch and {name} on one stream ÷ two runs, time", shares, aim=aim, at_most=True))
        rows += _tiles_row(f"touch and {name}", one_stream)
        all_taken |= taken
    return Outcome(rows, all_taken)


def patches(setting: Setting) -> Outcome:
    """Windows written as PNG, beside a script of two processes with OpenSlide and Pillow."""
    slide = setting.slides.eighth
    contestants = {"streamwsi extract": partial(extract, slide), "OpenSlide and Pillow, 2 processes": partial(script, slide)}
    ours, theirs = (taken := setting.race(contestants, slide)).values()
    sizes = Spread.of(mine.details["bytes"] / other.details["bytes"] for mine, other in zip(ours, theirs, strict=True))
    rows = [
        Row("14", "PNG of windows, whole commands: streamwsi extract ÷ the script", ratio(ours, theirs), aim=1.5),
        Row("", "the same, bytes written", sizes, aim=1.1, at_most=True),
    ]
    return Outcome(rows, taken)


def scheduler(setting: Setting) -> Outcome:
    """The scheduler, without a pipeline."""
    n_slides = 1000 if setting.brief else 10_000
    found = [simulate(100, 0) for _ in range(setting.rounds)]
    grown = simulate(100, n_slides - 100)
    rows = [
        Row("8", "scheduler alone, simulated", Spread.of(each.chunks_per_s for each in found), "chunks/s", aim=20_000),
        Row(
            "8",
            f"scheduler: growth from 100 to {n_slides:,} slides of 1000 chunks (sampled)",
            Spread.of([grown.growth_mb]),
            "MB",
            aim=50,
            at_most=True,
        ),
    ]
    return Outcome(rows)


def memory(setting: Setting) -> Outcome:
    """What all processes of a run hold together at most, on a slide and on one of eight times its area."""
    contestants = {name: partial(_peak, getattr(setting.slides, name)) for name in ("large", "eighth")}
    taken = interleaved(contestants, 1 if setting.brief else min(setting.rounds, 2), setting.say)
    peaks = {name: [timing.details["peak_mb"] for timing in timings] for name, timings in taken.items()}
    growth = Spread.of(mine / theirs for mine, theirs in zip(peaks["large"], peaks["eighth"], strict=True))
    rows = [
        Row("9", "peak memory of all processes, defaults (PSS)", Spread.of(peaks["large"]), "MB", aim=700, at_most=True),
        Row("9", "the same, slide of eight times the area ÷ slide", growth, aim=1.1, at_most=True),
    ]
    return Outcome(rows, taken)


def _peak(slide: Path) -> Timing:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        seen = watch(heatmap_command(slide, Path(folder, "out"), "--collector", "mean"), memory=True)
    by_role = {role: round(held, 1) for role, held in seen.at_peak_mb.items()}
    return Timing(seen.seconds, details={"peak_mb": round(seen.peak_mb, 1), "at_peak_mb": by_role})


def startup(setting: Setting) -> Outcome:
    """How long a person waits."""
    times = 1 if setting.brief else 5
    rows = [
        Row("10", "streamwsi --help", Spread.of(repeated(help_seconds, times)), "s", aim=0.3, at_most=True),
        Row(
            "10",
            "command to first committed window, bundled slide",
            Spread.of(repeated(partial(first_commit_seconds, BUNDLED), times)),
            "s",
            aim=2,
            at_most=True,
        ),
    ]
    return Outcome(rows)


def profile(setting: Setting) -> Outcome:
    """Where the time goes, stage by stage, with a collector that only touches its pixels."""
    quarter, single = setting.slides.quarter, setting.slides.single
    profiles = [profile_run(quarter, single, 256, stride) for stride in (256, 128)]
    return Outcome(text="\n\n".join(map(Profile.as_text, profiles)), details={"profiles": [asdict(each) for each in profiles]})


EXPERIMENTS: dict[str, Callable[[Setting], Outcome]] = {
    experiment.__name__: experiment
    for experiment in (
        throughput,
        overlap,
        masked,
        tiles,
        many,
        devices,
        several,
        features,
        patches,
        scheduler,
        memory,
        startup,
        profile,
    )
}
