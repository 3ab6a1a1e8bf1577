"""Measures of the tokens of every layer: over-smoothing, effective rank, coding rates and sparsity."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..core.projections import SharedSubspaces
from .figures import panels
from .subspaces import coding_rate, nonzero_share, subspace_coding_rate

__all__ = ["draw_layers", "effective_rank", "layer_tokens", "measure_layers", "token_similarity"]


def token_similarity(tokens: Tensor) -> Tensor:
    """Return the mean cosine similarity of all pairs of different tokens. It is 1 if a filter has made all tokens alike.

    It measures over-smoothing (Wang et al. 2022, arXiv 2203.05962).

    Args:
        tokens: ``[..., N, C]`` with at least two tokens.

    Returns:
        Similarity of each set of tokens, ``[...]``, from ``-1 / (N - 1)`` to 1.

    Raises:
        ValueError: There is only one token.

    Example:
        >>> token_similarity(torch.eye(4)).item(), round(token_similarity(torch.ones(4, 3)).item(), 6)
        (0.0, 1.0)
    """
    count = tokens.shape[-2]
    if count < 2:
        raise ValueError(f"The number of tokens must be at least 2, got {count}. Give tokens [..., N, C].")
    directions = F.normalize(tokens.double(), dim=-1)
    return (directions.sum(dim=-2).square().sum(dim=-1) - count) / (count * (count - 1))


def effective_rank(tokens: Tensor) -> Tensor:
    """Return the effective rank of tokens, the exponential of the entropy of their normalized singular values.

    It is 1 if all tokens are multiples of one vector, and ``min(N, C)`` if all singular values are equal (Roy and Vetterli,
    EUSIPCO 2007).

    Args:
        tokens: ``[..., N, C]``.

    Returns:
        Effective rank of each set of tokens, ``[...]`` float64.

    Example:
        >>> round(effective_rank(torch.eye(4)).item(), 3), round(effective_rank(torch.ones(4, 3)).item(), 3)
        (4.0, 1.0)
    """
    share = F.normalize(torch.linalg.svdvals(tokens.double()), p=1, dim=-1)
    return torch.special.entr(share).sum(dim=-1).exp()


@torch.no_grad()
def _record(model: VisionTransformer, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tokens before the first block and after each block, and the tokens after each attention half."""
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"model must be a vision transformer of timm, got {type(model).__name__}. Give the model without its wrapper."
        )
    blocks: list[Any] = list(model.blocks)
    entering: list[Tensor] = []
    leaving: list[Tensor] = []
    between: list[Tensor] = []

    def after(module: nn.Module, arguments: Any, output: Any) -> None:
        leaving.append(output[0] if isinstance(output, tuple) else output)
        if getattr(module, "mlp", None) is None:
            between.append(leaving[-1])

    def keep(store: list[Tensor]) -> Callable[[nn.Module, Any], None]:
        return lambda module, arguments: store.append(arguments[0])

    hooks = [block.register_forward_hook(after) for block in blocks]
    hooks += [blocks[0].register_forward_pre_hook(keep(entering))]
    hooks += [
        block.norm2.register_forward_pre_hook(keep(between)) for block in blocks if getattr(block, "mlp", None) is not None
    ]
    try:
        model.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [*entering, *leaving], between


def layer_tokens(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Return the patch tokens before the first block and after each block.

    Args:
        model: Vision transformer of this library or of timm, in eval mode.
        images: ``[B, C, H, W]``, normalized as the model expects.

    Returns:
        One tensor ``[B, N, C]`` for the input, and one per block. Class and register tokens are left out.

    Raises:
        ValueError: The model is not a vision transformer of timm.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_plain_vit").eval()
        >>> len(layer_tokens(model, torch.rand(2, 3, 160, 160)))
        7
    """
    tokens, _ = _record(model, images)
    return [x[:, model.num_prefix_tokens :] for x in tokens]


def measure_layers(model: VisionTransformer, images: Tensor, eps: float = 0.5) -> dict[str, dict[int, float]]:
    """Measure the patch tokens of all layers, as means over the images.

    Args:
        model: Vision transformer of this library or of timm, in eval mode.
        images: ``[B, C, H, W]``, normalized as the model expects.
        eps: Allowed error of the coding rates, in units of the tokens.

    Returns:
        ``{measure: {number of blocks n: value}}``. ``cosine similarity``, ``effective rank``, ``coding rate`` and ``non-zero
        entries`` measure the tokens after n blocks, for n from 0 on. ``subspace coding rate`` measures the tokens after the
        attention half of block number n, in the subspaces of this block, for n from 1 on. Only models with
        ``projection="subspaces"`` have it.

    Raises:
        ValueError: The model is not a vision transformer of timm, or ``eps`` is not positive and finite.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_crate").eval()
        >>> {name: len(values) for name, values in measure_layers(model, torch.rand(1, 3, 160, 160)).items()}
        {'cosine similarity': 7, 'effective rank': 7, 'coding rate': 7, 'non-zero entries': 7, 'subspace coding rate': 6}
    """
    tokens, between = _record(model, images)
    tokens = [x[:, model.num_prefix_tokens :] for x in tokens]
    measures: dict[str, Callable[[Tensor], Tensor]] = {
        "cosine similarity": token_similarity,
        "effective rank": effective_rank,
        "coding rate": lambda x: coding_rate(x, eps),
        "non-zero entries": nonzero_share,
    }
    result = {name: {number: measure(x).mean().item() for number, x in enumerate(tokens)} for name, measure in measures.items()}
    blocks: list[Any] = list(model.blocks)
    projections = [block.attn.qkv for block in blocks if isinstance(getattr(block.attn, "qkv", None), SharedSubspaces)]
    if len(projections) == len(blocks):
        bases = [p.weight.detach().unflatten(0, (p.num_heads, -1)).transpose(1, 2) for p in projections]
        patches = [x[:, model.num_prefix_tokens :] for x in between]
        rates = [subspace_coding_rate(x, u, eps).mean().item() for x, u in zip(patches, bases)]
        result["subspace coding rate"] = dict(enumerate(rates, start=1))
    return result


def draw_layers(by_model: Mapping[str, Mapping[str, Mapping[int, float]]], axes: Any = None) -> tuple[Figure, np.ndarray]:
    """Draw measures against the number of blocks, with one panel per measure and one line per model.

    Args:
        by_model: ``{model: {measure: {number of blocks: value}}}``, see `measure_layers`. Models may lack a measure.
        axes: Axes to draw in, one per measure. Default: axes of a new figure.

    Returns:
        Figure and axes ``[number of measures]``.

    Example:
        >>> figure, axes = draw_layers({"plain": {"cosine similarity": {0: 0.1, 1: 0.3, 2: 0.6}}})
        >>> axes[0].get_ylabel()
        'cosine similarity'
    """
    measures = list(dict.fromkeys(name for values in by_model.values() for name in values))
    figure, (row,) = panels(1, len(measures), (3.4 * len(measures), 3.0), axes)
    for ax, measure in zip(row, measures):
        for i, (model, values) in enumerate(by_model.items()):
            if measure in values:
                numbers, y = zip(*values[measure].items())
                ax.plot(numbers, y, marker="o", markersize=3, label=model, color=f"C{i}")
        ax.set(xlabel="blocks", ylabel=measure)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    row[0].legend(fontsize="small")
    return figure, row
