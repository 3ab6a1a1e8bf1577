"""The evaluation of a comparison's models: attacks and corruptions on the same held-out images."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import nn

from ..data import SINGLE_PROCESS, Preprocessing, Unreadable, random_subset
from ..evaluation.attacks import WorstOf, apgd_attacks
from ..evaluation.conditions import CLEAN, Condition, attack_conditions, clean_condition, corruption_conditions
from ..evaluation.corruptions import GaussianBlur, GaussianNoise
from ..evaluation.imagenet_c import ImageNetC
from ..evaluation.normalization import NormalizedModel
from ..evaluation.presets import attack_name
from ..evaluation.results_log import ProtocolMismatchError, SampleResults
from ..evaluation.samples import SampleSet
from ..evaluation.scorers import AnyAttack, CorruptedScorer
from ..evaluation.session import EvaluationSession, Runtime
from ..evaluation.specs import model_hashes
from ..evaluation.tensors import announcing
from ..language import WordSwap
from ..recipe import Recipe
from ..tasks.base import Loading, task_of
from ..training.model_factory import build_model
from ..utils.serialization import strength_text

__all__ = ["VariantEvaluation", "VariantResult"]

FOLDER = "evaluation"  # of a variant's results, in the folder of its run
NUM_CHECKED = 32  # images per model for the sanity checks
ATTACK_KEYS = ("fgsm", "pgd", "segpgd", "maskedpgd")  # keys of the recipe's section evaluation, and of the tasks' attacks


class VariantResult(NamedTuple):
    """The numbers of one trained model.

    Attributes:
        metrics: ``{metric: {condition: value}}``; the first metric compares models, and the first condition is ``clean``.
        largest_perturbation: ``{attack: size}``.
        findings: Reasons to doubt the numbers.
    """

    metrics: dict[str, dict[str, float]]
    largest_perturbation: dict[str, float]
    findings: list[str]


class VariantEvaluation:
    """Held-out images and the conditions of a comparison.

    Args:
        recipe: Recipe of the comparison.
        device: Device of the models.

    Raises:
        ValueError: The recipe has no test split, or its images are a stream.
    """

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe, self.device, self.task = recipe, torch.device(device), task_of(recipe)
        if recipe.data.test_split is None or recipe.data.iterates:
            raise ValueError(
                f"data.test_split of a comparison must be a split of {self.task.sample_noun} known by number, got "
                f"{recipe.data.test_split!r} of {recipe.data.name!r}. Name a test split, or use another reader."
            )
        self.model_preprocessing = _preprocessing(recipe)
        self.preprocessing = self.task.preprocess(self.model_preprocessing)
        test = self.task.open_splits(recipe, Unreadable()).test
        images = self.task.samples_of(test)
        self.samples = self.task.kept(images, self.preprocessing, recipe.data.workers, self.device)
        self.perturbed = _random(self.samples, recipe.evaluation.num_perturbed, recipe.data.seed)
        self.worst_case = _random(self.perturbed, recipe.evaluation.worst_case_images, recipe.data.seed)

    @property
    def unperturbed(self) -> str:
        """Name of the clean condition of those samples that are attacked and corrupted. If all are, it is ``clean``."""
        return CLEAN if len(self.perturbed) == len(self.samples) else f"{CLEAN}, perturbed {self.task.sample_noun}"

    @cached_property
    def attacks(self) -> dict[str, AnyAttack]:
        """Attacks of the recipe by name, ``"PGD-20 0.05"``."""
        e, attacks = self.recipe.evaluation, {}
        for key in ATTACK_KEYS:
            for eps in getattr(e, key):
                if key not in self.task.attacks:
                    known = ", ".join(self.task.attacks) or "none"
                    raise ValueError(f"evaluation.{key} must be an attack of the task {self.task.name}, which has {known}.")
                title, kind = self.task.attacks[key]
                attack = self._attack(kind(), eps)
                attacks[f"{attack_name(title, attack)} {strength_text(eps)}"] = attack
        return attacks

    def _attack(self, kind: type[Any], eps: float) -> Any:
        e, names = self.recipe.evaluation, {field.name for field in fields(kind)}
        settings = {"steps": e.pgd_steps, "restarts": e.pgd_restarts} if "steps" in names else {}
        return kind(eps, **settings)

    @cached_property
    def worst_cases(self) -> dict[str, WorstOf]:
        """Ensembles of the recipe by name, ``"worst case 0.1"``; the cheap attacks come first."""
        e, classes = self.recipe.evaluation, self.task.num_outputs
        cheap = dict(self.task.attacks[key] for key in ("fgsm", "pgd") if e.worst_case)
        return {
            f"worst case {strength_text(eps)}": WorstOf(
                {
                    **{title: self._attack(kind(), eps) for title, kind in cheap.items()},
                    **apgd_attacks(eps, classes, e.apgd_steps),
                }
            )
            for eps in e.worst_case
        }

    @cached_property
    def conditions(self) -> list[Condition]:
        """All conditions of the recipe; the first one is clean."""
        e, task, samples = self.recipe.evaluation, self.task, self.perturbed
        corruptions: dict[str, Any] = {f"noise {strength_text(std)}": GaussianNoise(std) for std in e.gaussian_noise}
        corruptions |= {f"blur {strength_text(sigma)}": GaussianBlur(sigma) for sigma in e.gaussian_blur}
        named: list[Any] = [ImageNetC(name, int(severity)) for name, severity in map(str.split, e.corruptions)]
        named += [WordSwap(rate) for rate in e.word_swap]
        return [
            clean_condition(self.samples, task),
            *([] if self.unperturbed == CLEAN else [clean_condition(samples, task, self.unperturbed)]),
            *attack_conditions(samples, self.attacks, task),
            *(Condition(name, samples, CorruptedScorer(name, c, task.clean)) for name, c in corruptions.items()),
            *corruption_conditions(samples, named, task),
            *attack_conditions(self.worst_case, self.worst_cases, task),
        ]

    def wrap(self, model: nn.Module) -> NormalizedModel:
        """Return the model as it is asked: about images in [0, 1]."""
        return self.task.wrap(model).to(self.device).eval()

    def __call__(
        self, model: NormalizedModel, folder: Path, log: Callable[[str], Any], about: Mapping[str, Any]
    ) -> VariantResult:
        """Evaluate a model. Finished results in its folder are reused unless weights, images, settings or versions changed.

        Args:
            model: Model, as `wrap` returns it.
            folder: Folder of its run.
            log: Called with the name of each condition when it begins.
            about: Facts about the model that ``result.json`` records beside its numbers.
        """
        runtime = Runtime(self.device, SINGLE_PROCESS, self.task.batch_limit or 256, self.recipe.data.workers, folder / FOLDER)
        protocol = {**model_hashes(model.model), "options": {}, **self.task.protocol}
        session = EvaluationSession(
            model, self.task, self.preprocessing, runtime, about=about, protocol=protocol, progress=announcing(log)
        )
        with session.claimed():
            results = self._with_pgd(self._run(session, log))
            report = session.check(self.samples, list(self.attacks.values()), min(NUM_CHECKED, self.task.num_checked))
            result = session.write("compare", self.conditions, results, report)
        return self._summarized(result, results)

    def _run(self, session: EvaluationSession, log: Callable[[str], Any]) -> dict[str, SampleResults]:
        """Return the results of all conditions. Those under another protocol are computed again."""
        while True:
            try:
                return session.run(self.conditions)
            except ProtocolMismatchError as error:
                log(f"Computed again: {error}")
                error.file.unlink()

    def _with_pgd(self, results: Mapping[str, SampleResults]) -> dict[str, SampleResults]:
        """Count images that PGD fooled in another batch as fooled in the worst case too: it may round differently."""
        changed = dict(results)
        for name in self.worst_cases:
            pgd = self._pgd_beside(name)
            if pgd in results:
                robust = results[name].correct & results[pgd].only(results[name].ids).correct
                by = torch.tensor(results[name].column("by"))
                by[results[name].correct & ~robust] = list(self.worst_cases[name].attacks).index("PGD")
                columns = {**results[name].columns, "correct": robust.int().tolist(), "by": by.tolist()}
                changed[name] = results[name]._replace(columns=columns)
        return changed

    def _pgd_beside(self, worst_case: str) -> str:
        title, kind = self.task.attacks["pgd"]
        attack = self._attack(kind(), self.worst_cases[worst_case].threat.eps)
        return f"{attack_name(title, attack)} {strength_text(attack.threat.eps)}"

    def _summarized(self, result: Mapping[str, Any], results: Mapping[str, SampleResults]) -> VariantResult:
        rows = {row["name"]: row for row in result["conditions"]}
        metrics: dict[str, dict[str, float]] = {}
        for metric in self.task.metrics[:2]:
            values = metrics.setdefault(metric.key, {})
            for name, row in rows.items():
                if name in self.worst_cases and (pgd := self._pgd_beside(name)) in results:
                    same = results[pgd].only(self.worst_case.ids)
                    values[f"{pgd}, same images"] = self.task.count(same)[metric.key]
                values[name] = row[metric.key]
        perturbed = {name: row["largest_perturbation"] for name, row in rows.items() if "largest_perturbation" in row}
        findings = [f"{finding['check']}: {finding['message']}" for finding in result["findings"]]
        return VariantResult(metrics, perturbed, findings)

    def figures(self, models: Mapping[str, NormalizedModel]) -> dict[str, Figure]:
        """Draw all models side by side."""
        loading = Loading(self.model_preprocessing, 1, 0, self.device, SINGLE_PROCESS)
        return self.task.comparison_figures(self.recipe, models, self.samples, loading)

    @property
    def description(self) -> str:
        """Description of the images for the beginning of a report."""
        noun, parts = self.task.sample_noun, [_count(self.task, len(self.samples), f"held-out {self.task.sample_noun}")]
        if len(self.perturbed) < len(self.samples):
            few = len(self.perturbed)
            error = self.task.standard_error(few)
            parts.append(f"A random subset of {few} {noun} is attacked and corrupted" + f" ({error})" * bool(error))
        if self.worst_cases:
            few = len(self.worst_case)
            parts.append(
                "The worst case of FGSM, PGD, APGD-CE and targeted APGD, image by image, is measured on "
                f"{few} random ones of these ({self.task.standard_error(few)}), with PGD on the same images beside it"
            )
        return ". ".join(parts)

    @property
    def checked(self) -> str:
        """Number of images in the sanity checks, followed by the task's noun for them."""
        return f"{min(NUM_CHECKED, self.task.num_checked, len(self.samples))} {self.task.sample_noun}"


def _count(task: Any, n: int, noun: str) -> str:
    error = task.standard_error(n)
    return f"{n} {noun}" + f"; {error}" * bool(error)


def _random(samples: SampleSet, wanted: int | None, seed: int) -> SampleSet:
    """Return random samples. The first samples of a folder would all be of one class."""
    chosen = random_subset(len(samples), wanted, seed)
    return samples if chosen is None else samples.only(samples.ids[chosen])


def _preprocessing(recipe: Recipe) -> Preprocessing:
    """Return the preprocessing that the models of a comparison share."""
    assert recipe.comparison is not None
    first = recipe.variant(next(iter(recipe.comparison.variants)), 0)
    return Preprocessing.of(build_model(first, device="meta", pretrained=False).pretrained_cfg)
