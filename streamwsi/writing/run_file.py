"""``run.json``: what was asked of a run, and with what.

In: a run's options and dataset.  Out: the same, as a file that a resume, `verify` and the reading of files go by.
"""

from __future__ import annotations

import msgspec

from streamwsi._version import __version__
from streamwsi.config import Defining, Execution
from streamwsi.dataset import Dataset
from streamwsi.errors import OutputError
from streamwsi.values import ValueSpec
from streamwsi.writing.layout import Layout, write_whole


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """What ``run.json`` holds."""

    streamwsi_version: str
    defining: Defining
    execution: Execution
    collector_source: str | None
    """A hash of the collector's source, where it has any."""
    patients: dict[str, dict[str, str]]
    """The dataset: for each patient the paths of its slides, by their ids."""
    values: ValueSpec | None = None
    """dtype, shape and columns of the values, once there is one."""
    run_id: str = ""
    """Random, of the run that was begun in the folder and goes on until it is overwritten."""
    journals: str = ""
    """Where its journals lie, if not in the folder."""

    @classmethod
    def of(cls, defining: Defining, execution: Execution, collector_source: str | None, dataset: Dataset) -> RunFile:
        """What a run that begins now will write."""
        return cls(
            streamwsi_version=__version__,
            defining=defining,
            execution=execution,
            collector_source=collector_source,
            patients={patient.id: {slide.id: str(slide.path) for slide in patient.slides} for patient in dataset},
        )

    def write(self, layout: Layout) -> None:
        """Write it; it appears whole."""
        write_whole(layout.run_file, msgspec.json.format(msgspec.json.encode(self), indent=2))

    @classmethod
    def read(cls, layout: Layout) -> RunFile | None:
        """The file of an earlier run; None where there is none. Raises OutputError when it cannot be understood."""
        try:
            return msgspec.json.decode(layout.run_file.read_bytes(), type=cls)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise OutputError(
                f"{layout.run_file} was not written by this version of streamwsi: {error}; choose another folder"
            ) from error
