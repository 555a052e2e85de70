"""What the scheduler is told at the start, and what it decides.

A run has one or more branches: one for each collector, with the patients' journals and files that are that collector's. What a
loader reads goes to all branches that need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

SlideKey = tuple[int, int]
"""(patient, slide): places in the dataset."""
Suspect = tuple[SlideKey, int]
"""A chunk of a slide, or OPENING for the slide as a whole."""
OPENING = -1
DEATHS_OF_POISON = 3
"""A chunk that was being worked on when so many workers ended is given up, and its slide with it."""


# ---- what the caller says at the start


class PatientJob(NamedTuple):
    """A patient to process."""

    patient: int
    n_slides: int
    branches: tuple[int, ...] = (0,)
    """Those that have not finished it yet."""


class SlidePlan(Protocol):
    """What the scheduler knows of a slide's chunks."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def n_windows(self, chunk: int) -> int:
        """How many windows one holds."""
        ...

    def block_at(self, chunk: int, n_loaders: int) -> tuple[int, int, int]:
        """The block of neighbouring chunks that one of so many loaders is to read, at a chunk that is the first of its row.

        (rows, columns) of it, and how many chunks on the next row begins.
        """
        ...


@dataclass(frozen=True)
class Limits:
    """How much may be under way."""

    loader_credits: int = 4
    collector_credits: int = 2
    writer_credits: int = 16
    slides_ahead: int = 4
    """Slides being opened, or open and not yet leased to their end, for each loader."""
    open_patients: int = 64
    """Patients begun and not finished, publication included."""
    loaders: int = 1
    """How many there will be; where more have come, those count."""


@dataclass(frozen=True)
class BranchRules:
    """How one branch ends its patients."""

    ask_finished: bool = False
    """The collector has an ``is_finished`` of its own."""
    publish_partial: bool = False
    """Patients of whom slides have failed are published too."""
    publish: bool = True
    """Patients are published one by one (else the caller does it at the end, from the sealed journals)."""


# ---- decisions


class Open(NamedTuple):
    """Have a writer open a patient's journal."""

    writer: str
    patient: int
    branch: int = 0


class Resolve(NamedTuple):
    """Have a loader open a slide."""

    loader: str
    slide: SlideKey


class Read(NamedTuple):
    """Have a loader read a chunk."""

    loader: str
    lease: int
    slide: SlideKey
    chunk: int


class Send(NamedTuple):
    """Have a chunk that a loader has read sent to a collector."""

    loader: str
    lease: int
    collector: str
    writer: str
    slide: SlideKey
    chunk: int
    branch: int = 0
    last: bool = True
    """Nobody else is to be sent it: the loader may forget it."""


class Drop(NamedTuple):
    """Have a loader forget a chunk: it is not sent, or not sent to anybody else."""

    loader: str
    lease: int


class Fail(NamedTuple):
    """A slide has failed for a branch: a chunk that counts cannot be done, or opening it has ended too many workers."""

    slide: SlideKey
    chunk: int
    """Or OPENING."""
    branch: int = 0


class CloseSlide(NamedTuple):
    """Nothing more is read from a slide."""

    slide: SlideKey


class AskFinished(NamedTuple):
    """Ask the user's ``is_finished``."""

    collector: str
    patient: int
    windows_done: int
    branch: int = 0


class Seal(NamedTuple):
    """Have a writer close a patient's journal."""

    writer: str
    patient: int
    branch: int = 0


class Publish(NamedTuple):
    """Have a sealed journal published."""

    publisher: str
    patient: int
    stop: SlideKey | None
    """(slide, chunk) after which the patient was stopped."""
    branch: int = 0


class Finished(NamedTuple):
    """A branch is done with a patient: it was published, or given up because slides of it have failed."""

    patient: int
    stop: SlideKey | None
    """(slide, chunk) after which it was stopped."""
    failed: bool
    """Slides of it have failed."""
    branch: int = 0


Decision = Open | Resolve | Read | Send | Drop | Fail | CloseSlide | AskFinished | Seal | Publish | Finished
