# %% [markdown]
# # Heatmaps of whole-slide images
#
# A whole-slide image is too large for a model, or for a picture on the screen. So one looks at it through a small
# **window** that slides over it, makes a number of what is seen at each place, and lays the numbers back over the
# slide: a heatmap.
#
# This tutorial goes that way once, with the small slide that comes with streamwsi. It runs as a script (`python
# tutorials/01_heatmaps.py`), or cell by cell in an editor or a notebook that reads the percent format (jupytext).

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import streamwsi as sw
from streamwsi.geometry import BORDERS, axis_sizes, axis_starts

HERE = Path(__file__).parent if "__file__" in globals() else Path.cwd()
SLIDES = HERE.parent / "examples" / "data"
OUT = Path(tempfile.mkdtemp(prefix="heatmaps-"))
print("files of this tutorial:", OUT)

# %% [markdown]
# ## The slide
#
# A slide is stored several times over, as a pyramid of **levels**. Level 0 is the finest; each further one is smaller
# by its **downsample**. `mpp` (micrometres per pixel of level 0) says how large things are in truth. The small slide
# has one level.

# %%
with sw.open_slide(SLIDES / "CMU-1-Small-Region.svs") as slide:
    info = slide.info
    thumbnail = slide.thumbnail(800)
print("levels:", info.level_dimensions, "downsamples:", info.level_downsamples, "mpp:", info.mpp)

# %% [markdown]
# ## The window
#
# Four things decide where the windows lie:
#
# | | |
# |---|---|
# | `level` | the level that is read |
# | `kernel_size` | size of the window, in pixels of that level; a number, or (width, height) |
# | `stride` | step from one window to the next. As large as the kernel: windows touch. Smaller: they overlap. Larger: gaps |
# | `border` | what happens at the right and lower edge, which windows seldom meet exactly |
#
# The borders, for a slide 1000 pixels wide, windows of 300 and steps of 200:

# %%
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
for row, border in enumerate(BORDERS):
    starts = axis_starts(1000, 300, 200, border)
    for number, (start, size) in enumerate(zip(starts, axis_sizes(starts, 1000, 300, border), strict=True)):
        place = (start, row + 0.12 + 0.4 * (number % 2))
        axes.add_patch(Rectangle(place, size, 0.36, facecolor=plt.cm.tab10(row), edgecolor="black", alpha=0.7))
axes.axvline(0, color="black")
axes.axvline(1000, color="black")
axes.set(xlim=(-20, 1220), ylim=(len(BORDERS), 0), yticks=[row + 0.5 for row in range(len(BORDERS))], yticklabels=BORDERS)
axes.set_xlabel("pixels; the slide ends at 1000")
figure.savefig(OUT / "borders.png", dpi=120)

# %% [markdown]
# | border | what happens | what that means |
# |---|---|---|
# | `pad` (default) | the last window sticks out of the slide | all is covered, all steps are equal; outside is white |
# | `edge` | one more window, flush with the edge | all is covered, no window holds background |
# | `squeeze` | the windows move together until the last is flush | the same, and they overlap evenly |
# | `adaptive` | as `pad`, but the last window is cut | all is covered, by windows of several sizes |
# | `crop` | what would stick out is left out | the edge is not covered |

# %% [markdown]
# ## The collector
#
# What is made of a window is up to the **collector**. It is given a batch of windows, `batch.pixels`, an array of the
# shape (n, height, width, 3), and returns a row for each. This one measures how strongly the tissue is stained,
# whatever the colour: the mean optical density.


# %%
class OpticalDensity(sw.StreamCollector):
    """Mean optical density of each window: 0 for white, 1 where a tenth of the light comes through."""

    columns = ("optical_density",)

    def process(self, batch):
        """One number for each window."""
        light = (batch.pixels + np.float32(1)) / 256
        return -np.log10(light).mean(axis=(1, 2, 3))


# %% [markdown]
# ## Running it
#
# A dataset is a list of patients, each with one slide or several; a folder makes each slide a patient of its own. The
# writer is told where the files go. Each stage runs in processes of its own; here two collectors share the work.

# %%
dataset = sw.Dataset.from_folder(SLIDES)
loader = sw.SlidingWindowLoader(dataset, kernel_size=128, stride=64, level=0, border="pad")
writer = sw.HDF5StreamWriter(OUT)
report = sw.Pipeline(loader, OpticalDensity(), writer, collectors=2).run()

print(report.windows, "windows in", report.seconds, "s;", "exit code", report.exit_code)
for patient in report.patients:
    for slide in patient.slides:
        print(patient.id, patient.state, "- expected", slide.expected, "written", slide.written, "failed:", slide.reason)

# %% [markdown]
# Had it been interrupted, running the same cell again would go on from where it was. Run it again now: there is nothing
# to do, and the files stay as they are.

# %% [markdown]
# ## Reading the files
#
# The file holds, per slide, the corners of the windows (`coords`, in level-0 pixels, whatever level was read) and the
# values (`features`). `read_pieces` reads either format, HDF5 or CSV, and complains if a window is missing.

# %%
file = OUT / report.patients[0].file
pieces = sw.read_pieces(file)
print(pieces.coords[:3].tolist(), pieces.values[:3], pieces.values.dtype)
print(pieces.to_dataframe().nlargest(3, "optical_density").to_string(index=False))

# %% [markdown]
# ## Drawing the map
#
# `read_map` lays the values back on the slide: cells of stride × stride, each the mean of the windows that cover it,
# and NaN where there was none. What you do with the array is yours...

# %%
heat = sw.read_map(file)
print("a map of", heat.values.shape, "(rows, columns, channels)")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 5.6), layout="constrained")
width, height = info.dimensions
left.imshow(thumbnail, extent=(0, width, height, 0))
left.set_title("slide")
drawn = right.pcolormesh(heat.x_edges, heat.y_edges, heat.values[..., 0], cmap="viridis")
right.set(xlim=(0, width), ylim=(height, 0), aspect="equal", title="optical density")
figure.colorbar(drawn, ax=right, shrink=0.8)
figure.savefig(OUT / "side_by_side.png", dpi=120)

# %% [markdown]
# ... and `render` makes the picture that one usually wants: the map over the slide's thumbnail, with a scale.

# %%
picture = sw.render(file, alpha=0.5, title="Optical density")
print("picture:", picture)

# %% [markdown]
# ## The same in the shell
#
#     streamwsi heatmap slides/ --out out/ --collector my_model.py:OpticalDensity --kernel-size 128 --stride 64
#     streamwsi render out/
#
# Next: [a collector of your own](02_your_own_collector.py).
