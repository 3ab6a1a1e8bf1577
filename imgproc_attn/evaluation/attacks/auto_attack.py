"""The official AutoAttack as one attack, where its package is installed."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ...core.bandwidths import at_least_float32
from .base import Attack, Passes

VERSIONS = ("standard", "plus", "rand")


@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack (arXiv 2003.01690) by its authors' package ``autoattack``: APGD-CE, targeted APGD and FAB, Square.

    The package is not on PyPI: ``pip install git+https://github.com/fra31/auto-attack``. Its random draws belong to batches, so
    numbers depend on the batch size, unlike those of all other attacks here. Where it is not installed, use `strong_ensemble`.

    Args:
        threat: Threat model on images in [0, 1], without targets; a number is the radius of the L-infinity ball.
        version: ``standard``, ``plus``, or ``rand`` for models that draw random numbers.
        seed: Seed of the draws of each batch.

    Raises:
        ValueError: The package is not installed, another version, targets, or normalized tensors.
    """

    threat: Any
    version: str = "standard"
    seed: int = 0

    def _check(self) -> None:
        super()._check()
        if self.version not in VERSIONS:
            raise ValueError(f"AutoAttack: version must be one of {', '.join(VERSIONS)}, got {self.version!r}.")
        if self.threat.targeted or self.threat.bounds != (0.0, 1.0):
            raise ValueError("AutoAttack: the threat model must be untargeted, on images in [0, 1]. Use another attack.")
        if find_spec("autoattack") is None:
            raise ValueError(
                "AutoAttack: the package autoattack must be installed, got none. Run pip install "
                "git+https://github.com/fra31/auto-attack, or use the ensemble, which is AutoAttack without FAB."
            )

    @property
    def passes_a_restart(self) -> Passes:
        """Passes of the standard version: 100 steps of APGD-CE, of 9 targets each of APGD and FAB; 5,000 queries of Square."""
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
