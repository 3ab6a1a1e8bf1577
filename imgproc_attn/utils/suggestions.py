"""Suggestions for names that are not known."""

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """Return a sentence that suggests the known name which is most similar to ``name``.

    Args:
        name: Name that is not known.
        known: Known names.
        otherwise: Sentence for the case that no known name is similar.

    Example:
        >>> did_you_mean("gausian_range", ["dot_product", "gaussian_range"])
        "Did you mean 'gaussian_range'?"
        >>> did_you_mean("window", ["dot_product", "gaussian_range"], otherwise="Give one of them.")
        'Give one of them.'
    """
    near = difflib.get_close_matches(str(name), list(dict.fromkeys(known)), n=1)
    return f"Did you mean {near[0]!r}?" if near else otherwise
