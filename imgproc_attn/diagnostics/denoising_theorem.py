"""The denoising theorem of attention-only transformers, run on the layers of this library (AoT, arXiv 2506.03790).

Tokens of the mixture of noisy low-rank Gaussians pass through layers ``Z + eta [U_1 .. U_K] [A_1 U_1^T Z; ..; A_K U_K^T Z]``
whose subspaces are those of the mixture. The theorem says that each layer multiplies the signal-to-noise ratio by
``1 + eta tau``, if A thresholds the softmax at tau.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from ..core import DotProduct, FilterAttention, FilterBlock, Plain, SharedSubspaces, SoftmaxFilter, ThresholdFilter, TiedOutput
from ..core.geometry import grid_geometry
from .figures import panels
from .subspaces import Mixture, signal_to_noise

__all__ = [
    "PUBLISHED_RATIOS",
    "THEOREM_CASES",
    "DenoisingCase",
    "Growth",
    "denoise",
    "draw_denoising",
    "growth",
    "largest_tau",
    "theorem_layer",
]


@dataclass(frozen=True)
class DenoisingCase:
    """One form of the layer.

    Attributes:
        threshold: Threshold the softmax at tau, as the theorem does. Otherwise the softmax is used as it is.
        temperature: Multiply scores by ``1 / sqrt(p)``. The theorem has no such factor.
        norm: Compute the branch from layer-normalized tokens, ``Z + f(norm(Z))``, as models do.
    """

    threshold: bool = True
    temperature: bool = True
    norm: bool = False


# The cases that the command shows.
THEOREM_CASES: Mapping[str, DenoisingCase] = {
    "threshold, temperature": DenoisingCase(),
    "threshold, as stated": DenoisingCase(temperature=False),
    "softmax, temperature": DenoisingCase(threshold=False),
    "softmax": DenoisingCase(threshold=False, temperature=False),
    "threshold, temperature, layer norm": DenoisingCase(norm=True),
}

# Signal-to-noise ratio per layer in the figure of the theorem, by noise, read by eye to about 0.01 (authors' book, "Learning
# Deep Representations of Data Distributions", chapter 4). Number and dimension of the subspaces, eta and tau are not given.
PUBLISHED_RATIOS: Mapping[float, Sequence[float]] = {
    0.2: (1.55, 1.64, 1.735, 1.83, 1.92, 2.015, 2.11, 2.205, 2.30, 2.39, 2.485, 2.58, 2.62),
    0.5: (1.635, 1.72, 1.81, 1.90, 1.985, 2.075, 2.17, 2.265, 2.355, 2.45, 2.54, 2.635, 2.73),
}


def theorem_layer(bases: Tensor, case: DenoisingCase, step: float, tau: float) -> FilterBlock:
    """Return the layer of the theorem in float64, an attention-only block with tied subspaces.

    Args:
        bases: Orthonormal bases of the subspaces, ``[K, C, p]``.
        case: Form of the layer.
        step: Step size eta.
        tau: Threshold.

    Example:
        >>> layer = theorem_layer(torch.eye(4).unflatten(1, (2, 2)).transpose(0, 1), DenoisingCase(), step=0.1, tau=0.55)
        >>> layer.mlp is None
        True
    """
    heads, width, dim = bases.shape
    subspaces = SharedSubspaces(width, heads, dim, dtype=torch.float64)
    with torch.no_grad():
        subspaces.weight.copy_(bases.transpose(1, 2).flatten(0, 1))
    attn = FilterAttention(
        subspaces,
        DotProduct(dim, scale=None if case.temperature else 1.0),
        [],
        ThresholdFilter(tau) if case.threshold else SoftmaxFilter(),
        Plain(),
        TiedOutput(subspaces, step, dtype=torch.float64),
    )
    norm = nn.LayerNorm(width, elementwise_affine=False, dtype=torch.float64) if case.norm else nn.Identity()
    return FilterBlock(attn, None, norm1=norm, norm2=nn.Identity())


@torch.no_grad()
def denoise(mixture: Mixture, layers: int, case: DenoisingCase, step: float = 0.1, tau: float = 0.55) -> Tensor:
    """Return the signal-to-noise ratio of each class after 0 to ``layers`` layers, ``[layers + 1, K]``.

    Args:
        mixture: Tokens, their classes and the subspaces, see `low_rank_mixture`.
        layers: Number of layers.
        case: Form of the layer.
        step: Step size eta.
        tau: Threshold.

    Warns:
        UserWarning: ``step`` or ``tau`` is outside the range of the theorem.

    Example:
        >>> from imgproc_attn.diagnostics import low_rank_mixture
        >>> mixture = low_rank_mixture(noise=0.2, generator=torch.Generator().manual_seed(0))
        >>> ratios = denoise(mixture, layers=3, case=DenoisingCase())
        >>> [round(ratio, 2) for ratio in (ratios[1:] / ratios[:-1]).mean(dim=1).tolist()]  # 1 + 0.1 * 0.55
        [1.05, 1.05, 1.05]
    """
    limit = largest_tau(len(mixture.tokens), mixture.bases.shape[2])
    if case.threshold and tau > limit:
        warnings.warn(
            f"tau must be at most 1 / (1 + N exp(-9 p / 32)) = {limit:.4g} for the theorem, got {tau}. Use wider subspaces or "
            "fewer tokens.",
            stacklevel=2,
        )
    layer = theorem_layer(mixture.bases, case, step, tau)
    geometry = grid_geometry(1, len(mixture.tokens), 0, mixture.tokens)
    z = mixture.tokens[None]
    ratios = [signal_to_noise(z[0], mixture.labels, mixture.bases)]
    for _ in range(layers):
        z, _ = layer(z, geometry)
        ratios.append(signal_to_noise(z[0], mixture.labels, mixture.bases))
    return torch.stack(ratios)


def largest_tau(num_tokens: int, subspace_dim: int) -> float:
    """Return the largest threshold of the theorem, ``1 / (1 + N exp(-9 p / 32))``.

    Args:
        num_tokens: Number of tokens N.
        subspace_dim: Dimension p of a subspace.

    Example:
        >>> round(largest_tau(num_tokens=256, subspace_dim=64), 6)
        0.999996
    """
    return 1 / (1 + num_tokens * math.exp(-9 * subspace_dim / 32))


class Growth(NamedTuple):
    """Growth of the signal-to-noise ratio over the layers, and its distance to two laws through its first and last value.

    Attributes:
        smallest: Smallest factor from one layer to the next.
        largest: Largest factor from one layer to the next.
        geometric: Largest relative distance to the geometric law, a constant factor per layer.
        arithmetic: Largest relative distance to the arithmetic law, a constant increment per layer.
        increment: Increment per layer of the arithmetic law.
    """

    smallest: float
    largest: float
    geometric: float
    arithmetic: float
    increment: float

    @property
    def law(self) -> str:
        """Name of the nearer law if all ratios are within 2 % of it, else ``"neither"``.

        It is ``"no growth"`` if all factors are within 0.01 of 1.
        """
        if max(abs(self.smallest - 1), abs(self.largest - 1)) < 0.01:
            return "no growth"
        if min(self.geometric, self.arithmetic) > 0.02:
            return "neither"
        return "geometric" if self.geometric < self.arithmetic else "arithmetic"


def growth(ratios: Sequence[float]) -> Growth:
    """Compare signal-to-noise ratios, one per layer, with a geometric and an arithmetic law through both ends.

    Args:
        ratios: Ratio after 0, 1, ... layers, at least three.

    Returns:
        Factors per layer, and the distance to both laws.

    Raises:
        ValueError: There are fewer than three ratios.

    Example:
        >>> growth([1.0, 2.0, 4.0, 8.0]).law, growth([1.0, 2.0, 3.0, 4.0]).law, growth([1.0, 4.0, 4.5, 4.0]).law
        ('geometric', 'arithmetic', 'neither')
    """
    if len(ratios) < 3:
        raise ValueError(f"The number of ratios must be at least 3, got {len(ratios)}. Run at least 2 layers.")
    y = np.asarray(ratios, dtype=float)
    factors = y[1:] / y[:-1]
    laws = np.geomspace(y[0], y[-1], len(y)), np.linspace(y[0], y[-1], len(y))
    geometric, arithmetic = (float(np.abs(law / y - 1).max()) for law in laws)
    increment = float((y[-1] - y[0]) / (len(y) - 1))
    return Growth(float(factors.min()), float(factors.max()), geometric, arithmetic, increment)


def draw_denoising(
    by_noise: Mapping[float, Mapping[str, Sequence[float]]], factor: float, axes: Any = None
) -> tuple[Figure, np.ndarray]:
    """Draw the signal-to-noise ratio against the layer: one panel per noise, and one for the published figure.

    A dashed line shows the law of the theorem, a constant factor per layer, starting at the first value. The last panel shows
    the published values with a geometric and an arithmetic law through their ends.

    Args:
        by_noise: ``{noise: {case: [ratio per layer]}}``, as means over the classes, see `denoise`.
        factor: Factor per layer of the theorem, ``1 + eta tau``.
        axes: Axes to draw in, one per noise and one more. Default: axes of a new figure.

    Returns:
        Figure and axes ``[number of noises + 1]``.

    Example:
        >>> figure, axes = draw_denoising({0.2: {"softmax": [2.9, 3.1, 3.0]}}, factor=1.055)
        >>> len(axes)
        2
    """
    count = len(by_noise) + 1
    figure, (row,) = panels(1, count, (4.2 * count, 3.8), axes)
    for ax, (noise, cases) in zip(row, by_noise.items()):
        for case, ratios in cases.items():
            ax.plot(ratios, marker="o", markersize=3, label=case)
        start, length = next((ratios[0], len(ratios)) for ratios in cases.values())
        theorem = [start * factor**layer for layer in range(length)]
        ax.plot(theorem, color="black", linestyle="--", linewidth=1, label=f"theorem: factor {factor:g}")
        ax.set(title=f"noise {noise:g}")
    for i, (noise, published) in enumerate(PUBLISHED_RATIOS.items()):
        layers = range(len(published))
        row[-1].plot(layers, published, "o", markersize=4, color=f"C{i}", label=f"noise {noise:g}, read by eye")
        row[-1].plot(layers, np.linspace(published[0], published[-1], len(published)), color=f"C{i}", label="arithmetic")
        row[-1].plot(layers, np.geomspace(published[0], published[-1], len(published)), "--", color=f"C{i}", label="geometric")
    row[-1].set(title="published figure")
    for ax in row:
        ax.set(xlabel="layer")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    for ax in (row[0], row[-1]):  # All panels but the last show the same cases.
        ax.legend(fontsize="x-small", loc="upper left", framealpha=0.6)
    row[0].set_ylabel("signal-to-noise ratio")
    return figure, row
