"""The main job on real images: train models under one recipe, attack and corrupt them, report."""

import hashlib
import itertools
import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_model, save_model
from timm.optim import create_optimizer_v2
from torch import nn
from tqdm import tqdm

from .diagnostics import (
    bandwidths,
    draw_adversarial,
    draw_bandwidths,
    draw_curves,
    draw_kernel_rows,
    draw_learning,
    saturation,
)
from .evaluation import FGSM, PGD, GaussianBlur, GaussianNoise, NormalizedModel, evaluate, paired_difference
from .evaluation.statistics import mean_and_std
from .files import write_atomically, write_json, write_text
from .layers import FilterAttention
from .models import FilterVisionTransformer
from .training import Recipe, Split, fit, load_digits

# Disturbances by the recipe's key: name in tables, unit, and how one of a strength is made.
DISTURBANCES = {
    "fgsm": ("FGSM", "eps"),
    "pgd": ("PGD", "eps"),
    "gaussian_noise": ("noise", "standard deviation"),
    "gaussian_blur": ("blur", "sigma / pixels"),
}


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
    saturation: float | None


def build(recipe: Recipe, label: str, seed: int) -> NormalizedModel:
    """The model ``label`` of the recipe, freshly initialised, normalisation inside."""
    torch.manual_seed(seed)
    return NormalizedModel(_create(recipe, label), recipe.data.mean, recipe.data.std)


def _create(recipe: Recipe, label: str, **kwargs: Any) -> nn.Module:
    options = recipe.variants[label].model_dump()
    return timm.create_model(options.pop("name"), **{**recipe.model, **options, **kwargs})


def check(recipe: Recipe) -> None:
    """Build every model and the optimiser once, without memory, so that no mistake waits behind hours of training.

    Raises:
        ValueError: A model or optimiser that cannot be built, or labels that would share a file.
    """
    slugs = [_slug(label) for label in recipe.variants]
    if len(set(slugs)) != len(slugs):
        raise ValueError(f"variants: the labels {list(recipe.variants)} differ in letters and digits too little to name files.")
    for label in recipe.variants:
        try:
            model = _create(recipe, label, device="meta")
            create_optimizer_v2(model, recipe.optimiser.name, lr=recipe.optimiser.lr)
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise ValueError(f"variants.{label}: {error}") from error


def disturbances(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attacks and corruptions of the recipe by name, ``"PGD 0.05"``."""
    e = recipe.evaluation
    attacks: dict[str, Any] = {f"FGSM {eps:g}": FGSM(eps) for eps in e.fgsm}
    attacks |= {f"PGD {eps:g}": PGD(eps, e.pgd_steps, restarts=e.pgd_restarts) for eps in e.pgd}
    corruptions: dict[str, Any] = {f"noise {std:g}": GaussianNoise(std) for std in e.gaussian_noise}
    corruptions |= {f"blur {sigma:g}": GaussianBlur(sigma) for sigma in e.gaussian_blur}
    return attacks, corruptions


def run_one(recipe: Recipe, label: str, seed: int, split: Split, bar: tqdm) -> tuple[Result, NormalizedModel]:
    """Train and evaluate one model."""
    model = build(recipe, label, seed).to(split.train_images.device)
    bar.set_description(f"{label}, seed {seed}")
    start = time.perf_counter()

    def on_epoch(epoch: Any) -> None:
        bar.update()
        bar.set_postfix_str(f"loss {epoch.loss:.3f}")

    history = fit(model, split.train_images, split.train_labels, recipe, seed, on_epoch)
    seconds = time.perf_counter() - start
    found = evaluate(
        model, split.test_images, split.test_labels, *disturbances(recipe), progress=lambda name: bar.set_postfix_str(name)
    )
    bar.update()
    inner = model.model
    saturated = None
    if isinstance(inner, FilterVisionTransformer):
        saturated = saturation(inner, (split.test_images[:100] - model.mean) / model.std)
    result = Result(
        label,
        seed,
        sum(p.numel() for p in model.parameters()),
        seconds,
        [epoch.loss for epoch in history],
        found.accuracies,
        found.largest_perturbation,
        bandwidths(model),
        saturated,
    )
    return result, model


def quickstart(recipe: Recipe, output: Path, device: str = "cpu", restart: bool = False) -> Path:
    """Run the recipe and write a report.

    Finished runs are kept in ``output/runs``; called again with the same recipe and versions, they are not repeated.

    Args:
        recipe: What to train and evaluate.
        output: Folder of the report; made if need be.
        device: Where to run.
        restart: Repeat finished runs too.

    Returns:
        The report, ``output/report.md``.
    """
    check(recipe)
    protocol = _protocol(recipe, device)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "protocol.json", protocol)
    split = Split(*(t.to(device) for t in load_digits(recipe.data.test_images, recipe.data.seed)))
    jobs = [(label, seed) for seed in recipe.run.seeds for label in recipe.variants]
    results: list[Result] = []
    models: dict[str, NormalizedModel] = {}
    with tqdm(total=len(jobs) * (recipe.schedule.epochs + 1), unit="epoch", dynamic_ncols=True) as bar:
        for label, seed in jobs:
            name = output / "runs" / f"{_slug(label)}-seed{seed}"
            record, weights = name.with_suffix(".json"), name.with_suffix(".safetensors")
            done = None if restart else _finished(record, weights, protocol["key"], label, seed)
            if done is not None:
                model = build(recipe, label, seed).to(device).eval()
                load_model(model, weights)
                bar.update(recipe.schedule.epochs + 1)
            else:
                done, model = run_one(recipe, label, seed, split, bar)
                write_atomically(weights, partial(_save_weights, model))
                write_json(record, {"key": protocol["key"], **asdict(done)})
            results.append(done)
            models.setdefault(label, model)
    return write_report(recipe, results, models, split, protocol, output)


def _protocol(recipe: Recipe, device: str) -> dict[str, Any]:
    """What the numbers depend on, and a key of it."""
    packages = ("torch", "torchvision", "timm", "kornia", "scikit-learn", "imgproc-attn")
    protocol = {
        "recipe": recipe.model_dump(),
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "device": device,
        "dtype": "float32",
    }
    # how long a run takes to others does not matter to it: seeds are not part of its key
    content = {
        **protocol,
        "recipe": recipe.model_copy(update={"run": recipe.run.model_copy(update={"seeds": []})}).model_dump(),
    }
    protocol["key"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return protocol


def _finished(record: Path, weights: Path, key: str, label: str, seed: int) -> Result | None:
    if not (record.is_file() and weights.is_file()):
        return None
    content = json.loads(record.read_text())
    if (content.pop("key"), content["label"], content["seed"]) != (key, label, seed):
        return None
    return Result(**content)


def _save_weights(model: NormalizedModel, file: Path) -> None:
    save_model(model, str(file))


def _slug(label: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in label).strip("-")


def findings(results: list[Result], recipe: Recipe) -> list[str]:
    """What makes a robustness number doubtful, in words: empty for results that show none of the known signs."""
    found = []
    for r in results:
        who = f"{r.label}, seed {r.seed}"
        for eps in sorted(set(recipe.evaluation.fgsm) & set(recipe.evaluation.pgd)):
            fgsm, pgd = r.accuracies[f"FGSM {eps:g}"], r.accuracies[f"PGD {eps:g}"]
            if pgd > fgsm + 0.5:
                found.append(f"{who}: PGD at {eps:g} leaves {pgd:.1f} %, FGSM {fgsm:.1f} %: the gradient may be masked.")
        by_eps = [r.accuracies[f"PGD {eps:g}"] for eps in sorted(recipe.evaluation.pgd)]
        if any(b > a + 0.5 for a, b in itertools.pairwise(by_eps)):
            found.append(f"{who}: accuracy under PGD rises with eps: the attack is stuck.")
        if r.saturation is not None and r.saturation > 0.01:
            found.append(
                f"{who}: {100 * r.saturation:.1f} % of filter rows copy one token: "
                f"gradients through them vanish; confirm the numbers with a stronger attack."
            )
    return found


def table(recipe: Recipe, results: list[Result]) -> str:
    """Accuracy by model and condition, mean ± standard deviation over seeds, then paired differences to the baseline."""
    by_label = {label: [r for r in results if r.label == label] for label in recipe.variants}
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
    by_label = {label: [r.accuracies["clean"] for r in results if r.label == label] for label in recipe.variants}
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
    split: Split,
    protocol: dict[str, Any],
    output: Path,
) -> Path:
    """JSON, pictures and ``report.md`` in ``output``."""
    doubts = findings(results, recipe)
    write_json(output / "results.json", {**protocol, "results": [asdict(r) for r in results], "findings": doubts})
    pictures = _pictures(recipe, results, models, split)
    for name, figure in pictures.items():
        write_atomically(output / f"{name}.png", partial(figure.savefig, dpi=120))
    n, seeds = len(split.test_labels), recipe.run.seeds
    parts = [
        f"# {recipe.title}",
        f"Accuracy in percent on {n} held-out images; mean ± standard deviation over seeds {seeds}; differences are paired by "
        f"seed. Attacks and corruptions in units of images in [0, 1]; PGD with {recipe.evaluation.pgd_steps} steps and "
        f"{recipe.evaluation.pgd_restarts} random start(s). Sampling error of one accuracy: up to {50 / n**0.5:.1f} points.",
        table(recipe, results),
        "Clean accuracy against the baseline:\n\n" + sanity(recipe, results) if len(recipe.variants) > 1 else "",
        "Signs of gradient masking looked for (PGD weaker than FGSM, accuracy rising with eps, saturated filters): "
        + ("none found." if not doubts else "\n\n" + "\n".join(f"- {d}" for d in doubts)),
        *(f"![{name}]({name}.png)" for name in pictures),
        "Training time, mean: "
        + ", ".join(f"{label} {_mean_seconds(results, label):.1f} s" for label in recipe.variants)
        + f". Versions: {', '.join(f'{k} {v}' for k, v in protocol['versions'].items())}; {protocol['device']}.",
    ]
    report = output / "report.md"
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(report, text)
    return report


def _mean_seconds(results: list[Result], label: str) -> float:
    return mean_and_std([r.train_seconds for r in results if r.label == label])[0]


def _pictures(recipe: Recipe, results: list[Result], models: Mapping[str, NormalizedModel], split: Split) -> dict[str, Figure]:
    labels = list(recipe.variants)
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
        pictures["adversarial"] = _adversarial_gallery(recipe, models, split)
    learned = {label: runs[label][0].bandwidths for label in labels if runs[label][0].bandwidths}
    if learned:
        pictures["bandwidths"] = draw_bandwidths(learned)
    for label, model in models.items():
        if isinstance(model.model, FilterVisionTransformer) and _has_space(model.model):
            image = split.test_images[0]
            rows, columns = model.model.patch_embed.grid_size
            patches = [(rows // 2, columns // 2), (rows // 4, columns // 4)]
            normalized = (image - model.mean) / model.std
            pictures[f"kernel-rows-{_slug(label)}"] = draw_kernel_rows(model.model, image.cpu(), normalized, 0, patches)
    return pictures


def _has_space(model: FilterVisionTransformer) -> bool:
    return any(isinstance(module, FilterAttention) and len(module.positions) > 0 for module in model.modules())


def _adversarial_gallery(recipe: Recipe, models: Mapping[str, NormalizedModel], split: Split) -> Figure:
    """The first digit of each class under PGD in the middle of the recipe's radii."""
    radii = sorted(recipe.evaluation.pgd)
    eps = radii[len(radii) // 2]
    chosen = torch.stack([(split.test_labels == c).nonzero()[0, 0] for c in split.test_labels.unique()[:8]])
    images, labels = split.test_images[chosen], split.test_labels[chosen]
    attack = PGD(eps, recipe.evaluation.pgd_steps)
    found = {label: attack(model, images, labels, chosen.cpu()).adversarial for label, model in models.items()}
    with torch.no_grad():
        predictions = {label: models[label](adversarial).argmax(1).tolist() for label, adversarial in found.items()}
    return draw_adversarial(images, found, labels.tolist(), predictions, eps)
