"""Residual boosting: what is done with what the filter has removed.

A rule on the values v and on the filter A, written as a recurrence that starts from ``u = A v``:

    w <- v;   repeat `steps` times:   w <- operand(u, v, w),   u <- update(u, A w)

so its cost shows, ``steps`` more applications of A, and for frozen weights each rule is a polynomial in A. Rules may then
add what earlier layers carry, ``u <- feedback(u, v, state)``. All preserve constants (A does), and with gate 0 are plain
filtering.

The same rules serve in two places. In a layer, A is frozen: its weights are computed once and applied again. Around a layer, as
the *block residual*, A is the whole branch (norm, attention, projection) and is estimated again on each operand.
"""

import math
import warnings
from typing import ClassVar

from torch import Tensor, nn

from ..utils.checks import check_number
from .gates import Gate
from .layer_state import LayerState


class Residual(nn.Module):
    """Base of the rules: the count of steps, and what a rule says of each.

    Args:
        steps: How often A is applied again.
    """

    needs_state: ClassVar[bool] = False
    """Whether `feedback` or `entry` needs what earlier layers hand on."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def entry(self, v: Tensor, state: LayerState | None) -> Tensor:
        """Return the first operand; only block residuals ask. A filter's rule must not change it."""
        return v

    def operand(self, u: Tensor, v: Tensor, last: Tensor) -> Tensor:
        """What the next step filters, in the shape of v; ``last`` is what the step before filtered."""
        return v

    def update(self, u: Tensor, smoothed: Tensor) -> Tensor:
        """The next estimate, from this one and the filtered operand."""
        return u

    def feedback(self, u: Tensor, v: Tensor, state: LayerState | None) -> Tensor:
        """The estimate with what earlier layers add; only filters ask. A block residual must leave it alone."""
        return u

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


class Plain(Residual):
    """No boosting: ``u = A v``."""

    def __init__(self) -> None:
        super().__init__(steps=0)


class Boosting(Residual):
    """Base of the rules with a gate.

    Args:
        num_heads: Number of heads; 1 for a block residual.
        steps: How often A is applied again.
        gate: Strength g; 1 is the published one, 0 is plain filtering.
        learned: Whether g is a parameter, one per head, starting from ``gate``; else it is a constant.

    Raises:
        ValueError: ``gate`` is not finite.
    """

    def __init__(self, num_heads: int, steps: int, gate: float = 1.0, learned: bool = False, device=None, dtype=None) -> None:
        super().__init__(steps)
        self.gate = Gate(num_heads, gate, learned, type(self).__name__.lower(), device=device, dtype=dtype)


class Iterated(Boosting):
    """Base of the rules that apply A again.

    Other arguments are those of `Boosting`.

    Args:
        steps: k, at least 1.

    Raises:
        ValueError: ``steps`` is no whole number of at least 1, or as for `Boosting`.
    """

    def __init__(
        self, num_heads: int, steps: int = 1, gate: float = 1.0, learned: bool = False, device=None, dtype=None
    ) -> None:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            name = type(self).__name__.lower()
            raise ValueError(f"{name}: steps is {steps}, but must be a whole number, at least 1; for none use 'plain'.")
        super().__init__(num_heads, steps, gate, learned, device, dtype)


class Twicing(Iterated):
    """Tukey's twicing, k steps: ``u <- u + g A (v - u)``. For g = 1, ``u = (I - (I - A)^(k + 1)) v``.

    One step is ``(2 A - A^2) v``, the Twicing Attention of arXiv 2503.00687; k steps are L2 boosting (Buhlmann and Yu 2003).
    The filtered residual is put back, which lowers the bias of the kernel estimate: eigenvalue a of A becomes
    ``1 - (1 - a)^(k + 1)``.

    Arguments and errors are those of `Iterated`.
    """

    def operand(self, u: Tensor, v: Tensor, last: Tensor) -> Tensor:
        return v - u

    def update(self, u: Tensor, smoothed: Tensor) -> Tensor:
        return u + self.gate(smoothed)


class Bregman(Iterated):
    """Bregman iteration (Osher et al. 2005): ``r <- r + (v - u)``, ``u <- A (v + r)``.

    All that was ever removed is added to the input. For a frozen A the same as `Twicing`, in one step or with g = 1; not so for
    an A estimated again.

    Other arguments, and errors, are those of `Iterated`.

    Args:
        gate: Strength g of the step, ``u + g (A (v + r) - u)``; 0 is plain filtering.
    """

    def operand(self, u: Tensor, v: Tensor, last: Tensor) -> Tensor:
        return last + (v - u)

    def update(self, u: Tensor, smoothed: Tensor) -> Tensor:
        return u + self.gate(smoothed - u)


class SOS(Iterated):
    """Strengthen, operate, subtract (Romano and Elad 2015): ``u <- tau A (v + rho u) - (tau rho + tau - 1) u``.

    Its limit ``(I + rho (I - A))^-1 A v`` does not depend on tau. For frozen weights and rho > 0 it smooths more than one
    pass does, for rho < 0 less.

    Other arguments are those of `Iterated`.

    Args:
        rho: How much of the estimate strengthens the input. A negative rho sharpens.
        tau: Step length in (0, 2). Below ``2 / max(1, 1 + 2 rho)``, for rho > -1/2, the recurrence converges for any
            row-stochastic A. Default 1, or nine tenths of that limit where this is less.
        gate: Strength g, a factor on tau; 0 is plain filtering.

    Raises:
        ValueError: tau outside (0, 2), where constants themselves diverge; rho or gate not finite; ``steps`` below 1.
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
            raise ValueError(f"sos: rho is {rho}, but must be finite; 1 adds the whole estimate.")
        limit = 2 / max(1.0, 1 + 2 * rho)
        tau = min(1.0, 0.9 * limit) if tau is None else tau
        if not 0 < check_number("sos: tau", tau) < 2:
            raise ValueError(f"sos: tau is {tau}, but must lie in (0, 2): outside even constants diverge; leave it out.")
        if rho <= -0.5 or tau >= limit:
            warnings.warn(
                f"sos: with rho={rho} and tau={tau} the recurrence may diverge for some filters; it converges for all if "
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
    """``u = A v + g (v_0 - v)``, v_0 the values of the first layer (arXiv 2312.00751): fidelity to the input.

    The published lambda is the gate g.

    Other arguments, and errors, are those of `Boosting`.

    Args:
        gate: lambda; 0.6 is published for DeiT-tiny.
    """

    needs_state: ClassVar[bool] = True

    def __init__(self, num_heads: int, gate: float = 0.6, learned: bool = False, device=None, dtype=None) -> None:
        super().__init__(num_heads, 0, gate, learned, device, dtype)

    def feedback(self, u: Tensor, v: Tensor, state: LayerState | None) -> Tensor:
        first = needed(state, "NeuTRENO").first
        return u if first is None else u + self.gate(first - v)


class PID(Boosting):
    """``u = A v + g (P e_l + I (e_1 + ... + e_l) + D (e_l - e_(l - 1)))``, ``e_l = v_0 - v_l``: a controller towards the input.

    After PIDformer (arXiv 2402.15989), whose code is not public: formula and gains are second-hand, unverified; the published
    scale of the reference is left out. `NeuTRENO` is P alone.

    Other arguments are those of `Boosting`.

    Args:
        proportional: P.
        integral: I; sums over all layers in front, whatever their rule.
        derivative: D.
        gate: Strength g of all three; 0 is plain filtering.

    Raises:
        ValueError: A gain is not finite.
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
                raise ValueError(f"pid: {name} is {gain}, but must be finite; 0 leaves it out.")
        self.proportional = float(proportional)
        self.integral = float(integral)
        self.derivative = float(derivative)

    def feedback(self, u: Tensor, v: Tensor, state: LayerState | None) -> Tensor:
        state = needed(state, "PID")
        first, previous, drift = state.first, state.previous, state.drift
        if first is None or previous is None or drift is None:
            return u
        error = first - v
        control = (self.proportional + self.integral) * error + self.integral * drift + self.derivative * (previous - v)
        return u + self.gate(control)

    def extra_repr(self) -> str:
        return f"proportional={self.proportional}, integral={self.integral}, derivative={self.derivative}"


class L2Boosting(Boosting):
    """Stream of L2 boosting across blocks: ``z <- z + f(y - z)``, y the tokens that entered the first block.

    The network itself is the iteration; no block is evaluated twice. What a gate g between 0 and 1 feeds the block is
    ``(1 - g) z + g (y - z)``. The first block, where y - z vanishes, is plain.

    Other arguments, and errors, are those of `Boosting`.

    Args:
        gate: g; 1 is the published rule, 0 the plain residual.
    """

    needs_state: ClassVar[bool] = True

    def __init__(self, num_heads: int = 1, gate: float = 1.0, learned: bool = False, device=None, dtype=None) -> None:
        super().__init__(num_heads, 0, gate, learned, device, dtype)

    def entry(self, v: Tensor, state: LayerState | None) -> Tensor:
        reference = needed(state, "L2Boosting").tokens
        return v if reference is None else v + self.gate(reference - 2 * v)


def needed(state: LayerState | None, who: str) -> LayerState:
    """``state``, which ``who`` cannot do without.

    Raises:
        ValueError: It is None.
    """
    if state is None:
        raise ValueError(
            who + " needs what earlier layers hand on, but state= is None; pass LayerState() to the first layer, and what "
            "each layer returns to the next."
        )
    return state
