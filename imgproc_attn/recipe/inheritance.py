"""Inheritance of recipes: the key ``extends`` names a base file, and the recipe is merged into it."""

import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from .library import packaged_files, recipe_folders
from .schema import Recipe
from .yaml_text import SHORT, check_size, read_yaml_file

__all__ = ["EXTENDS", "MAX_FILES", "merge", "read_recipe", "section_at", "takes_null", "without_none"]

EXTENDS = "extends"
MAX_FILES = 8  # Limit for the files of one recipe, its own file included. The recipes of the package have at most 4.


def read_recipe(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """Read a recipe and merge it into the files that it extends.

    The rules of merging are:

    - Mappings are merged key by key. Other values replace inherited ones.
    - A null resets an inherited value to its default, or to null if the schema allows null.
    - A null removes an inherited keyword argument of a model, or an inherited variant.

    Args:
        path: File of the recipe.

    Returns:
        The values of the recipe, without ``extends``, and the files that they come from, ``path`` first.

    Raises:
        FileNotFoundError: An extended file does not exist.
        ValueError: A file is not a recipe, the chain of files is too long or circular, or the result is too large.
    """
    files: list[Path] = []
    contents: list[dict[str, Any]] = []
    following: Path | None = path
    while following is not None:
        files.append(following)
        _check_chain(files)
        content = _read_mapping(following)
        following = _extended_file(content.pop(EXTENDS), following) if EXTENDS in content else None
        contents.append(content)
    merged: dict[str, Any] = {}
    for content in reversed(contents):
        merged = merge(merged, content, Recipe)
        check_size(merged, str(path))
    return merged, files


def merge(base: Mapping[str, Any], changes: Mapping[str, Any], section: type[BaseModel] | None) -> dict[str, Any]:
    """Merge the values of a recipe into inherited values. `read_recipe` lists the rules.

    Args:
        base: Inherited values. They are not changed.
        changes: Values of the recipe. They are not changed.
        section: Schema of both; None for keyword arguments and variants, which have no schema.

    Example:
        >>> merge({"run": {"seed": 0, "batch_size": 8}}, {"run": {"seed": 1}}, Recipe)
        {'run': {'seed': 1, 'batch_size': 8}}
    """
    merged = dict(base)
    for key, value in changes.items():
        inherited = merged.get(key)
        if isinstance(value, dict) and isinstance(inherited, dict):
            merged[key] = merge(inherited, value, section_at(section, key))
        elif value is None and key in merged and not takes_null(section, key):
            del merged[key]
        else:
            merged[key] = value
    return merged


def section_at(section: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    """Return the schema of the subsection ``key`` of a section; None if there is no such subsection."""
    annotation = without_none(_annotation(section, key))
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def without_none(annotation: Any) -> Any:
    """Return the type ``X`` of an annotation ``X | None``, and other annotations unchanged."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(a for a in typing.get_args(annotation) if a is not type(None))
    return annotation


def takes_null(section: type[BaseModel] | None, key: str) -> bool:
    """Return whether the schema allows null for a key. Keyword arguments and variants have no schema."""
    return type(None) in typing.get_args(_annotation(section, key))


def _annotation(section: type[BaseModel] | None, key: str) -> Any:
    field = section.model_fields.get(key) if section else None
    return field.annotation if field else None


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_yaml_file(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a recipe must be a mapping of sections, got {type(content).__name__}. Write key: value.")
    return content


def _check_chain(files: list[Path]) -> None:
    """Refuse a circular or too long chain of files before the last file is read."""
    *before, last = map(os.path.realpath, files)
    chain = " -> ".join(map(str, files))
    if last in before:
        raise ValueError(f"{files[0]}: extends must not form a cycle, got {chain}. Remove one of these extends.")
    if len(files) > MAX_FILES:
        raise ValueError(f"{files[0]}: extends must lead to at most {MAX_FILES} files, got {chain}. Merge some of them.")


def _extended_file(value: Any, file: Path) -> Path:
    """Return the file that ``file`` extends: a path relative to it, or the name of a file of the package."""
    if not isinstance(value, str) or not value:
        raise ValueError(_refusal(file, "the path of a recipe, as text", value, "Write extends: base.yaml."))
    if os.path.isabs(value):
        raise ValueError(_refusal(file, "a path relative to this file", value, "Write it like ../base.yaml."))
    base = file.parent / value
    if not os.path.isfile(base):
        base = packaged_files().get(value.removesuffix(".yaml"), base)
    folder = _package_folder(file)
    if folder and not _is_below(base, folder):
        raise ValueError(_refusal(file, f"a file below {folder}", value, "Move that file there, or this recipe elsewhere."))
    if not os.path.isfile(base):
        rule = "a file relative to this one, or a recipe of the package"
        remedy = f"There is no {SHORT.repr(str(base))}; `imgproc-attn recipes` lists the recipes of the package."
        raise FileNotFoundError(_refusal(file, rule, value, remedy))
    return base


def _refusal(file: Path, rule: str, value: Any, remedy: str) -> str:
    return f"{file}: {EXTENDS} must be {rule}, got {SHORT.repr(value)}. {remedy}"


def _package_folder(file: Path) -> Path | None:
    """Return the folder of packaged recipes that holds ``file``; None for other files."""
    return next((folder for folder in recipe_folders() if _is_below(file, folder)), None)


def _is_below(file: Path, folder: Path) -> bool:
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))
