"""Models under one training, paired by seed: train them, attack and corrupt them, report. The quickstart is one of these."""

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from timm.utils import world_info_from_env
from torch import Tensor
from tqdm import tqdm

from .data import Images, Preparation, Unreadable, evaluation_loader
from .diagnostics import (
    bandwidths,
    draw_adversarial,
    draw_bandwidths,
    draw_curves,
    draw_kernel_rows,
    draw_learning,
)
from .environment import environment
from .evaluation import FGSM, PGD, GaussianBlur, GaussianNoise, NormalizedModel, evaluate, paired_difference
from .evaluation.sanity import sanity_checks
from .evaluation.statistics import mean_and_std
from .files import slug, write_atomically, write_json, write_text
from .layers import FilterAttention
from .models import FilterVisionTransformer
from .models.checkpoints import load_weights
from .training import Recipe, train
from .training.run import check, create, start_processes
from .training.splits import open_splits
from .training.watch import SaturationWarning

# Disturbances by the recipe's key: name in tables and unit.
DISTURBANCES = {
    "fgsm": ("FGSM", "eps"),
    "pgd": ("PGD", "eps"),
    "gaussian_noise": ("noise", "standard deviation"),
    "gaussian_blur": ("blur", "sigma / pixels"),
}
EVALUATION = "evaluation.json"
CHECKED = 32  # images a model that sanity checks look at


class HeldOutImages:
    """The images all models of a comparison are judged on, in memory.

    Attributes:
        images: ``[n, C, H, W]`` in [0, 1].
        labels: ``[n]``.
    """

    def __init__(self, recipe: Recipe, device: str) -> None:
        data = recipe.data
        split = open_splits(recipe, Unreadable()).test
        if not isinstance(split, Images):
            raise ValueError("A comparison needs data.test_split, from a reader that knows its images by number.")
        label = next(iter(_variants(recipe)))
        preparation = Preparation.of(create(recipe.variant(label, 0), device="meta").pretrained_cfg)
        place = torch.device(device)
        loader = evaluation_loader(split, preparation.without_normalisation(), 256, data.workers, place)
        batches = list(loader)
        images, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
        self.images: Tensor = images[labels >= 0].clamp(0, 1)
        self.labels: Tensor = labels[labels >= 0]


@dataclass
class Result:
    """One trained and evaluated model."""

    label: str
    seed: int
    parameters: int
    train_seconds: float
    losses: list[float]
    accuracies: dict[str, float]
    largest_perturbation: dict[str, float]
    bandwidths: dict[str, dict[str, list[float]]]
    findings: list[str]


def build(recipe: Recipe, label: str, seed: int) -> NormalizedModel:
    """The model ``label`` of the recipe, freshly initialised, normalisation inside."""
    return NormalizedModel(create(recipe.variant(label, seed)))


def check_comparison(recipe: Recipe) -> None:
    """Build every model and the optimiser once, without memory, so that no mistake waits behind hours of training.

    Raises:
        ValueError: A recipe of one model, a model or optimiser that cannot be built, or labels that would share a folder.
    """
    if recipe.comparison is None:
        raise ValueError("This recipe has no section comparison; train its one model with `imgproc-attn train`.")
    if recipe.segmentation is not None:
        raise ValueError("Comparisons are of classifiers; train each variant of this one: `imgproc-attn train --variant`.")
    labels = list(recipe.comparison.variants)
    if len({slug(label) for label in labels}) != len(labels):
        raise ValueError(f"comparison.variants: the labels {labels} differ too little in letters and digits to name folders.")
    for label in labels:
        try:
            check(recipe.variant(label, 0))
        except ValueError as error:
            raise ValueError(f"comparison.variants.{label}: {error}") from error


def disturbances(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attacks and corruptions of the recipe by name, ``"PGD 0.05"``."""
    e = recipe.evaluation
    attacks: dict[str, Any] = {f"FGSM {eps:g}": FGSM(eps) for eps in e.fgsm}
    attacks |= {f"PGD {eps:g}": PGD(eps, e.pgd_steps, restarts=e.pgd_restarts) for eps in e.pgd}
    corruptions: dict[str, Any] = {f"noise {std:g}": GaussianNoise(std) for std in e.gaussian_noise}
    corruptions |= {f"blur {sigma:g}": GaussianBlur(sigma) for sigma in e.gaussian_blur}
    return attacks, corruptions


def run_one(
    recipe: Recipe, label: str, seed: int, test: HeldOutImages, folder: Path, device: str, bar: tqdm
) -> tuple[Result, NormalizedModel]:
    """Train and evaluate one model; what its folder holds already is not repeated."""
    single = recipe.variant(label, seed)
    bar.set_description(f"{label}, seed {seed}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SaturationWarning)  # it stands in the report
        final = train(single, folder, device, resume=True, say=bar.set_postfix_str)
    bar.update()
    model = build(recipe, label, seed).to(device)
    load_weights(model.model, folder / final["checkpoint"])
    model.eval()
    key = _key(recipe, model, test, device)
    file = folder / EVALUATION
    known = json.loads(file.read_text()) if file.is_file() else {}
    if known.get("key") != key:
        found = evaluate(model, test.images, test.labels, *disturbances(recipe), progress=bar.set_postfix_str)
        radii = [*recipe.evaluation.pgd, *recipe.evaluation.fgsm]
        doubts = sanity_checks(model, test.images[:CHECKED], test.labels[:CHECKED], min(radii, default=None))
        known = {
            "key": key,
            "accuracies": found.accuracies,
            "largest_perturbation": found.largest_perturbation,
            "findings": [str(finding) for finding in doubts],
        }
        write_json(file, known)
    bar.update()
    result = Result(
        label,
        seed,
        final["parameters"],
        final["seconds"],
        final["losses"],
        known["accuracies"],
        known["largest_perturbation"],
        bandwidths(model),
        known["findings"],
    )
    return result, model


def _key(recipe: Recipe, model: NormalizedModel, test: HeldOutImages, device: str) -> str:
    """A hash of all that the numbers of an evaluation depend on."""
    content = hashlib.sha256()
    for tensor in (*model.state_dict().values(), test.images, test.labels):
        content.update(tensor.cpu().numpy().tobytes())
    found = environment(device)
    protocol = [recipe.evaluation.model_dump(), found["versions"], found["python"], device, CHECKED]
    content.update(json.dumps(protocol, sort_keys=True).encode())
    return content.hexdigest()


def compare(recipe: Recipe, output: Path, device: str = "auto", restart: bool = False) -> Path:
    """Run the comparison and write a report.

    Every model has its folder in ``output/runs``, as `imgproc_attn.training.train` leaves it; called again, finished runs are
    not repeated, and broken off ones go on.

    Args:
        recipe: What to train and evaluate.
        output: Folder of the report; made if need be.
        device: Where to run.
        restart: Forget what ``output/runs`` holds.

    Returns:
        The report, ``output/report.md``.

    Raises:
        ValueError: A mistake in the recipe, or runs of another recipe in ``output``.
    """
    check_comparison(recipe)
    assert recipe.comparison is not None
    if world_info_from_env()[2] > 1:
        raise ValueError("A comparison runs in one process; train its variants under torchrun with `imgproc-attn train`.")
    device = str(start_processes(device)[0])
    test = HeldOutImages(recipe, device)
    if restart:
        shutil.rmtree(output / "runs", ignore_errors=True)
    protocol = {"recipe": recipe.model_dump(), **environment(device), "dtype": "float32"}
    jobs = [(label, seed) for seed in recipe.comparison.seeds for label in recipe.comparison.variants]
    results: list[Result] = []
    models: dict[str, NormalizedModel] = {}
    with tqdm(total=2 * len(jobs), dynamic_ncols=True) as bar:
        for label, seed in jobs:
            folder = output / "runs" / f"{slug(label)}-seed{seed}"
            result, model = run_one(recipe, label, seed, test, folder, device, bar)
            results.append(result)
            models.setdefault(label, model)
    return write_report(recipe, results, models, test, protocol, output)


def _variants(recipe: Recipe) -> list[str]:
    return list(recipe.comparison.variants) if recipe.comparison else []


def table(recipe: Recipe, results: list[Result]) -> str:
    """Accuracy by model and condition, mean ± standard deviation over seeds, then paired differences to the baseline."""
    by_label = {label: [r for r in results if r.label == label] for label in _variants(recipe)}
    conditions = list(results[0].accuracies)
    lines = ["| model | " + " | ".join(conditions) + " |", "|---" * (len(conditions) + 1) + "|"]
    for label, runs in by_label.items():
        cells = [_plus_minus(*mean_and_std([r.accuracies[c] for r in runs])) for c in conditions]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    baseline = next(iter(by_label))
    for label, runs in by_label.items():
        if label == baseline:
            continue
        cells = []
        for c in conditions:
            d = paired_difference([r.accuracies[c] for r in runs], [r.accuracies[c] for r in by_label[baseline]])
            cells.append(_plus_minus(d.mean, d.std, "+"))
        lines.append(f"| {label} − {baseline} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sanity(recipe: Recipe, results: list[Result]) -> str:
    """Clean accuracy against the baseline, with the one-sided 95 % bound that decides the training-sanity rule."""
    by_label = {label: [r.accuracies["clean"] for r in results if r.label == label] for label in _variants(recipe)}
    baseline = next(iter(by_label))
    lines = ["| model | difference of clean accuracy | lower 95 % bound (one-sided) | not below -1 |", "|---|---|---|---|"]
    for label, values in by_label.items():
        if label != baseline:
            d = paired_difference(values, by_label[baseline])
            bound = "-" if math.isnan(d.lower) else f"{d.lower:+.2f}"
            verdict = "-" if math.isnan(d.lower) else "yes" if d.lower >= -1 else "NO"
            lines.append(f"| {label} − {baseline} | {_plus_minus(d.mean, d.std, '+')} | {bound} | {verdict} |")
    return "\n".join(lines)


def _plus_minus(mean: float, std: float, sign: str = "") -> str:
    return f"{mean:{sign}.1f}" if math.isnan(std) else f"{mean:{sign}.1f} ± {std:.1f}"


def write_report(
    recipe: Recipe,
    results: list[Result],
    models: Mapping[str, NormalizedModel],
    test: HeldOutImages,
    protocol: dict[str, Any],
    output: Path,
) -> Path:
    """JSON, pictures and ``report.md`` in ``output``."""
    doubts = [f"{r.label}, seed {r.seed}: {finding}" for r in results for finding in r.findings]
    write_json(output / "results.json", {**protocol, "results": [asdict(r) for r in results], "findings": doubts})
    pictures = _pictures(recipe, results, models, test)
    for name, figure in pictures.items():
        write_atomically(output / f"{name}.png", partial(figure.savefig, dpi=120))
    n, seeds = len(test.labels), sorted({r.seed for r in results})
    parts = [
        f"# {recipe.title}",
        f"Accuracy in percent on {n} held-out images; mean ± standard deviation over seeds {seeds}; differences are paired by "
        f"seed. Attacks and corruptions in units of images in [0, 1]; PGD with {recipe.evaluation.pgd_steps} steps and "
        f"{recipe.evaluation.pgd_restarts} random start(s). Sampling error of one accuracy: up to {50 / n**0.5:.1f} points.",
        table(recipe, results),
        "Clean accuracy against the baseline:\n\n" + sanity(recipe, results) if len(_variants(recipe)) > 1 else "",
        f"Sanity checks on {CHECKED} images a model (`imgproc_attn.evaluation.sanity`): "
        + ("no finding." if not doubts else "\n\n" + "\n".join(f"- {d}" for d in doubts)),
        *(f"![{name}]({name}.png)" for name in pictures),
        "Training time, mean: "
        + ", ".join(f"{label} {_mean_seconds(results, label):.1f} s" for label in _variants(recipe))
        + f". Versions: {', '.join(f'{k} {v}' for k, v in protocol['versions'].items())}; {protocol['device']}.",
    ]
    report = output / "report.md"
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(report, text)
    return report


def _mean_seconds(results: list[Result], label: str) -> float:
    return mean_and_std([r.train_seconds for r in results if r.label == label])[0]


def _pictures(
    recipe: Recipe, results: list[Result], models: Mapping[str, NormalizedModel], test: HeldOutImages
) -> dict[str, Figure]:
    labels = list(_variants(recipe))
    runs = {label: [r for r in results if r.label == label] for label in labels}
    pictures = {"learning": draw_learning({label: [r.losses for r in runs[label]] for label in labels})}
    curves, units = {}, {}
    for key, (name, unit) in DISTURBANCES.items():
        strengths = getattr(recipe.evaluation, key)
        if strengths:
            units[name] = unit
            curves[name] = {
                label: {0.0: [r.accuracies["clean"] for r in runs[label]]}
                | {s: [r.accuracies[f"{name} {s:g}"] for r in runs[label]] for s in strengths}
                for label in labels
            }
    if curves:
        pictures["curves"] = draw_curves(curves, units)
    if recipe.evaluation.pgd:
        pictures["adversarial"] = _adversarial_gallery(recipe, models, test)
    learned = {label: runs[label][0].bandwidths for label in labels if runs[label][0].bandwidths}
    if learned:
        pictures["bandwidths"] = draw_bandwidths(learned)
    for label, model in models.items():
        if isinstance(model.model, FilterVisionTransformer) and _has_space(model.model):
            image = test.images[0]
            rows, columns = model.model.patch_embed.grid_size
            patches = [(rows // 2, columns // 2), (rows // 4, columns // 4)]
            normalized = model.normalize(image)
            pictures[f"kernel-rows-{slug(label)}"] = draw_kernel_rows(model.model, image.cpu(), normalized, 0, patches)
    return pictures


def _has_space(model: FilterVisionTransformer) -> bool:
    return any(isinstance(module, FilterAttention) and len(module.positions) > 0 for module in model.modules())


def _adversarial_gallery(recipe: Recipe, models: Mapping[str, NormalizedModel], test: HeldOutImages) -> Figure:
    """The first image of each class under PGD in the middle of the recipe's radii."""
    radii = sorted(recipe.evaluation.pgd)
    eps = radii[len(radii) // 2]
    chosen = torch.stack([(test.labels == c).nonzero()[0, 0] for c in test.labels.unique()[:8]])
    images, labels = test.images[chosen], test.labels[chosen]
    attack = PGD(eps, recipe.evaluation.pgd_steps)
    found = {label: attack(model, images, labels, chosen.cpu()).adversarial for label, model in models.items()}
    with torch.no_grad():
        predictions = {label: models[label](adversarial).argmax(1).tolist() for label, adversarial in found.items()}
    return draw_adversarial(images, found, labels.tolist(), predictions, eps)
