"""Pictures of runs and models. Each function returns a matplotlib figure; nothing is shown or saved here."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..models import FilterVisionTransformer


def _picture(image: Tensor) -> np.ndarray:
    """``[C, H, W]`` in [0, 1] as matplotlib takes it."""
    array = rearrange(image.detach().cpu().numpy(), "c h w -> h w c")
    return array[..., 0] if array.shape[2] == 1 else array


def draw_curves(
    curves: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]], units: Mapping[str, str], label: str = "accuracy / %"
) -> Figure:
    """A metric against strength, a panel a disturbance.

    Args:
        curves: ``{disturbance: {model: {strength: values in percent, one a seed}}}``; lines are means, bands the range.
        units: ``{disturbance: what stands on the horizontal axis}``.
        label: Label of the vertical axis.
    """
    figure = Figure(figsize=(4 * len(curves), 3.4), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    labels = dict.fromkeys(model for models in curves.values() for model in models)
    colors = {model: f"C{i}" for i, model in enumerate(labels)}  # the same in every panel, whoever is missing there
    for ax, (disturbance, models) in zip(axes, curves.items()):
        for model, by_strength in models.items():
            strengths = sorted(by_strength)
            values = np.array([by_strength[s] for s in strengths])
            ax.plot(strengths, values.mean(axis=1), marker="o", markersize=3, label=model, color=colors[model])
            ax.fill_between(strengths, values.min(axis=1), values.max(axis=1), color=colors[model], alpha=0.15)
        ax.set(title=disturbance, xlabel=units[disturbance], ylim=(0, 100))
        ax.xaxis.set_major_locator(MaxNLocator(4))  # radii such as 4/255 have long labels
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    axes[0].set_ylabel(label)
    return figure


def draw_learning(losses: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Training loss by epoch: ``{model: one sequence a seed}``."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.subplots()
    for model, runs in losses.items():
        mean = np.mean(np.array(runs), axis=0)
        ax.plot(range(1, len(mean) + 1), mean, label=model)
    ax.set(xlabel="epoch", ylabel="training loss", yscale="log")
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize="small")
    return figure


def draw_run(records: Sequence[Mapping[str, float]], titles: Mapping[str, str] | None = None) -> Figure:
    """Draw loss, validation metrics and learning rate of one run by epoch.

    Args:
        records: Records of the epochs.
        titles: ``{key: title}`` of the metrics, which are ``validation_KEY`` in the records.
    """
    epochs = [record["epoch"] + 1 for record in records]
    panels = [
        ("loss", [("train_loss", "training"), ("validation_loss", "validation")]),
        ("validation", [(f"validation_{key}", title) for key, title in (titles or {}).items()]),
        ("learning rate", [("lr", "largest")]),
    ]
    drawn = [(label, [(k, n) for k, n in curves if k in records[0]]) for label, curves in panels]
    drawn = [(label, curves) for label, curves in drawn if curves]
    figure = Figure(figsize=(4 * len(drawn), 3.2), layout="constrained")
    for ax, (label, curves) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn):
        for key, name in curves:
            ax.plot(epochs, [record[key] for record in records], marker="o", markersize=2, label=name)
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    return figure


def draw_adversarial(
    images: Tensor,
    adversarial: Mapping[str, Tensor],
    labels: Sequence[int | str],
    predictions: Mapping[str, Sequence[int | str]],
    eps: float,
) -> Figure:
    """A column an image: clean, then for each model the adversarial image and what was added, eps black to white.

    Args:
        images: ``[n, C, H, W]`` in [0, 1].
        adversarial: ``{model: [n, C, H, W]}``.
        labels: True classes.
        predictions: ``{model: predicted classes}`` of the adversarial images.
        eps: Radius of the attack.
    """
    n, rows = len(images), 1 + 2 * len(adversarial)
    figure = Figure(figsize=(1.2 * n + 1.6, 1.3 * rows), layout="constrained")
    axes = figure.subplots(rows, n, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for j in range(n):
        axes[0, j].imshow(_picture(images[j]), cmap="gray", vmin=0, vmax=1)
        axes[0, j].set_title(f"{labels[j]}", fontsize="small")
        for i, (model, found) in enumerate(adversarial.items()):
            axes[1 + 2 * i, j].imshow(_picture(found[j]), cmap="gray", vmin=0, vmax=1)
            axes[1 + 2 * i, j].set_title(f"→ {predictions[model][j]}", fontsize="small")
            difference = (found[j] - images[j]) / (2 * max(eps, 1e-12)) + 0.5
            axes[2 + 2 * i, j].imshow(_picture(difference.clamp(0, 1)), cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set_ylabel("clean")
    for i, model in enumerate(adversarial):
        axes[1 + 2 * i, 0].set_ylabel(model.replace(" + ", "\n+ "), fontsize="small")
        axes[2 + 2 * i, 0].set_ylabel("difference", fontsize="small")
    return figure


def draw_heat_map(found: Mapping[str, Mapping[int, float]], title: str, label: str = "accuracy / %") -> Figure:
    """A metric in percent by corruption (rows) and severity (columns), ``{corruption: {severity: percent}}``."""
    severities = sorted({severity for row in found.values() for severity in row})
    values = np.array([[row.get(severity, np.nan) for severity in severities] for row in found.values()])
    figure = Figure(figsize=(1.5 + 0.7 * len(severities) + 1.5, 1.2 + 0.3 * len(found)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    ax.set_xticks(range(len(severities)), [str(severity) for severity in severities])
    ax.set_yticks(range(len(found)), list(found))
    ax.set(xlabel="severity", title=title)
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize="small", color="black" if value > 60 else "white")
    figure.colorbar(image, label=label)
    return figure


def draw_grid(pictures: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Pictures ``{row: {column: [C, H, W] in [0, 1]}}`` in a grid; the first row's columns are everybody's."""
    rows, columns = list(pictures), list(next(iter(pictures.values())))
    figure = Figure(figsize=(1.3 * len(columns) + 1.4, 1.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            axes[i, j].set(xticks=[], yticks=[])
            axes[i, j].imshow(_picture(pictures[row][column]), cmap="gray", vmin=0, vmax=1)
            if i == 0:
                axes[i, j].set_title(column, fontsize="small")
        axes[i, 0].set_ylabel(row.replace("_", "\n"), fontsize="small")
    return figure


def draw_bandwidths(by_model: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """Bandwidths by layer, a dot a head: ``{model: {name: {layer: heads}}}``, a panel for each model and name."""
    panels = [(model, name, layers) for model, names in by_model.items() for name, layers in names.items()]
    figure = Figure(figsize=(3.6 * max(len(panels), 1), 3.2), layout="constrained")
    for ax, (model, name, layers) in zip(figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels):
        where = [int(layer) for layer in layers]
        by_head = np.array(list(layers.values())).T
        for head, values in enumerate(by_head):
            ax.plot(where, values, marker="o", markersize=4, label=f"head {head}")
        ax.set(title=f"{model}\n{name}", xlabel="layer", xticks=where, yscale="log")
        ax.grid(alpha=0.3, which="both")
        if len(by_head) <= 6:
            ax.legend(fontsize="x-small")
    return figure


@torch.no_grad()
def draw_kernel_rows(
    model: FilterVisionTransformer, image: Tensor, normalized: Tensor, layer: int, patches: Sequence[tuple[int, int]]
) -> Figure:
    """Rows of a layer's filter over an image: for each patch asked for, what each head averages.

    Args:
        model: In eval mode.
        image: ``[C, H, W]`` in [0, 1], to look at.
        normalized: The same, as the model takes it.
        layer: Block index.
        patches: (row, column) of the patches whose filter rows are drawn; they are marked.

    Raises:
        ValueError: A patch outside the grid.
    """
    (weights,) = model.attention_weights(normalized[None], [layer]).values()
    weights = weights[0]
    height, width = model.patch_embed.dynamic_feat_size(image.shape[-2:])
    for y, x in patches:
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(f"Patch ({y}, {x}) lies outside the grid of {height} x {width}; give rows and columns from 0.")
    prefix = model.num_prefix_tokens
    heads = weights.shape[0]
    figure = Figure(figsize=(1.5 * (heads + 1), 1.6 * len(patches) + 0.3), layout="constrained")
    axes = figure.subplots(len(patches), heads + 1, squeeze=False)
    extent = (0, image.shape[-1], image.shape[-2], 0)
    for row, (y, x) in zip(axes, patches):
        rows = rearrange(weights[:, prefix + y * width + x, prefix:], "h (y x) -> h y x", y=height).cpu().numpy()
        for ax in row:
            ax.imshow(_picture(image), cmap="gray", vmin=0, vmax=1, extent=extent)
            ax.plot((x + 0.5) * image.shape[-1] / width, (y + 0.5) * image.shape[-2] / height, "c+", markersize=9)
            ax.set(xticks=[], yticks=[])
        for ax, kernel in zip(row[1:], rows):
            ax.imshow(kernel, cmap="inferno", alpha=0.75, extent=extent, vmin=0)
    for head in range(heads):
        axes[0, head + 1].set_title(f"head {head}", fontsize="small")
    return figure
