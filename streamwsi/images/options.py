"""What a patch set is to be: images, their names, and where they lie.

In: options as users give them.  Out: a frozen, checked structure.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from streamwsi.errors import ConfigError
from streamwsi.images.encoding import ImageEncoding
from streamwsi.images.names import check_name, check_template, fields_of

NAME = "{slide}_x{x}_y{y}"
"""Of images, by default."""
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


class ImageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the images of a run are encoded, named and laid out."""

    encoding: ImageEncoding
    name: str = NAME
    """Template of the names, see :data:`streamwsi.images.names.FIELDS`."""
    by_label: bool = False
    """A folder for each label."""
    comment: str | None = None
    """Template of the comment in each image; None: there is none."""
    shard_images: int | None = None
    """Windows in a shard, at most; None with `shard_bytes` None: there are no shards."""
    shard_bytes: int | None = None
    """Bytes of the images in a shard, about: the last one may pass it."""

    @property
    def sharded(self) -> bool:
        """The images lie in tar files."""
        return self.shard_images is not None or self.shard_bytes is not None

    @classmethod
    def of(cls, format: Any, quality: Any, name: Any, by_label: Any, comment: Any, shards: int | str | None) -> ImageOptions:
        """The options, checked. Raises ConfigError naming the one that cannot be."""
        encoding = ImageEncoding(format, quality)
        encoding.check()
        check_name(name)
        if comment is not None:
            check_template(comment, "comment")
            if "\0" in comment:
                raise ConfigError(f"comment {comment!r} holds a zero byte, which ends a text in a PNG")
        shard_images, shard_bytes = _shards(shards)
        if shards is not None and "resolution" in fields_of(name, "name"):
            raise ConfigError(
                f"name {name!r}: a sample of a shard holds the images of all resolutions: leave {{resolution}} out"
            )
        return cls(
            encoding=encoding,
            name=name,
            by_label=bool(by_label),
            comment=comment,
            shard_images=shard_images,
            shard_bytes=shard_bytes,
        )


def _shards(shards: Any) -> tuple[int | None, int | None]:
    """(windows, bytes) of a shard."""
    if shards is None:
        return None, None
    if isinstance(shards, int) and not isinstance(shards, bool) and shards >= 1:
        return shards, None
    if isinstance(shards, str):
        if re.fullmatch(r"[1-9]\d*", shards):
            return int(shards), None
        if found := re.fullmatch(r"([1-9]\d*) ?([KMG]B)", shards):
            return None, int(found[1]) * _UNITS[found[2]]
    raise ConfigError(f"shards must be a number of windows, at least 1, or a size as '500MB', got {shards!r}")
