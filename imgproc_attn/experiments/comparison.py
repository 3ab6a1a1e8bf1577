"""Compare models: train them with one recipe, attack and corrupt them, and report differences paired by seed."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from timm.utils import world_info_from_env

from ..diagnostics import bandwidths, draw_bandwidths, draw_curves, draw_learning
from ..evaluation import NormalizedModel, paired_difference
from ..evaluation.scoring import Metric
from ..evaluation.session import clear_results
from ..evaluation.specs import about_model
from ..evaluation.statistics import mean_and_std
from ..recipe import Recipe
from ..training import train
from ..training.distributed import start_processes
from ..training.model_factory import dry_run
from ..training.run_dir import FINAL, RunDir, run_folder
from ..training.saturation_callback import SaturationWarning
from ..utils.cores import one_thread, usable_cores
from ..utils.environment import environment, without_tf32
from ..utils.io import check_output_folder, read_json, slug, write_atomically, write_json, write_text
from ..utils.locks import locked
from ..utils.manifest import claimed
from ..utils.markdown import markdown_table, markdown_text
from ..utils.progress import JobsProgress
from ..utils.serialization import strength_text
from .jobs import Job, run_jobs
from .variants import FOLDER, VariantEvaluation

__all__ = ["VariantRun", "check_comparison", "clean_accuracy_test", "compare", "devices_of", "table", "write_report"]

# {key of the recipe: (name in tables, unit)}
PERTURBATIONS = {
    "fgsm": ("FGSM", "eps"),
    "pgd": ("PGD", "eps"),
    "segpgd": ("SegPGD", "eps"),
    "maskedpgd": ("MaskedPGD", "eps"),
    "gaussian_noise": ("noise", "standard deviation"),
    "gaussian_blur": ("blur", "sigma / pixels"),
    "word_swap": ("word_swap", "share of words"),
}


@dataclass
class VariantRun:
    """Results of one trained and evaluated model.

    Attributes:
        label: Label of the variant.
        seed: Seed of the training.
        parameters: Number of parameters.
        train_seconds: Duration of the training in seconds.
        losses: Training loss per epoch.
        metrics: ``{metric: {condition: value}}``. Models are compared by the first metric.
        largest_perturbation: ``{attack: size}``.
        bandwidths: Learned bandwidths, as `imgproc_attn.diagnostics.bandwidths` returns them.
        findings: Findings of the sanity checks.
    """

    label: str
    seed: int
    parameters: int
    train_seconds: float
    losses: list[float]
    metrics: dict[str, dict[str, float]]
    largest_perturbation: dict[str, float]
    bandwidths: dict[str, dict[str, list[float]]]
    findings: list[str]

    @property
    def first(self) -> dict[str, float]:
        """Metric by which models are compared, ``{condition: percent}``."""
        return next(iter(self.metrics.values()))


def check_comparison(recipe: Recipe) -> None:
    """Build every model and its optimizer on the meta device, to find mistakes before hours of training.

    Args:
        recipe: Recipe of several models.

    Raises:
        ValueError: The recipe is of one model, a model or an optimizer cannot be built, or two labels would share a folder.
    """
    if recipe.comparison is None:
        raise ValueError(
            "The recipe must have a section comparison, got the recipe of one model. Train it with `imgproc-attn train`."
        )
    labels = list(recipe.comparison.variants)
    if len({slug(label) for label in labels}) != len(labels):
        raise ValueError(
            f"comparison.variants: labels must differ in letters and digits, because they name folders, got {labels}. "
            "Rename one."
        )
    for label in labels:
        try:
            dry_run(recipe.variant(label, 0))
        except ValueError as error:
            raise ValueError(f"comparison.variants.{label}: {error}") from error


@dataclass
class Experimenter:
    """Train and evaluate models of a comparison, one after another, in one process.

    Args:
        recipe: Recipe of the comparison.
        output: Folder of the comparison.
        device: Device of the models.
    """

    recipe: Recipe
    output: Path
    device: str

    @cached_property
    def evaluation(self) -> VariantEvaluation:
        """Evaluation on the held-out images, which are read once."""
        return VariantEvaluation(self.recipe, self.device)

    def __call__(self, job: Job, log: Callable[[str], Any], progress: Callable[[int], Any]) -> VariantRun:
        """Train and evaluate one model. Finished parts in its folder are not repeated."""
        single, folder = self.recipe.variant(job.label, job.seed), self.output / run_folder(job.label, job.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SaturationWarning)  # The report has a finding instead.
            final = train(single, folder, self.device, resume=folder.is_dir(), log=log, progress=progress)
        progress(single.schedule.epochs)
        model = self.model(job)
        with without_tf32():
            about = about_model(single.model.name, final["parameters"], job.label, training_seed=job.seed)
            about["data"] = {"name": single.data.name, "root": single.data.root, "split": single.data.test_split}
            result = self.evaluation(model, folder, log, about)
        return VariantRun(
            job.label,
            job.seed,
            final["parameters"],
            final["seconds"],
            final["losses"],
            result.metrics,
            result.largest_perturbation,
            bandwidths(model),
            result.findings,
        )

    def model(self, job: Job) -> NormalizedModel:
        """Load the trained model of a job from its folder, with the mean and standard deviation of its training."""
        folder = self.output / run_folder(job.label, job.seed)
        weights = read_json(folder / FINAL)["checkpoint"]
        inner = timm.create_model(f"local-dir:{folder / weights}", pretrained=True)
        return self.evaluation.wrap(inner)


def devices_of(device: str, jobs: int | None, count: int) -> list[str]:
    """Return the device of each process.

    By default, there is one process per core on the CPU or one process per GPU. There are never more processes than jobs.

    Args:
        device: ``cpu``, ``cuda`` for all GPUs, or one such as ``cuda:1``; ``auto`` for all GPUs, or the CPU if there is none.
        jobs: Number of processes. If it is larger than the number of GPUs, processes share GPUs.
        count: Number of jobs.

    Raises:
        ValueError: The device does not exist, or ``jobs`` is below 1.

    Example:
        >>> devices_of("cpu", jobs=3, count=2)
        ['cpu', 'cpu']
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}. Leave it out for one process per core or GPU.")
    first = str(start_processes(device)[0])
    devices = [first] * usable_cores() if first == "cpu" else [first]
    if device in ("auto", "cuda") and first != "cpu":
        devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [devices[i % len(devices)] for i in range(min(jobs or len(devices), count))]


def compare(recipe: Recipe, output: Path, device: str = "auto", restart: bool = False, jobs: int | None = None) -> Path:
    """Train and evaluate the models of a recipe, and write a report.

    Every model has a folder in ``output/runs``, as written by `imgproc_attn.training.train`. If you call the function again,
    finished runs are not repeated, and interrupted runs are resumed.

    Models are trained and evaluated in parallel processes:

    - On the CPU, each process computes with one thread, so that no number depends on ``jobs`` or on the number of cores.
    - Each process loads the held-out images into its own memory.
    - Processes import the script that calls this function. Call it below ``if __name__ == "__main__":``, or with ``jobs=1``,
      which starts no processes.

    Args:
        recipe: Recipe of several models.
        output: Folder of the report. It is created if it does not exist.
        device: ``cpu``, ``cuda`` for all GPUs, or one such as ``cuda:1``; ``auto`` for all GPUs, or the CPU if there is none.
        restart: Whether to remove the runs of this recipe in ``output/runs``.
        jobs: Number of processes. Default: one per core, or one per GPU.

    Returns:
        Path of the report, ``output/report.md``.

    Raises:
        FileExistsError: ``output`` holds files that would be overwritten and that no comparison wrote.
        ValueError: The recipe is wrong, ``output`` holds runs of another recipe or on other data, or another process writes
            to it.
        JobFailed: The training or evaluation of a model failed. Other jobs are stopped. The next call resumes them.
    """
    check_comparison(recipe)
    assert recipe.comparison is not None
    if world_info_from_env()[2] > 1:
        raise ValueError(
            "A comparison must be started in one process, got several from torchrun. It starts its own processes. With "
            "torchrun, train its variants with `imgproc-attn train`."
        )
    check_output_folder(output)
    todo = [Job(label, seed) for seed in recipe.comparison.seeds for label in recipe.comparison.variants]
    devices = devices_of(device, jobs, len(todo))
    with claimed(output, _outputs(recipe)), one_thread(devices[0]):
        here = Experimenter(recipe, output, devices[0])
        evaluation = here.evaluation  # Errors in the images are found before anything is trained.
        protocol = {"recipe": recipe.model_dump(), **environment(devices[0]), "dtype": "float32"}
        for job in todo:
            _check_folder(recipe.variant(*job), output / run_folder(*job), restart)
        start = (lambda device: here) if len(devices) == 1 else partial(Experimenter, recipe, output)
        with JobsProgress(len(todo), recipe.schedule.epochs + 1) as progress:
            results = run_jobs(start, todo, devices, progress)
        models = {label: here.model(Job(label, recipe.comparison.seeds[0])) for label in recipe.comparison.variants}
        return write_report(recipe, list(results.values()), models, evaluation, protocol, output)


def _outputs(recipe: Recipe) -> list[str]:
    """Return the names of all files that a report may have."""
    figures = ["learning", "curves", "bandwidths", "adversarial", "segmented", "errors"]
    figures += [f"kernel-rows-{slug(label)}" for label in _variants(recipe)]
    return ["results.json", "report.md", *(f"{name}.png" for name in figures)]


def _check_folder(recipe: Recipe, folder: Path, restart: bool) -> None:
    """Check that a folder holds no run of another recipe, or remove the run, before anything is trained.

    Raises:
        ValueError: The folder holds a run of another recipe.
    """
    if restart:
        with locked(folder):
            RunDir.clear(folder)
        clear_results(folder / FOLDER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Training shows the same warnings.
        RunDir(folder, recipe, resume=True)


def _variants(recipe: Recipe) -> list[str]:
    return list(recipe.comparison.variants) if recipe.comparison else []


def table(recipe: Recipe, results: list[VariantRun], metric: str, digits: int = 1) -> str:
    """Return a Markdown table of one metric per model and condition, then of paired differences to the baseline.

    Values are mean ± standard deviation over seeds.

    Args:
        recipe: Recipe of the comparison. Its first variant is the baseline.
        results: Results of all models.
        metric: Key of the metric.
        digits: Number of decimals.
    """
    by_label = {label: [r for r in results if r.label == label] for label in _variants(recipe)}
    conditions = list(results[0].metrics[metric])
    rows = []
    for label, runs in by_label.items():
        cells = [_plus_minus(*mean_and_std([r.metrics[metric][c] for r in runs]), digits=digits) for c in conditions]
        rows.append([markdown_text(label), *cells])
    baseline = next(iter(by_label))
    for label, runs in by_label.items():
        if label == baseline:
            continue
        cells = []
        for c in conditions:
            d = paired_difference([r.metrics[metric][c] for r in runs], [r.metrics[metric][c] for r in by_label[baseline]])
            cells.append(_plus_minus(d.mean, d.std, "+", digits))
        rows.append([markdown_text(f"{label} − {baseline}"), *cells])
    return markdown_table(["model", *conditions], rows)


def clean_accuracy_test(recipe: Recipe, results: list[VariantRun], sign: int = 1, digits: int = 1) -> str:
    """Return a Markdown table of paired differences of the clean metric to the baseline.

    A model trains as well as the baseline if the one-sided lower 95 % bound is not below ``-tolerance`` of the recipe. If
    smaller values are better, the upper bound must not be above ``tolerance``.

    Args:
        recipe: Recipe of the comparison. Its first variant is the baseline.
        results: Results of all models.
        sign: 1 if larger values of the metric are better, else -1.
        digits: Number of decimals of the differences.
    """
    assert recipe.comparison is not None
    least = -recipe.comparison.tolerance
    by_label = {label: [r.first["clean"] for r in results if r.label == label] for label in _variants(recipe)}
    baseline = next(iter(by_label))
    rows = []
    for label, values in by_label.items():
        if label != baseline:
            gain = paired_difference([sign * v for v in values], [sign * v for v in by_label[baseline]])
            bound = "-" if math.isnan(gain.lower) else f"{sign * gain.lower:+.{max(digits, 2)}f}"
            verdict = "-" if math.isnan(gain.lower) else "yes" if gain.lower >= least else "NO"
            rows.append(
                [markdown_text(f"{label} − {baseline}"), _plus_minus(sign * gain.mean, gain.std, "+", digits), bound, verdict]
            )
    side, limit = ("lower", f"not below {least:g}") if sign > 0 else ("upper", f"not above {-least:g}")
    return markdown_table(["model", "difference, clean", f"{side} 95 % bound (one-sided)", limit], rows)


def _plus_minus(mean: float, std: float, sign: str = "", digits: int = 1) -> str:
    return f"{mean:{sign}.{digits}f}" if math.isnan(std) else f"{mean:{sign}.{digits}f} ± {std:.{digits}f}"


def write_report(
    recipe: Recipe,
    results: list[VariantRun],
    models: Mapping[str, NormalizedModel],
    evaluation: VariantEvaluation,
    protocol: dict[str, Any],
    output: Path,
) -> Path:
    """Write ``results.json``, figures and ``report.md`` to ``output``, and return the path of the report."""
    doubts = [f"{r.label}, seed {r.seed}: {finding}" for r in results for finding in r.findings]
    write_json(output / "results.json", {**protocol, "results": [asdict(r) for r in results], "findings": doubts})
    drawn = _figures(recipe, results, evaluation.task.metrics[0].label, evaluation.unperturbed)
    figures = {**drawn, **evaluation.figures(models)}
    for name, figure in figures.items():
        write_atomically(output / f"{name}.png", partial(figure.savefig, dpi=120))
    seeds, e = sorted({r.seed for r in results}), recipe.evaluation
    metrics = [metric for metric in evaluation.task.metrics if metric.key in results[0].metrics]
    tables = [f"In {m.title}:\n\n" * (len(metrics) > 1) + table(recipe, results, m.key, m.digits) for m in metrics]
    attacked = (
        f"Attacks and corruptions in units of images in [0, 1]; PGD with {e.pgd_steps} steps and {e.pgd_restarts} random "
        "start(s)" + (f"; the APGD attacks of the worst case with {e.apgd_steps} steps." if e.worst_case else ".")
    )
    parts = [
        f"# {markdown_text(recipe.title)}",
        f"Values in {_units(metrics)}, on {evaluation.description}. Mean ± standard deviation over seeds {seeds}; differences "
        f"are paired by seed. {attacked if evaluation.task.attacks else ''}".rstrip(),
        *tables,
        f"Clean {metrics[0].title} against the baseline:\n\n"
        + clean_accuracy_test(recipe, results, metrics[0].sign, metrics[0].digits)
        if len(_variants(recipe)) > 1
        else "",
        f"Sanity checks on {evaluation.checked} per model: "
        + ("no finding." if not doubts else "\n\n" + "\n".join(f"- {markdown_text(d)}" for d in doubts)),
        *(f"![{name}]({name}.png)" for name in figures),
        "Mean training time: "
        + ", ".join(f"{markdown_text(label)} {_mean_seconds(results, label):.1f} s" for label in _variants(recipe))
        + f". Versions: {', '.join(f'{k} {v}' for k, v in protocol['versions'].items())}; {protocol['device']}.",
    ]
    report = output / "report.md"
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(report, text)
    return report


def _units(metrics: Sequence[Metric]) -> str:
    """Return the units of metrics in words."""
    return "percent" if all(metric.unit == "%" for metric in metrics) else ", ".join(metric.label for metric in metrics)


def _mean_seconds(results: list[VariantRun], label: str) -> float:
    return mean_and_std([r.train_seconds for r in results if r.label == label])[0]


def _figures(recipe: Recipe, results: list[VariantRun], label: str, unperturbed: str) -> dict[str, Figure]:
    labels = list(_variants(recipe))
    runs = {label: [r for r in results if r.label == label] for label in labels}
    figures = {"learning": draw_learning({label: [r.losses for r in runs[label]] for label in labels})[0]}
    curves, units = {}, {}
    for key, (family, unit) in PERTURBATIONS.items():
        strengths = getattr(recipe.evaluation, key)
        name = f"{family}-{recipe.evaluation.pgd_steps}" if key.endswith("pgd") else family
        if strengths:
            units[name] = unit
            curves[name] = {
                label: {0.0: [r.first[unperturbed] for r in runs[label]]}
                | {s: [r.first[f"{name} {strength_text(s)}"] for r in runs[label]] for s in strengths}
                for label in labels
            }
    if curves:
        figures["curves"] = draw_curves(curves, units, label)[0]
    learned = {label: runs[label][0].bandwidths for label in labels if runs[label][0].bandwidths}
    if learned:
        figures["bandwidths"] = draw_bandwidths(learned)[0]
    return figures
