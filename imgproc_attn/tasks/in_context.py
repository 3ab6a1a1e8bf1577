"""In-context regression: predict the next value of a random function from examples of it (Garg et al., arXiv 2208.01066)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from matplotlib.figure import Figure
from timm.task import ClassificationTask as TimmClassification
from timm.task import TrainingTask
from torch import Tensor, nn

from ..core.bandwidths import at_least_float32
from ..data import Preprocessing, Unreadable
from ..data.reader_names import REGRESSION
from ..evaluation.contract import check_evaluation_mode
from ..evaluation.findings import Finding, SanityReport
from ..evaluation.normalization import NormalizedModel, Statistics
from ..evaluation.results_log import SampleResults
from ..evaluation.samples import Batch, SampleSet, TensorSamples
from ..evaluation.sanity import check_repeats
from ..evaluation.scorers import AnyAttack, Scorer
from ..evaluation.scoring import Metric
from ..evaluation.specs import DatasetSpec
from ..in_context import (
    BASELINES,
    InContextRegressor,
    RegressionProblem,
    RegressionSequences,
    draw_error_curves,
    lasso,
    posterior_mean,
    separate,
)
from ..in_context.figures import mean_and_half_width
from ..recipe import Recipe
from .base import Loading, Task, register_task
from .language import IMAGE_OPTIONS, TokenModel
from .splits import Splits
from .token_loader import token_loader

__all__ = ["InContextTask"]

FILE = "errors.csv"


@register_task("in_context_regression")
@dataclass(frozen=True)
class InContextTask(Task):
    """Squared errors of predictions from 0 to n - 1 examples, in units of the expected error of the prediction 0.

    The unit is the number of dimensions, or the sparsity, as in the paper.

    Args:
        dimensions: Number of coordinates of x.
        points: Number of examples per function, n.
        sparsity: Number of coordinates of w that are not zero. Default: all.
        evaluation_sequences: Number of functions of the validation set, and of the test set.
        seed: Seed of the functions.

    Example:
        >>> [metric.title for metric in InContextTask(dimensions=5, points=11).metrics]
        ['squared error', 'squared error after 10 examples']
    """

    metrics: ClassVar = ()
    num_checked: ClassVar = 16
    sample_noun: ClassVar = "sequences"
    output_noun: ClassVar = "points"
    samples_are_images: ClassVar = False
    files: ClassVar = (FILE,)
    refused_options: ClassVar = (*IMAGE_OPTIONS, "window", "stride")

    dimensions: int
    points: int
    sparsity: int | None = None
    evaluation_sequences: int = 1280
    seed: int = 0

    def __post_init__(self) -> None:
        last = f"squared error after {self.points - 1} examples"
        metrics = (("error", "squared error"), ("last_error", last))
        object.__setattr__(self, "metrics", tuple(Metric(*names, "", higher_is_better=False, digits=3) for names in metrics))

    @property
    def problem(self) -> RegressionProblem:
        """Distribution of the functions."""
        return RegressionProblem(self.dimensions, self.points, self.sparsity)

    # settings

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        section = _section(recipe)
        return cls(section.dimensions, section.points, section.sparsity, section.evaluation_sequences, recipe.data.seed)

    @classmethod
    def for_model(cls, model: Any, recipe: Recipe | None = None, **options: Any) -> Self:
        """Return the task of a model, which must come from a run.

        Raises:
            ValueError: The model is of another task, has other dimensions or takes fewer points, or there is an option.
        """
        task = super().for_model(model, recipe, **options)
        task.check_regressor(model)
        return task

    def check_regressor(self, model: Any) -> None:
        """Check that a model takes these sequences.

        Raises:
            ValueError: It does not.
        """
        if not isinstance(model, InContextRegressor):
            raise ValueError(
                f"The model must be in_context_regressor, got {type(model).__name__}. Name it in the recipe, or name the "
                "folder of a run."
            )
        if model.dimensions != self.dimensions:
            raise ValueError(
                f"The model must take {self.dimensions} dimensions, as the recipe gives, got one for {model.dimensions}. Leave "
                "out model.dimensions, or name another run."
            )

    # data

    @classmethod
    def check_reader(cls, name: str) -> None:
        if name != REGRESSION:
            raise ValueError(f"The data of in-context regression must be {REGRESSION}, got {name!r}. Leave out --data.")

    def open_splits(self, recipe: Recipe, unreadable: Unreadable, batch_size: int = 1) -> Splits:
        """Open the random sequences of a recipe."""
        section, data = _section(recipe), recipe.data
        start = section.start_dimensions or section.dimensions, section.start_points or section.points
        train = RegressionSequences(self.problem, section.epoch_sequences, "train", self.seed, start)
        names = (data.validation_split, data.test_split)
        return Splits(train, *(None if name is None else self._evaluated(name) for name in names))

    def _evaluated(self, split: str) -> RegressionSequences:
        return RegressionSequences(self.problem, self.evaluation_sequences, split, self.seed)

    def open_dataset(self, spec: DatasetSpec, model: Any, channels: int) -> SampleSet:
        """Open the sequences of an evaluation: the first ones of its split."""
        samples = self.samples_of(self._evaluated(spec.split or "test"))
        return samples if spec.limit is None else samples.only(samples.ids[: spec.limit])

    def samples_of(self, images: Any) -> SampleSet:
        if isinstance(images, SampleSet):
            return images
        sequences, targets = (torch.stack(parts) for parts in zip(*(images[i] for i in range(len(images)))))
        return TensorSamples(sequences, targets, names={i: images.name(i) for i in range(len(images))})

    def kept(self, samples: Any, *args: Any) -> Any:
        """Return the samples: they are in memory."""
        return samples

    def training_loader(self, recipe: Recipe, images: Any, loading: Loading) -> Any:
        """Return a loader of sequences ``[B, 2 n - 1, d]`` and of their values ``[B, n]``."""
        return token_loader(images, loading, self.sample_noun)

    # model and loss

    def model_kwargs(self, recipe: Recipe) -> dict[str, Any]:
        return {"dimensions": self.dimensions, "points": self.points}

    def example_input(self, recipe: Recipe, device: str) -> Tensor:
        return torch.zeros(1, 2 * self.points - 1, self.dimensions, device=device)

    def output_shape(self, recipe: Recipe) -> tuple[int, ...]:
        return (self.points,)

    def check_model(self, recipe: Recipe, model: Any, device: str) -> None:
        """Check that the model is one of in-context regression."""
        self.check_regressor(model)

    def training_task(
        self, recipe: Recipe, model: nn.Module, preprocessing: Preprocessing, device: torch.device
    ) -> TrainingTask:
        """Return timm's training task: the squared error, averaged over all numbers of examples."""
        return TimmClassification(model, nn.MSELoss(), device=device, verbose=False)

    # scorers

    def wrap(self, model: nn.Module, mean: Statistics | None = None, std: Statistics | None = None) -> NormalizedModel:
        return TokenModel(model, mean, std)

    def check_inputs(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        check_evaluation_mode(model)
        return images

    def score(self, model: nn.Module, images: Tensor, targets: Tensor) -> Mapping[str, Any]:
        """Return ``errors``: per sequence the squared errors ``[n]`` of the predictions from 0 to n - 1 examples."""
        return {"errors": squared_errors(model, images, targets)}

    def under(self, attack: AnyAttack) -> Scorer:
        raise ValueError(f"{type(attack).__name__} attacks images, got sequences. Use `imgproc-attn evaluate`.")

    def corruptions(
        self, names: Sequence[str] | None, severities: Sequence[float] | None, seed: int, frost_folder: Path | None = None
    ) -> list[Any]:
        raise ValueError("The data to corrupt must be images or text, got sequences. Use `imgproc-attn evaluate`.")

    # numbers

    def _errors(self, results: SampleResults) -> Tensor:
        """Return errors ``[B, n]`` in units of the expected error of the prediction 0."""
        return torch.tensor(results.column("errors"), dtype=torch.float64) / self.problem.scale

    def per_sample(self, results: SampleResults) -> list[float]:
        """Return the mean error of each sequence over all numbers of examples."""
        return self._errors(results).mean(dim=1).tolist()

    def count(self, results: SampleResults) -> dict[str, Any]:
        errors = self._errors(results)
        return {"n": len(errors), "error": errors.mean().item(), "last_error": errors[:, -1].mean().item()}

    def intervals(self, results: SampleResults) -> dict[str, list[float]]:
        """Return normal 95 % intervals of both means."""
        errors = self._errors(results)
        values = torch.stack([errors.mean(dim=1), errors[:, -1]], dim=1)
        low, high = (bound.tolist() for bound in _interval(values))
        return {"error": [low[0], high[0]], "last_error": [low[1], high[1]]}

    def best_constant(self, results: SampleResults) -> float:
        """Return 1, the expected error of the prediction 0."""
        return 1.0

    def tables(self, results: SampleResults, row: Mapping[str, Any], samples: Any) -> dict[str, list[list[Any]]]:
        """Return the error by the number of examples, with 95 % intervals."""
        errors = self._errors(results)
        low, high = _interval(errors)
        columns = zip(range(self.points), errors.mean(dim=0).tolist(), low.tolist(), high.tolist())
        return {FILE: [["examples", "error", "low", "high"], *map(list, columns)]}

    def summarize(self, by_corruption: Mapping[str, Mapping[float, float]]) -> dict[str, Any]:
        return {}

    # trust

    @torch.no_grad()
    def check(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        attacks: Sequence[AnyAttack],
        probed: Mapping[str, SampleResults],
    ) -> SanityReport:
        """Check that two passes agree, and that no prediction depends on its own y or on what follows."""
        findings: list[Finding] = []
        for sequences, *_ in batches:
            first = model(sequences)
            findings += check_repeats(first, model(sequences))
            known = sequences.shape[1] // 4  # number of values of y that do not change
            changed = torch.cat([sequences[:, : 2 * known + 1], sequences[:, 2 * known + 1 :].neg() + 1], dim=1)
            difference = model(changed)[:, : known + 1] - first[:, : known + 1]
            if difference.abs().max() > 1e-4 * first.abs().max():
                message = "Predictions change with the values that they must predict. Use components that are causal."
                findings.append(Finding("predictions see later values", message))
        return SanityReport(["outputs and causality"], sum(len(batch[0]) for batch in batches), findings[:1])

    # figures

    def some_images(self, *args: Any) -> None:
        """Return nothing: filters are looked at with images only."""

    @torch.no_grad()
    def comparison_figures(
        self, recipe: Recipe, models: Mapping[str, NormalizedModel], samples: SampleSet, loading: Loading
    ) -> dict[str, Figure]:
        """Draw the errors of all models against the number of examples, beside those of the baselines."""
        batches = list(samples.batches(loading.preprocessing, 256, 0, loading.device))
        sequences, targets, _ = (torch.cat(parts) for parts in zip(*batches))

        def in_units(errors: Tensor) -> Tensor:
            return errors.cpu() / self.problem.scale

        trained = {
            label: in_units(torch.cat([squared_errors(model, *batch[:2]) for batch in batches]))
            for label, model in models.items()
        }
        x, _ = separate(sequences)
        baselines = dict(BASELINES)
        if self.sparsity is not None:
            baselines |= {"Lasso": lasso, "best possible": partial(posterior_mean, sparsity=self.sparsity)}
        others = {name: in_units((predict(x, targets) - targets).square()) for name, predict in baselines.items()}
        return {"errors": draw_error_curves(trained, others)[0]}


def squared_errors(model: nn.Module, sequences: Tensor, targets: Tensor) -> Tensor:
    """Return squared errors ``[B, n]``.

    Raises:
        ValueError: The model returns no prediction per point.
        FloatingPointError: Predictions are not finite.
    """
    predictions = model(sequences)
    if predictions.shape != targets.shape:
        raise ValueError(
            f"The model must return predictions {list(targets.shape)}, one per point, got {list(predictions.shape)}. Use a "
            "model of in-context regression."
        )
    if not predictions.isfinite().all():
        raise FloatingPointError(
            "Predictions must be finite, got inf or nan. Check the weights and the precision of the model."
        )
    return (at_least_float32(predictions) - targets).square()


def _interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds of normal 95 % intervals of the means of columns."""
    mean, half = mean_and_half_width(values)
    return mean - half, mean + half


def _section(recipe: Recipe) -> Any:
    """Return the recipe's section ``in_context_regression``."""
    if recipe.in_context_regression is None:
        raise ValueError("The task in_context_regression needs a section of that name in the recipe; add one.")
    return recipe.in_context_regression
