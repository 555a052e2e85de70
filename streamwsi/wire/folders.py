"""Private folders for sockets of the file system, and what is left of those whose processes were all killed at once.

In: parents.  Out: a folder that nobody else may enter (mode 0700).  Never removes one that any living process has sockets in.

Each process of a run holds a shared lock (``flock``) on the folder, which goes with the process, however it ends. A folder that
nobody holds, and into which nothing was put for an hour, is what a run has left that was killed with all its processes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "streamwsi-"
_LEFT_S = 3600.0
"""Between the making of a folder and its first lock lie milliseconds."""


def make_folder(parent: str | None) -> str:
    """A new folder, in the temporary folder if `parent` is None. What killed runs have left there is removed first."""
    for left in _left_behind(Path(parent or tempfile.gettempdir())):
        shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=PREFIX, dir=parent)


def hold(folder: str) -> int | None:
    """Keep a folder from being removed by others; closing the descriptor lets go. None where there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # a file system without locks; or somebody tries just now whether it is held, and finds it too young
        os.close(descriptor)
        return None
    return descriptor


def _left_behind(parent: Path) -> Iterator[Path]:
    """Folders of ours that nobody holds."""
    try:
        import fcntl
    except ImportError:
        return
    with contextlib.suppress(OSError):
        for folder in parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):  # somebody else's, held, or gone just now
                about = folder.lstat()
                if about.st_uid != os.getuid() or time.time() - about.st_mtime < _LEFT_S or folder.is_symlink():
                    continue
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield folder
                finally:
                    os.close(descriptor)
