"""Run the benchmark: ``python -m benchmarks``, or ``make bench``.

In: which experiments, on how large a slide.  Out: a table of ratios, and all of it as JSON.
"""

from __future__ import annotations

import json
import platform
import time
from datetime import datetime, timezone
from pathlib import Path

import click

from benchmarks.contestants import HAS_TORCH
from benchmarks.experiments import EXPERIMENTS, Setting
from benchmarks.measure import compile_package, elsewhere, machine, table
from benchmarks.slides import Slides, default_folder, parsed_size

DEFAULT_SIZE = "65536x57344"
BRIEF_SIZE = "16384x10240"
DISTURBED = 0.05
"""Share of the machine used by others from which on a run says so."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--size", type=parsed_size, help=f"Of the large slide, WIDTHxHEIGHT in pixels.  [default: {DEFAULT_SIZE}]")
@click.option("--rounds", type=click.IntRange(1), help="How often each contestant runs.  [default: 3]")
@click.option(
    "--only", multiple=True, type=click.Choice(list(EXPERIMENTS)), help="One experiment; repeatable.  [default: all of them]"
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Where to write all figures.")
@click.option("--slides", type=click.Path(file_okay=False, path_type=Path), help="Where the slides are built and kept.")
@click.option("--quick", is_flag=True, help="A small slide and one round: whether it works, not how fast.")
def main(
    size: tuple[int, int] | None,
    rounds: int | None,
    only: tuple[str, ...],
    json_file: Path | None,
    slides: Path | None,
    quick: bool,
) -> None:
    """How fast streamwsi is, beside the JPEG decoder and what else one could use.

    All contestants run on the same slides, in turn, several times; each ratio is one of two that ran in the same round.
    """
    compile_package()
    width, height = size or parsed_size(BRIEF_SIZE if quick else DEFAULT_SIZE)
    folder = slides or default_folder()
    setting = Setting(Slides(folder, width, height), rounds or (1 if quick else 3), quick, click.echo)
    about = machine()
    begun = time.perf_counter()
    click.echo(f"{about['cpu']}, {about['cpus']} processors, Python {about['python']}, {platform.system()}")
    click.echo(f"slide of {width} x {height} px; slides are kept in {folder}")
    if not HAS_TORCH:
        click.echo("PyTorch is not installed: nothing is compared with its DataLoader (aims 2, 3, 4 and 13)")
    outcomes = {}
    for name in only or EXPERIMENTS:
        doc = (EXPERIMENTS[name].__doc__ or "").splitlines()[0]
        click.echo(f"\n{name}: {doc}")
        outcomes[name] = EXPERIMENTS[name](setting)
    click.echo("\n" + table(row for outcome in outcomes.values() for row in outcome.rows))
    for outcome in outcomes.values():
        if outcome.text:
            click.echo("\n" + outcome.text)
    seconds = time.perf_counter() - begun
    click.echo(f"\n{seconds:.0f} s; ratios and times are medians over {setting.rounds} round{'s' * (setting.rounds > 1)}")
    others = elsewhere(timing for outcome in outcomes.values() for taken in outcome.timings.values() for timing in taken)
    if others is not None and others.high > DISTURBED:
        click.echo(
            f"warning: others used {others.median:.0%} of the machine meanwhile, up to {others.high:.0%}: "
            "ratios bear that, absolute figures do not"
        )
    if json_file is not None:
        found = {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            "machine": about,
            "slide_px": [width, height],
            "rounds": setting.rounds,
            "seconds": round(seconds),
            "experiments": {name: outcome.as_json() for name, outcome in outcomes.items()},
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
