"""The kill suite for as long as one likes: `make soak KILLS=300`, or `python -m tests.faults.soak --kills 300 --seed 7`.

In: how many kills, and the seed of their moments (another one each time, unless given).  Out: a table of roles and moments, and
exit code 0 only if every run gave what an undisturbed one gives. The folders of those that did not are kept.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from pathlib import Path

import click

from tests.faults.siege import (
    IN_COMMIT,
    IN_DRIVER,
    IN_PUBLICATION,
    KINDS,
    TORN_COMMIT,
    TORN_FILE,
    Point,
    Scene,
    Siege,
    storm,
    table,
)

MOST_WRONG = 5
"""Sieges that may go wrong before it is given up."""


def some_points(chance: random.Random, kind: str) -> list[Point]:
    """Up to three points, with whom they kill."""
    points = [Point("writer", *at, victim) for at in IN_COMMIT for victim in ("self", "driver", "all")]
    points += [Point("publisher", *at, victim) for at in IN_PUBLICATION for victim in ("self", "driver", "all")]
    points.append(Point("writer", *TORN_COMMIT))
    if KINDS[kind][0] == "Mean":  # results and the files of few windows are too small to be torn
        points.append(Point("publisher", *TORN_FILE))
    points += [Point("driver", *at, victim) for at in IN_DRIVER for victim in ("self", "all")]
    chosen = chance.sample(points, chance.randint(0, 3))
    return sorted(chosen, key=lambda point: point.role == "driver")  # the others do not wait for the driver's


@click.command()
@click.option("--kills", default=100, show_default=True, help="Kills, at least.")
@click.option("--seed", help="Seed of the moments.  [default: another one each time]")
def soak(kills: int, seed: str | None) -> None:
    """Kill runs until there were enough kills."""
    seed = seed or str(random.SystemRandom().randrange(1 << 32))
    click.echo(f"seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    (folder / "scene").mkdir()
    scene = Scene(folder / "scene")
    sieges: list[Siege] = []
    wrong = 0
    while (done := sum(len(siege.kills) for siege in sieges)) < kills and wrong < MOST_WRONG:
        number = len(sieges)
        chance = random.Random(f"{seed} {number}")
        kind = chance.choice(list(KINDS))
        siege = Siege(scene, kind, folder / str(number), chance.choice((0.02, 0.06)), some_points(chance, kind), chance)
        sieges.append(siege)
        try:
            with siege:
                storm(siege, chance, min(chance.randint(2, 10), kills - done))
        except AssertionError as error:
            wrong += 1
            click.echo(f"siege {number} ({kind}) WENT WRONG: {error}")
        else:
            click.echo(f"siege {number} ({kind}): {len(siege.kills)} kills in {siege.runs} runs: the same")
            shutil.rmtree(folder / str(number))
    click.echo(table([siege.tally() for siege in sieges]))
    click.echo(f"seed {seed}: {wrong} of {len(sieges)} sieges went wrong" + (f", see {folder}" if wrong else ""))
    if not wrong:
        shutil.rmtree(folder)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    soak()
