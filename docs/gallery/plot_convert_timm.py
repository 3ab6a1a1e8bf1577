"""
Convert a timm model
====================

``from_timm`` turns a vision transformer of timm into a model of this library with the same weights. The new parts are
multiplied by learned gates that start at zero. So the converted model gives the same outputs until you train it. This script
checks the outputs, and then trains the gates.
"""

import copy

import matplotlib.pyplot as plt
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.optim import create_optimizer_v2
from torch import nn

import imgproc_attn
from imgproc_attn.models import component_names

_ = torch.manual_seed(0)

# %%
# A trained source model
# ----------------------
# With access to the Hugging Face hub, you would write ``timm.create_model("deit3_small_patch16_224", pretrained=True)``. This
# example instead trains a small ``vit_tiny_patch16_224`` for some seconds on scikit-learn's digits of 8 x 8 pixels.

digits = load_digits()
inputs = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
train_x, test_x, train_y, test_y = train_test_split(
    inputs, torch.from_numpy(digits.target), test_size=360, stratify=digits.target, random_state=0
)


def train(model, epochs, lr):
    """Train the parameters that require a gradient with AdamW."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=0.05)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(train_x)).split(64):
            loss = nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model):
    """Return the accuracy on the test digits in percent."""
    return 100 * (model(test_x).argmax(dim=1) == test_y).double().mean().item()


source = timm.create_model(
    "vit_tiny_patch16_224",
    img_size=8,
    patch_size=2,
    in_chans=1,
    embed_dim=48,
    depth=2,
    num_heads=4,
    mlp_ratio=2.0,
    num_classes=10,
    weight_init="jax",
)
source = train(source, epochs=10, lr=4e-3)
print(f"source: accuracy {accuracy(source):.1f} %")

# %%
# Convert it
# ----------
# :func:`~imgproc_attn.from_timm` does not change the source model. The converted model has all parameters of the source, under
# the same names, and new ones: bandwidths and gates.

model = imgproc_attn.from_timm(source, positions="spatial_gaussian", residual="twicing")
new = sorted(set(model.state_dict()) - set(source.state_dict()))
print(f"{type(source).__name__} -> {type(model).__name__}, {len(new)} new tensors:")
print("\n".join(new))

# %%
# All gates are zero, so the outputs are those of the source. The small difference is only rounding, because it is much smaller
# in float64.

with torch.no_grad():
    single = (model(test_x) - source(test_x)).abs().max()
    exact = [copy.deepcopy(m).double()(test_x.double()) for m in (model, source)]
double = (exact[0] - exact[1]).abs().max()
print(f"logits up to {exact[1].abs().max():.0f}; largest difference {single:.1e} in float32, {double:.1e} in float64")

# %%
# Kernels have no gates. Another kernel changes the outputs at once, so you have to train the model.

gaussian = imgproc_attn.from_timm(source, kernel="gaussian_range")
with torch.no_grad():
    print(f"gaussian_range: logits differ by up to {(gaussian(test_x) - source(test_x)).abs().max():.1f}")
print(f"accuracy without training: {accuracy(source):.1f} % -> {accuracy(gaussian):.1f} %")

# %%
# Train the new parts
# -------------------
# ``component_names`` lists the new parameters. We train only these, with a large learning rate, and keep the weights of the
# source fixed. So every change comes from the new parts. One seed and 360 test digits show how the gates change. They do not
# show how much accuracy a larger model gains.

tuned = copy.deepcopy(model)
names = component_names(tuned)
for name, parameter in tuned.named_parameters():
    parameter.requires_grad_(name in names)
tuned = train(tuned, epochs=4, lr=0.03)
print(f"{sum(p.numel() for p in tuned.parameters() if p.requires_grad)} trained parameters", end=": ")
print(f"accuracy {accuracy(model):.1f} % before, {accuracy(tuned):.1f} % after")

# %%
# After training, the gates differ from zero. A positive gate of ``spatial_gaussian`` gives near patches more weight, and a
# negative gate gives far patches more weight. The gate of ``twicing`` is the share of the filtered residual that is added back.

fig, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
for ax, part in zip(axes, ("positions", "residual")):
    gates = {name: p for name, p in tuned.named_parameters() if name in names and part in name and "gate" in name}
    for layer, gate in enumerate(gates.values()):
        ax.plot([layer] * gate.numel(), gate.detach().flatten(), "o", color="C0", alpha=0.7)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(xlabel="layer", xticks=range(len(gates)), ylabel="gate, one dot per head")
    ax.set_title({"positions": "spatial_gaussian", "residual": "twicing"}[part])
    ax.grid(alpha=0.3)

# %%
# The figure shows how training changed the filters: the attention weights of one patch in the first layer, before and after.
# timm's attention does not return its weights. So the weights before training come from the converted model, which computes the
# same function as the source.

image = test_x[:1]
with torch.no_grad():
    before, after = (m.attention_weights(image, layers=[0])[0][0] for m in (model, tuned))
fig, axes = plt.subplots(2, 5, figsize=(7, 3), layout="constrained")
for line, (name, a) in zip(axes, {"converted": before, "trained": after}.items()):
    line[0].imshow(image[0, 0], cmap="gray")
    line[0].set_ylabel(name)
    for head, ax in enumerate(line[1:]):
        ax.imshow(a[head, 1 + 5, 1:].reshape(4, 4), cmap="inferno", vmin=0)
        ax.plot(1, 1, "c+", markersize=10)
        ax.set_title(f"head {head}", fontsize="small")
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])

# %%
# To see more, change ``residual`` and ``positions`` of :func:`~imgproc_attn.from_timm`, or use your own trained vision
# transformer of timm instead of ``source``.
