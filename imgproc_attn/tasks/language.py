"""Language modeling: predict each token of a text from the tokens before it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from timm.task import ClassificationTask as TimmClassification
from timm.task import TrainingTask
from torch import Tensor, nn

from ..core.bandwidths import at_least_float32
from ..data import Preprocessing, Unreadable, find_root, random_subset
from ..data.reader_names import TEXT
from ..evaluation.contract import check_evaluation_mode
from ..evaluation.findings import Finding, SanityReport
from ..evaluation.normalization import NormalizedModel, Statistics
from ..evaluation.results_log import SampleResults
from ..evaluation.samples import Batch
from ..evaluation.sanity import check_repeats
from ..evaluation.scorers import AnyAttack, Scorer
from ..evaluation.scoring import Metric
from ..evaluation.specs import DatasetSpec
from ..evaluation.statistics import bootstrap_sums, normal_interval
from ..language import (
    AdaptiveSoftmax,
    FilterLanguageModel,
    TextSplit,
    TrainingWindows,
    VocabularyLimits,
    read_text,
    tokenizer_of,
)
from ..language.output_layers import NOT_COUNTED
from ..language.text import open_training_text
from ..language.tokenizers import TOKENIZERS
from ..recipe import Recipe
from .base import Loading, Task, register_task
from .splits import Splits
from .text_samples import WindowSamples, swap_notes, word_swaps
from .token_loader import token_loader

__all__ = ["LanguageTask", "TokenCrossEntropy"]

# Options of the commands that mean nothing without images to look at, and without images to read.
VIEW_OPTIONS = ("short_side", "scales", "flip", "classes", "crop_pct", "input_size", "real_labels", "skip_broken")
IMAGE_OPTIONS = (*VIEW_OPTIONS, "image_column", "label_column")
PERPLEXITY = Metric("perplexity", "perplexity", "", higher_is_better=False, digits=2)


@register_task("language")
@dataclass(frozen=True)
class LanguageTask(Task):
    """One token after another: perplexity, and bits per character or byte, with intervals from a bootstrap over windows.

    Args:
        context: Number of tokens per window.
        stride: Distance between windows. Each token is predicted once, with at least ``context - stride`` tokens before it,
            except at the start of the text.
        unit: Unit of text that a token stands for, ``character`` or ``byte``; empty for others.

    Example:
        >>> [metric.label for metric in LanguageTask(256, 256, "character").metrics]
        ['perplexity', 'bits per character']
    """

    metrics: ClassVar = (PERPLEXITY,)
    num_checked: ClassVar = 4
    sample_noun: ClassVar = "windows"
    output_noun: ClassVar = "tokens in the vocabulary"
    samples_are_images: ClassVar = False
    batch_limit: ClassVar = 8  # logits of large vocabularies need much memory
    bootstrapped: ClassVar = True
    refused_options: ClassVar = IMAGE_OPTIONS

    context: int
    stride: int
    unit: str = field(default="", metadata={"setting": False})

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.context:
            raise ValueError(
                f"The stride must be from 1 to the context, {self.context}, got {self.stride}. Change one of them."
            )
        if self.unit:
            bits = Metric("bits", f"bits per {self.unit}", "", higher_is_better=False, digits=3)
            object.__setattr__(self, "metrics", (PERPLEXITY, bits))

    # settings

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        language = _section(recipe)
        return cls(language.context, language.stride or language.context, TOKENIZERS[language.tokens].unit)

    @classmethod
    def for_model(
        cls, model: Any, recipe: Recipe | None = None, window: Any = None, stride: int | None = None, **options: Any
    ) -> Self:
        """Return the task of a model.

        Args:
            model: Language model of a run.
            recipe: Recipe of the run. Default: the windows are as long as the context of the model.
            window: Number of tokens per window. Default: that of the run.
            stride: Distance between windows. Default: that of the run, or the window if that is given.
            **options: No other options are known.

        Raises:
            ValueError: The model is no language model with a tokenizer, or does not take windows of this length.
        """
        if options:
            raise ValueError(f"The task language must have the settings window and stride only, got {', '.join(options)}.")
        tokenizer: Any = getattr(model, "tokenizer", None)
        if not isinstance(model, FilterLanguageModel) or tokenizer is None:
            raise ValueError(
                f"The model must be a language model with its tokenizer, got {type(model).__name__} without. Name the folder "
                "of a run."
            )
        if window is not None and not isinstance(window, int):
            raise ValueError(f"--window must be a number of tokens for language models, got {window!r}. Give a number.")
        if window is not None and model.max_length is not None and window > model.max_length:
            raise ValueError(
                f"--window must be at most {model.max_length} tokens, the context of the model, got {window}. Lower it."
            )
        trained = cls(model.context, model.context) if recipe is None else cls.from_recipe(recipe)
        context = window or trained.context
        stride = stride or (min(trained.stride, context) if window is None else context)
        return cls(context, stride, tokenizer_of(tokenizer).unit)

    # data

    @classmethod
    def check_reader(cls, name: str) -> None:
        if name != TEXT:
            raise ValueError(f"The data of a language model must be text, got {name!r}. Give --data text.")

    def open_splits(self, recipe: Recipe, unreadable: Unreadable, batch_size: int = 1) -> Splits:
        """Open the texts of a recipe. The vocabulary comes from the training split."""
        data, train = recipe.data, _training_text(recipe)
        names = (data.validation_split, data.test_split)
        later = (None if name is None else TextSplit(name, read_text(data.root, name), train.tokenizer) for name in names)
        windows = (None if split is None else self.samples_of(split) for split in later)
        return Splits(TrainingWindows(train, self.context), *windows)

    def open_dataset(self, spec: DatasetSpec, model: Any, channels: int) -> WindowSamples:
        """Open the windows of an evaluation, with the tokenizer of the model."""
        name = spec.split or "test"
        samples = self.samples_of(TextSplit(name, read_text(spec.root, name), tokenizer_of(model.tokenizer)))
        chosen = random_subset(len(samples), spec.limit, spec.seed)
        return samples if chosen is None else samples.only(samples.ids[chosen])  # type: ignore[return-value]

    def samples_of(self, images: Any) -> WindowSamples:
        return images if isinstance(images, WindowSamples) else WindowSamples(images, self.context, self.stride)

    def kept(self, samples: Any, *args: Any) -> Any:
        """Return the samples: they are in memory."""
        return samples

    def training_loader(self, recipe: Recipe, images: Any, loading: Loading) -> Any:
        """Return a loader of shuffled windows ``[B, N]`` and of the tokens that follow."""
        return token_loader(images, loading, self.sample_noun)

    # model and loss

    def model_kwargs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the vocabulary of the training text, which is saved with the weights, and the context."""
        tokenizer = _training_text(recipe).tokenizer
        return {"vocab_size": len(tokenizer), "context": self.context, "tokenizer": tokenizer.record}

    def example_input(self, recipe: Recipe, device: str) -> Tensor:
        return torch.zeros(1, self.context, dtype=torch.int64, device=device)

    def output_shape(self, recipe: Recipe) -> tuple[int, ...]:
        return (self.context, len(_training_text(recipe).tokenizer))

    def check_model(self, recipe: Recipe, model: Any, device: str) -> None:
        """Check that the model is a language model, and has the loss of the recipe."""
        if not isinstance(model, FilterLanguageModel):
            raise ValueError(f"it must be a language model, got {type(model).__name__}. Choose one of language.list_models().")
        if _is_adaptive(model) and recipe.run.label_smoothing > 0:
            raise ValueError(
                f"run.label_smoothing must be 0 with an adaptive softmax, got {recipe.run.label_smoothing}. Leave it out, or "
                "set model.cutoffs=[]."
            )

    def training_task(
        self, recipe: Recipe, model: nn.Module, preprocessing: Preprocessing, device: torch.device
    ) -> TrainingTask:
        if _is_adaptive(model):
            return LossTraining(model, torch.mean, device=device, verbose=False)
        return TimmClassification(model, TokenCrossEntropy(recipe.run.label_smoothing), device=device, verbose=False)

    # scorers

    def wrap(self, model: nn.Module, mean: Statistics | None = None, std: Statistics | None = None) -> NormalizedModel:
        return TokenModel(model, mean, std)

    def check_inputs(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        check_evaluation_mode(model)
        return images

    def score(self, model: nn.Module, images: Tensor, targets: Tensor) -> Mapping[str, Any]:
        """Return ``losses``: per window the log-losses of its tokens in nats, and ``loss``, their sums."""
        losses = token_losses(model, images, targets)
        counted = targets != NOT_COUNTED
        return {"loss": losses.double().sum(dim=1), "losses": [row[kept].tolist() for row, kept in zip(losses, counted)]}

    def under(self, attack: AnyAttack) -> Scorer:
        raise ValueError(f"{type(attack).__name__} attacks images, got text. Use `imgproc-attn corrupt` for word swaps.")

    def corruptions(
        self, names: Sequence[str] | None, severities: Sequence[float] | None, seed: int, frost_folder: Path | None = None
    ) -> list[Any]:
        """Return word swaps of the rates ``severities``."""
        return word_swaps(names, severities, seed, "language models")

    # numbers

    def per_sample(self, results: SampleResults) -> list[float]:
        """Return the mean log-loss of the tokens of each window, in nats."""
        sums = self._sums(results)
        return [round(value, 6) for value in (sums[:, 0] / sums[:, 1]).tolist()]

    def _sums(self, results: SampleResults) -> Tensor:
        """Return ``[n, 2]``: sum of log-losses and number of tokens per window."""
        return torch.tensor(
            [[loss, len(losses)] for loss, losses in zip(results.column("loss"), results.column("losses"))], dtype=torch.float64
        )

    def _numbers(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the metrics of sums ``[..., 2]``."""
        loss = sums[..., 0] / sums[..., 1]
        values = {"perplexity": loss.exp(), "bits": loss / math.log(2)}
        return {metric.key: values[metric.key] for metric in self.metrics}

    def count(self, results: SampleResults) -> dict[str, Any]:
        sums = self._sums(results)
        total, tokens = sums.sum(dim=0).tolist()
        numbers = {key: value.item() for key, value in self._numbers(sums.sum(dim=0)).items()}
        return {"n": len(sums), "tokens": int(tokens), "loss": total / tokens, **numbers}

    def intervals(self, results: SampleResults) -> dict[str, list[float]]:
        numbers = self.count(results)
        if len(results.ids) < 2:  # nothing is known of the spread
            return {metric.key: [numbers[metric.key]] * 2 for metric in self.metrics}
        return {key: list(normal_interval(numbers[key], draws)) for key, draws in self.bootstrap(results).items()}

    def bootstrap(self, results: SampleResults) -> dict[str, list[float]]:
        return {key: draws.tolist() for key, draws in self._numbers(bootstrap_sums(self._sums(results))).items()}

    def summarize(self, by_corruption: Mapping[str, Mapping[float, float]]) -> dict[str, Any]:
        return {}

    def notes(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return how many words were replaced."""
        return swap_notes(rows)

    # trust

    @torch.no_grad()
    def check(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        attacks: Sequence[AnyAttack],
        probed: Mapping[str, SampleResults],
    ) -> SanityReport:
        """Check that two passes agree, and that no output depends on later tokens, which would make perplexity worthless."""
        findings: list[Finding] = []
        for tokens, targets, *_ in batches:
            inputs = {"targets": targets} if _is_adaptive(model) else {}
            first = model(tokens, **inputs)
            findings += check_repeats(first, model(tokens, **inputs))
            half = tokens.shape[1] // 2
            changed = torch.cat([tokens[:, :half], (tokens[:, half:] == 0).to(tokens.dtype)], dim=1)
            if (model(changed, **inputs)[:, :half] - first[:, :half]).abs().max() > 1e-4 * first.abs().max():
                message = "Outputs change with later tokens, which they must predict. Use components that are causal."
                findings.append(Finding("outputs see later tokens", message))
        return SanityReport(["outputs and causality"], sum(len(batch[0]) for batch in batches), findings[:1])

    # figures

    def some_images(self, *args: Any) -> None:
        """Return nothing: filters are looked at with images only."""


class TokenModel(NormalizedModel):
    """Language model as it is evaluated: token indices are not normalized."""

    def normalize(self, images: Tensor) -> Tensor:
        return images

    def forward(self, images: Tensor, **inputs: Any) -> Tensor:
        return self.model(images, **inputs)


class LossTraining(TimmClassification):
    """Training of a model that computes the losses of its targets itself. The criterion reduces them to one number."""

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        losses = self.trainable_module(input, targets=target)
        return {"loss": self.criterion(losses), "output": losses}


class TokenCrossEntropy(nn.Module):
    """Mean cross-entropy of tokens.

    Args:
        label_smoothing: Share of the target that is spread over the vocabulary.

    Example:
        >>> loss = TokenCrossEntropy()(torch.zeros(2, 3, 8), torch.zeros(2, 3, dtype=torch.int64))
        >>> round(loss.item(), 4)  # the logarithm of 8
        2.0794
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), label_smoothing=self.label_smoothing)


def token_losses(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Return the log-losses ``[B, N]`` of targets, in nats; 0 for those that do not count.

    Raises:
        ValueError: The model returns no logits per token.
        FloatingPointError: Logits or losses are not finite.
    """
    if _is_adaptive(model):
        losses: Tensor = model(tokens, targets=targets)
        if not losses.isfinite().all():
            raise FloatingPointError("Losses must be finite, got inf or nan. Check the weights and the precision of the model.")
        return losses
    logits = model(tokens)
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(
            f"The model must return logits [batch, tokens, vocabulary], got shape {list(logits.shape)} for tokens of shape "
            f"{list(tokens.shape)}. Use a language model."
        )
    if not logits.isfinite().all():
        raise FloatingPointError("Logits must be finite, got inf or nan. Check the weights and the precision of the model.")
    flat = F.cross_entropy(
        at_least_float32(logits).flatten(0, 1), targets.flatten(), ignore_index=NOT_COUNTED, reduction="none"
    )
    return flat.view(tokens.shape)


def _is_adaptive(model: nn.Module) -> bool:
    """Return whether a model, or the one inside, computes losses without the scores of all tokens."""
    return any(isinstance(module, AdaptiveSoftmax) for module in model.modules())


def _section(recipe: Recipe) -> Any:
    """Return the recipe's section ``language``."""
    if recipe.language is None:
        raise ValueError("The task language needs a section language in the recipe; add one.")
    return recipe.language


def _training_text(recipe: Recipe) -> TextSplit:
    """Return the training text, with the tokenizer that is made from it."""
    language, data = _section(recipe), recipe.data
    file = str(find_root(language.tokenizer)) if language.tokenizer else ""
    limits = VocabularyLimits(language.max_vocabulary, language.min_count, file)
    return open_training_text(data.root, data.train_split, language.tokens, limits)
