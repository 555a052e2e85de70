"""The class that users subclass.

In: batches.  Out: one row per window, or pieces.  Lives in a process of its own, one per device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from streamwsi.chunks import Batch, ProcessedPiece
from streamwsi.dataset import Patient

if TYPE_CHECKING:
    from streamwsi.loading.window_loader import WindowLoader
    from streamwsi.pipeline.report import Report
    from streamwsi.writing.stream_writer import StreamWriter

Mode = Literal["stream", "accumulate", "collect"]


class StreamCollector:
    """Turns windows into values. Subclass it and define `process`.

    Each collector process works on its own copy of the object, made as it was when the run began: state that `process`
    keeps on `self` is that process's own.

    >>> class Redness(StreamCollector):
    ...     def process(self, batch):
    ...         return batch.pixels[..., 0].mean(axis=(1, 2)) / 255
    """

    mode: Mode = "stream"
    """``stream``: pieces go to files. ``accumulate``, ``collect``: they go to `accumulate` or `collate` instead, and what
    those make of a patient is ``report.results[patient_id]``."""

    batch_size: int = 32
    """Windows in a batch, at most. Batches never span two big chunks."""

    columns: Sequence[str] | None = None
    """Names of the values of a window, flattened; None: ``value``, or ``value_0``, ``value_1``, …"""

    kernel_size: int | tuple[int, int] | None = None
    """Windows that this collector is made for, an int or (width, height) in pixels; None: any. The command line takes it
    where ``--kernel-size`` is not given."""

    mpp: float | None = None
    """Micrometres per pixel that it is made for; None: any. The command line takes it where no resolution is given."""

    device: str | None = None
    """The device dealt to this worker (``"cuda:0"``), or None."""

    arguments: ClassVar[tuple[str, ...]] = ()
    """Names of attributes that decide the results; they are written into ``run.json`` with their values."""

    given_arguments: Mapping[str, Any] = MappingProxyType({})
    """What the command line's ``--arg`` gave; it decides the results too."""

    def setup(self) -> None:
        """Prepare, in the collector's own process, before the first batch: load a model onto `self.device`, say."""

    def process(self, batch: Batch) -> Any:
        """Values for the windows of a batch.

        Parameters
        ----------
        batch
            ``batch.pixels`` is (n, height, width, 3) uint8, RGB; ``batch.windows``, ``batch.slide`` and ``batch.patient``
            say where they come from.

        Returns
        -------
        (n,) or (n, ...), one row per window in order: booleans, integers or floats of at most 64 bits (NumPy, nested lists,
        or tensors); or a list of ProcessedPiece, where windows that are not in it get none. Shape and dtype of a
        window's value are the same throughout a run.
        """
        raise NotImplementedError(f"{type(self).__name__} must define process(batch)")

    def is_finished(self, patient: Patient, windows_done: int) -> bool:
        """Whether a patient needs no more windows; asked after each big chunk.

        `windows_done` counts the patient's windows up to and with that chunk, in the order of the plan: where this depends on
        nothing else, a patient is stopped at the same window whatever the number of processes.
        """
        return False

    def teardown(self) -> None:
        """Release what `setup` took. Not called when the process is killed."""

    def accumulate(self, previous: Any, piece: ProcessedPiece, patient: Patient) -> Any:
        """``mode="accumulate"``: the result so far with one more piece; `previous` is None for the first.

        Called in window order when the patient's pieces are complete, in a process of its own, where `setup` is not called.
        Results are numbers, arrays, and lists and dicts of them.
        """
        raise NotImplementedError(f"{type(self).__name__} has mode 'accumulate' and must define accumulate")

    def collate(self, patient: Patient, pieces: list[ProcessedPiece]) -> Any:
        """``mode="collect"``: the result of all pieces of a patient, in window order; they are in memory together.

        Called, as `accumulate` is, where `setup` is not.
        """
        raise NotImplementedError(f"{type(self).__name__} has mode 'collect' and must define collate")

    def start_collecting(self, loader: WindowLoader, writer: StreamWriter, **options: Any) -> Report:
        """Run a pipeline of `loader`, this collector and `writer`; `options` are those of :class:`streamwsi.Pipeline`."""
        from streamwsi.pipeline.pipeline import Pipeline

        return cast("Report", Pipeline(loader, self, writer, **options).run())  # of one collector there is one


def overrides(collector: StreamCollector, method: str) -> bool:
    """Whether a collector defines `method` itself."""
    return getattr(type(collector), method) is not getattr(StreamCollector, method)
