"""One page of many results: models side by side, paired where samples are the same."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure

from .. import __version__
from ..diagnostics import draw_curves
from ..files import write_text
from .results import FLAGS, RESULT, means, read_flags, read_result
from .statistics import mean_and_std, paired_difference


class Column(NamedTuple):
    """What numbers must share to stand side by side: the condition, and the images."""

    condition: str
    images: str


@dataclass
class Entry:
    """A folder of results.

    Attributes:
        folder: The folder.
        result: Its ``result.json``.
        flags: Its ``flags.csv``: ``{condition: {image: 1 or 0}}``.
    """

    folder: Path
    result: dict[str, Any]
    flags: dict[str, dict[str, int]]

    @property
    def rows(self) -> dict[Column, dict[str, Any]]:
        """The numbers, by what they may be compared on."""
        return {Column(row["name"], self.result["names_sha256"]): row for row in self.result["conditions"]}


@dataclass
class Run:
    """Everything known of one set of weights.

    Attributes:
        seed: Of its training; None if unknown.
        entries: Its results.
    """

    seed: int | None
    entries: list[Entry]

    def row(self, column: Column) -> dict[str, Any] | None:
        """The numbers of a column."""
        return next((entry.rows[column] for entry in self.entries if column in entry.rows), None)

    def flags(self, column: Column) -> dict[str, int]:
        """``{image: 1 or 0}`` of a column."""
        return next(entry.flags[column.condition] for entry in self.entries if column in entry.rows)


def find_entries(folders: Sequence[Path]) -> list[Entry]:
    """All results in the folders, and in folders below them.

    Raises:
        FileNotFoundError: A folder without any.
        ValueError: A damaged one.
    """
    found: dict[Path, Entry] = {}
    for folder in folders:
        places = sorted(file.parent for file in folder.rglob(RESULT) if (file.parent / FLAGS).is_file())
        if not places:
            raise FileNotFoundError(f"{folder} holds no {RESULT} of attack, corrupt or shift, and neither do folders below it.")
        found |= {place: Entry(place, read_result(place), read_flags(place)) for place in places if place not in found}
    return list(found.values())


def group(entries: Sequence[Entry]) -> dict[str, list[Run]]:
    """``{label: runs}``, a run a set of weights, in the order of their training seeds."""
    models: dict[str, dict[str, Run]] = {}
    for entry in entries:
        runs = models.setdefault(entry.result["label"], {})
        runs.setdefault(entry.result["weights_sha256"], Run(entry.result["training_seed"], [])).entries.append(entry)
    return {label: sorted(runs.values(), key=lambda run: run.seed or 0) for label, runs in models.items()}


def accuracies(runs: Sequence[Run], column: Column) -> list[float]:
    """Of the runs that have the column."""
    return [row["accuracy"] for run in runs if (row := run.row(column)) is not None]


def cell(runs: Sequence[Run], column: Column) -> str:
    """An accuracy: with its interval for one run, with the standard deviation over seeds for several."""
    values = accuracies(runs, column)
    if not values:
        return ""
    if len(values) == 1:
        low, high = next(row for run in runs if (row := run.row(column)) is not None)["interval"]
        return f"{values[0]:.1f} ({low:.1f} to {high:.1f})"
    mean, std = mean_and_std(values)
    return f"{mean:.1f} ± {std:.1f}"


def difference(runs: Sequence[Run], baseline: Sequence[Run], column: Column) -> str:
    """To the baseline: paired by sample for one run of each, by training seed for several; empty where nothing pairs."""
    ours, theirs = ([run for run in side if run.row(column) is not None] for side in (runs, baseline))
    if len(ours) == len(theirs) == 1:
        return _by_sample(ours[0].flags(column), theirs[0].flags(column))
    seeds = [run.seed for run in ours]
    if not ours or seeds != [run.seed for run in theirs] or None in seeds or len(set(seeds)) < len(seeds):
        return ""
    found = paired_difference(accuracies(ours, column), accuracies(theirs, column))
    return f"{found.mean:+.1f} ± {found.std:.1f}, n = {len(ours)}"


def _by_sample(ours: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    """Mean difference in points, and its 95 % interval."""
    pairs = [ours[name] - theirs[name] for name in ours if name in theirs]
    if not pairs:
        return ""
    mean, std = mean_and_std([100.0 * pair for pair in pairs])
    half = 0.0 if math.isnan(std) else 1.96 * std / len(pairs) ** 0.5
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def tables(models: Mapping[str, list[Run]]) -> dict[str, list[dict[str, Any]]]:
    """``{kind: rows}``: of each condition its cells and differences, by model."""
    baseline, *others = models
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, column in _columns(models):
        row = {
            "name": column.condition,
            "images": column.images[:8],
            "n": max(row["n"] for runs in models.values() for run in runs if (row := run.row(column)) is not None),
            "cells": [cell(runs, column) for runs in models.values()],
            "differences": [difference(models[label], models[baseline], column) for label in others],
        }
        found.setdefault(kind, []).append(row)
    return found


def _columns(models: Mapping[str, list[Run]]) -> list[tuple[str, Column]]:
    entries = [entry for runs in models.values() for run in runs for entry in run.entries]
    return list(dict.fromkeys((entry.result["kind"], column) for entry in entries for column in entry.rows))


def _curves(models: Mapping[str, list[Run]]) -> Figure | None:
    """Accuracy over eps of all models that were attacked on the same images."""
    curves: dict[str, dict[str, dict[float, list[float]]]] = {}
    units: dict[str, str] = {}
    for kind, column in _columns(models):
        for label, runs in models.items():
            row = next((row for run in runs if (row := run.row(column)) is not None), None)
            if kind != "attack" or row is None or "eps" not in row:
                continue
            name, grey = column.condition.rpartition(" ")[0], row["norm"] == "Linf"
            units[name] = f"eps {'* 255 ' if grey else ''}({row['norm']}, {row['space']})"
            points = curves.setdefault(name, {}).setdefault(label, {})
            points[0.0] = accuracies(runs, Column("clean", column.images))
            points[row["eps"] * 255 if grey else row["eps"]] = accuracies(runs, column)
    whole = {
        name: {label: points for label, points in by_label.items() if len({len(values) for values in points.values()}) == 1}
        for name, by_label in curves.items()
    }
    whole = {name: by_label for name, by_label in whole.items() if by_label}
    return draw_curves(whole, units) if whole else None


def _embedded(picture: Path | Figure) -> str:
    """A picture as part of the page."""
    if isinstance(picture, Figure):
        content = io.BytesIO()
        picture.savefig(content, format="png", dpi=120)
        data = content.getvalue()
    else:
        data = picture.read_bytes()
    return "data:image/png;base64," + base64.b64encode(data).decode()


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Write the page.

    Args:
        folders: Of results, or of folders of results; the first model found is what the others are compared with.
        output: The page; its folder is made if need be.

    Raises:
        FileNotFoundError: A folder without results.
        ValueError: Damaged results.
    """
    entries = find_entries(folders)
    models = group(entries)
    curves = _curves(models)
    template = jinja2.Template(
        files("imgproc_attn.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = template.render(
        version=__version__,
        labels=list(models),
        tables=tables(models),
        curves=None if curves is None else _embedded(curves),
        entries=[
            {
                "folder": entry.folder.name,
                "result": entry.result,
                "means": means(entry.result.get("summary", {})),
                "pictures": {name: _embedded(entry.folder / name) for name in entry.result["pictures"]},
            }
            for entry in entries
        ],
    )
    write_text(output, page)
    return output
