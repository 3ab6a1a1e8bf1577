"""Measures of the filters of a model: spectrum, gain of signal and noise, and share of the token-position cross terms."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from ..core.attention import FilterAttention
from ..core.filters import Weights
from ..core.kernels import DotProduct
from ..core.layer_state import LayerState
from ..models import FilterVisionTransformer
from .figures import panels

__all__ = [
    "Gains",
    "ScoreShares",
    "Spectrum",
    "draw_gains",
    "draw_score_shares",
    "draw_spectra",
    "filter_gains",
    "score_shares",
    "spectrum",
]


class Spectrum(NamedTuple):
    """Eigenvalues of the filters of one layer.

    Attributes:
        plain: Eigenvalues of A, ``[B, H, N]`` complex128, sorted by falling modulus.
        boosted: Eigenvalues of the boosted filter, in the same form. Equal to ``plain`` without boosting.
    """

    plain: Tensor
    boosted: Tensor


class Gains(NamedTuple):
    """Factors by which the filters of a model shrink signal and noise.

    A residual connection ``v + A v`` raises the signal-to-noise ratio if alpha is larger than beta.

    Attributes:
        signal: alpha, ``[L, H]``.
        noise: beta, ``[L, H]``.
    """

    signal: Tensor
    noise: Tensor


class ScoreShares(NamedTuple):
    """Shares of the variance of the scores of one layer. Their sum is 1.

    Attributes:
        content: Share of the products of content with content, ``[H]``.
        cross: Share of the products of content with position and of position with content, ``[H]``.
        position: Share of the products of position with position, ``[H]``.
    """

    content: Tensor
    cross: Tensor
    position: Tensor


@contextmanager
def _inputs(model: FilterVisionTransformer) -> Iterator[dict[int, tuple[Any, ...]]]:
    """Record the arguments of each attention layer in a forward pass, by layer."""
    recorded: dict[int, tuple[Any, ...]] = {}

    def keep(layer: int) -> Any:
        return lambda module, arguments: recorded.setdefault(layer, arguments)  # The first call of a boosted block.

    blocks: Sequence[Any] = list(model.blocks)
    hooks = [block.attn.register_forward_pre_hook(keep(i)) for i, block in enumerate(blocks)]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def boost(attn: FilterAttention, weights: Tensor, v: Tensor) -> Tensor:
    """Apply the boosted filter to ``v``. References to earlier layers are set to zero, so the map is linear in ``v``."""
    zero = torch.zeros_like(v)
    state = LayerState(first=zero, previous=zero, drift=zero)
    boosted: Tensor = attn.residual(Weights(weights, weights).apply, v, state)
    return boosted


@torch.no_grad()
def spectrum(model: FilterVisionTransformer, images: Tensor, layer: int) -> Spectrum:
    """Return the eigenvalues of a layer's filters A and of the boosted filters.

    A filter keeps an eigenvector with eigenvalue 1 and removes one with eigenvalue 0. Boosting moves the eigenvalues: twicing
    turns a into ``1 - (1 - a)^2`` (Milanfar 2013, arXiv 2503.00687). A is not symmetric in general, so eigenvalues are complex.

    The rules ``neutreno`` and ``pid`` refer to values of earlier layers. These are set to zero, so the boosted filter is a
    linear map of the layer's own values.

    Args:
        model: Model in eval mode.
        images: ``[B, C, H, W]``, normalized as the model expects.
        layer: Index of the block. A negative index counts from the end.

    Returns:
        Eigenvalues ``[B, H, N]`` of A and of the boosted filter, sorted by falling modulus.

    Raises:
        ValueError: The model does not have the layer, or its filter has no dense weights.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_plain_vit", residual="twicing").eval()
        >>> plain, boosted = spectrum(model, torch.rand(1, 3, 160, 160), layer=0)
        >>> expected = 1 - (1 - plain) ** 2
        >>> bool(torch.allclose(boosted.abs().sum(), expected.abs().sum(), rtol=1e-4))
        True
    """
    ((index, weights),) = model.attention_weights(images, [layer]).items()
    weights = weights.double()
    eye = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device).expand_as(weights)
    attn: Any = model.blocks[index].attn
    return Spectrum(*(_eigenvalues(matrix) for matrix in (weights, boost(attn, weights, eye))))


def _eigenvalues(matrix: Tensor) -> Tensor:
    values = torch.linalg.eigvals(matrix)
    return values.gather(-1, values.abs().argsort(dim=-1, descending=True))


def draw_spectra(spectra: Mapping[str, Tensor], axes: Any = None) -> tuple[Figure, np.ndarray]:
    """Draw the moduli of eigenvalues by falling size. Lines are means over images and heads, bands are their range.

    Args:
        spectra: ``{label: eigenvalues [B, H, N]}``, see `spectrum`.
        axes: Axes to draw in, one. Default: axes of a new figure.

    Returns:
        Figure and axes ``[1]``.

    Example:
        >>> figure, axes = draw_spectra({"plain": torch.tensor([[[1.0, 0.5]]]), "twicing": torch.tensor([[[1.0, 0.75]]])})
        >>> axes[0].get_xlabel()
        'index'
    """
    figure, (row,) = panels(1, 1, (4.6, 3.2), axes)
    for label, values in spectra.items():
        moduli = values.abs().flatten(0, -2).cpu()
        index = range(1, moduli.shape[1] + 1)
        row[0].plot(index, moduli.mean(dim=0), label=label)
        row[0].fill_between(index, moduli.amin(dim=0), moduli.amax(dim=0), alpha=0.15)
    row[0].set(xlabel="index", ylabel="modulus of the eigenvalue", xscale="log")
    row[0].grid(alpha=0.3)
    row[0].legend(fontsize="small")
    return figure, row


@torch.no_grad()
def filter_gains(model: FilterVisionTransformer, clean: Tensor, noisy: Tensor, boosted: bool = False) -> Gains:
    """Measure by how much each filter shrinks the signal and the noise of its values.

    The values v of a layer are the sum of a signal u, the values of the clean images, and noise ``n = v - u``. With the filter
    A of the noisy images, ``alpha = |A u| / |u|`` and ``beta = |A n| / |n|``. If the filter removes more noise than signal,
    a residual connection raises the signal-to-noise ratio (arXiv 2506.10371, proposition III.1).

    The noise n of deeper layers is the change of the values that the noise of the images causes, so it depends on the image.

    Args:
        model: Model in eval mode.
        clean: Images ``[B, C, H, W]``, normalized as the model expects.
        noisy: The same images with noise.
        boosted: Use the boosted filter in place of A. See `spectrum` for rules that refer to earlier layers.

    Returns:
        alpha and beta per layer and head, over all images and tokens.

    Raises:
        ValueError: The shapes differ, the images are equal, or a filter has no dense weights.

    Example:
        >>> import timm
        >>> model, clean = timm.create_model("test_plain_vit").eval(), torch.rand(2, 3, 160, 160)
        >>> gains = filter_gains(model, clean, clean + 0.1 * torch.randn_like(clean))
        >>> tuple(gains.signal.shape)
        (6, 2)
    """
    if clean.shape != noisy.shape:
        raise ValueError(
            f"noisy must have the shape of clean, {list(clean.shape)}, got {list(noisy.shape)}. Give images of one shape."
        )
    if torch.equal(clean, noisy):
        raise ValueError("noisy must differ from clean, got equal images. Add noise: clean + 0.1 * torch.randn_like(clean).")
    signals = []
    with _inputs(model) as recorded:
        model.forward_features(clean)
        for layer, block in enumerate(model.blocks):
            signals.append(block.attn.qkv(recorded[layer][0])[2])  # type: ignore[union-attr, operator]
    gains = []
    with _inputs(model) as recorded:
        model.forward_features(noisy)
        for signal, block, arguments in zip(signals, model.blocks, recorded.values()):
            attn: Any = block.attn
            weights = attn.operator(*arguments).dense()
            noise = attn.qkv(arguments[0])[2] - signal
            gains.append([_gain(attn, weights, values, boosted) for values in (signal, noise)])
    return Gains(*(torch.stack(values) for values in zip(*gains)))


def _gain(attn: FilterAttention, weights: Tensor, v: Tensor, boosted: bool) -> Tensor:
    """Return ``|A v| / |v|`` per head."""
    v, weights = v.double(), weights.double()
    filtered = boost(attn, weights, v) if boosted else weights @ v
    return (filtered.square().sum(dim=(0, 2, 3)) / v.square().sum(dim=(0, 2, 3))).sqrt()


def draw_gains(by_model: Mapping[str, Gains], axes: Any = None) -> tuple[Figure, np.ndarray]:
    """Draw the gains of signal and noise against the layer, with one panel per model.

    Lines are means over heads, bands are their range.

    Args:
        by_model: ``{model: gains}``, see `filter_gains`.
        axes: Axes to draw in, one per model. Default: axes of a new figure.

    Returns:
        Figure and axes ``[number of models]``.

    Example:
        >>> figure, axes = draw_gains({"plain": Gains(torch.ones(3, 2), torch.full((3, 2), 0.5))})
        >>> axes[0].get_title()
        'plain'
    """
    figure, (row,) = panels(1, len(by_model), (3.4 * len(by_model), 3.0), axes)
    for ax, (model, gains) in zip(row, by_model.items()):
        for label, values in (("alpha, signal", gains.signal), ("beta, noise", gains.noise)):
            layers = range(len(values))
            ax.plot(layers, values.mean(dim=1).cpu(), marker="o", markersize=3, label=label)
            ax.fill_between(layers, values.amin(dim=1).cpu(), values.amax(dim=1).cpu(), alpha=0.15)
        ax.set(title=model, xlabel="block")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    row[0].set_ylabel("gain of the filter")
    return figure, row


@torch.no_grad()
def score_shares(model: FilterVisionTransformer, images: Tensor) -> ScoreShares:
    """Split the variance of the scores of the first layer into content, position and their cross terms.

    With positions added to the tokens, ``x_i = e_i + p_i``, a score is the sum of four products: ``q(e_i) k(e_j)``, the cross
    terms ``q(e_i) k(p_j)`` and ``q(p_i) k(e_j)``, and ``q(p_i) k(p_j)``. The cross terms act as noise that grows with the
    number of tokens N (arXiv 2506.10371, theorem III.2: order sqrt(N) in the weights).

    The share of a term is its covariance with the score over the keys of a query, divided by the variance of the score, as a
    mean over images and queries weighted by the variance. A share can be negative. The layer norm uses the mean and the
    variance of the sum. Its bias and the bias of the projection count as content. In later layers, tokens are not such a sum.

    Args:
        model: Model in eval mode whose first layer has the kernel ``"dot_product"``, added positions and a layer norm.
        images: ``[B, C, H, W]``, normalized as the model expects.

    Returns:
        Shares of the first layer, ``[H]`` each.

    Raises:
        ValueError: The first layer has another kernel or norm, normalizes or rotates queries and keys, or the model adds no
            positions to the tokens.

    Example:
        >>> import timm
        >>> shares = score_shares(timm.create_model("test_plain_vit").eval(), torch.rand(2, 3, 160, 160))
        >>> [round(v, 3) for v in (shares.content + shares.cross + shares.position).tolist()]
        [1.0, 1.0]
    """
    block: Any = model.blocks[0]
    attn: FilterAttention = block.attn
    for part, wanted, keyword in (
        (attn.kernel, DotProduct, "kernel='dot_product'"),
        (block.norm1, nn.LayerNorm, "norm_layer='layernorm'"),
        (attn.q_norm, nn.Identity, "qk_norm=False"),
        (model.norm_pre, nn.Identity, "pre_norm=False"),
    ):
        if not isinstance(part, wanted):
            raise ValueError(
                f"model must have {keyword} to split its scores, got {type(part).__name__}. Measure another model."
            )
    if len(attn.rotations) > 0:
        raise ValueError("model must not have 'rotary' positions to split its scores, got some. Measure another model.")
    tokens, _ = model._embed(images)
    content = model._prepend_prefix(model.patch_embed(images).flatten(1, -2))
    if torch.equal(tokens, content):
        raise ValueError("model must add positions to the tokens, got none. Use positions='absolute' or 'sincos'.")
    mean = tokens.mean(dim=-1, keepdim=True)
    norm = partial(_normalize, block.norm1, (tokens - mean).square().mean(dim=-1, keepdim=True))
    (qe, ke), (qp, kp) = _split(attn.qkv, norm(content) + block.norm1.bias, norm(tokens - content))
    terms = [qe @ ke.mT, qe @ kp.mT + qp @ ke.mT, qp @ kp.mT]
    terms = [term - term.mean(dim=-1, keepdim=True) for term in terms]
    score = terms[0] + terms[1] + terms[2]
    total = score.square().sum(dim=(0, 2, 3))
    return ScoreShares(*((term * score).sum(dim=(0, 2, 3)) / total for term in terms))


def _normalize(norm: nn.LayerNorm, variance: Tensor, part: Tensor) -> Tensor:
    """Apply the layer norm, without its bias, to one part of the tokens. ``variance`` is that of the sum of the parts."""
    centered = part - part.mean(dim=-1, keepdim=True)
    return centered * (variance + norm.eps).rsqrt() * norm.weight


def _split(qkv: nn.Module, content: Tensor, position: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return queries and keys of content and of position, in float64. The bias of the projection belongs to the content."""
    constant = [x.double() for x in qkv(torch.zeros_like(position))[:2]]
    qe, ke = (x.double() for x in qkv(content)[:2])
    qp, kp = (x.double() - c for x, c in zip(qkv(position)[:2], constant))
    return [(qe, ke), (qp, kp)]


def draw_score_shares(by_tokens: Mapping[int, ScoreShares], axes: Any = None) -> tuple[Figure, np.ndarray]:
    """Draw the shares of the score variance against the number of tokens. Lines are means over heads, bands their range.

    Args:
        by_tokens: ``{number of tokens: shares}``, see `score_shares`.
        axes: Axes to draw in, one. Default: axes of a new figure.

    Returns:
        Figure and axes ``[1]``.

    Example:
        >>> shares = ScoreShares(torch.tensor([0.7]), torch.tensor([0.2]), torch.tensor([0.1]))
        >>> figure, axes = draw_score_shares({49: shares, 196: shares})
        >>> axes[0].get_xlabel()
        'tokens'
    """
    figure, (row,) = panels(1, 1, (4.6, 3.2), axes)
    numbers = sorted(by_tokens)
    for name in ScoreShares._fields:
        values = torch.stack([getattr(by_tokens[number], name) for number in numbers]).cpu()
        row[0].plot(numbers, values.mean(dim=1), marker="o", markersize=3, label=name)
        row[0].fill_between(numbers, values.amin(dim=1), values.amax(dim=1), alpha=0.15)
    row[0].set(xlabel="tokens", ylabel="share of the variance of scores", xscale="log")
    row[0].set_xticks(numbers, [str(number) for number in numbers])
    row[0].minorticks_off()
    row[0].grid(alpha=0.3)
    row[0].legend(fontsize="small")
    return figure, row
