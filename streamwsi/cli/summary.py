"""What a run has done, in words.

In: a report.  Out: a few lines.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamwsi.pipeline.report import Report


def summary(report: Report, out: Path) -> str:
    """What happened, in a few lines."""
    states: dict[str, int] = {}
    for patient in report.patients:
        states[patient.state] = states.get(patient.state, 0) + 1
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    lines = [
        f"{len(report.patients)} patient{'s' if len(report.patients) != 1 else ''}: {counts}; "
        f"{report.windows} windows in {report.seconds:.1f} s ({report.windows_per_second:.0f}/s)"
        + (f"; limiting stage: {report.limiting_stage}" if report.limiting_stage else "")
    ]
    return "\n".join([*lines, *failures(report), f"files: {out}; report: {out / 'report.json'}"])


def failures(report: Report) -> list[str]:
    """A line for each slide that has failed."""
    reasons = [(slide.path, slide.reason or "unknown") for slide in report.failed_slides]
    return [f"failed: {reason if path in reason else f'{path}: {reason}'}" for path, reason in reasons]
