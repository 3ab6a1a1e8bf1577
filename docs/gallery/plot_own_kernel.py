"""
Write your own kernel
=====================

A kernel is a module that maps queries and keys to the logarithms of weights. You write it in your own file and pass it to a
model. You do not edit this package. This script defines a kernel with long tails, uses it as an image filter, and trains a
model with it.
"""

import matplotlib.pyplot as plt
import skimage
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.optim import create_optimizer_v2
from torch import nn

import imgproc_attn  # noqa: F401  # registers the models
from imgproc_attn.core import (
    Bandwidth,
    GaussianRange,
    SoftmaxFilter,
    SpatialGaussian,
    TensorBias,
    Terms,
    grid_geometry,
    product,
)
from imgproc_attn.diagnostics import bandwidths

_ = torch.manual_seed(0)

# %%
# The kernel
# ----------
# The Cauchy kernel is :math:`1 / (1 + |q - k|^2 / h^2)`. For small distances, it is like the Gaussian
# :math:`\exp(-|q - k|^2 / h^2)`. For large distances, it falls much more slowly: very different tokens keep some weight.
#
# ``forward`` returns the log-weights as :class:`~imgproc_attn.core.terms.Terms`. The logarithm of this kernel is not an inner
# product of queries and keys, so ``forward`` returns it as a dense tensor, a ``TensorBias``. ``Terms`` always needs columns for
# queries and keys too. One column of zeros is enough.


class Cauchy(nn.Module):
    """Cauchy kernel of queries [B, H, N, d] and keys [B, H, M, d], with one bandwidth per head."""

    def __init__(self, num_heads, range_bandwidth, learned=True):
        super().__init__()
        self.range_bandwidth = Bandwidth(range_bandwidth, num_heads, floor=1e-3, learned=learned, name="range_bandwidth")

    def forward(self, q, k, is_causal=False):
        squared = (q.square().sum(-1)[..., None] + k.square().sum(-1)[..., None, :] - 2 * q @ k.mT).clamp_min(0)
        log_weights = -torch.log1p(squared / self.range_bandwidth()[:, None, None] ** 2)
        return Terms([torch.zeros_like(q[..., :1])], [torch.zeros_like(k[..., :1])], biases=[TensorBias(log_weights)])


distance = torch.linspace(0, 4, 200)[:, None]
with torch.no_grad():
    rows = {
        "Gaussian": torch.exp(-(distance**2)),
        "Cauchy": Cauchy(1, 1.0)(distance[None, None], torch.zeros(1, 1, 1, 1)).biases[0].dense()[0, 0].exp(),
    }
fig, ax = plt.subplots(figsize=(4, 2.6), layout="constrained")
for name, weight in rows.items():
    ax.plot(distance, weight, label=name)
ax.set(xlabel="|q - k|, with h = 1", ylabel="weight before normalization")
ax.legend()
ax.grid(alpha=0.3)

# %%
# As an image filter
# ------------------
# The tokens of an image filter are pixels. The product of our kernel with a spatial kernel is a bilateral filter. The image
# is a part of scikit-image's cameraman with Gaussian noise. For each kernel, we choose the best bandwidth of a short list, by
# the error to the clean image. So the comparison is between kernels and not between bandwidths. In this example, the Gaussian
# kernel is better, because a kernel with long tails averages across edges.

clean = torch.from_numpy(skimage.data.camera()[80:208:2, 190:318:2]).float() / 255
noisy = clean + 0.1 * torch.randn(clean.shape)
height, width = clean.shape
pixels = noisy.reshape(1, 1, -1, 1)
geometry = grid_geometry(height, width, num_prefix_tokens=0, like=pixels)
space = SpatialGaussian(1, (height, width), spatial_bandwidth=2.5, learned=False)


def denoise(kernel):
    """Return the noisy image, filtered with a range kernel and the spatial kernel."""
    terms = product(space(geometry, geometry, pixels), kernel(pixels, pixels))
    with torch.no_grad():
        return SoftmaxFilter()(terms).apply(pixels).reshape(height, width)


def psnr(filtered):
    """Return the peak signal-to-noise ratio in dB."""
    return -10 * torch.log10((filtered - clean).square().mean()).item()


kernels = {
    "Gaussian": lambda h: GaussianRange(1, 1, h, learned=False, floor=1e-3),
    "Cauchy": lambda h: Cauchy(1, h, learned=False),
}
images = {"clean": clean, "noisy": noisy}
for name, make in kernels.items():
    results = {h: denoise(make(h)) for h in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)}
    h = max(results, key=lambda h: psnr(results[h]))
    images[f"{name}, h = {h}"] = results[h]

fig, axes = plt.subplots(1, 4, figsize=(9, 3), layout="constrained")
for ax, (name, picture) in zip(axes, images.items()):
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[], title=name if name == "clean" else f"{name}\n{psnr(picture):.2f} dB")

# %%
# In a model
# ----------
# You pass a function to the model. It gets a description of a layer (depth, heads, widths and grid) and returns your module.
# Other components stay as they are. This example trains on scikit-learn's digits of 8 x 8 pixels, each cut into 16 patches of
# 2 x 2.

digits = load_digits()
inputs = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
train_x, test_x, train_y, test_y = train_test_split(
    inputs, torch.from_numpy(digits.target), test_size=360, stratify=digits.target, random_state=0
)
model = timm.create_model(
    "nlm_vit_tiny",
    kernel=lambda layer: Cauchy(layer.num_heads, range_bandwidth=(4 * layer.head_dim) ** 0.25),
    positions="untied",
    img_size=8,
    patch_size=2,
    in_chans=1,
    embed_dim=64,
    depth=2,
    num_heads=4,
    mlp_ratio=2.0,
    class_token=False,
    global_pool="avg",
    weight_init="jax",
    num_classes=10,
)
optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05)
for _ in range(6):
    for batch in torch.randperm(len(train_x)).split(64):
        loss = nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
model.eval()
with torch.no_grad():
    correct = (model(test_x).argmax(dim=1) == test_y).sum().item()
print(f"{correct} of {len(test_y)} test digits are correct")

# %%
# Our kernel stores its bandwidth in a :class:`~imgproc_attn.core.bandwidths.Bandwidth`. So the diagnostics of the package find
# it, and the optimizer applies no weight decay to it. The adaptive attack of the sanity checks finds it by the name
# ``range_bandwidth``.

for layer, values in bandwidths(model)["range_bandwidth"].items():
    print(f"layer {layer}: h =", ", ".join(f"{h:.2f}" for h in values))

# %%
# The figure shows attention weights of the trained model: which patches one patch of a digit averages.

weights = model.attention_weights(test_x[:1])
fig, axes = plt.subplots(2, 5, figsize=(7, 3), layout="constrained")
for line, (layer, a) in zip(axes, weights.items()):
    line[0].imshow(test_x[0, 0], cmap="gray")
    line[0].set_ylabel(f"layer {layer}")
    for head, ax in enumerate(line[1:]):
        row = a[0, head, 5].reshape(4, 4)
        ax.imshow(row.detach(), cmap="inferno", vmin=0)
        ax.plot(1, 1, "c+", markersize=10)
        ax.set_title(f"head {head}", fontsize="small")
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])

# %%
# To write another kernel, change the line that computes ``log_weights``. :doc:`/guides/extending` shows kernels that keep the
# speed of fused attention.
