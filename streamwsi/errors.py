"""Every error that streamwsi raises on purpose.

Each derives from :class:`StreamwsiError` and from the builtin that a caller would catch. A message names the thing, the
value found, what was expected, and, where there is one, the way out.
"""

from __future__ import annotations


class StreamwsiError(Exception):
    """Base of all errors of this package; ``exit_code`` is what the command line ends with."""

    exit_code = 2
    """2: usage or configuration, before anything starts."""


class ConfigError(StreamwsiError, ValueError):
    """An option has a value that cannot work. Raised before any process starts."""


class DatasetError(StreamwsiError, ValueError):
    """A dataset, a manifest or an id cannot be used. Raised before any process starts."""


class OutputError(StreamwsiError, OSError):
    """The output folder cannot be used: not writable, or it holds another run."""


class SlideError(StreamwsiError, OSError):
    """A slide cannot be opened, or lacks what was asked of it (a level, say)."""


class RegionError(SlideError):
    """A region of an open slide cannot be read, on a fresh handle too."""


class SamplingError(SlideError, ValueError):
    """Windows cannot be placed on a slide as asked: there is no room, or its region cannot be used. The other slides go on."""


class NotPairedError(StreamwsiError, AttributeError):
    """A batch has no image of that name beside its pixels."""


class PlanError(StreamwsiError, ValueError):
    """What a sampler gives is no plan: a window twice, or labels that are none."""


class ChunkError(StreamwsiError, ValueError):
    """A chunk, a batch or a piece does not have the shape it must have."""


class PieceError(StreamwsiError, ValueError):
    """What a collector returned cannot be stored: wrong rows, shape, dtype, or nothing numeric."""


class WireError(StreamwsiError, ValueError):
    """A message is malformed, foreign or oversized."""


class JournalError(StreamwsiError, RuntimeError):
    """A journal does not hold what it must: a window is missing or stands there twice."""


class MapError(StreamwsiError, ValueError):
    """Pieces cannot be read back or placed on a map."""


class MaskError(StreamwsiError, ValueError):
    """A mask cannot be used: it is not what a mask must be, or does not fit the slide."""


class AnnotationError(StreamwsiError, ValueError):
    """Annotations cannot be read or used: the file is not of its format, or a region in it is no area."""


class ArrayError(StreamwsiError, ValueError):
    """An array cannot be sampled, or patches not be put together: missing, doubled, foreign, or of another shape."""


class RunError(StreamwsiError, RuntimeError):
    """The run was broken off; what was committed stays."""

    exit_code = 3
    """3: the run was broken off."""


class DiskError(RunError, OSError):
    """A disk does not take what must be written (it is full, read-only, or sets a limit); what was committed stays."""


class CollectorError(RunError):
    """User code (a collector, a ``level`` callable) raised; the message holds its traceback."""


class ModelError(RunError):
    """A model cannot be loaded onto its device, fails, or gives something other than a row per window."""


class WorkerDied(RunError):
    """A worker process ended without saying so, more often than ``max_restarts`` allows."""


class Interrupted(KeyboardInterrupt):
    """The run was interrupted by a signal, `signal_number`; ``exit_code`` is 130 (SIGINT) or 143 (SIGTERM)."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number
