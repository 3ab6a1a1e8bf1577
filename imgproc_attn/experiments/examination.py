"""What the models of a comparison go through: attacks and corruptions on the same held-out images."""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..core.attention import FilterAttention
from ..data import Images, Preprocessing, Unreadable, evaluation_loader, random_subset
from ..diagnostics import draw_adversarial, draw_kernel_rows
from ..evaluation import FGSM, PGD, GaussianBlur, GaussianNoise, NormalizedModel, WorstOf, evaluate
from ..evaluation.attacks import apgd_attacks
from ..evaluation.conditions import Condition
from ..evaluation.evaluator import Evaluator, architecture_hash, weights_hash
from ..evaluation.flags import remove_results
from ..evaluation.imagenet_c import ImageNetC
from ..evaluation.results import row
from ..evaluation.robustness import attack_conditions, corrupted_condition
from ..evaluation.samples import Samples
from ..evaluation.sanity import check_rows, sanity_checks
from ..models import FilterVisionTransformer
from ..recipe.schema import EvaluationSection, Recipe
from ..segmentation.attacks import MaskedPGD, PixelFGSM, PixelPGD, SegPGD
from ..segmentation.measure import PixelMeasure, PixelsUnderAttack, SlidingWindow
from ..segmentation.overlays import draw_looks
from ..training.model_factory import create
from ..training.problems import SegmentationProblem
from ..training.splits import open_splits
from ..utils.environment import arithmetic, sources_hash, versions
from ..utils.io import dump_json, read_json, slug
from ..utils.locks import locked
from ..utils.manifest import Manifest
from ..utils.serialization import strength_text

EVALUATION, FLAGS = "evaluation.json", "flags"
CHECKED = 32  # images a model that sanity checks look at
CLEAN_OF_DISTURBED = "clean, disturbed images"  # a condition where these are not all images


class Examined(NamedTuple):
    """What came of it.

    Attributes:
        metrics: ``{metric: {condition: percent}}``; by the first metric models are judged; the first condition is ``clean``.
        largest_perturbation: By attack.
        findings: Reasons to doubt.
    """

    metrics: dict[str, dict[str, float]]
    largest_perturbation: dict[str, float]
    findings: list[str]


class Examination(Protocol):
    """Held-out images, and what is done with them."""

    @property
    def samples(self) -> str:
        """What they are, in words."""
        ...

    @property
    def checked(self) -> str:
        """How many of them sanity checks look at, in words."""
        ...

    def wrap(self, model: nn.Module) -> NormalizedModel:
        """The model as it is asked: of images in [0, 1]."""
        ...

    def __call__(self, model: NormalizedModel, folder: Path, say: Callable[[str], Any]) -> Examined:
        """Examine; what the model's folder holds already is not repeated."""
        ...

    def pictures(self, models: Mapping[str, NormalizedModel]) -> dict[str, Figure]:
        """A look at all models."""
        ...


def examination_of(recipe: Recipe, device: str) -> Examination:
    """By the sections of the recipe.

    Raises:
        ValueError: There is no test split of images known by number.
    """
    if recipe.data.test_split is None or recipe.data.iterates:
        raise ValueError("A comparison needs data.test_split, from a reader that knows its images by number.")
    return LabelExamination(recipe, device) if recipe.segmentation is None else PixelExamination(recipe, device)


def _key(protocol: Any) -> str:
    """A hash of all that numbers depend on."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


def forget(folder: Path) -> None:
    """Remove what was found of the model in ``folder``."""
    Manifest(folder).remove([EVALUATION])
    remove_results(folder / FLAGS)


def _some(count: int, wanted: int) -> Tensor:
    """Numbers of samples by chance: the first ones of a folder are all of one class."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:wanted]


def _once(folder: Path, key: str, examine: Callable[[], Examined]) -> Examined:
    """What the folder holds under that key, else what ``examine`` finds."""
    file, manifest = folder / EVALUATION, Manifest(folder)
    with locked(folder):
        manifest.refuse_foreign([EVALUATION])
        known = read_json(file, remedy="Remove it, and the model is examined again.") if file.is_file() else {}
        if known.get("key") != key:
            known = {"key": key, **examine()._asdict()}
            manifest.write({EVALUATION: partial(dump_json, known)})
    return Examined(*(known[name] for name in Examined._fields))


def _corruptions(e: EvaluationSection) -> dict[str, ImageNetC]:
    """Those of ImageNet-C by their name and severity, ``fog 3``."""
    pairs = {text: text.split() for text in e.corruptions}
    return {text: ImageNetC(name, int(severity)) for text, (name, severity) in pairs.items()}


class LabelExamination:
    """Classifiers; all images are in memory.

    Args:
        recipe: Of the comparison.
        device: Where to run.

    Attributes:
        images: ``[n, C, H, W]`` in [0, 1].
        labels: ``[n]``.
        disturbed: Numbers of those that are attacked and corrupted; None for all.
        strongly_attacked: ``[m]`` indices of the images that the worst case is measured on.
    """

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe, self.device = recipe, device
        split = open_splits(recipe, Unreadable()).test
        assert isinstance(split, Images)
        preprocessing = _preprocessing(recipe)
        loader = evaluation_loader(split, preprocessing.without_normalization(), 256, recipe.data.workers, torch.device(device))
        batches = list(loader)
        images, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
        self.images: Tensor = images[labels >= 0].clamp(0, 1)
        self.labels: Tensor = labels[labels >= 0]
        self.disturbed = random_subset(len(self.labels), recipe.evaluation.num_perturbed, recipe.data.seed)
        among = torch.arange(len(self.labels)) if self.disturbed is None else torch.tensor(self.disturbed)
        few = random_subset(len(among), recipe.evaluation.worst_case_images, recipe.data.seed)
        self._few = slice(None) if few is None else few  # of those that are attacked
        self.strongly_attacked = among[self._few]
        self._digest = hashlib.sha256(self.images.cpu().numpy().tobytes() + self.labels.cpu().numpy().tobytes()).hexdigest()

    @property
    def samples(self) -> str:
        n = len(self.labels)
        parts = [f"{n} held-out images; sampling error of one accuracy: up to {50 / n**0.5:.1f} points"]
        if self.disturbed is not None:
            few = len(self.disturbed)
            parts.append(f"{few} of them, by chance, are attacked and corrupted (up to {50 / few**0.5:.1f} points)")
        if self.recipe.evaluation.worst_case:
            few = len(self.strongly_attacked)
            parts.append(
                "The worst case of FGSM, PGD, APGD-CE and targeted APGD, image by image, is measured on "
                f"{few} random ones of these (up to {50 / few**0.5:.1f} points), with PGD on the same images beside it"
            )
        return ". ".join(parts)

    @property
    def checked(self) -> str:
        return f"{min(CHECKED, len(self.labels))} images"

    def wrap(self, model: nn.Module) -> NormalizedModel:
        return NormalizedModel(model)

    def __call__(self, model: NormalizedModel, folder: Path, say: Callable[[str], Any]) -> Examined:
        protocol = [weights_hash(model), architecture_hash(model), self._digest, self.recipe.evaluation.model_dump(), CHECKED]
        key = _key([*protocol, versions(), sources_hash(), platform.python_version(), arithmetic(self.device)])
        return _once(folder, key, lambda: self._examine(model, say))

    def _examine(self, model: NormalizedModel, say: Callable[[str], Any]) -> Examined:
        e = self.recipe.evaluation
        kept = slice(None) if self.disturbed is None else self.disturbed
        attacks, corruptions = self.disturbances()
        found = evaluate(model, self.images[kept], self.labels[kept], attacks, corruptions, progress=say)
        accuracies = dict(found.accuracies)
        if self.disturbed is not None:
            everything = evaluate(model, self.images, self.labels).accuracies
            accuracies = {**everything, CLEAN_OF_DISTURBED: accuracies.pop("clean"), **accuracies}
        perturbed = dict(found.largest_perturbation)
        if e.worst_case:
            chosen = self.strongly_attacked
            worst = evaluate(model, self.images[chosen], self.labels[chosen], self.worst_cases(), progress=say)
            for eps, name in zip(e.worst_case, worst.largest_perturbation):
                robust = worst.correct[name]
                if (pgd := self._pgd_name(eps)) in attacks:  # its random starts were others: what it found there counts too
                    accuracies[f"{pgd}, same images"] = _percent(found.correct[pgd][self._few])
                    robust = robust & found.correct[pgd][self._few]
                accuracies[name] = _percent(robust)
            perturbed |= worst.largest_perturbation
        least = min([*e.pgd, *e.fgsm], default=None)
        few = _some(len(self.labels), CHECKED)
        doubts = sanity_checks(model, self.images[few], self.labels[few], least).findings
        rows = [{"name": name, "family": name.partition(" ")[0], **a.threat.record} for name, a in attacks.items()]
        doubts += check_rows(rows, found.correct)
        return Examined({"accuracy": accuracies}, perturbed, [str(doubt) for doubt in doubts])

    def disturbances(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Attacks and corruptions of the recipe by name, ``"PGD-20 0.05"``."""
        e = self.recipe.evaluation
        attacks: dict[str, Any] = {f"FGSM {strength_text(eps)}": FGSM(eps) for eps in e.fgsm}
        attacks |= {self._pgd_name(eps): self._pgd(eps) for eps in e.pgd}
        corruptions: dict[str, Any] = {f"noise {strength_text(std)}": GaussianNoise(std) for std in e.gaussian_noise}
        corruptions |= {f"blur {strength_text(sigma)}": GaussianBlur(sigma) for sigma in e.gaussian_blur}
        return attacks, corruptions | _corruptions(e)

    def _pgd(self, eps: float) -> PGD:
        e = self.recipe.evaluation
        return PGD(eps, e.pgd_steps, restarts=e.pgd_restarts)

    def worst_cases(self) -> dict[str, WorstOf]:
        """Return the ensembles of the recipe by name, ``"worst case 0.1"``; the cheap attacks come first."""
        e, classes = self.recipe.evaluation, self.recipe.data.num_classes
        return {
            f"worst case {strength_text(eps)}": WorstOf(
                {"FGSM": FGSM(eps), "PGD": self._pgd(eps), **apgd_attacks(eps, classes, e.apgd_steps)}
            )
            for eps in e.worst_case
        }

    def _pgd_name(self, eps: float) -> str:
        return f"PGD-{self.recipe.evaluation.pgd_steps} {strength_text(eps)}"

    def pictures(self, models: Mapping[str, NormalizedModel]) -> dict[str, Figure]:
        found = {"adversarial": self._adversarial(models)} if self.recipe.evaluation.pgd else {}
        for label, model in models.items():
            if isinstance(model.model, FilterVisionTransformer) and _has_space(model.model):
                image = self.images[0]
                rows, columns = model.model.patch_embed.grid_size
                patches = [(rows // 2, columns // 2), (rows // 4, columns // 4)]
                drawn = draw_kernel_rows(model.model, image.cpu(), model.normalize(image), 0, patches)
                found[f"kernel-rows-{slug(label)}"] = drawn
        return found

    def _adversarial(self, models: Mapping[str, NormalizedModel]) -> Figure:
        """The first image of each class under PGD in the middle of the recipe's radii."""
        radii = sorted(self.recipe.evaluation.pgd)
        eps = radii[len(radii) // 2]
        chosen = torch.stack([(self.labels == c).nonzero()[0, 0] for c in self.labels.unique()[:8]])
        images, labels = self.images[chosen], self.labels[chosen]
        attack = self._pgd(eps)
        found = {label: attack(model, images, labels, chosen.cpu()).adversarial for label, model in models.items()}
        with torch.no_grad():
            predictions = {label: models[label](adversarial).argmax(1).tolist() for label, adversarial in found.items()}
        return draw_adversarial(images, found, labels.tolist(), predictions, eps)


def _preprocessing(recipe: Recipe) -> Preprocessing:
    """How the models of a comparison want their images."""
    assert recipe.comparison is not None
    first = recipe.variant(next(iter(recipe.comparison.variants)), 0)
    return Preprocessing.of(create(first, device="meta", pretrained=False).pretrained_cfg)


def _percent(correct: Tensor) -> float:
    return 100 * correct.double().mean().item()


def _has_space(model: FilterVisionTransformer) -> bool:
    return any(isinstance(module, FilterAttention) and len(module.positions) > 0 for module in model.modules())


class PixelExamination:
    """Segmenters; pictures are read one by one.

    Args:
        recipe: Of the comparison.
        device: Where to run.
    """

    def __init__(self, recipe: Recipe, device: str) -> None:
        assert recipe.segmentation is not None
        self.recipe, self.section, self.device = recipe, recipe.segmentation, torch.device(device)
        problem = SegmentationProblem(recipe)
        pictures = problem.open(Unreadable(), 1).test
        windows = SlidingWindow(self.section.window, self.section.stride)
        self._samples, self.measure = Samples(pictures), PixelMeasure(tuple(pictures.classes), windows)
        few = random_subset(len(self._samples), recipe.evaluation.num_perturbed, recipe.data.seed)
        self._disturbed = self._samples if few is None else self._samples.only(self._samples.ids[few])
        self.preprocessing = problem.whole(_preprocessing(recipe))
        self.conditions = self._conditions()

    def _conditions(self) -> list[Condition]:
        e = self.recipe.evaluation
        stepwise = {"PGD": (PixelPGD, e.pgd), "SegPGD": (SegPGD, e.segpgd), "MaskedPGD": (MaskedPGD, e.maskedpgd)}
        attacks: dict[str, Any] = {f"FGSM {strength_text(eps)}": PixelFGSM(eps) for eps in e.fgsm}
        for name, (kind, radii) in stepwise.items():
            name = f"{name}-{e.pgd_steps}"
            attacks |= {f"{name} {strength_text(eps)}": kind(eps, e.pgd_steps, restarts=e.pgd_restarts) for eps in radii}
        clean, *attacked = attack_conditions(self._disturbed, attacks, self.measure)
        corrupted = [corrupted_condition(self._disturbed, c, self.measure) for c in _corruptions(e).values()]
        if self._disturbed is not self._samples:
            attacked = [replace(clean, name=CLEAN_OF_DISTURBED), *attacked]
        return [replace(clean, samples=self._samples), *attacked, *corrupted]

    @property
    def samples(self) -> str:
        told = f"{len(self._samples)} held-out pictures"
        few = f"; {len(self._disturbed)} of them, by chance, are attacked and corrupted"
        return told if self._disturbed is self._samples else told + few

    @property
    def checked(self) -> str:
        return f"{min(self.measure.checked, len(self._samples))} pictures"

    def wrap(self, model: nn.Module) -> NormalizedModel:
        return NormalizedModel(model)

    def __call__(self, model: NormalizedModel, folder: Path, say: Callable[[str], Any]) -> Examined:
        protocol = {"weights": weights_hash(model), "architecture": architecture_hash(model), "versions": versions()}
        protocol |= {"section": self.section.model_dump(), "evaluation": self.recipe.evaluation.model_dump()}
        protocol |= {"sources_sha256": sources_hash(), "arithmetic": arithmetic(self.device)}
        protocol |= {"images": self._samples.identity, "preprocessing": self.preprocessing._asdict()}
        key = _key(protocol)
        return _once(folder, key, lambda: self._examine(model, folder / FLAGS / key[:16], protocol, say))

    def _examine(
        self, model: NormalizedModel, folder: Path, protocol: Mapping[str, Any], say: Callable[[str], Any]
    ) -> Examined:
        workers = self.recipe.data.workers
        evaluator = Evaluator(
            model,
            self.preprocessing,
            folder,
            protocol,
            self.device,
            batch_size=1,
            workers=workers,
            progress=lambda name, n: say(name),
        )
        flags = evaluator(self.conditions)
        rows = [row(condition, flags[condition.name], self.measure, self.preprocessing.std) for condition in self.conditions]
        on_the_same = rows if self._disturbed is self._samples else rows[1:]
        few = self._samples.only(self._samples.ids[_some(len(self._samples), self.measure.checked)])
        attacks = [c.judge.attack for c in self.conditions if isinstance(c.judge, PixelsUnderAttack)]
        doubts = self.measure.check(model, list(few.batches(self.preprocessing, 1, 0, self.device)), attacks, 0).findings
        return Examined(
            {metric: {r["name"]: r[metric] for r in rows} for metric in self.measure.metrics[:2]},
            {r["name"]: r["largest_perturbation"] for r in rows if "largest_perturbation" in r},
            [str(doubt) for doubt in [*doubts, *self.measure.doubt(on_the_same, flags)]],
        )

    @torch.no_grad()
    def pictures(self, models: Mapping[str, NormalizedModel]) -> dict[str, Figure]:
        few = self._samples.only(self._samples.ids[:: -(-len(self._samples) // 3)])
        pictures = ((images[0], labels[0]) for images, labels, _ in few.batches(self.preprocessing, 1, 0, self.device))
        looks = {label: partial(self.measure.clean.classes, model) for label, model in models.items()}
        return {"segmented": draw_looks(self.recipe.title, pictures, looks, self.measure.class_names)}
