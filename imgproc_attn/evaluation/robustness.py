"""The robustness commands: attack, corrupt, shift. Each asks one model under its conditions and leaves a folder of results."""

import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..diagnostics import draw_curves, draw_grid, draw_heat_map
from ..utils.serialization import flat
from .accuracy import count_real, load_real
from .assessment import Assessment
from .attacks.base import gradient_by
from .classification import area_under_precision_recall
from .conditions import CLEAN, Condition, SampleAttack
from .corruption_names import COMMON, EXTRA
from .evaluator import images_of
from .flags import SampleResults
from .imagenet_c import ImageNetC
from .measures import Measure
from .results import eps_unit
from .samples import Samples
from .threat import LINF


def attack_conditions(samples: Samples, attacks: Mapping[str, SampleAttack], measure: Measure) -> list[Condition]:
    """Clean, then every attack, on the same samples; names as in ``PGD-20 4/255``."""

    def condition(name: str, attack: SampleAttack) -> Condition:
        gray = attack.threat.eps * (255 if attack.threat.norm == LINF else 1)
        return Condition(name, samples, measure.under(attack), family=name.rpartition(" ")[0], strength=gray)

    return [Condition(CLEAN, samples, measure.clean), *(condition(name, attack) for name, attack in attacks.items())]


def corruption_conditions(
    samples: Samples,
    names: Sequence[str],
    severities: Sequence[int],
    measure: Measure,
    seed: int = 0,
    frost_folder: Path | None = None,
) -> list[Condition]:
    """Clean, then every corruption at every severity, generated on the fly.

    Raises:
        FileNotFoundError: Photographs of frost that are not there.
        ValueError: As `ImageNetC`.
    """
    corruptions = [ImageNetC(name, severity, seed, frost_folder) for name in names for severity in severities]
    return [Condition(CLEAN, samples, measure.clean), *(corrupted_condition(samples, c, measure) for c in corruptions)]


def corrupted_condition(samples: Samples, c: ImageNetC, measure: Measure) -> Condition:
    """Named as in ``fog 3``."""
    return Condition(f"{c.name} {c.severity}", samples.corrupted(c), measure.clean, family=c.name, strength=c.severity)


def known_corruptions(which: Sequence[str], frost_folder: Path | None) -> list[str]:
    """``common`` (15), ``extra`` (4), ``all`` or names; without its photographs, groups come without ``frost``."""
    groups = {"common": [*COMMON], "extra": [*EXTRA], "all": [*COMMON, *EXTRA]}
    found: list[str] = []
    for name in which:
        members = groups.get(name, [name])
        found += [m for m in members if m not in found and (m != "frost" or name == "frost" or frost_folder is not None)]
    return found


def shift_conditions(assessment: Assessment, title: str) -> list[Condition]:
    """The images of the source, as they are."""
    return [Condition(title, assessment.samples())]


def unknown_conditions(unknown: Assessment, known: Assessment) -> list[Condition]:
    """How sure the model is of images of unknown classes, and of validation images of the classes these resemble."""
    names = ("ImageNet-O", "ImageNet-O's classes, validation")
    return [Condition(name, a.samples()) for name, a in zip(names, (unknown, known))]


def run_attacks(
    assessment: Assessment, attacks: Mapping[str, SampleAttack], checked: int | None = None, **more: Any
) -> dict[str, Any]:
    """Accuracy under attacks, with sanity checks; results are in the assessment's folder.

    Args:
        assessment: Model and images.
        attacks: By name.
        checked: So many images are looked at by the sanity checks. Default: the measure's own number.
        **more: For the record.

    Returns:
        What ``result.json`` holds; nothing in processes other than the first.
    """
    conditions = attack_conditions(assessment.samples(), attacks, assessment.measure)
    with assessment.claimed():
        flags = assessment.ask(conditions)
        if assessment.place.world.rank:
            return {}
        found = assessment.check(conditions[0].samples, list(attacks.values()), checked)
        figures = {"curves": _curves(assessment, conditions, flags), **_gallery(assessment, conditions, flags)}
        return assessment.write("attack", conditions, flags, found, figures, **more)


def run_corruptions(assessment: Assessment, conditions: Sequence[Condition], **more: Any) -> dict[str, Any]:
    """Accuracy on corrupted images, and its means; as `run_attacks` otherwise."""
    with assessment.claimed():
        flags = assessment.ask(conditions)
        if assessment.place.world.rank:
            return {}
        by_name: dict[str, dict[int, float]] = {}
        for c in conditions:
            if c.family is not None and c.strength is not None:
                by_name.setdefault(c.family, {})[int(c.strength)] = _headline(assessment.measure, flags[c.name])
        summary = assessment.measure.summarize(by_name)
        found = assessment.check(conditions[0].samples, preprocessing=conditions[0].preprocessing)
        figures = {
            "corruptions": draw_heat_map(by_name, assessment.label, assessment.measure.metrics[0]),
            "gallery": _corruption_gallery(assessment, conditions, flags),
        }
        return assessment.write("corrupt", conditions, flags, found, figures, summary=summary, **more)


def run_shift(assessment: Assessment, title: str, real: bool = False, real_labels: Path | None = None) -> dict[str, Any]:
    """Accuracy on a naturally shifted data set, whose classes the assessment's source names; as `run_attacks` otherwise.

    Args:
        assessment: Model and images.
        title: Of the data set.
        real: Also count by ReaL labels; for ImageNet's validation set.
        real_labels: Their file. Default: timm's copy.
    """
    conditions = shift_conditions(assessment, title)
    samples = conditions[0].samples
    answers = load_real(samples.names, real_labels) if real else None
    with assessment.claimed():
        flags = assessment.ask(conditions)
        if assessment.place.world.rank:
            return {}
        summary: dict[str, Any] = {}
        if answers is not None:
            found = flags[title]
            by_id = dict(zip(samples.ids.tolist(), answers))
            summary["real"] = count_real(found.predictions, found.labels, [by_id[i] for i in found.ids.tolist()])
        checked = assessment.check(samples)
        return assessment.write("shift", conditions, flags, checked, {}, summary=summary)


def run_unknown(unknown: Assessment, known: Assessment) -> dict[str, Any]:
    """How well low confidence tells images of classes the model does not know from those of classes it does.

    Args:
        unknown: Model, and images of unknown classes, in folders of classes they resemble.
        known: The same model, and validation images of these classes alone.
    """
    conditions = unknown_conditions(unknown, known)
    with unknown.claimed():
        flags = unknown.ask(conditions)
        if unknown.place.world.rank:
            return {}
        sure_of_unknown, sure_of_known = (flags[condition.name].scores for condition in conditions)
        summary = {
            "aupr": area_under_precision_recall(sure_of_known, sure_of_unknown),
            "unknown": conditions[0].samples.identity,
        }
        checked = unknown.check(conditions[1].samples)
        return unknown.write("shift", conditions[1:], flags, checked, {}, summary=summary)  # of unknown classes none is right


def _headline(measure: Measure, flags: SampleResults) -> float:
    return measure.count(flags)[measure.metrics[0]]


def _curves(assessment: Assessment, conditions: Sequence[Condition], flags: Mapping[str, SampleResults]) -> Figure:
    """The first metric over eps, a panel an attack and kind of ball."""
    label, measure = assessment.label, assessment.measure
    values = {name: [_headline(measure, found)] for name, found in flags.items()}
    curves: dict[str, dict[str, dict[float, list[float]]]] = {}
    units: dict[str, str] = {}
    for c in conditions:
        if c.family is not None and c.strength is not None:
            points = curves.setdefault(c.family, {label: {0.0: values[CLEAN]}})
            points[label][c.strength] = values[c.name]
            threat = c.judge.attack.threat  # type: ignore[attr-defined]
            units[c.family] = eps_unit(threat.norm.name, threat.space)
    return draw_curves(curves, units, measure.metrics[0])


def _gallery(
    assessment: Assessment, conditions: Sequence[Condition], flags: Mapping[str, SampleResults], count: int = 6
) -> dict[str, Figure]:
    """Some samples that the attack that leaves least has harmed; nothing if none was."""
    measure = assessment.measure
    for condition in sorted(conditions[1:], key=lambda c: _headline(measure, flags[c.name])):
        broken = measure.broken(flags[CLEAN], flags[condition.name])[: min(count, assessment.place.batch_size)]
        if len(broken):
            batch = images_of(condition.samples, assessment.preprocessing, assessment.place.device, broken)
            return {"gallery": measure.gallery(assessment.model, batch, condition, assessment.label)}
    return {}


def _corruption_gallery(assessment: Assessment, conditions: Sequence[Condition], flags: Mapping[str, SampleResults]) -> Figure:
    """One image under all conditions, a row a corruption."""
    pictures: dict[str, dict[str, Tensor]] = {}
    for c in conditions:
        if c.family is not None:
            first, prepared = flags[c.name].ids[:1], c.preprocessing or assessment.preprocessing
            image = images_of(c.samples, prepared, assessment.place.device, first)[0][0]
            pictures.setdefault(c.family, {})[f"severity {c.strength:g}"] = image
    return draw_grid(pictures)


def plan(assessment: Assessment, conditions: Sequence[Condition], checked: int = 0) -> str:
    """What an evaluation would do, and how long it would take at most, from timing the model on one batch."""
    place, judges = assessment.place, [condition.judge.passes for condition in conditions]
    size = min(place.batch_size, max(len(condition.samples) for condition in conditions))
    forward, backward = _seconds(assessment, conditions[0], size)
    share = size * place.world.size
    seconds = sum(len(c.samples) / share * (p.forward * forward + p.backward * backward) for c, p in zip(conditions, judges))
    lines = [f"{'conditions':<32} {'images':>8} {'forward':>9} {'backward':>9}   passes an image and condition, at most"]
    for name, alike in _families(conditions).items():
        p = alike[0].judge.passes
        lines.append(f"{name:<32} {len(alike[0].samples):>8} {p.forward:>9} {p.backward:>9}")
    lines += ["", "protocol:", *_protocol(assessment, conditions), ""]
    lines.append(
        f"model {assessment.label}, {assessment.parameters / 1e6:.1f} M parameters, {assessment.dtype} on {place.device}"
    )
    lines.append(f"a batch of {size}: forward {1000 * forward:.0f} ms, backward {1000 * backward:.0f} ms")
    lines.append(
        f"estimated: at most {_duration(seconds)}, reading and corrupting apart, and the sanity checks, many attacks on "
        f"{checked} images"
    )
    return "\n".join(lines)


def _families(conditions: Sequence[Condition]) -> dict[str, list[Condition]]:
    """Strengths of one attack or corruption together, at equal cost, as ``PGD-20 1/255 4/255``."""
    found = {}
    for (family, *_), group in groupby(conditions, lambda c: (c.family or c.name, len(c.samples), c.judge.passes)):
        alike = list(group)
        strengths = [c.name.removeprefix(family) for c in alike]
        found[family + "".join(strengths)] = alike
    return found


def _protocol(assessment: Assessment, conditions: Sequence[Condition]) -> list[str]:
    """Everything that numbers would depend on, a line a family of conditions."""
    told = {
        "images": conditions[0].samples.identity,
        "preprocessing": assessment.preprocessing._asdict(),
        "seed": assessment.seed,
    }
    lines = [f"  {name}: {_settings([value])}" for name, value in told.items()]
    return lines + [f"  {name}: {_settings([c.settings for c in alike])}" for name, alike in _families(conditions).items()]


def _settings(several: Sequence[Any]) -> str:
    """``key=value`` of everything that is set, ``key=1, 2`` where they differ."""
    if not isinstance(several[0], Mapping):
        return str(several[0])
    values: dict[str, dict[str, None]] = {}
    for settings in several:
        for key, found in flat(settings).items():
            if found is not None:
                values.setdefault(key, {})[str(found)] = None
    return "; ".join(f"{key}={', '.join(found)}" for key, found in values.items())


def _seconds(assessment: Assessment, condition: Condition, size: int) -> tuple[float, float]:
    """Of a forward and a backward pass of a batch; the second of two runs counts."""
    preprocessing = condition.preprocessing or assessment.preprocessing
    images = images_of(condition.samples, preprocessing, assessment.place.device, condition.samples.ids[:size])[0]
    times, model = (0.0, 0.0), assessment.measure.view(assessment.model)
    for _ in range(2):
        marks = [time.perf_counter()]
        with torch.enable_grad():
            points = images.clone().requires_grad_()
            logits = model(points)
            marks.append(_now(logits))
            marks.append(_now(gradient_by(points, logits.sum())))
        times = (marks[1] - marks[0], marks[2] - marks[1])
    return times


def _now(result: Tensor) -> float:
    """The time when ``result`` is there."""
    result.flatten()[0].item()
    return time.perf_counter()


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
