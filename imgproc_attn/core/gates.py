"""Gates: strength of a term that is added to the plain filter."""

import math
from typing import SupportsFloat

import torch
from torch import Tensor, nn

from ..utils.checks import check_flag

__all__ = ["Gate"]


class Gate(nn.Module):
    """Strength g of an added term, ``x -> g x``: one fixed value for all heads, or one learned value per head.

    Args:
        num_heads: Number of heads. Use 1 where there are no heads.
        initial: Value of g. 1 is the published rule, 0 the plain filter.
        learned: Whether g is a parameter that starts at ``initial``. A learned g may become negative.
        name: Name in error messages.

    Raises:
        TypeError: ``learned`` is not a bool.
        ValueError: ``initial`` is not a finite number.
    """

    def __init__(
        self, num_heads: int, initial: float = 1.0, learned: bool = False, name: str = "gate", device=None, dtype=None
    ) -> None:
        super().__init__()
        check_flag(f"{name}: learned", learned)
        if isinstance(initial, bool) or not isinstance(initial, SupportsFloat) or not math.isfinite(initial):
            raise ValueError(
                f"{name}: gate must be a finite number, got {initial}. Give 1 for the published rule, 0 for the plain filter."
            )
        self.initial = float(initial)
        self.strength = nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype)) if learned else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the gate to its initial value."""
        if self.strength is not None:
            nn.init.constant_(self.strength, self.initial)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``x`` ``[..., H, M, N]`` by g. A learned g has one value per head."""
        if self.strength is not None:
            return self.strength[:, None, None].to(x.dtype) * x
        if self.initial == 1.0:
            return x
        return self.initial * x

    def extra_repr(self) -> str:
        return f"{self.initial}, {'fixed' if self.strength is None else 'learned'}"
