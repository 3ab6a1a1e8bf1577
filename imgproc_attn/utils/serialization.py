"""What was done, as JSON takes it, and what differs between two such records."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

SEEDS = 2**32  # seeds are below it: scikit-learn and NumPy take no larger ones


def strength_text(value: float) -> str:
    """As people write it: 0.05, or ``4/255`` where that is shorter, of small strengths."""
    return min(f"{value:g}", f"{value * 255:g}/255", key=len) if value < 0.25 else f"{value:g}"


def describe(thing: Any) -> Any:
    """Settings of an object: a dataclass as its fields beside the name of its ``class``, one without fields as that name.

    Paths are left out, and fields with the metadata ``setting: False``: where files lie, how much memory is used.
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
    """Nested mappings as one, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """``{key: "old -> new"}`` of the nested records' values that differ."""
    before, now = flat(old), flat(new)
    keys = [*now, *(key for key in before if key not in now)]
    return {
        key: f"{before.get(key, 'not set')} -> {now.get(key, 'not set')}" for key in keys if before.get(key) != now.get(key)
    }
