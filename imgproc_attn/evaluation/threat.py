"""Threat models: how far an adversarial image may lie from its image, and in which space.

A threat model is an object: a norm, a radius, whether labels are targets, and the range images must keep. By default it is the
usual one, on images in [0, 1]; `ThreatModel.normalized` is that of papers which attack normalized tensors without a range.
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


class Norm(ABC):
    """A norm on images ``[B, C, H, W]``, and the geometry of its balls."""

    name: str

    @abstractmethod
    def size(self, difference: Tensor) -> Tensor:
        """``[B]`` norms."""

    @abstractmethod
    def project(self, points: Tensor, images: Tensor, eps: float) -> Tensor:
        """The nearest points of the balls around ``images``."""

    @abstractmethod
    def rounded(self, points: Tensor, images: Tensor, eps: float) -> Tensor:
        """Points of the balls around half-precision ``images``, in their type, and exactly in the balls."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """Of norm 1, and along it a linear function of that gradient rises fastest; 0 where the gradient is 0."""

    @abstractmethod
    def random(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """A point of the unit ball, uniformly distributed, for one image of ``shape``."""


@dataclass(frozen=True)
class Linf(Norm):
    """The largest change of a value."""

    name = "Linf"

    def size(self, difference: Tensor) -> Tensor:
        return difference.abs().flatten(1).amax(1)

    def project(self, points: Tensor, images: Tensor, eps: float) -> Tensor:
        return points.clamp(images - eps, images + eps)

    def rounded(self, points: Tensor, images: Tensor, eps: float) -> Tensor:
        nearest, exact = points.to(images.dtype), images.double()
        inside = torch.where((nearest.double() - exact).abs() > eps, _one_step_towards(images, nearest), nearest)
        return torch.where(
            (inside.double() - exact).abs() > eps, images, inside
        )  # beside values next to 0, whose steps are tiny

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def random(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1


@dataclass(frozen=True)
class L2(Norm):
    """The Euclidean length of the change."""

    name = "L2"

    def size(self, difference: Tensor) -> Tensor:
        exact = torch.float32 if difference.device.type == "mps" else torch.float64  # float32 sums are off by 1e-5
        return torch.linalg.vector_norm(difference.flatten(1), dim=1, dtype=exact).to(difference.dtype)

    def project(self, points: Tensor, images: Tensor, eps: float) -> Tensor:
        for power in (1, 4, 16, 64):  # once, but for radii so small that rounding the sum leaves the ball
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
        for _ in range(HALVINGS):  # rounding to the nearest, the size grows with the share
            middle = (low + high) / 2
            fits = inside(middle)
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return shrunk(low)

    def steepest(self, gradient: Tensor) -> Tensor:
        # divided by the largest first: the squares of small gradients vanish in float32
        scaled = gradient / gradient.abs().flatten(1).amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)[:, None, None, None]
        return scaled / self.size(scaled).clamp_min(torch.finfo(gradient.dtype).tiny)[:, None, None, None]

    def random(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        direction = torch.randn(shape, generator=generator)
        radius = torch.rand((), generator=generator) ** (1 / math.prod(shape))
        return direction * (radius / direction.norm())


ROUNDING = 5e-7  # of a length in float32, relative
HALVINGS = 8  # of the interval in which the largest share of a change is looked for that stays in the ball when rounded

LINF, L2_NORM = Linf(), L2()


def _one_step_towards(images: Tensor, values: Tensor) -> Tensor:
    """The neighbors of ``values`` that are nearer to ``images``, in a type of 16 bits.

    The bits of a floating-point number, read as a whole number, count its magnitude. (`torch.nextafter` does not know half
    precision on every device.)
    """
    step = (images.float() - values.float()).sign() * values.float().sign()
    return (values.view(torch.int16) + step.to(torch.int16)).view(values.dtype)


@dataclass(frozen=True)
class ThreatModel:
    """What an adversary may do.

    Args:
        eps: Radius of the ball, in the units of the images: 8/255 is 8 gray levels.
        norm: Of the ball.
        targeted: Labels are classes the adversary wants, not those to avoid.
        bounds: Range every value must keep; None for no range.

    Raises:
        TypeError: A norm that is none, a radius that is not one number, or targets that are not a flag.
        ValueError: A radius that is not positive and finite, or a range that is none.
    """

    eps: float
    norm: Norm = LINF
    targeted: bool = False
    bounds: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.norm, Norm):
            raise TypeError(f"norm is {self.norm!r}, but must be LINF or L2_NORM of imgproc_attn.evaluation.")
        check_number("eps", self.eps)
        check_flag("targeted", self.targeted)
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"eps is {self.eps}, but must be positive and finite; at 0 accuracy is clean accuracy.")
        if self.bounds is not None and not -math.inf < self.bounds[0] < self.bounds[1] < math.inf:
            raise ValueError(f"bounds must be a range (low, high), got {self.bounds}. Give (0.0, 1.0), or None for no range.")
        if self.bounds is not None and self.norm == LINF and self.eps > self.bounds[1] - self.bounds[0]:
            low, high = self.bounds
            raise ValueError(f"eps is {self.eps}, but images range from {low:g} to {high:g}; 8 gray levels are eps=8/255.")

    @classmethod
    def of(cls, threat: "ThreatModel | float") -> "ThreatModel":
        """A radius is that of the L-infinity ball on images in [0, 1]."""
        return threat if isinstance(threat, ThreatModel) else cls(threat)

    @classmethod
    def normalized(cls, eps: float, norm: Norm = LINF) -> "ThreatModel":
        """The convention of the papers' code: eps in units of normalized tensors, no range (see `pixel_eps`)."""
        return cls(eps, norm, bounds=None)

    @property
    def space(self) -> str:
        """Of what the radius is meant: ``images`` in [0, 1], or ``normalized`` tensors."""
        return "images" if self.bounds is not None else "normalized"

    @property
    def record(self) -> dict[str, Any]:
        """What results tell of it."""
        return {"eps": self.eps, "norm": self.norm.name, "space": self.space}

    def pixel_eps(self, std: Sequence[float]) -> list[float]:
        """The radius in units of images in [0, 1], a channel: about 4.4 times weaker than it looks with ImageNet's ``std``."""
        return [self.eps * s for s in std] if self.bounds is None else [self.eps for _ in std]

    def project(self, points: Tensor, images: Tensor) -> Tensor:
        """Into the ball around ``images``, and into the range; in float32 at least, whatever the type of the images."""
        points = self.norm.project(at_least_float32(points), at_least_float32(images), self.eps)
        return points if self.bounds is None else points.clamp(*self.bounds)

    def rounded(self, points: Tensor, images: Tensor) -> Tensor:
        """What a model gets of projected ``points``: in the type of ``images``, and still in the ball.

        A type of 16 bits has few values in a small ball: for bright pixels in bfloat16, one on each side at 1/255. For a
        stronger attack give images in float32 to a model that computes in half precision inside.
        """
        return points if points.dtype == images.dtype else self.norm.rounded(points, images, self.eps)

    def distance(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """``[B]``, how far adversarial images lie from theirs."""
        return self.norm.size(at_least_float32(adversarial) - at_least_float32(images))

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of norm 1 along which an objective of that gradient rises fastest."""
        return self.norm.steepest(gradient)

    def succeeded(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """``[B]`` bool, whether predictions are what the adversary wants."""
        return predictions == labels if self.targeted else predictions != labels
