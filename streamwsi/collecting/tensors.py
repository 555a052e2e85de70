"""Batches as PyTorch's tensors.

In: a batch.  Out: its pixels as a tensor on a device; and from there, what was made of them.  PyTorch is imported when the
first one is asked for, and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from streamwsi.chunks import Batch, MixedBatch

if TYPE_CHECKING:
    import torch


def as_tensor(
    batch: Batch | MixedBatch,
    device: torch.device | str | None = None,
    *,
    dtype: torch.dtype | None = None,
    channels_first: bool = True,
) -> torch.Tensor:
    """The pixels of a batch as a tensor on a device.

    >>> pixels = sw.as_tensor(batch, self.device, dtype=torch.float16)      # doctest: +SKIP

    Parameters
    ----------
    batch
        Its pixels are (n, height, width, 3) uint8; of several resolutions (n, r, height, width, 3), which stay an axis.
    device
        Where to; None: the processor.
    dtype
        None: uint8 from 0 to 255, as they are. A floating dtype: they are converted on the device, where they come as uint8,
        and divided by 255.
    channels_first
        (n, 3, height, width), else (n, height, width, 3). Either way the channels lie together in memory, which PyTorch calls
        ``channels_last`` and convolutions take as it is; ``.contiguous()`` lays them out otherwise.

    Returns
    -------
    A tensor; on the processor without `dtype` one that shares the memory of ``batch.pixels``. That memory is the batch's for
    as long as anybody holds it: the tensor may be kept.

    Raises
    ------
    ValueError
        The dtype is an integer one other than uint8, or the loader's transforms have made other pixels of them.
    ModuleNotFoundError
        PyTorch is not installed.

    Notes
    -----
    On their way to a CUDA device, pixels are copied into page-locked memory, from which the device takes them while the
    processor goes on. PyTorch keeps that memory for the next batch, and gives it out again only when an event says that the
    device is done with it.

    Source: PyTorch, ``ATen/native/cuda/Copy.cu`` and ``ATen/core/CachingHostAllocator.h``.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "as_tensor makes tensors of PyTorch, which is not installed: pip install 'streamwsi[torch]'", name="torch"
        ) from error
    if dtype is not None and dtype != torch.uint8 and not dtype.is_floating_point:
        raise ValueError(f"dtype must be None, torch.uint8 or a floating dtype, got {dtype}")
    if getattr(batch.pixels, "dtype", None) != np.uint8 or batch.pixels.shape[-1] != 3:
        raise ValueError(
            f"as_tensor takes pixels as they are read, uint8 (n, height, width, 3); transforms of the loader have made them "
            f"{batch.pixels.dtype} {tuple(batch.pixels.shape)}: use torch.as_tensor(batch.pixels)"
        )
    # PyTorch has no arrays that must not be written to
    pixels = torch.from_numpy(np.require(batch.pixels, np.uint8, ("C", "W")))
    pixels = _on_device(pixels, torch.device("cpu" if device is None else device))
    if channels_first:
        pixels = pixels.movedim(-1, -3)
    return pixels if dtype is None or dtype == torch.uint8 else pixels.to(dtype).div_(255)


def fetched_later(result: Any) -> Callable[[], Any] | None:
    """Have a tensor brought from its CUDA device without waiting for it, and return what waits; None for all that is here.

    The copy is made by the device once it is done with what it was given up to now; what it is given afterwards, to write into
    the same memory too, comes after the copy.
    """
    if not getattr(result, "is_cuda", False) or not hasattr(result, "detach"):
        return None
    import torch

    if result.layout != torch.strided:
        return None
    with torch.cuda.device(result.device):
        here = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        here.copy_(result.detach(), non_blocking=True)
        done = torch.cuda.Event()
        done.record()

    def fetch() -> Any:
        done.synchronize()
        return here

    return fetch


def _on_device(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    import torch

    if device.type == "cuda" and torch.cuda.is_available():
        with torch.cuda.device(device):  # else the first page-locked memory of a process takes room on the first device
            return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)
