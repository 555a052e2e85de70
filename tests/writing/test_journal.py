from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamwsi
from streamwsi.chunks import Status
from streamwsi.errors import DiskError, JournalError, PieceError
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec
from streamwsi.writing.journal import ChunkPieces, Journal
from tests.writing.fabricate import all_written, assert_same, chunk_pieces, fill, numbers, resolved_slide

ROOT = Path(streamwsi.__file__).parent.parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journals" / "p1.sqlite"


def contents(journal: Journal, slide: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(window, status) of every window, in the order in which the journal gives them, and all rows."""
    runs = list(journal.runs(slide))
    index = np.concatenate([run.first + np.arange(len(run.status)) for run in runs])
    return index, np.concatenate([run.status for run in runs]), np.concatenate([run.values for run in runs])


def test_what_is_committed_comes_back(path: Path) -> None:
    slide = resolved_slide()
    values = numbers("float32", (len(slide.grid()), 3))
    with Journal(path) as journal:
        assert journal.spec is None
        fill(journal, slide, values, columns=("r", "g", "b"))
        index, status, rows = contents(journal)
        assert journal.spec == ValueSpec("float32", (3,), ("r", "g", "b"))
        assert journal.slides() == {0: slide}
        assert journal.committed() == {0: list(range(len(slide.chunks())))}
        assert journal.counts(0) == (len(values), 0, 0)
    np.testing.assert_array_equal(index, np.arange(len(values)))
    assert not status.any()
    assert_same(rows, values)


@given(
    extent=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    block=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    data=st.data(),
)
def test_window_order_does_not_depend_on_blocks_or_on_the_order_of_commits(
    tmp_path_factory: pytest.TempPathFactory, extent: tuple[int, int], block: tuple[int, int], data: st.DataObject
) -> None:
    slide = resolved_slide(extent=extent, stride=(10, 13), block=block)
    n = len(slide.grid())
    random = np.random.default_rng(n)
    status = random.choice(np.array([0, 0, 1, 2], np.uint8), n)
    order = data.draw(st.permutations(range(len(slide.chunks()))))
    group = data.draw(st.integers(1, 4))
    with Journal(tmp_path_factory.mktemp("journal") / "j.sqlite") as journal:
        for first in range(0, len(order), group):
            chunks = order[first : first + group]
            journal.commit(chunk_pieces(slide, chunk, np.arange(n), status) for chunk in chunks)
        index, statuses, rows = contents(journal)
        assert journal.counts(0) == tuple(np.bincount(status, minlength=3).tolist())
    np.testing.assert_array_equal(index, np.arange(n))
    np.testing.assert_array_equal(statuses, status)
    if len(rows):
        np.testing.assert_array_equal(rows, np.flatnonzero(status == Status.WRITTEN))


def test_a_chunk_that_is_committed_again_changes_nothing(path: Path) -> None:
    slide = resolved_slide()
    values = np.arange(len(slide.grid()), dtype=np.float64)
    with Journal(path) as journal:
        fill(journal, slide, values)
        before = contents(journal)
        fill(journal, slide, values + 1, chunks=[2, 0])
        journal.commit([chunk_pieces(slide, 1, values + 1, all_written(slide))] * 2)
        assert journal.committed() == {0: list(range(len(slide.chunks())))}
        assert journal.counts(0) == (len(values), 0, 0)
        for now, then in zip(contents(journal), before, strict=True):
            np.testing.assert_array_equal(now, then)


def test_slides_of_one_patient_are_kept_apart(path: Path) -> None:
    first, second = resolved_slide(id="a"), resolved_slide(id="b", place=(0, 1), extent=(40, 40))
    with Journal(path) as journal:
        fill(journal, second, np.arange(len(second.grid())) + 1000)
        fill(journal, first, np.arange(len(first.grid())))
        assert list(journal.slides()) == [0, 1]
        np.testing.assert_array_equal(contents(journal, 0)[2], np.arange(len(first.grid())))
        np.testing.assert_array_equal(contents(journal, 1)[2], np.arange(len(second.grid())) + 1000)


def test_a_journal_goes_on_where_it_was_closed(path: Path) -> None:
    slide = resolved_slide()
    values = numbers("int64", (len(slide.grid()),))
    with Journal(path) as journal:
        fill(journal, slide, values, chunks=[3, 1])
    with Journal(path) as journal:
        assert journal.committed() == {0: [1, 3]}
        assert journal.spec == ValueSpec("int64", ())
        assert journal.slides() == {0: slide}
        fill(journal, slide, values)
        assert_same(contents(journal)[2], values)


def test_rows_up_to_a_chunk_are_counted(path: Path) -> None:
    slide = resolved_slide()
    with Journal(path) as journal:
        fill(journal, slide, np.zeros(len(slide.grid())))
        chunks = slide.chunks()
        assert journal.written_rows(0) == len(slide.grid())
        assert journal.written_rows(0, 1) == chunks.n_windows(0) + chunks.n_windows(1)
        assert journal.written_rows(0, -1) == 0


def test_a_slide_is_resolved_anew_only_while_nothing_of_it_is_committed(path: Path) -> None:
    first, second, third = (resolved_slide(block=(1, block)) for block in (1, 2, 3))
    with Journal(path) as journal:
        journal.record_slide(first)
        journal.record_slide(second)
        assert journal.slides() == {0: second}
        fill(journal, second, np.zeros(len(second.grid())), chunks=[0])
        journal.record_slide(third)
        assert journal.slides() == {0: second}


@pytest.mark.parametrize("other", [np.zeros(35, np.float32), np.zeros((35, 1))], ids=["dtype", "shape"])
def test_values_of_another_kind_are_refused_with_all_that_came_with_them(path: Path, other: np.ndarray) -> None:
    slide = resolved_slide()
    assert len(slide.grid()) == len(other)
    good = [chunk_pieces(slide, chunk, np.zeros(35), all_written(slide)) for chunk in range(2)]
    bad = chunk_pieces(slide, 2, other, all_written(slide))
    with Journal(path) as journal:
        journal.commit(good[:1])
        with pytest.raises(
            PieceError, match=rf"window {bad.index[0]}: a value is .*, those before it were float64 of shape \(\)"
        ):
            journal.commit([good[1], bad])
        assert journal.committed() == {0: [0]}
        journal.commit(good)
        assert journal.committed() == {0: [0, 1]}


def test_a_transaction_that_fails_takes_what_it_learnt_of_the_values_with_it(path: Path) -> None:
    slide = resolved_slide()
    with Journal(path) as journal:
        with pytest.raises(PieceError):
            journal.commit(
                [
                    chunk_pieces(slide, 0, np.zeros(35), all_written(slide)),
                    chunk_pieces(slide, 1, np.zeros(35, bool), all_written(slide)),
                ]
            )
        assert journal.spec is None
        journal.commit([chunk_pieces(slide, 0, np.arange(35, dtype=np.int8), all_written(slide))])
    with Journal(path) as journal:
        assert journal.spec == ValueSpec("int8", ())
        np.testing.assert_array_equal(contents(journal)[2], slide.chunks().indices(0))


def test_a_window_of_two_chunks_is_named(path: Path) -> None:
    with Journal(path) as journal:
        journal.commit([ChunkPieces(0, 0, np.arange(4), np.zeros(4, np.uint8), np.zeros(4))])
        with pytest.raises(JournalError, match="chunk 1 of slide 0, windows 0 to 3"):
            journal.commit([ChunkPieces(0, 1, np.arange(4), np.zeros(4, np.uint8), np.zeros(4))])
        assert journal.committed() == {0: [0]}


def test_a_chunk_must_have_a_value_for_each_written_window() -> None:
    status = np.array([Status.WRITTEN, Status.NONE, Status.WRITTEN], np.uint8)
    assert ChunkPieces(0, 0, np.arange(3), status, np.zeros((2, 5))).counts() == (2, 1, 0)
    with pytest.raises(PieceError, match="3 windows with 3 statuses, 2 of them written, cannot have 3 values"):
        ChunkPieces(0, 0, np.arange(3), status, np.zeros((3, 5)))
    with pytest.raises(PieceError, match="4 windows with 3 statuses"):
        ChunkPieces(0, 0, np.arange(4), status, np.zeros((2, 5)))


def test_a_full_disk_loses_only_what_did_not_fit(path: Path) -> None:
    slide = resolved_slide()
    large = numbers("float64", (35, 2000))
    with Journal(path) as journal:
        fill(journal, slide, large, chunks=[0])
        (pages,) = journal._execute("PRAGMA page_count").fetchone()
        journal._execute(f"PRAGMA max_page_count={pages + 5}")
        with pytest.raises(DiskError, match=r"p1\.sqlite cannot be written: database or disk is full; .* run the same command"):
            fill(journal, slide, large, chunks=[1])
        assert journal.committed() == {0: [0]}
        journal._execute("PRAGMA max_page_count=1000000")
        fill(journal, slide, large)
        assert_same(contents(journal)[2], large)


def test_closing_twice_is_harmless_and_a_closed_journal_says_so(path: Path) -> None:
    journal = Journal(path)
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="is closed"):
        journal.committed()


def test_a_removed_journal_leaves_nothing(path: Path) -> None:
    with Journal(path, durability="power") as journal:
        fill(journal, resolved_slide(), np.zeros(35))
        assert list(path.parent.iterdir())
        journal.remove()
    assert not list(path.parent.iterdir())


def test_a_journal_of_another_version_is_refused(path: Path) -> None:
    with Journal(path) as journal:
        journal._execute("PRAGMA user_version=99")
    with pytest.raises(JournalError, match="version 99"):
        Journal(path)


CHILD = """
import os, signal, sys
from pathlib import Path
import numpy as np
from streamwsi.writing.journal import Journal
from tests.writing.fabricate import all_written, chunk_pieces, fill, resolved_slide

path, how = Path(sys.argv[1]), sys.argv[2]
slide = resolved_slide(extent=(1600, 1600), block=(3, 7))
values = np.arange(len(slide.grid()), dtype=np.float64)

def dying(chunks):
    for chunk in chunks:
        yield chunk_pieces(slide, chunk, values, all_written(slide))
    os._exit(9) if how == "exit" else os.kill(os.getpid(), signal.SIGKILL)

journal = Journal(path)
if how == "until killed":
    journal.record_slide(slide)
    for chunk in range(len(slide.chunks())):
        journal.commit([chunk_pieces(slide, chunk, values, all_written(slide))])
        print(chunk, flush=True)
    sys.stdin.read()
fill(journal, slide, values, chunks=[4, 2, 7])
journal.commit(dying([5, 6, 8]))
"""


def start(path: Path, how: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), how], cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True
    )


def big_slide() -> ResolvedSlide:
    return resolved_slide(extent=(1600, 1600), block=(3, 7))


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_process_that_dies_inside_a_transaction_loses_no_earlier_one(path: Path, how: str) -> None:
    with start(path, how) as child:
        assert child.wait(60) == (9 if how == "exit" else -signal.SIGKILL)
    slide = big_slide()
    values = np.arange(len(slide.grid()), dtype=np.float64)
    with Journal(path) as journal:
        assert journal.committed() == {0: [2, 4, 7]}
        expected = np.sort(np.concatenate([slide.chunks().indices(chunk) for chunk in (2, 4, 7)]))
        np.testing.assert_array_equal(contents(journal)[2], expected)
        fill(journal, slide, values)
        np.testing.assert_array_equal(contents(journal)[2], values)


def test_every_commit_that_was_acknowledged_survives_a_kill(path: Path) -> None:
    with start(path, "until killed") as child:
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(25)]
        child.kill()
        child.wait(60)
    slide = big_slide()
    with Journal(path) as journal:
        committed = journal.committed()[0]
        assert set(acknowledged) <= set(committed)
        expected = np.sort(np.concatenate([slide.chunks().indices(chunk) for chunk in committed]))
        np.testing.assert_array_equal(contents(journal)[2], expected)


# ---- values that are bytes


@given(
    block=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    several=st.integers(0, 3),
    data=st.data(),
)
def test_bytes_of_any_length_come_back_in_window_order(
    tmp_path_factory: pytest.TempPathFactory, block: tuple[int, int], several: int, data: st.DataObject
) -> None:
    slide = resolved_slide((70, 60), block=block)
    n = len(slide.grid())
    shape = (several,) if several else ()
    status = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), np.uint8)
    values = np.empty((n, *shape), object)
    values.ravel()[:] = data.draw(st.lists(st.binary(max_size=20), min_size=values.size, max_size=values.size))
    order = data.draw(st.permutations(range(len(slide.chunks()))))
    with Journal(tmp_path_factory.mktemp("journal") / "p1.sqlite") as journal:
        fill(journal, slide, values, status, order)
        index, found_status, rows = contents(journal)
        if (status == Status.WRITTEN).any():
            assert journal.spec == ValueSpec("bytes", shape)
            assert [bytes(row) for row in rows.ravel()] == values[status == Status.WRITTEN].ravel().tolist()
    np.testing.assert_array_equal(index, np.arange(n))
    np.testing.assert_array_equal(found_status, status)


def test_numbers_after_bytes_are_refused(path: Path) -> None:
    slide = resolved_slide()
    values = np.empty(len(slide.grid()), object)
    values[:] = b"picture"
    with Journal(path) as journal:
        fill(journal, slide, values, chunks=[0])
        with pytest.raises(PieceError, match=r"a value is float32 of shape \(\), those before it were bytes of shape \(\)"):
            fill(journal, slide, numbers("float32", (len(values),)), chunks=[1])
