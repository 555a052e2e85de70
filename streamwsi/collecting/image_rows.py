"""What a collector returns for an image writer: encoded here, where as many processes do it as there are collectors.

In: images, or the contents of image files.  Out: rows of bytes.  Never touches a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from streamwsi.chunks import ProcessedPiece
from streamwsi.errors import PieceError
from streamwsi.geometry import Windows
from streamwsi.images.encoding import ImageEncoding

_Bytes = (bytes, bytearray, memoryview)
_WANTED = (
    "an image writer takes uint8 images, (height, width, 3) RGB or (height, width) grey, or the bytes of files; several to a "
    "window as (resolutions, height, width, 3), or in a list"
)


class ImageRows:
    """Makes rows of bytes; in threads, for encoders let go of the interpreter's lock."""

    def __init__(self, encoding: ImageEncoding, threads: int) -> None:
        self._encoding = encoding
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode") if threads > 1 else None

    def of_batch(self, result: Any, windows: Windows) -> npt.NDArray[Any]:
        """(n,) or (n, resolutions) objects: a row for each of the windows.

        Raises PieceError naming the window whose value is no image, or the number of rows where it is another.
        """
        result = _on_host(result)
        if not isinstance(result, (list, tuple)) and not (isinstance(result, np.ndarray) and result.ndim):
            raise PieceError(f"process returned {type(result).__name__}; {_WANTED}")
        if len(result) != len(windows):
            raise PieceError(f"process returned {len(result)} values, expected one for each of {len(windows)} windows")
        return self._rows(result, windows.index.tolist())

    def of_pieces(self, pieces: Sequence[ProcessedPiece]) -> npt.NDArray[Any]:
        """The same for pieces."""
        return self._rows([_on_host(piece.value) for piece in pieces], [piece.window.index for piece in pieces])

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _rows(self, values: Any, indices: list[int]) -> npt.NDArray[Any]:
        images: list[tuple[int, Any]] = []
        shape: tuple[int, ...] | None = None
        for index, value in zip(indices, values, strict=True):
            own, own_shape = _images_of(value, index)
            if shape is not None and own_shape != shape:
                raise PieceError(f"window {index}: {_counted(own_shape)}, those before it had {_counted(shape)}")
            shape = own_shape
            images += [(index, image) for image in own]
        encoded = map(self._encoded, images) if self._pool is None else self._pool.map(self._encoded, images)
        rows = np.empty(len(images), object)
        rows[:] = list(encoded)
        return rows.reshape(len(indices), *(shape or ()))

    def _encoded(self, image: tuple[int, Any]) -> bytes:
        index, content = image
        if isinstance(content, _Bytes):
            data = bytes(content)
            if not self._encoding.is_begun_by(data):
                raise PieceError(f"window {index}: {len(data)} bytes that are not those of a {self._encoding.format} file")
            return data
        try:
            return self._encoding.encoded(content)
        except PieceError as error:
            raise PieceError(f"window {index}: {error}") from error


def _images_of(value: Any, index: int) -> tuple[list[Any], tuple[int, ...]]:
    """The images of one window, and () or (resolutions,), as many as they are."""
    if isinstance(value, (list, tuple)):
        if not value or not all(isinstance(one, _Bytes) or _is_image(one) for one in value):
            raise PieceError(f"window {index}: got a {type(value).__name__} of {len(value)}; {_WANTED}")
        return list(value), (len(value),)
    if isinstance(value, _Bytes) or _is_image(value):
        return [value], ()
    if isinstance(value, np.ndarray) and value.ndim == 4 and len(value) and _is_image(value[0]):
        return list(value), (len(value),)
    got = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    raise PieceError(f"window {index}: got {got}; {_WANTED}")


def _is_image(value: Any) -> bool:
    is_uint8 = isinstance(value, np.ndarray) and value.dtype == np.uint8
    return is_uint8 and (value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 3))


def _on_host(value: Any) -> Any:
    """A tensor as an array; anything else as it is."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") and hasattr(value, "cpu") else value


def _counted(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} images in a list" if shape else "one image"
