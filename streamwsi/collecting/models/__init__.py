"""Collectors that are a model in a file: TorchScript programs, and those that ``torch.export`` saved.

In: batches, and a model's file with its configuration.  Out: what the model gives, a row per window.

PyTorch is imported in the collector's own process, and not before.
"""

from __future__ import annotations

from streamwsi.collecting.models.collector import ExportedProgramCollector, ModelCollector, TorchScriptCollector

__all__ = ["MODELS", "ExportedProgramCollector", "ModelCollector", "TorchScriptCollector"]

MODELS: dict[str, type[ModelCollector]] = {"torchscript": TorchScriptCollector, "export": ExportedProgramCollector}
"""By what stands before the path on the command line: ``torchscript:model.pt``."""
