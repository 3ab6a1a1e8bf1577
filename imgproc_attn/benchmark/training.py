"""The training loop, compared with a bare loop."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import SINGLE_PROCESS
from ..recipe import find_recipe, load_recipe
from ..training import Trainer
from ..training.run import Run
from ..utils.progress import progress_bar
from .timing import WARM_UP_ROUNDS, Case, Step, baseline_of, build_cases, measure, summarize, synchronizer

__all__ = ["LOOPS", "TrainingWork", "benchmark_training"]

LOOPS = (
    Case("bare loop", lambda work: work.bare_loop(), baseline=True),
    Case("training loop", lambda work: work.training_loop()),
)
# Overrides of the quickstart recipe.
TRAINING_SIZES: dict[str, list[str]] = {
    "8 x 8, 0.1 M parameters": [],
    "32 x 32, 1 M parameters": [
        *("data.input_size=[1,32,32]", "model.img_size=32", "model.patch_size=4", "model.embed_dim=128", "model.depth=5"),
        *("model.mlp_ratio=4.0", "data.train_images=512"),
    ],
}


class TrainingWork:
    """Epochs of training with equal models, losses, optimizers and loaders.

    Args:
        overrides: Overrides of the quickstart recipe.
        folder: Folder of the runs.
        device: Device of the training.
    """

    def __init__(self, overrides: Sequence[str], folder: Path, device: str) -> None:
        self.recipe = load_recipe(find_recipe("quickstart"), overrides).variant("plain", 0)
        self._folder, self._device = folder, torch.device(device)

    def _trainer(self, name: str) -> Trainer:
        return Run(self.recipe, self._folder / name, self._device, SINGLE_PROCESS).trainer

    def bare_loop(self) -> Step:
        """Return an epoch of a minimal training loop."""
        trainer, clip_grad = self._trainer("bare"), self.recipe.optimizer.clip_grad or math.inf

        def epoch() -> None:
            model, loss_function = trainer.task.get_trainable_module(), nn.CrossEntropyLoss()
            assert model is not None
            model.train()
            for images, targets in trainer.loader:
                loss = loss_function(model(images), targets)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()

        return epoch

    def training_loop(self) -> Step:
        """Return an epoch of the training loop of this package."""
        trainer = self._trainer("loop")
        return lambda: trainer.train_epoch(0)


def benchmark_training(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Time an epoch of the training loop and of a bare loop, on scikit-learn's digits at 8 x 8 and at 32 x 32."""
    rows = []
    with progress_bar(len(TRAINING_SIZES) * (runs + WARM_UP_ROUNDS), "rounds", "training") as bar:
        for size, overrides in TRAINING_SIZES.items():
            with tempfile.TemporaryDirectory() as folder:
                steps = build_cases(LOOPS, TrainingWork(overrides, Path(folder), device))
                summary = summarize(measure(steps, runs, synchronizer(device), bar), baseline_of(LOOPS))
            rows += [{**row, "name": f"{row['name']}, {size}", "throughput": 1 / row["ratio"]} for row in summary]
    return rows
