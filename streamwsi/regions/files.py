"""Files that appear whole or not at all.

In: what is to be written.  Out: a file.  For what a person writes by hand, one file at a time: what a run writes has ways of
its own, which survive a loss of power.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamwsi.errors import OutputError


@contextmanager
def renamed_when_written(final: Path) -> Iterator[Path]:
    """A path beside `final` to write to, which gets its name when the block ends well, and is removed when it does not.

    Raises OutputError naming `final` where it cannot be written.
    """
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, final)
    except OSError as error:
        raise OutputError(f"{final} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
