"""A model in a file as a collector.

In: batches.  Out: what the model gives, a row per window.

What can be checked without PyTorch is checked when the collector is made, in the user's process; the model is loaded in the
collector's own.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from streamwsi.chunks import Batch
from streamwsi.collecting.collector import StreamCollector
from streamwsi.collecting.models.archive import Kind, content_hash, kind_of
from streamwsi.collecting.models.configuration import (
    Activation,
    ModelConfiguration,
    configuration_beside,
    normalisation,
    read_configuration,
)
from streamwsi.config import one_of
from streamwsi.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch

    from streamwsi.collecting.models.running import LoadedModel

Autocast = Literal["bfloat16", "float16"]


class ModelCollector(StreamCollector):
    """What :class:`TorchScriptCollector` and :class:`ExportedProgramCollector` have in common.

    Parameters
    ----------
    path
        The model's file.
    config
        Its configuration, a ``.toml`` or ``.json`` file. None: the one beside it, ``model.toml`` or ``model.json`` for
        ``model.pt``, or ``config.json``, as wsinfer calls it; there may be none.
    mean, std
        (R, G, B): pixels, from 0 to 1, become (pixels − mean) / std. None: as the configuration says, else they stay.
    activation
        What is applied to what the model gives: ``"softmax"`` over its second axis, ``"sigmoid"`` or ``"none"``.
        None: as the configuration says, else none.
    autocast
        ``"bfloat16"`` or ``"float16"``: the model runs in it where PyTorch holds that to be safe. None: as it is.
    channels_last
        The model's weights are laid out as PyTorch's ``channels_last``, which is faster for many networks on many devices.

    The model gets (n, 3, height, width), RGB, on the worker's device, in the dtype of its own weights (float32 under
    autocast, or where it has none); the bytes cross to the device and are converted there. It must give a tensor
    (n, ...): a row per window. Half precision comes back as float32.

    `columns` are the configuration's class names, `kernel_size` its patch size, `mpp` its spacing. The model's content, and
    all that is done before and after it, are among the arguments that ``run.json`` holds: a resume with another is refused.

    Raises ConfigError where the file or its configuration cannot be used, or PyTorch is not installed.
    """

    arguments: ClassVar[tuple[str, ...]] = (
        "model_hash",
        "resize",
        "mean",
        "std",
        "activation",
        "autocast",
        "channels_last",
    )
    _kind: ClassVar[Kind]
    _described: ClassVar[str]

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        config: str | os.PathLike[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        activation: Activation | None = None,
        autocast: Autocast | None = None,
        channels_last: bool = False,
    ) -> None:
        self.path = Path(os.path.abspath(path))
        _check_kind(self.path, self._kind, self._described)
        if importlib.util.find_spec("torch") is None:
            raise ConfigError(f"{self.path} takes PyTorch, which is not installed: pip install 'streamwsi[torch]'")
        found = configuration_beside(self.path) if config is None else Path(os.path.abspath(config))
        self.configuration = ModelConfiguration() if found is None else read_configuration(found)
        if (mean is None) != (std is None):
            raise ConfigError(f"mean and std go together, got {mean!r} and {std!r}")
        normalize = self.configuration.normalize if mean is None else normalisation(mean, std, "mean and std")
        self.mean = None if normalize is None else normalize.mean
        self.std = None if normalize is None else normalize.std
        self.resize = self.configuration.resize
        self.activation: Activation = one_of(
            activation or self.configuration.activation or "none", ("none", "softmax", "sigmoid"), "activation"
        )
        self.autocast: Autocast | None = one_of(autocast, (None, "bfloat16", "float16"), "autocast")
        self.channels_last: bool = one_of(channels_last, (False, True), "channels_last")
        self.columns = self.configuration.class_names
        self.kernel_size = self.configuration.patch_size
        self.mpp = self.configuration.mpp
        self.model_hash = content_hash(self.path)

    def setup(self) -> None:
        """Load the model onto the device. Raises ModelError naming the file where that fails."""
        from streamwsi.collecting.models.running import usable_device

        if content_hash(self.path) != self.model_hash:
            raise ModelError(f"{self.path} has changed since the run began: its windows would be of two models")
        device = usable_device(self.device, self.path)
        self._loaded: LoadedModel = self._load(device)
        self._loaded.lay_out(channels_last=self.channels_last)

    def process(self, batch: Batch) -> torch.Tensor:
        """What the model gives: (n, ...), a row per window. Raises ModelError where it gives something else, or fails."""
        import torch

        from streamwsi.collecting.models.running import activated, model_pixels

        if batch.pixels.ndim != 4:
            raise ModelError(
                f"{self.path}: the model takes windows of one resolution, got pixels {batch.pixels.shape} of several: give the "
                "loader mpp= or level=, or write a collector that puts them together"
            )
        loaded = self._loaded
        dtype = torch.float32 if self.autocast else loaded.dtype
        pixels = model_pixels(batch, loaded.device, dtype, self.resize, self.mean, self.std)
        given = loaded.run(pixels, self.autocast)
        self._check(given, len(batch))
        return activated(given, self.activation)

    def _load(self, device: torch.device) -> LoadedModel:
        raise NotImplementedError

    def _check(self, given: torch.Tensor, n: int) -> None:
        classes = self.configuration.num_classes
        expected = f"({n}, {'…' if classes is None else classes})"
        fits = given.ndim > 0 and len(given) == n and (classes is None or given.numel() == n * classes)
        if self.activation == "softmax":
            fits = fits and given.ndim > 1 and given.shape[1] > 1
            expected += " with two numbers or more, for a softmax"
        if not fits:
            raise ModelError(f"{self.path}: the model gave {tuple(given.shape)} for {n} windows, expected {expected}")


class TorchScriptCollector(ModelCollector):
    """A TorchScript program (``torch.jit.script`` or ``trace``, then ``.save("model.pt")``).

    >>> sw.TorchScriptCollector("model.pt", activation="softmax")                              # doctest: +SKIP

    On the command line ``--collector torchscript:model.pt --arg activation=softmax``. Parameters, errors and what the model is
    given: see :class:`ModelCollector`.

    Its executor runs without the optimisations that it makes after the first batches, which can change last digits: a batch
    gives the same whatever went through the worker before it.
    """

    _kind = "torchscript"
    _described = "a TorchScript program"

    def _load(self, device: torch.device) -> LoadedModel:
        from streamwsi.collecting.models.running import load_torchscript

        return load_torchscript(self.path, device)


class ExportedProgramCollector(ModelCollector):
    """A program that ``torch.export.save(program, "model.pt2")`` wrote.

    >>> sw.ExportedProgramCollector("model.pt2", autocast="bfloat16")                          # doctest: +SKIP

    On the command line ``--collector export:model.pt2``. Export it with a batch of any size, ``dynamic_shapes=({0:
    torch.export.Dim("n")},)``: one that was exported for batches of one size is given such, filled up with blank windows.
    Parameters, errors and what the model is given: see :class:`ModelCollector`.
    """

    _kind = "export"
    _described = "a program of torch.export"

    def _load(self, device: torch.device) -> LoadedModel:
        from streamwsi.collecting.models.running import load_exported

        return load_exported(self.path, device)


_COLLECTOR_OF: dict[Kind, Callable[[Path], str]] = {
    "torchscript": lambda path: f"it is a TorchScript program: use torchscript:{path}, sw.TorchScriptCollector",
    "export": lambda path: f"it is a program of torch.export: use export:{path}, sw.ExportedProgramCollector",
    "weights": lambda path: (
        "it holds what torch.save wrote, weights or a pickled object, and no program: save one with "
        "torch.jit.script(model).save(…) or torch.export.save(…)"
    ),
    "other": lambda path: "it is an archive of something else",
}


def _check_kind(path: Path, expected: Kind, described: str) -> None:
    found = kind_of(path)
    if found != expected:
        raise ConfigError(f"{path} is not {described}: {_COLLECTOR_OF[found](path)}")
