"""Draw ``docs/_static/results.png`` from the result files beside this script.

    python docs/results/draw.py                                     # draw
    python docs/results/draw.py runs/quickstart/results.json        # take the digits' values of a new quickstart, then draw

``digits.csv`` holds one row per model, seed and condition of ``imgproc-attn quickstart``. ``cifar10.csv`` holds mean and
standard deviation over three seeds of ``imgproc-attn compare cifar10/comparison_12k``, as in docs/guides/results.md.
"""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imgproc_attn.diagnostics import draw_curves

FOLDER = Path(__file__).parent
OUTPUT = FOLDER.parent / "_static" / "results.png"
DIGITS, CIFAR10 = FOLDER / "digits.csv", FOLDER / "cifar10.csv"
NOISE = "noise 0.2"

Values = dict[str, dict[str, list[float]]]


def take(results: Path) -> None:
    """Write the accuracies of a comparison's ``results.json`` to ``digits.csv``."""
    runs = json.loads(results.read_text(encoding="utf-8"))["results"]
    rows = [(r["label"], r["seed"], name, f"{value:.4f}") for r in runs for name, value in r["metrics"]["accuracy"].items()]
    with DIGITS.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("model", "seed", "condition", "accuracy"), *rows])


def digits() -> Values:
    """Return ``{condition: {model: [accuracy per seed]}}``."""
    values: Values = {}
    with DIGITS.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values.setdefault(row["condition"], {}).setdefault(row["model"], []).append(float(row["accuracy"]))
    return values


def draw_pgd(values: Values, ax: Axes) -> None:
    """Draw accuracy under PGD-10 against eps, with one band per model."""
    names = {float(match[1]): name for name in values if (match := re.fullmatch(r"PGD-10 ([\d.]+)", name))}
    curves = {model: {eps: values[name][model] for eps, name in {0.0: "clean", **names}.items()} for model in values["clean"]}
    draw_curves({"digits, PGD-10": curves}, {"digits, PGD-10": "eps (images in [0, 1])"}, "top-1 / %", axes=[ax])


def draw_noise(values: Values, ax: Axes) -> None:
    """Draw accuracy under noise against clean accuracy, with one cross per model."""
    for model in values["clean"]:
        x, y = np.array(values["clean"][model]), np.array(values[NOISE][model])
        ax.errorbar(x.mean(), y.mean(), y.std(ddof=1), x.std(ddof=1), marker="o", markersize=4, capsize=2, label=model)
    ax.set(title=f"digits, {NOISE}", xlabel="clean top-1 / %", ylabel=f"top-1 under {NOISE} / %")
    ax.grid(alpha=0.3)


def draw_cifar10(ax: Axes) -> None:
    """Draw four tests as groups of bars, one bar per model."""
    with CIFAR10.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    models, tests = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "condition"))
    width = 0.8 / len(models)
    for i, model in enumerate(models):
        own = [row for row in rows if row["model"] == model]
        x = np.arange(len(tests)) + (i - (len(models) - 1) / 2) * width
        ax.bar(x, [float(r["mean"]) for r in own], width, yerr=[float(r["std"]) for r in own], capsize=2, label=model)
    ax.set_xticks(range(len(tests)), [test.replace(" ", "\n", 1) for test in tests])
    ax.set(title="CIFAR-10, 12,000 images", ylabel="top-1 / %")
    ax.grid(alpha=0.3, axis="y")


def main(arguments: list[str]) -> None:
    """Draw the figure, with new values if a file is given."""
    if arguments:
        take(Path(arguments[0]))
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    values = digits()
    draw_pgd(values, left)
    draw_noise(values, middle)
    draw_cifar10(right)
    figure.savefig(OUTPUT, dpi=90)


if __name__ == "__main__":
    main(sys.argv[1:])
