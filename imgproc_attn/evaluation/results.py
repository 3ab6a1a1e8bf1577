"""What an evaluation leaves: every number counted from flags, in files that others can read."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.io import read_json, write_csv, write_json, write_text
from ..utils.locks import locked
from ..utils.manifest import Manifest
from ..utils.markdown import markdown_table, markdown_text
from ..utils.serialization import METRICS
from .conditions import Condition
from .flags import SampleResults, remove_results
from .forms import Result
from .measures import Measure

RESULT, FLAGS, DRAWS, CHECKS = "result.json", "flags.csv", "bootstrap.csv", "checks.json"
MARKDOWN, TABLE, BY_CLASS, PREDICTIONS = "result.md", "results.csv", "per_class.csv", "predictions.csv"
OUTPUTS = [RESULT, FLAGS, DRAWS, CHECKS, MARKDOWN, TABLE, BY_CLASS, PREDICTIONS]  # of any evaluation, beside pictures
OUTPUTS += [f"{name}.png" for name in ("curves", "gallery", "corruptions")]
IMAGENET_SIZE = (3, 224, 224)  # that the constants of ImageNet-C are for
BY_SAMPLE = ("accuracy",)  # means over samples; other metrics have draws


def forget(folder: Path, flags: Path) -> None:
    """Remove what an earlier evaluation left in a folder, and its ``flags``; nothing else.

    Raises:
        ValueError: Another process writes to it.
    """
    with locked(folder):
        remove_results(flags)
        Manifest(folder).remove(OUTPUTS)


def row(condition: Condition, flags: SampleResults, measure: Measure, std: Sequence[float]) -> dict[str, Any]:
    """The numbers of a condition, as JSON takes them.

    Args:
        condition: The condition.
        flags: Its flags.
        measure: Counts them.
        std: Of the model's normalization, for radii on normalized tensors.
    """
    names = dict(zip(condition.samples.ids.tolist(), condition.samples.names))
    found: dict[str, Any] = {
        "name": condition.name,
        "family": condition.family,
        "strength": condition.strength,
        **condition.settings,
        "images": condition.samples.identity,
        "unreadable": [names[i] for i in flags.unreadable],
        **measure.count(flags),
        "intervals": measure.intervals(flags),
        "range": [flags.lowest, flags.highest],
    }
    attack = getattr(condition.judge, "attack", None)
    if attack is not None:
        found["largest_perturbation"] = flags.scores.max().item()
        threat = attack.threat
        found |= {**threat.record, "pixel_eps": threat.pixel_eps(std)}
        if "by" in flags.columns:  # of an ensemble
            by = flags.columns["by"]
            found["fooled_by"] = {name: by.count(number) for number, name in enumerate(attack.attacks)}
    return found


def write_result(
    folder: Path,
    result: Mapping[str, Any],
    conditions: Sequence[Condition],
    flags: Mapping[str, SampleResults],
    measure: Measure,
) -> None:
    """Write ``result.json``, ``result.md``, ``results.csv``, ``flags.csv``; ``bootstrap.csv`` of metrics that have draws.

    ``result`` has the rows of `row`.
    """
    write_csv(folder / FLAGS, _flag_rows(conditions, flags, measure))
    draws = [(c.name, metric, v) for c in conditions for metric, v in measure.draws(flags[c.name]).items()]
    if draws:
        write_csv(folder / DRAWS, [[name, metric, *(round(v, 4) for v in values)] for name, metric, values in draws])
    rows = result["conditions"]
    keys = ["name", "n", *measure.metrics, "low", "high", "largest_perturbation"]
    numbers = [[{**r, **dict(zip(("low", "high"), interval(r, measure.metrics[0])))}.get(k, "") for k in keys] for r in rows]
    write_csv(folder / TABLE, [keys, *numbers])
    write_text(folder / MARKDOWN, markdown(result))
    write_json(folder / RESULT, result)


def _flag_rows(conditions: Sequence[Condition], flags: Mapping[str, SampleResults], measure: Measure) -> list[list[Any]]:
    """A row an image: name, label if it has one, and for each condition the share that is right, nothing if unreadable."""
    labels: dict[str, Any] = {}
    columns: dict[str, dict[str, float]] = {}
    for condition in conditions:
        names = dict(zip(condition.samples.ids.tolist(), condition.samples.names))
        found = flags[condition.name]
        labels |= {**dict.fromkeys(names.values(), ""), **labels}
        labels |= {names[i]: label for i, label in zip(found.ids.tolist(), found.columns.get("labels", []))}
        columns[condition.name] = {names[i]: share for i, share in zip(found.ids.tolist(), measure.of_samples(found))}
    rows = [[name, label, *(column.get(name, "") for column in columns.values())] for name, label in labels.items()]
    return [["image", "label", *columns], *rows]


def read_flags(folder: Path) -> dict[str, dict[str, float]]:
    """``{condition: {image: share that is right}}`` of a folder that `write_result` filled.

    Raises:
        ValueError: The file is cut off, or none of ours.
    """
    file = folder / FLAGS
    try:
        with file.open(newline="", encoding="utf-8") as text:
            header, *rows = list(csv.reader(text)) or [[]]
        if header[:2] != ["image", "label"] or any(len(row) != len(header) for row in rows):
            raise ValueError("not a row per image, or not a column per condition")
        return {name: {row[0]: float(row[i]) for row in rows if row[i]} for i, name in enumerate(header) if i > 1}
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{file} is cut off, or no table of flags: {error}. Run the evaluation again, which uses what is done."
        ) from error


def read_draws(folder: Path) -> dict[tuple[str, str], list[float]]:
    """``{(condition, metric): values}`` of a bootstrap; nothing where there was none.

    Raises:
        ValueError: The file is cut off, or none of ours.
    """
    file = folder / DRAWS
    if not file.exists():
        return {}
    try:
        with file.open(newline="", encoding="utf-8") as text:
            return {(name, metric): [float(v) for v in values] for name, metric, *values in csv.reader(text)}
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{file} is cut off, or no bootstrap: {error}. Run the evaluation again, which uses what is done."
        ) from error


def read_result(folder: Path) -> dict[str, Any]:
    """``result.json`` of a folder.

    Raises:
        ValueError: The file is cut off, or none of ours.
    """
    remedy = "Run attack, corrupt, shift or a segmenter's evaluate again, which uses what is done."
    return read_json(folder / RESULT, Result, remedy)


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a result, its means, what could not be read, and the reasons to doubt."""
    attacked = any("eps" in r for r in result["conditions"])
    first, *others = result["metrics"]
    heads = ["condition", f"{METRICS[first]} / %", "95 % interval", *(f"{METRICS[metric]} / %" for metric in others), "images"]
    rows = []
    for r in result["conditions"]:
        low, high = interval(r, first)
        cells = [f"{r[first]:.2f}", f"{low:.2f} to {high:.2f}", *(f"{r[metric]:.2f}" for metric in others)]
        rows.append([markdown_text(r["name"]), *cells, r["n"], *([perturbation(r)] if attacked else [])])
    table = markdown_table(heads + ["largest perturbation"] * attacked, rows)
    parts = [table, *means(result.get("summary", {})), *map(markdown_text, cautions(result))]
    if result["findings"]:
        found = [f"- {f['check']}: {markdown_text(f['message'])}" for f in result["findings"]]
        parts.append("**Reasons to doubt these numbers:**\n\n" + "\n".join(found))
    else:
        parts.append(f"Checks of {result['checked']['what']} on {result['checked']['images']} images: no finding.")
    return "\n\n".join(parts) + "\n"


def interval(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """In which 95 % of repetitions with other samples would lie: Wilson's of accuracies, a bootstrap's of other metrics."""
    low, high = row["intervals"][metric]
    return low, high


def cautions(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know of these numbers."""
    found = []
    if any(r.get("space") == "normalized" for r in result["conditions"]):
        found.append(
            "Attacks on normalized tensors, as the papers' code has them, against the model's own predictions: not comparable "
            "with the usual attacks on images in [0, 1]; equivalent radii in gray levels stand beside them."
        )
    if result.get("generated") and "mce_alexnet" in result.get("summary", {}):
        found.append(
            "These corruptions were generated, and not compressed as the published JPEG files, whose errors AlexNet's are: do "
            "not compare this mCE with published ones."
        )
    if any("fooled_by" in r for r in result["conditions"]):
        found.append("An ensemble counts the worst of its attacks, sample by sample. It is not AutoAttack: FAB is left out.")
    size = result["preprocessing"].get("input_size", IMAGENET_SIZE)
    if result.get("generated") and (size[1], size[2]) != IMAGENET_SIZE[1:]:
        found.append(
            f"Corruptions have ImageNet-C's constants, for pictures of 224 x 224; on {size[1]} x {size[2]} they are other "
            "corruptions, on small pictures harsher: do not compare with CIFAR-10-C, whose constants differ."
        )
    unreadable = sorted({name for r in result["conditions"] for name in r["unreadable"]})
    if unreadable:
        found.append(
            f"{len(unreadable)} unreadable images count nowhere: {', '.join(unreadable[:5])}{', …' * (len(unreadable) > 5)}."
        )
    return found


def summary_values(summary: Mapping[str, Any]) -> dict[str, float]:
    """The means of `corruption_summary` and their like, in percent, by what they are called."""
    names = {
        "mean_miou": "mean mIoU of 15 corruptions and 5 severities",
        "mean_accuracy": "mean accuracy of 15 corruptions and 5 severities",
        "mean_error": "mean error, unnormalized",
        "mce_alexnet": "mCE, errors divided by AlexNet's",
        "mean_miou_extra": "mean mIoU of the 4 extra corruptions",
        "mean_accuracy_extra": "mean accuracy of the 4 extra corruptions",
    }
    found = {name: summary[key] for key, name in names.items() if key in summary}
    if "aupr" in summary:
        found[f"AUPR of telling {summary['unknown']['n']} images of unknown classes by low confidence"] = summary["aupr"]
    if "real" in summary:
        found[f"accuracy by ReaL labels of {summary['real']['n']} images"] = summary["real"]["top1"]
    return found


def means(summary: Mapping[str, Any]) -> list[str]:
    """They in words."""
    told = "; ".join(f"{name}: {value:.2f} %" for name, value in summary_values(summary).items())
    return [told[0].upper() + told[1:] + "."] if told else []


def eps_unit(norm: str, space: str) -> str:
    """What an axis of radii shows, L-infinity's times 255."""
    levels = "eps (L-infinity, gray levels)" if norm == "Linf" else "eps (L2, of images in [0, 1])"
    normalized = "eps (L-infinity) x 255" if norm == "Linf" else "eps (L2)"
    return levels if space == "images" else f"{normalized} of normalized tensors"


def perturbation(row: Mapping[str, Any]) -> str:
    """The largest that was found, in gray levels for L-infinity, and what it is on images if it was made elsewhere."""
    if "largest_perturbation" not in row:
        return ""
    size, unit = row["largest_perturbation"], 255 if row["norm"] == "Linf" else 1
    text = f"{size * 255:.3f}/255" if row["norm"] == "Linf" else f"{size:.4f}"
    if row["space"] == "normalized":
        levels = ", ".join(f"{unit * eps:.3f}" for eps in dict.fromkeys(row["pixel_eps"]))
        text += f" of normalized tensors: by channel {levels} {'gray levels' if unit == 255 else 'on images'}"
    return text
