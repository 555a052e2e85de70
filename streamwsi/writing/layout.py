"""Where things lie in an output folder, and how a file gets its final name.

In: an output folder.  Out: paths.  Nothing here looks into the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from streamwsi.config import OutputOptions
from streamwsi.dataset import RUN_FILE
from streamwsi.errors import DiskError, StreamwsiError

SUFFIXES = {"csv": ".csv", "hdf5": ".h5", "images": "", "maps": ""}
"""Of a patient's file; images and maps are a folder of its name."""
_JOURNALS = ".journal"
_TEMPORARY = re.compile(r"\.[0-9a-f]{20}\.part")
"""Names of what is not whole."""
ALL_PATIENTS = "all"
"""Stem of the file that holds every patient, where one was asked for."""


def as_file_name(text: str) -> str:
    """`text` without what some file system does not take."""
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]', "-", text)


@dataclass(frozen=True)
class Layout:
    """The paths of one output folder."""

    folder: Path
    suffix: str
    journal_dir: Path

    @classmethod
    def of(cls, output: OutputOptions) -> Layout:
        """The layout that these options ask for."""
        folder = Path(os.path.abspath(output.folder))
        journals = Path(os.path.abspath(output.journal_dir)) if output.journal_dir else folder / _JOURNALS
        return cls(folder, SUFFIXES[output.format], journals)

    @property
    def journals_lie_elsewhere(self) -> bool:
        """The journals are not in the output folder."""
        return self.journal_dir != self.folder / _JOURNALS

    @property
    def run_file(self) -> Path:
        """What was asked."""
        return self.folder / RUN_FILE

    @property
    def report_file(self) -> Path:
        """What happened."""
        return self.folder / "report.json"

    @property
    def published_dir(self) -> Path:
        """One record for each patient that is complete."""
        return self.folder / ".published"

    def final_file(self, stem: str, partial: bool = False) -> Path:
        """The file of a patient (or of all of them)."""
        return self.folder / f"{stem}{'.partial' if partial else ''}{self.suffix}"

    def result_file(self, patient_id: str, partial: bool = False) -> Path:
        """What a gathering collector made of a patient."""
        return self.folder / f"{patient_id}{'.partial' if partial else ''}.result"

    def journal(self, patient_id: str) -> Path:
        """The journal of an unfinished patient."""
        return self.journal_dir / f"{hashed(patient_id)}.sqlite"

    def published(self, patient_id: str, partial: bool = False) -> Path:
        """The record of a published patient; of one published without some of its slides, where `partial`."""
        return self.published_dir / f"{hashed(patient_id)}.{'partial' if partial else 'json'}"


def run_folders(folder: Path) -> dict[str, Path]:
    """The output folders of a run, by the names of its collectors; ``""`` where it has one collector, without a name.

    Empty where `folder` is not that of a run.
    """
    if (folder / RUN_FILE).is_file():
        return {"": folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{RUN_FILE}"))}


def hashed(patient_id: str) -> str:
    """A short name that any file system takes, for an id of any length."""
    return hashlib.blake2b(patient_id.encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()


def _temporary(final: Path) -> Path:
    return final.with_name(f".{hashed(final.name)}.part")


@contextmanager
def renamed_when_whole(final: Path) -> Iterator[Path]:
    """A path to write to, which gets the name `final` when the block ends well, and is removed when it does not.

    The file and its folder entry are on disk before the block is left. Raises DiskError where the disk does not take them.
    """
    temporary = _temporary(final)
    with disk_errors(final):
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, final)
        except BaseException:
            with contextlib.suppress(OSError):  # a disk that has become read-only keeps it; the first error is what matters
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(final.parent)


@contextmanager
def folder_renamed_when_whole(final: Path) -> Iterator[Path]:
    """The same for a folder, which is there, empty, when the block begins. Who fills it sees to it that its files are on disk.

    What stands under the final name already is replaced: for a moment there is neither.
    """
    temporary = _temporary(final)
    with disk_errors(final):
        remove_output(temporary)
        temporary.mkdir()
        try:
            yield temporary
            for folder, _, _ in os.walk(temporary):
                sync_folder(Path(folder))
            remove_output(final)
            os.replace(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # the first error is what matters
            raise
        sync_folder(final.parent)


def remove_output(path: Path) -> None:
    """Remove what stands under a final name, if anything does; a folder is gone from there in one moment, or not at all."""
    if path.is_dir() and not path.is_symlink():
        leaving = path if path.name.startswith(".") else path.with_name(f".{hashed(path.name + '/')}.part")
        if leaving is not path:
            shutil.rmtree(leaving, ignore_errors=True)
            os.replace(path, leaving)
        shutil.rmtree(leaving)
    else:
        path.unlink(missing_ok=True)


def remove_half_written(folder: Path) -> None:
    """Remove what was being written in a folder, or removed from it, when its process was killed."""
    for path in folder.glob(".*.part"):
        if _TEMPORARY.fullmatch(path.name):
            remove_output(path)


def write_whole(final: Path, data: bytes) -> None:
    """Write `data` to a file that appears whole or not at all."""
    with renamed_when_whole(final) as temporary:
        temporary.write_bytes(data)


@contextmanager
def disk_errors(what: Path) -> Iterator[None]:
    """Raise the system's errors inside as a DiskError that says what could not be written, why, and what to do."""
    try:
        yield
    except StreamwsiError:
        raise
    except OSError as error:
        raise disk_error(what, error.strerror or str(error)) from error


def disk_error(what: Path, why: str) -> DiskError:
    """The error of something that a disk does not take."""
    return DiskError(
        f"{what} cannot be written: {why}; when that is remedied, run the same command again: what was committed is kept"
    )


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, with their entries on disk. Raises DiskError where the disk does not take them."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        with disk_errors(new):
            new.mkdir(exist_ok=True)
            sync_folder(new.parent)


def sync_folder(folder: Path) -> None:
    """Have the entries of a folder on disk; does nothing where folders cannot be opened (Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
