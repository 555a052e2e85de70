"""Points in a file.

In: a CSV file.  Out: points and labels, of each slide.  Never guesses which slide a point is on.
"""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np

from streamwsi.errors import ConfigError
from streamwsi.regions.mask import Float64Array

_COLUMNS = {"x", "y", "slide", "patient", "label"}


def read_points(
    path: str | os.PathLike[str],
) -> tuple[dict[object, Float64Array] | Float64Array, dict[object, list[str | None]] | list[str | None] | None]:
    """Points and their labels, as :class:`streamwsi.PointSampler` takes them.

    `path` is a CSV file with a header: ``x`` and ``y``, level-0 pixels; where it is of more than one slide ``slide``, and
    ``patient`` too where slides of different patients have one id; and ``label``, which may be empty, where points have labels.

    Returns points, (n, 2) float64, and labels, or None without the column; both as mappings from the slides, where it names
    them. Raises ConfigError naming the line of what cannot be.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = set(rows.fieldnames or ())
            twice = len(columns) < len(rows.fieldnames or ())
            if twice or not {"x", "y"} <= columns or columns - _COLUMNS or ("patient" in columns and "slide" not in columns):
                raise ConfigError(
                    f"{path} must have the columns x and y, each once, and may have slide, patient (with slide) and label; it "
                    f"has {', '.join(rows.fieldnames or ()) or 'none'}"
                )
            points: dict[object, list[tuple[float, float]]] = {}
            labels: dict[object, list[str | None]] = {}
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                key: object = row.get("slide")
                if "patient" in columns:
                    key = (row["patient"], row["slide"])
                points.setdefault(key, []).append((_number(row["x"], where), _number(row["y"], where)))
                labels.setdefault(key, []).append(row.get("label") or None)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as points: {getattr(error, 'strerror', None) or error}") from error
    if not points:
        raise ConfigError(f"{path} holds no point")
    arrays = {key: np.array(each, np.float64) for key, each in points.items()}
    if "slide" not in columns:
        return arrays[None], labels[None] if "label" in columns else None
    return arrays, labels if "label" in columns else None


def _number(text: str | None, where: str) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{where}: x and y must be numbers, in level-0 pixels, got {text!r}")
    return number
