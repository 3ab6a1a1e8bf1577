"""
Corruptions of ImageNet-C on a photograph
=========================================

ImageNet-C (arXiv 1903.12261) measures robustness on photographs that are corrupted in 15 ways, each at 5 severities. This
library generates these corruptions, and the 4 extra corruptions of ImageNet-C, for any image. This example draws them.
"""

# %%
# Prepare a photograph
# --------------------
# The photograph ships with scikit-image. Lengths in pixels, such as the width of a blur, are published for images of 224 x 224.
# Smaller images would be corrupted more strongly, so we resize the photograph to 224 x 224.

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from imgproc_attn.diagnostics import draw_grid
from imgproc_attn.evaluation import COMMON, EXTRA, ImageNetC

pixels = torch.from_numpy(data.coffee()[30:366, 130:466].copy()).movedim(-1, 0)[None] / 255
image = F.interpolate(pixels, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)

# %%
# Corrupt it
# ----------
# ``frost`` needs photographs of frost that do not come with this package (see :doc:`/guides/corrupt`). The random
# numbers depend only on the seed, the corruption, the severity and the number of the image. So every run gives the same result.

names = [name for name in (*COMMON, *EXTRA) if name != "frost"]
corrupted = {name: {severity: ImageNetC(name, severity)(image)[0] for severity in (1, 3, 5)} for name in names}

# %%
# Draw them by group
# ------------------
# The frame in the clean photograph marks a detail of 64 x 64 pixels. The figures below show this detail, with one corruption
# per row and one severity per column.


plt.rcParams["image.interpolation"] = "nearest"  # Draw pixels as squares.
TOP, LEFT, SIDE = 92, 68, 64
DETAIL = (..., slice(TOP, TOP + SIDE), slice(LEFT, LEFT + SIDE))

fig, ax = plt.subplots(figsize=(2.6, 2.6), layout="constrained")
ax.imshow(image[0].movedim(0, -1))
ax.add_patch(plt.Rectangle((LEFT, TOP), SIDE, SIDE, fill=False, edgecolor="white", linewidth=2))
ax.set(xticks=[], yticks=[], title="clean")
plt.show()

# %%


def draw(group: str) -> None:
    """Draw the detail under all corruptions of a group, one per row."""
    members = [name for name in names if {**COMMON, **EXTRA}[name] == group]
    rows = {name: {f"severity {s}": x[DETAIL] for s, x in corrupted[name].items()} for name in members}
    _, axes = plt.subplots(len(rows), 3, figsize=(4.8, 1.4 * len(rows)), layout="constrained")
    draw_grid(rows, axes=axes)
    plt.show()


draw("noise")

# %%
draw("blur")

# %%
draw("weather")

# %%
draw("digital")

# %%
# Measure how much they change
# ----------------------------
# The peak signal-to-noise ratio (PSNR) is low if many pixels change much. It does not say how hard a corruption is for a model.
# The authors of ImageNet-C chose the settings of each severity, so the PSNR does not always fall as the severity grows.

print(f"{'PSNR / dB':20}" + "".join(f"{f'severity {s}':>12}" for s in (1, 3, 5)))
for name, by_severity in corrupted.items():
    values = [peak_signal_noise_ratio(image[0].numpy(), x.numpy(), data_range=1) for x in by_severity.values()]
    print(f"{name:20}" + "".join(f"{value:12.1f}" for value in values))

# %%
# The published files of ImageNet-C were compressed as JPEG after the corruption. Generated images are not. So report that your
# numbers are from generated corruptions.
#
# To corrupt your own photograph, change ``pixels``. To measure a model, run ``imgproc-attn corrupt MODEL --root PATH``.
