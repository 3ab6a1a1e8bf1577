"""Markdown: text that is shown as it is, and tables."""

import re
from collections.abc import Iterable, Sequence

from .io import printable


def markdown_text(text: str) -> str:
    """Return ``text`` as Markdown shows it, on one line: names of files, classes and models may hold anything."""
    line = "".join(c if c.isprintable() else " " for c in printable(text))
    return re.sub(r"[\\`*|<]|\](?=[(\[:])", r"\\\g<0>", line)


def markdown_table(heads: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table; cells that hold names need `markdown_text`.

    Example:
        >>> print(markdown_table(["model", "accuracy / %"], [["plain", 67.4]]))
        | model | accuracy / % |
        |---|---|
        | plain | 67.4 |
    """
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
