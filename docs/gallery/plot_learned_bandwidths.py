"""
Bandwidths that training learns
===============================

Each head of a bilateral ViT learns a range bandwidth and a spatial bandwidth. The two bandwidths say
how similar and how near two tokens must be to be averaged. This example trains a small model on scikit-learn's digits and draws
the bandwidths before and after training.
"""

# %%
# Train a small model
# -------------------
# The recipe ``quickstart`` holds the settings of four models, and ``variant`` picks one of them. Changed keys make the training
# short, and add one layer. All files go into a temporary folder.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch

from imgproc_attn.diagnostics import bandwidths, draw_bandwidths
from imgproc_attn.recipe import load_recipe
from imgproc_attn.training import train

torch.set_num_threads(1)  # Images of 8 x 8 pixels are too small for several threads.
recipe = load_recipe("quickstart", ["schedule.epochs=12", "schedule.warmup_epochs=2", "model.depth=3"])
recipe = recipe.variant("bilateral + twicing", seed=0)

with tempfile.TemporaryDirectory() as folder:
    run = Path(folder) / "run"
    result = train(recipe, run, device="cpu", log=lambda line: None)
    # Bandwidths start at values that do not depend on the seed, so a new model shows those before training.
    before = timm.create_model(f"local-dir:{run / 'last'}", pretrained=False)
    after = timm.create_model(f"local-dir:{run / 'last'}", pretrained=True)

test = result["test"]
print(f"{result['epochs']} epochs, {result['parameters']:,} parameters")
print(f"test accuracy {test['accuracy']:.1f} % of {test['n']} digits")

# %%
# Draw the bandwidths
# -------------------
# Range bandwidths are in units of queries and keys. All heads start at the same value, (4 d)^(1/4) for heads of width d.
# Spatial bandwidths are in patches. The heads start at different values, from 1.5 patches to twice the grid.

learned = {"before training": bandwidths(before), "after training": bandwidths(after)}
fig, axes = plt.subplots(2, 2, figsize=(7.4, 5.4), layout="constrained")
draw_bandwidths(learned, axes=axes)
for column, (name, unit) in zip(axes.T, {"range_bandwidth": "units of q and k", "spatial_bandwidth": "patches"}.items()):
    values = [h for model in learned.values() for layer in model[name].values() for h in layer]
    for ax in column:  # The same linear scale for both states shows what moved.
        ax.set(yscale="linear", ylim=(0.95 * min(values), 1.05 * max(values)), ylabel=unit)
for ax in axes.flat[1:]:
    ax.get_legend().remove()
plt.show()

# %%
# Read them
# ---------
# If the ratio is above 1, training made the kernel wider. The grid has 4 x 4 patches. With a spatial bandwidth far above 4,
# the places of patches hardly matter for a head. With a spatial bandwidth of about 1, a head averages only a patch and its
# neighbors.

for name, layers in learned["after training"].items():
    print(f"{name}, ratio after / before per head")
    for layer, values in layers.items():
        start = learned["before training"][name][layer]
        print(f"  layer {layer}: " + "  ".join(f"{b / a:.2f}" for a, b in zip(start, values)))

# %%
# The figure is from one seed of a small model with a short training. Use it to learn how to read such figures, not as a result
# about bandwidths.
#
# To see larger changes, raise ``schedule.epochs``, or change ``model.depth``.
