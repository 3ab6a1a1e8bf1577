"""
Image filters beside kornia and scikit-image
============================================

The functions ``bilateral_filter`` and ``non_local_means`` apply the kernels of the attention layers to pixels. This example
compares them with the functions of kornia and scikit-image, after converting the bandwidths. It shows where and why the results
differ.
"""

# %%
# Prepare a noisy photograph
# --------------------------
# The photograph ships with scikit-image. The added noise has a standard deviation of 0.08, for pixels in [0, 1].

import math

import kornia
import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage import data
from skimage.restoration import denoise_bilateral, denoise_nl_means

from imgproc_attn import bilateral_filter, non_local_means

SIDE = 80
clean = torch.from_numpy(data.chelsea()[84 : 84 + SIDE, 124 : 124 + SIDE].copy()).double().movedim(-1, 0) / 255
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
image = (clean + 0.08 * noise).clamp(0, 1)
array = np.ascontiguousarray(image.movedim(0, -1))  # scikit-image takes [H, W, C]
channels = image.shape[0]


def from_array(result: np.ndarray) -> torch.Tensor:
    """Return an array ``[H, W, C]`` as a tensor ``[C, H, W]``."""
    return torch.from_numpy(result).movedim(-1, 0)


# %%
# Bilateral filter
# ----------------
# The function is :py:func:`imgproc_attn.bilateral_filter`. Its bandwidths are ``h_r`` for colors and ``h_s`` for places. A
# bandwidth is h = sqrt(2) sigma. kornia needs ``color_distance_type="l2"``, because by default it sums absolute differences of
# the channels. scikit-image divides color distances by the number of channels. So we divide its ``sigma_color`` by this number
# too.

WINDOW, SIGMA_COLOR, SIGMA_SPACE = 11, 0.2, 3.0
h_r, h_s = math.sqrt(2) * SIGMA_COLOR, math.sqrt(2) * SIGMA_SPACE
bilateral = {
    "imgproc_attn": bilateral_filter(image, h_r, h_s, WINDOW),
    "kornia": kornia.filters.bilateral_blur(
        image[None], (WINDOW, WINDOW), SIGMA_COLOR, (SIGMA_SPACE, SIGMA_SPACE), color_distance_type="l2"
    )[0],
    "scikit-image": from_array(denoise_bilateral(array, WINDOW, SIGMA_COLOR / channels, SIGMA_SPACE, channel_axis=-1)),
}

# %%
# Non-local means
# ---------------
# The function is :py:func:`imgproc_attn.non_local_means`. Its ``range_bandwidth`` refers to the sum of squared differences
# over all values of a patch. The ``h`` of scikit-image refers to their mean. So we multiply ``h`` by the root of the number
# of values. The slow mode of scikit-image weights the pixels of a patch by a Gaussian. The fast mode leaves out one row and
# one column of each patch, which we correct by a factor.

PATCH, REACH, H = 5, 5, 0.08
h_nlm = H * math.sqrt(PATCH**2 * channels)
h_fast = H * (PATCH - 1) / PATCH  # equal to ours, up to the missing row and column
means = {
    "imgproc_attn": non_local_means(image, h_nlm, PATCH, 2 * REACH + 1),
    "scikit-image, slow": from_array(denoise_nl_means(array, PATCH, REACH, H, fast_mode=False, channel_axis=-1)),
    "scikit-image, fast": from_array(denoise_nl_means(array, PATCH, REACH, h_fast, fast_mode=True, channel_axis=-1)),
}

# %%
# Look at the results
# -------------------
# The lower row shows the difference to the result of imgproc_attn: the largest over the three channels, in gray levels of 255.
# The color scale ends at 5 gray levels.


plt.rcParams["image.interpolation"] = "nearest"  # Draw pixels as squares.


def draw(results: dict[str, torch.Tensor], title: str) -> None:
    """Draw filtered photographs, and their differences to the first of them."""
    ours = results["imgproc_attn"]
    fig, axes = plt.subplots(2, 1 + len(results), figsize=(8, 4.1), layout="constrained")
    for ax, name, shown in ((axes[0, 0], "noisy", image), (axes[1, 0], "photograph", clean)):
        ax.imshow(shown.movedim(0, -1))
        ax.set_title(name, fontsize="small")
    for ax, (name, result) in zip(axes[0, 1:], results.items()):
        ax.imshow(result.clamp(0, 1).movedim(0, -1))
        ax.set_title(name, fontsize="small")
    for ax, result in zip(axes[1, 2:], list(results.values())[1:]):
        drawn = ax.imshow(255 * (result - ours).abs().amax(0), cmap="inferno", vmin=0, vmax=5)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    axes[1, 1].axis("off")
    fig.colorbar(drawn, ax=axes, label="difference / gray levels", shrink=0.6)
    fig.suptitle(title, fontsize="medium")
    plt.show()


draw(bilateral, f"Bilateral filter, h_r = {h_r:.3f}, h_s = {h_s:.2f} pixels, window of {WINDOW} x {WINDOW}")

# %%
draw(means, f"Non-local means, h_r = {h_nlm:.3f}, patches of {PATCH} x {PATCH}, window of {2 * REACH + 1} x {2 * REACH + 1}")

# %%
# Count the differences
# ---------------------
# The columns "inside" leave out pixels whose window crosses the border of the image. Beyond the border, kornia mirrors the
# image, and the bilateral filter of scikit-image uses zeros. imgproc_attn averages only pixels of the image.


def count(results: dict[str, torch.Tensor], margin: int) -> None:
    """Print the differences of results to the first of them."""
    names = list(results)
    for name in names[1:]:
        difference = 255 * (results[name] - results[names[0]]).abs()
        inside = difference[:, margin:-margin, margin:-margin]
        print(f"{name:20}{difference.mean():10.3g}{difference.max():10.3g}{inside.mean():12.3g}{inside.max():10.3g}")


print(f"{'in gray levels':20}{'mean':>10}{'largest':>10}{'mean inside':>12}{'largest':>10}")
print("bilateral filter")
count(bilateral, WINDOW // 2)
print("non-local means")
count(means, REACH + PATCH // 2)

# %%
# Inside, the bilateral filters of kornia and imgproc_attn are equal up to rounding. scikit-image reads its table of spatial
# weights with another row length than it stores, which shears the spatial kernel. It also rounds color distances to the
# entries of a table. In non-local means, the slow mode differs because of its Gaussian inside patches, and the fast mode
# because of the missing row and column. :doc:`/concepts/image_filter` has a table of all conversions.
#
# To compare other settings, change ``SIGMA_COLOR``, ``SIGMA_SPACE`` or ``H``. The script computes the bandwidths from these
# values.
