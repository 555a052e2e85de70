"""Several collectors on one stream: each pixel is read and decoded once, and each collector has its own files.

python examples/several_collectors.py out/
"""

import sys
import tempfile
from pathlib import Path

import streamwsi as sw


class Brightness(sw.StreamCollector):
    """Mean of each window, 0 to 255."""

    columns = ("brightness",)

    def process(self, batch):
        return batch.pixels.mean(axis=(1, 2, 3))


out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="several-"))
loader = sw.SlidingWindowLoader(sw.Dataset.from_folder(Path(__file__).parent / "data"), kernel_size=128)
collectors = {"brightness": Brightness(), "hematoxylin": sw.HematoxylinCollector()}
reports = sw.Pipeline(loader, collectors, sw.HDF5StreamWriter(out), batch_size={"brightness": 64}).run()

for name, report in reports.items():
    for patient in report.patients:
        values = sw.read_pieces(out / name / patient.file).values
        print(f"{out / name / patient.file}: {report.windows} windows, {name} from {values.min():.2f} to {values.max():.2f}")
