"""Conditions: the samples a model is asked about, and the scorer that asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import PreprocessingLike
from ..utils.serialization import describe, strength_text
from .corruption_names import COMMON, EXTRA
from .samples import SampleSet
from .scorers import AnyAttack, CleanScorer, Scorer
from .threat import LINF

if TYPE_CHECKING:
    from .scoring import Scoring

__all__ = ["CLEAN", "Condition", "attack_conditions", "clean_condition", "corruption_conditions", "known_corruptions"]

CLEAN = "clean"  # name of the condition of images as they are


@dataclass(frozen=True)
class Condition:
    """One line of a table: samples and a scorer.

    Attributes:
        name: Unique name in the evaluation.
        samples: Samples to score.
        scorer: Scores them.
        preprocessing: Preprocessing of the images. Default: the session's.
        family: Attack or corruption of which this is one strength, for curves and heat maps.
        strength: The strength: an eps in gray levels (L-infinity) or as it is (L2), or a severity.
    """

    name: str
    samples: SampleSet
    scorer: Scorer
    preprocessing: PreprocessingLike | None = None
    family: str | None = None
    strength: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the scorer and the corruption, as JSON can hold them."""
        return {"scorer": describe(self.scorer), "corruption": describe(self.samples.corruption)}


def clean_condition(samples: SampleSet, task: "Scoring", name: str = CLEAN) -> Condition:
    """Return the condition of images as they are, with all details that the task keeps."""
    return Condition(name, samples, CleanScorer(task, details=True))


def attack_conditions(samples: SampleSet, attacks: Mapping[str, AnyAttack], task: "Scoring") -> list[Condition]:
    """Return one condition per attack, named as the attacks are: ``PGD-20 4/255``."""
    conditions = []
    for name, attack in attacks.items():
        strength = attack.threat.eps * (255 if attack.threat.norm == LINF else 1)
        conditions.append(Condition(name, samples, task.under(attack), family=name.rpartition(" ")[0], strength=strength))
    return conditions


def corruption_conditions(samples: SampleSet, corruptions: Sequence[Any], task: "Scoring") -> list[Condition]:
    """Return one condition per corruption, named ``fog 3``; samples are corrupted when they are read."""
    return [
        Condition(f"{c.name} {strength_text(c.severity)}", samples.corrupted(c), task.clean, family=c.name, strength=c.severity)
        for c in corruptions
    ]


def known_corruptions(names: Sequence[str], frost_folder: Path | None) -> list[str]:
    """Expand groups of corruptions: ``common`` (15), ``extra`` (4), ``all``.

    A group comes without ``frost`` if there is no folder with its photographs.
    """
    groups = {"common": [*COMMON], "extra": [*EXTRA], "all": [*COMMON, *EXTRA]}
    result: list[str] = []
    for name in names:
        members = groups.get(name, [name])
        result += [m for m in members if m not in result and (m != "frost" or name == "frost" or frost_folder is not None)]
    return result
