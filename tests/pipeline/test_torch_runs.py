"""A collector with a PyTorch model, in processes of its own, gives what NumPy gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamwsi as sw

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'streamwsi[torch]'")

WEIGHTS = ((0.25, -0.5, 1.0), (2.0, 0.125, -1.0))


class WithTorch(sw.StreamCollector):
    """Two features: weighted sums of the channels, averaged over the window."""

    def setup(self) -> None:
        import torch

        torch.set_num_threads(1)
        layer = torch.nn.Conv2d(3, 2, 1, bias=False, dtype=torch.float64)
        layer.weight = torch.nn.Parameter(torch.tensor(WEIGHTS, dtype=torch.float64)[:, :, None, None])
        self.model = torch.nn.Sequential(layer, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).to(self.device)

    def process(self, batch: sw.Batch) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(sw.as_tensor(batch, self.device, dtype=torch.float64))


class WithNumpy(sw.StreamCollector):
    def process(self, batch: sw.Batch) -> Any:
        return (batch.pixels.astype(np.float64) / 255).mean(axis=(1, 2)) @ np.array(WEIGHTS).T


def test_a_torch_model_gives_what_numpy_gives(one_patient: sw.Dataset, tmp_path: Path) -> None:
    loader = sw.SlidingWindowLoader(one_patient, kernel_size=256, stride=(256, 300))
    found = []
    for collector, options in ((WithTorch(), {"devices": "cpu", "collectors": 2}), (WithNumpy(), {})):
        out = tmp_path / type(collector).__name__
        collector.start_collecting(loader, sw.HDF5StreamWriter(out), quiet=True, **options)
        found.append(sw.read_pieces(out / "p.h5"))
    assert len(found[0].values) > 80 and np.array_equal(found[0].index, found[1].index)
    np.testing.assert_allclose(found[0].values, found[1].values, rtol=1e-10)
