"""The scene of the kill suite, its seed, and a table of its kills at the end."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.faults.siege import Scene, Siege, table

SEED_VARIABLE = "STREAMWSI_TEST_SEED"
SEED = os.environ.get(SEED_VARIABLE, "1")
SIEGES: pytest.StashKey[list[Siege]] = pytest.StashKey()


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Where a test's random moments come from."""
    print(f"seed {SEED} ({SEED_VARIABLE})")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Callable[[Siege], None]:
    """Have the kills of a siege counted in the table."""
    return request.config.stash.setdefault(SIEGES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the kills."""
    sieges = config.stash.get(SIEGES, [])
    if sieges:
        terminalreporter.section(f"kills (seed {SEED}, {SEED_VARIABLE})")
        terminalreporter.write_line(table(sieges))
