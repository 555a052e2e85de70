"""What is on disk when: calls of fsync and fdatasync are recorded, logs are copied and torn, without cutting any power."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import streamwsi
from streamwsi.chunks import Status
from streamwsi.errors import JournalError
from streamwsi.writing.journal import Journal
from tests.writing.fabricate import chunk_pieces, resolved_slide

ROOT = Path(streamwsi.__file__).parent.parent
SLIDE = resolved_slide(extent=(320, 320), block=(2, 5))
CHUNKS = len(SLIDE.chunks())
VALUES = np.random.default_rng(0).random((len(SLIDE.grid()), 40))
STATUS = np.where(np.arange(len(SLIDE.grid())) % 7 == 3, Status.NONE, Status.WRITTEN).astype(np.uint8)

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void record(const char *what, const char *path) {
    char line[2 * PATH_MAX];
    int length = snprintf(line, sizeof line, "%s %s\n", what, path);
    int log = open(getenv("SYNC_LOG"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (write(log, line, length) != length) abort();
    close(log);
}

static void record_descriptor(const char *what, int descriptor) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    record(what, path);
}

#define ORIGINAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int descriptor) { record_descriptor("sync", descriptor); return ORIGINAL(fsync)(descriptor); }
int fdatasync(int descriptor) { record_descriptor("sync", descriptor); return ORIGINAL(fdatasync)(descriptor); }
int rename(const char *from, const char *to) { record("rename", to); return ORIGINAL(rename)(from, to); }
int unlink(const char *path) { record("unlink", path); return ORIGINAL(unlink)(path); }
"""

CHILD = """
import os, sys
from pathlib import Path
import numpy as np
from streamwsi.config import OutputOptions
from streamwsi.writing.journal import Journal
from streamwsi.writing.layout import Layout
from streamwsi.writing.publish import publish_patient
from tests.writing.fabricate import patient_of
from tests.writing.test_durability import CHUNKS, SLIDE, pieces

def say(what):
    log = os.open(os.environ["SYNC_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"say {what}\\n".encode())
    os.close(log)

output = OutputOptions(folder=sys.argv[1], format=sys.argv[3])
layout = Layout.of(output)
with Journal(layout.journal("p1"), sys.argv[2]) as journal:
    journal.record_slide(SLIDE)
    for chunk in range(CHUNKS):
        say(f"commit {chunk}")
        journal.commit([pieces(chunk)])
        say(f"committed {chunk}")
    say("publish")
    publish_patient(journal, patient_of([SLIDE]), output)
    say("published")
    journal.remove()
"""


def pieces(chunk: int):
    return chunk_pieces(SLIDE, chunk, VALUES, STATUS)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that writes down what is synced, renamed and removed, in the order in which it happens."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and Linux, to record the calls of fsync")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    built = folder / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, folder / "shim.c", "-ldl"], check=True)
    return built


def events(shim: Path, out: Path, durability: str, format: str = "csv") -> list[tuple[str, str]]:
    """What a process did that commits every chunk of a patient and publishes it: (what, path or words)."""
    log = out.parent / "log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(shim), "SYNC_LOG": str(log)}
    out.mkdir()
    subprocess.run([sys.executable, "-c", CHILD, str(out), durability, format], cwd=ROOT, env=environment, check=True)
    found = [tuple(line.split(" ", 1)) for line in log.read_text().splitlines()]
    return [(what, text) for what, text in found if what == "say" or text.startswith(str(out))]


def between(found: list[tuple[str, str]], first: str, last: str) -> list[tuple[str, str]]:
    return found[found.index(("say", first)) + 1 : found.index(("say", last))]


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_commit_is_synced_before_it_is_acknowledged_where_power_may_fail(shim: Path, tmp_path: Path, durability: str) -> None:
    found = events(shim, tmp_path / "out", durability)
    synced = [between(found, f"commit {chunk}", f"committed {chunk}") for chunk in range(CHUNKS)]
    if durability == "process":
        assert synced == [[]] * CHUNKS
    else:
        for calls in synced:
            assert [Path(path).suffix for what, path in calls if what == "sync"] == [".sqlite-wal"]


def test_what_holds_a_journal_is_synced_before_its_first_commit(shim: Path, tmp_path: Path) -> None:
    found = events(shim, tmp_path / "out", "power")
    synced = {path for what, path in found[: found.index(("say", "commit 0"))] if what == "sync"}
    journals = tmp_path / "out" / ".journal"
    assert {str(tmp_path / "out"), str(journals)} < synced
    assert {Path(path).suffix for path in synced if Path(path).parent == journals} >= {".sqlite", ".sqlite-wal"}


@pytest.mark.parametrize("format", ["csv", "hdf5"])
@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_file_and_its_record_are_on_disk_before_the_journal_goes(
    shim: Path, tmp_path: Path, durability: str, format: str
) -> None:
    out = tmp_path / "out"
    found = events(shim, out, durability, format)
    final = str(out / ("p1.csv" if format == "csv" else "p1.h5"))
    (record,) = (path for what, path in found if what == "rename" and Path(path).parent.name == ".published")
    done = found[found.index(("say", "publish")) :]
    places = []
    for renamed in (final, record):
        place = done.index(("rename", renamed))
        before, after = done[place - 1], done[place + 1]
        assert before[0] == "sync" and before[1].endswith(".part") and Path(before[1]).parent == Path(renamed).parent
        assert after == ("sync", str(Path(renamed).parent))
        places.append(place)
    # the folder of the records has its own name on disk
    assert ("sync", str(out)) in done[places[0] + 2 : places[1]]
    removed = [number for number, (what, path) in enumerate(done) if what == "unlink" and path.endswith(".sqlite")]
    assert places == sorted(places) and removed and removed[0] > done.index(("say", "published")) > places[1]


# ---- copies of a journal under way, whole and torn


def committed_groups(seed: int) -> list[list[int]]:
    """Chunks in some order, in groups that are committed together."""
    chance = random.Random(seed)
    order = chance.sample(range(CHUNKS), CHUNKS)
    groups = []
    while order:
        size = chance.randint(1, 4)
        groups.append(order[:size])
        order = order[size:]
    return groups


def held(path: Path) -> set[int]:
    """The chunks that a journal holds, after a look at every value in it."""
    with Journal(path) as journal:
        chunks = journal.committed().get(0, [])
        index, status, values = [], [], []
        for run in journal.runs(0):
            index.extend(range(run.first, run.first + len(run.status)))
            status.extend(run.status.tolist())
            values.extend(run.values.tolist())
        expected = sorted(window for chunk in chunks for window in SLIDE.chunks().indices(chunk).tolist())
        assert index == expected
        assert status == STATUS[expected].tolist()
        assert values == VALUES[[window for window in expected if STATUS[window] == Status.WRITTEN]].tolist()
        assert journal.counts(0) == tuple(int(np.count_nonzero(STATUS[expected] == kind)) for kind in range(3))
        assert journal.slides() in ({}, {0: SLIDE})
        return set(chunks)


def copied(path: Path, folder: Path) -> Path:
    """Copies of a journal and its log, as they are on disk this moment."""
    folder.mkdir(parents=True)
    for part in path.parent.glob(path.name + "*"):
        shutil.copy(part, folder / part.name)
    return folder / path.name


@pytest.mark.parametrize("pages", [0, 8], ids=["log", "log-and-checkpoints"])
def test_a_copy_made_between_two_commits_holds_exactly_what_was_committed(tmp_path: Path, pages: int) -> None:
    path = tmp_path / "journal" / "p1.sqlite"
    with Journal(path) as journal:
        journal._execute(f"PRAGMA wal_autocheckpoint={pages}")
        journal.record_slide(SLIDE)
        done: set[int] = set()
        for number, group in enumerate(committed_groups(1)):
            assert held(copied(path, tmp_path / str(number))) == done
            journal.commit(map(pieces, group))
            done |= set(group)
    assert held(path) == done == set(range(CHUNKS))


def test_a_journal_that_is_no_journal_any_more_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p1.sqlite"
    with Journal(path) as journal:
        journal.record_slide(SLIDE)
        journal.commit(map(pieces, range(CHUNKS)))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(np.random.default_rng(0).bytes(path.stat().st_size - 4096))
    with pytest.raises(JournalError, match=r"p1\.sqlite is damaged: .*malformed"), Journal(path) as journal:
        journal.committed()
    path.write_bytes(b"something else" * 1000)
    with pytest.raises(JournalError, match=r"p1\.sqlite is damaged: file is not a database; remove it"):
        Journal(path)


@cache
def under_way(seed: int) -> tuple[bytes, bytes, list[set[int]], list[int]]:
    """A journal and its log, the sets of chunks after each commit, and how long the log then was.

    Nothing is moved from the log to the journal: SQLite does that with what it has synced only, which no loss of power tears.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p1.sqlite")
        log = Path(folder, "p1.sqlite-wal")
        with Journal(path) as journal:
            journal._execute("PRAGMA wal_autocheckpoint=0")
            journal.record_slide(SLIDE)
            states, lengths = [set[int]()], [log.stat().st_size]
            for group in committed_groups(seed):
                journal.commit(map(pieces, group))
                states.append(states[-1] | set(group))
                lengths.append(log.stat().st_size)
            return path.read_bytes(), log.read_bytes(), states, lengths


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2),
    torn_at=st.floats(0, 1),
    tail=st.sampled_from(["nothing", "zeros", "noise", "holes"]),
    noise=st.integers(0, 1 << 32),
)
@example(seed=0, torn_at=1.0, tail="nothing", noise=0)
@example(seed=0, torn_at=0.0, tail="nothing", noise=0)
def test_of_a_torn_log_the_commits_before_the_tear_are_left(seed: int, torn_at: float, tail: str, noise: int) -> None:
    journal, log, states, lengths = under_way(seed)
    place = round(torn_at * len(log))
    random_bytes = np.random.default_rng(noise)
    lost = len(log) - place
    if tail == "zeros":
        torn = log[:place] + bytes(lost)
    elif tail == "noise":
        torn = log[:place] + random_bytes.bytes(lost)
    elif tail == "holes":  # some blocks behind the tear have reached the disk, others have not
        block = 512
        kept = bytearray(log)
        for start in range(place - place % block, len(log), block):
            if start <= place < start + block or random_bytes.random() < 0.5:
                kept[max(start, place) : start + block] = bytes(min(start + block, len(log)) - max(start, place))
        torn = bytes(kept)
    else:
        torn = log[:place]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p1.sqlite")
        path.write_bytes(journal)
        Path(folder, "p1.sqlite-wal").write_bytes(torn)
        found = held(path)
        untouched = [number for number, length in enumerate(lengths) if torn[:length] == log[:length]]
        assert found == states[max(untouched, default=0)]
        # and it goes on from there
        with Journal(path) as again:
            again.record_slide(SLIDE)
            again.commit(map(pieces, range(CHUNKS)))
        assert held(path) == set(range(CHUNKS))
