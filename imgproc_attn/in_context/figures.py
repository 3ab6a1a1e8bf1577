"""Figure of the error against the number of examples."""

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..diagnostics.figures import panels

__all__ = ["draw_error_curves", "mean_and_half_width"]


def draw_error_curves(
    models: Mapping[str, Tensor], baselines: Mapping[str, Tensor] | None = None, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draw the mean error of models against the number of examples that a prediction is made from.

    Args:
        models: ``{label: errors [B, n]}``: squared errors per sequence and number of examples, from 0, in units of the
            error of the prediction 0. Bands show 95 % intervals of the means.
        baselines: Errors of further predictors, drawn as dashed lines. Default: none.
        ax: Axes to draw in. Default: axes of a new figure.

    Returns:
        Figure and axes.

    Example:
        >>> import torch
        >>> figure, ax = draw_error_curves({"plain": torch.rand(8, 11)}, {"least squares": torch.rand(8, 11)})
        >>> ax.get_xlabel()
        'number of examples'
    """
    figure, ((ax,),) = panels(1, 1, (7.5, 4), ax)
    ax.axhline(1, color="gray", linewidth=0.8)
    for i, (label, errors) in enumerate(models.items()):
        mean, half = (part.numpy() for part in mean_and_half_width(errors))
        ax.plot(mean, marker="o", markersize=3, color=f"C{i}", label=label)
        ax.fill_between(range(len(mean)), mean - half, mean + half, color=f"C{i}", alpha=0.15)
    for i, (label, errors) in enumerate((baselines or {}).items()):
        ax.plot(errors.mean(dim=0).numpy(), linestyle="--", linewidth=1.2, color=f"C{len(models) + i}", label=label)
    ax.set(xlabel="number of examples", ylabel="squared error / that of 0", ylim=(-0.03, 1.5))
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))  # Lines fill the axes.
    return figure, ax


def mean_and_half_width(errors: Tensor) -> tuple[Tensor, Tensor]:
    """Return means ``[n]`` over sequences, and half the width of their normal 95 % intervals.

    With one sequence, nothing is known of the spread, and the width is 0.

    Args:
        errors: ``[B, n]``.
    """
    spread = errors.std(dim=0) if len(errors) > 1 else torch.zeros_like(errors[0])
    return errors.mean(dim=0), 1.96 * spread / len(errors) ** 0.5
