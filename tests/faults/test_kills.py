"""Runs whose processes are killed, at points inside the commit and the publication and at random moments, and then run again,
give what an undisturbed run gives; nothing that was committed is done again."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.siege import (
    IN_COMMIT,
    IN_DRIVER,
    IN_PUBLICATION,
    TORN_COMMIT,
    TORN_FILE,
    TRANSPORTS,
    Point,
    Scene,
    Siege,
    storm,
)

KILLS = 8
"""At random moments, for each kind of file."""

PAUSE_S = 0.06
"""How long a batch takes at least, so that there is time to kill."""

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="processes are killed as POSIX does it")
Counted = Callable[[Siege], None]


def besieged(scene: Scene, kind: str, folder: Path, points: list[Point], pause_s: float = 0.03) -> Siege:
    """A run that is killed at each of these points, and then checked."""
    with Siege(scene, kind, folder, pause_s, points) as siege:
        siege.finish()
        siege.check()
    assert not siege.missed(), f"no process came to {siege.missed()}"
    return siege


def test_workers_killed_inside_commits_and_publications_are_replaced(scene: Scene, tmp_path: Path, counted: Counted) -> None:
    points = [Point("writer", *at) for at in (*IN_COMMIT, TORN_COMMIT)]
    points += [Point("publisher", *at) for at in (TORN_FILE, *IN_PUBLICATION)]
    siege = besieged(scene, "csv", tmp_path, points)
    counted(siege)
    assert siege.runs == 1
    assert json.loads((siege.out / "report.json").read_text())["restarts"] == len(points) == 20


def test_everything_killed_inside_commits_and_publications_goes_on_from_what_was_committed(
    scene: Scene, tmp_path: Path, counted: Counted
) -> None:
    first, second, *at_the_end = (Point("driver", *at) for at in IN_DRIVER)
    points = [
        first,
        Point("writer", "before CREATE TABLE chunks", 2, "all"),
        second,  # it comes once: when the first values do. Nobody else is to kill the driver just then
        Point("writer", "before INSERT second chunk", 1, "all"),
        Point("writer", "before COMMIT of chunks", 3, "all"),
        Point("writer", "before COMMIT of chunks", 5, "driver"),
        Point("writer", "after COMMIT of chunks", 3, "all"),
        Point("publisher", *TORN_FILE),
        Point("publisher", "before replace of file", 1, "all"),
        Point("publisher", "before replace of record", 1, "driver"),
        Point("publisher", "after replace of record", 1, "all"),
        Point("publisher", "after unlink of journal", 1, "driver"),
        *at_the_end,
    ]
    siege = besieged(scene, "h5", tmp_path, points)
    counted(siege)
    # All but the torn file end a run; where only the driver is killed, its children may come to the next point before they end
    alone = sum(point.kill.role == "driver" for point in points)
    assert len(points) - alone <= siege.runs <= len(points)
    assert set(siege.transports) == set(TRANSPORTS)


def test_one_file_of_all_patients_appears_for_all_of_them_or_for_none(scene: Scene, tmp_path: Path, counted: Counted) -> None:
    points = [
        Point("publisher", "before replace of record", 2, "all"),
        Point("publisher", "before replace of file", 1, "all"),
        Point("publisher", "after replace of file", 1),
        Point("publisher", "before unlink of journal", 2),
        Point("publisher", "after unlink of journal-shm", 3, "all"),
    ]
    counted(besieged(scene, "one-file", tmp_path, points, pause_s=0.0))


def test_folders_of_images_appear_whole_whatever_is_killed(scene: Scene, tmp_path: Path, counted: Counted) -> None:
    points = [
        Point("publisher", *TORN_FILE),
        Point("publisher", "before fsync of file", 9, "all"),  # among the images
        Point("publisher", "after replace of file", 1, "all"),  # there is a folder without a record
        Point("publisher", "after replace of file", 1),  # which gives way to a new one
        Point("publisher", "before replace of record", 1, "all"),
    ]
    counted(besieged(scene, "images", tmp_path, points, pause_s=0.0))


@pytest.mark.parametrize("mode", ["accumulate", "collect"])
def test_results_are_gathered_alike_after_kills(
    scene: Scene, tmp_path: Path, mode: str, chance: random.Random, counted: Counted
) -> None:
    points = [
        Point("publisher", "before replace of file", 1),
        Point("publisher", "after replace of file", 1),
        Point("publisher", "before replace of record", 1, "all"),
        Point("publisher", "after unlink of journal-shm", 1),
    ]
    with Siege(scene, mode, tmp_path, PAUSE_S, points, chance) as siege:
        storm(siege, chance, kills=4)
    counted(siege)
    assert not siege.missed()


@pytest.mark.parametrize("kind", ["csv", "h5", "stopped", "sampled"])
def test_files_are_the_same_after_kills_at_random_moments(
    scene: Scene, tmp_path: Path, kind: str, chance: random.Random, counted: Counted
) -> None:
    kills = 0
    while kills < KILLS:
        with Siege(scene, kind, tmp_path / str(kills), PAUSE_S, chance=chance) as siege:
            storm(siege, chance, KILLS - kills)
        counted(siege)
        kills += len(siege.kills)
