"""What is in an output folder: patients, slides, counts, values, results.

In: an output folder.  Out: a Summary, for people or as JSON.  Reads files part by part: memory does not grow with them. Does
not check them (that is `verify`), opens no slide and no journal, and changes nothing.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamwsi.errors import MapError, PieceError
from streamwsi.maps.pieces import flattened, stream
from streamwsi.values import decode_result
from streamwsi.writing.outcome import LastRun, Outcome, PatientOutcome, SlideOutcome, read_outcome

_COLUMNS_SHOWN = 20
"""Of the value columns, in words; the JSON has all."""
_NUMBERS_SHOWN = 8
"""Numbers of an array that are shown one by one."""
_LARGEST_RESULT_BYTES = 1 << 28
"""A result is one value and is decoded as a whole; larger ones are left where they are."""


class ColumnSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The values of one column, of all patients."""

    name: str
    """The column's name."""
    values: int
    """How many there are, without those that are NaN."""
    nan: int
    """How many are NaN."""
    min: float | None
    """None where there is no value."""
    mean: float | None
    """As `min`."""
    max: float | None
    """As `min`."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What is in an output folder; ``print`` shows it."""

    outcome: Outcome
    """What has become of the patients and their slides, and how the last run went."""
    columns: list[ColumnSummary]
    """The values in the patients' files; empty where there are none, of images and maps, and where results are gathered."""
    results: dict[str, Any]
    """What a gathering collector made of each patient, by patient id."""
    problems: list[str]
    """Files that could not be read."""

    def to_json(self) -> str:
        """As indented JSON; a large array is described, not written out."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__} | {"results": _plain(self.results)}
        return msgspec.json.format(msgspec.json.encode(fields), indent=2).decode()

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def summarize(folder: str | os.PathLike[str]) -> Summary:
    """What is in the output folder of a run, whether or not it is finished; printed, it is a table.

    Raises OutputError when the folder holds no run, or its records are damaged.
    """
    outcome = read_outcome(folder)
    columns: list[ColumnSummary] = []
    results: dict[str, Any] = {}
    problems: list[str] = []
    if outcome.collector_mode == "stream":
        columns = _columns(outcome, problems)
    else:
        for patient in outcome.patients:
            if patient.file is not None:
                try:
                    results[patient.id] = _result(Path(outcome.folder, patient.file))
                except PieceError as error:
                    problems.append(str(error))
    return Summary(outcome=outcome, columns=columns, results=results, problems=problems)


# ---- values


class _Totals:
    """What is known of the values of some columns so far; arrays are (columns,)."""

    def __init__(self, n_columns: int) -> None:
        self.count = np.zeros(n_columns, np.int64)
        self.nan = np.zeros(n_columns, np.int64)
        self.sum = np.zeros(n_columns)
        self.min = np.full(n_columns, math.inf)
        self.max = np.full(n_columns, -math.inf)

    def add(self, values: npt.NDArray[Any]) -> None:
        """Add (n, columns) values."""
        nan = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        self.count += (~nan).sum(axis=0)
        self.nan += nan.sum(axis=0)
        with np.errstate(invalid="ignore", over="ignore"):  # infinite values may meet
            self.sum += np.where(nan, 0, values).sum(axis=0, dtype=np.float64)
        self.min = np.minimum(self.min, np.where(nan, math.inf, values).min(axis=0, initial=math.inf))
        self.max = np.maximum(self.max, np.where(nan, -math.inf, values).max(axis=0, initial=-math.inf))

    def summaries(self, names: Sequence[str]) -> list[ColumnSummary]:
        """One for each column."""
        return [
            ColumnSummary(
                name=name,
                values=int(count),
                nan=int(nan),
                min=float(low) if count else None,
                mean=float(total / count) if count else None,
                max=float(high) if count else None,
            )
            for name, count, nan, total, low, high in zip(
                names, self.count, self.nan, self.sum, self.min, self.max, strict=True
            )
        ]


def _columns(outcome: Outcome, problems: list[str]) -> list[ColumnSummary]:
    """The columns of all files together; what cannot be read is added to `problems`."""
    if outcome.values is None or outcome.values.holds_bytes or outcome.format == "maps":
        return []
    names = outcome.values.column_names
    totals = _Totals(len(names))
    for patient in outcome.patients:
        for slide in patient.slides:
            if patient.file is None or slide.state != "done":
                continue
            try:
                for part in stream(Path(outcome.folder, patient.file), slide.id, patient.id):
                    totals.add(flattened(part.values))
            except MapError as error:
                problems.append(str(error))
    return totals.summaries(names)


# ---- results


def _result(path: Path) -> Any:
    size = path.stat().st_size
    if size > _LARGEST_RESULT_BYTES:
        return f"{size / 1e6:.0f} MB, not shown: {path.name}"
    try:
        return decode_result(path.read_bytes())
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        raise PieceError(f"{path} is not a result of streamwsi, or it is damaged: {error}") from error


def _plain(result: Any) -> Any:
    """A result as JSON takes it: small arrays as lists, large ones described."""
    if isinstance(result, dict):
        return {str(name): _plain(value) for name, value in result.items()}
    if isinstance(result, list):
        return [_plain(value) for value in result]
    if isinstance(result, bytes):
        return f"{len(result)} bytes"
    if not isinstance(result, np.ndarray):
        return result
    if result.size <= _NUMBERS_SHOWN:
        return result.tolist()
    totals = _Totals(1)
    totals.add(result.reshape(-1, 1))
    (whole,) = totals.summaries([""])
    return {
        "dtype": result.dtype.name,
        "shape": list(result.shape),
        "min": whole.min,
        "mean": whole.mean,
        "max": whole.max,
        "nan": whole.nan,
    }


def _in_words(result: Any) -> str:
    """A result in one line."""
    if isinstance(result, dict):
        return ", ".join(f"{name}: {_in_words(value)}" for name, value in result.items()) or "nothing"
    if isinstance(result, list):
        shown = ", ".join(map(_in_words, result[:_NUMBERS_SHOWN]))
        return f"[{shown}{f', … {len(result)} in all' if len(result) > _NUMBERS_SHOWN else ''}]"
    if isinstance(result, np.ndarray):
        plain = _plain(result)
        if not isinstance(plain, dict):
            return _in_words(plain)
        shape = " × ".join(map(str, plain["shape"]))
        span = "all NaN" if plain["min"] is None else f"{plain['min']:.6g} to {plain['max']:.6g}, mean {plain['mean']:.6g}"
        return f"{plain['dtype']} {shape} ({span})"
    return f"{result:.6g}" if isinstance(result, float) else str(_plain(result))


# ---- in words


def _lines(summary: Summary) -> list[str]:
    outcome = summary.outcome
    lines = [_headline(outcome), *_run_lines(outcome.last_run), "", *_slide_table(outcome)]
    if summary.columns:
        lines += ["", *_column_table(summary.columns)]
    if summary.results:
        lines += ["", *(f"{patient}: {_in_words(result)}" for patient, result in summary.results.items())]
    reasons = list(_reasons(outcome)) + summary.problems
    return lines + (["", *reasons] if reasons else [])


def _headline(outcome: Outcome) -> str:
    states = Counter(patient.state for patient in outcome.patients)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    n_slides = sum(len(patient.slides) for patient in outcome.patients)
    what = outcome.format if outcome.collector_mode == "stream" else f"gathered ({outcome.collector_mode})"
    return (
        f"{outcome.folder}: {outcome.collector}, {what}; {_counted(len(outcome.patients), 'patient')}: {counts}; "
        f"{_counted(n_slides, 'slide')}"
    )


def _run_lines(run: LastRun | None) -> list[str]:
    if run is None:
        return ["no run has ended here yet"]
    line = f"last run: {run.state}, {_counted(run.windows, 'window')} in {run.seconds:.1f} s ({run.windows_per_second:.0f}/s)"
    line += f"; limiting stage: {run.limiting_stage}" if run.limiting_stage else ""
    line += f"; {_counted(run.restarts, 'worker')} replaced" if run.restarts else ""
    return [line, *([f"  {run.error}"] if run.error else [])]


def _slide_table(outcome: Outcome) -> list[str]:
    heads = ("patient", "slide", "state", "windows", "written", "none", "skipped", "stopped", "failed", "seconds")
    rows = [_slide_row(patient, slide) for patient in outcome.patients for slide in patient.slides]
    return _table([heads, *rows], n_texts=3)


def _slide_row(patient: PatientOutcome, slide: SlideOutcome) -> tuple[str, ...]:
    counts = (slide.written, slide.none, slide.skipped, slide.stopped, slide.failed)
    state = f"{slide.state} (partial)" if patient.state == "partial" and slide.state == "done" else slide.state
    return (
        patient.id,
        slide.id,
        state,
        "?" if slide.expected is None else str(slide.expected),
        *map(str, counts),
        "-" if slide.seconds is None else f"{slide.seconds:.1f}",
    )


def _column_table(columns: list[ColumnSummary]) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.6g}"

    rows = [
        (column.name, str(column.values), str(column.nan), number(column.min), number(column.mean), number(column.max))
        for column in columns[:_COLUMNS_SHOWN]
    ]
    lines = _table([("column", "values", "NaN", "min", "mean", "max"), *rows], n_texts=1)
    more = len(columns) - len(rows)
    return lines + ([f"… and {_counted(more, 'column')} more: --json has all"] if more else [])


def _reasons(outcome: Outcome) -> list[str]:
    return [
        f"{patient.id}, slide {slide.id}: {slide.state}: {slide.reason}"
        for patient in outcome.patients
        for slide in patient.slides
        if slide.reason and slide.state != "done"
    ]


def _table(rows: list[tuple[str, ...]], n_texts: int) -> list[str]:
    """Rows as lines; the first `n_texts` columns are texts, the others numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place < n_texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
