"""Threat models: the allowed distance between adversarial and clean images, and the space it is measured in.

A threat model holds a norm, a radius, whether labels are targets, and the range of the images. The default is the usual one, on
images in [0, 1]. `ThreatModel.normalized` is for papers that attack normalized tensors without a range.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.bandwidths import at_least_float32
from ..utils.checks import check_flag, check_number

__all__ = ["L2", "L2_NORM", "LINF", "Linf", "Norm", "ThreatModel"]


class Norm(ABC):
    """Base class of norms on images ``[B, C, H, W]``, with the geometry of their balls."""

    name: str

    @abstractmethod
    def size(self, difference: Tensor) -> Tensor:
        """Return the ``[B]`` norms of ``[B, C, H, W]`` differences."""

    @abstractmethod
    def project(self, points: Tensor, images: Tensor, eps: float) -> Tensor:
        """Return the nearest points in the balls of radius ``eps`` around ``images``."""

    @abstractmethod
    def rounded(self, points: Tensor, images: Tensor, eps: float) -> Tensor:
        """Return points in the dtype of half-precision ``images`` that are exactly in the balls around them."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the direction of norm 1 of steepest ascent for a ``[B, C, H, W]`` gradient; 0 where the gradient is 0."""

    @abstractmethod
    def random(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return a uniformly distributed random point of the unit ball, for one image of ``shape``."""


@dataclass(frozen=True)
class Linf(Norm):
    """L-infinity norm: the largest change of a value."""

    name = "Linf"

    def size(self, difference: Tensor) -> Tensor:
        return difference.abs().flatten(1).amax(1)

    def project(self, points: Tensor, images: Tensor, eps: float) -> Tensor:
        return points.clamp(images - eps, images + eps)

    def rounded(self, points: Tensor, images: Tensor, eps: float) -> Tensor:
        nearest, exact = points.to(images.dtype), images.double()
        inside = torch.where((nearest.double() - exact).abs() > eps, _one_step_towards(images, nearest), nearest)
        # Near 0 the spacing of floats is so small that one step may not reach the ball.
        return torch.where((inside.double() - exact).abs() > eps, images, inside)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def random(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1


@dataclass(frozen=True)
class L2(Norm):
    """L2 norm: the Euclidean length of the change."""

    name = "L2"

    def size(self, difference: Tensor) -> Tensor:
        exact = torch.float32 if difference.device.type == "mps" else torch.float64  # Sums in float32 have errors of 1e-5.
        return torch.linalg.vector_norm(difference.flatten(1), dim=1, dtype=exact).to(difference.dtype)

    def project(self, points: Tensor, images: Tensor, eps: float) -> Tensor:
        for power in (1, 4, 16, 64):  # One pass is enough, except for radii so small that rounding leaves the ball.
            size = self.size(points - images)
            outside = size > eps * (1 + ROUNDING)
            if not outside.any():
                break
            shrink = torch.where(outside, (eps / size) ** power, 1.0)
            points = images + (points - images) * shrink[:, None, None, None]
        return points

    def rounded(self, points: Tensor, images: Tensor, eps: float) -> Tensor:
        def shrunk(share: Tensor) -> Tensor:
            return (images + share[:, None, None, None] * (points - images)).to(images.dtype)

        def inside(share: Tensor) -> Tensor:
            return self.size(shrunk(share).double() - images.double()) <= eps

        whole = torch.ones_like(points[:, 0, 0, 0])
        low, high = torch.where(inside(whole), whole, 0.0), whole
        for _ in range(HALVINGS):  # Bisection works because the rounded size grows with the share.
            middle = (low + high) / 2
            fits = inside(middle)
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return shrunk(low)

    def steepest(self, gradient: Tensor) -> Tensor:
        # Divide by the largest value first, because squares of small gradients vanish in float32.
        scaled = gradient / gradient.abs().flatten(1).amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)[:, None, None, None]
        return scaled / self.size(scaled).clamp_min(torch.finfo(gradient.dtype).tiny)[:, None, None, None]

    def random(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        direction = torch.randn(shape, generator=generator)
        radius = torch.rand((), generator=generator) ** (1 / math.prod(shape))
        return direction * (radius / direction.norm())


ROUNDING = 5e-7  # Relative rounding error of a length in float32.
HALVINGS = 8  # Bisection steps for the largest share of a change that stays in the ball after rounding.

LINF, L2_NORM = Linf(), L2()


def _one_step_towards(images: Tensor, values: Tensor) -> Tensor:
    """Return the neighbors of 16-bit ``values`` that are nearer to ``images``.

    The bits of a float, read as an integer, grow with its magnitude, so adding 1 gives the next float. `torch.nextafter` does
    not support half precision on every device.
    """
    step = (images.float() - values.float()).sign() * values.float().sign()
    return (values.view(torch.int16) + step.to(torch.int16)).view(values.dtype)


@dataclass(frozen=True)
class ThreatModel:
    """Threat model: the set of images that an adversary may use.

    Args:
        eps: Radius of the ball, in the units of the images: 8/255 is 8 gray levels.
        norm: Norm of the ball, `LINF` or `L2_NORM`.
        targeted: Labels are the classes that the adversary wants, not the classes to avoid.
        bounds: Range ``(low, high)`` of every value; None for no range.

    Raises:
        TypeError: The norm is not a norm, the radius is not one number, or ``targeted`` is not a bool.
        ValueError: The radius is not positive and finite, or is larger than the range, or the range is not ``low < high``.

    Example:
        >>> ThreatModel(8 / 255).record
        {'eps': 0.03137254901960784, 'norm': 'Linf', 'space': 'images'}
    """

    eps: float
    norm: Norm = LINF
    targeted: bool = False
    bounds: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.norm, Norm):
            raise TypeError(f"norm must be LINF or L2_NORM, got {self.norm!r}. Import them from imgproc_attn.evaluation.")
        check_number("eps", self.eps)
        check_flag("targeted", self.targeted)
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"eps must be positive and finite, got {self.eps}. For eps 0 use the clean accuracy.")
        if self.bounds is not None and not -math.inf < self.bounds[0] < self.bounds[1] < math.inf:
            raise ValueError(f"bounds must be a range (low, high), got {self.bounds}. Give (0.0, 1.0), or None for no range.")
        if self.bounds is not None and self.norm == LINF and self.eps > self.bounds[1] - self.bounds[0]:
            width = self.bounds[1] - self.bounds[0]
            raise ValueError(
                f"eps must be at most {width:g}, the width of the range, got {self.eps}. 8 gray levels are eps=8/255."
            )

    @classmethod
    def of(cls, threat: "ThreatModel | float") -> "ThreatModel":
        """Return the threat model. A number is the radius of the L-infinity ball on images in [0, 1]."""
        return threat if isinstance(threat, ThreatModel) else cls(threat)

    @classmethod
    def normalized(cls, eps: float, norm: Norm = LINF) -> "ThreatModel":
        """Return a threat model on normalized tensors.

        ``eps`` is in units of these tensors. Adversarial tensors are not clipped to a range.

        The code of some attention papers uses this convention (see `pixel_eps`).
        """
        return cls(eps, norm, bounds=None)

    @property
    def space(self) -> str:
        """Space of the radius: ``images`` (in [0, 1]) or ``normalized`` (tensors)."""
        return "images" if self.bounds is not None else "normalized"

    @property
    def record(self) -> dict[str, Any]:
        """Radius, norm and space, as in ``result.json``."""
        return {"eps": self.eps, "norm": self.norm.name, "space": self.space}

    def pixel_eps(self, std: Sequence[float]) -> list[float]:
        """Return the radius per channel, in units of images in [0, 1].

        With ImageNet's ``std``, a radius on normalized tensors is about 4.4 times smaller on images.
        """
        return [self.eps * s for s in std] if self.bounds is None else [self.eps for _ in std]

    def project(self, points: Tensor, images: Tensor) -> Tensor:
        """Project into the ball around ``images`` and into the range, in float32 or higher precision."""
        points = self.norm.project(at_least_float32(points), at_least_float32(images), self.eps)
        return points if self.bounds is None else points.clamp(*self.bounds)

    def rounded(self, points: Tensor, images: Tensor) -> Tensor:
        """Return projected ``points`` in the dtype of ``images``, still in the ball, as the model takes them.

        A 16-bit type has few values in a small ball: at 1/255, bright pixels in bfloat16 have one on each side. For a stronger
        attack, give images in float32 to a model that computes in half precision inside.
        """
        return points if points.dtype == images.dtype else self.norm.rounded(points, images, self.eps)

    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """Return the ``[B]`` distances between adversarial images and their clean images."""
        return self.norm.size(at_least_float32(adversarial) - at_least_float32(images))

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the direction of norm 1 of steepest ascent for a ``[B, C, H, W]`` gradient."""
        return self.norm.steepest(gradient)

    def succeeded(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """Return ``[B]`` bool, whether each prediction is what the adversary wants."""
        return predictions == labels if self.targeted else predictions != labels
