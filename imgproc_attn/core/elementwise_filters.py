"""Filters that replace the softmax by another function of the scores: ReLU, and the threshold of the AoT theorem.

They compute a dense tensor of weights. Their rows do not sum to 1, which ``rows_sum_to_one = False`` says.
"""

import math
import warnings
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.checks import check_flag, check_number
from .filters import Weights, hide, log_weights
from .terms import Terms

__all__ = ["ReluFilter", "ThresholdFilter"]


class ReluFilter(nn.Module):
    """Filter ``A = relu(S) / n``, where S are the scores and n is the number of keys that a query sees.

    AoT (arXiv 2506.03790) names ReLU as an alternative to the softmax. The division by n keeps the size of the output
    (arXiv 2309.08586).

    Args:
        attn_drop: Probability of dropping a weight in training.
        divide: Whether to divide by n. Without it, this is the element-wise operator of AoT.

    Raises:
        TypeError: ``divide`` is not a bool.

    Example:
        >>> from imgproc_attn.core import DotProduct
        >>> same = torch.ones(1, 1, 2, 4)
        >>> ReluFilter()(DotProduct(head_dim=4)(same, same)).weights.tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
    """

    rows_sum_to_one: ClassVar[bool] = False

    def __init__(self, attn_drop: float = 0.0, divide: bool = True) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout(attn_drop)
        self.divide = check_flag("filter='relu': divide", divide)

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> Weights:
        """Return the operator of ``terms``. Arguments are those of `imgproc_attn.core.filters.SoftmaxFilter`.

        Raises:
            TypeError: ``mask`` is neither boolean nor floating point.
            ValueError: ``terms`` hold distances, whose scores are known only up to a constant per row.
        """
        weights = _relu(terms, mask, is_causal, self.divide)
        return Weights(weights, self.attn_drop(weights))

    def extra_repr(self) -> str:
        return f"divide={self.divide}"


class ThresholdFilter(nn.Module):
    """Filter ``A = h(softmax(S))`` with ``h(t) = tau if t > tau else 0``, for which AoT's theorem holds (arXiv 2506.03790).

    A row has one non-zero weight if tau is at least 1/2 and one token has most of the weight. Otherwise it has none. The
    weights have no gradient, so gradient attacks see only the values. Do not take such a model for robust.

    Args:
        tau: Threshold, and the weight of the tokens above it. The theorem needs a value above 1/2.
        attn_drop: Probability of dropping a weight in training.

    Raises:
        TypeError: ``tau`` is not a number.
        ValueError: ``tau`` is not in (0, 1).

    Example:
        >>> from imgproc_attn.core import DotProduct
        >>> x = 4 * torch.eye(2)[None, None]
        >>> [round(w, 2) for w in ThresholdFilter(tau=0.6)(DotProduct(head_dim=2)(x, x)).weights.flatten().tolist()]
        [0.6, 0.0, 0.0, 0.6]
    """

    rows_sum_to_one: ClassVar[bool] = False

    def __init__(self, tau: float = 0.55, attn_drop: float = 0.0) -> None:
        super().__init__()
        if not 0 < check_number("filter='threshold': tau", tau) < 1:
            raise ValueError(f"filter='threshold': tau must be in (0, 1), got {tau}. Give a number such as 0.55.")
        if tau <= 0.5:
            warnings.warn(f"filter='threshold': tau must be above 0.5 for the theorem of AoT, got {tau}.", stacklevel=2)
        self.tau = float(tau)
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, terms: Terms, mask: Tensor | None = None, is_causal: bool = False) -> Weights:
        """Return the operator of ``terms``. Arguments and errors are those of `imgproc_attn.core.filters.SoftmaxFilter`."""
        weights = _threshold(terms, mask, is_causal, self.tau)
        return Weights(weights, self.attn_drop(weights))

    def extra_repr(self) -> str:
        return f"tau={self.tau}"


def _relu(terms: Terms, mask: Tensor | None, is_causal: bool, divide: bool) -> Tensor:
    if len(terms.distances) > 0 or len(terms.position_distances) > 0:
        raise ValueError(
            "filter='relu': kernels must be inner products, got a distance, whose scores are known only up to a constant per "
            "row. Use kernel='dot_product' without 'spatial_gaussian', or filter='softmax'."
        )
    scores = hide(log_weights(terms), mask, is_causal)
    weights = F.relu(scores)
    if not divide:
        return weights
    return weights / (scores > -math.inf).sum(dim=-1, keepdim=True).clamp(min=1)


def _threshold(terms: Terms, mask: Tensor | None, is_causal: bool, tau: float) -> Tensor:
    weights = hide(log_weights(terms), mask, is_causal).softmax(dim=-1)
    return (weights > tau).to(weights.dtype) * tau


torch.fx.wrap("_relu")
torch.fx.wrap("_threshold")
