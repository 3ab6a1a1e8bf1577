"""Classification: one label per image."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import ClassificationTask as TimmClassification
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from ..core.attention import FilterAttention
from ..data import Preprocessing
from ..diagnostics import draw_adversarial, draw_kernel_rows
from ..evaluation.attacks import PGD, Attack, Passes
from ..evaluation.attacks.base import checked_logits, predict
from ..evaluation.contract import check_batch
from ..evaluation.findings import Finding, SanityReport
from ..evaluation.imagenet_c.errors import corruption_summary
from ..evaluation.imagenet_subsets import IMAGENET_CLASSES, ClassMap, class_map
from ..evaluation.normalization import NormalizedModel
from ..evaluation.per_sample_rng import mix_seeds
from ..evaluation.presets import ATTACKS, PRESETS
from ..evaluation.results import BY_CLASS, PREDICTIONS
from ..evaluation.results_log import SampleResults, of_common_samples
from ..evaluation.samples import Batch, SampleSet, only_readable
from ..evaluation.sanity import attack_probes, check_rows, judge
from ..evaluation.scorers import AnyAttack, BatchResult, Scorer
from ..evaluation.scoring import Metric
from ..evaluation.specs import DatasetSpec
from ..evaluation.statistics import wilson_interval
from ..evaluation.threat import LINF, ThreatModel
from ..models import FilterVisionTransformer
from ..recipe import Recipe
from ..segmentation.data import LABEL_MAP_READERS
from ..utils.io import slug
from ..utils.markdown import markdown_text
from .base import Loading, Task, register_task

__all__ = [
    "AdversarialTraining",
    "ClassificationTask",
    "LabelAttackScorer",
    "PublishedAttackScorer",
    "check_threat",
    "targets_of",
]

TOP = 5  # predictions that are kept per image
NUM_WORST = 5  # classes that are named as the worst ones
NUM_DRAWN = 8  # classes of which adversarial images are drawn


@register_task("classification")
@dataclass(frozen=True)
class ClassificationTask(Task):
    """One label per image: accuracy, with Wilson's intervals.

    Args:
        num_classes: Number of classes; 0 if only given attacks are run.
        classes: The classes of ImageNet that the images are of, if their labels are not the model's.

    Example:
        >>> ClassificationTask(10).metrics[0].label
        'accuracy / %'
    """

    metrics: ClassVar = (Metric("accuracy", "accuracy"),)
    attacks: ClassVar = ATTACKS
    presets: ClassVar = PRESETS
    refused_options: ClassVar[tuple[str, ...]] = ("short_side", "window", "stride", "scales", "flip")
    details: ClassVar = ("top", "loss")

    num_classes: int = field(default=0, metadata={"setting": False})
    classes: ClassMap | None = field(default=None, metadata={"setting": False})

    @property
    def num_outputs(self) -> int:
        return self.num_classes

    # settings

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        return cls(recipe.data.num_classes)

    @classmethod
    def for_model(cls, model: Any, recipe: Recipe | None = None, **options: Any) -> Self:
        """Return the task of a model. The option ``classes`` is a `ClassMap` or the name of one."""
        classes = options.pop("classes", None)
        found = class_map(classes) if isinstance(classes, str) else classes
        return cls(model.num_classes if found is None else found.num_classes, found)

    @property
    def protocol(self) -> dict[str, Any]:
        return {"classes": None if self.classes is None else self.classes.name}

    # data

    @classmethod
    def check_reader(cls, name: str) -> None:
        if name in LABEL_MAP_READERS:
            raise ValueError(
                f"The data must have one label per image, which classifiers need, got {name!r}, which has label maps. Name "
                "other data, or the run of a segmenter."
            )
        super().check_reader(name)

    def open_dataset(self, spec: DatasetSpec, model: Any, channels: int) -> Any:
        if self.classes is None:
            return super().open_dataset(spec, model, channels)
        reader = self.classes.relabel(self.open_reader(spec, channels))
        return self.numbered(reader, spec, self.classes.num_classes, channels)

    def restrict(self, model: nn.Module) -> nn.Module:
        return model if self.classes is None else self.classes.restrict(model)

    # loss

    def training_task(
        self, recipe: Recipe, model: nn.Module, preprocessing: Preprocessing, device: torch.device
    ) -> TrainingTask:
        run = recipe.run
        kwargs: dict[str, Any] = {"device": device, "verbose": False}
        criterion: nn.Module
        if run.loss == "bce":
            criterion = BinaryCrossEntropy(0.0 if recipe.augmentation.mixes else run.label_smoothing)
        elif recipe.augmentation.mixes:
            criterion = SoftTargetCrossEntropy()
        elif run.label_smoothing:
            criterion = LabelSmoothingCrossEntropy(run.label_smoothing)
        else:
            criterion = nn.CrossEntropyLoss()
        if recipe.adversarial is None:
            return TimmClassification(model, criterion, **kwargs)
        attack = recipe.adversarial.model_dump()
        return AdversarialTraining(model, criterion, mean=preprocessing.mean, std=preprocessing.std, **attack, **kwargs)

    # scorers

    def score(self, model: nn.Module, images: Tensor, targets: Tensor) -> Mapping[str, Any]:
        logits = checked_logits(model, images, targets)
        top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
        predictions = logits.argmax(dim=1)
        return {
            "labels": targets,
            "correct": (predictions == targets).int(),
            "scores": logits.softmax(dim=1).amax(dim=1),
            "predictions": predictions,
            "top": top,
            "loss": F.cross_entropy(logits, targets, reduction="none"),
        }

    def under(self, attack: AnyAttack) -> Scorer:
        """Return the scorer for the space of the attack's threat model: images in [0, 1], or normalized tensors.

        Raises:
            ValueError: Several attacks as one, or targets, on normalized tensors: the papers' code has neither.
        """
        if attack.threat.bounds is not None:
            return LabelAttackScorer(attack)
        if not isinstance(attack, Attack) or attack.threat.targeted or attack.restarts > 1:
            raise ValueError(
                f"An attack on normalized tensors must be a single attack with one start and without targets, got {attack}. "
                "Attack images in [0, 1]."
            )
        return PublishedAttackScorer(attack)

    # numbers

    def per_sample(self, results: SampleResults) -> list[float]:
        return results.correct.int().tolist()

    def count(self, results: SampleResults) -> dict[str, Any]:
        n, correct = len(results.ids), int(results.correct.sum())
        numbers: dict[str, Any] = {"n": n, "correct": correct, "accuracy": 100 * correct / n}
        if "top" in results.columns:
            in_top = int(self._in_top(results).sum())
            numbers |= {"top5": 100 * in_top / n, "top5_interval": list(wilson_interval(in_top, n))}
            numbers["loss"] = torch.tensor(results.column("loss"), dtype=torch.float64).mean().item()
        return numbers

    def _in_top(self, results: SampleResults) -> Tensor:
        """``[n]`` bool, whether the label is among the best predictions."""
        return (torch.tensor(results.column("top")) == results.labels[:, None]).any(dim=1)

    def intervals(self, results: SampleResults) -> dict[str, list[float]]:
        return {"accuracy": list(wilson_interval(int(results.correct.sum()), len(results.ids)))}

    def best_constant(self, results: SampleResults) -> float:
        return 100 * int(results.labels.bincount().max()) / len(results.ids)

    def summarize(self, by_corruption: Mapping[str, Mapping[float, float]]) -> dict[str, Any]:
        """Return means over corruptions, and the mCE of models of all ImageNet classes, whose AlexNet errors are known."""
        complete = self.num_classes == IMAGENET_CLASSES and (self.classes is None or self.classes.complete)
        return corruption_summary(by_corruption, complete)

    def standard_error(self, n: int) -> str:
        return f"standard error of each accuracy: up to {50 / n**0.5:.1f} points"

    def tables(self, results: SampleResults, row: Mapping[str, Any], samples: SampleSet) -> dict[str, list[list[Any]]]:
        """Return ``per_class.csv`` and ``predictions.csv``."""
        names, labels = samples.class_names, results.labels
        in_top1_and_top5 = results.correct, self._in_top(results)
        by_class: list[list[Any]] = [["label", "name", "n", "top1", "top5"]]
        for label in labels.unique().tolist():
            of_class = labels == label
            shares = (100 * right[of_class].double().mean().item() for right in in_top1_and_top5)
            by_class.append([label, names.get(label, str(label)), int(of_class.sum()), *shares])
        top = results.column("top")
        predictions = [[samples.name(i), *rest] for i, rest in zip(results.ids.tolist(), zip(labels.tolist(), *zip(*top)))]
        return {
            BY_CLASS: by_class,
            PREDICTIONS: [["image", "label", *(f"top{i + 1}" for i in range(len(top[0])))], *predictions],
        }

    def remarks(self, row: Mapping[str, Any], tables: Mapping[str, list[list[Any]]]) -> list[str]:
        """Return the top-5 accuracy and the worst classes."""
        low, high = row["top5_interval"]
        by_class = sorted(tables[BY_CLASS][1:], key=lambda cells: (cells[3], cells[0]))
        missed = [f"{markdown_text(name)} {top1:.0f} % of {n}" for _, name, n, top1, _ in by_class if top1 < 100]
        worst = f"Worst classes, top-1: {', '.join(missed[:NUM_WORST])}." if missed else "No image of any class is wrong."
        return [f"Top-5 accuracy: {row['top5']:.2f} % ({low:.2f} to {high:.2f}).", worst]

    # trust

    def probes(self, model: nn.Module, attacks: Sequence[AnyAttack], seed: int) -> dict[str, Scorer]:
        return attack_probes(model, _checked_threat(model, attacks), seed) if attacks else {}

    def check(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        attacks: Sequence[AnyAttack],
        probed: Mapping[str, SampleResults],
    ) -> SanityReport:
        if not batches:
            message = "None of the images that were to be looked at could be read."
            return SanityReport([], 0, [Finding("nothing to check", message)])
        return judge(model, batches, _checked_threat(model, attacks) if attacks else None, probed)

    def cross_checks(self, rows: Sequence[Mapping[str, Any]], results: Mapping[str, SampleResults]) -> list[Finding]:
        """Compare attacks on the same samples.

        On normalized tensors attacks move images away from the model's own answer, so wrong answers may become right. Only
        samples that are right without attack are compared.
        """
        by_images: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            by_images.setdefault(str(row.get("images")), []).append(row)
        return [finding for same in by_images.values() for finding in self._cross_check(same, results)]

    def _cross_check(self, rows: Sequence[Mapping[str, Any]], results: Mapping[str, SampleResults]) -> list[Finding]:
        """Compare attacks on the same samples with each other."""
        attacked = [row for row in rows if "eps" in row]
        if not attacked:
            return []
        clean = next((row for row in rows if "eps" not in row), None)
        compared = [*([clean] if clean else []), *attacked]
        common = of_common_samples({row["name"]: results[row["name"]] for row in compared})
        correct = {row["name"]: common[row["name"]].correct for row in attacked}
        if clean is not None:
            correct = {name: right & common[clean["name"]].correct for name, right in correct.items()}
        return check_rows(attacked, correct)

    # figures

    def harmed(self, clean: SampleResults, attacked: SampleResults) -> Tensor:
        """Return ids of the samples that an attack fooled: first one of each class, then a second one of each, and so on."""
        clean, attacked = of_common_samples({"clean": clean, "attacked": attacked}).values()
        fooled = clean.correct & ~attacked.correct
        return clean.ids[fooled][_by_turns(clean.labels[fooled].tolist())]

    def attacked_figure(self, model: Any, batch: Batch, condition: Any, label: str) -> Figure:
        images, labels, _ = batch
        adversarial = condition.scorer(model, *batch).images
        if isinstance(condition.scorer, PublishedAttackScorer):
            adversarial = adversarial * model.std + model.mean
        with torch.no_grad():
            predictions = model(adversarial).argmax(dim=1)
        title, names = f"{label}\n{condition.name}", condition.samples.class_names
        truth, answers = ([names.get(i, str(i)) for i in which.tolist()] for which in (labels, predictions))
        largest = (adversarial - images).abs().max().item()
        return draw_adversarial(images, {title: adversarial}, truth, {title: answers}, largest)[0]

    def comparison_figures(
        self, recipe: Recipe, models: Mapping[str, NormalizedModel], samples: SampleSet, loading: Loading
    ) -> dict[str, Figure]:
        """Draw adversarial images of all models, and rows of the kernels of models with positions."""
        first = _first_of_classes(samples, loading)
        image = next(iter(first.values()))[0]
        figures = {}
        if recipe.evaluation.pgd:
            images, labels, ids = (torch.stack(parts) for parts in zip(*(first[c] for c in sorted(first)[:NUM_DRAWN])))
            figures["adversarial"] = _draw_middle_radius(recipe, models, images, labels, ids.cpu())
        for label, model in models.items():
            if isinstance(model.model, FilterVisionTransformer) and _has_positions(model.model):
                rows, columns = model.model.patch_embed.grid_size
                patches = [(rows // 2, columns // 2), (rows // 4, columns // 4)]
                figure, _ = draw_kernel_rows(model.model, image.cpu(), model.normalize(image), 0, patches)
                figures[f"kernel-rows-{slug(label)}"] = figure
        return figures


def _by_turns(labels: Sequence[int]) -> list[int]:
    """Return positions such that all classes come once, in the order of the samples, before one comes twice."""
    seen: Counter[int] = Counter()
    turns = []
    for label in labels:
        turns.append(seen[label])
        seen[label] += 1
    return sorted(range(len(labels)), key=turns.__getitem__)


def _first_of_classes(samples: SampleSet, loading: Loading) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Return the first readable image of each class with its label and id, in the order of the samples."""
    first: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for batch in samples.batches(loading.preprocessing, 256, 0, loading.device):
        for image, label, sample_id in zip(*only_readable(batch)):
            first.setdefault(int(label), (image, label, sample_id))
    return first


def _draw_middle_radius(
    recipe: Recipe, models: Mapping[str, NormalizedModel], images: Tensor, labels: Tensor, ids: Tensor
) -> Figure:
    """Draw images under PGD in the middle of the recipe's radii."""
    e, radii = recipe.evaluation, sorted(recipe.evaluation.pgd)
    eps = radii[len(radii) // 2]
    attack = PGD(eps, e.pgd_steps, restarts=e.pgd_restarts)
    adversarial = {label: attack(model, images, labels, ids).adversarial for label, model in models.items()}
    with torch.no_grad():
        predictions = {label: models[label](points).argmax(1).tolist() for label, points in adversarial.items()}
    return draw_adversarial(images, adversarial, labels.tolist(), predictions, eps)[0]


def _has_positions(model: FilterVisionTransformer) -> bool:
    return any(isinstance(module, FilterAttention) and len(module.positions) > 0 for module in model.modules())


@dataclass(frozen=True)
class LabelAttackScorer(Scorer):
    """Correct where the label is predicted for the image and the attack does not succeed.

    A threat model with targets gets, per sample, one class that is not its label, drawn from the sample's id. Predictions are
    not kept: a second pass might disagree with the attack's own decision.

    Args:
        attack: Attack on images in [0, 1].
    """

    attack: AnyAttack

    @property
    def passes(self) -> Passes:
        forward, backward = self.attack.passes
        return Passes(forward + self.attack.threat.targeted, backward)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> BatchResult:
        wanted, correct = labels, torch.ones_like(labels, dtype=torch.bool)
        if self.attack.threat.targeted:
            images = check_batch(model, images, labels)
            logits = checked_logits(model, images, labels)
            wanted, correct = targets_of(labels, ids, logits.shape[1]), logits.argmax(dim=1) == labels
        adversarial, success, by = self.attack(model, images, wanted, ids)
        distances = self.attack.threat.distance(adversarial, images)
        columns = {"labels": labels, "correct": (correct & ~success).int(), "scores": distances}
        return BatchResult(adversarial, columns if by is None else {**columns, "by": by})


def targets_of(labels: Tensor, ids: Tensor, num_classes: int) -> Tensor:
    """Return ``[B]`` classes that are not the labels, drawn from the samples' ids."""
    shifts = [1 + mix_seeds(num_classes, int(i)) % (num_classes - 1) for i in ids.tolist()]
    return (labels + torch.tensor(shifts, dtype=labels.dtype).to(labels.device)) % num_classes


@dataclass(frozen=True)
class PublishedAttackScorer(Scorer):
    """The convention of the attention papers' code (which attacks DeiT with cleverhans), to compare with their numbers.

    The attack works on normalized tensors, without a range, against the model's own predictions. Each image is attacked once,
    whether it is right or not, and the last point counts: correct where the label is predicted for it.

    Args:
        attack: Attack under a threat model of `ThreatModel.normalized`.
    """

    attack: Attack

    @property
    def passes(self) -> Passes:
        forward, backward = self.attack.passes_per_restart
        return Passes(forward + 2, backward)

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor) -> BatchResult:
        if not isinstance(model, NormalizedModel):
            raise ValueError(
                f"The model of an attack on normalized tensors must be a NormalizedModel, got {type(model).__name__}. Wrap it "
                "in NormalizedModel(model, mean, std)."
            )
        images = check_batch(model, images, labels)
        inner, normalized = model.model, model.normalize(images)
        own = predict(inner, normalized, labels)
        adversarial = self.attack.perturb(inner, normalized, own, ids.cpu())
        predictions = predict(inner, adversarial, labels)
        columns = {"labels": labels, "correct": (predictions == labels).int(), "predictions": predictions}
        return BatchResult(adversarial, {**columns, "scores": self.attack.threat.distance(adversarial, normalized)})


def check_threat(threats: Sequence[ThreatModel], std: Sequence[float]) -> ThreatModel:
    """Return the threat model of the sanity checks: the smallest ball on images.

    Of normalized tensors it is the ball with the radius of their widest channel.
    """
    least = min(threats, key=lambda threat: (threat.space, threat.eps))  # images come before normalized
    radius = max(least.pixel_eps(std))
    return ThreatModel(min(1.0, radius) if least.norm == LINF else radius, least.norm)


def _checked_threat(model: nn.Module, attacks: Sequence[AnyAttack]) -> ThreatModel:
    return check_threat([attack.threat for attack in attacks], _std(model))


def _std(model: nn.Module) -> list[float]:
    """Return the standard deviations that a model divides its images by."""
    return next((m.std.flatten().tolist() for m in model.modules() if isinstance(m, NormalizedModel)), [1.0])


class AdversarialTraining(TimmClassification):
    """Classification of images attacked by PGD (arXiv 1706.06083).

    The attack sees images in [0, 1], with the model in evaluation mode and its own random starts; the update then is the
    usual one on the adversarial images.

    Args:
        eps: Radius of the L-infinity ball, in units of [0, 1].
        steps: Steps of PGD.
        step_size: Step size of PGD. Default: ``2.5 eps / steps``.
        warmup_epochs: The radius grows linearly over them; a given ``step_size`` with it.
        mean: Mean of the normalization of incoming images.
        std: Standard deviation of the normalization of incoming images.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        *,
        eps: float,
        steps: int,
        step_size: float | None,
        warmup_epochs: int,
        mean: Any,
        std: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, criterion, **kwargs)
        self.eps, self.steps, self.step_size, self.warmup_epochs = eps, steps, step_size, warmup_epochs
        self.mean, self.std = mean, std
        self._share = 1.0

    def start_epoch(self, epoch: int) -> None:
        """Set the radius of an epoch."""
        self._share = min(1.0, (epoch + 1) / (self.warmup_epochs + 1))

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        return super().forward(self.attacked(input, target), target) if self.training else super().forward(input, target)

    def attacked(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the batch under attack, normalized as it came."""
        inner = unwrap_model(self.trainable_module)  # without DDP, whose hooks belong to the update alone
        model = NormalizedModel(inner, self.mean, self.std).to(input.device)
        labels = target.argmax(dim=1) if target.ndim == 2 else target
        step_size = None if self.step_size is None else self.step_size * self._share
        attack = PGD(self.eps * self._share, self.steps, step_size)
        model.eval()
        images = (input * model.std + model.mean).clamp(0, 1)
        # drawn at once, where the images are: draws that belong to samples would cost a GPU more than its passes
        start = attack.threat.project(images + attack.eps * (2 * torch.rand_like(images) - 1), images)
        found = attack.climb(model, start, images, labels)
        inner.train()
        return model.normalize(found)
