"""A model on a GPU, fed from a slide: ``python -m benchmarks.gpu``.

In: a slide's size, a batch size.  Out: a table of windows per second, and of ratios to the GPU alone.

The model is built like ResNet-50 (bottlenecks 3, 4, 6, 3; 25 million weights, made up), as TorchScript, in half precision. What
it can take at most is measured on a batch that already lies on the device, from bytes to features, as collectors have it.
What is given to the writers are its 2048 features for each window. The other way that is measured is what scripts do: PyTorch's
DataLoader over OpenSlide, a worker for each processor, pinned memory, the same model in the same process; it writes nothing.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

import streamwsi as sw
from benchmarks.contestants import OpenSlideWindows, region_windows, stream
from benchmarks.measure import Row, Spread, Timing, available_cpus, compile_package, interleaved, ratio, table, without
from benchmarks.slides import default_folder, write_slide

KERNEL = 256
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3, 1 × 1, and what goes round them. Source: He et al., "Deep residual learning", CVPR 2016, figure 5."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)),
        )
        same = stride == 1 and channels == 4 * width
        self.round = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(n, channels, h, w) to (n, 4 × width, h / stride, w / stride)."""
        return torch.relu(self.path(values) + self.round(values))


def encoder() -> nn.Module:
    """(n, 3, h, w) to (n, 2048)."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for number, (blocks, width) in enumerate(STAGES):
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, 2 if number and not block else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def save(path: Path) -> Path:
    """The encoder as TorchScript."""
    with torch.inference_mode():
        torch.jit.trace(encoder(), torch.zeros(2, 3, KERNEL, KERNEL)).save(str(path))
    return path


def collector(model: Path) -> sw.TorchScriptCollector:
    """The model as it is run everywhere here."""
    return sw.TorchScriptCollector(model, autocast="float16", channels_last=True)


def alone(model: Path, device: str, batch_size: int, batches: int) -> Timing:
    """The device alone: the same batch over and over, there as bytes; features stay there."""
    program = torch.jit.load(str(model), map_location=device).to(memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (batch_size, KERNEL, KERNEL, 3), dtype=torch.uint8, device=device).movedim(-1, 1)
    run = partial(_features, program, pixels, device)
    for _ in range(3):
        run()
    _wait(device)
    begun = time.perf_counter()
    for _ in range(batches):
        run()
    _wait(device)
    return Timing(time.perf_counter() - begun, batches * batch_size)


def data_loader(slide: Path, model: Path, device: str, batch_size: int, n_windows: int) -> Timing:
    """What scripts do. Includes starting the workers; the model is loaded before."""
    from torch.utils.data import DataLoader

    program = torch.jit.load(str(model), map_location=device).to(memory_format=torch.channels_last)
    _features(program, torch.zeros(batch_size, 3, KERNEL, KERNEL, dtype=torch.uint8, device=device), device)
    windows = region_windows(slide, KERNEL, KERNEL, n_windows)
    begun = time.perf_counter()
    loader = DataLoader(
        OpenSlideWindows(slide, windows, KERNEL), batch_size, num_workers=available_cpus(), pin_memory=device != "cpu"
    )
    for batch in loader:
        _features(program, batch.to(device, non_blocking=True).movedim(-1, 1), device).cpu()
    return Timing(time.perf_counter() - begun, len(windows))


def run(slide: Path, model: Path, device: str, batch_size: int, collectors: int) -> Timing:
    """A whole run, features in an HDF5 file; `collectors` share the device. Includes starting, and loading the model."""
    made = collector(model)
    made.batch_size = batch_size
    loader = sw.SlidingWindowLoader(sw.Dataset.from_paths([slide]), KERNEL)
    with tempfile.TemporaryDirectory(prefix="bench-") as out:
        begun = time.perf_counter()
        report = sw.Pipeline(
            loader, made, sw.HDF5StreamWriter(out), collectors=collectors, devices=[device] * collectors, quiet=True
        ).run()
        seconds = time.perf_counter() - begun
    stages = {name: [round(stage.busy, 2), round(stage.wait_input, 2)] for name, stage in report.stages.items()}
    return Timing(seconds, report.windows, details={"stages": stages, "limiting_stage": report.limiting_stage})


def _features(program: Any, pixels: torch.Tensor, device: str) -> torch.Tensor:
    with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.float16, enabled=device != "cpu"):
        return program(pixels.to(torch.float32).div_(255)).float()


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--size", type=click.IntRange(4096), default=49152, show_default=True, help="Of the slide, along each side.")
@click.option("--single-size", type=click.IntRange(256), default=256, help="Of the slide whose run is start and end alone.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--windows", type=click.IntRange(64), default=16384, show_default=True, help="Given to the DataLoader.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Where to write all figures.")
def main(size: int, single_size: int, batch_size: int, rounds: int, device: str, windows: int, json_file: Path | None) -> None:
    """A model on a GPU: how much of what the GPU can take it is given."""
    compile_package()
    folder = default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    slide, single = folder / f"gpu-{size}.tiff", folder / f"gpu-{single_size}.tiff"
    for path, side in ((slide, size), (single, single_size)):
        if not path.exists():
            write_slide(path, side, side)
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        model = save(Path(temporary, "encoder.pt"))
        contestants: dict[str, Callable[[], Timing]] = {
            "device alone": partial(alone, model, device, batch_size, max(8, windows // batch_size)),
            "1 collector": partial(run, slide, model, device, batch_size, 1),
            "2 collectors": partial(run, slide, model, device, batch_size, 2),
            "one window": partial(run, single, model, device, batch_size, 1),
            "no model": partial(stream, [slide], KERNEL, KERNEL),
            "DataLoader": partial(data_loader, slide, model, device, batch_size, windows),
        }
        taken = interleaved(contestants, rounds, click.echo)
    rows = [
        Row("", f"{name}, windows/s", Spread.of(timing.windows_per_s for timing in timings))
        for name, timings in taken.items()
        if name != "one window"
    ]
    start = taken["one window"]
    rows.append(
        Row("", "start and end, with loading PyTorch and the model", Spread.of(timing.seconds for timing in start), "s")
    )
    for name in ("1 collector", "2 collectors"):
        rows.append(Row("", f"{name} ÷ device alone", ratio(taken[name], taken["device alone"])))
        rows.append(Row("", "  without start and end", ratio(without(taken[name], start), taken["device alone"])))
        rows.append(Row("", "  ÷ DataLoader", ratio(taken[name], taken["DataLoader"])))
    name = torch.cuda.get_device_name(0) if device.startswith("cuda") else "no GPU"
    click.echo(f"\n{name}, {available_cpus()} processors, batches of {batch_size}, PyTorch {torch.__version__}\n")
    click.echo(table(rows))
    for timing in (*taken["1 collector"], *taken["2 collectors"]):
        click.echo(f"  stages (busy, waiting for input) {timing.details['stages']}: {timing.details['limiting_stage']}")
    if json_file is not None:
        figures = {key: [[timing.seconds, timing.windows] for timing in timings] for key, timings in taken.items()}
        json_file.write_text(json.dumps({"device": name, "processors": available_cpus(), **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
