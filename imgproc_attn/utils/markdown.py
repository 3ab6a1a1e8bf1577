"""Markdown tables, and escaping of text."""

import re
from collections.abc import Iterable, Sequence

from .io import printable

__all__ = ["markdown_table", "markdown_text"]


def markdown_text(text: str) -> str:
    r"""Return ``text`` on one line, escaped for Markdown. Names of files, classes and models may hold any character.

    Example:
        >>> print(markdown_text("a|b"))
        a\|b
    """
    line = "".join(c if c.isprintable() else " " for c in printable(text))
    return re.sub(r"[\\`*|<]|\](?=[(\[:])", r"\\\g<0>", line)


def markdown_table(heads: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table. Escape cells that hold names with `markdown_text`.

    Example:
        >>> print(markdown_table(["model", "accuracy / %"], [["plain", 67.4]]))
        | model | accuracy / % |
        |---|---|
        | plain | 67.4 |
    """
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
