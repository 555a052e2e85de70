"""A collector of one's own: it runs as a script, on the bundled slide,

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
    """How red each window is, and which share of its pixels is redder than `threshold`, 0 to 1."""

    columns = ("redness", "red_share")
    arguments = ("threshold",)

    def __init__(self, threshold=0.1):
        self.threshold = threshold

    def process(self, batch):
        redness = batch.pixels @ np.array([1, -0.5, -0.5], np.float32) / 255  # (n, height, width): more red than grey
        return np.stack([redness.mean(axis=(1, 2)), (redness > self.threshold).mean(axis=(1, 2))], axis=1)


if __name__ == "__main__":  # so that the command line can load the class without running what follows
    out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="redness-"))
    loader = sw.SlidingWindowLoader(sw.Dataset.from_folder(Path(__file__).parent / "data"), kernel_size=128)
    report = Redness(threshold=0.15).start_collecting(loader, sw.CSVStreamWriter(out), collectors=2)
    for patient in report.patients:
        table = sw.read_pieces(out / patient.file).to_dataframe()
        print(table.nlargest(3, "redness")[["x", "y", "redness", "red_share"]].to_string(index=False))
