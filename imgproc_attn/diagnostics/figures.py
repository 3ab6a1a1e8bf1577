"""Figures of runs and models.

Each function draws into the axes that you pass, or into a new figure. It returns the figure and its axes. It neither shows nor
saves the figure, and pyplot does not know it. Save it with ``figure.savefig("file.png")``. A notebook shows it as the value of
a cell.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
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
    "panels",
]


def panels(rows: int, columns: int, size: tuple[float, float], axes: Any = None) -> tuple[Figure, np.ndarray]:
    """Return the figure and the axes ``[rows, columns]`` to draw in.

    Args:
        rows: Number of rows of panels.
        columns: Number of columns of panels.
        size: Width and height of a new figure in inches.
        axes: Axes to use, in an array or nested sequences. Default: those of a new figure, which pyplot does not know.

    Raises:
        ValueError: The number of axes is another one.

    Example:
        >>> figure, axes = panels(1, 3, size=(9, 3))
        >>> axes.shape
        (1, 3)
    """
    if axes is None:
        figure = Figure(figsize=size, layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)
    given = np.array(axes, dtype=object)
    if given.size != rows * columns:
        raise ValueError(
            f"axes must hold {rows} x {columns} axes, got {given.size}. Create them with figure.subplots({rows}, {columns})."
        )
    return given.flat[0].figure, given.reshape(rows, columns)


def _array(image: Tensor) -> np.ndarray:
    """Return an image ``[C, H, W]`` in [0, 1] as an array for matplotlib: ``[H, W, C]``, or ``[H, W]`` for gray."""
    array = rearrange(image.detach().cpu().numpy(), "c h w -> h w c")
    return array[..., 0] if array.shape[2] == 1 else array


def draw_curves(
    curves: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    units: Mapping[str, str],
    label: str = "accuracy / %",
    axes: Any = None,
) -> tuple[Figure, np.ndarray]:
    """Draw a metric against the strength of attacks or corruptions, with one panel for each.

    Args:
        curves: ``{name: {model: {strength: [value per seed]}}}``, with the name of the attack or corruption. Lines show the
            mean over seeds, bands show the range.
        units: ``{name: label of the horizontal axis}``.
        label: Label of the metric, with its unit. An axis in percent spans 0 to 100.
        axes: Axes to draw in, one per name. Default: axes of a new figure.

    Returns:
        Figure and axes ``[len(curves)]``.

    Example:
        >>> curves = {"PGD": {"plain": {0.0: [97.0, 98.0], 0.1: [40.0, 44.0]}}}
        >>> figure, axes = draw_curves(curves, units={"PGD": "eps"})
        >>> len(axes)
        1
    """
    figure, (row,) = panels(1, len(curves), (4 * len(curves), 3.4), axes)
    labels = dict.fromkeys(model for models in curves.values() for model in models)
    colors = {model: f"C{i}" for i, model in enumerate(labels)}  # A model has the same color in every panel.
    for ax, (disturbance, models) in zip(row, curves.items()):
        for model, by_strength in models.items():
            strengths = sorted(by_strength)
            values = np.array([by_strength[s] for s in strengths])
            ax.plot(strengths, values.mean(axis=1), marker="o", markersize=3, label=model, color=colors[model])
            ax.fill_between(strengths, values.min(axis=1), values.max(axis=1), color=colors[model], alpha=0.15)
        ax.set(title=disturbance, xlabel=units[disturbance], ylim=_percent_or((None, None), label))
        ax.xaxis.set_major_locator(MaxNLocator(4))  # Long labels, such as 0.0157, would overlap.
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    row[0].set_ylabel(label)
    return figure, row


def draw_learning(losses: Mapping[str, Sequence[Sequence[float]]], ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw the training loss per epoch, as the mean over seeds.

    Args:
        losses: ``{model: [loss per epoch of each seed]}``.
        ax: Axes to draw in. Default: axes of a new figure.

    Returns:
        Figure and axes.

    Example:
        >>> figure, ax = draw_learning({"plain": [[2.0, 1.0], [2.2, 1.1]]})
        >>> ax.get_ylabel()
        'training loss'
    """
    figure, ((ax,),) = panels(1, 1, (6, 3.6), ax)
    for model, runs in losses.items():
        mean = np.mean(np.array(runs), axis=0)
        ax.plot(range(1, len(mean) + 1), mean, label=model)
    ax.set(xlabel="epoch", ylabel="training loss", yscale="log")
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize="small")
    return figure, ax


def draw_run(
    records: Sequence[Mapping[str, float]], titles: Mapping[str, str] | None = None, axes: Any = None
) -> tuple[Figure, np.ndarray]:
    """Draw the loss, validation metrics and learning rate of one run against the epoch.

    Args:
        records: One record per epoch, as in the file ``metrics.jsonl`` of a run.
        titles: ``{key: label}`` of the validation metrics. Records hold them as ``validation_<key>``. Default: no metrics.
        axes: Axes to draw in, one per panel: loss, validation metrics and learning rate, where the records hold them. Default:
            axes of a new figure.

    Returns:
        Figure and axes ``[number of panels]``.

    Example:
        >>> records = [{"epoch": 0, "train_loss": 2.0, "lr": 0.1}, {"epoch": 1, "train_loss": 1.0, "lr": 0.0}]
        >>> figure, axes = draw_run(records)
        >>> [ax.get_ylabel() for ax in axes]
        ['loss', 'learning rate']
    """
    epochs = [record["epoch"] + 1 for record in records]
    curves_of = [
        ("loss", [("train_loss", "training"), ("validation_loss", "validation")]),
        ("validation", [(f"validation_{key}", title) for key, title in (titles or {}).items()]),
        ("learning rate", [("lr", "largest")]),
    ]
    drawn = [(label, [(k, n) for k, n in curves if k in records[0]]) for label, curves in curves_of]
    drawn = [(label, curves) for label, curves in drawn if curves]
    figure, (row,) = panels(1, len(drawn), (4 * len(drawn), 3.2), axes)
    for ax, (label, curves) in zip(row, drawn):
        for key, name in curves:
            ax.plot(epochs, [record[key] for record in records], marker="o", markersize=2, label=name)
        ax.set(xlabel="epoch", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    return figure, row


def draw_adversarial(
    images: Tensor,
    adversarial: Mapping[str, Tensor],
    labels: Sequence[int | str],
    predictions: Mapping[str, Sequence[int | str]],
    eps: float,
    axes: Any = None,
) -> tuple[Figure, np.ndarray]:
    """Draw clean and adversarial images, with one column per image.

    The first row shows the clean images. Two rows per model follow: the adversarial images and the perturbations, with black
    for ``-eps`` and white for ``eps``.

    Args:
        images: Clean images ``[n, C, H, W]`` in [0, 1].
        adversarial: ``{model: adversarial images [n, C, H, W]}``.
        labels: True classes of the images.
        predictions: ``{model: predicted classes of the adversarial images}``.
        eps: Radius of the attack, in units of [0, 1].
        axes: Axes to draw in, ``[1 + 2 * number of models, n]``. Default: axes of a new figure.

    Returns:
        Figure and axes ``[1 + 2 * number of models, n]``.

    Example:
        >>> clean = torch.rand(2, 1, 8, 8)
        >>> figure, axes = draw_adversarial(clean, {"plain": clean + 0.1}, [3, 8], {"plain": [3, 1]}, eps=0.1)
        >>> axes.shape
        (3, 2)
    """
    n, rows = len(images), 1 + 2 * len(adversarial)
    figure, axes = panels(rows, n, (1.2 * n + 1.6, 1.3 * rows), axes)
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
    return figure, axes


def _percent_or(limits: tuple[Any, Any], label: str) -> tuple[Any, Any]:
    """Return 0 and 100 for a metric in percent, else the given limits."""
    return (0, 100) if label.endswith("%") else limits


def draw_heat_map(
    values: Mapping[str, Mapping[float, float]], title: str, label: str = "accuracy / %", ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draw a metric per corruption (rows) and severity (columns).

    Args:
        values: ``{corruption: {severity: value}}``. Severities may be missing.
        title: Title of the figure.
        label: Label of the metric, with its unit. Colors of values in percent span 0 to 100.
        ax: Axes to draw in. Default: axes of a new figure.

    Returns:
        Figure and axes.

    Example:
        >>> figure, ax = draw_heat_map({"fog": {1: 80.0, 3: 60.0}}, title="nlm_vit_tiny")
        >>> ax.get_xlabel()
        'severity'
    """
    severities = sorted({severity for row in values.values() for severity in row})
    table = np.array([[row.get(severity, np.nan) for severity in severities] for row in values.values()])
    figure, ((ax,),) = panels(1, 1, (1.5 + 0.7 * len(severities) + 1.5, 1.2 + 0.3 * len(values)), ax)
    low, high = _percent_or((np.nanmin(table), np.nanmax(table)), label)
    image = ax.imshow(table, vmin=low, vmax=high, cmap="viridis", aspect="auto")
    ax.set_xticks(range(len(severities)), [f"{severity:g}" for severity in severities])
    ax.set_yticks(range(len(values)), list(values))
    ax.set(xlabel="severity", title=title)
    for (i, j), value in np.ndenumerate(table):
        if not np.isnan(value):
            color = "black" if value > low + 0.6 * (high - low) else "white"
            ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize="small", color=color)
    figure.colorbar(image, label=label, ax=ax)
    return figure, ax


def draw_grid(images: Mapping[str, Mapping[str, Tensor]], axes: Any = None) -> tuple[Figure, np.ndarray]:
    """Draw images in a labeled grid.

    Args:
        images: ``{row: {column: image [C, H, W] in [0, 1]}}``. All rows have the columns of the first row.
        axes: Axes to draw in, ``[rows, columns]``. Default: axes of a new figure.

    Returns:
        Figure and axes ``[rows, columns]``.

    Example:
        >>> figure, axes = draw_grid({"fog": {"clean": torch.rand(3, 8, 8), "severity 3": torch.rand(3, 8, 8)}})
        >>> axes.shape
        (1, 2)
    """
    rows, columns = list(images), list(next(iter(images.values())))
    figure, axes = panels(len(rows), len(columns), (1.3 * len(columns) + 1.4, 1.3 * len(rows)), axes)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            axes[i, j].set(xticks=[], yticks=[])
            axes[i, j].imshow(_array(images[row][column]), cmap="gray", vmin=0, vmax=1)
            if i == 0:
                axes[i, j].set_title(column, fontsize="small")
        axes[i, 0].set_ylabel(row.replace("_", "\n"), fontsize="small")
    return figure, axes


def draw_bandwidths(
    by_model: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], axes: Any = None
) -> tuple[Figure, np.ndarray]:
    """Draw bandwidths per layer, with one line per head and one panel per model and bandwidth.

    Args:
        by_model: ``{model: {name: {layer: [value per head]}}}``, see `bandwidths`.
        axes: Axes to draw in, one per model and bandwidth. Default: axes of a new figure.

    Returns:
        Figure and axes ``[number of models and bandwidths]``.

    Example:
        >>> figure, axes = draw_bandwidths({"nlm": {"range_bandwidth": {"0": [2.8, 2.9], "1": [2.5, 2.7]}}})
        >>> axes[0].get_xlabel()
        'layer'
    """
    drawn = [(model, name, layers) for model, names in by_model.items() for name, layers in names.items()]
    count = max(len(drawn), 1)
    figure, (row,) = panels(1, count, (3.6 * count, 3.2), axes)
    for ax, (model, name, layers) in zip(row, drawn):
        where = [int(layer) for layer in layers]
        by_head = np.array(list(layers.values())).T
        for head, values in enumerate(by_head):
            ax.plot(where, values, marker="o", markersize=4, label=f"head {head}")
        ax.set(title=f"{model}\n{name}", xlabel="layer", xticks=where, yscale="log")
        ax.grid(alpha=0.3, which="both")
        if len(by_head) <= 6:
            ax.legend(fontsize="x-small")
    return figure, row


@torch.no_grad()
def draw_kernel_rows(
    model: FilterVisionTransformer,
    image: Tensor,
    normalized: Tensor,
    layer: int,
    patches: Sequence[tuple[int, int]],
    axes: Any = None,
) -> tuple[Figure, np.ndarray]:
    """Draw filter rows of a layer over an image: the weights of all patches in the output of one patch, per head.

    Args:
        model: Model in eval mode.
        image: Image ``[C, H, W]`` in [0, 1], drawn in the background.
        normalized: The same image, normalized as the model expects.
        layer: Index of the block.
        patches: ``(row, column)`` of the patches whose filter rows are drawn. A cross marks the patch.
        axes: Axes to draw in, ``[len(patches), 1 + num_heads]``. Default: axes of a new figure.

    Returns:
        Figure and axes ``[len(patches), 1 + num_heads]``.

    Raises:
        ValueError: A patch is outside the grid, or the filter has no dense weights.

    Example:
        >>> import timm
        >>> model = timm.create_model("nlm_vit_tiny", depth=1, img_size=32, patch_size=8).eval()
        >>> image = torch.rand(3, 32, 32)
        >>> figure, axes = draw_kernel_rows(model, image, (image - 0.5) / 0.5, layer=0, patches=[(1, 2)])
        >>> axes.shape  # the image and three heads
        (1, 4)
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
    figure, axes = panels(len(patches), heads + 1, (1.5 * (heads + 1), 1.6 * len(patches) + 0.3), axes)
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
    return figure, axes
