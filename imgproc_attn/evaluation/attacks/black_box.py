"""Black-box attacks, which see only logits: Square and SPSA.

Samples that they fool and attacks with gradients do not are a sign of masked gradients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ...core.bandwidths import at_least_float32
from ...utils.checks import check_number
from ..losses import margin, targeted_margin
from ..per_sample_rng import draw_per_sample, mix_seeds
from ..threat import LINF
from .base import Attack, Objective, Passes, check_at_least

__all__ = ["SPSA", "Square"]

Logits = Callable[[Tensor], Tensor]

PAIRS_DRAWN = 8  # Pairs per draw. It is fixed because draws depend on it, and must not depend on the batch.


def _margin(attack: Attack) -> Objective:
    return targeted_margin if attack.threat.targeted else margin


def _check_linf(attack: Attack) -> None:
    if attack.threat.norm != LINF:
        raise ValueError(
            f"{type(attack).__name__}: the norm must be Linf, got {attack.threat.norm.name}. Give an L-infinity threat "
            "model, or use another attack."
        )


@dataclass(frozen=True)
class Square(Attack):
    """Square attack (arXiv 1912.00049) in the L-infinity ball: random search by squares of one color at the ball's corners.

    It starts from vertical stripes and keeps a square if it shrinks the margin of the label. The squares shrink by the
    published schedule.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        queries: Queries of the model per restart and sample.
        share: Share of the image that the first squares cover, in (0, 1].
        restarts: Searches per sample.
        seed: Seed of all random numbers. They depend only on it, the sample's id, the restart and the step.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
        >>> Square(8 / 255, queries=10)(model, torch.rand(2, 3, 2, 2), torch.tensor([0, 1])).success.shape
        torch.Size([2])
    """

    queries: int = 5000
    share: float = 0.8
    restarts: int = 1
    seed: int = 0

    @property
    def passes_per_restart(self) -> Passes:
        return Passes(self.queries, 0)

    def _check(self) -> None:
        super()._check()
        check_at_least(self, queries=1)
        _check_linf(self)
        if not 0 < check_number("Square: share", self.share) <= 1:
            raise ValueError(f"Square: share must be in (0, 1], got {self.share}. The default is 0.8.")

    @torch.no_grad()
    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        eps, base = self.eps, at_least_float32(images)

        def value_of(points: Tensor, rows: Tensor) -> Tensor:
            seen = self.threat.rounded(points, images[rows])
            return _margin(self)(at_least_float32(model(seen)), labels[rows])

        def stripes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
            signs = torch.randint(2, (shape[0], 1, shape[2]), generator=generator) * 2.0 - 1
            return signs.expand(shape)

        best = self.threat.project(base + eps * draw_per_sample(base, ids, (self.seed, restart, 0), stripes), base)
        value = value_of(best, torch.arange(len(images), device=images.device))
        for query in range(1, self.queries):
            left = (value <= 0).nonzero()[:, 0]  # A positive margin means fooled.
            if len(left) == 0:
                break
            seeds = [mix_seeds(self.seed, restart, query, i) for i in ids[left.cpu()].tolist()]
            tried = self._with_squares(best[left], base, left, query, seeds)
            values = value_of(tried, left)
            better = values > value[left]
            best[left[better]], value[left[better]] = tried[better], values[better]
        return self.threat.rounded(best, images)

    def _with_squares(self, points: Tensor, images: Tensor, left: Tensor, query: int, seeds: list[int]) -> Tensor:
        """Return ``points`` with one new square each, at a corner of the ball around its image (number in ``left``).

        All squares are set by one indexing operation, because GPUs are slow at many small ones.
        """
        channels, height, width = images.shape[1:]
        side, generator = self._side(query, height, width), torch.Generator()
        corners, colors = [], []
        for seed in seeds:
            generator.manual_seed(seed)
            corners.append([int(torch.randint(end - side + 1, (), generator=generator)) for end in (height, width)])
            colors.append(torch.randint(2, (channels,), generator=generator) * 2.0 - 1)
        here, channel, offset = (torch.arange(n, device=images.device) for n in (len(points), channels, side))
        y, x = (torch.tensor(corners, device=images.device)[..., None] + offset).unbind(1)
        square = (channel[:, None, None], y[:, None, :, None], x[:, None, None])
        around = images[left[:, None, None, None], *square]  # [B, C, side, side]
        signs = torch.stack(colors).to(images)[:, :, None, None]
        points[here[:, None, None, None], *square] = self.threat.project(around + self.eps * signs, around)
        return points

    def _side(self, query: int, height: int, width: int) -> int:
        """Return the side of the square in pixels. Its area halves at the published queries out of 10,000, rescaled to ours."""
        done = int(query / self.queries * 10000)
        halvings = sum(done > mark for mark in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        side = round(math.sqrt(self.share / 2**halvings * height * width))
        return min(max(side, 1), height, width)


@dataclass(frozen=True)
class SPSA(Attack):
    """SPSA (arXiv 1802.05666): Adam on gradients estimated from differences along random signs.

    Args:
        threat: Threat model; a number is the radius of the L-infinity ball on images in [0, 1].
        steps: Steps of Adam.
        samples: Pairs of queries per step.
        delta: Half the distance between the points of a pair, in the units of the images.
        lr: Learning rate of Adam, in the units of the images.
        batch: Maximum number of images per forward pass (at least one pair).
        restarts: Random starting points per sample.
        seed: Seed of all random numbers. They depend only on it, the sample's id, the restart and the step.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)).eval()
        >>> SPSA(8 / 255, steps=2, samples=4)(model, torch.rand(2, 3, 2, 2), torch.tensor([0, 1])).success.shape
        torch.Size([2])
    """

    steps: int = 40
    samples: int = 128
    delta: float = 0.01
    lr: float = 0.01
    batch: int = field(default=512, metadata={"setting": False})
    restarts: int = 1
    seed: int = 0

    @property
    def passes_per_restart(self) -> Passes:
        return Passes(2 * self.samples * self.steps, 0)

    def _check(self) -> None:
        super()._check()
        check_at_least(self, steps=1, samples=1, batch=1)
        for name in ("delta", "lr"):
            value = check_number(f"SPSA: {name}", getattr(self, name))
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"SPSA: {name} must be positive and finite, got {getattr(self, name)}. The default is 0.01.")

    @torch.no_grad()
    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        adversarial = self.random_start(images, ids, (self.seed, restart, 0))
        mean, square = torch.zeros_like(adversarial), torch.zeros_like(adversarial)

        def logits_of(points: Tensor) -> Tensor:
            return at_least_float32(model(points.to(images.dtype)))

        for step in range(1, self.steps + 1):
            gradient = self._estimate(logits_of, adversarial, labels, ids, restart, step)
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
            rise = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            adversarial = self.threat.project(adversarial + self.lr * rise, images)
        return self.threat.rounded(adversarial, images)

    def _estimate(self, model: Logits, points: Tensor, labels: Tensor, ids: Tensor, restart: int, step: int) -> Tensor:
        """Return an estimate of the gradient of the margin ``[B, C, H, W]``."""
        total = torch.zeros_like(points)
        for first in range(0, self.samples, PAIRS_DRAWN):
            count = min(PAIRS_DRAWN, self.samples - first)
            few = max(1, self.batch // (2 * count))
            for part in torch.arange(len(points)).split(few):
                directions = draw_per_sample(points[part], ids[part], (self.seed, restart, step, first), partial(_signs, count))
                total[part] += self._slopes(model, points[part], labels[part], directions)
        return total / self.samples

    def _slopes(self, model: Logits, points: Tensor, labels: Tensor, directions: Tensor) -> Tensor:
        """Return the sum of each of the ``directions`` ``[B, count, C, H, W]`` times the slope of the margin along it."""
        count = directions.shape[1]
        spread = points[:, None] + self.delta * torch.stack([directions, -directions])  # [2, B, count, C, H, W]
        repeated = labels[None, :, None].expand(2, -1, count).flatten()
        values = _margin(self)(model(spread.flatten(0, 2)), repeated).view(2, len(points), count)
        slopes = (values[0] - values[1]) / (2 * self.delta)
        return (slopes[:, :, None, None, None] * directions).sum(1)


def _signs(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return random ``[count, *shape]`` signs (-1 or 1), one bit each. Whole bytes are drawn, which is fast."""
    size = count * math.prod(shape)
    drawn = torch.randint(256, ((size + 7) // 8,), generator=generator, dtype=torch.uint8)
    bits = np.unpackbits(drawn.numpy(), count=size).reshape(count, *shape)
    return torch.from_numpy(bits.astype(np.int8) * 2 - 1)
