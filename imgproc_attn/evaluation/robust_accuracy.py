"""Clean and robust accuracy of a classifier by one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm.data
import torch
from torch import Tensor, nn

from ..data import Preprocessing
from ..utils.environment import without_tf32
from ..utils.markdown import markdown_table
from .conditions import CLEAN, attack_conditions, clean_condition
from .contract import check_evaluation_mode
from .findings import Finding
from .normalization import NormalizedModel
from .presets import NORMS, build_attacks
from .results_log import of_common_samples
from .samples import SampleSet, TensorSamples
from .scoring import find_task
from .session import EvaluationSession, Runtime
from .specs import DatasetSpec, ModelSpec, about_model, folder_of_run, model_hashes
from .tensors import as_given
from .threat import ThreatModel

__all__ = ["BenchmarkResult", "benchmark"]


@dataclass(frozen=True)
class BenchmarkResult:
    """Clean and robust accuracy of one model.

    Attributes:
        attack: Name of the attack and its radius.
        clean_accuracy: In percent.
        clean_interval: Its 95 % interval (Wilson).
        robust_accuracy: Under attack, in percent.
        robust_interval: Its 95 % interval (Wilson).
        findings: Reasons to doubt the robust accuracy; empty if no known sign shows.
        per_sample: One row per image: ``image``, ``label``, ``clean`` and ``robust`` (0 or 1), ``perturbation``.
    """

    attack: str
    clean_accuracy: float
    clean_interval: tuple[float, float]
    robust_accuracy: float
    robust_interval: tuple[float, float]
    findings: list[Finding]
    per_sample: list[dict[str, Any]]

    def __str__(self) -> str:
        rows = [
            ["clean", f"{self.clean_accuracy:.2f}", "{:.2f} to {:.2f}".format(*self.clean_interval)],
            [self.attack, f"{self.robust_accuracy:.2f}", "{:.2f} to {:.2f}".format(*self.robust_interval)],
        ]
        table = markdown_table(["condition", "accuracy / %", "95 % interval"], rows)
        doubts = "\n".join(f"- {finding}" for finding in self.findings)
        return f"{table}\n\n" + (f"Reasons to doubt these numbers:\n\n{doubts}" if doubts else "Sanity checks: no finding.")


def benchmark(
    model: nn.Module | str | ModelSpec,
    data: tuple[Tensor, Tensor] | str | DatasetSpec,
    threat_model: str | ThreatModel = "Linf",
    eps: float | None = None,
    *,
    attack: str = "ensemble",
    root: str = "",
    split: str = "",
    num_samples: int | None = None,
    num_checked: int = 64,
    batch_size: int = 64,
    workers: int = 2,
    device: str | torch.device = "cpu",
    output: str | Path | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> BenchmarkResult:
    """Measure clean and robust accuracy, with intervals, sanity checks and per-sample results.

    Args:
        model: A timm name with pretrained weights, the folder of a run, a `ModelSpec`, or a module in evaluation mode. A module
            takes normalized images if it has a ``pretrained_cfg`` with mean and std, otherwise images in [0, 1].
        data: Images ``[n, C, H, W]`` in [0, 1] with labels ``[n]``; or a reader's name (``folder``, ``digits``, …), read from
            ``root`` and ``split``; or a `DatasetSpec`. For the folder of a run, give
            `imgproc_attn.recipe.run_dataset`, which knows the images that the run held out.
        threat_model: ``Linf``, ``L2``, or a `ThreatModel`, which brings its own radius.
        eps: Radius of the ball, in units of images in [0, 1]. Default: 4/255 for ``Linf``; for ``L2`` it must be given.
        attack: ``ensemble`` (`strong_ensemble`), ``autoattack`` where the official package is installed, or ``pgd``,
            ``apgd-ce`` and so on.
        root: Folder or file of the images, for a reader.
        split: Split of the images, for a reader.
        num_samples: Number of random images. Default: all.
        num_checked: Number of images for the sanity checks.
        batch_size: Images at a time. No number depends on it, except by rounding.
        workers: Number of processes that read images.
        device: Device of the model.
        output: Folder for results that can be resumed and that ``imgproc-attn report`` reads. Default: none.
        seed: Seed of all random numbers.
        verbose: Whether to show progress.

    Raises:
        TypeError: Data of another type.
        ValueError: Model, data and attack do not fit each other, or the model is a run and ``data`` the name of a reader.

    Example:
        >>> import torch
        >>> from imgproc_attn.evaluation import benchmark
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)).eval()
        >>> data = torch.rand(8, 1, 8, 8), torch.randint(4, (8,))
        >>> result = benchmark(model, data, eps=0.01, attack="pgd", num_checked=4, verbose=False)
        >>> result.robust_accuracy <= result.clean_accuracy
        True
    """
    threat = threat_model if isinstance(threat_model, ThreatModel) else _ball(threat_model, eps)
    runtime = Runtime(
        torch.device(device), batch_size=batch_size, workers=workers, output=None if output is None else Path(output)
    )
    _check_run(model, data)
    session, samples = _opened(model, _dataset(data, root, split, num_samples, seed), runtime, seed)
    session.progress = session.progress if verbose else _quiet
    if num_samples is not None and num_samples < len(samples):
        samples = samples.random(num_samples, seed)
    attacks = build_attacks([attack], [threat], session.task.num_outputs, seed)
    conditions = [clean_condition(samples, session.task), *attack_conditions(samples, attacks, session.task)]
    with session.claimed(), without_tf32():
        results = session.run(conditions)
        report = session.check(samples, list(attacks.values()), num_checked)
        findings = session.findings(session.rows(conditions, results), results, report)
        if output is not None:
            session.write("attack", conditions, results, report)
    name = conditions[1].name
    (clean, clean_interval), (robust, robust_interval) = (_accuracy(session, results[n]) for n in (CLEAN, name))
    common = of_common_samples(results)
    columns = (common[CLEAN].correct, common[name].correct, common[name].scores)
    rows = zip(common[name].ids.tolist(), common[name].labels.tolist(), *(column.tolist() for column in columns))
    per_sample = [
        {"image": samples.name(i), "label": label, "clean": int(c), "robust": int(r), "perturbation": size}
        for i, label, c, r, size in rows
    ]
    return BenchmarkResult(name, clean, clean_interval, robust, robust_interval, findings, per_sample)


def _quiet(condition: str, samples: int) -> None:
    """Show no progress."""


def _ball(norm: str, eps: float | None) -> ThreatModel:
    """Return the threat model of a norm by name."""
    if norm not in NORMS:
        raise ValueError(f"threat_model must be one of {', '.join(NORMS)}, got {norm!r}. Or give a ThreatModel.")
    if eps is None and norm != "Linf":
        raise ValueError(f"eps must be given for {norm}, got none. RobustBench uses 0.5 for CIFAR.")
    return ThreatModel(4 / 255 if eps is None else eps, NORMS[norm]())


def _check_run(model: Any, data: Any) -> None:
    """Refuse a reader by name for a run: with another seed, it may give images that the run was trained on."""
    run = folder_of_run(model) if isinstance(model, str) and isinstance(data, str) else None
    if run is not None:
        raise ValueError(
            f"data must be a DatasetSpec or tensors for the folder of a run, got {data!r}. Give "
            f"imgproc_attn.recipe.run_dataset({str(run)!r}), the images that the run held out."
        )


def _dataset(data: Any, root: str, split: str, limit: int | None, seed: int) -> DatasetSpec | tuple[Tensor, Tensor]:
    if isinstance(data, str):
        return DatasetSpec(data, root, split, limit, seed=seed)
    if isinstance(data, DatasetSpec):
        return data
    if isinstance(data, Sequence) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return data[0], data[1]
    raise TypeError(f"data must be (images, labels), the name of a reader or a DatasetSpec, got {type(data).__name__}.")


def _opened(
    model: Any, data: DatasetSpec | tuple[Tensor, Tensor], runtime: Runtime, seed: int
) -> tuple[EvaluationSession, SampleSet]:
    """Return the session of a model and its samples."""
    classification = find_task("classification")
    if isinstance(model, str):
        model = ModelSpec(model, pretrained=timm.is_model(model))
    if isinstance(model, ModelSpec):
        session = EvaluationSession.open(model, classification.for_model, runtime, seed=seed)
    else:
        session = _session_of_module(model, data, runtime, seed)
    if isinstance(data, DatasetSpec):
        return session, session.samples(data)
    session.about["data"] = {"name": "tensors"}
    return session, TensorSamples(*data)


def _session_of_module(model: nn.Module, data: Any, runtime: Runtime, seed: int) -> EvaluationSession:
    check_evaluation_mode(model)
    has_statistics = {"mean", "std"} <= set(getattr(model, "pretrained_cfg", None) or {})
    if isinstance(data, DatasetSpec):
        if not has_statistics:
            raise ValueError(
                "A model that reads files must have a pretrained_cfg with mean and std. Give (images, labels) instead."
            )
        config: Any = timm.data.resolve_model_data_config(model, use_test_size=True)
        preprocessing = Preprocessing.of(config)
        num_classes = model.num_classes
    else:
        preprocessing = as_given(data[0])
        with torch.no_grad():
            num_classes = model.to(runtime.device)(data[0][:1].to(runtime.device)).shape[1]
    asked = NormalizedModel(model).eval() if has_statistics else model
    about = about_model(type(model).__name__, sum(p.numel() for p in model.parameters()))
    task = find_task("classification")(num_classes)
    protocol = {**model_hashes(model), "options": {}, **task.protocol}
    session = EvaluationSession(
        asked.to(runtime.device), task, preprocessing, runtime, about=about, protocol=protocol, seed=seed
    )
    session.inner = model
    return session


def _accuracy(session: EvaluationSession, results: Any) -> tuple[float, tuple[float, float]]:
    low, high = session.task.intervals(results)["accuracy"]
    return session.task.count(results)["accuracy"], (low, high)
