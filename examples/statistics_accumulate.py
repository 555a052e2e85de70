"""Mean and variance of redness over all windows of a patient, without writing the windows' values to a file.

python examples/statistics_accumulate.py out/
"""

import sys
import tempfile
from pathlib import Path

import streamwsi as sw


class RednessStatistics(sw.StreamCollector):
    """Count, mean and variance, in one pass. Source: Welford, Technometrics 4 (1962)."""

    mode = "accumulate"

    def process(self, batch):
        red, green, blue = batch.pixels.mean(axis=(1, 2)).T / 255
        return red - (green + blue) / 2

    def accumulate(self, previous, piece, patient):
        """Called window by window, in their order, once all of the patient's are there; `previous` is None at first."""
        n, mean, squares = (previous["n"], previous["mean"], previous["squares"]) if previous else (0, 0.0, 0.0)
        n += 1
        before = piece.value - mean
        mean += before / n
        squares += before * (piece.value - mean)
        return {"n": n, "mean": mean, "squares": squares, "variance": squares / (n - 1) if n > 1 else 0.0}


out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="statistics-"))
loader = sw.SlidingWindowLoader(sw.Dataset.from_folder(Path(__file__).parent / "data"), kernel_size=128)
report = RednessStatistics().start_collecting(loader, sw.HDF5StreamWriter(out), collectors=2)

for patient, result in report.results.items():
    print(f"{patient}: {result['n']} windows, redness {result['mean']:.4f}, variance {result['variance']:.6f}")
