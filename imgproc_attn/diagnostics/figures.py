"""Figures of runs and models. Each function returns a matplotlib figure, and does not show or save it."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..models import FilterVisionTransformer

__all__ = [
    "draw_adversarial",
    "draw_bandwidths",
    "draw_curves",
    "draw_grid",
    "draw_heat_map",
    "draw_kernel_rows",
    "draw_learning",
    "draw_run",
]


def _array(image: Tensor) -> np.ndarray:
    """Return an image ``[C, H, W]`` in [0, 1] as an array for matplotlib: ``[H, W, C]``, or ``[H, W]`` for gray."""
    array = rearrange(image.detach().cpu().numpy(), "c h w -> h w c")
    return array[..., 0] if array.shape[2] == 1 else array


def draw_curves(
    curves: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]], units: Mapping[str, str], label: str = "accuracy / %"
) -> Figure:
    """Draw a metric against the strength of attacks or corruptions, with one panel for each.

    Args:
        curves: ``{name: {model: {strength: [value per seed in percent]}}}``, with the name of the attack or corruption. Lines
            show the mean over seeds, bands show the range.
        units: ``{name: label of the horizontal axis}``.
        label: Label of the metric, with its unit.

    Example:
        >>> curves = {"PGD": {"plain": {0.0: [97.0, 98.0], 0.1: [40.0, 44.0]}}}
        >>> figure = draw_curves(curves, units={"PGD": "eps"})
        >>> len(figure.axes)
        1
    """
    figure = Figure(figsize=(4 * len(curves), 3.4), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    labels = dict.fromkeys(model for models in curves.values() for model in models)
    colors = {model: f"C{i}" for i, model in enumerate(labels)}  # A model has the same color in every panel.
    for ax, (disturbance, models) in zip(axes, curves.items()):
        for model, by_strength in models.items():
            strengths = sorted(by_strength)
            values = np.array([by_strength[s] for s in strengths])
            ax.plot(strengths, values.mean(axis=1), marker="o", markersize=3, label=model, color=colors[model])
            ax.fill_between(strengths, values.min(axis=1), values.max(axis=1), color=colors[model], alpha=0.15)
        ax.set(title=disturbance, xlabel=units[disturbance], ylim=(0, 100))
        ax.xaxis.set_major_locator(MaxNLocator(4))  # Long labels, such as 0.0157, would overlap.
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    axes[0].set_ylabel(label)
    return figure


def draw_learning(losses: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Draw the training loss per epoch, as the mean over seeds.

    Args:
        losses: ``{model: [loss per epoch of each seed]}``.

    Example:
        >>> figure = draw_learning({"plain": [[2.0, 1.0], [2.2, 1.1]]})
        >>> figure.axes[0].get_ylabel()
        'training loss'
    """
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
    """Draw the loss, validation metrics and learning rate of one run against the epoch.

    Args:
        records: One record per epoch, as in the file ``metrics.jsonl`` of a run.
        titles: ``{key: label}`` of the validation metrics. Records hold them as ``validation_<key>``. Default: no metrics.
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
    """Draw clean and adversarial images, with one column per image.

    The first row shows the clean images. Two rows per model follow: the adversarial images and the perturbations, with black
    for ``-eps`` and white for ``eps``.

    Args:
        images: Clean images ``[n, C, H, W]`` in [0, 1].
        adversarial: ``{model: adversarial images [n, C, H, W]}``.
        labels: True classes of the images.
        predictions: ``{model: predicted classes of the adversarial images}``.
        eps: Radius of the attack, in units of [0, 1].
    """
    n, rows = len(images), 1 + 2 * len(adversarial)
    figure = Figure(figsize=(1.2 * n + 1.6, 1.3 * rows), layout="constrained")
    axes = figure.subplots(rows, n, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for j in range(n):
        axes[0, j].imshow(_array(images[j]), cmap="gray", vmin=0, vmax=1)
        axes[0, j].set_title(f"{labels[j]}", fontsize="small")
        for i, (model, attacked) in enumerate(adversarial.items()):
            axes[1 + 2 * i, j].imshow(_array(attacked[j]), cmap="gray", vmin=0, vmax=1)
            axes[1 + 2 * i, j].set_title(f"→ {predictions[model][j]}", fontsize="small")
            difference = (attacked[j] - images[j]) / (2 * max(eps, 1e-12)) + 0.5
            axes[2 + 2 * i, j].imshow(_array(difference.clamp(0, 1)), cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set_ylabel("clean")
    for i, model in enumerate(adversarial):
        axes[1 + 2 * i, 0].set_ylabel(model.replace(" + ", "\n+ "), fontsize="small")
        axes[2 + 2 * i, 0].set_ylabel("difference", fontsize="small")
    return figure


def draw_heat_map(values: Mapping[str, Mapping[int, float]], title: str, label: str = "accuracy / %") -> Figure:
    """Draw a metric per corruption (rows) and severity (columns).

    Args:
        values: ``{corruption: {severity: value in percent}}``. Severities may be missing.
        title: Title of the figure.
        label: Label of the metric, with its unit.

    Example:
        >>> figure = draw_heat_map({"fog": {1: 80.0, 3: 60.0}}, title="nlm_vit_tiny")
        >>> figure.axes[0].get_xlabel()
        'severity'
    """
    severities = sorted({severity for row in values.values() for severity in row})
    table = np.array([[row.get(severity, np.nan) for severity in severities] for row in values.values()])
    figure = Figure(figsize=(1.5 + 0.7 * len(severities) + 1.5, 1.2 + 0.3 * len(values)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(table, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    ax.set_xticks(range(len(severities)), [str(severity) for severity in severities])
    ax.set_yticks(range(len(values)), list(values))
    ax.set(xlabel="severity", title=title)
    for (i, j), value in np.ndenumerate(table):
        if not np.isnan(value):
            ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize="small", color="black" if value > 60 else "white")
    figure.colorbar(image, label=label)
    return figure


def draw_grid(images: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Draw images in a labeled grid.

    Args:
        images: ``{row: {column: image [C, H, W] in [0, 1]}}``. All rows have the columns of the first row.

    Example:
        >>> figure = draw_grid({"fog": {"clean": torch.rand(3, 8, 8), "severity 3": torch.rand(3, 8, 8)}})
        >>> len(figure.axes)
        2
    """
    rows, columns = list(images), list(next(iter(images.values())))
    figure = Figure(figsize=(1.3 * len(columns) + 1.4, 1.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            axes[i, j].set(xticks=[], yticks=[])
            axes[i, j].imshow(_array(images[row][column]), cmap="gray", vmin=0, vmax=1)
            if i == 0:
                axes[i, j].set_title(column, fontsize="small")
        axes[i, 0].set_ylabel(row.replace("_", "\n"), fontsize="small")
    return figure


def draw_bandwidths(by_model: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """Draw bandwidths per layer, with one line per head and one panel per model and bandwidth.

    Args:
        by_model: ``{model: {name: {layer: [value per head]}}}``, see `bandwidths`.

    Example:
        >>> figure = draw_bandwidths({"nlm": {"range_bandwidth": {"0": [2.8, 2.9], "1": [2.5, 2.7]}}})
        >>> figure.axes[0].get_xlabel()
        'layer'
    """
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
    """Draw filter rows of a layer over an image: the weights of all patches in the output of one patch, per head.

    Args:
        model: Model in eval mode.
        image: Image ``[C, H, W]`` in [0, 1], drawn in the background.
        normalized: The same image, normalized as the model expects.
        layer: Index of the block.
        patches: ``(row, column)`` of the patches whose filter rows are drawn. A cross marks the patch.

    Raises:
        ValueError: A patch is outside the grid.

    Example:
        >>> import timm
        >>> model = timm.create_model("nlm_vit_tiny", depth=1, img_size=32, patch_size=8).eval()
        >>> image = torch.rand(3, 32, 32)
        >>> figure = draw_kernel_rows(model, image, (image - 0.5) / 0.5, layer=0, patches=[(1, 2)])
        >>> len(figure.axes)  # the image and three heads
        4
    """
    (weights,) = model.attention_weights(normalized[None], [layer]).values()
    weights = weights[0]
    height, width = model.patch_embed.dynamic_feat_size(image.shape[-2:])
    for y, x in patches:
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(
                f"The patch must be inside the grid of {height} x {width}, got ({y}, {x}). Count rows and columns from 0."
            )
    prefix = model.num_prefix_tokens
    heads = weights.shape[0]
    figure = Figure(figsize=(1.5 * (heads + 1), 1.6 * len(patches) + 0.3), layout="constrained")
    axes = figure.subplots(len(patches), heads + 1, squeeze=False)
    extent = (0, image.shape[-1], image.shape[-2], 0)
    for row, (y, x) in zip(axes, patches):
        rows = rearrange(weights[:, prefix + y * width + x, prefix:], "h (y x) -> h y x", y=height).cpu().numpy()
        for ax in row:
            ax.imshow(_array(image), cmap="gray", vmin=0, vmax=1, extent=extent)
            ax.plot((x + 0.5) * image.shape[-1] / width, (y + 0.5) * image.shape[-2] / height, "c+", markersize=9)
            ax.set(xticks=[], yticks=[])
        for ax, kernel in zip(row[1:], rows):
            ax.imshow(kernel, cmap="inferno", alpha=0.75, extent=extent, vmin=0)
    for head in range(heads):
        axes[0, head + 1].set_title(f"head {head}", fontsize="small")
    return figure
