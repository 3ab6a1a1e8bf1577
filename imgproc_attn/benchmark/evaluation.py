"""A clean evaluation, compared with timm's loop."""

import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image

from ..data import Preprocessing
from ..evaluation import NormalizedModel
from ..evaluation.conditions import Condition
from ..evaluation.samples import Samples
from ..evaluation.scoring import find_task
from ..evaluation.session import EvaluationSession, Runtime
from ..evaluation.specs import DatasetSpec
from ..utils.progress import progress_bar
from .photographs import photograph
from .timing import WARM_UP_ROUNDS, Case, baseline_of, build_cases, measure, summarize, synchronizer

__all__ = ["EVALUATORS", "EvaluationWork", "benchmark_evaluation"]

EVALUATORS = (
    Case("timm's loop", lambda work: work.timm_loop, baseline=True),
    Case("evaluator", lambda work: work.evaluator),
)


class EvaluationWork:
    """Clean accuracy of ``vit_tiny_patch16_224`` on 64 crops of photographs.

    Args:
        folder: Folder to which the crops are written.
        device: Device of the model.
    """

    def __init__(self, folder: Path, device: str) -> None:
        for i in range(64):
            name, y, x = ("china", "flower")[i % 2], 3 * i, 5 * i
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(photograph(name)[y : y + 224, x : x + 224]).save(folder / name / f"{i}.png")
        self.device = torch.device(device)
        self.model = timm.create_model("vit_tiny_patch16_224", num_classes=2).eval().to(self.device)
        config = timm.data.resolve_model_data_config(self.model)
        self.loader = timm.data.create_loader(
            timm.data.create_dataset("", root=str(folder)), config["input_size"], 32, num_workers=0, device=self.device,
            interpolation=config["interpolation"], mean=config["mean"], std=config["std"], crop_pct=config["crop_pct"],
        )  # fmt: skip
        self.preprocessing = Preprocessing.of(config)
        normalized = NormalizedModel(self.model, self.preprocessing.mean, self.preprocessing.std)
        self.normalized = normalized.to(self.device).eval()
        self.task = find_task("classification")(self.model.num_classes)
        images = self.task.open_dataset(DatasetSpec("folder", str(folder)), self.model, 3)
        self.samples = Samples(images)

    @torch.no_grad()
    def timm_loop(self) -> float:
        """Return the number of correct images, counted as in timm's validation script."""
        correct = sum((self.model(images).argmax(1) == labels).sum() for images, labels in self.loader)
        return float(correct)

    def evaluator(self) -> Any:
        """Return the result of the condition ``clean``."""
        with tempfile.TemporaryDirectory() as folder:
            runtime = Runtime(self.device, batch_size=32, output=Path(folder))
            session = EvaluationSession(
                self.normalized, self.task, self.preprocessing, runtime, progress=lambda name, samples: None
            )
            return session.run([Condition("clean", self.samples, self.task.clean)])


def benchmark_evaluation(runs: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Time a clean evaluation of ``vit_tiny_patch16_224`` on 64 images, including the reading of files."""
    with tempfile.TemporaryDirectory() as folder, progress_bar(runs + WARM_UP_ROUNDS, "rounds", "evaluation") as bar:
        steps = build_cases(EVALUATORS, EvaluationWork(Path(folder), device))
        return summarize(measure(steps, runs, synchronizer(device), bar), baseline_of(EVALUATORS))
