"""Libraries: their versions, and whether they do what streamwsi asks of them.

In: nothing.  Out: checks.  Pictures are made, encoded and decoded in memory; only OpenSlide, which takes files, gets one in the
system's temporary folder.
"""

from __future__ import annotations

import importlib
import io
import platform
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from streamwsi._version import __version__
from streamwsi.chunks import UInt8Array
from streamwsi.doctor.finding import Check, Looked, note, ok, wrong

_PACKAGES = {
    "numpy": "numpy",
    "msgspec": "msgspec",
    "tifffile": "tifffile",
    "imagecodecs": "imagecodecs",
    "simplejpeg": "simplejpeg",
    "pillow": "PIL.Image",
    "pydicom": "pydicom",
    "pandas": "pandas",
    "matplotlib": "matplotlib",
    "cloudpickle": "cloudpickle",
}
"""Distributions whose version says enough, and what of them is imported."""
_REINSTALL = "install it anew in the environment of streamwsi: python -m pip install --force-reinstall {}"
_LOSSLESS: dict[str, str | int] = {
    "JPEG 2000": 33005,  # Aperio's
    "LZW": "lzw",
    "Deflate": "adobe_deflate",
    "Zstandard": "zstd",
    "PackBits": "packbits",
}
"""What tifffile calls them; imagecodecs decodes them."""
_JPEG_TOLERANCE = 2.0
"""Mean difference, in grey levels; JPEG of quality 95 was seen to have 0.6."""
_TILE_PX = 64


def software_checks() -> Iterator[Check]:
    """Versions, codecs and readers."""
    yield Check("Python", _python, "use CPython 3.10 or later")
    yield Check("streamwsi", lambda: ok(__version__), "")
    for distribution, module in _PACKAGES.items():
        yield Check(distribution, partial(_package, distribution, module), _REINSTALL.format(distribution))
    yield Check("ZeroMQ", _zeromq, _REINSTALL.format("pyzmq"))
    yield Check("HDF5", _hdf5, _REINSTALL.format("h5py"))
    yield Check("SQLite", lambda: ok(sqlite3.sqlite_version), "")
    yield Check("OpenSlide", _openslide, _REINSTALL.format("openslide-python openslide-bin"))
    yield Check("decoding JPEG", _jpeg, _REINSTALL.format("simplejpeg tifffile"))
    for codec, compression in _LOSSLESS.items():
        yield Check(f"decoding {codec}", partial(_lossless, compression), _REINSTALL.format("imagecodecs tifffile"))
    yield Check("reading a slide", _read_slide, _REINSTALL.format("openslide-python openslide-bin tifffile"))
    yield Check(
        "starting a process", _started, "see that Python may start processes, and that streamwsi can be imported by them"
    )


def _python() -> Looked:
    said = f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable}), {platform.platform()}"
    if sys.platform != "linux":
        return note(said, "streamwsi is tested on Linux only")
    return ok(said)


def _package(distribution: str, module: str) -> Looked:
    importlib.import_module(module)
    return ok(version(distribution))


def _zeromq() -> Looked:
    from streamwsi.wire.library import zeromq

    found = zeromq()
    said = f"{found.libzmq} (pyzmq {found.pyzmq}), {'with' if found.curve else 'without'} CURVE"
    if not found.ipc:
        return note(f"{said}, without ipc", "processes talk over tcp on this machine, which is slower")
    return ok(said) if found.curve else note(said, "--transport tcp does not work; a pyzmq from PyPI has CURVE")


def _hdf5() -> Looked:
    import h5py

    said = f"{h5py.version.hdf5_version} (h5py {h5py.version.version})"
    values = np.arange(12.0).reshape(3, 4)
    stored = io.BytesIO()
    with h5py.File(stored, "w") as file:
        file["features"] = values
    with h5py.File(stored, "r") as file:
        same = np.array_equal(file["features"][:], values)
    return ok(said) if same else wrong(f"{said} gives back other values than it was given", _REINSTALL.format("h5py"))


def _openslide() -> Looked:
    import openslide

    return ok(f"{openslide.__library_version__} (openslide-python {openslide.__version__})")


def _jpeg() -> Looked:
    """A tile of a slide is decoded as the reader of TIFF slides does."""
    import simplejpeg
    import tifffile

    tile = simplejpeg.encode_jpeg(_picture(_TILE_PX), quality=95, colorspace="RGB", colorsubsampling="444")
    directory: Any = SimpleNamespace(
        compression=tifffile.COMPRESSION.JPEG,
        photometric=tifffile.PHOTOMETRIC.YCBCR,
        planarconfig=tifffile.PLANARCONFIG.CONTIG,
        samplesperpixel=3,
        bitspersample=8,
        sampleformat=1,
        extrasamples=(),
        jpegtables=None,
    )
    return _decoded(directory, tile, _JPEG_TOLERANCE, "simplejpeg")


def _lossless(compression: str | int) -> Looked:
    """A tile of a TIFF file in memory is decoded as the reader of TIFF slides does."""
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, _picture(_TILE_PX), tile=(_TILE_PX, _TILE_PX), photometric="rgb", compression=compression)
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page: Any = tiff.pages[0]
        file.seek(page.dataoffsets[0])
        return _decoded(page, file.read(page.databytecounts[0]), 0.0, "imagecodecs tifffile")


def _decoded(directory: Any, tile: bytes, tolerance: float, packages: str) -> Looked:
    from streamwsi.slides.tile_codecs import decoder_of

    pixels = _picture(_TILE_PX)
    found = np.empty_like(pixels)
    decoder_of(directory).decode([tile], found)
    difference = float(np.abs(found.astype(np.int16) - pixels).mean())
    said = f"{_TILE_PX} x {_TILE_PX} px in {len(tile)} bytes, mean difference {difference:.1f} grey levels"
    if difference > tolerance:
        return wrong(f"{said}, at most {tolerance:g} expected", _REINSTALL.format(packages))
    return ok(said)


def _read_slide() -> Looked:
    """A slide is written, and read by OpenSlide and by decoding tiles directly."""
    import tifffile

    from streamwsi.slides.reader import open_slide

    pixels = _picture(4 * _TILE_PX)
    with tempfile.TemporaryDirectory(prefix="streamwsi-doctor-") as folder:
        path = Path(folder, "slide.tiff")
        tifffile.imwrite(path, pixels, tile=(_TILE_PX, _TILE_PX), photometric="rgb", compression="adobe_deflate")
        for reader in ("openslide", "tiff"):
            with open_slide(path, reader) as slide:
                found = slide.read_region(0, 0, 0, pixels.shape[1], pixels.shape[0])
            if not np.array_equal(found, pixels):
                return wrong(f"reader {reader} gives other pixels than were written", _REINSTALL.format("openslide-bin"))
    return ok(f"{pixels.shape[1]} x {pixels.shape[0]} px, the same through OpenSlide and decoded directly")


def _started() -> Looked:
    """A child begins as those of a run do: afresh."""
    code = "import streamwsi.pipeline.child, streamwsi; print(streamwsi.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"it ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return ok("a child imports streamwsi")


def _picture(side_px: int) -> UInt8Array:
    """(side, side, 3) uint8: three slopes, smooth enough for JPEG."""
    slope = np.linspace(0, 255, side_px)
    across, down = np.meshgrid(slope, slope)
    return np.stack([across, down, (across + down) / 2], axis=-1).astype(np.uint8)
