"""Residual boosting: rules that reuse the part of the values that the filter has removed.

A rule acts on the values v and the filter A. It is a recurrence that starts from ``u = A v``:

    w <- v;   repeat `steps` times:   w <- operand(u, v, w),   u <- update(u, A w)

The cost is ``steps`` more applications of A. For frozen weights, each rule is a polynomial in A. Afterwards a rule may add
the state of earlier layers, ``u <- feedback(u, v, state)``. All rules preserve constants, because A does. With gate 0 they are
plain filtering.

The same rules are used in two ways. Inside a layer, A is frozen: its weights are computed once and applied again. Around a
layer, as the *block residual*, A is the whole branch (norm, attention, projection), computed again on each operand.
"""

import math
import warnings
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from ..utils.checks import check_number
from .gates import Gate
from .layer_state import LayerState

__all__ = ["PID", "SOS", "Bregman", "L2Boosting", "NeuTRENO", "Plain", "Residual", "Twicing"]


class Residual(nn.Module):
    """Base class of the rules: the number of steps, and the functions that each step calls.

    Args:
        steps: Number of times that A is applied again.

    Example:
        >>> import torch
        >>> rule, v = Twicing(num_heads=1), torch.ones(1, 1, 9, 4)
        >>> rule(lambda x: 0.5 * x, v)[0, 0, 0, 0].item()  # the eigenvalue 0.5 becomes 1 - (1 - 0.5)^2
        0.75
    """

    needs_state: ClassVar[bool] = False
    """Whether `feedback` or `entry` needs the state of earlier layers."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, smooth: Callable[[Tensor], Tensor], v: Tensor, state: LayerState | None = None) -> Tensor:
        """Return the boosted estimate of the values.

        Args:
            smooth: The filter as a function of values, such as ``operator.apply``.
            v: Values ``[B, H, N, D]``.
            state: State of earlier layers, for rules with ``needs_state``.
        """
        u = smooth(v)
        last = v
        for _ in range(self.steps):
            last = self.operand(u, v, last)
            u = self.update(u, smooth(last))
        return self.feedback(u, v, state)

    def entry(self, v: Tensor, state: LayerState | None) -> Tensor:
        """Return the first operand. Only blocks call it: rules for filters must not override it."""
        return v

    def operand(self, u: Tensor, v: Tensor, last: Tensor) -> Tensor:
        """Return the input of the next filter step, in the shape of v. ``last`` is the input of the previous step."""
        return v

    def update(self, u: Tensor, smoothed: Tensor) -> Tensor:
        """Return the next estimate from the current estimate and the filtered operand."""
        return u

    def feedback(self, u: Tensor, v: Tensor, state: LayerState | None) -> Tensor:
        """Return the estimate plus the terms of earlier layers. Only filters call it: rules for blocks must not override it."""
        return u

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


class Plain(Residual):
    """No boosting: ``u = A v``."""

    def __init__(self) -> None:
        super().__init__(steps=0)


class Boosting(Residual):
    """Base class of the rules with a gate, a factor g on the term that the rule adds.

    Args:
        num_heads: Number of heads. Use 1 for a block residual.
        steps: Number of times that A is applied again.
        gate: Strength g. 1 is the published strength, 0 is plain filtering.
        learned: Whether g is a parameter, one per head, that starts at ``gate``. Otherwise it is a constant.

    Raises:
        TypeError: ``learned`` is not a bool.
        ValueError: ``gate`` is not finite.
    """

    def __init__(self, num_heads: int, steps: int, gate: float = 1.0, learned: bool = False, device=None, dtype=None) -> None:
        super().__init__(steps)
        self.gate = Gate(num_heads, gate, learned, type(self).__name__.lower(), device=device, dtype=dtype)


class Iterated(Boosting):
    """Base class of the rules that apply A again.

    Other arguments are those of `Boosting`.

    Args:
        steps: Number of steps k, at least 1.

    Raises:
        ValueError: ``steps`` is not a whole number of at least 1, or ``gate`` is not finite.
    """

    def __init__(
        self, num_heads: int, steps: int = 1, gate: float = 1.0, learned: bool = False, device=None, dtype=None
    ) -> None:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            name = type(self).__name__.lower()
            raise ValueError(f"{name}: steps must be a whole number of at least 1, got {steps}. Use 'plain' for no steps.")
        super().__init__(num_heads, steps, gate, learned, device, dtype)


class Twicing(Iterated):
    """Tukey's twicing: add back the filtered residual, in k steps.

    Each step is ``u <- u + g A (v - u)``. For g = 1, ``u = (I - (I - A)^(k + 1)) v``. One step is ``(2 A - A^2) v``, the
    Twicing Attention of arXiv 2503.00687. k steps are L2 boosting (Buhlmann and Yu 2003). The added residual lowers the bias of
    the kernel estimate. An eigenvalue a of A becomes ``1 - (1 - a)^(k + 1)``.

    Arguments and errors are those of `Iterated`.

    Example:
        >>> import timm, imgproc_attn
        >>> model = timm.create_model("test_plain_vit", residual={"name": "twicing", "steps": 2})
        >>> model.blocks[0].attn.residual.steps
        2
    """

    def operand(self, u: Tensor, v: Tensor, last: Tensor) -> Tensor:
        return v - u

    def update(self, u: Tensor, smoothed: Tensor) -> Tensor:
        return u + self.gate(smoothed)


class Bregman(Iterated):
    """Bregman iteration (Osher et al. 2005): ``r <- r + (v - u)``, ``u <- A (v + r)``.

    The rule adds everything that was removed so far to the input. If A is frozen, it equals `Twicing` for one
    step, and for any number of steps with g = 1. If A is computed again in each step, the two differ.

    Other arguments, and errors, are those of `Iterated`.

    Args:
        gate: Strength g of the step, ``u + g (A (v + r) - u)``. 0 is plain filtering.
    """

    def operand(self, u: Tensor, v: Tensor, last: Tensor) -> Tensor:
        return last + (v - u)

    def update(self, u: Tensor, smoothed: Tensor) -> Tensor:
        return u + self.gate(smoothed - u)


class SOS(Iterated):
    """Strengthen, operate, subtract (Romano and Elad 2015): ``u <- tau A (v + rho u) - (tau rho + tau - 1) u``.

    The limit ``(I + rho (I - A))^-1 A v`` does not depend on tau. For frozen weights, rho > 0 smooths more than one pass of
    the filter, and rho < 0 smooths less.

    Other arguments are those of `Iterated`.

    Args:
        rho: Share of the estimate that is added to the input. A negative rho sharpens.
        tau: Step size in (0, 2). If rho > -1/2 and tau is below ``2 / max(1, 1 + 2 rho)``, the recurrence converges for any A
            whose rows sum to 1. Default: 1, or nine tenths of that limit if this is less.
        gate: Strength g, a factor on tau. 0 is plain filtering.

    Raises:
        ValueError: tau is outside (0, 2), where even constants diverge; rho or gate is not finite; or ``steps`` is below 1.

    Example:
        >>> [round(SOS(num_heads=4, rho=rho).tau, 4) for rho in (-0.25, 0.5, 1.0)]
        [1.0, 0.9, 0.6]
    """

    def __init__(
        self,
        num_heads: int,
        steps: int = 1,
        rho: float = 0.5,
        tau: float | None = None,
        gate: float = 1.0,
        learned: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(num_heads, steps, gate, learned, device, dtype)
        if not math.isfinite(check_number("sos: rho", rho)):
            raise ValueError(f"sos: rho must be finite, got {rho}. Give a number; 1 adds the whole estimate.")
        limit = 2 / max(1.0, 1 + 2 * rho)
        tau = min(1.0, 0.9 * limit) if tau is None else tau
        if not 0 < check_number("sos: tau", tau) < 2:
            raise ValueError(f"sos: tau must be in (0, 2), outside of which even constants diverge, got {tau}. Leave it out.")
        if rho <= -0.5 or tau >= limit:
            warnings.warn(
                f"sos: with rho={rho} and tau={tau} the recurrence may diverge for some filters. It converges for all if "
                f"rho > -0.5 and tau < 2 / max(1, 1 + 2 rho){f' = {limit:.3g}' if rho > -0.5 else ''}.",
                stacklevel=2,
            )
        self.rho = float(rho)
        self.tau = float(tau)

    def operand(self, u: Tensor, v: Tensor, last: Tensor) -> Tensor:
        return v + self.rho * u

    def update(self, u: Tensor, smoothed: Tensor) -> Tensor:
        return u + self.gate(self.tau * (smoothed - (1 + self.rho) * u))

    def extra_repr(self) -> str:
        return f"steps={self.steps}, rho={self.rho}, tau={self.tau:.4g}"


class NeuTRENO(Boosting):
    """NeuTRENO (arXiv 2312.00751): ``u = A v + g (v_0 - v)``, where v_0 are the values of the first layer.

    The added term keeps the result close to the input. The published lambda is the gate g.

    Other arguments, and errors, are those of `Boosting`.

    Args:
        gate: Strength g, the published lambda. 0.6 is published for DeiT-tiny.

    Example:
        >>> import torch
        >>> u, first = torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 2, 1)
        >>> NeuTRENO(num_heads=1, gate=0.5).feedback(u, u, LayerState(first=first)).flatten().tolist()
        [0.5, 0.5]
    """

    needs_state: ClassVar[bool] = True

    def __init__(self, num_heads: int, gate: float = 0.6, learned: bool = False, device=None, dtype=None) -> None:
        super().__init__(num_heads, 0, gate, learned, device, dtype)

    def feedback(self, u: Tensor, v: Tensor, state: LayerState | None) -> Tensor:
        first = _required(state, "NeuTRENO").first
        return u if first is None else u + self.gate(first - v)


class PID(Boosting):
    """PID controller: ``u = A v + g (P e_l + I (e_1 + … + e_l) + D (e_l - e_(l - 1)))`` with ``e_l = v_0 - v_l`` in layer l.

    The rule follows PIDformer (arXiv 2402.15989), whose code is not public. Formula and gains come from secondary sources and
    are not verified. The published scale of the reference is left out. `NeuTRENO` uses P only.

    Other arguments are those of `Boosting`.

    Args:
        proportional: Gain P.
        integral: Gain I. Its sum includes all earlier layers, also those with another rule.
        derivative: Gain D.
        gate: Strength g of all three terms. 0 is plain filtering.

    Raises:
        ValueError: A gain or ``gate`` is not finite.
    """

    needs_state: ClassVar[bool] = True

    def __init__(
        self,
        num_heads: int,
        proportional: float = 0.8,
        integral: float = 0.5,
        derivative: float = 0.05,
        gate: float = 1.0,
        learned: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(num_heads, 0, gate, learned, device, dtype)
        for name, gain in (("proportional", proportional), ("integral", integral), ("derivative", derivative)):
            if not math.isfinite(check_number(f"pid: {name}", gain)):
                raise ValueError(f"pid: {name} must be finite, got {gain}. Give 0 to leave the term out.")
        self.proportional = float(proportional)
        self.integral = float(integral)
        self.derivative = float(derivative)

    def feedback(self, u: Tensor, v: Tensor, state: LayerState | None) -> Tensor:
        state = _required(state, "PID")
        first, previous, drift = state.first, state.previous, state.drift
        if first is None or previous is None or drift is None:
            return u
        error = first - v
        control = (self.proportional + self.integral) * error + self.integral * drift + self.derivative * (previous - v)
        return u + self.gate(control)

    def extra_repr(self) -> str:
        return f"proportional={self.proportional}, integral={self.integral}, derivative={self.derivative}"


class L2Boosting(Boosting):
    """L2 boosting across blocks: ``z <- z + f(y - z)``, where y are the input tokens of the first block.

    The network itself is the iteration, so no block is evaluated twice. With a gate g between 0 and 1, the input of f is
    ``(1 - g) z + g (y - z)``. The first block is plain, because y - z is zero there.

    Other arguments, and errors, are those of `Boosting`.

    Args:
        gate: Strength g. 1 is the published rule, 0 the plain residual.

    Example:
        >>> import torch
        >>> z, y = torch.ones(1, 2, 4), torch.full((1, 2, 4), 3.0)
        >>> L2Boosting().entry(z, LayerState(tokens=y)).unique().tolist()
        [2.0]
    """

    needs_state: ClassVar[bool] = True

    def __init__(self, num_heads: int = 1, gate: float = 1.0, learned: bool = False, device=None, dtype=None) -> None:
        super().__init__(num_heads, 0, gate, learned, device, dtype)

    def entry(self, v: Tensor, state: LayerState | None) -> Tensor:
        reference = _required(state, "L2Boosting").tokens
        return v if reference is None else v + self.gate(reference - 2 * v)


def _required(state: LayerState | None, rule: str) -> LayerState:
    """Return ``state``, which ``rule`` needs.

    Raises:
        ValueError: ``state`` is None.
    """
    if state is None:
        raise ValueError(
            "state= must be a LayerState for " + rule + ", got None. Pass LayerState() to the first layer, and the state that "
            "each layer returns to the next layer."
        )
    return state
