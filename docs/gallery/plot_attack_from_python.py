"""
Attack a model from Python
==========================

``evaluate`` measures accuracy under attacks and corruptions of your choice. ``benchmark`` measures the
accuracy under one strong attack, and runs sanity checks. The last part shows a model that looks robust only because its
gradients are masked, and what the checks report about this model.
"""

import textwrap

import matplotlib.pyplot as plt
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.optim import create_optimizer_v2
from torch import nn

import imgproc_attn  # noqa: F401  # registers the models
from imgproc_attn.evaluation import FGSM, PGD, GaussianNoise, NormalizedModel, Square, benchmark, evaluate, sanity_checks

_ = torch.manual_seed(0)

# %%
# A model of digits
# -----------------
# The model is trained for some seconds on scikit-learn's digits of 8 x 8 pixels. Attacks change images in [0, 1]. So the model
# must normalize the images itself. :class:`~imgproc_attn.evaluation.NormalizedModel` adds the normalization.

digits = load_digits()
train_x, test_x, train_y, test_y = train_test_split(
    torch.from_numpy(digits.images).float()[:, None] / 16,
    torch.from_numpy(digits.target),
    test_size=360,
    stratify=digits.target,
    random_state=0,
)
backbone = timm.create_model(
    "bilateral_untied_vit_tiny",
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
model = NormalizedModel(backbone, mean=[0.5], std=[0.5])
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
for _ in range(8):
    for batch in torch.randperm(len(train_x)).split(64):
        loss = nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
_ = model.eval()

# %%
# Attacks and corruptions of your choice
# --------------------------------------
# A condition is one attack or one corruption. The result records for each image and condition whether the model is correct. All
# accuracies are computed from these records.

images, labels = test_x[:128], test_y[:128]
radii = [0.05, 0.1, 0.15, 0.2]
attacks = {f"FGSM {eps}": FGSM(eps) for eps in radii} | {f"PGD {eps}": PGD(eps, steps=10) for eps in radii}
result = evaluate(model, images, labels, attacks, corruptions={"noise 0.2": GaussianNoise(0.2)})
print(f"clean {result.accuracy('clean'):.1f} %, noise {result.accuracy('noise 0.2'):.1f} %")
print(f"largest perturbation of PGD at eps = 0.1: {result.largest_perturbation['PGD 0.1']:.3f}")
both = result.correct["FGSM 0.1"] & ~result.correct["PGD 0.1"]
print(f"{both.sum()} images withstand FGSM but not PGD at eps = 0.1")

fig, ax = plt.subplots(figsize=(4.6, 3), layout="constrained")
for name in ("FGSM", "PGD"):
    accuracies = [result.accuracy("clean"), *(result.accuracy(f"{name} {eps}") for eps in radii)]
    ax.plot([0, *radii], accuracies, marker="o", label=name)
ax.set(title=f"{len(images)} test digits", xlabel="eps (images in [0, 1])", ylabel="accuracy / %", ylim=(0, 100))
ax.grid(alpha=0.3)
_ = ax.legend()

# %%
# One attack, with sanity checks
# ------------------------------
# :func:`~imgproc_attn.evaluation.benchmark` returns clean and robust accuracy with 95 % intervals. Its default attack is an
# ensemble of APGD-CE, targeted APGD and Square. To be fast, this example uses only APGD-CE, and the sanity checks use only
# 24 images.

scores = benchmark(model, (images[:64], labels[:64]), eps=0.1, attack="apgd-ce", num_checked=24, verbose=False)
for line in str(scores).splitlines():
    print(textwrap.fill(line, 88))

# %%
# The results per image tell which images were fooled. This is the result of the first image.

print(scores.per_sample[0])

# %%
# A model with masked gradients
# -----------------------------
# This model rounds its input to 8 gray levels. On clean images, it is almost as accurate as the model without rounding. The
# gradient of rounding is zero, so attacks that follow the gradient cannot move, and the model looks robust.


class Rounded(nn.Module):
    """Model that rounds the images to a number of gray levels first."""

    def __init__(self, model, levels=8):
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, images):
        return self.model((images * (self.levels - 1)).round() / (self.levels - 1))


rounded = Rounded(model).eval()
few, few_labels = images[:24], labels[:24]
attacks = {"PGD": PGD(0.15, steps=10), "Square": Square(0.15, queries=300)}
for name, victim in {"model": model, "rounded": rounded}.items():
    accuracies = evaluate(victim, few, few_labels, attacks).accuracies
    print(f"{name:8}", ", ".join(f"{condition} {value:.1f} %" for condition, value in accuracies.items()))

# %%
# PGD fools no image of the rounded model. Square, which uses no gradient, still fools some images. This is a sign of masked
# gradients: an attack that uses gradients should not be weaker than one that does not. The sanity checks look for such signs.
# Each sign that they detect is a finding, with a name, an observation and a remedy.

report = sanity_checks(rounded, few, few_labels, threat=0.15)
for finding in report.findings:
    print(textwrap.fill(str(finding), 88), end="\n\n")

# %%
# An attack that fits the model
# -----------------------------
# The remedy for this model is an adaptive attack. It computes the logits with rounding, but computes the gradient as if there
# were no rounding. The accuracy under this attack is low again. Report this accuracy, not that under plain PGD.


class StraightThroughRounding(nn.Module):
    """The same logits as the rounded model, with the gradient of the model without rounding."""

    def __init__(self, rounded):
        super().__init__()
        self.rounded = rounded

    def forward(self, images):
        through = self.rounded.model(images)
        return through + (self.rounded(images) - through).detach()


adaptive = StraightThroughRounding(rounded).eval()
print(f"adaptive PGD: {evaluate(adaptive, few, few_labels, {'PGD': attacks['PGD']}).accuracy('PGD'):.1f} %")

# %%
# To see more, change ``levels`` and the radius, or give your own model and images to
# :func:`~imgproc_attn.evaluation.benchmark`.
