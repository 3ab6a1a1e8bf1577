"""Adapter for the official AutoAttack package, which is optional."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ...core.bandwidths import at_least_float32
from .base import Attack, Passes

__all__ = ["VERSIONS", "AutoAttack"]

VERSIONS = ("standard", "plus", "rand")


@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack (arXiv 2003.01690) by its authors' package ``autoattack``: APGD-CE, targeted APGD and FAB, Square.

    The package is not on PyPI. Install it with ``pip install git+https://github.com/fra31/auto-attack``, or use
    `strong_ensemble` without it. Its random draws are made per batch, so its numbers depend on the batch size. All other
    attacks here draw per sample.

    Args:
        threat: Threat model on images in [0, 1], without targets; a number is the radius of the L-infinity ball.
        version: ``standard``, ``plus``, or ``rand`` for models that draw random numbers.
        seed: Seed of the random numbers of each batch.

    Raises:
        ValueError: The package is not installed, the version is unknown, or the threat model is targeted or on normalized
            tensors.
    """

    threat: Any
    version: str = "standard"
    seed: int = 0

    def _check(self) -> None:
        super()._check()
        if self.version not in VERSIONS:
            raise ValueError(
                f"AutoAttack: version must be one of {', '.join(VERSIONS)}, got {self.version!r}. Give one of these."
            )
        if self.threat.targeted or self.threat.bounds != (0.0, 1.0):
            raise ValueError(
                f"AutoAttack: the threat model must be untargeted, on images in [0, 1], got {self.threat}. Use another attack."
            )
        if find_spec("autoattack") is None:
            raise ValueError(
                "AutoAttack: the package autoattack must be installed, got none. Run pip install "
                "git+https://github.com/fra31/auto-attack, or use the ensemble, which is AutoAttack without FAB."
            )

    @property
    def passes_per_restart(self) -> Passes:
        """Passes of the standard version: APGD-CE with 100 steps, APGD-T and FAB-T with 9 x 100, Square with 5,000 queries."""
        return Passes(100 + 2 * 900 + 5000, 100 + 2 * 900)

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, restart: int = 0) -> Tensor:
        from autoattack import AutoAttack as Official  # type: ignore[import-not-found]  # optional

        official = Official(
            model,
            self.threat.norm.name,
            self.eps,
            self.seed,
            verbose=False,
            version=self.version,
            device=str(images.device),
        )
        with torch.enable_grad():
            adversarial = official.run_standard_evaluation(images.clone(), labels, bs=len(images))
        return self.threat.rounded(self.threat.project(at_least_float32(adversarial), at_least_float32(images)), images)
