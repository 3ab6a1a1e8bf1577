"""Bandwidths: one positive number per head, learned or fixed, above a floor."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..utils.checks import check_flag, check_number

__all__ = ["Bandwidth"]


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 if it is in half precision, else ``x`` itself."""
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


torch.fx.wrap("at_least_float32")


class Bandwidth(nn.Module):
    """Bandwidth ``h`` of a Gaussian kernel ``exp(-distance^2 / h^2)``, one value per head (so ``h = sqrt(2) sigma``).

    The module stores ``log(h - floor)``, a 1-D tensor of ``num_heads`` values. A learned bandwidth therefore stays above its
    floor and never gets stuck there. timm's optimizer factory exempts it from weight decay, like all 1-D parameters. A
    checkpoint does not contain the floor: a model with another floor has other bandwidths after loading.

    Args:
        initial: Starting value, one number for all heads or ``num_heads`` numbers.
        num_heads: Number of heads.
        floor: Lower limit. Bandwidths stay above it.
        learned: Whether the bandwidths are a parameter. Otherwise they are a buffer.
        name: Name in error messages.

    Raises:
        TypeError: ``initial`` or ``floor`` is not a number, or ``learned`` is not a bool.
        ValueError: ``initial`` or ``floor`` is not positive and finite, ``initial`` is not above ``floor``, or the number of
            values is not ``num_heads``.

    Example:
        >>> bandwidth = Bandwidth([1.0, 2.0], num_heads=2, floor=0.5)
        >>> [round(h, 4) for h in bandwidth().tolist()]
        [1.0, 2.0]
    """

    def __init__(
        self,
        initial: float | Sequence[float] | Tensor,
        num_heads: int,
        floor: float,
        learned: bool = True,
        name: str = "bandwidth",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        check_flag(f"{name}: learned", learned)
        check_number(f"{name}: floor", floor)
        if isinstance(initial, Tensor):
            initial = initial.tolist()
        if not isinstance(initial, Sequence) or isinstance(initial, str):
            initial = [initial] * num_heads
        values = [check_number(name, h) for h in initial]
        if len(values) != num_heads:
            raise ValueError(f"{name} must have one value per head ({num_heads}), got {len(values)}. Give 1 or {num_heads}.")
        if not (math.isfinite(floor) and floor > 0):
            raise ValueError(f"{name}: floor must be positive and finite, got {floor}. Give a small number such as 0.1.")
        for h in values:
            if not math.isfinite(h) or h <= floor:
                raise ValueError(
                    f"{name} must be finite and above its floor {floor}, got {h}. Give a larger {name}, or a smaller floor=."
                )
        self.initial = tuple(values)
        self.floor = floor
        log_excess = torch.empty(num_heads, device=device, dtype=dtype)
        if learned:
            self.log_excess = nn.Parameter(log_excess)
        else:
            self.register_buffer("log_excess", log_excess)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the bandwidths to their initial values."""
        with torch.no_grad():
            self.log_excess.copy_(torch.tensor([math.log(h - self.floor) for h in self.initial], dtype=torch.float64))

    def forward(self) -> Tensor:
        """Return the bandwidths, ``[num_heads]``, in float32 or float64."""
        return at_least_float32(self.log_excess).exp() + self.floor

    def extra_repr(self) -> str:
        kind = "learned" if isinstance(self.log_excess, nn.Parameter) else "fixed"
        return f"initial={tuple(round(h, 4) for h in self.initial)}, floor={self.floor}, {kind}"
