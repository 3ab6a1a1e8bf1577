"""Result files of an evaluation: numbers from per-sample results, as JSON, CSV and Markdown."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.io import read_json, write_csv, write_json, write_text
from ..utils.markdown import markdown_table, markdown_text
from .conditions import Condition
from .forms import ResultForm
from .results_log import SampleResults
from .scoring import Metric, Scoring

__all__ = [
    "OUTPUTS",
    "cautions",
    "eps_unit",
    "interval",
    "markdown",
    "means",
    "perturbation",
    "read_draws",
    "read_per_sample",
    "read_result",
    "row",
    "summary_values",
    "write_result",
]

RESULT, PER_SAMPLE, BOOTSTRAP, CHECKS = "result.json", "per_sample.csv", "bootstrap.csv", "checks.json"
MARKDOWN, TABLE, BY_CLASS, PREDICTIONS = "result.md", "results.csv", "per_class.csv", "predictions.csv"
OUTPUTS = [RESULT, PER_SAMPLE, BOOTSTRAP, CHECKS, MARKDOWN, TABLE, BY_CLASS, PREDICTIONS]
CURVES = "curves.png"
OUTPUTS += [CURVES, "gallery.png", "corruptions.png"]
IMAGENET_SIZE = (3, 224, 224)  # The constants of ImageNet-C are for this size.


def row(condition: Condition, results: SampleResults, task: Scoring, std: Sequence[float]) -> dict[str, Any]:
    """Return the numbers of a condition, in types of JSON.

    Args:
        condition: Condition of the results.
        results: Per-sample results of the condition.
        task: Task that computes the numbers.
        std: Standard deviations of the model's normalization, for radii on normalized tensors.
    """
    numbers: dict[str, Any] = {
        "name": condition.name,
        "family": condition.family,
        "strength": condition.strength,
        **condition.settings,
        "images": condition.samples.identity,
        "unreadable": [condition.samples.name(i) for i in results.unreadable],
        **task.count(results),
        "intervals": task.intervals(results),
        "range": [results.lowest, results.highest],
    }
    attack = getattr(condition.scorer, "attack", None)
    if attack is not None:
        numbers["largest_perturbation"] = results.scores.max().item()
        threat = attack.threat
        numbers |= {**threat.record, "pixel_eps": threat.pixel_eps(std)}
        if "by" in results.columns:  # Only ensembles have this column.
            by = results.columns["by"]
            numbers["fooled_by"] = {name: by.count(number) for number, name in enumerate(attack.attacks)}
    return numbers


def write_result(
    folder: Path,
    result: Mapping[str, Any],
    conditions: Sequence[Condition],
    results: Mapping[str, SampleResults],
    task: Scoring,
    remarks: Sequence[str] = (),
) -> None:
    """Write ``result.json``, ``result.md``, ``results.csv``, ``per_sample.csv``, and ``bootstrap.csv`` where there is one.

    Args:
        folder: Folder of the results.
        result: Content of ``result.json``, with the rows of `row`.
        conditions: Conditions of the evaluation.
        results: Per-sample results by name of the condition.
        task: Task that computes the numbers.
        remarks: Paragraphs below the table in ``result.md``.
    """
    write_csv(folder / PER_SAMPLE, _sample_rows(conditions, results, task))
    draws = [(c.name, metric, v) for c in conditions for metric, v in task.bootstrap(results[c.name]).items()]
    if draws:
        write_csv(folder / BOOTSTRAP, [[name, metric, *(round(v, 4) for v in values)] for name, metric, values in draws])
    rows, first = result["conditions"], task.metrics[0].key
    keys = ["name", "n", *(metric.key for metric in task.metrics), "low", "high", "largest_perturbation"]
    numbers = [[{**r, **dict(zip(("low", "high"), interval(r, first)))}.get(k, "") for k in keys] for r in rows]
    write_csv(folder / TABLE, [keys, *numbers])
    write_text(folder / MARKDOWN, markdown(result, remarks))
    write_json(folder / RESULT, result)


def _sample_rows(conditions: Sequence[Condition], results: Mapping[str, SampleResults], task: Scoring) -> list[list[Any]]:
    """Return one row per image: name, label if there is one, and value per condition, which is empty if unreadable."""
    labels: dict[str, Any] = {}
    columns: dict[str, dict[str, float]] = {}
    for condition in conditions:
        samples, result = condition.samples, results[condition.name]
        names = [samples.name(i) for i in result.ids.tolist()]
        labels |= {**dict.fromkeys([*names, *map(samples.name, result.unreadable)], ""), **labels}
        labels |= dict(zip(names, result.columns.get("labels", [])))
        columns[condition.name] = dict(zip(names, task.per_sample(result)))
    rows = [[name, label, *(column.get(name, "") for column in columns.values())] for name, label in labels.items()]
    return [["image", "label", *columns], *rows]


def read_per_sample(folder: Path) -> dict[str, dict[str, float]]:
    """Return ``{condition: {image: value}}`` of a folder that `write_result` filled.

    Raises:
        ValueError: The file is cut off, or is not ours.
    """
    file = folder / PER_SAMPLE
    try:
        with file.open(newline="", encoding="utf-8") as text:
            header, *rows = list(csv.reader(text)) or [[]]
        if header[:2] != ["image", "label"] or any(len(row) != len(header) for row in rows):
            raise ValueError("not one row per image, or not one column per condition")
        return {name: {row[0]: float(row[i]) for row in rows if row[i]} for i, name in enumerate(header) if i > 1}
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{file} must be a whole table of per-sample results: {error}. Run the evaluation again, which reuses finished "
            "results."
        ) from error


def read_draws(folder: Path) -> dict[tuple[str, str], list[float]]:
    """Return ``{(condition, metric): values}`` of a bootstrap; empty without ``bootstrap.csv``.

    Raises:
        ValueError: The file is cut off, or is not ours.
    """
    file = folder / BOOTSTRAP
    if not file.exists():
        return {}
    try:
        with file.open(newline="", encoding="utf-8") as text:
            return {(name, metric): [float(v) for v in values] for name, metric, *values in csv.reader(text)}
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{file} must be a table of numbers, got an error: {error}. Run the evaluation again, which reuses finished "
            "results."
        ) from error


def read_result(folder: Path) -> dict[str, Any]:
    """Return the content of ``result.json`` in a folder.

    Raises:
        ValueError: The file is cut off, or is not ours.
    """
    remedy = "Run the evaluation again, which reuses finished results."
    return read_json(folder / RESULT, ResultForm, remedy)


def sample_noun(result: Mapping[str, Any]) -> str:
    """Return what the samples of a result are called, such as ``images``."""
    return str(result.get("samples", "images"))


def markdown(result: Mapping[str, Any], remarks: Sequence[str] = ()) -> str:
    """Return the table of a result in Markdown, with its means, unreadable images and findings.

    Args:
        result: Content of ``result.json``.
        remarks: Paragraphs to add below the table.
    """
    attacked = any("eps" in r for r in result["conditions"])
    first, *others = (Metric(**metric) for metric in result["metrics"])
    samples = sample_noun(result)
    heads = ["condition", first.label, "95 % interval", *(metric.label for metric in others), samples]
    rows = []
    for r in result["conditions"]:
        low, high = interval(r, first.key)
        cells = [f"{r[first.key]:.2f}", f"{low:.2f} to {high:.2f}", *(metric.shown(r[metric.key]) for metric in others)]
        rows.append([markdown_text(r["name"]), *cells, r["n"], *([perturbation(r)] if attacked else [])])
    table = markdown_table(heads + ["largest perturbation"] * attacked, rows)
    parts = [table, *remarks, *means(result), *map(markdown_text, cautions(result))]
    if result["findings"]:
        findings = [f"- {f['check']}: {markdown_text(f['message'])}" for f in result["findings"]]
        parts.append("**Reasons to doubt these numbers:**\n\n" + "\n".join(findings))
    else:
        parts.append(f"Checks of {result['checked']['what']} on {result['checked']['images']} {samples}: no finding.")
    return "\n\n".join(parts) + "\n"


def interval(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """Return the 95 % interval of a metric: Wilson's for accuracies, that of a bootstrap for other metrics."""
    low, high = row["intervals"][metric]
    return low, high


def cautions(result: Mapping[str, Any]) -> list[str]:
    """Return the warnings that readers of these numbers need."""
    texts = []
    if any(r.get("space") == "normalized" for r in result["conditions"]):
        texts.append(
            "These attacks are on normalized tensors, against the model's own predictions, as in the code of the papers. They "
            "are not comparable with the usual attacks on images in [0, 1]. The table gives the radii in gray levels."
        )
    if result.get("generated") and "mce_alexnet" in result.get("summary", {}):
        texts.append(
            "These corruptions were generated without JPEG compression, but the errors of AlexNet are for the published JPEG "
            "files. Do not compare this mCE with published values."
        )
    if any("fooled_by" in r for r in result["conditions"]):
        texts.append("An ensemble counts the worst of its attacks per sample. It is not AutoAttack, because it has no FAB.")
    size = result["preprocessing"].get("input_size", IMAGENET_SIZE)
    if result.get("generated") and (size[1], size[2]) != IMAGENET_SIZE[1:]:
        texts.append(
            f"Corruptions use the constants of ImageNet-C, for images of 224 x 224. On {size[1]} x {size[2]} they are "
            "different corruptions, and stronger on small images. Do not compare with CIFAR-10-C, whose constants differ."
        )
    unreadable = sorted({name for r in result["conditions"] for name in r["unreadable"]})
    if unreadable:
        texts.append(
            f"{len(unreadable)} unreadable {sample_noun(result)} are left out: {', '.join(unreadable[:5])}"
            f"{', …' * (len(unreadable) > 5)}."
        )
    return texts


def summary_values(result: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Return the means over conditions and other summary numbers, ``{title: (value, unit)}``."""
    summary, metric = result.get("summary", {}), result["metrics"][0]
    key, title, unit = metric["key"], metric["title"], metric["unit"]
    names = {
        f"mean_{key}": (f"mean {title} of 15 corruptions and 5 severities", unit),
        "mean_error": ("mean error, unnormalized", "%"),
        "mce_alexnet": ("mCE, errors divided by AlexNet's", "%"),
        f"mean_{key}_extra": (f"mean {title} of the 4 extra corruptions", unit),
    }
    values = {name: (summary[key], unit) for key, (name, unit) in names.items() if key in summary}
    if "aupr" in summary:
        name = f"AUPR of detecting {summary['unknown']['n']} images of unknown classes by low confidence"
        values[name] = (summary["aupr"], "%")
    if "real" in summary:
        values[f"accuracy with ReaL labels on {summary['real']['n']} images"] = (summary["real"]["top1"], "%")
    return values


def means(result: Mapping[str, Any]) -> list[str]:
    """Return the means over conditions as one sentence in a list; empty without means."""
    text = "; ".join(f"{name}: {value:.2f} {unit}" for name, (value, unit) in summary_values(result).items())
    return [text[0].upper() + text[1:] + "."] if text else []


def eps_unit(norm: str, space: str) -> str:
    """Return the label of an axis of radii. L-infinity radii are shown times 255."""
    levels = "eps (L-infinity, gray levels)" if norm == "Linf" else "eps (L2, of images in [0, 1])"
    normalized = "eps (L-infinity) x 255" if norm == "Linf" else "eps (L2)"
    return levels if space == "images" else f"{normalized} of normalized tensors"


def perturbation(row: Mapping[str, Any]) -> str:
    """Return the largest perturbation: in gray levels for L-infinity, and also on images for normalized tensors."""
    if "largest_perturbation" not in row:
        return ""
    size, unit = row["largest_perturbation"], 255 if row["norm"] == "Linf" else 1
    text = f"{size * 255:.3f}/255" if row["norm"] == "Linf" else f"{size:.4f}"
    if row["space"] == "normalized":
        levels = ", ".join(f"{unit * eps:.3f}" for eps in dict.fromkeys(row["pixel_eps"]))
        text += f" of normalized tensors: by channel {levels} {'gray levels' if unit == 255 else 'on images'}"
    return text
