"""How many loaders and threads there are by default."""

from __future__ import annotations

import pytest

from streamwsi.errors import ConfigError
from streamwsi.pipeline import reading
from streamwsi.pipeline.reading import LoaderSizes, loader_sizes


@pytest.mark.parametrize(
    ("cpus", "loaders", "threads", "expected"),
    [
        (1, None, None, LoaderSizes(1, 2, 2)),
        (2, None, None, LoaderSizes(1, 3, 3)),
        (4, None, None, LoaderSizes(1, 5, 5)),
        (5, None, None, LoaderSizes(2, 2, 3)),
        (16, None, None, LoaderSizes(4, 4, 5)),
        (2, 4, None, LoaderSizes(4, 1, 2)),
        (16, 1, None, LoaderSizes(1, 17, 17)),
        (16, None, 2, LoaderSizes(4, 2, 3)),
        (2, 1, 6, LoaderSizes(1, 6, 7)),
    ],
)
def test_they_follow_from_the_processors_unless_they_are_told(
    monkeypatch: pytest.MonkeyPatch, cpus: int, loaders: int | None, threads: int | None, expected: LoaderSizes
) -> None:
    monkeypatch.setattr(reading, "available_cpus", lambda: cpus)
    assert loader_sizes(loaders, threads) == expected


@pytest.mark.parametrize(("loaders", "threads"), [(0, None), (None, 0), (1, -2)])
def test_none_at_all_are_refused(loaders: int | None, threads: int | None) -> None:
    with pytest.raises(ConfigError):
        loader_sizes(loaders, threads)
