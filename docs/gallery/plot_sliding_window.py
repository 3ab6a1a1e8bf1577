"""
Segment an image in sliding windows
===================================

Use sliding windows for images that do not fit in memory at once, and for models that accept only one image size. Where
windows overlap, their logits are averaged. This script shows the windows, their average, and how far the result differs from
the result on the whole image.
"""

import matplotlib.pyplot as plt
import numpy as np
import skimage
import timm
import torch
from torch import nn

import imgproc_attn  # noqa: F401  # registers the models
from imgproc_attn.segmentation import IoUMetric, SlidingWindowModel, segment

_ = torch.manual_seed(0)

# %%
# A photograph and its labels
# ---------------------------
# The photograph from scikit-image shows coins of Pompeii. No person has labeled its pixels. The labels come from a classical
# method: a watershed of the gradient, which grows regions from the darkest and the brightest pixels. These labels are good
# enough to train a tiny model on the upper half and to test it on the lower half. The image is cut to 288 rows, so that each
# window below begins at the border of a patch.

photograph = skimage.data.coins()[:288]
gradient = skimage.filters.sobel(photograph)
markers = np.where(photograph < 30, 1, np.where(photograph > 150, 2, 0))
labels = torch.from_numpy(skimage.segmentation.watershed(gradient, markers) - 1).long()
image = torch.from_numpy(photograph).float()[None] / 255
image = (image - image.mean()) / image.std()
height, width = labels.shape
train_rows = height // 2
print(f"{height} x {width} pixels, {100 * labels.double().mean():.0f} % of them coins")

# %%
# Train a tiny segmenter
# ----------------------
# The model is trained on random crops of 96 x 96 pixels. Its patches have 8 x 8 pixels. Its attention is a bilateral filter
# with a narrow spatial kernel and no absolute positions. So a patch attends mostly to its neighbors, and its place in the
# window does not matter.

window, patch = 96, 8
model = timm.create_model(
    "segmenter",
    backbone="nlm_vit_tiny",
    positions={"name": "spatial_gaussian", "spatial_bandwidth": 1.25, "learned": False},
    decoder="linear",
    num_classes=2,
    img_size=window,
    patch_size=patch,
    in_chans=1,
    embed_dim=48,
    depth=2,
    num_heads=3,
    class_token=False,
    global_pool="avg",
)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(120):
    tops = torch.randint(train_rows - window + 1, (8,)).tolist()
    lefts = torch.randint(width - window + 1, (8,)).tolist()
    crops = torch.stack([image[:, t : t + window, x : x + window] for t, x in zip(tops, lefts)])
    targets = torch.stack([labels[t : t + window, x : x + window] for t, x in zip(tops, lefts)])
    loss = nn.functional.cross_entropy(model(crops), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
print(f"training loss of the last crops: {loss:.3f}")

# %%
# Windows and their overlap
# -------------------------
# Along each side, windows begin every ``stride`` pixels, and the last window ends at the border of the image. A small wrapper
# counts the windows that the model gets.


class Recorder(nn.Module):
    """Pass windows on, and count them."""

    def __init__(self, model):
        super().__init__()
        self.model, self.windows = model, 0

    def forward(self, windows):
        self.windows += len(windows)
        return self.model(windows)


def starts(size, stride):
    """Return the first pixel of each window along a side."""
    return [*range(0, size - window, stride), size - window]


stride = 48
times = np.zeros((height, width))
for top in starts(height, stride):
    for left in starts(width, stride):
        times[top : top + window, left : left + window] += 1

recorder = Recorder(model).eval()
prediction = segment(recorder, image, window=window, stride=stride)
print(f"{recorder.windows} windows; a pixel is in {times.min():.0f} to {times.max():.0f} of them")

fig, axes = plt.subplots(1, 3, figsize=(9, 2.7), layout="constrained")
axes[0].imshow(photograph, cmap="gray")
for (top, left), color in zip([(0, 0), (0, stride), (stride, 0)], ["C1", "C0", "C2"]):
    axes[0].add_patch(plt.Rectangle((left, top), window, window, fill=False, color=color, linewidth=2))
axes[0].axhline(train_rows, color="white", linestyle=":")
axes[0].set_title("three windows, training rows", fontsize="medium")
fig.colorbar(axes[1].imshow(times, cmap="viridis"), ax=axes[1], shrink=0.75, ticks=[1, 2, 4])
axes[1].set_title("number of windows per pixel", fontsize="medium")
axes[2].imshow(photograph, cmap="gray")
axes[2].imshow(np.ma.masked_equal(prediction.numpy(), 0), cmap="autumn", alpha=0.5)
axes[2].set_title("predicted coins", fontsize="medium")
for ax in axes:
    ax.set(xticks=[], yticks=[])

# %%
# The average, by hand
# --------------------
# :class:`~imgproc_attn.segmentation.SlidingWindowModel` returns logits, which :func:`~imgproc_attn.segmentation.segment` turns
# into classes. The logits of a pixel are the mean over all windows that contain the pixel.

with torch.no_grad():
    merged = SlidingWindowModel(model, window, stride)(image[None])[0]
    total = torch.zeros_like(merged)
    for top in starts(height, stride):
        for left in starts(width, stride):
            here = (slice(None), slice(top, top + window), slice(left, left + window))
            total[here] += model(image[here][None])[0]
by_hand = total / torch.from_numpy(times).float()
print(f"largest difference from the mean by hand: {(merged - by_hand).abs().max():.1e}")
print("same classes as segment:", torch.equal(merged.argmax(dim=0), prediction))

# %%
# Where it equals the whole image
# -------------------------------
# Three cases show when sliding windows give the same logits as the whole image.
#
# 1. If one window covers the whole image, the logits are the same.
# 2. If the model uses no context, such as a convolution of 1 x 1, the logits of a pixel are the same in every window.
# 3. If the model uses context, the logits differ near the borders of windows, because neighbors outside the window are missing.
#    In our model, the spatial kernel is narrow, so the difference is small at a short distance from the border.

pointwise = nn.Conv2d(1, 2, 1).eval()
with torch.no_grad():
    whole = model(image[None])[0]
    covering = SlidingWindowModel(model, window=max(height, width))(image[None])[0]
    without_context = SlidingWindowModel(pointwise, window, stride)(image[None])[0] - pointwise(image[None])[0]
    apart = SlidingWindowModel(model, window, window)(image[None])[0]
print(f"window covers the image: {(covering - whole).abs().max():.1e}")
print(f"model without context:   {without_context.abs().max():.1e}")

# %%
# The figure shows the third case: for each pixel, the largest difference of a logit from that of the whole image. With stride
# 96, windows touch, and their borders are at multiples of 96 pixels. With stride 48, windows overlap by half. The curve is
# for windows that touch.


def distance_to_border(size):
    """Return the distance of each pixel to the nearest border between two windows."""
    borders = np.arange(window, size, window)
    return np.abs(np.arange(size)[:, None] + 0.5 - borders).min(axis=1)


distance = np.minimum(distance_to_border(height)[:, None], distance_to_border(width)[None])
error = {"stride 96": (apart - whole).abs().amax(dim=0).numpy(), "stride 48": (merged - whole).abs().amax(dim=0).numpy()}

fig, axes = plt.subplots(1, 3, figsize=(9, 2.7), layout="constrained")
for ax, (name, values) in zip(axes, error.items()):
    shown = ax.imshow(np.log10(values[::2, ::2] + 1e-8), cmap="magma", vmin=-6, vmax=0)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"difference, {name}", fontsize="medium")
fig.colorbar(shown, ax=axes[:2], label="log10", shrink=0.75)
bins = np.arange(0, window // 2 + 1, patch)
means = [error["stride 96"][(distance >= low) & (distance < low + patch)].mean() for low in bins[:-1]]
axes[2].semilogy(bins[:-1] + patch / 2, means, marker="o")
axes[2].set(xlabel="pixels to the nearest border", ylabel="mean difference, stride 96")
axes[2].grid(alpha=0.3)

# %%
# Does overlap improve the result?
# --------------------------------
# We compare the predictions with the labels of the lower half, which was not used for training. A smaller stride needs more
# windows. In this example, the differences in mIoU are small, because the model needs few neighbors. This result is for one
# model and one image.

for name, (size, step) in {"whole": (None, None), "stride 96": (96, 96), "stride 48": (96, 48), "stride 24": (96, 24)}.items():
    recorder = Recorder(model).eval()
    predicted = segment(recorder, image, window=size, stride=step)
    metric = IoUMetric(2)
    metric.update(predicted[train_rows:], labels[train_rows:])
    print(f"{name:10} {recorder.windows:4} windows, mIoU {metric.compute()['miou']:.1f} %")

# %%
# To see more, change ``spatial_bandwidth``, ``window`` and ``stride``. With a wider kernel, the logits also differ farther
# from the borders.
