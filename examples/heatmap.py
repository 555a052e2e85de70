"""A heatmap of a slide, in a few lines of Python.

In: the bundled slide.  Out: a folder (the first argument, or a new temporary one) with the values and a picture of them.

    python examples/heatmap.py out/
"""

import sys
import tempfile
from pathlib import Path

import streamwsi as sw

SLIDES = Path(__file__).parent / "data"

out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="heatmap-"))

loader = sw.SlidingWindowLoader(sw.Dataset.from_folder(SLIDES), kernel_size=256, stride=64)
report = sw.HematoxylinCollector().start_collecting(loader, sw.HDF5StreamWriter(out))

for patient in report.patients:
    heat = sw.read_map(out / patient.file)
    print(f"{patient.id}: {heat.values.shape[0]} x {heat.values.shape[1]} cells, densest {heat.values.max():.2f}")
    print("picture:", sw.render(out / patient.file))
