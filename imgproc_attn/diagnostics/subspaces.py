"""Quantities from which white-box transformers are derived: signal-to-noise ratio, coding rates and sparsity of tokens.

Tokens are rows here, ``[..., N, C]``. The papers write them as columns.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.checks import check_number, check_whole

__all__ = ["Mixture", "coding_rate", "low_rank_mixture", "nonzero_share", "signal_to_noise", "subspace_coding_rate"]


class Mixture(NamedTuple):
    """Tokens drawn from a mixture of noisy low-rank Gaussians.

    Attributes:
        tokens: ``[N, C]`` float64.
        labels: Subspace of each token, ``[N]``.
        bases: Orthonormal bases U_k of the subspaces, ``[K, C, p]`` float64. All subspaces are orthogonal to each other.
    """

    tokens: Tensor
    labels: Tensor
    bases: Tensor


def low_rank_mixture(
    num_subspaces: int = 4,
    subspace_dim: int = 64,
    tokens_per_subspace: int = 64,
    noise: float = 0.2,
    embed_dim: int | None = None,
    generator: torch.Generator | None = None,
) -> Mixture:
    """Draw tokens from a mixture of noisy low-rank Gaussians (AoT, arXiv 2506.03790, section 2).

    A token of subspace k is ``z = U_k a + sum_(j != k) U_j e_j``. The entries of a have variance 1, those of e_j have standard
    deviation ``noise``.

    Args:
        num_subspaces: Number of subspaces K, at least 2.
        subspace_dim: Dimension p of a subspace.
        tokens_per_subspace: Number of tokens per subspace.
        noise: Standard deviation of the noise.
        embed_dim: Width C of the tokens, at least ``K p``. Default: ``K p``.
        generator: Source of random numbers. Default: torch's.

    Returns:
        ``K * tokens_per_subspace`` tokens, sorted by subspace, with their labels and the bases of the subspaces.

    Raises:
        TypeError: A number is not whole.
        ValueError: A number is too small, or ``noise`` is negative or not finite.

    Example:
        >>> tokens, labels, bases = low_rank_mixture(num_subspaces=2, subspace_dim=8, tokens_per_subspace=5)
        >>> tuple(tokens.shape), tuple(bases.shape), labels.bincount().tolist()
        ((10, 16), (2, 16, 8), [5, 5])
    """
    for name, value, least in (
        ("num_subspaces", num_subspaces, 2),
        ("subspace_dim", subspace_dim, 1),
        ("tokens_per_subspace", tokens_per_subspace, 1),
    ):
        if check_whole(name, value) < least:
            raise ValueError(f"{name} must be at least {least}, got {value}. Give a larger number.")
    if not 0 <= check_number("noise", noise) < float("inf"):
        raise ValueError(f"noise must be at least 0 and finite, got {noise}. Give a number such as 0.2.")
    needed = num_subspaces * subspace_dim
    width = needed if embed_dim is None else check_whole("embed_dim", embed_dim)
    if width < needed:
        raise ValueError(
            f"embed_dim must be at least num_subspaces x subspace_dim = {needed}, so that subspaces can be orthogonal, got "
            f"{width}. Give a larger one, or leave it out."
        )
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    directions, _ = torch.linalg.qr(draw(width, needed))
    labels = torch.arange(num_subspaces).repeat_interleave(tokens_per_subspace)
    size = torch.full((len(labels), num_subspaces), float(noise), dtype=torch.float64)
    size[torch.arange(len(labels)), labels] = 1.0
    coefficients = draw(len(labels), num_subspaces, subspace_dim) * size[..., None]
    bases = directions.unflatten(1, (num_subspaces, subspace_dim)).transpose(0, 1)
    return Mixture(coefficients.flatten(1) @ directions.t(), labels, bases)


def signal_to_noise(tokens: Tensor, labels: Tensor, bases: Tensor) -> Tensor:
    """Return the signal-to-noise ratio of each class of tokens.

    ``SNR_k = |U_k U_k^T Z_k| / |(I - U_k U_k^T) Z_k|`` with Frobenius norms, where Z_k are the tokens of class k (AoT, arXiv
    2506.03790, section 2).

    Args:
        tokens: ``[N, C]``.
        labels: Class of each token, ``[N]``, from 0 to K - 1.
        bases: Orthonormal bases of the subspaces, ``[K, C, p]``.

    Returns:
        Ratio per class, ``[K]``.

    Example:
        >>> mixture = low_rank_mixture(num_subspaces=2, noise=0.5, generator=torch.Generator().manual_seed(0))
        >>> [round(ratio, 1) for ratio in signal_to_noise(*mixture).tolist()]  # about 1 / noise
        [2.0, 2.0]
    """
    ratios = []
    for k, basis in enumerate(bases):
        own = tokens[labels == k]
        signal = own @ basis @ basis.t()
        ratios.append(signal.norm() / (own - signal).norm())
    return torch.stack(ratios)


def coding_rate(tokens: Tensor, eps: float = 0.5) -> Tensor:
    """Return the coding rate ``R = 1/2 logdet(I + C / (N eps^2) Z^T Z)`` of tokens, in nats.

    It approximates the length of a code for the tokens with an error of at most eps (Yu et al. 2020, arXiv 2006.08558, equation
    2). CRATE (arXiv 2306.01129) is derived from making it large for all tokens together and small in each subspace.

    Args:
        tokens: ``[..., N, C]``.
        eps: Allowed error, in units of the tokens.

    Returns:
        Rate of each set of tokens, ``[...]`` float64.

    Raises:
        ValueError: ``eps`` is not positive and finite.

    Example:
        >>> round(coding_rate(torch.eye(4), eps=1.0).item(), 3)  # 4 / 2 log(1 + 1)
        1.386
    """
    if not 0 < check_number("eps", eps) < float("inf"):
        raise ValueError(f"eps must be positive and finite, got {eps}. Give a number such as 0.5.")
    z = tokens.double()
    count, width = z.shape[-2:]
    gram = z.mT @ z if width <= count else z @ z.mT  # I + a Z^T Z and I + a Z Z^T have the same determinant.
    eye = torch.eye(gram.shape[-1], dtype=z.dtype, device=z.device)
    return 0.5 * torch.linalg.slogdet(eye + width / (count * eps**2) * gram).logabsdet


def subspace_coding_rate(tokens: Tensor, bases: Tensor, eps: float = 0.5) -> Tensor:
    """Return the coding rate of tokens projected onto subspaces, ``R^c = sum_k R(U_k^T Z)``, in nats.

    Subspace attention (MSSA) is derived as a step that lowers it (CRATE, arXiv 2306.01129, equation 8).

    Args:
        tokens: ``[..., N, C]``.
        bases: Bases U_k, ``[K, C, p]``. The formula is used as it stands, also if learned bases are not orthonormal.
        eps: Allowed error, in units of the tokens.

    Returns:
        Rate of each set of tokens, ``[...]`` float64.

    Raises:
        ValueError: ``eps`` is not positive and finite.

    Example:
        >>> bases = torch.eye(4).unflatten(1, (2, 2)).transpose(0, 1)
        >>> round(subspace_coding_rate(torch.eye(4), bases, eps=1.0).item(), 3)  # 2 subspaces of rank 2: 4 / 2 log(1 + 1 / 2)
        0.811
    """
    projected = torch.einsum("...nc,kcp->...knp", tokens.double(), bases.double())
    return coding_rate(projected, eps).sum(dim=-1)


def nonzero_share(tokens: Tensor) -> Tensor:
    """Return the share of non-zero entries of tokens.

    It is the sparsity that CRATE reports per layer (arXiv 2306.01129, figure 4).

    Args:
        tokens: ``[..., N, C]``.

    Returns:
        Share of each set of tokens, ``[...]`` float64, from 0 to 1.

    Example:
        >>> nonzero_share(torch.eye(4)).item()
        0.25
    """
    return (tokens != 0).double().mean(dim=(-2, -1))
