"""Evaluation of tensors from Python: `evaluate`, a thin wrapper of the evaluation session."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..data import Preprocessing
from ..utils.checks import check_whole
from .conditions import CLEAN, Condition
from .contract import check_batch
from .samples import TensorSamples
from .scorers import AnyAttack, CorruptedScorer, Corruption
from .scoring import find_task
from .session import EvaluationSession, Runtime
from .threat import ThreatModel

__all__ = ["Evaluation", "announcing", "as_given", "evaluate"]


@dataclass
class Evaluation:
    """Per-sample correctness of a model's predictions, by condition.

    Attributes:
        correct: ``{condition: [n] bool}``. ``"clean"`` is always present. Under attack, a sample is correct if the model
            classifies its clean image correctly and the attack fails. Under an attack on normalized tensors (the published
            convention), it is correct if the model predicts the label for the adversarial image.
        largest_perturbation: ``{attack: largest distance of an adversarial image}``, in the norm of its threat model.
    """

    correct: dict[str, Tensor]
    largest_perturbation: dict[str, float] = field(default_factory=dict)

    def accuracy(self, condition: str = CLEAN) -> float:
        """Return the share of correct samples in percent."""
        return 100 * self.correct[condition].double().mean().item()

    @property
    def accuracies(self) -> dict[str, float]:
        """Accuracy by condition, in percent."""
        return {condition: self.accuracy(condition) for condition in self.correct}


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: Mapping[str, AnyAttack] | None = None,
    corruptions: Mapping[str, Corruption] | None = None,
    batch_size: int = 256,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure clean accuracy, accuracy under attack, and accuracy on corrupted images.

    Args:
        model: Maps images in [0, 1] to logits, in evaluation mode.
        images: ``[n, C, H, W]`` in [0, 1].
        labels: ``[n]`` class indices.
        attacks: ``{name: attack}``.
        corruptions: ``{name: function}``. A function takes images and their ids ``[B]``, and returns one image in [0, 1] per
            image.
        batch_size: Number of images per batch. It changes results only by rounding.
        progress: Called with the name of each condition when it begins.

    Raises:
        TypeError: A value of ``attacks`` is not an attack, a value of ``corruptions`` is not a corruption, or `check_batch` or
            `check_logits` rejects a type.
        ValueError: `check_batch` or `check_logits` rejects a value, there are no images, two conditions have one name, or a
            corruption leaves [0, 1] or changes the number or size of the images.
        FloatingPointError: Logits or gradients are not finite.

    Example:
        >>> import torch
        >>> from imgproc_attn.evaluation import FGSM
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
        >>> images, labels = torch.rand(8, 1, 2, 2), torch.randint(2, (8,))
        >>> result = evaluate(model, images, labels, attacks={"FGSM": FGSM(0.1)})
        >>> result.accuracy("FGSM") <= result.accuracy("clean")
        True
    """
    images = check_batch(model, images, labels)
    if check_whole("evaluate: batch_size", batch_size) < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, got {batch_size}. Give the number of images per batch.")
    attacks, corruptions = {} if attacks is None else attacks, {} if corruptions is None else corruptions
    _check_kinds(attacks, corruptions)
    if len(images) == 0:
        raise ValueError("evaluate: images must hold at least 1 image, got 0. Give the images to evaluate.")
    names = [CLEAN, *attacks, *corruptions]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"evaluate: each condition must have its own name, got {twice!r} for two conditions. Rename one.")
    task, samples = find_task("classification")(), TensorSamples(images, labels)
    conditions = [Condition(CLEAN, samples, task.clean)]
    conditions += [Condition(name, samples, task.under(attack)) for name, attack in attacks.items()]
    conditions += [Condition(name, samples, CorruptedScorer(name, c, task.clean)) for name, c in corruptions.items()]
    session = EvaluationSession(
        model, task, as_given(images), Runtime(images.device, batch_size=batch_size), progress=announcing(progress)
    )
    results = session.run(conditions)
    perturbed = {name: results[name].scores.max().item() for name in attacks}
    return Evaluation({name: result.correct for name, result in results.items()}, perturbed)


def as_given(images: Tensor) -> Preprocessing:
    """Return the preprocessing of images that are already in memory."""
    channels, height, width = images.shape[1:]
    return Preprocessing((channels, height, width), (0.0,) * channels, (1.0,) * channels, "bilinear", 1.0)


def announcing(progress: Callable[[str], None] | None) -> Callable[[str, int], None]:
    """Return a session's progress callback that calls ``progress`` once per condition."""
    last = ""

    def call(name: str, samples: int) -> None:
        nonlocal last
        if progress is not None and name != last:
            progress(name)
        last = name

    return call


def _check_kinds(attacks: Mapping[str, AnyAttack], corruptions: Mapping[str, Corruption]) -> None:
    """Fail if attacks or corruptions have another type, or are not in a mapping."""
    for what, given in (("attacks", attacks), ("corruptions", corruptions)):
        if not isinstance(given, Mapping):
            raise TypeError(f"evaluate: {what} must be a mapping of names to {what}, got {given!r}. Give {{'name': ...}}.")
    for name, attack in attacks.items():
        if not isinstance(getattr(attack, "threat", None), ThreatModel):
            raise TypeError(f"evaluate: {name!r} must be an attack, got {attack!r}. Give corruptions as corruptions={{...}}.")
    for name, corruption in corruptions.items():
        if not callable(corruption) or hasattr(corruption, "threat"):
            raise TypeError(f"evaluate: {name!r} must be a corruption, got {corruption!r}. Give attacks as attacks={{...}}.")
