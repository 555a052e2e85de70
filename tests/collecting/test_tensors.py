"""Batches as tensors: NumPy's values, on the device that was asked for, without a copy where none is needed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamwsi as sw
from streamwsi.geometry import Grid

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'streamwsi[torch]'")


@pytest.fixture
def batch(bundled: Path) -> sw.Batch:
    """Every value in every channel; higher than wide, so that no axis is taken for another."""
    pixels = np.arange(4 * 40 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 40, 32, 3)
    return batch_of(pixels, bundled)


def batch_of(pixels: np.ndarray, bundled: Path) -> sw.Batch:
    n, *_, height, width, _ = pixels.shape
    windows = Grid((width * n, height), (width, height), (width, height), "crop", 1.0).windows(np.arange(n))
    return sw.Batch(pixels, windows, sw.Slide(bundled, "s"), sw.Patient("p", {"s": bundled}))


def test_pixels_are_uint8_with_channels_first(batch: sw.Batch) -> None:
    tensor = sw.as_tensor(batch)
    assert (tensor.shape, tensor.dtype, tensor.device.type) == ((4, 3, 40, 32), torch.uint8, "cpu")
    assert np.array_equal(tensor.numpy(), batch.pixels.transpose(0, 3, 1, 2))
    assert torch.equal(sw.as_tensor(batch, "cpu", dtype=torch.uint8), tensor)


def test_several_resolutions_stay_an_axis(batch: sw.Batch, bundled: Path) -> None:
    several = batch_of(np.stack([batch.pixels, 255 - batch.pixels], axis=1), bundled)
    assert np.array_equal(sw.as_tensor(several).numpy(), several.pixels.transpose(0, 1, 4, 2, 3))
    assert np.array_equal(sw.as_tensor(several, channels_first=False).numpy(), several.pixels)


def test_channels_may_come_last(batch: sw.Batch) -> None:
    assert np.array_equal(sw.as_tensor(batch, channels_first=False).numpy(), batch.pixels)
    assert sw.as_tensor(batch, dtype=torch.float32, channels_first=False).shape == batch.pixels.shape


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_floating_dtype_makes_the_values_that_numpy_makes(batch: sw.Batch, dtype: str) -> None:
    tensor = sw.as_tensor(batch, dtype=getattr(torch, dtype))
    expected = batch.pixels.transpose(0, 3, 1, 2).astype(dtype) / np.array(255, dtype)
    assert tensor.dtype == getattr(torch, dtype)
    assert np.array_equal(tensor.numpy(), expected)
    assert (tensor.min(), tensor.max()) == (0, 1)


def test_the_batch_keeps_its_values_when_they_are_converted(batch: sw.Batch) -> None:
    before = batch.pixels.copy()
    sw.as_tensor(batch, dtype=torch.float32).zero_()
    assert np.array_equal(batch.pixels, before)


def test_convolutions_get_the_layout_that_they_know_as_channels_last(batch: sw.Batch) -> None:
    for dtype in (None, torch.float32):
        assert sw.as_tensor(batch, dtype=dtype).is_contiguous(memory_format=torch.channels_last)


def test_on_the_processor_nothing_is_copied_and_the_memory_lives_as_long_as_the_tensor(batch: sw.Batch) -> None:
    tensor = sw.as_tensor(batch)
    expected = batch.pixels.transpose(0, 3, 1, 2).copy()
    assert tensor.data_ptr() == batch.pixels.ctypes.data
    del batch
    assert np.array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("change", [lambda a: a[:, ::-1], lambda a: a[1:, 3:20, 5:]])
def test_batches_that_users_make_may_lie_in_memory_as_they_like(
    batch: sw.Batch, bundled: Path, change: Callable[[Any], Any]
) -> None:
    pixels = change(batch.pixels)
    assert np.array_equal(sw.as_tensor(batch_of(pixels, bundled), channels_first=False).numpy(), pixels)


def test_what_must_not_be_written_to_is_copied(batch: sw.Batch) -> None:
    batch.pixels.flags.writeable = False
    before = batch.pixels.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sw.as_tensor(batch).zero_()
    assert np.array_equal(batch.pixels, before)


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "complex64"])
def test_dtypes_that_make_no_sense_are_refused(batch: sw.Batch, dtype: str) -> None:
    with pytest.raises(ValueError, match=rf"dtype must be None, torch\.uint8 or a floating dtype, got torch\.{dtype}"):
        sw.as_tensor(batch, dtype=getattr(torch, dtype))


def test_other_devices_get_the_bytes_and_convert_them_there(batch: sw.Batch) -> None:
    """The device "meta" has shapes and no memory."""
    tensor = sw.as_tensor(batch, torch.device("meta"), dtype=torch.float16)
    assert (tensor.device.type, tensor.dtype, tensor.shape) == ("meta", torch.float16, (4, 3, 40, 32))


def test_pixels_that_transforms_have_changed_are_refused(batch: sw.Batch) -> None:
    for pixels in (batch.pixels / 255, batch.pixels.transpose(0, 3, 1, 2)):
        with pytest.raises(ValueError, match=r"transforms of the loader have made them .*: use torch.as_tensor"):
            sw.as_tensor(replace(batch, pixels=pixels), dtype=torch.float32)


def test_to_cuda_bytes_go_through_page_locked_memory_without_waiting(batch: sw.Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of PyTorch, in which order; not whether a device does it."""
    asked: list[Any] = []
    to = torch.Tensor.to

    class Current:
        def __init__(self, device: Any) -> None:
            asked.append(("current", str(device)))

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    def pin_memory(tensor: Any) -> Any:
        asked.append(("pinned", tensor.dtype, tensor.is_contiguous()))
        return tensor.clone()

    def recorded_to(tensor: Any, target: Any, non_blocking: bool = False) -> Any:
        asked.append(("to", str(target), tensor.dtype, non_blocking))
        return to(tensor, target) if isinstance(target, torch.dtype) else tensor

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", recorded_to)
    tensor = sw.as_tensor(batch, "cuda:1", dtype=torch.float32)
    assert asked == [
        ("current", "cuda:1"),
        ("pinned", torch.uint8, True),
        ("to", "cuda:1", torch.uint8, True),
        ("to", "torch.float32", torch.uint8, False),
    ]
    assert np.array_equal(tensor.numpy(), batch.pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_many_batches_cross_to_a_cuda_device_while_others_are_on_their_way(bundled: Path) -> None:
    random = np.random.default_rng(0)
    batches = [batch_of(random.integers(0, 256, (16, 256, 256, 3), np.uint8), bundled) for _ in range(50)]
    tensors = [sw.as_tensor(batch, "cuda") for batch in batches]
    for batch, tensor in zip(batches, tensors, strict=True):
        assert np.array_equal(tensor.cpu().numpy(), batch.pixels.transpose(0, 3, 1, 2))
    halves = sw.as_tensor(batches[0], "cuda", dtype=torch.float16)
    assert halves.device.type == "cuda" and torch.allclose(halves.cpu(), sw.as_tensor(batches[0], dtype=torch.float16))


def test_pytorch_is_imported_for_a_tensor_and_not_before() -> None:
    code = (
        "import sys, numpy as np, streamwsi as sw\n"
        "sw.as_tensor, sw.StreamCollector, sw.Pipeline\n"
        "assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = None\n"  # as if it were not installed
        "try: sw.as_tensor(sw.Batch(np.zeros((1, 2, 2, 3), np.uint8), None, None, None))\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "as_tensor makes tensors of PyTorch, which is not installed: pip install 'streamwsi[torch]'\n"
