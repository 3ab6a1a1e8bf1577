"""Bandwidths: one positive number per head, learned or fixed, with a declared floor."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..utils.checks import check_flag, check_number


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 if it is in half precision, else unchanged."""
    return x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x


torch.fx.wrap("at_least_float32")


class Bandwidth(nn.Module):
    """Bandwidth ``h`` of a Gaussian kernel ``exp(-distance^2 / h^2)``, one value a head (so ``h = sqrt(2) sigma``).

    Stored as ``log(h - floor)``, a 1-D tensor of ``num_heads`` values: a learned bandwidth cannot leave its domain, never
    gets stuck on the floor, and timm's optimizer factory exempts it from weight decay as it does all 1-D parameters. The floor
    is no part of a checkpoint: a model with another one has other bandwidths after loading.

    Args:
        initial: Starting value, one number for all heads or ``num_heads`` numbers.
        num_heads: Number of heads.
        floor: Bandwidths stay above this value.
        learned: A parameter if True, else a buffer.
        name: What messages call it.

    Raises:
        TypeError: ``initial`` or ``floor`` is no number, or ``learned`` no bool.
        ValueError: ``initial`` or ``floor`` is not positive and finite, ``initial`` does not lie above ``floor``, or the
            count of values is not ``num_heads``.
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
            raise ValueError(f"{name}: {len(values)} values given for {num_heads} heads; give one number or {num_heads}.")
        if not (math.isfinite(floor) and floor > 0):
            raise ValueError(f"{name}: the floor is {floor}, but must be positive and finite.")
        for h in values:
            if not math.isfinite(h) or h <= floor:
                raise ValueError(
                    f"{name} is {h}, but must be finite and above its floor {floor}; "
                    f"give a larger bandwidth, or a smaller floor=."
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
        """Back to the initial values."""
        with torch.no_grad():
            self.log_excess.copy_(torch.tensor([math.log(h - self.floor) for h in self.initial], dtype=torch.float64))

    def forward(self) -> Tensor:
        """The bandwidths, ``[num_heads]``, in float32 or float64."""
        return at_least_float32(self.log_excess).exp() + self.floor

    def extra_repr(self) -> str:
        kind = "learned" if isinstance(self.log_excess, nn.Parameter) else "fixed"
        return f"initial={tuple(round(h, 4) for h in self.initial)}, floor={self.floor}, {kind}"
