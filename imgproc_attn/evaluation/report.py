"""Report of several results on one page: models side by side, with paired differences on the same samples."""

import base64
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure

from .._version import __version__
from ..diagnostics import draw_curves
from ..utils.io import check_output_file, write_text
from ..utils.serialization import changes, flat
from .conditions import CLEAN
from .results import (
    BOOTSTRAP,
    CURVES,
    PER_SAMPLE,
    RESULT,
    cautions,
    eps_unit,
    interval,
    means,
    perturbation,
    read_draws,
    read_per_sample,
    read_result,
    sample_noun,
    summary_values,
)
from .scoring import Metric
from .statistics import mean_and_std, normal_interval, paired_difference, paired_interval

__all__ = ["Column", "Entry", "ModelRun", "find_entries", "group", "summary_table", "tables", "write_report"]

PNG = b"\x89PNG\r\n\x1a\n"  # Every PNG file begins with these bytes.
GENERATOR = "imgproc-attn report"  # Identifies pages that may be overwritten.
REMEDY = "Run the evaluation again, which reuses finished results."


class Column(NamedTuple):
    """Key of numbers that are comparable, and stand side by side in a table.

    Attributes:
        condition: Name of the condition.
        metric: Key of the metric.
        protocol: Attack or corruption, images, dtype and classes, as JSON.
    """

    condition: str
    metric: str
    protocol: str


@dataclass
class Entry:
    """Content of a folder of results.

    Attributes:
        folder: Path of the folder.
        result: Content of ``result.json``.
        per_sample: Content of ``per_sample.csv``: ``{condition: {image: value}}``.
        draws: Bootstrap values ``{(condition, metric): values}`` of metrics that are not means over images.
    """

    folder: Path
    result: dict[str, Any]
    per_sample: dict[str, dict[str, float]]
    draws: dict[tuple[str, str], list[float]]

    @cached_property
    def rows(self) -> dict[Column, dict[str, Any]]:
        """Rows of numbers: ``{column: row}``."""
        rows, metrics = self.result["conditions"], self.metrics
        return {Column(row["name"], metric, self._protocol(row)): row for row in rows for metric in metrics}

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Metrics by key, with ``title`` and ``unit``."""
        return {metric["key"]: metric for metric in self.result["metrics"]}

    def _protocol(self, row: Mapping[str, Any]) -> str:
        common: dict[str, Any] = {key: self.result[key] for key in ("dtype", "classes", "short_side") if key in self.result}
        # The same eps on normalized tensors differs on images between models.
        common |= {"pixel_eps": row["pixel_eps"]} if row.get("space") == "normalized" else {}
        return json.dumps({**common, **{key: row[key] for key in ("scorer", "corruption", "images")}}, sort_keys=True)

    @cached_property
    def summary(self) -> dict[tuple[str, str], float]:
        """Means over conditions: ``{(name, protocol): mean}``."""
        protocol = json.dumps([column.protocol for column in self.rows])
        return {(name, protocol): value for name, (value, _) in summary_values(self.result).items()}

    @property
    def model(self) -> str:
        """Key that is equal for equal models: weights, modules, options and preprocessing, without the size of the images."""
        preprocessing = {key: value for key, value in self.result["preprocessing"].items() if key != "short_side"}
        return json.dumps([preprocessing, *(self.result[key] for key in ("weights_sha256", "architecture_sha256", "options"))])


@dataclass
class ModelRun:
    """All results of one set of weights.

    Attributes:
        seed: Seed of the training; None if unknown.
        entries: Results of the weights.
    """

    seed: int | None
    entries: list[Entry]

    def row(self, column: Column) -> dict[str, Any] | None:
        """Return the row of a column, or None if no result has this column."""
        return next((entry.rows[column] for entry in self.entries if column in entry.rows), None)

    def per_sample(self, column: Column) -> dict[str, float]:
        """Return ``{image: value}`` of a column."""
        return next(entry.per_sample[column.condition] for entry in self.entries if column in entry.rows)

    def summary(self, key: tuple[str, str]) -> float | None:
        """Return the mean over conditions for ``key`` (name, protocol), or None if no result has this key."""
        return next((entry.summary[key] for entry in self.entries if key in entry.summary), None)

    def draws(self, column: Column) -> list[float]:
        """Return the bootstrap values of a column. The list is empty for metrics that are means over images."""
        key = (column.condition, column.metric)
        return next(entry.draws.get(key, []) for entry in self.entries if column in entry.rows)


def find_entries(folders: Sequence[Path]) -> list[Entry]:
    """Return all results in the folders and in folders below them.

    Raises:
        FileNotFoundError: A folder has no results.
        ValueError: Results are damaged.
    """
    entries: dict[Path, Entry] = {}
    for folder in folders:
        with_results = sorted(file.parent for file in folder.rglob(RESULT) if (file.parent / PER_SAMPLE).is_file())
        if not with_results:
            raise FileNotFoundError(
                f"{folder} must hold the results of evaluate, attack, corrupt, shift or compare, got no {RESULT}. Check "
                "the path."
            )
        entries |= {path: _read(path) for path in with_results if path not in entries}
    return list(entries.values())


def _read(folder: Path) -> Entry:
    entry = Entry(folder, read_result(folder), read_per_sample(folder), read_draws(folder))
    for column, row in entry.rows.items():
        if entry.result["bootstrap"] and not entry.draws.get((row["name"], column.metric)):
            raise ValueError(f"{folder / BOOTSTRAP} must hold values of {row['name']}, got none. {REMEDY}")
        values = entry.per_sample.get(row["name"], {})
        if len(values) != row["n"] or ("correct" in row and sum(values.values()) != row["correct"]):
            raise ValueError(
                f"{folder}: {RESULT} and {PER_SAMPLE} must be of one evaluation, got different numbers for {row['name']}. "
                f"{REMEDY}"
            )
    return entry


def group(entries: Sequence[Entry]) -> dict[str, list[ModelRun]]:
    """Return ``{label: runs}``, with one run per set of weights, in the order of their training seeds.

    Models with one label are trainings of one model with different seeds. If their seeds are unknown or equal, each becomes a
    model of its own, with its folder in the label.
    """
    labels: dict[str, dict[str, ModelRun]] = {}
    for entry in entries:
        runs = labels.setdefault(entry.result["label"], {})
        runs.setdefault(entry.model, ModelRun(entry.result["training_seed"], [])).entries.append(entry)
    models: dict[str, list[ModelRun]] = {}
    for label, by_model in labels.items():
        seeds = [run.seed for run in by_model.values()]
        if len(seeds) == 1 or (None not in seeds and len(set(seeds)) == len(seeds)):
            models[label] = sorted(by_model.values(), key=lambda run: run.seed or 0)
        else:
            models |= {f"{label} ({run.entries[0].folder})": [run] for run in by_model.values()}
    return models


def values(runs: Sequence[ModelRun], column: Column) -> list[float]:
    """Return the values of a column, for the runs that have it."""
    return [row[column.metric] for run in runs if (row := run.row(column)) is not None]


def cell(runs: Sequence[ModelRun], column: Column) -> str:
    """Return the text of a cell: value and 95 % interval for one run, mean and standard deviation over seeds for several."""
    numbers = values(runs, column)
    if not numbers:
        return ""
    if len(numbers) == 1:
        row = next(row for run in runs if (row := run.row(column)) is not None)
        low, high = interval(row, column.metric)
        digits = _digits(runs, column)
        return f"{numbers[0]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
    return _mean_of(numbers, "", _digits(runs, column))


def difference(runs: Sequence[ModelRun], baseline: Sequence[ModelRun], column: Column) -> str:
    """Return the text of the difference to the baseline.

    It is paired by sample for one run of each model, by training seed for several, and empty if nothing can be paired.
    """
    ours, theirs = ([run for run in side if run.row(column) is not None] for side in (runs, baseline))
    if len(ours) == len(theirs) == 1:
        samples = [side[0].per_sample(column) for side in (ours, theirs)]
        draws = [side[0].draws(column) for side in (ours, theirs)]
        if not any(draws):
            return _by_sample(*samples)
        mean = values(ours, column)[0] - values(theirs, column)[0]
        return _by_draw(mean, _digits(ours, column), *draws) if samples[0].keys() == samples[1].keys() else ""
    if not ours or [run.seed for run in ours] != [run.seed for run in theirs]:
        return ""
    paired = paired_difference(values(ours, column), values(theirs, column))
    digits = _digits(ours, column)
    return f"{paired.mean:+.{digits}f} ± {paired.std:.{digits}f}, n = {len(ours)}"


def _digits(runs: Sequence[ModelRun], column: Column) -> int:
    """Return the number of decimals of the metric of a column."""
    metrics = (entry.metrics for run in runs for entry in run.entries)
    return next((int(known[column.metric].get("digits", 1)) for known in metrics if column.metric in known), 1)


def _by_sample(ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    """Return the mean difference on common samples with its 95 % interval (Newcombe's for shares, else normal)."""
    common = [name for name in ours if name in theirs]
    if not common:
        return ""
    if not {ours[name] for name in common} | {theirs[name] for name in common} <= {0.0, 1.0}:
        differences = [ours[name] - theirs[name] for name in common]
        mean, std = mean_and_std(differences)
        half = 1.96 * std / len(common) ** 0.5
        return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"
    pairs = Counter((ours[name] > 0, theirs[name] > 0) for name in common)
    mean = 100 * (pairs[True, False] - pairs[False, True]) / pairs.total()
    low, high = paired_interval(pairs[True, True], pairs[True, False], pairs[False, True], pairs[False, False])
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _by_draw(mean: float, digits: int, ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the text of a difference in points with its 95 % interval from paired bootstrap draws."""
    low, high = normal_interval(mean, [a - b for a, b in zip(ours, theirs)])
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def tables(models: Mapping[str, list[ModelRun]]) -> dict[str, list[dict[str, Any]]]:
    """Return ``{kind: rows}``, with one row of cells and differences per condition."""
    baseline, *others = models
    every = [entry for runs in models.values() for run in runs for entry in run.entries]
    titles = {key: metric["title"] for entry in every for key, metric in entry.metrics.items()}
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for kind, columns in _columns(models).items():
        for column in columns:
            rows = [row for runs in models.values() for run in runs if (row := run.row(column)) is not None]
            by_kind.setdefault(kind, []).append(
                {
                    "name": column.condition + _apart(column, columns),
                    "metric": titles[column.metric],
                    "protocol": column.protocol,
                    "n": max(row["n"] for row in rows),
                    "perturbation": perturbation(max(rows, key=lambda row: row.get("largest_perturbation", 0))),
                    "cells": [cell(runs, column) for runs in models.values()],
                    "differences": [difference(models[label], models[baseline], column) for label in others],
                }
            )
    return by_kind


def summary_table(models: Mapping[str, list[ModelRun]]) -> list[dict[str, Any]]:
    """Return one row per mean over conditions, with cells and differences that are paired by training seed."""
    every = [entry for runs in models.values() for run in runs for entry in run.entries]
    rows = []
    for key in dict.fromkeys(key for entry in every for key in entry.summary):
        by_seed = [{run.seed: v for run in runs if (v := run.summary(key)) is not None} for runs in models.values()]
        baseline, *others = by_seed
        paired = [numbers if numbers and numbers.keys() == baseline.keys() else {} for numbers in others]
        differences = [[value - baseline[seed] for seed, value in numbers.items()] for numbers in paired]
        cells = [_mean_of(list(numbers.values()), "") for numbers in by_seed]
        rows.append({"name": key[0], "cells": cells, "differences": [_mean_of(numbers, "+") for numbers in differences]})
    return rows


def _mean_of(numbers: Sequence[float], sign: str, digits: int = 1) -> str:
    """Return the text of the mean and standard deviation over seeds; empty without numbers."""
    if len(numbers) < 2:
        return "".join(f"{value:{sign}.{digits}f}" for value in numbers)
    mean, std = mean_and_std(numbers)
    return f"{mean:{sign}.{digits}f} ± {std:.{digits}f}, n = {len(numbers)}"


def _apart(column: Column, columns: Sequence[Column]) -> str:
    """Return the settings by which a condition differs from others with its name; empty if there are no others."""
    others = [json.loads(c.protocol) for c in columns if c.condition == column.condition and c.protocol != column.protocol]
    own = json.loads(column.protocol)
    keys = dict.fromkeys(key for other in others for key in changes(other, own))
    settings = [f"{key.rpartition('.')[2]}={str(flat(own).get(key, '-'))[:12]}" for key in keys]
    return f" ({', '.join(settings)})" if settings else ""


def _columns(models: Mapping[str, list[ModelRun]]) -> dict[str, list[Column]]:
    """Return ``{kind: columns}`` in the order of the results."""
    by_kind: dict[str, dict[Column, None]] = {}
    for entry in (entry for runs in models.values() for run in runs for entry in run.entries):
        by_kind.setdefault(entry.result["kind"], {}).update(dict.fromkeys(entry.rows))
    return {kind: list(columns) for kind, columns in by_kind.items()}


def _noun(entries: Iterable[Entry]) -> str:
    """Return what the samples of all results are called, or ``samples`` if they have different names."""
    first, *others = {sample_noun(entry.result) for entry in entries}
    return "samples" if others else first


def _attacked(models: Mapping[str, list[ModelRun]]) -> list[Column]:
    """Return the columns of attacks and of the clean images in the same results."""
    by_kind = _columns(models)
    return [column for kind in ("attack", "compare") for column in by_kind.get(kind, [])]


def _curves(models: Mapping[str, list[ModelRun]]) -> list[Figure]:
    """Return one figure of a metric over eps per metric; empty without attacks."""
    entries = [entry for runs in models.values() for run in runs for entry in run.entries]
    metrics = {next(iter(entry.metrics)): next(iter(entry.metrics.values())) for entry in entries}
    labels = {key: Metric(**metric).label for key, metric in metrics.items()}
    return [figure for key, label in labels.items() if (figure := _curves_of(models, key, label)) is not None]


def _curves_of(models: Mapping[str, list[ModelRun]], metric: str, label: str) -> Figure | None:
    """Return a figure with one panel per attack, with its settings and images; None without attacks."""
    panels: dict[tuple[str, str, str], dict[str, dict[float, list[float]]]] = {}
    columns = [column for column in _attacked(models) if column.metric == metric]
    cleans = [column for column in columns if column.condition == CLEAN]
    for column in columns:
        protocol = json.loads(column.protocol)
        clean = next((c for c in cleans if _as_looked_at(json.loads(c.protocol)) == _as_looked_at(protocol)), column)
        for model, runs in models.items():
            whole = [run for run in runs if run.row(column) is not None and run.row(clean) is not None]
            row = whole[0].row(column) if whole else None
            if row is None or "eps" not in row:  # Corruptions have no curves.
                continue
            unit = eps_unit(row["norm"], row["space"])
            panel = panels.setdefault((row["family"], unit, json.dumps(_at_any_radius(protocol, row["eps"]))), {})
            points = panel.setdefault(model, {0.0: values(whole, clean)})
            if len(points[0.0]) == len(whole):
                points[row["strength"]] = values(whole, column)
    families = Counter(family for family, *_ in panels)
    titles = [family if families[family] == 1 else f"{family}, protocol {i + 1}" for i, (family, *_) in enumerate(panels)]
    units = {title: unit for title, (_, unit, _) in zip(titles, panels)}
    return draw_curves(dict(zip(titles, panels.values())), units, label)[0] if panels else None


def _as_looked_at(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return a protocol in which the scorer is reduced to its sliding windows."""
    scorer, rest = protocol["scorer"], {key: value for key, value in protocol.items() if key != "pixel_eps"}
    task = scorer.get("task") if isinstance(scorer, Mapping) else None
    return {**rest, "scorer": task.get("windows") if isinstance(task, Mapping) else None}


def _at_any_radius(settings: Any, eps: float) -> Any:
    """Return settings without the radius, with step sizes and radii on images in units of it."""
    if isinstance(settings, list):
        return [_at_any_radius(value, eps) for value in settings]
    if not isinstance(settings, dict):
        return settings
    relative = {key: _at_any_radius(value, eps) for key, value in settings.items() if key != "eps"}
    if relative.get("step_size"):
        relative["step_size"] = round(relative["step_size"] / eps, 6)
    if "pixel_eps" in relative:
        relative["pixel_eps"] = [round(value / eps, 6) for value in relative["pixel_eps"]]
    return relative


def _embedded(figure: Path | Figure) -> str:
    """Return a figure as a data URL, so that the page is one file."""
    if isinstance(figure, Figure):
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120)
        data = content.getvalue()
    else:
        data = figure.read_bytes()
        if not data.startswith(PNG):
            raise ValueError(f"{figure} must be a PNG image, got other content. {REMEDY}")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _figure_file(folder: Path, name: str) -> Path:
    """Return the path of a figure that the evaluation wrote into its folder.

    Raises:
        ValueError: ``result.json``, which may come from another person, names another file of this machine.
    """
    file = (folder / name).resolve()
    if file.parent != folder.resolve() or file.suffix != ".png" or not file.is_file():
        raise ValueError(f"{folder / RESULT}: figures must be PNG files in its own folder, got {name!r}. {REMEDY}")
    return file


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the report as one HTML page.

    Args:
        folders: Folders of results, or folders above them. The first model is the baseline of the differences.
        output: Path of the page. Its folder is created if it does not exist.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: A folder has no results.
        FileExistsError: ``output`` is a file that this function did not write.
        ValueError: Results are damaged.
    """
    check_output_file(output, GENERATOR)
    entries = find_entries(folders)
    models = group(entries)
    by_kind = tables(models)
    template = jinja2.Template(
        files("imgproc_attn.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = template.render(
        generator=GENERATOR,
        version=__version__,
        labels=list(models),
        tables=by_kind,
        noun=_noun(entries),
        nouns={kind: _noun(entry for entry in entries if entry.result["kind"] == kind) for kind in by_kind},
        summary=summary_table(models),
        curves=[_embedded(figure) for figure in _curves(models)],
        entries=[
            {
                "folder": entry.folder.name,
                "result": entry.result,
                "samples": sample_noun(entry.result),
                "means": [*means(entry.result), *cautions(entry.result)],
                "figures": {
                    name: _embedded(_figure_file(entry.folder, name))
                    for name in entry.result["figures"]
                    if name != CURVES  # The curves of all models stand above.
                },
            }
            for entry in entries
        ],
    )
    write_text(output, page)
    return output
