"""Loading of recipes: find the YAML file, apply overrides, validate against the schema."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from ..utils.suggestions import did_you_mean
from .inheritance import EXTENDS, read_recipe, section_at, takes_null, without_none
from .library import find_recipe
from .schema import Recipe
from .yaml_text import SHORT, read_yaml, write_section

if TYPE_CHECKING:
    from ..evaluation.specs import DatasetSpec

__all__ = ["check_one_model", "check_recipe", "load_recipe", "recipe_text", "run_dataset", "value_of"]


def load_recipe(name: str | Path, overrides: Sequence[str] = (), one_model: bool = False) -> Recipe:
    """Load and validate a recipe.

    Args:
        name: Path or name of the recipe, as in `find_recipe`.
        overrides: Changes ``section.key=value`` with YAML values, such as ``comparison.seeds=[0,1]`` or ``optimizer.lr=1e-3``.
            A null acts as in a file that extends the recipe: ``comparison.variants.twicing=null`` removes this variant.
        one_model: Whether to refuse the recipe of a comparison, before its values are validated.

    Raises:
        FileNotFoundError: The recipe, or a file that it extends, does not exist.
        ValueError: The recipe is invalid. The message names the key, and the nearest valid key if it is unknown. Or it is of a
            comparison, and ``one_model`` is set.

    Example:
        >>> load_recipe("quickstart", ["schedule.epochs=5"]).schedule.epochs
        5
    """
    content, files = read_recipe(find_recipe(name))
    for override in overrides:
        _override(content, override)
    if one_model:
        check_one_model(content.get("comparison"))
    return check_recipe(content, _origin(files))


def check_one_model(comparison: Any) -> None:
    """Check that a recipe is of one model.

    Args:
        comparison: Section ``comparison`` of the recipe; None if it has none.

    Raises:
        ValueError: It has one.
    """
    if comparison is not None:
        raise ValueError(
            "The recipe must be of one model, got a comparison of several. Name one of its variants, or use "
            "`imgproc-attn compare`."
        )


def run_dataset(
    run: str | Path | Recipe,
    split: str | None = None,
    root: str | None = None,
    limit: int | None = None,
    skip_broken: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
) -> "DatasetSpec":
    """Return the images that a run tests on, for `imgproc_attn.evaluation.benchmark`.

    The seed of the recipe is part of it. It decides which images of a data set without splits were held out.

    Args:
        run: Folder of the run, or its recipe.
        split: Split. Default: the test split of the recipe.
        root: Folder or file of the images, if they have moved. Default: that of the recipe.
        limit: Number of random images. Default: that of the recipe.
        skip_broken: Whether to leave out images that cannot be read.
        image_column: Column of the images in a Hugging Face set. Default: that of the recipe.
        label_column: Column of the labels. Default: that of the recipe.

    Raises:
        FileNotFoundError: The folder holds no recipe.
        ValueError: The recipe has no test split, and none is given.

    Example:
        >>> run_dataset("quickstart").seed, run_dataset("quickstart").split  # a recipe by name, instead of a run
        (1, 'test')
    """
    from ..evaluation.specs import DatasetSpec  # The import of torch takes seconds, and `imgproc-attn recipes` needs none.

    data = (run if isinstance(run, Recipe) else load_recipe(run)).data
    chosen = data.test_split if split is None else split
    if chosen is None:
        raise ValueError("The run must have a test split, got a recipe without one. Give split=, for example 'validation'.")
    columns = {"image_column": image_column or data.image_column, "label_column": label_column or data.label_column}
    return DatasetSpec(
        data.name, root or data.root, chosen, limit or data.test_images, skip_broken=skip_broken, seed=data.seed, **columns
    )


def recipe_text(name: str | Path) -> str:
    """Return a recipe as the text of one self-contained file.

    Args:
        name: Path or name of the recipe, as in `find_recipe`.

    Returns:
        Content of the file. If it extends other files: its header comment, then all own and inherited values.

    Raises:
        FileNotFoundError: As in `load_recipe`.
        ValueError: As in `load_recipe`.
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
    """Validate the content of a recipe file.

    Args:
        content: Nested values of the recipe.
        origin: Name of the file or files, for messages.

    Raises:
        ValueError: As in `load_recipe`.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        problems = [_problem(e) for e in error.errors()]
        message = problems[0] if len(problems) == 1 else "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"{origin}: {message}") from None


def _origin(files: Sequence[Path]) -> str:
    """Return the names of all files of a recipe for messages, because the mistake may be in any of them."""
    return ", which extends ".join(map(str, files))


def _in_order(content: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """Sort the keys of a recipe as in the schema. Keys without a schema come last, in their own order."""
    known = [key for key in section.model_fields if key in content]
    ordered = {key: content[key] for key in [*known, *content]}
    parts = {key: section_at(section, key) for key in known if isinstance(content[key], dict)}
    return ordered | {key: _in_order(content[key], part) for key, part in parts.items() if part}


def _override(content: dict[str, Any], override: str) -> None:
    path, separator, value = override.partition("=")
    if not separator:
        raise ValueError(f"An override must have the form section.key=value, got {override!r}. Add '=' and a value.")
    if path == EXTENDS:
        raise ValueError(f"extends must be a key of a file, got the override {override!r}. Write a file with it.")
    *sections, key = path.split(".")
    schema: type[BaseModel] | None = Recipe
    for section in sections:
        if content.get(section) is None:
            content[section] = {}
        content, schema = content[section], section_at(schema, section)
        if not isinstance(content, dict):
            raise ValueError(f"{section} must be a section, got a single value. Correct the override {override!r}.")
    new = value_of(value, override)
    if new is None and key in content and not takes_null(schema, key):
        del content[key]
    else:
        content[key] = new


def value_of(text: str, whole: str) -> Any:
    """Parse a value of the command line as YAML. An empty value is an empty text.

    Args:
        text: Value.
        whole: Argument that the value is a part of, for messages.

    Raises:
        ValueError: The value is not YAML.
    """
    return read_yaml(text, f"{whole!r}: the value is not YAML") if text else ""


def _problem(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in error["loc"][:-1]:
            section = without_none(section.model_fields[part].annotation)
        known = list(section.model_fields)
        hint = did_you_mean(error["loc"][-1], known, otherwise=f"Known keys are {', '.join(known)}.")
        return f"{key}: unknown key. {hint}"
    if error["type"] in ("missing", "value_error"):
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, got {SHORT.repr(error['input'])}{_remedy(error['type'], error['input'])}"


def _remedy(kind: str, given: Any) -> str:
    """Return the advice for a value that YAML reads as another type than intended."""
    if kind == "string_type" and isinstance(given, bool | int | float):
        quoted = f"'{str(given).lower()}'"
        return f'. Quote text that looks like a number or a boolean: {quoted}, in a shell "{quoted}".'
    return ". Write true or false." if kind == "bool_type" and isinstance(given, str) else ""
