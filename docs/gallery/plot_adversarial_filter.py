"""
An adversarial example and what changed in the filter
=====================================================

Attention weights are the filter of a layer. They depend on the image, so an attack on the image also changes the filter. This
example trains a small bilateral ViT on scikit-learn's digits and attacks it with PGD. Then it compares rows of the filter
before and after the attack.
"""

# %%
# Train a small model
# -------------------
# The recipe ``quickstart`` holds the settings of four models, and ``variant`` picks one of them. Two changed keys make the
# training short. All files go into a temporary folder.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch
from torchvision.transforms.functional import to_tensor

from imgproc_attn.data import Digits
from imgproc_attn.diagnostics import draw_adversarial
from imgproc_attn.evaluation import PGD, NormalizedModel
from imgproc_attn.recipe import load_recipe
from imgproc_attn.training import train

torch.set_num_threads(1)  # Images of 8 x 8 pixels are too small for several threads.
recipe = load_recipe("quickstart", ["schedule.epochs=15", "schedule.warmup_epochs=2"]).variant("bilateral + twicing", seed=0)
with tempfile.TemporaryDirectory() as folder:
    run = Path(folder) / "run"
    train(recipe, run, device="cpu", log=lambda line: None)
    model = timm.create_model(f"local-dir:{run / 'last'}", pretrained=True).eval()

# %%
# Attack it
# ---------
# The test digits were not used for training. ``NormalizedModel`` takes images in [0, 1], so the radius of the attack, the
# largest change of a pixel, is in the same units.

EPS, STEPS = 0.1, 10
digits = Digits("test", seed=recipe.data.seed)
pairs = [digits[i] for i in range(len(digits))]
images, labels = torch.stack([to_tensor(image) for image, _ in pairs]), torch.tensor([label for _, label in pairs])

classifier = NormalizedModel(model).eval()
attacked = PGD(EPS, steps=STEPS)(classifier, images, labels).adversarial
with torch.no_grad():
    clean_predictions, predictions = classifier(images).argmax(1), classifier(attacked).argmax(1)
right = clean_predictions == labels
fooled = right & (predictions != labels)
print(f"clean accuracy {100 * right.double().mean():.1f} % of {len(labels)} digits")
print(f"accuracy under PGD, radius {EPS}, {STEPS} steps: {100 * (right & ~fooled).double().mean():.1f} %")

# %%
# These are the first digits that PGD fools. The titles above clean digits are labels. The titles above attacked digits are
# predictions. Differences are drawn from black (minus the radius) to white (plus the radius).

some = fooled.nonzero()[:6, 0]
fig, axes = plt.subplots(3, len(some), figsize=(7.4, 4), layout="constrained")
drawn = {"PGD": attacked[some]}
draw_adversarial(images[some], drawn, labels[some].tolist(), {"PGD": predictions[some].tolist()}, EPS, axes=axes)
plt.show()

# %%
# Compare filter rows
# -------------------
# ``attention_weights`` returns the filter A of each layer, ``[images, heads, tokens, tokens]``. The distance of two rows is
# the share of the weight that moves to other tokens, ``sum_j |a_j - b_j| / 2``. The figure shows the last layer for the first
# fooled digit: the row that changes most, for each head. The grid has 4 x 4 patches. The cross marks the output patch.

with torch.no_grad():
    clean_filters = model.attention_weights(classifier.normalize(images))
    attacked_filters = model.attention_weights(classifier.normalize(attacked))


def moved(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the share of the weight that moves, per row."""
    return (a - b).abs().sum(-1) / 2


layer, i = max(clean_filters), int(some[0])
before, after = clean_filters[layer][i], attacked_filters[layer][i]
patch = int(moved(before, after).mean(0).argmax())
heads, side = before.shape[0], model.patch_embed.grid_size[0]
top = max(before[:, patch].max(), after[:, patch].max()).item()
fig, axes = plt.subplots(3, 1 + heads, figsize=(7.4, 4.6), layout="constrained")
for row, shown, filters in ((axes[0], images[i], before), (axes[1], attacked[i], after)):
    row[0].imshow(shown[0], cmap="gray", vmin=0, vmax=1, extent=(-0.5, side - 0.5, side - 0.5, -0.5))
    for ax, weights in zip(row[1:], filters[:, patch]):
        ax.imshow(weights.reshape(side, side), cmap="inferno", vmin=0, vmax=top)
for ax, change in zip(axes[2, 1:], (after - before)[:, patch]):
    ax.imshow(change.reshape(side, side), cmap="RdBu_r", vmin=-top / 2, vmax=top / 2)
for ax in axes.flat:
    ax.plot(patch % side, patch // side, "c+", markersize=8)
    ax.set(xticks=[], yticks=[])
axes[2, 0].remove()
axes[2, 1].set_ylabel("change")
for ax, label in zip(axes[:2, 0], (f"clean: {labels[i]}", f"PGD: {predictions[i]}")):
    ax.set_ylabel(label)
for head, ax in enumerate(axes[0, 1:]):
    ax.set_title(f"head {head}: {100 * moved(before, after)[head, patch]:.0f} % moves", fontsize="small")
plt.show()

# %%
# Is that more than chance?
# -------------------------
# For comparison, we change each pixel at random by plus or minus the radius. Bars are the mean over all heads, all rows and the
# digits that PGD fools. Lines show the standard deviation over these digits.

signs = torch.randint(2, images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
noisy = (images + EPS * signs).clamp(0, 1)
with torch.no_grad():
    noisy_filters = model.attention_weights(classifier.normalize(noisy))
    changed = (classifier(noisy).argmax(1) != labels)[right].double().mean().item()
fig, ax = plt.subplots(figsize=(4.6, 3), layout="constrained")
for offset, (name, filters) in zip((-0.2, 0.2), {"PGD": attacked_filters, "random signs": noisy_filters}.items()):
    shares = [100 * moved(clean_filters[k], filters[k])[fooled].mean(dim=(1, 2)) for k in clean_filters]
    means, deviations = [s.mean().item() for s in shares], [s.std().item() for s in shares]
    ax.bar([k + offset for k in clean_filters], means, 0.4, yerr=deviations, capsize=3, label=name)
    print(f"{name:14}" + ", ".join(f"layer {k}: {mean:.1f} % of the weight moves" for k, mean in enumerate(means)))
ax.set(xlabel="layer", ylabel="weight that moves / %", xticks=list(clean_filters))
ax.legend(fontsize="small")
plt.show()
print(f"PGD fools {100 * fooled.double().sum() / right.sum():.1f} % of the digits, random signs {100 * changed:.1f} %")

# %%
# Compare the bars with the last printed line. Random signs move about as much weight as PGD, but fool few digits. So you cannot
# tell an attack from noise by how much the filter changes. An attack also changes the values that the filter averages. This
# result is from one seed of a small model with a short training.
#
# To see more, change the name of the model in ``variant``, or the radius ``EPS``.
