"""The scene of the kill suite, and its seed."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from tests.conftest import SIEGE
from tests.faults.siege import SEED, SEED_VARIABLE, Scene, Siege


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Where a test's random moments come from."""
    print(f"seed {SEED} ({SEED_VARIABLE})")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Callable[[Siege], None]:
    """Have the kills of a siege counted in the table that is shown at the end, by whichever process shows it."""
    return lambda siege: record_property(SIEGE, msgspec.json.encode(siege.tally()).decode())
