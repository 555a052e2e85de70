"""A collector of one's own.

It runs as a script, on the bundled slide:

    python examples/own_collector.py out/

and from the command line, on any:

    streamwsi heatmap slides/ --out out/ --collector examples/own_collector.py:Redness --arg threshold=0.2
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import streamwsi as sw


class Redness(sw.StreamCollector):
    """How red each window is, and which share of its pixels is redder than a threshold; glass gets no row."""

    columns = ("redness", "red_share")
    arguments = ("threshold", "glass")

    def __init__(self, threshold: float = 0.1, glass: float = 0.85) -> None:
        """Pixels count as red above `threshold`; windows are glass whose mean brightness is above `glass` (both 0 to 1)."""
        self.threshold = threshold
        self.glass = glass

    def setup(self) -> None:
        """Called once, in the collector's own process; a model would be loaded onto `self.device` here."""
        self.weights = np.array([1, -0.5, -0.5], np.float32) / 255

    def process(self, batch: sw.Batch) -> list[sw.ProcessedPiece]:
        """One piece for each window that is not glass."""
        redness = batch.pixels @ self.weights  # (n, height, width): how much more red than green and blue
        values = np.stack([redness.mean(axis=(1, 2)), (redness > self.threshold).mean(axis=(1, 2))], axis=1)
        tissue = batch.pixels.mean(axis=(1, 2, 3)) / 255 <= self.glass
        return [sw.ProcessedPiece(batch.windows[row], values[row]) for row in np.flatnonzero(tissue)]


if __name__ == "__main__":  # so that the command line can load the class without running what follows
    out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="redness-"))
    dataset = sw.Dataset.from_folder(Path(__file__).parent / "data")
    loader = sw.SlidingWindowLoader(dataset, kernel_size=128, stride=128)
    report = sw.Pipeline(loader, Redness(threshold=0.15), sw.CSVStreamWriter(out), collectors=2).run()

    for patient in report.patients:
        pieces = sw.read_pieces(out / patient.file)
        print(f"{patient.id}: {patient.slides[0].written} windows of tissue, {patient.slides[0].none} of glass")
        print(pieces.to_dataframe().nlargest(3, "redness").to_string(index=False))
        print("picture:", sw.render(out / patient.file, channel="redness"))
