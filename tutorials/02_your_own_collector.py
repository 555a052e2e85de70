# %% [markdown]
# # A collector of your own
#
# [The first tutorial](01_heatmaps.py) made one number of every window. Here a collector grows: it gets arguments and
# several values, leaves out windows, meets an error, stops early, and makes one result of a patient instead of a file.

# %%
import tempfile
from pathlib import Path

import numpy as np

import streamwsi as sw

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
SLIDE = HERE.parent / "examples" / "data" / "CMU-1-Small-Region.svs"
OUT = Path(tempfile.mkdtemp(prefix="collectors-"))
print("files of this tutorial:", OUT)

# %% [markdown]
# ## The sum first
#
# Keep what is computed in a plain function of pixels. It can be tried on a region of a slide, without any run.


# %%
def redness(pixels):
    """How much more red than green and blue each window is, -1 to 1: (n, height, width, 3) uint8 to (n,)."""
    red, green, blue = pixels.mean(axis=(1, 2)).T / 255
    return red - (green + blue) / 2


with sw.open_slide(SLIDE) as slide:
    tissue = slide.read_region(level=0, x=1000, y=2200, width=128, height=128)
    glass = slide.read_region(level=0, x=100, y=200, width=128, height=128)
print("tissue and glass:", redness(np.stack([tissue, glass])).round(3))

# %% [markdown]
# ## The collector around it
#
# - `__init__` takes arguments, in your process. `arguments` names those that decide the results: they are written into
#   `run.json`, and a folder that was begun with others is refused.
# - `setup` runs once in each collector process, on its own copy of the object. Load models there, onto `self.device`.
#   What cannot be sent to another process (an open file, a model on a GPU) does not belong into `__init__`.
# - `process` returns one row for each window, or a list of `ProcessedPiece`: windows that are not in it get no row.
# - `columns` names the values of a row.


# %%
class Redness(sw.StreamCollector):
    """Redness and brightness of each window that holds tissue."""

    columns = ("redness", "brightness")
    arguments = ("glass",)

    def __init__(self, glass=0.85):
        """Windows brighter than `glass`, 0 to 1, are taken for glass."""
        self.glass = glass

    def setup(self):
        """Nothing to load here; a model would be."""

    def process(self, batch):
        """A piece for each window of tissue."""
        brightness = batch.pixels.mean(axis=(1, 2, 3)) / 255
        values = np.stack([redness(batch.pixels), brightness], axis=1)
        return [
            sw.ProcessedPiece(window, value)
            for window, value in zip(batch.windows, values, strict=True)
            if value[1] <= self.glass
        ]


# %% [markdown]
# Patients may have several slides and records of any kind; both come with every batch (`batch.patient.records`).
# `level` may be a function of the opened slide: here the coarsest level whose pixels are not larger than a micrometre.

# %%
dataset = sw.Dataset([sw.Patient("anna", {"H&E": SLIDE}, {"grade": 2})])


def level_for_1_um(slide):
    """The coarsest level with pixels of at most a micrometre."""
    return max(level for level, downsample in enumerate(slide.level_downsamples) if slide.mpp[0] * downsample <= 1)


loader = sw.SlidingWindowLoader(dataset, kernel_size=128, level=level_for_1_um)
report = Redness(glass=0.8).start_collecting(loader, sw.CSVStreamWriter(OUT / "redness"), collectors=2)

counts = report.patients[0].slides[0]
print("windows:", counts.expected, "expected,", counts.written, "written,", counts.none, "without a row")
print((OUT / "redness" / "anna.csv").read_text().splitlines()[:3])
print("picture:", sw.render(OUT / "redness" / "anna.csv", channel="redness"))

# %% [markdown]
# ## When it goes wrong
#
# An exception in your code ends the run within seconds and names the place: your traceback, the slide, the windows.
# What was committed before stays in the folder. If the class is called the same and its arguments are the same, a
# repaired one goes on from there.


# %%
class Broken(Redness):
    """Redness with a mistake."""

    def process(self, batch):
        """Divides by the number of windows that are not there."""
        return redness(batch.pixels) / self.number_of_windows


try:
    Broken().start_collecting(loader, sw.CSVStreamWriter(OUT / "broken"), quiet=True)
except sw.CollectorError as error:
    print(error)

# %% [markdown]
# ## Enough is enough
#
# `is_finished` is asked after each big chunk of neighbouring windows, in the order of the plan. `windows_done` counts
# the patient's windows so far. Small chunks (`chunk_px`) ask more often, large ones read faster.


# %%
class FirstHundred(Redness):
    """Redness of about the first hundred windows of a patient."""

    def is_finished(self, patient, windows_done):
        """Whether the patient needs no more windows."""
        return windows_done >= 100


report = FirstHundred().start_collecting(loader, sw.CSVStreamWriter(OUT / "first"), chunk_px=32 * 128 * 128)
counts = report.patients[0].slides[0]
print("windows:", counts.written + counts.none, "processed,", counts.stopped, "behind the place where it was stopped")

# %% [markdown]
# ## One result per patient
#
# With `mode = "collect"` the values go to `collate`, all of a patient's at once, in window order, when the last of them
# is there. (With `mode = "accumulate"` they come one by one, and memory does not grow with their number.) What it
# returns is in `report.results`; no file of values is written.


# %%
class RednessOfPatient(Redness):
    """Share of tissue, and quantiles of its redness."""

    mode = "collect"

    def collate(self, patient, pieces):
        """A dict of numbers and arrays."""
        values = np.array([piece.value[0] for piece in pieces])
        return {
            "windows": len(pieces),
            "quartiles": np.quantile(values, [0.25, 0.5, 0.75]),
            "reddest_at": [pieces[int(values.argmax())].window.x, pieces[int(values.argmax())].window.y],
            "grade": patient.records["grade"],
        }


report = RednessOfPatient().start_collecting(loader, sw.HDF5StreamWriter(OUT / "patients"), collectors=2)
print(report.results["anna"])

# %% [markdown]
# ## In the shell, on several devices
#
# Put the class into a file, here `my_model.py`; what it imports from its own folder is found, too:
#
#     streamwsi heatmap slides/ --out out/ --collector my_model.py:Redness --arg glass=0.8 --devices cuda:0,cuda:1
#
# One collector process is started for each device, and `self.device` is the name of its own. Each takes the next chunk
# when it has room for one, so that a faster one does more.
