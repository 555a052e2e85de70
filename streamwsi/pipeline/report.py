"""What happened in a run.

In: events, as the driver sees them.  Out: a Report, also as JSON in the output folder.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from streamwsi.wire.messages import Clock

SlideState = Literal["done", "failed", "unfinished"]
PatientState = Literal["done", "already done", "partial", "failed", "unfinished"]


class SlideReport(msgspec.Struct, kw_only=True):
    """What became of one slide."""

    id: str
    """What it is called in its patient."""
    path: str
    """Where it lies."""
    state: SlideState = "unfinished"
    """``done``, ``failed`` or ``unfinished``."""
    reason: str | None = None
    """Why it failed."""
    reader: str | None = None
    """Which reader opened it."""
    reader_reason: str | None = None
    """Why it was not a faster reader, where there is one."""
    level: int | None = None
    """The level read."""
    expected: int | None = None
    """Windows of its plan; None where it could not be opened."""
    written: int = 0
    """Windows that have a row."""
    none: int = 0
    """Windows for which the collector gave nothing."""
    skipped: int = 0
    """Windows whose pixels could not be read."""
    stopped: int = 0
    """Windows behind the place where ``is_finished`` stopped the patient."""
    failed: int = 0
    """Windows that have no status because the slide failed."""
    seconds: float | None = None
    """From its opening to its last commit."""
    tiles_decoded: int | None = None
    """Tiles decoded in this run, each as often as it was; None where the reader does not count them."""
    tiles_distinct: int | None = None
    """Tiles decoded at least once in this run."""
    resampled_px: float = 0.0
    """Largest shift of what was read against the level's own pixels, in pixels of the level; 0: exact."""


class PatientReport(msgspec.Struct, kw_only=True):
    """What became of one patient."""

    id: str
    """The patient's id."""
    state: PatientState = "unfinished"
    """``done``, ``already done`` (by an earlier run), ``partial``, ``failed`` or ``unfinished``."""
    file: str | None = None
    """Name of its file in the output folder; None where it has none."""
    slides: list[SlideReport] = []
    """What became of each of its slides."""


class StageReport(msgspec.Struct, kw_only=True):
    """Where the time of a stage's workers went, as shares of the run, 0 to 1."""

    workers: int
    """How many there were."""
    busy: float
    """At work."""
    wait_input: float
    """Waiting for something to do."""
    wait_output: float
    """Waiting for the next stage to take what was done."""


class Report(msgspec.Struct, kw_only=True):
    """What happened in a run."""

    streamwsi_version: str
    """The version that made it."""
    state: Literal["done", "some slides failed", "interrupted", "broken off"] = "done"
    """How the run ended."""
    seconds: float = 0.0
    """From its beginning to its end."""
    windows: int = 0
    """Windows committed in this run."""
    windows_per_second: float = 0.0
    """`windows` by `seconds`, start and end of the processes included."""
    restarts: int = 0
    """Workers that were replaced."""
    refused_messages: int = 0
    """Messages that were malformed, foreign or oversized, and were passed over."""
    transport: str | None = None
    """How pixels came to the collectors: ``shm``, ``ipc`` or ``tcp``; None where nothing was to be done."""
    limiting_stage: str | None = None
    """The stage whose workers were busiest."""
    stages: dict[str, StageReport] = {}
    """Where the time went, by stage: loader, collector, writer, publisher."""
    error: str | None = None
    """What broke the run off."""
    warnings: list[str] = []
    """What was not as it should be, and did not stop the run."""
    patients: list[PatientReport] = []
    """What became of each patient."""
    results: dict[str, Any] = {}
    """What a gathering collector made of each patient, by patient id; not part of the JSON."""

    @property
    def exit_code(self) -> int:
        """0 all done; 1 some slides failed; 3 broken off."""
        return {"done": 0, "some slides failed": 1, "interrupted": 130, "broken off": 3}[self.state]

    @property
    def failed_slides(self) -> list[SlideReport]:
        """Slides that failed, with their reasons."""
        return [slide for patient in self.patients for slide in patient.slides if slide.state == "failed"]

    def to_json(self) -> bytes:
        """The report as indented JSON, without `results`."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "results"}
        return msgspec.json.format(msgspec.json.encode(fields), indent=2)

    def set_clocks(self, clocks: dict[str, dict[str, Clock]], workers: dict[str, int]) -> None:
        """Sum the workers' clocks up by stage, and name the busiest stage."""
        for stage, of_workers in clocks.items():
            total = max(self.seconds * workers[stage], 1e-9)

            def share(kind: str, of: dict[str, Clock] = of_workers, total: float = total) -> float:
                return round(min(1.0, float(sum(getattr(clock, kind) for clock in of.values())) / total), 4)

            self.stages[stage] = StageReport(
                workers=workers[stage],
                busy=share("busy_s"),
                wait_input=share("wait_input_s"),
                wait_output=share("wait_output_s"),
            )
        if any(stage.busy for stage in self.stages.values()):
            self.limiting_stage = max(self.stages, key=lambda stage: self.stages[stage].busy)
