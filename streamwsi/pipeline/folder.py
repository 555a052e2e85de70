"""The output folder of a run: whether it can be used, who uses it, and what was asked.

In: a folder and what a run is asked to do.  Out: a folder that is this run's alone.  Refuses before it changes anything.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import msgspec

from streamwsi.config import Defining
from streamwsi.errors import DiskError, OutputError
from streamwsi.pipeline.lock import FolderLock
from streamwsi.values import ValueSpec
from streamwsi.writing.layout import Layout, disk_errors, make_folder
from streamwsi.writing.run_file import RunFile

_PROBE_BYTES = 1 << 14
"""What a folder must take before a run begins."""


class OutputFolder:
    """A run's folder, locked for as long as the run lives."""

    def __init__(self, layout: Layout, run: RunFile) -> None:
        """Check, make and lock the folder, and write what was asked.

        Raises OutputError when it cannot be written, when another run uses it, or when it holds the results of another run.
        """
        self.layout = layout
        self.warnings: list[str] = []
        folder = layout.folder
        made = _make_folder(folder, "output folder")
        self.lock: FolderLock | None = None
        try:
            if layout.journal_dir.parent != folder:
                made = [*_make_folder(layout.journal_dir, "folder of the journals"), *made]
            with disk_errors(folder / ".lock"):
                self.lock = FolderLock(folder / ".lock")
            before = RunFile.read(layout)
            if before is not None:
                self._compare(before, run)
                run = msgspec.structs.replace(run, values=before.values)
            else:
                self._refuse_strange_files(run)
            self.run = run
            self.run.write(layout)
            _remove_journals_of_published(layout)
        except BaseException as error:
            self.close()
            if folder in made:
                for path in (folder / ".lock", layout.run_file):
                    path.unlink(missing_ok=True)
            for path in made:
                path.rmdir()
            if isinstance(error, DiskError):
                raise OutputError(str(error)) from error
            raise

    @property
    def values(self) -> ValueSpec | None:
        """What the values of this folder are."""
        return self.run.values

    def set_values(self, spec: ValueSpec) -> None:
        """Write down what the values are."""
        self.run = msgspec.structs.replace(self.run, values=spec)
        self.run.write(self.layout)

    def close(self) -> None:
        """Let the folder go."""
        if self.lock is not None:
            self.lock.close()

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _compare(self, before: RunFile, run: RunFile) -> None:
        for name in Defining.__struct_fields__:
            old, new = getattr(before.defining, name), getattr(run.defining, name)
            if old != new:
                raise OutputError(
                    f"{self.layout.folder} holds another run: its {name} is {old!r}, this one's is {new!r}; "
                    f"choose another folder, or pass overwrite to start afresh"
                )
        if before.collector_source != run.collector_source:
            self.warnings.append("the collector's source has changed since this run began")

    def _refuse_strange_files(self, run: RunFile) -> None:
        for patient_id in run.patients:
            final = self.layout.final_file(patient_id)
            if final.exists():
                raise OutputError(
                    f"{final} is there already, and no run of streamwsi is known to have made it: choose another folder"
                )


def clear_folder(layout: Layout) -> None:
    """Remove what a run has left in a folder, so that another can begin: its files, journals and records, nothing else."""
    from streamwsi.writing.publish import PublishedPatient

    if not layout.run_file.exists():
        return
    for record in layout.published_dir.glob("*.json"):
        published = msgspec.json.decode(record.read_bytes(), type=PublishedPatient)
        (layout.folder / published.file).unlink(missing_ok=True)
        record.unlink()
    for pattern in ("*.partial.csv", "*.partial.h5", "*.partial.result"):
        for partial in layout.folder.glob(pattern):
            partial.unlink()
    if layout.journal_dir.is_dir():
        for journal in layout.journal_dir.glob("*.sqlite*"):
            journal.unlink()
    layout.report_file.unlink(missing_ok=True)
    layout.run_file.unlink()


def _remove_journals_of_published(layout: Layout) -> None:
    """Remove what a publisher that was killed has left: journals whose patients were published."""
    from streamwsi.writing.publish import PublishedPatient

    for journal in layout.journal_dir.glob("*.sqlite*"):
        record = layout.published_dir / f"{journal.name.partition('.')[0]}.json"
        if record.exists():
            published = msgspec.json.decode(record.read_bytes(), type=PublishedPatient)
            if (layout.folder / published.file).exists():
                journal.unlink()


def _make_folder(folder: Path, what: str) -> list[Path]:
    """Make a folder, and those above it, and see that it can be written. Returns the new ones, the deepest first."""
    made = []
    missing = folder
    while not missing.exists():
        made.append(missing)
        missing = missing.parent
    probe = folder / f".streamwsi-write-test-{os.getpid()}"
    try:
        make_folder(folder)
        try:
            probe.write_bytes(bytes(_PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        for path in made:
            if path.is_dir():
                path.rmdir()
        reason = error.__cause__ if isinstance(error, DiskError) else error
        raise OutputError(f"the {what} {folder} cannot be written: {getattr(reason, 'strerror', None) or error}") from error
    return made
