"""Recipes are YAML files: found by name, changed by the command line, checked against the schema."""

import difflib
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .library import find_recipe
from .schema import Recipe
from .yaml_text import read_yaml, read_yaml_file

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120  # of a value that an error shows


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name: As in `find_recipe`.
        overrides: ``section.key=value``, the value in YAML: ``comparison.seeds=[0,1]``, ``optimiser.lr=1e-3``.

    Raises:
        FileNotFoundError: No such recipe.
        ValueError: What is wrong, by its place in the file; for an unknown key the nearest known one.
    """
    path = find_recipe(name)
    content = read_yaml_file(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, but a recipe is a mapping of sections.")
    for override in overrides:
        _override(content, override)
    return check_recipe(content, str(path))


def check_recipe(content: Mapping[str, Any], origin: str) -> Recipe:
    """A recipe from what a file holds.

    Raises:
        ValueError: As `load_recipe`.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = [_problem(e) for e in error.errors()]
        told = problems[0] if len(problems) == 1 else "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"{origin}: {told}") from None


def _override(content: dict[str, Any], override: str) -> None:
    place, separator, value = override.partition("=")
    if not separator:
        raise ValueError(f"Override {override!r} has no '='; write section.key=value.")
    *sections, key = place.split(".")
    for section in sections:
        if content.get(section) is None:
            content[section] = {}
        content = content[section]
        if not isinstance(content, dict):
            raise ValueError(f"Override {override!r}: {section!r} is not a section.")
    content[key] = value_of(value, override)


def value_of(text: str, whole: str) -> Any:
    """A value of the command line, as a recipe has it; of nothing, an empty text.

    Raises:
        ValueError: It is not YAML; ``whole`` is what it is a part of.
    """
    return read_yaml(text, f"{whole!r}: the value is not YAML") if text else ""


def _problem(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in error["loc"][:-1]:
            section = _without_none(section.model_fields[part].annotation)
        known = list(section.model_fields)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
        return f"{place}: unknown key; {hint}"
    if error["type"] in ("missing", "value_error"):
        return f"{place}: {message}" if place else message
    return f"{place}: {message} (given: {_SHORT.repr(error['input'])}){_remedy(error['type'], error['input'])}"


def _remedy(kind: str, given: Any) -> str:
    """What to write instead, where YAML took a value for another type than was meant."""
    if kind == "string_type" and isinstance(given, bool | int | float):
        quoted = f"'{str(given).lower()}'"
        return f'; text that looks like a number or a boolean needs quotes: {quoted}, in a shell "{quoted}"'
    return "; write true or false" if kind == "bool_type" and isinstance(given, str) else ""


def _without_none(annotation: Any) -> Any:
    """``X`` of ``X | None``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(annotation) if a is not type(None))
    return annotation
