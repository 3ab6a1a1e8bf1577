"""What layers hand on to later ones: the values of earlier filters."""

from typing import NamedTuple

import torch
from torch import Tensor


class Carried(NamedTuple):
    """State passed from block to block; all None before the first one has spoken.

    A value, never an attribute of a module: forwards may interleave, be checkpointed, compiled and run in parallel.

    Attributes:
        first: Values of the first layer, ``[B, H, N, D]``.
        previous: Values of the layer before.
        drift: Sum over earlier layers l of ``first - values_l``.
        tokens: Tokens that entered the first block, ``[B, N, C]``.
    """

    first: Tensor | None = None
    previous: Tensor | None = None
    drift: Tensor | None = None
    tokens: Tensor | None = None


def hand_on(carried: Carried | None, v: Tensor) -> Carried | None:
    """State after a layer with values ``v``; None stays None, which costs nothing."""
    if carried is None:
        return None
    first, drift = carried.first, carried.drift
    if first is None or drift is None:
        return Carried(v, v, torch.zeros_like(v), carried.tokens)
    return Carried(first, v, drift + (first - v), carried.tokens)


def remember_tokens(carried: Carried | None, x: Tensor) -> Carried | None:
    """State that knows the tokens entering the first block."""
    if carried is None or carried.tokens is not None:
        return carried
    return Carried(carried.first, carried.previous, carried.drift, x)


torch.fx.wrap("hand_on")
torch.fx.wrap("remember_tokens")
