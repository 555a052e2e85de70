"""What a device gives is kept after the next batch was begun: in order, whole, and without the pixels being held."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import streamwsi as sw


class Plain(sw.StreamCollector):
    """Views of the pixels, as they lie in their slot."""

    def process(self, batch: sw.Batch) -> Any:
        return batch.pixels[:, ::64, ::64, 0]


class OfADevice(Plain):
    """Two of three results are there only later, as those of a device are: copies that are made meanwhile."""

    def __init__(self, notes: str) -> None:
        self.notes = notes

    def setup(self) -> None:
        import streamwsi.collecting.main as main

        self.begun = self.overtaken = 0
        self.kept: list[bool] = []
        collected = main.ChunkCollected

        def fetched_later(result: Any) -> Callable[[], Any] | None:
            number, copy = self.begun, np.array(result)
            if number % 3 == 0:
                return None

            def fetch() -> Any:
                self.overtaken += self.begun > number
                return copy

            return fetch

        def noted(lease: int, kept: bool, *rest: Any) -> Any:
            self.kept.append(kept)
            return collected(lease, kept, *rest)

        main.fetched_later, main.ChunkCollected = fetched_later, noted  # type: ignore[assignment,misc]

    def process(self, batch: sw.Batch) -> Any:
        self.begun += 1
        return super().process(batch)

    def teardown(self) -> None:
        Path(self.notes).write_text(json.dumps({"begun": self.begun, "overtaken": self.overtaken, "kept": self.kept}))


def test_results_that_come_later_are_kept_in_order_and_hold_no_pixels(bundled: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.json"
    values = []
    for collector in (Plain(), OfADevice(str(notes))):
        loader = sw.SlidingWindowLoader(sw.Dataset([sw.Patient("p", {"s": bundled})]), kernel_size=128)
        out = tmp_path / type(collector).__name__
        report = sw.Pipeline(
            loader, collector, sw.HDF5StreamWriter(out), quiet=True, batch_size=8, chunk_px=1 << 18, transport="shm"
        ).run()
        assert report.exit_code == 0
        values.append(sw.read_pieces(out / "p.h5").values)
    np.testing.assert_array_equal(*values)
    noted = json.loads(notes.read_text())
    assert noted["overtaken"] > noted["begun"] // 4  # the last of what is there has none to overtake it
    assert len(noted["kept"]) > 10 and not any(noted["kept"])
