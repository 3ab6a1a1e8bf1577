"""Recipes are YAML files: found by name, changed by the command line, checked against the schema."""

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from .schema import Recipe


def recipe_folders() -> list[Path]:
    """Where recipes are looked for: inside the installed package, and beside it in a checkout."""
    package = Path(__file__).parents[1]
    return [package / "recipes", package.parent / "recipes"]


def list_recipes() -> dict[str, Path]:
    """The recipes that come with the package, ``{name: file}``, names as ``imagenet/nlm_vit_tiny_300e``."""
    known: dict[str, Path] = {}
    for folder in recipe_folders():
        for file in sorted(folder.rglob("*.yaml")):
            known.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
    return known


def find_recipe(name: str | Path) -> Path:
    """The file ``name``, the recipe of a run's folder, or the recipe of that name that comes with the package.

    Raises:
        FileNotFoundError: Neither is there; the nearest recipes that are get named.
    """
    for file in (Path(name), Path(name) / "recipe.yaml"):
        if file.is_file():
            return file
    known, short = list_recipes(), str(name).removesuffix(".yaml")
    if short in known:
        return known[short]
    near = difflib.get_close_matches(short, known, n=3) or [k for k in known if short in k] or list(known)
    raise FileNotFoundError(
        f"No recipe {name!r}: neither a file nor one of the package's. Near it: {', '.join(near[:8])}; "
        f"`imgproc-attn recipes` lists all {len(known)}."
    )


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
    try:
        content = _read(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}, but a recipe is a mapping of sections.")
    for override in overrides:
        _override(content, override)
    return check_recipe(_numbers(content), str(path))


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice; remove one", node.start_mark)
        return super().construct_mapping(node, deep)


def _read(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def check_recipe(content: Mapping[str, Any], origin: str) -> Recipe:
    """A recipe from what a file holds.

    Raises:
        ValueError: As `load_recipe`.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = "\n".join(f"  {_problem(e)}" for e in error.errors())
        raise ValueError(f"{origin}:\n{problems}") from None


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
    try:
        return _numbers(_read(text)) if text else ""
    except yaml.YAMLError as error:
        raise ValueError(f"{whole!r}: the value is not YAML: {error}") from None


def _numbers(content: Any) -> Any:
    """``1e-3`` and ``4/255`` as the numbers they are; YAML reads both as text."""
    if isinstance(content, dict):
        return {key: _numbers(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_numbers(value) for value in content]
    if isinstance(content, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", content):
        return float(content)
    if isinstance(content, str) and (fraction := re.fullmatch(r"(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)", content)):
        return float(fraction[1]) / float(fraction[2]) if float(fraction[2]) else content
    return content


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
    return f"{place}: {message} (given: {error['input']!r})"


def _without_none(annotation: Any) -> Any:
    """``X`` of ``X | None``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(annotation) if a is not type(None))
    return annotation
