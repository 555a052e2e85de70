"""Fixtures that every test may use, and the table of kills at the end."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings

# most of what a process of a run costs is its start, and part of that are threads for linear algebra, which no test needs;
# those of PyTorch (OpenMP) wait for each other in loops, where several processes have few cores between them
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

pytest.register_assert_rewrite("tests.helpers", "tests.slides.reader_contract")

from tests.helpers import BUNDLED  # noqa: E402  (after its asserts are set up to be rewritten)

SLIDES_VARIABLE = "STREAMWSI_TEST_SLIDES"
SIEGE = "siege"
"""Under what name a test of the kill suite records a siege."""

# the same examples in every run, on a slow machine too
settings.register_profile("streamwsi", deadline=None, derandomize=True, database=None)
settings.load_profile("streamwsi")


@pytest.fixture(scope="session")
def bundled() -> Path:
    """The real slide that lies in the repository."""
    return BUNDLED


@pytest.fixture(scope="session")
def shared_slides() -> Path:
    """The folder of real slides that may not be committed."""
    folder = os.environ.get(SLIDES_VARIABLE)
    if not folder:
        pytest.skip(f"{SLIDES_VARIABLE} is not set: the folder of real slides that are not in the repository")
    return Path(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the kills of all test processes: what a test records comes with its report, from wherever it ran."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    sieges = [value for report in reports if report.when == "call" for name, value in report.user_properties if name == SIEGE]
    if sieges:
        from tests.faults.siege import SEED, SEED_VARIABLE, Tally, table

        terminalreporter.section(f"kills (seed {SEED}, {SEED_VARIABLE})")
        terminalreporter.write_line(table([msgspec.json.decode(siege, type=Tally) for siege in sieges]))
