"""Everything a run needs, checked and ready.

In: options.  Out: the same in one place, for the driver and those it starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamwsi.collecting.main import CollectingOptions
from streamwsi.collecting.spec import Shipped
from streamwsi.config import Execution
from streamwsi.dataset import Dataset
from streamwsi.pipeline.reading import LoaderStartup
from streamwsi.wire.keys import RunKeys
from streamwsi.writing.main import WritingOptions


@dataclass(frozen=True, kw_only=True)
class BranchJob:
    """What one collector of a run is to do, and with what."""

    name: str | None
    """None: the run has one collector, which needs none."""
    collecting: CollectingOptions
    collector: Shipped
    asks_finished: bool
    gathers: bool
    writing: WritingOptions
    execution: Execution
    """That of the run, with the collectors and devices of this one."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one run is to do."""

    dataset: Dataset
    loaders: LoaderStartup
    branches: tuple[BranchJob, ...]
    execution: Execution
    """What does not belong to one collector."""
    keys: RunKeys | None
    """Those that the user gives; None: they are made for the run."""
    slot_bytes: int
    """What a slot of the shared memory is to hold: the pixels of the largest chunk that is planned."""
    quiet: bool
