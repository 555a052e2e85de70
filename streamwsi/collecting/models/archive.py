"""What a model's file is, before PyTorch is asked to load it.

In: a path.  Out: what is in the file, and a hash of its content.  Never imports PyTorch, never unpickles.

Source: PyTorch. TorchScript and ``torch.save`` write zip archives whose entries tell them apart
(``torch/csrc/jit/serialization``), and so does ``torch.export.save`` (``torch/export/pt2_archive``).
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Literal

from streamwsi.errors import ConfigError

Kind = Literal["torchscript", "export", "weights", "other"]
_BLOCK_BYTES = 1 << 20


def kind_of(path: Path) -> Kind:
    """What a file holds: a TorchScript program, an exported one, weights without a program, or something else.

    Raises ConfigError where there is no such file, or it is not whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"there is no model {path}") from None
    except OSError as error:
        raise ConfigError(f"model {path} cannot be read: {error.strerror}") from error
    except zipfile.BadZipFile as error:
        raise ConfigError(
            f"{path} holds no model, or was cut short: PyTorch's are zip archives, it is none ({error})"
        ) from error
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        return "torchscript"
    if any(name.startswith("models/") for name in inside) or "serialized_exported_program.json" in names:
        return "export"
    return "weights" if "data.pkl" in inside else "other"


def content_hash(path: Path) -> str:
    """A hash of all of a file, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
