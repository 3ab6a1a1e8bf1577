"""Scoring of a model's outputs: the part of a task that evaluations need."""

import importlib
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..data import (
    Images,
    Preprocessing,
    PreprocessingLike,
    StreamedImages,
    check_classes,
    open_images,
    random_subset,
)
from ..data.reader_names import check_reader
from ..diagnostics import draw_grid
from .attacks import Passes
from .conditions import known_corruptions
from .contract import check_batch
from .findings import Finding, SanityReport
from .imagenet_c import ImageNetC
from .imagenet_c.errors import SEVERITIES, corruption_summary
from .normalization import NormalizedModel, Statistics
from .presets import Catalog, Preset
from .results_log import SampleResults, of_common_samples
from .samples import Batch, Samples, SampleSet, StreamSamples, in_memory
from .sanity import POINTS, check_repeats
from .scorers import AnyAttack, AttackScorer, CleanScorer, Scorer
from .specs import DatasetSpec

__all__ = ["TASKS", "Metric", "Scoring", "check_attacked_rows", "check_chance_level", "check_trained_classes", "find_task"]

DOUBT = "; find out why before you believe either number"


class Metric(NamedTuple):
    """A number of a condition.

    Attributes:
        key: Its key in results and records.
        title: Its name in tables.
        unit: Its unit; empty for none.
        higher_is_better: Whether larger values are better.
        digits: Number of decimals in tables of several models.
    """

    key: str
    title: str
    unit: str = "%"
    higher_is_better: bool = True
    digits: int = 1

    @property
    def label(self) -> str:
        """Title and unit, for axes and table heads."""
        return f"{self.title} / {self.unit}" if self.unit else self.title

    def shown(self, value: float) -> str:
        """Return the text of a value in the table of one model, with at least two decimals."""
        return f"{value:.{max(self.digits, 2)}f}"

    @property
    def sign(self) -> int:
        """1 if larger values are better, else -1."""
        return 1 if self.higher_is_better else -1


@dataclass(frozen=True)
class Scoring(ABC):
    """Scorers, metrics, intervals, checks and figures of a task.

    A subclass must give `metrics`, `score` and `per_sample`. Everything else has a default that fits metrics which are means
    over samples.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]  # the first one is drawn, and compares models
    attacks: ClassVar[Catalog] = {}
    presets: ClassVar[Mapping[str, Preset]] = {}
    num_checked: ClassVar[int] = 64  # default number of samples for the sanity checks
    sample_noun: ClassVar[str] = "images"  # how messages call samples
    samples_are_images: ClassVar[bool] = True  # whether galleries can show them
    output_noun: ClassVar[str] = "classes"  # how messages call what outputs choose from
    batch_limit: ClassVar[int | None] = None  # largest batch in evaluation; None for any
    details: ClassVar[tuple[str, ...]] = ()  # columns that are kept of clean images only
    files: ClassVar[tuple[str, ...]] = ()  # names of `tables`
    refused_options: ClassVar[tuple[str, ...]] = ()  # options of the commands that mean nothing to the task
    bootstrapped: ClassVar[bool] = False  # whether intervals come from `bootstrap`

    @property
    def num_outputs(self) -> int:
        """Number of classes, which some attacks depend on."""
        return 0

    @property
    def protocol(self) -> dict[str, Any]:
        """Settings that numbers must share to be compared, beside those of the scorers."""
        return {}

    # data and model

    @classmethod
    def check_reader(cls, name: str) -> None:
        """Check that the task reads data with the reader of that name.

        Raises:
            ValueError: The task does not read data with this reader.
        """
        check_reader(name)

    def open_dataset(self, spec: DatasetSpec, model: Any, channels: int) -> Any:
        """Open the images of an evaluation.

        Args:
            spec: Reader, split and number of the images.
            model: The model, whose classes the images must have.
            channels: 1 for gray, 3 for color.

        Raises:
            FileNotFoundError: There are no images.
            ValueError: The classes of the images are not those of the model.
        """
        reader = self.open_reader(spec, channels)
        check_trained_classes(getattr(reader, "class_to_idx", None), model, spec)
        return self.numbered(reader, spec, model.num_classes, channels)

    def open_reader(self, spec: DatasetSpec, channels: int) -> Any:
        """Open the reader that an evaluation names."""
        mode = "L" if channels == 1 else "RGB"
        return open_images(spec.data, spec.root, spec.split, spec.seed, mode=mode, **spec.columns)

    def numbered(self, reader: Any, spec: DatasetSpec, num_classes: int, channels: int) -> Images | StreamedImages:
        """Return the images of a reader that an evaluation asks for.

        Raises:
            ValueError: A stream has a limit or must stop at broken images. It supports neither.
        """
        if isinstance(reader, StreamedImages):
            if spec.limit is not None or not spec.skip_broken:
                given = f"limit={spec.limit}, skip_broken={spec.skip_broken}"
                raise ValueError(
                    f"The stream {spec.data!r} must be read to its end and without its broken images, got {given}. Leave out "
                    "--limit and give --skip-broken."
                )
            reader.num_classes = num_classes
            return reader
        chosen = random_subset(len(reader), spec.limit, spec.seed)
        return Images(reader, num_classes, chosen, channels, "ignore" if spec.skip_broken else "stop")

    def samples_of(self, images: Any) -> SampleSet:
        """Return a split or data set as samples with ids."""
        return StreamSamples(images) if isinstance(images, StreamedImages) else Samples(images)

    def kept(self, samples: SampleSet, preprocessing: PreprocessingLike, workers: int, device: torch.device) -> SampleSet:
        """Return samples that are asked about many times: in memory, where they make batches."""
        return in_memory(samples, preprocessing, 256, workers, device)

    def preprocess(self, preprocessing: Preprocessing) -> PreprocessingLike:
        """Return the preprocessing in evaluation, from that of the model."""
        return preprocessing

    def restrict(self, model: nn.Module) -> nn.Module:
        """Return the model with the outputs that count for the images."""
        return model

    def wrap(self, model: nn.Module, mean: Statistics | None = None, std: Statistics | None = None) -> NormalizedModel:
        """Return the model as samples are shown to it. Default: it normalizes images in [0, 1] by ``mean`` and ``std``."""
        return NormalizedModel(model, mean, std)

    def check_inputs(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return a batch as it is scored, if model and batch are as they must be.

        Raises:
            ValueError: They are not.
        """
        return check_batch(model, images, labels if labels.ndim == 1 else None)

    def corruptions(
        self, names: Sequence[str] | None, severities: Sequence[float] | None, seed: int, frost_folder: Path | None = None
    ) -> list[Any]:
        """Return the corruptions of a command, each with ``name`` and ``severity``.

        Args:
            names: Names of corruptions or groups. Default: the common ones.
            severities: Severities. Default: all.
            seed: Seed of all draws.
            frost_folder: Folder with the photographs of ``frost``.

        Raises:
            ValueError: There is no such corruption or severity.
        """
        wrong = [severity for severity in severities or () if severity not in SEVERITIES]
        if wrong:
            raise ValueError(f"--severities must be from 1 to 5 for images, got {wrong[0]:g}. Give whole numbers.")
        known = known_corruptions(names or ["common"], frost_folder)
        return [ImageNetC(name, int(s), seed, frost_folder) for name in known for s in severities or SEVERITIES]

    # scorers

    @abstractmethod
    def score(self, model: nn.Module, images: Tensor, targets: Tensor) -> Mapping[str, Any]:
        """Return per-sample results of a batch: by name tensors ``[B, …]``, or lists that JSON can hold.

        Args:
            model: Maps images in [0, 1] to outputs, in evaluation mode.
            images: ``[B, C, H, W]`` in [0, 1].
            targets: ``[B, …]``, of `targets`.
        """

    @property
    def passes(self) -> Passes:
        """Passes through the model per sample in `score`."""
        return Passes(1, 0)

    def targets(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return what outputs are compared with. Default: the labels of the data set."""
        return labels

    @property
    def clean(self) -> Scorer:
        """Scorer of images as they are."""
        return CleanScorer(self)

    def under(self, attack: AnyAttack) -> Scorer:
        """Return the scorer of images under attack."""
        return AttackScorer(self, attack)  # type: ignore[arg-type]  # attacks of targets, not WorstOf

    def view(self, model: nn.Module) -> nn.Module:
        """Return the model as attacks see it."""
        return model

    # numbers

    @abstractmethod
    def per_sample(self, results: SampleResults) -> list[float]:
        """Return one value per sample, whose mean is the first metric (in percent, where its unit is)."""

    def count(self, results: SampleResults) -> dict[str, Any]:
        """Return the numbers of a condition: the metrics, the number of samples ``n``, and more."""
        factor = 100 if self.metrics[0].unit == "%" else 1
        values = self.per_sample(results)
        return {"n": len(values), self.metrics[0].key: factor * statistics.fmean(values)}

    def intervals(self, results: SampleResults) -> dict[str, list[float]]:
        """Return 95 % intervals of the metrics. Default: normal, of a mean over two or more samples."""
        metric, values = self.metrics[0], self.per_sample(results)
        factor = 100 if metric.unit == "%" else 1
        mean = factor * statistics.fmean(values)
        if len(values) == 1:  # nothing is known of the spread
            return {metric.key: [0.0, 100.0] if metric.unit == "%" else [mean, mean]}
        half = factor * 1.96 * statistics.stdev(values) / len(values) ** 0.5
        return {metric.key: [mean - half, mean + half]}

    def bootstrap(self, results: SampleResults) -> dict[str, list[float]]:
        """Return bootstrap values of metrics that are not means over samples; draws depend on the number of samples only."""
        return {}

    def best_constant(self, results: SampleResults) -> float | None:
        """Return the first metric of the best model with the same output for all samples; None if it is unknown."""
        return None

    def summarize(self, by_corruption: Mapping[str, Mapping[float, float]]) -> dict[str, Any]:
        """Return means of the first metric over corruptions, ``{corruption: {severity: value}}``."""
        summary = corruption_summary(by_corruption, imagenet=False)
        key = f"mean_{self.metrics[0].key}"
        return {name.replace("mean_accuracy", key): summary[name] for name in summary if name != "mean_error"}

    def standard_error(self, n: int) -> str:
        """Return a remark on the standard error of the first metric on ``n`` samples; empty for none."""
        return ""

    # trust

    def probes(self, model: nn.Module, attacks: Sequence[AnyAttack], seed: int) -> dict[str, Scorer]:
        """Return scorers by name whose results on a few samples `check` needs. Default: none.

        Args:
            model: Maps images in [0, 1] to outputs, in evaluation mode.
            attacks: Attacks whose numbers are to be believed; none for the outputs only.
            seed: Seed of all random numbers.
        """
        return {}

    @torch.no_grad()
    def check(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        attacks: Sequence[AnyAttack],
        probed: Mapping[str, SampleResults],
    ) -> SanityReport:
        """Return the report of sanity checks on a few samples. Default: two passes must give equal outputs.

        Args:
            model: As in `probes`.
            batches: Readable samples.
            attacks: As in `probes`.
            probed: Results of the `probes` by name.
        """
        findings = [finding for images, *_ in batches for finding in check_repeats(model(images), model(images))]
        return SanityReport(["outputs"], sum(len(batch[0]) for batch in batches), findings[:1])

    def cross_checks(self, rows: Sequence[Mapping[str, Any]], results: Mapping[str, SampleResults]) -> list[Finding]:
        """Compare the numbers of conditions with each other.

        Args:
            rows: Numbers of the conditions, as in ``result.json``; the first one is clean.
            results: Results by condition.
        """
        return check_attacked_rows(rows, self.metrics[0])

    # figures and files

    def harmed(self, clean: SampleResults, attacked: SampleResults) -> Tensor:
        """Return ids of the samples that an attack made worse, the worst ones first."""
        clean, attacked = of_common_samples({"clean": clean, "attacked": attacked}).values()
        change = self.metrics[0].sign * (torch.tensor(self.per_sample(attacked)) - torch.tensor(self.per_sample(clean)))
        return clean.ids[change.nan_to_num(0).argsort()[: int((change < 0).sum())]]

    def attacked_figure(self, model: Any, batch: Batch, condition: Any, label: str) -> Figure:
        """Draw samples beside their adversarial versions.

        Args:
            model: Maps images in [0, 1] to outputs.
            batch: Samples.
            condition: The `Condition` that attacks them.
            label: Name of the model.
        """
        adversarial = condition.scorer(model, *batch).images
        rows = {f"{int(i)}": {"image": x, condition.name: a} for i, x, a in zip(batch[2], batch[0], adversarial)}
        return draw_grid(rows)[0]

    def tables(self, results: SampleResults, row: Mapping[str, Any], samples: Any) -> dict[str, list[list[Any]]]:
        """Return further tables of clean images, ``{file name: rows}``."""
        return {}

    def notes(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return sentences in Markdown on the conditions."""
        return []

    def remarks(self, row: Mapping[str, Any], tables: Mapping[str, list[list[Any]]]) -> list[str]:
        """Return sentences in Markdown on the numbers of clean images and on `tables`."""
        return []


def check_trained_classes(classes: Mapping[str, int] | None, model: Any, spec: DatasetSpec) -> None:
    """Check that the classes of a data set are those that the model was trained on.

    Args:
        classes: ``{name: label}`` of the data set; None if its reader has no class names.
        model: The model. A model without class names passes if the number of classes agrees.
        spec: The data set, for messages.

    Raises:
        ValueError: They differ.
    """
    names = model.pretrained_cfg.get("label_names")
    trained = {name: label for label, name in enumerate(names)} if names else None
    check_classes(classes, model.num_classes, trained, (spec.split or spec.data, "trained on"))


def check_chance_level(task: Scoring, row: Mapping[str, Any], results: SampleResults) -> list[Finding]:
    """Return a finding if a model is not better than the best model with the same output for all samples.

    Args:
        task: Task of the model.
        row: Numbers of the clean samples, as in ``result.json``.
        results: Results of the clean samples.
    """
    metric, constant = task.metrics[0], task.best_constant(results)
    low, high = row["intervals"][metric.key]
    nearest = low if metric.higher_is_better else high
    if constant is None or metric.sign * (nearest - constant) > 0:
        return []
    number, best, *bounds = (f"{value:.{metric.digits}f}" for value in (row[metric.key], constant, low, high))
    unit = f" {metric.unit}" if metric.unit else ""
    return [
        Finding(
            "chance level",
            f"The clean {metric.title} of {number}{unit} (95 % interval {' to '.join(bounds)}) is not better than "
            f"{best}{unit}, which the best constant prediction reaches, so numbers under attack or corruption say nothing "
            "about robustness. Check that the targets are those of the model, train longer, or evaluate on more and other "
            f"{task.sample_noun}.",
        )
    ]


def check_attacked_rows(rows: Sequence[Mapping[str, Any]], metric: Metric) -> list[Finding]:
    """Compare the numbers of attacks with each other and with the clean one.

    Args:
        rows: Numbers of the conditions; the first one of the same images is clean.
        metric: The metric to compare.
    """
    word = "more" if metric.higher_is_better else "less"

    def better(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        return metric.sign * (row[metric.key] - other[metric.key]) > POINTS

    def value(row: Mapping[str, Any]) -> str:
        return f"{row[metric.key]:.1f} {metric.unit}".strip()

    findings, attacked = [], [row for row in rows if "eps" in row]
    for row in attacked:
        for other in (o for o in attacked if o["norm"] == row["norm"] and better(row, o)):
            message = f"{row['name']} leaves {value(row)} {metric.title}, {other['name']} {value(other)}"
            if row["family"] == other["family"] and row["eps"] > other["eps"] and _has_steps(row):
                findings.append(
                    Finding(f"{metric.title} rises with eps", f"{message}: a larger ball holds the smaller one{DOUBT}.")
                )
            if _has_steps(row) and not _has_steps(other) and row["eps"] == other["eps"]:
                findings.append(Finding("steps are weaker than one", f"{message}: gradients may be masked{DOUBT}."))
    for row in attacked:
        clean = next((r for r in rows if "eps" not in r and r.get("images") == row.get("images")), rows[0])
        if better(row, clean):
            message = f"{row['name']} leaves {value(row)} {metric.title}, {word} than the {value(clean)} without attack"
            findings.append(Finding("an attack that helps", f"{message}{DOUBT}."))
    return findings


def _has_steps(row: Mapping[str, Any]) -> bool:
    return not row["family"].startswith("FGSM")


# Tasks by name: "module:Class", loaded on first use, or a class.
TASKS: dict[str, Any] = {
    "classification": "imgproc_attn.tasks.classification:ClassificationTask",
    "segmentation": "imgproc_attn.tasks.segmentation:SegmentationTask",
    "language": "imgproc_attn.tasks.language:LanguageTask",
    "in_context_regression": "imgproc_attn.tasks.in_context:InContextTask",
    "sequences": "imgproc_attn.tasks.sequences:SequenceTask",
}


def find_task(name: str) -> Any:
    """Return the class of the task of that name.

    Raises:
        ValueError: No task has this name.

    Example:
        >>> find_task("classification").metrics[0].title
        'accuracy'
    """
    if name not in TASKS:
        raise ValueError(
            f"The task must be one of {', '.join(TASKS)}, got {name!r}. Import the module that registers your own."
        )
    task = TASKS[name]
    if isinstance(task, str):
        module, _, attribute = task.partition(":")
        task = getattr(importlib.import_module(module), attribute)
    return task
