"""What layers hand on to later ones: the values of earlier filters."""

from typing import NamedTuple

import torch
from torch import Tensor


class LayerState(NamedTuple):
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


def next_state(state: LayerState | None, v: Tensor) -> LayerState | None:
    """State after a layer with values ``v``; None stays None, which costs nothing."""
    if state is None:
        return None
    first, drift = state.first, state.drift
    if first is None or drift is None:
        return LayerState(v, v, torch.zeros_like(v), state.tokens)
    return LayerState(first, v, drift + (first - v), state.tokens)


def remember_tokens(state: LayerState | None, x: Tensor) -> LayerState | None:
    """State that knows the tokens entering the first block."""
    if state is None or state.tokens is not None:
        return state
    return LayerState(state.first, state.previous, state.drift, x)


torch.fx.wrap("next_state")
torch.fx.wrap("remember_tokens")
