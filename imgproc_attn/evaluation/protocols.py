"""The protocols behind the commands evaluate, attack, corrupt and shift. Each leaves a folder of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from ..diagnostics import draw_curves, draw_grid, draw_heat_map
from .conditions import CLEAN, Condition, attack_conditions, clean_condition
from .real_labels import count_real, load_real
from .results import eps_unit
from .results_log import SampleResults
from .samples import Samples, SampleSet, images_of
from .scorers import AnyAttack
from .session import EvaluationSession
from .statistics import area_under_precision_recall

__all__ = ["evaluate_clean", "run_attacks", "run_corruptions", "run_unknown", "unknown_conditions"]


def evaluate_clean(
    session: EvaluationSession,
    samples: SampleSet,
    name: str = CLEAN,
    kind: str = "evaluate",
    real: bool = False,
    real_labels: Path | None = None,
) -> dict[str, Any]:
    """Evaluate on images as they are.

    Args:
        session: Model and task.
        samples: Images.
        name: Name of the condition in tables.
        kind: ``evaluate``, or ``shift`` for a naturally shifted data set.
        real: Count by ReaL labels too, for ImageNet's validation set.
        real_labels: File of the ReaL labels. Default: timm's copy.

    Returns:
        The content of ``result.json``; empty in processes other than the first.

    Raises:
        FileExistsError: The output folder holds files that would be overwritten and that no evaluation wrote.
        ValueError: Settings that do not fit model or images; another process writes to the folder.
    """
    condition = clean_condition(samples, session.task, name)
    if real and not isinstance(samples, Samples):
        raise ValueError("Images with ReaL labels must be files with names, got a stream. Give --data folder.")
    answers = load_real([samples.name(i) for i in samples.ids.tolist()], real_labels) if real else None
    with session.claimed():
        results = session.run([condition])
        if session.runtime.world.rank:
            return {}
        summary: dict[str, Any] = {}
        if answers is not None:
            by_id, found = dict(zip(samples.ids.tolist(), answers)), results[name]
            summary["real"] = count_real(found.predictions, found.labels, [by_id[i] for i in found.ids.tolist()])
        report = session.check(samples)
        return session.write(kind, [condition], results, report, summary=summary)


def run_attacks(
    session: EvaluationSession,
    samples: SampleSet,
    attacks: Mapping[str, AnyAttack],
    num_checked: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Evaluate under attacks, with sanity checks. As `evaluate_clean` otherwise.

    Args:
        session: Model and task.
        samples: Images.
        attacks: Attacks by name.
        num_checked: Number of samples for the sanity checks. Default: the task's.
        **more: Further content of ``result.json``.
    """
    conditions = [clean_condition(samples, session.task), *attack_conditions(samples, attacks, session.task)]
    with session.claimed():
        results = session.run(conditions)
        report = session.check(samples, list(attacks.values()), num_checked)
        if session.runtime.world.rank:
            return {}
        figures = {"curves": _curves(session, conditions, results), **_gallery(session, conditions, results)}
        return session.write("attack", conditions, results, report, figures, **more)


def run_corruptions(session: EvaluationSession, conditions: Sequence[Condition], **more: Any) -> dict[str, Any]:
    """Evaluate on corrupted images, with the means over corruptions. As `run_attacks` otherwise."""
    with session.claimed():
        results = session.run(conditions)
        if session.runtime.world.rank:
            return {}
        by_name: dict[str, dict[float, float]] = {}
        for c in conditions:
            if c.family is not None and c.strength is not None:
                by_name.setdefault(c.family, {})[c.strength] = _headline(session, results[c.name])
        report = session.check(conditions[0].samples, preprocessing=conditions[0].preprocessing)
        figures = {"corruptions": draw_heat_map(by_name, session.about["label"], session.task.metrics[0].label)[0]}
        if session.task.samples_are_images:
            figures["gallery"] = _corruption_gallery(session, conditions, results)
        summary = session.task.summarize(by_name)
        return session.write("corrupt", conditions, results, report, figures, summary=summary, **more)


def unknown_conditions(session: EvaluationSession, unknown: SampleSet, known: SampleSet) -> list[Condition]:
    """Return the conditions of `run_unknown`."""
    names = ("ImageNet-O", "ImageNet-O's classes, validation")
    return [clean_condition(samples, session.task, name) for name, samples in zip(names, (unknown, known))]


def run_unknown(session: EvaluationSession, unknown: SampleSet, known: SampleSet) -> dict[str, Any]:
    """Measure how well low confidence tells images of unknown classes from images of known ones.

    Args:
        session: Model and task.
        unknown: Images of unknown classes, in folders of classes that they resemble.
        known: Validation images of those classes.
    """
    conditions = unknown_conditions(session, unknown, known)
    with session.claimed():
        results = session.run(conditions)
        if session.runtime.world.rank:
            return {}
        of_unknown, of_known = (results[condition.name].scores for condition in conditions)
        summary = {"aupr": area_under_precision_recall(of_known, of_unknown), "unknown": unknown.identity}
        report = session.check(known)
        return session.write(
            "shift", conditions[1:], results, report, summary=summary
        )  # no answer is right for unknown classes


def _headline(session: EvaluationSession, results: SampleResults) -> float:
    return session.task.count(results)[session.task.metrics[0].key]


def _curves(session: EvaluationSession, conditions: Sequence[Condition], results: Mapping[str, SampleResults]) -> Figure:
    """Draw the first metric over eps, one panel per attack and kind of ball."""
    label = session.about["label"]
    values = {name: [_headline(session, result)] for name, result in results.items()}
    curves: dict[str, dict[str, dict[float, list[float]]]] = {}
    units: dict[str, str] = {}
    for c in conditions:
        if c.family is not None and c.strength is not None:
            points = curves.setdefault(c.family, {label: {0.0: values[CLEAN]}})
            points[label][c.strength] = values[c.name]
            threat = c.scorer.attack.threat  # type: ignore[attr-defined]
            units[c.family] = eps_unit(threat.norm.name, threat.space)
    return draw_curves(curves, units, session.task.metrics[0].label)[0]


def _gallery(
    session: EvaluationSession, conditions: Sequence[Condition], results: Mapping[str, SampleResults], count: int = 6
) -> dict[str, Figure]:
    """Draw samples that the strongest attack has harmed; nothing if no attack harmed any."""
    sign = session.task.metrics[0].sign
    for condition in sorted(conditions[1:], key=lambda c: sign * _headline(session, results[c.name])):
        harmed = session.task.harmed(results[CLEAN], results[condition.name])[: min(count, session.batch_size)]
        if len(harmed):
            batch = images_of(condition.samples, session.preprocessing, session.runtime.device, harmed)
            return {"gallery": session.task.attacked_figure(session.model, batch, condition, session.about["label"])}
    return {}


def _corruption_gallery(
    session: EvaluationSession, conditions: Sequence[Condition], results: Mapping[str, SampleResults]
) -> Figure:
    """Draw one image under all conditions, one row per corruption."""
    images: dict[str, dict[str, Tensor]] = {}
    for c in conditions:
        if c.family is not None:
            first, preprocessing = results[c.name].ids[:1], c.preprocessing or session.preprocessing
            image = images_of(c.samples, preprocessing, session.runtime.device, first)[0][0]
            images.setdefault(c.family, {})[f"severity {c.strength:g}"] = image
    return draw_grid(images)[0]
