"""Sequence classification: one label per token sequence, as in the Long Range Arena (arXiv 2011.04006)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..data import Unreadable, random_subset
from ..data.reader_names import SEQUENCES, check_reader
from ..evaluation.contract import check_evaluation_mode
from ..evaluation.findings import Finding, SanityReport
from ..evaluation.normalization import NormalizedModel, Statistics
from ..evaluation.results_log import SampleResults
from ..evaluation.samples import Batch
from ..evaluation.sanity import check_repeats
from ..evaluation.scorers import AnyAttack, Scorer
from ..evaluation.specs import DatasetSpec
from ..language import WordSwap
from ..recipe import Recipe
from ..sequences import LabeledSequences, PixelSequences, SequenceClassifier, SequenceSource
from ..sequences.sources import SOURCES
from .base import Loading, Task, register_task
from .classification import ClassificationTask
from .language import VIEW_OPTIONS, TokenModel
from .sequence_samples import SequenceSamples, pad_batch
from .splits import Splits, shares
from .text_samples import swap_notes, word_swaps
from .token_loader import token_loader

__all__ = ["SequenceTask"]

ROUNDING = 1e-3  # of the logits, in units of the largest one: other lengths of a batch may round differently


@register_task("sequences")
@dataclass(frozen=True)
class SequenceTask(ClassificationTask):
    """One label per token sequence: accuracy, with Wilson's intervals.

    Args:
        reader: Reader of the sequences: ``listops``, ``reviews``, ``retrieval``, or one of images, whose pixels are tokens.
        context: Number of tokens that are kept of a sequence.
        input_size: ``(channels, height, width)`` of images; ``(1, 1, context)`` for other sequences.

    Example:
        >>> SequenceTask(10, reader="listops", context=2000, input_size=(1, 1, 2000)).metrics[0].label
        'accuracy / %'
    """

    attacks: ClassVar = {}
    presets: ClassVar = {}
    num_checked: ClassVar = 8
    sample_noun: ClassVar = "sequences"
    samples_are_images: ClassVar = False
    batch_limit: ClassVar = 64
    refused_options: ClassVar = (*VIEW_OPTIONS, "window", "stride")

    reader: str = field(default="", metadata={"setting": False})
    context: int = 0
    input_size: tuple[int, ...] = field(default=(), metadata={"setting": False})

    @property
    def source(self) -> type[SequenceSource]:
        """Kind of the sequences."""
        return SOURCES.get(self.reader, PixelSequences)

    # settings

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        if recipe.sequences is None:
            raise ValueError("The task sequences needs a section sequences in the recipe; add one with context.")
        data = recipe.data
        return cls(data.num_classes, None, data.name, recipe.sequences.context, tuple(data.input_size))

    @classmethod
    def for_model(cls, model: Any, recipe: Recipe | None = None, **options: Any) -> Self:
        """Return the task of a run. Its data and settings are those of the recipe."""
        return super(ClassificationTask, cls).for_model(model, recipe, **options)

    # data

    @classmethod
    def check_reader(cls, name: str) -> None:
        check_reader(name, SEQUENCES)

    def open_splits(self, recipe: Recipe, unreadable: Unreadable, batch_size: int = 1) -> Splits:
        """Open the sequences of a recipe."""
        data = recipe.data
        if self.reader not in SOURCES:
            opened = super().open_splits(recipe, unreadable, batch_size)
            return Splits(*map(self._pixels, (opened.train, opened.validation, opened.test)))
        names = [name for name in (data.train_split, data.validation_split, data.test_split) if name is not None]
        if len(set(names)) < len(names):
            raise ValueError(f"The splits must have different names, got {', '.join(names)}. Name other splits.")
        train, validation, test = (
            None if name is None else self._opened(data.root, name, data.seed)
            for name in (data.train_split, data.validation_split, data.test_split)
        )
        kept, held_out = shares(data, train)
        chosen_on = LabeledSequences(train, self.context, held_out) if held_out and train else self._all(validation)
        few = None if test is None else random_subset(len(test), data.test_images, data.seed)
        return Splits(self._all(train, kept), chosen_on, self._all(test, few))

    def _opened(self, root: str, split: str, seed: int) -> SequenceSource:
        classes = self.source.num_classes
        if classes is not None and classes != self.num_classes:
            raise ValueError(f"data.num_classes must be {classes} for {self.reader}, got {self.num_classes}. Correct it.")
        return SOURCES[self.reader].open(root, split, seed)

    def _all(self, source: SequenceSource | None, positions: Sequence[int] | None = None) -> LabeledSequences | None:
        return None if source is None else LabeledSequences(source, self.context, positions)

    def _pixels(self, images: Any) -> LabeledSequences | None:
        if images is None:
            return None
        return LabeledSequences(PixelSequences(images, (self.input_size[1], self.input_size[2])), self.context)

    def open_dataset(self, spec: DatasetSpec, model: Any, channels: int) -> LabeledSequences:
        """Open the sequences of an evaluation.

        Raises:
            ValueError: They are not of the kind that the model was trained on.
        """
        kind = SOURCES.get(spec.data, PixelSequences)
        if kind is not self.source:
            raise ValueError(
                f"The data of the model must be of the kind of {self.reader}, whose tokens it knows, got {spec.data!r}. Give "
                f"--data {self.reader}."
            )
        if kind is PixelSequences:
            return self._pixels(super().open_dataset(spec, model, self.input_size[0]))  # type: ignore[return-value]
        source = self._opened(spec.root, spec.split or "test", spec.seed)
        return LabeledSequences(source, self.context, random_subset(len(source), spec.limit, spec.seed))

    def samples_of(self, images: Any) -> SequenceSamples:
        return images if isinstance(images, SequenceSamples) else SequenceSamples(images)

    def kept(self, samples: Any, *args: Any) -> Any:
        """Return the samples. They are in memory, or images that are quickly read."""
        return samples

    def training_loader(self, recipe: Recipe, images: Any, loading: Loading) -> Any:
        """Return a loader of shuffled sequences ``[B, N]``, padded to the longest of their batch, and of their labels."""
        return token_loader(images, loading, self.sample_noun, pad_batch)

    # model

    def model_kwargs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the vocabulary, the padding, the context, the number of classes, and whether samples are pairs."""
        kind, sizes = self.source, {"context": self.context, "num_classes": recipe.data.num_classes}
        return {**sizes, "vocab_size": kind.vocab_size, "padding": kind.padding, "pairs": kind.pairs}

    def example_input(self, recipe: Recipe, device: str) -> Tensor:
        shape = (1, 2, self.context) if self.source.pairs else (1, self.context)
        return torch.ones(shape, dtype=torch.int64, device=device)

    def check_model(self, recipe: Recipe, model: Any, device: str) -> None:
        """Check that the model classifies sequences."""
        if not isinstance(model, SequenceClassifier):
            raise ValueError(
                f"it must be a classifier of sequences, got {type(model).__name__}. Choose one of sequences.list_classifiers()."
            )

    # scorers

    def wrap(self, model: nn.Module, mean: Statistics | None = None, std: Statistics | None = None) -> NormalizedModel:
        return TokenModel(model, mean, std)

    def check_inputs(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the tokens, if the model is in evaluation mode and its vocabulary has them.

        Raises:
            ValueError: It is not, or a token is outside the vocabulary.
        """
        check_evaluation_mode(model)
        for inner in model.modules():
            if isinstance(inner, SequenceClassifier):
                inner.check_tokens(images)
        return images

    def under(self, attack: AnyAttack) -> Scorer:
        raise ValueError(
            f"{type(attack).__name__} attacks images, got tokens. Use `imgproc-attn corrupt` for word swaps and "
            "corrupted images."
        )

    def corruptions(
        self, names: Sequence[str] | None, severities: Sequence[float] | None, seed: int, frost_folder: Path | None = None
    ) -> list[Any]:
        """Return word swaps of reviews, or corruptions of images, which come before the tokens."""
        if self.source.changed_by == "images":
            return super().corruptions(names, severities, seed, frost_folder)
        if self.source.changed_by != WordSwap.name:
            raise ValueError(
                f"The sequences to corrupt must be reviews or images, got {self.reader}, whose labels would change. Use "
                "`imgproc-attn evaluate`."
            )
        return word_swaps(names, severities, seed, "reviews")

    # numbers

    def summarize(self, by_corruption: Mapping[str, Mapping[float, float]]) -> dict[str, Any]:
        return super().summarize(by_corruption) if self.source.changed_by == "images" else {}

    def notes(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Return how many words were replaced."""
        return swap_notes(rows)

    # trust

    def probes(self, model: nn.Module, attacks: Sequence[AnyAttack], seed: int) -> dict[str, Scorer]:
        return {}

    @torch.no_grad()
    def check(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        attacks: Sequence[AnyAttack],
        probed: Mapping[str, SampleResults],
    ) -> SanityReport:
        """Check that two passes agree, and that outputs do not depend on the amount of padding."""
        findings: list[Finding] = []
        for tokens, *_ in batches:
            first = model(tokens)
            findings += check_repeats(first, model(tokens))
            if self.source.padding is None or tokens.shape[-1] == self.context:
                continue
            longer = nn.functional.pad(tokens, (0, self.context - tokens.shape[-1]), value=self.source.padding)
            if (model(longer) - first).abs().max() > ROUNDING * first.abs().max():
                message = "Outputs change with the number of padding tokens. Use components that hide them."
                findings.append(Finding("outputs see padding", message))
        return SanityReport(["outputs and padding"], sum(len(batch[0]) for batch in batches), findings[:1])

    # figures

    def some_images(self, *args: Any) -> None:
        """Return nothing: filters are looked at with images only."""

    comparison_figures = Task.comparison_figures
