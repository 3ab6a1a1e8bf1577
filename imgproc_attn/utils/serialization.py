"""JSON records of settings, and the differences between two records."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

__all__ = ["SEEDS", "changes", "describe", "flat", "strength_text"]

SEEDS = 2**32  # Seeds must be below this limit of scikit-learn and NumPy.


def strength_text(value: float) -> str:
    """Return a strength as decimal text. Below 0.25, return a fraction of 255 if that is shorter.

    Example:
        >>> strength_text(0.05), strength_text(4 / 255)
        ('0.05', '4/255')
    """
    return min(f"{value:g}", f"{value * 255:g}/255", key=len) if value < 0.25 else f"{value:g}"


def describe(thing: Any) -> Any:
    """Return the settings of an object as JSON-serializable values.

    A dataclass becomes a dictionary of its fields and the name of its ``class``. A dataclass without fields becomes that name.
    Paths and fields with the metadata ``setting: False`` are omitted, because they do not affect results.
    """
    if is_dataclass(thing) and not isinstance(thing, type):
        values = {field.name: getattr(thing, field.name) for field in fields(thing) if field.metadata.get("setting", True)}
        kept = {name: describe(value) for name, value in values.items() if not isinstance(value, Path)}
        return {"class": type(thing).__name__, **kept} if kept else type(thing).__name__
    if isinstance(thing, Mapping):
        return {str(key): describe(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [describe(value) for value in thing]
    return thing


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one dictionary, with keys joined by dots.

    Example:
        >>> flat({"run": {"seed": 0}, "title": "a"})
        {'run.seed': 0, 'title': 'a'}
    """
    result: dict[str, Any] = {}
    for key, value in content.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the differing values of two nested records, ``{key: "old -> new"}``.

    Example:
        >>> changes({"run": {"seed": 0}}, {"run": {"seed": 1}})
        {'run.seed': '0 -> 1'}
    """
    before, now = flat(old), flat(new)
    keys = [*now, *(key for key in before if key not in now)]
    return {
        key: f"{before.get(key, 'not set')} -> {now.get(key, 'not set')}" for key in keys if before.get(key) != now.get(key)
    }
