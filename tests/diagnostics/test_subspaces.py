"""Mixture of low-rank Gaussians, signal-to-noise ratio, coding rates: against plain readings of their formulas."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from imgproc_attn.diagnostics import coding_rate, low_rank_mixture, nonzero_share, signal_to_noise, subspace_coding_rate


def test_tokens_are_those_of_the_model():
    tokens, labels, bases = low_rank_mixture(3, 16, 400, noise=0.3, embed_dim=60, generator=torch.Generator().manual_seed(5))
    directions = torch.cat(list(bases), dim=1)
    assert (directions.mT @ directions - torch.eye(48, dtype=torch.float64)).abs().max() < 1e-12
    coefficients = torch.einsum("nc,kcp->nkp", tokens, bases)
    assert torch.allclose(torch.einsum("nkp,kcp->nc", coefficients, bases), tokens, atol=1e-12), "in the sum of the subspaces"
    for k in range(3):
        size = coefficients[labels == k].square().mean(dim=(0, 2)).sqrt()
        expected = torch.tensor([1.0 if j == k else 0.3 for j in range(3)], dtype=torch.float64)
        # The mean of 6,400 squares has a standard error of 1.8 %, their root of 0.9 %.
        assert torch.allclose(size, expected, rtol=0.05)
    again = low_rank_mixture(3, 16, 400, noise=0.3, embed_dim=60, generator=torch.Generator().manual_seed(5))
    assert torch.equal(again.tokens, tokens)


def test_ratio_is_its_formula():
    tokens, labels, bases = low_rank_mixture(3, 4, 5, noise=0.3)
    for k, found in enumerate(signal_to_noise(tokens, labels, bases)):
        u, z = bases[k].numpy(), tokens[labels == k].numpy().T
        project = u @ u.T
        expected = np.linalg.norm(project @ z) / np.linalg.norm((np.eye(12) - project) @ z)
        assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(7, 12), (12, 7)])
def test_coding_rates_are_their_formulas(shape):
    """With more tokens than channels and with fewer, for which the smaller Gram matrix is taken."""
    z, eps = torch.randn(2, *shape), 0.4
    bases = torch.randn(3, shape[1], 4)
    for tokens, rate, in_subspaces in zip(z.double(), coding_rate(z, eps), subspace_coding_rate(z, bases, eps)):
        Z = tokens.numpy().T  # the papers' columns
        d, n = Z.shape
        expected = 0.5 * math.log(scipy.linalg.det(np.eye(d) + d / (n * eps**2) * Z @ Z.T))
        assert rate.item() == pytest.approx(expected, rel=1e-10)
        projected = [u.double().numpy().T @ Z for u in bases]
        terms = [0.5 * math.log(scipy.linalg.det(np.eye(n) + 4 / (n * eps**2) * w.T @ w)) for w in projected]
        assert in_subspaces.item() == pytest.approx(sum(terms), rel=1e-10)


def test_tokens_in_their_subspaces_need_less():
    """R^c, which CRATE minimizes, is smaller for the subspaces of the tokens than for others."""
    tokens, _, bases = low_rank_mixture(4, 8, 50, noise=0.05)
    others = low_rank_mixture(4, 8, 50).bases
    assert coding_rate(tokens) - subspace_coding_rate(tokens, bases) > coding_rate(tokens) - subspace_coding_rate(
        tokens, others
    )


def test_share_of_entries():
    assert nonzero_share(torch.tensor([[[0.0, 1.0], [2.0, -3.0]], [[0.0, 0.0], [0.0, 1e-9]]])).tolist() == [0.75, 0.25]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_subspaces": 1}, "num_subspaces must be at least 2, got 1"),
        ({"subspace_dim": 0}, "subspace_dim must be at least 1, got 0"),
        ({"tokens_per_subspace": 0}, "tokens_per_subspace must be at least 1, got 0"),
        ({"noise": -0.1}, "noise must be at least 0 and finite, got -0.1"),
        ({"noise": math.nan}, "noise must be at least 0 and finite, got nan"),
        ({"embed_dim": 255}, r"embed_dim must be at least num_subspaces x subspace_dim = 256, .* got 255"),
    ],
)
def test_a_mixture_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        low_rank_mixture(**options)


@pytest.mark.parametrize("eps", [0.0, -1.0, math.inf, math.nan])
def test_an_error_that_codes_nothing(eps):
    with pytest.raises(ValueError, match="eps must be positive and finite"):
        coding_rate(torch.ones(2, 2), eps)
