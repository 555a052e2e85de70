"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.helpers", "tests.slides.reader_contract")

from tests.helpers import BUNDLED  # noqa: E402  (after its asserts are set up to be rewritten)

SLIDES_VARIABLE = "STREAMWSI_TEST_SLIDES"

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
