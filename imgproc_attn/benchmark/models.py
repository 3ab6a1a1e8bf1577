"""Whole models, compared with timm's ViT."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F

from ..models import FAMILIES
from ..utils.progress import progress_bar
from .timing import WARM_UP_ROUNDS, Step, measure, summarize, synchronizer

__all__ = ["MODELS", "ModelWork", "benchmark_models"]

# The first is the baseline.
MODELS = ("vit_small_patch16_224", *(f"{family}_small" for family in FAMILIES))


@dataclass(frozen=True)
class ModelWork:
    """Whole models on a batch of random images.

    Attributes:
        tokens: Number of patches per image. It must be a square number.
        batch: Number of images.
        train: Whether a step is a training step with AdamW. Otherwise it is inference.
        device: Device of model and images.
        dtype: Dtype of model and images.
    """

    tokens: int
    batch: int
    train: bool
    device: str
    dtype: torch.dtype

    def step(self, name: str) -> Step:
        """Return one step of timm's model ``name``."""
        size = (16 * math.isqrt(self.tokens), 16 * math.isqrt(self.tokens))
        model = timm.create_model(name, img_size=size, device=self.device, dtype=self.dtype).train(self.train)
        images = torch.randn(self.batch, 3, *size, device=self.device, dtype=self.dtype)
        optimizer = torch.optim.AdamW(model.parameters())

        def step():
            with torch.set_grad_enabled(self.train):
                logits = model(images)
                if self.train:
                    labels = torch.zeros(self.batch, dtype=torch.long, device=self.device)
                    F.cross_entropy(logits.float(), labels).backward()
                    optimizer.step()
                    optimizer.zero_grad()

        return step


def benchmark_models(
    names: Sequence[str], tokens: Sequence[int], runs: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[dict[str, Any]]:
    """Time inference and a training step with AdamW of whole models. The first of ``names`` is the baseline."""
    rows = []
    synchronize = synchronizer(device)
    with progress_bar(2 * len(tokens) * (runs + WARM_UP_ROUNDS), "rounds", "models") as bar:
        for n in tokens:
            batch = max(1, (784 if device == "cpu" else 25088) // n)
            for train in (False, True):
                bar.set_postfix_str(f"{n} tokens, {'training' if train else 'inference'}")
                work = ModelWork(n, batch, train, device, dtype)
                steps = {name: work.step(name) for name in names}
                summary = summarize(measure(steps, runs, synchronize, bar), names[0])
                rows += [
                    {
                        "tokens": n,
                        "batch": batch,
                        "mode": "training" if train else "inference",
                        **row,
                        "throughput": 1 / row["ratio"],
                    }
                    for row in summary
                ]
    return rows
