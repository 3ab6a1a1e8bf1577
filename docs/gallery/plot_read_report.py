"""
Read the results of an attack
=============================

Every evaluation writes a folder of results. This script trains two models briefly, attacks both models, and reads the result
files. It computes each accuracy again from ``per_sample.csv``. Then it compares the two models on the same images.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import binomtest, norm

from imgproc_attn.evaluation import benchmark
from imgproc_attn.recipe import find_recipe, load_recipe, run_dataset
from imgproc_attn.training import train

temporary = tempfile.TemporaryDirectory()
runs = Path(temporary.name)

# %%
# Two models
# ----------
# The recipe ``quickstart`` trains on scikit-learn's digits. This script trains two of its models for only 6 epochs: a plain
# ViT, and a ViT with untied positions and twicing (see :doc:`/start/quickstart`).

changes = ["schedule.epochs=6", "schedule.warmup_epochs=1", "run.batch_size=64", "optimizer.lr=4e-3", "model.embed_dim=48"]
for name, variant in {"plain": "plain", "filter": "untied + twicing"}.items():
    recipe = load_recipe(find_recipe("quickstart"), changes).variant(variant, seed=0)
    final = train(recipe, runs / name, device="cpu", log=lambda line: None)
    print(f"{name}: {final['parameters']:,} parameters, accuracy {final['test']['accuracy']:.1f} %")

# %%
# Attack them
# -----------
# The first model is attacked on the command line. The command finds the test images through the folder of the run:

command = f"attack {runs}/plain --attacks pgd --eps 0.1 --checks 8 --workers 0 --output {runs}/plain-pgd"
print("imgproc-attn", command.replace(str(runs), "runs"))
_ = subprocess.run([sys.executable, "-m", "imgproc_attn", *command.split()], check=True, capture_output=True)

# %%
# The second model is attacked from Python, in the same way. ``output`` names the folder of the results.
# :func:`~imgproc_attn.recipe.run_dataset` returns the images that the run held out.

test_images = run_dataset(f"{runs}/filter")
options = {"eps": 0.1, "attack": "pgd", "num_checked": 8, "workers": 0, "verbose": False}
scores = benchmark(f"{runs}/filter", test_images, output=runs / "filter-pgd", **options)
print(f"{scores.attack}: {scores.robust_accuracy:.1f} %")
print(*sorted(file.name for file in (runs / "filter-pgd").iterdir()), sep="\n")

# %%
# ``result.md`` is a table that is easy to read.

print((runs / "plain-pgd" / "result.md").read_text())

# %%
# result.json and per_sample.csv
# ------------------------------
# A condition is "clean" or one attack. ``result.json`` holds the accuracy of each condition, and all that it depends on:
# hashes of weights and images, seeds, settings of the attack and versions. ``per_sample.csv`` has one row per image and one
# column per condition: 1 for correct, 0 for wrong. Under attack, an image counts as correct if the model is correct on the
# clean image and the attack fails.

results, correct = {}, {}
for name in ("plain", "filter"):
    folder = runs / f"{name}-pgd"
    results[name] = json.loads((folder / "result.json").read_text())
    with (folder / "per_sample.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    correct[name] = {c["name"]: {row["image"]: float(row[c["name"]]) for row in rows} for c in results[name]["conditions"]}
print("first row:", rows[0])
condition = results["plain"]["conditions"][1]
print("attack:", {key: condition[key] for key in ("name", "eps", "norm", "space", "n")})

# %%
# We compute the accuracy and its 95 % interval again from ``per_sample.csv``. For k correct images of n, Wilson's interval
# holds all accuracies p with :math:`|p - k/n| \leq z \sqrt{p (1 - p) / n}`. SciPy gives the same interval.

z = norm.ppf(0.975)
for name, result in results.items():
    for condition in result["conditions"]:
        flags = np.array(list(correct[name][condition["name"]].values()))
        k, n = int(flags.sum()), len(flags)
        center, half = (k + z**2 / 2) / (n + z**2), z * np.sqrt(k * (n - k) / n + z**2 / 4) / (n + z**2)
        by_scipy = binomtest(k, n).proportion_ci(method="wilson")
        np.testing.assert_allclose(100 * k / n, condition["accuracy"])
        np.testing.assert_allclose([100 * (center - half), 100 * (center + half)], condition["intervals"]["accuracy"])
        np.testing.assert_allclose([center - half, center + half], [by_scipy.low, by_scipy.high])
        print(
            f"{name:6} {condition['name']:17} {k:3} of {n} = {100 * k / n:.1f} %, "
            f"{100 * (center - half):.1f} to {100 * (center + half):.1f} %, as in result.json"
        )

# %%
# Compare two models on the same images
# -------------------------------------
# Both models were tested on the same images, so we can compare them image by image. Only images on which one model is correct
# and the other is wrong count for the difference. If the models tend to fail on the same images, an interval that ignores the
# pairs is wider than necessary.

attack = results["plain"]["conditions"][1]["name"]
names = sorted(correct["plain"][attack])
assert names == sorted(correct["filter"][attack])
plain, filtered = (np.array([correct[model][attack][image] for image in names]) for model in ("plain", "filter"))
table = np.array([[np.sum((filtered == i) & (plain == j)) for j in (1, 0)] for i in (1, 0)])
only_filter, only_plain, n = table[0, 1], table[1, 0], table.sum()

difference = (only_filter - only_plain) / n
paired = z * np.sqrt((only_filter + only_plain) / n - difference**2) / np.sqrt(n)
unpaired = z * np.sqrt((plain.var() + filtered.var()) / n)
print(f"difference {100 * difference:+.1f} points, 95 % interval +- {100 * paired:.1f} by pairs")
print(f"+- {100 * unpaired:.1f} if you ignore the pairs")
p_value = binomtest(int(only_filter), int(only_filter + only_plain)).pvalue
print(f"exact McNemar test: {only_filter} against {only_plain} images, p = {p_value:.1e}")

fig, axes = plt.subplots(1, 2, figsize=(7.5, 3), layout="constrained")
for offset, (name, result) in zip((-0.1, 0.1), results.items()):
    for x, condition in enumerate(result["conditions"]):
        low, high = condition["intervals"]["accuracy"]
        axes[0].plot([x + offset] * 2, [low, high], color=f"C{int(offset > 0)}", linewidth=2)
        axes[0].plot(x + offset, condition["accuracy"], "o", color=f"C{int(offset > 0)}", label=name if x == 0 else None)
axes[0].set_xticks([0, 1], ["clean", attack])
axes[0].set(xlim=(-0.5, 1.5), ylim=(0, 100), ylabel="accuracy / %", title="95 % intervals of each model")
axes[0].grid(alpha=0.3)
axes[0].legend()
axes[1].imshow(table, cmap="Blues", vmin=0, vmax=1.5 * table.max())
for (i, j), count in np.ndenumerate(table):
    axes[1].text(j, i, str(count), ha="center", va="center")
axes[1].set_xticks([0, 1], ["plain robust", "plain fooled"])
axes[1].set_yticks([0, 1], ["filter robust", "filter fooled"])
_ = axes[1].set_title("number of images")

# %%
# This difference compares two trained models, with one training seed each, and the plain ViT would need more epochs. It says
# which of these two models withstands this attack more often, not which architecture is better. To compare architectures,
# train several seeds with ``imgproc-attn compare``, which compares the models seed by seed. The command ``imgproc-attn
# report`` puts the results of several folders on one page, with paired differences and Newcombe's interval.

temporary.cleanup()

# %%
# To see more, change ``--eps`` or the attack, or read the folders of your own evaluations.
