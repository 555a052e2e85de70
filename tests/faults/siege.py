"""Runs that are killed, run again until they are done, and compared with an undisturbed one.

In: a kind of run, and kills: of a role at a moment, or at a point (see `startup/sitecustomize.py`).  Out: the kills and the
moments they met; an AssertionError for whatever differs. Processes are stopped before a random kill, so that what was committed
and published at that moment is known exactly.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import msgspec
import numpy as np
import psutil
from click.testing import CliRunner

from streamwsi.cli import cli
from streamwsi.writing.journal import Journal
from streamwsi.writing.publish import PublishedPatient
from tests.helpers import BUNDLED

SEED_VARIABLE = "STREAMWSI_TEST_SEED"
SEED = os.environ.get(SEED_VARIABLE, "1")
"""Where the random moments of the suite come from."""
HERE = Path(__file__).parent
ROLES = ("loader", "collector", "writer", "publisher", "driver", "all")
FIRST, COMMIT, BETWEEN, PUBLICATION, LAST = MOMENTS = (
    "before the first commit",
    "during a commit",
    "between commits",
    "during publication",
    "after the last publication",
)
PATIENTS = {"anna": ["H&E"], "bert": ["H&E", "second"], "cara": ["H&E"]}
WINDOWS = 108
"""Of each slide."""
LABELS = (742, 555)
"""Rows and columns of each slide's label image: a quarter of its own."""
_SAMPLED = ("--sampler", "random", "--windows", str(WINDOWS), "--seed", "7", "--max-overlap", "0.5")
KINDS = {
    "csv": ("Mean", "--format", "csv"),
    "h5": ("Mean", "--format", "h5"),
    "one-file": ("Mean", "--format", "csv", "--one-file"),
    "accumulate": ("Sum",),
    "collect": ("Table",),
    "stopped": ("Few", "--format", "csv"),
    "images": ("Pictures", "--format", "png"),
    "maps": ("Shades", "--format", "ome-tiff", "--reduction", "4"),
    "paired": ("Labelled", "--format", "h5", "--paired", "labels={folder}/{patient} {slide}.npy"),
    "sampled": ("Mean", "--format", "h5", "--kernel-size", "128", *_SAMPLED),
}
"""The collector and the options of each kind of run."""
TRANSPORTS = ("shm", "ipc", "tcp")
"""What pixels go through: another one in each run of a siege, and another first one for each kind."""
ENDING_S = 5.0
"""Within which the children of a killed driver must have ended."""
HANGING_S = 60.0
"""A run that takes longer hangs."""

Window = tuple[str, str, int]
"""(patient, slide, place in the plan)."""


class Point(NamedTuple):
    """Kill `victim` when a process of `role` is for the n-th time at the point `name`."""

    role: str
    name: str
    n: int
    victim: str = "self"

    @property
    def kill(self) -> Kill:
        """Who is killed there, and when that is."""
        if self.role == "publisher":
            moment = PUBLICATION
        elif self.role == "driver":
            moment = LAST if "report" in self.name else FIRST
        else:
            moment = FIRST if "tables" in self.name or "TABLE" in self.name or "slide" in self.name else COMMIT
        return Kill(self.role if self.victim == "self" else self.victim, moment, at_point=True)


IN_COMMIT = (
    ("before CREATE TABLE chunks", 2),
    ("after COMMIT of tables", 1),
    ("before COMMIT of slide", 2),
    ("after COMMIT of slide", 1),
    ("before BEGIN", 15),  # those of three journals' tables and four slides' records come first
    ("before INSERT second chunk", 1),
    ("before INSERT pieces", 2),
    ("after INSERT pieces", 2),
    ("before COMMIT of chunks", 3),
    ("after COMMIT of chunks", 3),
)
TORN_COMMIT = ("torn COMMIT of chunks", 2)
IN_PUBLICATION = (
    ("before fsync of file", 1),
    ("before replace of file", 2),
    ("after replace of file", 1),
    ("before replace of record", 1),
    ("after replace of record", 1),
    ("before unlink of journal", 2),
    ("after unlink of journal", 1),
    ("after unlink of journal-shm", 1),
)
TORN_FILE = ("torn file", 1)
IN_DRIVER = (
    ("before replace of run file", 1),
    ("after replace of run file", 2),
    ("before replace of report", 1),
    ("after replace of report", 1),
)


class Kill(NamedTuple):
    """One kill: who, and when."""

    role: str
    moment: str
    at_point: bool = False


class Tally(msgspec.Struct, frozen=True):
    """What a siege was; can be sent from one test process to another."""

    kills: list[Kill]
    runs: int
    transports: dict[str, int]
    """How many runs had each."""
    repeated: int
    """Batches that were committed at a kill, and begun again by a later run."""
    overtaken: int
    """The same, by the run that went on: a worker's death overtook the word of the commit."""


@dataclass(frozen=True)
class Snapshot:
    """What was safe at a kill."""

    run: int
    """The number of the run that was under way."""
    log_bytes: int
    """Size of the log of what was processed."""
    committed: frozenset[Window]
    published: frozenset[str]

    def __contains__(self, window: Window) -> bool:
        return window in self.committed or window[0] in self.published


class Scene:
    """Slides to run on, and what undisturbed runs make of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._expected: dict[str, Path] = {}
        lines = ["patient,slide,path"]
        for patient, slides in PATIENTS.items():
            for slide in slides:
                path = shutil.copy(BUNDLED, folder / f"{patient} {slide}.svs")
                np.save(folder / f"{patient} {slide}.npy", np.random.default_rng(len(lines)).integers(0, 9, LABELS, np.uint8))
                lines.append(f"{patient},{slide},{Path(path).name}")
        self.manifest = folder / "slides.csv"
        self.manifest.write_text("\n".join(lines))

    def expected(self, kind: str) -> Path:
        """The output folder of an undisturbed run."""
        if kind not in self._expected:
            folder = self._folder / f"undisturbed {kind}"
            self._expected[kind] = folder / "out"
            with Siege(self, kind, folder, pause_s=0.0) as siege:
                siege.finish()
        return self._expected[kind]


class Siege:
    """One output folder: its runs, the kills they suffer, and what must hold meanwhile and in the end.

    `pause_s` is how long a batch takes at least. From `chance` come the numbers of processes, others in each run.
    """

    def __init__(
        self,
        scene: Scene,
        kind: str,
        folder: Path,
        pause_s: float,
        points: Sequence[Point] = (),
        chance: random.Random | None = None,
    ) -> None:
        self.kind = kind
        self.out = folder / "out"
        self.points = list(points)
        self.kills: list[Kill] = []
        self.done = False
        self.runs = 0
        self.transports: Counter[str] = Counter()
        self.repeated = 0
        self.overtaken = 0
        self._manifest = scene.manifest
        self._expected = scene.expected(kind)
        self._folder = folder
        self._pause_s = pause_s
        self._chance = chance
        self._snapshots: list[Snapshot] = []
        self._groups: list[int] = []
        self._seen: dict[str, tuple[int, int, int]] = {}
        """Versions of final files that were found to be right."""
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("inside", "marks"):
            (folder / name).mkdir(parents=True)
        self._sockets = Path(tempfile.mkdtemp(prefix="siege-"))
        """Where runs have their folders of sockets; in a longer path they would lie elsewhere."""

    def __enter__(self) -> Siege:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:  # an assertion has ended the siege, not the run
            with contextlib.suppress(ProcessLookupError):  # nothing of it is left
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._sockets, ignore_errors=True)

    # ---- runs

    def go_on(self) -> None:
        """Begin the run, or begin it again, if it is not under way."""
        if self._process is not None:
            return
        self.runs += 1
        collector, *options = KINDS[self.kind]
        command = [
            *(sys.executable, "-m", "streamwsi.cli", "heatmap", self._manifest, "--out", self.out, *options),
            *("--collector", f"{HERE / 'collectors.py'}:{collector}"),
            *("--batch-size", 4, "--max-restarts", 1000, *self._execution()),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str(HERE / "startup"),
            "STREAMWSI_TEST_FOLDER": str(self._folder),
            "STREAMWSI_TEST_POINTS": json.dumps(self.points),
            "STREAMWSI_TEST_RUN": str(self.runs),
            "STREAMWSI_TEST_PAUSE_S": str(self._pause_s),
            "TMPDIR": str(self._sockets),
        }
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [*map(str, command)], env=environment, stdout=errors, stderr=errors, start_new_session=True
            )
        self._groups.append(self._process.pid)
        self.transports[self._transport] += 1

    def wait(self, timeout_s: float = HANGING_S) -> int | None:
        """The exit code of the run; None when it is still under way after that time. Looks at what appears meanwhile."""
        if self._process is None:
            return None
        process = self._process
        settled(lambda: self._check_whole() or process.poll() is not None, timeout_s)
        return process.poll()

    def finish(self) -> None:
        """Run until done, again wherever a point kills the driver; then count the kills at points."""
        while not self.done:
            self.go_on()
            self.take_note(self.wait())
        self.kills += [self.points[int(mark.name)].kill for mark in (self._folder / "marks").iterdir()]

    def take_note(self, code: int | None) -> None:
        """Take note of how a run ended."""
        assert code is not None, f"the run hangs\n{self.words()}"
        self._process = None
        if code == -signal.SIGKILL:
            self.wait_for_children()
            self._snapshots.append(self._snapshot())
        elif code == 0:
            self.done = True
        else:
            assert code == 1 and self._only_poison(), f"the run ended with exit code {code}\n{self.words()}"

    def wait_for_children(self) -> None:
        """The children of a driver that was killed end by themselves, in time."""
        wait_for(lambda: not any(self._alive()), f"children have not ended\n{self.words()}", ENDING_S)

    def missed(self) -> list[Point]:
        """Points to which no process came."""
        return [point for number, point in enumerate(self.points) if not (self._folder / "marks" / str(number)).exists()]

    def tally(self) -> Tally:
        """What it was, so far."""
        return Tally(self.kills, self.runs, dict(self.transports), self.repeated, self.overtaken)

    def words(self) -> str:
        """What the runs said."""
        return f"{self._folder}, {len(self.kills)} kills\n{self._errors.read_text(errors='replace')[-4000:]}"

    @property
    def _transport(self) -> str:
        """What the pixels of the run go through."""
        return TRANSPORTS[(list(KINDS).index(self.kind) + self.runs - 1) % len(TRANSPORTS)]

    def _execution(self) -> tuple[object, ...]:
        """Options that do not change what is written."""
        transport = ("--transport", self._transport)
        if self._chance is None:
            return ("--collectors", 2, "--chunk-px", 1 << 18, *transport)
        draw = self._chance.choice
        return (
            *("--collectors", draw((1, 2, 3)), "--loaders", draw((1, 1, 2)), "--writers", draw((1, 1, 2))),
            # After which chunk a patient is stopped depends on what the chunks are
            *("--chunk-px", 1 << (18 if self.kind == "stopped" else draw((17, 18, 19)))),
            *transport,
        )

    # ---- kills

    def wait_for_moment(self, chance: random.Random) -> None:
        """Let a random time pass, some chunks be processed, or a publication begin, and then a little; less if the run ends."""
        until = time.monotonic() + chance.uniform(0.0, 0.7)
        size = self._log_bytes + chance.randint(1, 12) * len("1 anna H&E 100\n")
        moments: list[Callable[[], bool]] = [
            lambda: time.monotonic() > until,
            lambda: "publication" in self._inside(filter(psutil.pid_exists, self._noted())),
            *[lambda: self._log_bytes > size] * 4,
        ]
        moment = chance.choice(moments)
        settled(lambda: moment() or self.wait(0.0) is not None, HANGING_S)
        code = self.wait(chance.uniform(0.0, 0.05))
        if code is not None:
            self.take_note(code)

    def kill(self, role: str, chance: random.Random) -> None:
        """Kill a process of that role (or the driver, or all), and note what the moment was; nothing if there is none."""
        if self._process is None:
            return
        with self._stopped() as processes:
            roles = [name_of(process) for process in processes]
            if ("driver" if role == "all" else role) not in roles:
                return
            snapshot = self._snapshot()
            self._snapshots.append(snapshot)
            self.kills.append(Kill(role, self._moment(role, snapshot, processes)))
            if role == "all":
                os.killpg(self._process.pid, signal.SIGKILL)
            elif role == "driver":  # by its number: a child that has not become another program yet is called the same
                os.kill(self._process.pid, signal.SIGKILL)
            else:
                chance.choice([process for process, its in zip(processes, roles, strict=True) if its == role]).kill()
        if role in ("driver", "all"):
            assert self.wait() == -signal.SIGKILL, self.words()
            self._process = None
            if chance.random() < 0.5:  # else the next run finds the children still there
                self.wait_for_children()

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[list[psutil.Process]]:
        """The processes of the run, all standing still; those that live after it go on."""
        assert self._process is not None
        group = self._process.pid
        while True:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGSTOP)
            if settled(lambda: all(status_of(process) == psutil.STATUS_STOPPED for process in self._alive())):
                break
            # One that is just starting another cannot stop before that is done
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGCONT)
            time.sleep(0.05)
        try:
            yield list(self._alive())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGCONT)

    def _alive(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) in self._groups and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def _moment(self, role: str, snapshot: Snapshot, processes: list[psutil.Process]) -> str:
        inside = self._inside(process.pid for process in processes)
        order = ("publication", "commit") if role == "publisher" else ("commit", "publication")
        if not snapshot.committed and not snapshot.published and "commit" not in inside:
            return FIRST
        for name in order:
            if name in inside:
                return {"commit": COMMIT, "publication": PUBLICATION}[name]
        return LAST if len(snapshot.published) == len(PATIENTS) else BETWEEN

    def _noted(self) -> Iterator[int]:
        """Processes that have noted where they are."""
        return (int(note.name) for note in (self._folder / "inside").iterdir())

    def _inside(self, processes: Iterable[int]) -> set[str]:
        """What processes say they are in: a commit, a publication."""
        notes = [self._folder / "inside" / str(process) for process in processes]
        return {note.read_text().strip() for note in notes if note.exists()}

    def _snapshot(self) -> Snapshot:
        """What is safe now; nothing may be running."""
        published = set()
        for record in self.out.glob(".published/*.json"):
            published.add(msgspec.json.decode(record.read_bytes(), type=PublishedPatient).patient_id)
        committed: set[Window] = set()
        for path in self.out.glob(".journal/*.sqlite"):
            with tempfile.TemporaryDirectory() as copy:
                for file in path.parent.glob(f"{path.name}*"):
                    shutil.copy(file, copy)
                with Journal(Path(copy, path.name)) as journal:
                    slides = journal.slides()
                    for number, chunks in journal.committed().items():
                        slide = slides[number]
                        for chunk in chunks:
                            indices = slide.chunks().indices(chunk).tolist()
                            committed.update((slide.patient_id, slide.id, index) for index in indices)
        return Snapshot(self.runs, self._log_bytes, frozenset(committed), frozenset(published))

    # ---- what must hold

    def check(self) -> None:
        """The same files as those of an undisturbed run, whole, accounted for; nothing else; nothing committed done again."""
        assert names_in(self.out) == names_in(self._expected), self.words()
        self._check_whole()
        verified = CliRunner().invoke(cli, ["verify", str(self.out)], standalone_mode=False)
        assert verified.return_value == 0, f"{verified.output}\n{self.words()}"
        self._check_report()
        again = self._done_again(by_later_runs=True)
        self.repeated, self.overtaken = len(again), len(self._done_again(by_later_runs=False))
        assert not again, f"committed, and processed again by a later run: {sorted(again)[:9]} …\n{self.words()}"
        assert not list(self._alive()), self.words()
        sockets = len(list(self._sockets.glob("streamwsi-*")))
        all_at_once = sum(1 for kill in self.kills if kill.role == "all")  # who has left nobody to clean up
        assert sockets <= all_at_once, f"{sockets} folders of sockets were left\n{self.words()}"

    def _check_whole(self) -> bool:
        """What bears a final name is what an undisturbed run makes, at any moment."""
        if self.out != self._expected:
            for path in self.out.glob("[!.]*"):
                try:
                    found = path.stat()
                except FileNotFoundError:
                    # no file ever goes; a folder that is published again cannot be replaced in one step
                    assert (self._expected / path.name).is_dir(), f"{path.name} is gone\n{self.words()}"
                    continue
                version = (found.st_ino, found.st_size, found.st_mtime_ns)
                if path.name == "job.toml":  # whole, but each run has other options of execution
                    msgspec.toml.decode(path.read_bytes())
                elif path.suffix != ".json" and self._seen.get(path.name) != version:
                    assert same(path, self._expected / path.name), f"{path.name} differs\n{self.words()}"
                    self._seen[path.name] = version
        return False

    def _done_again(self, by_later_runs: bool) -> set[Window]:
        """First windows of batches that were committed at a kill and begun after it: by later runs, or the one that went on."""
        log = self._log.read_bytes()
        found = set()
        for snapshot in self._snapshots:
            for line in log[snapshot.log_bytes :].decode().splitlines():
                run, patient, slide, first = line.split("\t")
                window = (patient, slide, int(first))
                if window in snapshot and (int(run) > snapshot.run) == by_later_runs:
                    found.add(window)
        return found

    def _check_report(self) -> None:
        """Every window has a status in it, the same as after an undisturbed run."""
        assert self._statuses(self.out) == self._statuses(self._expected), self.words()

        assert json.loads((self.out / "report.json").read_text())["transport"] in (self._transport, None), self.words()

    @staticmethod
    def _statuses(out: Path) -> dict[tuple[str, str], dict[str, int]]:
        found = {}
        report = json.loads((out / "report.json").read_text())
        assert report["state"] == "done"
        for patient in report["patients"]:
            assert patient["state"] in ("done", "already done") and (out / patient["file"]).exists(), patient
            for slide in patient["slides"]:
                counts = {name: slide[name] for name in ("written", "none", "skipped", "stopped", "failed")}
                assert slide["state"] == "done" and sum(counts.values()) == slide["expected"] == WINDOWS, slide
                found[patient["id"], slide["id"]] = counts
        assert list(found) == [(patient, slide) for patient, slides in PATIENTS.items() for slide in slides]
        return found

    def _only_poison(self) -> bool:
        """Whether nothing went wrong but that three workers happened to be killed over one chunk."""
        report = json.loads((self.out / "report.json").read_text())
        slides = [slide for patient in report["patients"] for slide in patient["slides"] if slide["state"] == "failed"]
        return all("has ended 3 workers" in slide["reason"] for slide in slides)

    @property
    def _log(self) -> Path:
        return self._folder / "processed"

    @property
    def _log_bytes(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    @property
    def _errors(self) -> Path:
        return self._folder / "errors"


def storm(siege: Siege, chance: random.Random, kills: int) -> None:
    """Kill a run at random moments, up to that many times, until it is done; then check it."""
    while not siege.done and len(siege.kills) < kills:
        siege.go_on()
        siege.wait_for_moment(chance)
        siege.kill(chance.choice(ROLES), chance)
    siege.finish()
    siege.check()


def table(sieges: Sequence[Tally]) -> str:
    """How many kills each role suffered, and in which moments."""
    kills = [kill for siege in sieges for kill in siege.kills]
    count = Counter((kill.role, kill.moment) for kill in kills)
    rows = [("role", "kills", "at points", *MOMENTS)]
    for role in ROLES:
        of_role = [kill for kill in kills if kill.role == role]
        at_points = sum(kill.at_point for kill in of_role)
        rows.append((role, str(len(of_role)), str(at_points), *(str(count[role, moment]) for moment in MOMENTS)))
    sums = (sum(kill.moment == moment for kill in kills) for moment in MOMENTS)
    rows.append(("sum", str(len(kills)), str(sum(kill.at_point for kill in kills)), *map(str, sums)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    runs, repeated, overtaken = (sum(getattr(siege, name) for siege in sieges) for name in ("runs", "repeated", "overtaken"))
    lines.append(
        f"{len(sieges)} sieges, {runs} runs; batches committed at a kill and processed again by a later run: {repeated}"
    )
    lines.append(f"  by the run that went on, for a worker's death overtook the word of the commit: {overtaken}")
    transports = sum((Counter(siege.transports) for siege in sieges), Counter())
    lines.append("pixels went through " + ", ".join(f"{name} in {transports[name]} runs" for name in TRANSPORTS))
    return "\n".join(lines)


def name_of(process: psutil.Process) -> str:
    """The role of a process of a run."""
    for argument in process.cmdline():
        if argument.startswith("streamwsi-"):
            return argument.removeprefix("streamwsi-")
    return "driver"


def names_in(out: Path) -> set[str]:
    """What lies in an output folder and below it."""
    return {str(path.relative_to(out)) for path in out.rglob("*")}


def same(path: Path, expected: Path) -> bool:
    """Whether two files hold the same: byte for byte, or, of HDF5, datasets and attributes; of folders, each file in them."""
    if path.is_dir():
        names = names_in(path)
        return names == names_in(expected) and all(
            (path / name).read_bytes() == (expected / name).read_bytes() for name in names
        )
    if path.suffix != ".h5":
        return path.read_bytes() == expected.read_bytes()
    found, wanted = contents(path), contents(expected)
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def contents(path: Path) -> dict[str, Any]:
    """Every dataset and attribute of an HDF5 file."""
    found: dict[str, Any] = {}

    def keep(name: str, item: Any) -> None:
        found.update((f"{name}@{key}", value) for key, value in item.attrs.items())
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        keep("", file)
        file.visititems(keep)
    return found


def settled(condition: Callable[[], bool], timeout_s: float = 0.3) -> bool:
    """Whether something has come true within that time."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def status_of(process: psutil.Process) -> str:
    """What state a process is in; one that is gone stands still."""
    try:
        return str(process.status())
    except psutil.Error:
        return str(psutil.STATUS_STOPPED)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Wait until something has come true; AssertionError when it does not."""
    assert settled(condition, timeout_s), what
