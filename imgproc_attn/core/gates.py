"""Gates: how much of an addition to the plain filter counts."""

import math
from typing import SupportsFloat

import torch
from torch import Tensor, nn

from ..utils.checks import check_flag


class Gate(nn.Module):
    """Strength g of an addition, fixed for all heads or learned, one a head: ``x -> g x``.

    Args:
        num_heads: Number of heads; 1 outside heads.
        initial: g; 1 is the published rule, 0 the plain filter.
        learned: Whether g is a parameter, started from ``initial``. It may then become negative.
        name: What messages call it.

    Raises:
        TypeError: ``learned`` is no bool.
        ValueError: ``initial`` is not a finite number.
    """

    def __init__(
        self, num_heads: int, initial: float = 1.0, learned: bool = False, name: str = "gate", device=None, dtype=None
    ) -> None:
        super().__init__()
        check_flag(f"{name}: learned", learned)
        if isinstance(initial, bool) or not isinstance(initial, SupportsFloat) or not math.isfinite(initial):
            raise ValueError(
                f"{name}: gate is {initial}, but must be a finite number; 1 is the published strength, 0 the plain filter."
            )
        self.initial = float(initial)
        self.strength = nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype)) if learned else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the initial value."""
        if self.strength is not None:
            nn.init.constant_(self.strength, self.initial)

    def forward(self, x: Tensor) -> Tensor:
        """``g x`` for x ``[..., H, M, N]``."""
        if self.strength is not None:
            return self.strength[:, None, None].to(x.dtype) * x
        if self.initial == 1.0:
            return x
        return self.initial * x

    def extra_repr(self) -> str:
        return f"{self.initial}, {'fixed' if self.strength is None else 'learned'}"
