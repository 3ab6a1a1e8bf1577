"""Recipes are YAML files: found by name, changed by the command line, checked against the schema."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from .inheritance import EXTENDS, read_recipe, section_at, without_none
from .library import find_recipe
from .schema import Recipe
from .yaml_text import SHORT, read_yaml, write_section


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        name: As in `find_recipe`.
        overrides: ``section.key=value``, the value in YAML: ``comparison.seeds=[0,1]``, ``optimizer.lr=1e-3``.

    Raises:
        FileNotFoundError: No such recipe, or no such file that it extends.
        ValueError: What is wrong, by its place in the file; for an unknown key the nearest known one.
    """
    content, files = read_recipe(find_recipe(name))
    for override in overrides:
        _override(content, override)
    return check_recipe(content, _origin(files))


def recipe_text(name: str | Path) -> str:
    """Return a recipe as the text of one file, which needs no other file.

    Args:
        name: As in `find_recipe`.

    Returns:
        The file as it is. If it extends others: its header comment, then all values that it gives or inherits.

    Raises:
        FileNotFoundError: As `load_recipe`.
        ValueError: As `load_recipe`.
    """
    path = find_recipe(name)
    content, files = read_recipe(path)
    check_recipe(content, _origin(files))
    text = path.read_text(encoding="utf-8-sig")
    if len(files) == 1:
        return text
    header = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    sections = [write_section(key, value) for key, value in _in_order(content, Recipe).items()]
    return "\n".join([header + "\n"] * bool(header) + sections)


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


def _origin(files: Sequence[Path]) -> str:
    """Name the files of a recipe in errors: the mistake may stand in any of them."""
    return ", which extends ".join(map(str, files))


def _in_order(content: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """Sort the keys of a recipe as the schema has them; keys without a schema keep their order, and come last."""
    known = [key for key in section.model_fields if key in content]
    ordered = {key: content[key] for key in [*known, *content]}
    parts = {key: section_at(section, key) for key in known if isinstance(content[key], dict)}
    return ordered | {key: _in_order(content[key], part) for key, part in parts.items() if part}


def _override(content: dict[str, Any], override: str) -> None:
    place, separator, value = override.partition("=")
    if not separator:
        raise ValueError(f"Override {override!r} has no '='; write section.key=value.")
    if place == EXTENDS:
        raise ValueError(f"extends must be a key of a file, got the override {override!r}. Write a file with it.")
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
            section = without_none(section.model_fields[part].annotation)
        known = list(section.model_fields)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
        return f"{place}: unknown key; {hint}"
    if error["type"] in ("missing", "value_error"):
        return f"{place}: {message}" if place else message
    return f"{place}: {message} (given: {SHORT.repr(error['input'])}){_remedy(error['type'], error['input'])}"


def _remedy(kind: str, given: Any) -> str:
    """What to write instead, where YAML took a value for another type than was meant."""
    if kind == "string_type" and isinstance(given, bool | int | float):
        quoted = f"'{str(given).lower()}'"
        return f'; text that looks like a number or a boolean needs quotes: {quoted}, in a shell "{quoted}"'
    return "; write true or false" if kind == "bool_type" and isinstance(given, str) else ""
