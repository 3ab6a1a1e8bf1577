"""What is counted of a model's answers: right labels here, areas of pixels in `imgproc_attn.segmentation`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..diagnostics import draw_adversarial
from .classification import wilson_interval
from .conditions import CLEAN, AsGiven, AsPublished, Condition, Judge, SampleAttack, judge_of
from .evaluator import Batch
from .findings import Finding, SanityReport
from .flags import SampleResults, of_common_samples
from .imagenet_c.errors import corruption_summary
from .normalization import NormalizedModel
from .presets import ATTACKS, PRESETS, Catalog, Preset
from .sanity import check_rows, sanity_checks
from .threat import LINF, ThreatModel


class Measure(Protocol):
    """Which judges are asked, and what becomes of their flags."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The numbers of a condition, in percent, by their keys; the first is the one that is drawn."""
        ...

    @property
    def attacks(self) -> Catalog:
        """Those that fit."""
        ...

    @property
    def presets(self) -> Mapping[str, Preset]:
        """Protocols that fit."""
        ...

    @property
    def num_classes(self) -> int:
        """That answers are chosen from."""
        ...

    @property
    def clean(self) -> Judge:
        """Of images as they are."""
        ...

    def under(self, attack: SampleAttack) -> Judge:
        """Of images under attack."""
        ...

    def view(self, model: nn.Module) -> nn.Module:
        """The model as judges look at images with it."""
        ...

    def count(self, flags: SampleResults) -> dict[str, Any]:
        """The numbers of a condition: `metrics`, the count ``n`` of its samples, and more."""
        ...

    def intervals(self, flags: SampleResults) -> Mapping[str, list[float]]:
        """The 95 % intervals of `metrics`."""
        ...

    def of_samples(self, flags: SampleResults) -> list[float]:
        """The share that is right of each sample."""
        ...

    def draws(self, flags: SampleResults) -> Mapping[str, list[float]]:
        """Of metrics that are no means over samples, values under a bootstrap; draws depend on the number of samples alone."""
        ...

    def summarize(self, by_corruption: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
        """Means of the first metric, ``{corruption: {severity: percent}}``."""
        ...

    @property
    def checked(self) -> int:
        """So many samples are enough for `check`."""
        ...

    def check(self, model: nn.Module, batches: Sequence[Batch], attacks: Sequence[SampleAttack], seed: int) -> SanityReport:
        """Reasons to doubt what these attacks leave, from a few samples; without attacks the outputs alone."""
        ...

    def doubt(self, rows: Sequence[Mapping[str, Any]], flags: Mapping[str, SampleResults]) -> list[Finding]:
        """Reasons to doubt, from the numbers and the flags of all conditions."""
        ...

    def broken(self, clean: SampleResults, attacked: SampleResults) -> Tensor:
        """Numbers of samples that an attack harmed, a few of which are worth looking at."""
        ...

    def gallery(self, model: Any, batch: Batch, condition: Condition, label: str) -> Figure:
        """Samples under attack, beside what the model, called ``label``, makes of them."""
        ...


@dataclass(frozen=True)
class LabelMeasure:
    """Right and wrong labels.

    Attributes:
        num_classes: That labels are chosen from.
        of_imagenet: Images are of all classes of ImageNet-1k, as those of AlexNet's errors.
    """

    num_classes: int
    of_imagenet: bool = False

    metrics = ("accuracy",)
    checked = 64
    attacks = ATTACKS
    presets = PRESETS
    clean = AsGiven()

    def under(self, attack: SampleAttack) -> Judge:
        return judge_of(attack)

    def view(self, model: nn.Module) -> nn.Module:
        return model

    def count(self, flags: SampleResults) -> dict[str, Any]:
        n, correct = len(flags.ids), int(flags.correct.sum())
        return {"n": n, "correct": correct, "accuracy": 100 * correct / n}

    def intervals(self, flags: SampleResults) -> Mapping[str, list[float]]:
        return {"accuracy": list(wilson_interval(int(flags.correct.sum()), len(flags.ids)))}

    def of_samples(self, flags: SampleResults) -> list[float]:
        return flags.correct.int().tolist()

    def draws(self, flags: SampleResults) -> Mapping[str, list[float]]:
        return {}

    def summarize(self, by_corruption: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
        return corruption_summary(by_corruption, self.of_imagenet)

    def check(self, model: nn.Module, batches: Sequence[Batch], attacks: Sequence[SampleAttack], seed: int) -> SanityReport:
        if not batches:
            return SanityReport(
                [], 0, [Finding("nothing to check", "None of the images that were to be looked at could be read.")]
            )
        images, labels = (torch.cat([batch[i] for batch in batches]) for i in range(2))
        threat = check_threat([attack.threat for attack in attacks], _std(model)) if attacks else None
        return sanity_checks(model, images, labels, threat, seed, len(batches[0][0]))

    def doubt(self, rows: Sequence[Mapping[str, Any]], flags: Mapping[str, SampleResults]) -> list[Finding]:
        """On normalized tensors attacks turn images from the model's own answer: those it gets wrong may become right."""
        attacked = [row for row in rows if "eps" in row]
        compared = {CLEAN, *(row["name"] for row in attacked)}
        flags = of_common_samples({name: found for name, found in flags.items() if name in compared})
        clean = flags.get(CLEAN)
        correct = {row["name"]: flags[row["name"]].correct for row in attacked}
        if clean is not None:
            correct = {name: right & clean.correct for name, right in correct.items()}
        return check_rows(attacked, correct)

    def broken(self, clean: SampleResults, attacked: SampleResults) -> Tensor:
        clean, attacked = of_common_samples({"clean": clean, "attacked": attacked}).values()
        return clean.ids[clean.correct & ~attacked.correct]

    def gallery(self, model: Any, batch: Batch, condition: Condition, label: str) -> Figure:
        images, labels, ids = batch
        found = condition.judge(model, images, labels, ids).images
        if isinstance(condition.judge, AsPublished):
            found = found * model.std + model.mean
        with torch.no_grad():
            predictions = model(found).argmax(dim=1)
        title, names = f"{label}\n{condition.name}", condition.samples.class_names
        truth, said = ([names.get(i, str(i)) for i in which.tolist()] for which in (labels, predictions))
        return draw_adversarial(images, {title: found}, truth, {title: said}, (found - images).abs().max().item())


def check_threat(threats: Sequence[ThreatModel], std: Sequence[float]) -> ThreatModel:
    """What sanity is checked under: the smallest ball on images; of normalized tensors, with their widest channel's radius."""
    least = min(threats, key=lambda threat: (threat.space, threat.eps))  # images come before normalized
    return ThreatModel(min(1.0, max(least.pixel_eps(std))) if least.norm == LINF else max(least.pixel_eps(std)), least.norm)


def _std(model: nn.Module) -> list[float]:
    """What a model divides its images by."""
    return next((m.std.flatten().tolist() for m in model.modules() if isinstance(m, NormalizedModel)), [1.0])
