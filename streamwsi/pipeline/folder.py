"""The output folder of a run: whether it can be used, who uses it, and what was asked.

In: a folder and what a run is asked to do.  Out: a folder that is this run's alone.  Refuses before it changes anything.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from streamwsi.config import Defining, OutputOptions
from streamwsi.errors import DiskError, OutputError
from streamwsi.pipeline.lock import FolderLock
from streamwsi.values import ValueSpec
from streamwsi.writing.layout import (
    ALL_PATIENTS,
    SUFFIXES,
    Layout,
    disk_errors,
    remove_half_written,
    remove_output,
    sync_folder,
)
from streamwsi.writing.manifest import strange_files
from streamwsi.writing.map_manifest import holds_maps, strange_in_maps
from streamwsi.writing.publish import PublishedPatient, read_record
from streamwsi.writing.run_file import RunFile

_PROBE_BYTES = 1 << 14
"""What a folder must take before a run begins."""


class OutputFolder:
    """A run's folder, locked for as long as the run lives."""

    def __init__(self, layout: Layout, run: RunFile, overwrite: bool = False) -> None:
        """Make and lock the folder, and check that the run can have it; with `overwrite`, what an earlier run left is to go.

        Nothing changes in it before :meth:`begin`. Raises OutputError when it cannot be written, when another run uses it, or
        when it holds the results of another run.
        """
        self.layout = layout
        self.warnings: list[str] = []
        folder = layout.folder
        self._made = _make_folder(folder, "output folder")
        """Folders that this run has made, the deepest first."""
        self._begins = False
        """No run had begun in the folder when this one had locked it."""
        self.lock: FolderLock | None = None
        try:
            if layout.journals_lie_elsewhere:
                self._made = [*_make_folder(layout.journal_dir, "folder of the journals"), *self._made]
            with disk_errors(folder / ".lock"):
                self.lock = FolderLock(folder / ".lock")
            before = RunFile.read(layout)
            self._begins = before is None
            self._goes = _Remains(layout, before) if overwrite and before is not None else None
            """What is removed when the run begins."""
            if before is None or self._goes is not None:
                run = msgspec.structs.replace(run, run_id=secrets.token_hex(8))
                goes = set() if self._goes is None else set(self._goes.finals)
                self._refuse_strange_files(file for file in _final_files(layout, run, run.patients) if file not in goes)
                if any(layout.journal_dir.glob("*.sqlite")) and (
                    self._goes is None or self._goes.journal_dir != layout.journal_dir
                ):
                    raise OutputError(
                        f"{layout.journal_dir} holds journals, but no {layout.run_file.name} says whose: choose another "
                        "folder, or remove them"
                    )
            else:
                self._compare(before, run)
                run = self._resumed(before, run)
            if layout.journals_lie_elsewhere:  # other runs may have theirs beside them
                self.layout = layout = replace(layout, journal_dir=layout.journal_dir / run.run_id)
                run = msgspec.structs.replace(run, journals=str(layout.journal_dir))
            if before is not None and self._goes is None:
                self._refuse_other_journals(before)
            self.run = run
        except BaseException as error:
            self.abandon()
            if isinstance(error, DiskError):
                raise OutputError(str(error)) from error
            raise

    def begin(self) -> None:
        """Remove what is to be overwritten, and what a run that was killed has left half done; and write what was asked.

        Raises OutputError when something cannot be removed or written.
        """
        try:
            if self._goes is not None:
                self._goes.remove()
            self.run.write(self.layout)
            _remove_journals_of_published(self.layout)
            remove_half_written(self.layout.folder)
        except DiskError as error:
            raise OutputError(str(error)) from error
        except OSError as error:
            raise OutputError(f"what lies in {self.layout.folder} cannot be removed: {error}") from error

    @property
    def values(self) -> ValueSpec | None:
        """What the values of this folder are."""
        return self.run.values

    def set_values(self, spec: ValueSpec) -> None:
        """Write down what the values are."""
        self.run = msgspec.structs.replace(self.run, values=spec)
        self.run.write(self.layout)

    def remove_empty_folders(self) -> None:
        """Remove the folder of the journals, if no patient is unfinished."""
        for folder in (
            self.layout.journal_dir,
            *([self.layout.journal_dir.parent] if self.layout.journals_lie_elsewhere else []),
        ):
            with contextlib.suppress(OSError):  # journals of failed slides are kept in it, or other runs have theirs there
                folder.rmdir()

    def close(self) -> None:
        """Let the folder go."""
        if self.lock is not None:
            self.lock.close()

    def abandon(self) -> None:
        """Let the folder go before anything was written into it; if it is new, it is removed.

        Nothing of another run is: where several begin together, the folder may be one's, and the lock another's.
        """
        if self.lock is not None and self._begins and self.layout.folder in self._made:
            self.layout.run_file.unlink(missing_ok=True)
            self.lock.remove()
        self.close()
        _remove_empty(self._made)

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _compare(self, before: RunFile, run: RunFile) -> None:
        for name in Defining.__struct_fields__:
            old, new = getattr(before.defining, name), getattr(run.defining, name)
            if isinstance(old, dict) and isinstance(new, dict):
                old, new = _of_one_only(old, new), _of_one_only(new, old)
            if old != new:
                raise OutputError(
                    f"{self.layout.folder} holds another run: its {name} is {old!r}, this one's is {new!r}; "
                    f"choose another folder, or pass overwrite to start afresh"
                )
        if before.collector_source != run.collector_source:
            self.warnings.append("the collector's source has changed since this run began")

    def _resumed(self, before: RunFile, run: RunFile) -> RunFile:
        """What was asked of both: patients that an earlier run finished stay known, though this one is not asked for them."""
        added = [patient_id for patient_id in run.patients if patient_id not in before.patients]
        if not run.defining.one_file:
            self._refuse_strange_files(_final_files(self.layout, run, added))
        self._refuse_changed_patients(run)
        kept = {
            patient_id: slides
            for patient_id, slides in before.patients.items()
            if patient_id in run.patients or any(path.exists() for path in _final_files(self.layout, before, [patient_id]))
        }
        return msgspec.structs.replace(
            run, values=before.values, run_id=before.run_id, patients={**kept, **run.patients}, journals=""
        )

    def _refuse_strange_files(self, files: Iterable[Path]) -> None:
        for final in files:
            if final.exists():
                raise OutputError(
                    f"{final} is there already, and no run of streamwsi is known to have made it: choose another folder"
                )

    def _refuse_changed_patients(self, run: RunFile) -> None:
        """Raise OutputError where a file that is finished would have to hold more, or something else."""
        finished = {}
        for patient_id, slides in run.patients.items():
            record = read_record(self.layout, patient_id)
            if record is None:
                continue
            finished[patient_id] = [slide.resolved.id for slide in record.slides]
            if finished[patient_id] != list(slides):
                raise OutputError(
                    f"patient {patient_id!r} was finished with the slides {finished[patient_id]}, the dataset has "
                    f"{list(slides)}: choose another folder, or pass overwrite to start afresh"
                )
        if run.defining.one_file and 0 < len(finished) < len(run.patients):
            added = next(patient_id for patient_id in run.patients if patient_id not in finished)
            raise OutputError(
                f"{self.layout.folder} holds one file of {len(finished)} patients, which is finished; patient {added!r} cannot "
                f"be added to it: choose another folder, or pass overwrite to start afresh"
            )

    def _refuse_other_journals(self, before: RunFile) -> None:
        """Raise OutputError where what was committed would be passed over, and done again, for its journals lie elsewhere."""
        journals = _journals_of(self.layout, before)
        if journals != self.layout.journal_dir and any(journals.glob("*.sqlite")):
            raise OutputError(
                f"the journals that {self.layout.folder} was begun with lie in {journals}, not in {self.layout.journal_dir}: "
                "give the journal_dir of then, or remove them, and what they hold is done again"
            )


def _of_one_only(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What the other does not have, or has otherwise: of many arguments, the few that a person is to look at."""
    return {name: value for name, value in one.items() if name not in other or other[name] != value}


def _final_files(layout: Layout, run: RunFile, patient_ids: Iterable[str], partial: bool = False) -> list[Path]:
    """The files that a run writes for these patients."""
    if run.defining.one_file:
        return [layout.final_file(ALL_PATIENTS, partial)]
    of_patient = layout.final_file if run.defining.collector_mode == "stream" else layout.result_file
    return [of_patient(patient_id, partial) for patient_id in patient_ids]


def _journals_of(layout: Layout, run: RunFile) -> Path:
    """Where the journals of a run lie."""
    return Path(run.journals) if run.journals else Layout.of(OutputOptions(folder=str(layout.folder), format="csv")).journal_dir


class _Remains:
    """What a run has left in a folder, to be removed so that another can begin: its files, journals, records, nothing else.

    Raises OutputError where a patient's folder would go with files in it that no run has made.
    """

    def __init__(self, layout: Layout, run: RunFile) -> None:
        of_run = replace(layout, suffix=SUFFIXES[run.defining.format])
        self.finals = [final for partial in (False, True) for final in _final_files(of_run, run, run.patients, partial)]
        for folder in filter(Path.is_dir, self.finals):
            _refuse_others_files(folder)
        self.journal_dir = _journals_of(layout, run)
        self._layout, self._run = layout, run

    def remove(self) -> None:
        """Remove them. ``run.json`` goes last: whatever ends this, the folder is still known to be that run's."""
        layout = self._layout
        for final in self.finals:
            remove_output(final)
        for record in [*layout.published_dir.glob("*.json"), *layout.published_dir.glob("*.partial")]:
            record.unlink()
        for half_written in layout.folder.glob(".*.part"):
            remove_output(half_written)
        for journal in self.journal_dir.glob("*.sqlite*"):
            journal.unlink()
        if self._run.journals:
            with contextlib.suppress(OSError):  # somebody has put something into it
                self.journal_dir.rmdir()
        layout.report_file.unlink(missing_ok=True)
        layout.run_file.unlink()


def _refuse_others_files(folder: Path) -> None:
    """Raise OutputError where a patient's folder would be removed with files in it that no run has made."""
    strange = next(strange_in_maps(folder) if holds_maps(folder) else strange_files(folder), None)
    if strange is not None:
        raise OutputError(f"{folder / strange} was not made by streamwsi: move it out of the folder, which is to be removed")


def _remove_journals_of_published(layout: Layout) -> None:
    """Remove what a publisher that was killed has left: journals whose patients were published."""
    for journal in layout.journal_dir.glob("*.sqlite*"):
        record = layout.published_dir / f"{journal.name.partition('.')[0]}.json"
        if record.exists():
            published = msgspec.json.decode(record.read_bytes(), type=PublishedPatient)
            if (layout.folder / published.file).exists():
                journal.unlink()


def _make_folder(folder: Path, what: str) -> list[Path]:
    """Make a folder, and those above it, and see that it can be written. Returns those it has made, the deepest first."""
    made: list[Path] = []
    probe = folder / f".streamwsi-write-test-{os.getpid()}"
    try:
        for path in reversed([folder, *folder.parents]):
            if not path.exists() and _made_here(path):
                made.insert(0, path)
                sync_folder(path.parent)
        try:
            probe.write_bytes(bytes(_PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        _remove_empty(made)
        raise OutputError(f"the {what} {folder} cannot be written: {error.strerror or error}") from error
    return made


def _made_here(folder: Path) -> bool:
    """Make a folder. False: another run was faster."""
    try:
        folder.mkdir()
    except FileExistsError:
        if folder.is_dir():
            return False
        raise
    return True


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of these folders that nothing lies in."""
    for folder in folders:
        with contextlib.suppress(OSError):  # another run has put something into it
            folder.rmdir()
