"""State that layers pass to later layers: the values of earlier filters."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LayerState"]


class LayerState(NamedTuple):
    """State passed from block to block. All entries are None before the first block.

    The state is a value, never an attribute of a module. Forward passes can therefore interleave, run in parallel, and be
    checkpointed or compiled.

    Attributes:
        first: Values of the first layer, ``[B, H, N, D]``.
        previous: Values of the previous layer, ``[B, H, N, D]``.
        drift: Sum over earlier layers l of ``first - values_l``, ``[B, H, N, D]``.
        tokens: Input tokens of the first block, ``[B, N, C]``.
    """

    first: Tensor | None = None
    previous: Tensor | None = None
    drift: Tensor | None = None
    tokens: Tensor | None = None


def next_state(state: LayerState | None, v: Tensor) -> LayerState | None:
    """Return the state after a layer with values ``v``. None stays None, so models without a state pay nothing."""
    if state is None:
        return None
    first, drift = state.first, state.drift
    if first is None or drift is None:
        return LayerState(v, v, torch.zeros_like(v), state.tokens)
    return LayerState(first, v, drift + (first - v), state.tokens)


def remember_tokens(state: LayerState | None, x: Tensor) -> LayerState | None:
    """Return the state with the tokens ``x`` of the first block, if it has none yet."""
    if state is None or state.tokens is not None:
        return state
    return LayerState(state.first, state.previous, state.drift, x)


torch.fx.wrap("next_state")
torch.fx.wrap("remember_tokens")
