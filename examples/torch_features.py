"""Features of each window by a convolutional network of PyTorch, one process for each device.

python examples/torch_features.py out/ [DEVICE …]        the devices are cuda:0 cuda:1, say; by default one processor
"""

import sys
import tempfile
from pathlib import Path

import torch

import streamwsi as sw


class Features(sw.StreamCollector):
    """16 numbers for each window. The weights are drawn at random, by a seed; load yours in `setup`."""

    batch_size = 64

    def setup(self):
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 16, 7, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
        self.model = torch.nn.Sequential(*layers).to(self.device).eval()

    def process(self, batch):
        pixels = sw.as_tensor(batch, self.device, dtype=torch.float32)  # (n, 3, height, width), 0 to 1, on the device
        with torch.inference_mode():
            return self.model(pixels)  # (n, 16)


out = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="features-"))
loader = sw.SlidingWindowLoader(sw.Dataset.from_folder(Path(__file__).parent / "data"), kernel_size=128)
report = Features().start_collecting(loader, sw.HDF5StreamWriter(out), devices=sys.argv[2:] or ["cpu"])

for patient in report.patients:
    pieces = sw.read_pieces(out / patient.file)
    print(f"{patient.id}: features of shape {pieces.values.shape}, {pieces.values.dtype}; {report.limiting_stage} was busiest")
