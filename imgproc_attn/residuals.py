"""Residual boosting: what is done with what the filter has removed.

A rule on the values and on the operator A with its weights frozen, written as a recurrence that starts from ``u = A v``:

    repeat `steps` times:   u <- update(u, A operand(u, v))

so its cost shows, ``steps`` more applications of A, and each rule is a polynomial in A. Rules preserve constants (A does),
and with gate 0 are plain filtering.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Base of the rules: the count of steps, and what a rule says of each.

    Args:
        steps: How often A is applied again.
    """

    steps: Final[int]

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def operand(self, u: Tensor, v: Tensor) -> Tensor:
        """What the next step filters, ``[B, H, N, D]``."""
        return v

    def update(self, u: Tensor, smoothed: Tensor) -> Tensor:
        """The next estimate, from this one and the filtered operand."""
        return u

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


class Plain(Residual):
    """No boosting: ``u = A v``."""

    def __init__(self) -> None:
        super().__init__(steps=0)


class Twicing(Residual):
    """Tukey's twicing, k steps: ``u <- u + g A (v - u)``. For g = 1, ``u = (I - (I - A)^(k + 1)) v``.

    One step is ``(2 A - A^2) v``, the Twicing Attention of arXiv 2503.00687; k steps are L2 boosting (Buhlmann and Yu 2003).
    The filtered residual is put back, which lowers the bias of the kernel estimate: eigenvalue a of A becomes
    ``1 - (1 - a)^(k + 1)``.

    Args:
        num_heads: Number of heads.
        steps: k, at least 1.
        gate: Strength g; 1 is the published one, 0 is plain filtering.
        learned: Whether g is a parameter, one a head, starting from ``gate``; else it is a constant.

    Raises:
        ValueError: ``steps`` is no whole number of at least 1, or ``gate`` is not finite.
    """

    def __init__(
        self, num_heads: int, steps: int = 1, gate: float = 1.0, learned: bool = False, device=None, dtype=None
    ) -> None:
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(
                f"twicing: steps is {steps}, but must be a whole number, at least 1; for none use residual='plain'."
            )
        if not math.isfinite(gate):
            raise ValueError(f"twicing: gate is {gate}, but must be finite; 1 is the published strength, 0 plain filtering.")
        super().__init__(steps)
        self.initial_gate = float(gate)
        self.gate = nn.Parameter(torch.empty(num_heads, device=device, dtype=dtype)) if learned else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The gate back to its initial value."""
        if self.gate is not None:
            nn.init.constant_(self.gate, self.initial_gate)

    def operand(self, u: Tensor, v: Tensor) -> Tensor:
        return v - u

    def update(self, u: Tensor, smoothed: Tensor) -> Tensor:
        if self.gate is not None:
            return u + self.gate[:, None, None] * smoothed
        if self.initial_gate == 1.0:
            return u + smoothed
        return u + self.initial_gate * smoothed

    def extra_repr(self) -> str:
        kind = "fixed" if self.gate is None else "learned"
        return f"steps={self.steps}, gate={self.initial_gate} ({kind})"
