"""The folder of a run that never was: what the tests of its summary and its contact sheet begin with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamwsi.config import Defining, Execution, OutputOptions
from streamwsi.dataset import Dataset, Patient
from streamwsi.pipeline.report import PatientReport, Report, SlideReport
from streamwsi.values import ValueSpec
from streamwsi.writing.layout import Layout
from streamwsi.writing.run_file import RunFile


def write_run(
    folder: Path,
    patients: dict[str, dict[str, str]],
    values: ValueSpec | None = None,
    mode: str = "stream",
    format: str = "hdf5",
) -> None:
    """The ``run.json`` of a run on these patients: the paths of their slides, by their ids."""
    folder.mkdir(exist_ok=True)
    defining = Defining(
        kernel_size=(16, 16),
        stride=(16, 16),
        level=0,
        border="pad",
        reader="auto",
        background=(255, 255, 255),
        on_bad_region="fail",
        collector="Redness",
        collector_mode=mode,
        collector_arguments={},
        columns=values.columns if values else None,
        batch_size=32,
        format=format,
        one_file=False,
    )
    dataset = Dataset([Patient(name, dict(slides)) for name, slides in patients.items()])
    run = RunFile.of(defining, Execution(), None, dataset)
    layout = Layout.of(OutputOptions(folder=str(folder), format="hdf5"))
    type(run)(**{**{name: getattr(run, name) for name in run.__struct_fields__}, "values": values}).write(layout)


def write_report(folder: Path, slides: Sequence[tuple[str, SlideReport]], **fields: Any) -> None:
    """The ``report.json`` of a run that has just ended: reports of slides, each with its patient."""
    patients: dict[str, PatientReport] = {}
    for patient, slide in slides:
        patients.setdefault(patient, PatientReport(id=patient, slides=[])).slides.append(slide)
    report = Report(streamwsi_version="0", patients=list(patients.values()), **fields)
    path = folder / "report.json"
    path.write_bytes(report.to_json())
    began_ns = (folder / "run.json").stat().st_mtime_ns
    os.utime(path, ns=(began_ns + 1, began_ns + 1))


def set_begun_again(folder: Path) -> None:
    """As if another run had been begun in the folder after the report was written."""
    ended_ns = (folder / "report.json").stat().st_mtime_ns
    os.utime(folder / "run.json", ns=(ended_ns + 1, ended_ns + 1))
