"""Models under PyTorch: loaded onto a device, fed with batches.

In: a file, a device, batches.  Out: what the model gives.  The only place here that imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from streamwsi.chunks import Batch
from streamwsi.collecting.models.configuration import Activation, Channels, Resize
from streamwsi.collecting.tensors import as_tensor
from streamwsi.errors import ModelError


class LoadedModel:
    """A model on its device."""

    def __init__(
        self,
        path: Path,
        device: torch.device,
        module: torch.nn.Module,
        *,
        input_shape: tuple[int | None, ...] | None = None,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """`input_shape` is the only one that it takes, None where any is taken; it runs `around` what that makes."""
        self._path, self._module, self._around = path, module, around
        self._input_shape = input_shape
        self._memory_format = torch.contiguous_format
        self.device = device
        floating = (weights.dtype for weights in module.parameters() if weights.dtype.is_floating_point)
        self.dtype: torch.dtype = next(floating, torch.float32)
        """Of its weights, and of the pixels that it takes."""

    def lay_out(self, *, channels_last: bool) -> None:
        """Lay its weights out in memory, and what it is given."""
        if channels_last:
            self._memory_format = torch.channels_last
            self._module.to(memory_format=torch.channels_last)

    def run(self, pixels: torch.Tensor, autocast: Literal["bfloat16", "float16"] | None) -> torch.Tensor:
        """What it gives for (n, 3, height, width). Raises ModelError where it fails, or gives no tensor."""
        mixed = nullcontext() if autocast is None else torch.autocast(self.device.type, getattr(torch, autocast))
        try:
            with torch.inference_mode(), mixed, self._around():
                given = self._in_batches(pixels.contiguous(memory_format=self._memory_format))
        except Exception as error:
            raise ModelError(
                f"{self._path}: the model failed on pixels {tuple(pixels.shape)} {pixels.dtype} on {self.device}"
                f"{self._takes()}: {error}"
            ) from error
        if not isinstance(given, torch.Tensor):
            raise ModelError(f"{self._path}: the model gave a {type(given).__name__}, expected one tensor (n, …)")
        return given

    def _in_batches(self, pixels: torch.Tensor) -> Any:
        size = None if self._input_shape is None else self._input_shape[0]
        n = len(pixels)
        if size is None or size == n:
            return self._module(pixels)
        filled = functional.pad(pixels, (0, 0, 0, 0, 0, 0, 0, -n % size))
        return torch.cat([self._module(part) for part in filled.split(size)])[:n]

    def _takes(self) -> str:
        if self._input_shape is None:
            return ""
        return f", it was exported for ({', '.join('any' if side is None else str(side) for side in self._input_shape)})"


def usable_device(name: str | None, path: Path) -> torch.device:
    """The device called `name`, None: the processor. Raises ModelError, for the model in `path`, where there is no such."""
    try:
        device = torch.device("cpu" if name is None else name)
        torch.empty(1, device=device)
    except Exception as error:
        raise ModelError(
            f"{path}: device {name!r} cannot be used; PyTorch {torch.__version__} has {', '.join(_devices())} here: {error}"
        ) from error
    return device


def _devices() -> Iterator[str]:
    yield "cpu"
    yield from (f"cuda:{number}" for number in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        yield "mps"


def load_torchscript(path: Path, device: torch.device) -> LoadedModel:
    """The TorchScript program in a file, not in training. Raises ModelError where PyTorch cannot load it."""
    try:
        module = torch.jit.load(path, map_location=device).eval()
    except Exception as error:
        raise _unloadable(path, device, error) from error
    # the executor profiles its first runs and then fuses, which changes last digits: results must not depend on the past
    return LoadedModel(path, device, module, around=lambda: torch.jit.optimized_execution(False))


def load_exported(path: Path, device: torch.device) -> LoadedModel:
    """The program that ``torch.export`` saved in a file. Raises ModelError where PyTorch cannot load it, or it takes more
    than pixels.
    """
    try:
        from torch.export.passes import move_to_device_pass  # early versions have no such

        with path.open("rb") as file:  # by its path it would have to end in .pt2
            program = torch.export.load(file)
        program = move_to_device_pass(program, device)
        module = program.module()
    except Exception as error:
        raise _unloadable(path, device, error) from error
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1:
        raise ModelError(f"{path}: the program takes {len(inputs)} inputs {inputs}, expected one: pixels (n, 3, height, width)")
    taken = next(node.meta["val"] for node in program.graph.nodes if node.name == inputs[0])
    shape = tuple(side if isinstance(side, int) else None for side in taken.shape)  # others are symbols: they may vary
    return LoadedModel(path, device, module, input_shape=shape)


def _unloadable(path: Path, device: torch.device, error: Exception) -> ModelError:
    return ModelError(
        f"{path} cannot be loaded onto {device} by PyTorch {torch.__version__}: it is damaged, was made by a newer version, or "
        f"needs what is not there: {error}"
    )


def model_pixels(
    batch: Batch, device: torch.device, dtype: torch.dtype, resize: Resize | None, mean: Channels | None, std: Channels | None
) -> torch.Tensor:
    """(n, 3, height, width) on the device: the pixels of a batch as a model takes them, from 0 to 1 before `mean` and `std`."""
    calculated = torch.float64 if dtype == torch.float64 else torch.float32
    with torch.inference_mode():
        if resize is None:
            pixels = as_tensor(batch, device, dtype=calculated)
        else:
            pixels = resized(as_tensor(batch, device).to(calculated), resize).div_(255)
        if mean is not None and std is not None:
            for value, of_channel in ((mean, pixels.sub_), (std, pixels.div_)):
                of_channel(torch.tensor(value, dtype=calculated, device=device)[:, None, None])
        return pixels.to(dtype)


def resized(pixels: torch.Tensor, resize: Resize) -> torch.Tensor:
    """(n, 3, height, width), 0–255, floating, in whole grey levels: within one of what Pillow makes of it (``nearest``: the
    same, but for which of two that are equally near).

    Source: Pillow, ``src/libImaging/Resample.c``: first along rows, then along columns, each rounded to bytes.
    """
    height, width = pixels.shape[2:]
    new_height, new_width = resize.of(height, width)
    if resize.interpolation == "nearest":  # Pillow's is what PyTorch calls exact
        return functional.interpolate(pixels, (new_height, new_width), mode="nearest-exact")
    for size in ((height, new_width), (new_height, new_width)):
        if size != tuple(pixels.shape[2:]):
            smooth = functional.interpolate(pixels, size, mode=resize.interpolation, align_corners=False, antialias=True)
            pixels = smooth.add_(0.5).floor_().clamp_(0, 255)
    return pixels


def activated(given: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Apply an activation, in float32 at least; half precision comes back as float32 anyway."""
    with torch.inference_mode():
        if activation != "none" or given.dtype in (torch.bfloat16, torch.float16):
            given = given if given.dtype == torch.float64 else given.float()
        if activation == "softmax":
            return given.softmax(dim=1)
        return given.sigmoid() if activation == "sigmoid" else given
