"""One collector's part of a run, as the driver keeps it: its folder, its books, what its patients' journals know.

In: what its writers, collectors and publishers say.  Out: accounts; an error where the run cannot go on.  Speaks to nobody.
"""

from __future__ import annotations

from streamwsi.dataset import Dataset
from streamwsi.errors import OutputError, RunError
from streamwsi.pipeline.accounts import Accounts, Counts
from streamwsi.pipeline.decisions import BranchRules, SlideKey
from streamwsi.pipeline.folder import OutputFolder
from streamwsi.pipeline.job import BranchJob
from streamwsi.pipeline.progress import Progress
from streamwsi.resolved import ResolvedSlide
from streamwsi.values import ValueSpec
from streamwsi.wire import messages


class Branch:
    """A collector's folder, accounts and journals in one run."""

    def __init__(self, job: BranchJob, folder: OutputFolder, dataset: Dataset, progress: Progress) -> None:
        self.job = job
        self.folder = folder
        self.accounts = Accounts(dataset, folder, job.gathers, progress, job.name)
        self.writer_of: dict[int, str] = {}
        """Who holds the journal of a patient."""
        self.sealed: list[str] = []
        """Of a file of all patients: those whose journals wait for it."""
        self.stops: dict[str, SlideKey] = {}
        """Where those of them were stopped that were."""
        self.all_published = not job.writing.output.one_file or not self.accounts.todo
        self.publishing_all: str | None = None
        """The publisher that was told to write the one file of all."""
        self._dataset = dataset
        self._journaled: dict[SlideKey, tuple[ResolvedSlide, int, Counts]] = {}
        """What journals knew before this run opened the slides: (slide, committed chunks, counts)."""

    @property
    def has_work(self) -> bool:
        """There is something left to do."""
        return bool(self.accounts.todo) or not self.all_published

    @property
    def rules(self) -> BranchRules:
        """How the scheduler is to end its patients."""
        output = self.job.writing.output
        return BranchRules(self.job.asks_finished, output.publish_partial, publish=not output.one_file)

    @property
    def of_name(self) -> str:
        """What tells its workers from those of others, in messages."""
        return "" if self.job.name is None else f" of {self.job.name!r}"

    def patient_opened(self, message: messages.PatientOpened, resolved: dict[SlideKey, ResolvedSlide]) -> None:
        """A writer has opened a patient's journal. Raises RunError or OutputError where the run cannot go on with it."""
        patient = message.patient
        if message.values is not None:
            self.same_values(message.values)
        known = {slide.slide: slide for slide in message.slides}
        n_slides = len(self._dataset[patient].slides)
        for number, gone in known.items():
            if number >= n_slides:
                journal = self.folder.layout.journal(gone.patient_id)
                raise OutputError(
                    f"{journal} holds slide {gone.id!r} of patient {gone.patient_id!r}, which the dataset has no more: choose "
                    f"another folder, or remove that journal, and the patient is done afresh"
                )
        for number, slide in known.items():
            if (patient, number) not in resolved:
                committed, counts = message.committed.get(number, []), message.counts.get(number, (0, 0, 0))
                self._journaled[patient, number] = (slide, len(committed), counts)

    def before(self, key: SlideKey) -> ResolvedSlide | None:
        """What a slide was resolved to by an earlier run that has committed something of it."""
        slide, committed, _ = self._journaled.get(key, (None, 0, None))
        return slide if committed else None

    def slide_resolved(self, key: SlideKey, slide: ResolvedSlide) -> None:
        """A slide was opened. Raises OutputError where it is not the one that the journal knows."""
        before = self.before(key)
        difference = None if before is None else _difference(before, slide)
        if difference is not None:
            raise OutputError(
                f"slide {slide.id!r} of patient {slide.patient_id!r} is not what {self.folder.layout.folder} was begun "
                f"with: {difference}; choose another folder, or pass overwrite to start afresh"
            )
        self.accounts.slide_resolved(key, slide, None if before is None else self._journaled[key][2])

    def same_values(self, spec: ValueSpec) -> None:
        """Raise RunError unless these are the values that the folder has; the first ones settle it."""
        settled = self.folder.values
        if settled is None:
            self.folder.set_values(spec)
        elif (spec.dtype, spec.shape) != (settled.dtype, settled.shape):
            raise RunError(f"a collector{self.of_name} gave a value that is {spec}, others gave {settled}")

    def patient_finished(self, number: int, stop: SlideKey | None, failed: bool) -> None:
        """A patient is done with; nothing is kept of it but its report."""
        patient = self._dataset[number]
        self.accounts.patient_finished(number, failed)
        if self.job.writing.output.one_file:
            self.sealed.append(patient.id)
            if stop is not None:
                self.stops[patient.id] = stop
        del self.writer_of[number]
        for slide in range(len(patient.slides)):
            self._journaled.pop((number, slide), None)

    def publish_all(self) -> messages.PublishAll | None:
        """What its publisher is to be told, so that the one file of all patients is written; None where there is to be none."""
        failed = self.accounts.any_failed
        if not self.sealed or (failed and not self.job.writing.output.publish_partial):
            self.all_published = True
            return None
        sealed = set(self.sealed)
        in_order = tuple(patient.id for patient in self._dataset if patient.id in sealed)
        return messages.PublishAll(in_order, self.stops, failed)


def _difference(before: ResolvedSlide, now: ResolvedSlide) -> str | None:
    """What differs in what a slide was resolved to, in words; None where nothing that matters does."""
    for name in ("id", "fingerprint", "level", "zoom", "coarser", "extent", "kernel", "stride", "border", "margin"):
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            return f"its {name} was {old!r} and is {new!r}"
    images = {image.name: image for image in before.paired}
    for image in now.paired:
        if images.get(image.name) != image:
            return f"its {image.name} are others than before: their content, size, place or scale has changed"
    if not before.same_windows(now):
        return f"its {len(before.plan())} windows are not the {len(now.plan())} that the sampler chooses now"
    return None
