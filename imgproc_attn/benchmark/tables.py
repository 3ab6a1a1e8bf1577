"""Tables of results in Markdown."""

from collections.abc import Callable, Mapping
from typing import Any

from ..utils.markdown import markdown_table

__all__ = ["CORRUPTION_COLUMNS", "GENERATION_COLUMNS", "MEMORY_COLUMNS", "NAME_COLUMNS", "TIME_COLUMNS", "Columns", "markdown"]

# Functions from a row of results to the text of a cell, by title of the column.
Columns = Mapping[str, Callable[[dict[str, Any]], str]]


def markdown(title: str, rows: list[dict[str, Any]], columns: Columns) -> str:
    """Return rows as a Markdown table below a title."""
    table = markdown_table(list(columns), ([show(row) for show in columns.values()] for row in rows))
    return f"### {title}\n\n{table}"


TIME_COLUMNS: Columns = {
    "tokens": lambda r: f"{r['tokens']}",
    "mode": lambda r: r["mode"],
    "name": lambda r: r["name"],
    "median / ms": lambda r: f"{1e3 * r['median_s']:.2f}",
    "quartiles / ms": lambda r: " to ".join(f"{1e3 * q:.2f}" for q in r["quartiles_s"]),
    "ratio": lambda r: f"{r['ratio']:.2f}",
}
NAME_COLUMNS: Columns = {name: show for name, show in TIME_COLUMNS.items() if name not in ("tokens", "mode")}
CORRUPTION_COLUMNS: Columns = {**NAME_COLUMNS, "images per second": lambda r: f"{r['images_per_second']:.0f}"}
GENERATION_COLUMNS: Columns = {
    "tokens": TIME_COLUMNS["tokens"],
    **NAME_COLUMNS,
    "without cache / ms": lambda r: f"{1e3 * r['uncached_median_s']:.2f}",
}
MEMORY_COLUMNS: Columns = {
    "tokens": lambda r: f"{r['tokens']}",
    "name": lambda r: r["name"],
    "peak / MB": lambda r: f"{r['peak_bytes'] / 1e6:.0f}",
    "ratio": lambda r: f"{r['ratio']:.2f}",
}
