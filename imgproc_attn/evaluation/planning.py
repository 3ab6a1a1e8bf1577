"""Dry runs: the protocol of an evaluation, its passes through the model, and an estimate of its time."""

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..utils.serialization import flat, strength_text
from .attacks.base import gradient_by
from .conditions import Condition
from .samples import images_of
from .session import EvaluationSession

__all__ = ["plan"]


def plan(session: EvaluationSession, conditions: Sequence[Condition], checks: Sequence[Condition] = ()) -> str:
    """Return a description of an evaluation with an upper estimate of its duration, from the time of one batch.

    Args:
        session: Session with the model and the task.
        conditions: Conditions to evaluate.
        checks: Conditions of the sanity checks.
    """
    known = max(len(condition.samples) for condition in conditions)  # Streams may have an unknown length, which is 0 here.
    size = min(session.batch_size, known or session.batch_size)
    forward, backward = _seconds(session, conditions[0], size)

    def duration(planned: Sequence[Condition]) -> float:
        passes = [(len(c.samples), c.scorer.passes) for c in planned]
        return sum(n * (p.forward * forward + p.backward * backward) for n, p in passes) / (size * session.runtime.world.size)

    families = _families([*conditions, *checks])
    width = max(map(len, ["conditions", *families]))
    lines = [f"{'conditions':<{width}} {session.task.sample_noun:>8} {'forward':>9} {'backward':>9}"]
    lines[0] += "   passes per sample and condition, at most"
    for name, alike in families.items():
        p = alike[0].scorer.passes
        lines.append(f"{name:<{width}} {len(alike[0].samples):>8} {p.forward:>9} {p.backward:>9}")
    lines += ["", "protocol:", *_protocol(session, conditions), ""]
    lines.append(
        f"model {session.about['label']}, {session.about['parameters'] / 1e6:.1f} M parameters, "
        f"{session.protocol['dtype']} on {session.runtime.device}"
    )
    lines.append(f"a batch of {size}: forward {1000 * forward:.0f} ms, backward {1000 * backward:.0f} ms")
    total, share = duration([*conditions, *checks]), duration(checks)
    lines.append(
        f"estimated: at most {_duration(total)}"
        + (f", of which {_duration(share)} for the sanity checks" if checks else "")
        + f", without reading and corrupting {session.task.sample_noun}"
    )
    return "\n".join(lines)


def _families(conditions: Sequence[Condition]) -> dict[str, list[Condition]]:
    """Group the strengths of one attack or corruption, at equal cost, for example ``PGD-20 1/255 4/255``."""
    families = {}
    for (family, *_), group in groupby(conditions, lambda c: (c.family or c.name, len(c.samples), c.scorer.passes)):
        alike = list(group)
        strengths = [c.name.removeprefix(family) for c in alike]
        families[family + "".join(strengths)] = alike
    return families


def _protocol(session: EvaluationSession, conditions: Sequence[Condition]) -> list[str]:
    """Return all settings that the numbers depend on, one line per family of conditions that has some."""
    settings: dict[str, list[Mapping[str, Any]]] = {
        "images": [conditions[0].samples.identity],
        "preprocessing": [session.preprocessing._asdict()],
        "draws": [{"seed": session.seed}],
        **{name: [c.settings for c in alike] for name, alike in _families(conditions).items()},
    }
    lines = {name: _settings(several) for name, several in settings.items()}
    return [f"  {name}: {line}" for name, line in lines.items() if line]


def _settings(several: Sequence[Mapping[str, Any]]) -> str:
    """Return ``key=value`` for each setting that is given, and ``key=1, 2`` where the values differ.

    Names of classes are left out, because the name of the condition says what is done.
    """
    values: dict[str, dict[str, None]] = {}
    for settings in several:
        for key, value in flat(settings).items():
            if value not in (None, "") and key != "scorer.task" and key.rpartition(".")[2] != "class":
                values.setdefault(key, {})[_text(value)] = None
    return "; ".join(f"{_shortest(key, values)}={', '.join(distinct)}" for key, distinct in values.items())


def _shortest(key: str, keys: Iterable[str]) -> str:
    """Return the shortest end of a dotted key that no other key has."""
    parts = key.split(".")
    ends = [".".join(parts[i:]) for i in reversed(range(len(parts)))]
    return next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1), key)


def _text(value: Any) -> str:
    """Return a setting as plain text: ``yes`` or ``no``, numbers as ``0.1`` or ``4/255``, lists with spaces."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return strength_text(value)
    return " ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _seconds(session: EvaluationSession, condition: Condition, size: int) -> tuple[float, float]:
    """Return the seconds of a forward and a backward pass of one batch. The first of two runs is a warm-up."""
    preprocessing = condition.preprocessing or session.preprocessing
    images = images_of(condition.samples, preprocessing, session.runtime.device, condition.samples.random(size, 0).ids)[0]
    times, model = (0.0, 0.0), session.task.view(session.model)
    for _ in range(2):
        marks = [time.perf_counter()]
        with torch.enable_grad():
            points = images.clone().requires_grad_(images.is_floating_point())  # Token indices have no gradient.
            logits = model(points)
            marks.append(_now(logits))
            marks.append(_now(gradient_by(points, logits.sum())) if points.requires_grad else marks[-1])
        times = (marks[1] - marks[0], marks[2] - marks[1])
    return times


def _now(result: Tensor) -> float:
    """Wait until ``result`` is computed and return the time."""
    result.flatten()[0].item()
    return time.perf_counter()


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
