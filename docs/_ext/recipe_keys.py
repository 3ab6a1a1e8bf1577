"""Directive ``recipe-keys``: the keys of one section of a recipe, generated from its pydantic schema.

``{recipe-keys} optimizer`` lists the keys of the section ``optimizer``. ``{recipe-keys}`` without an argument lists the keys at
the top level. Types, limits and defaults come from the JSON schema. Descriptions come from the ``Attributes`` of the docstring.
The build warns about keys without a description and about sections that no page lists.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from pydantic import BaseModel
from sphinx.util import logging

from imgproc_attn.recipe.inheritance import section_at
from imgproc_attn.recipe.schema import Recipe

__all__ = ["RecipeKeys", "descriptions", "key_rows", "sections", "setup"]

LOG = logging.getLogger(__name__)
TYPES = {"integer": ("whole number", "whole numbers"), "number": ("number", "numbers"), "string": ("text", "texts")}
LOW = {"minimum": "≥", "ge": "≥", "exclusiveMinimum": ">", "gt": ">"}
HIGH = {"maximum": "≤", "le": "≤", "exclusiveMaximum": "<", "lt": "<"}
SHOWN: set[str] = set()  # Sections that a page of this build lists.


def sections() -> dict[str, type[BaseModel]]:
    """Return the schema of each section: ``{name: class}``, with the name ``""`` for the top level."""
    parts = {name: section_at(Recipe, name) for name in Recipe.model_fields}
    return {"": Recipe, **{name: part for name, part in parts.items() if part is not None}}


def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """Return the text per attribute in the docstring of a schema, as Markdown."""
    lines = inspect.cleandoc(section.__doc__ or "").partition("Attributes:\n")[2].splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        entry = re.match(r" {4}(\w+): (.*)", line)
        if entry:
            found[entry[1]] = [entry[2]]
        elif line and not line.startswith(" " * 8):
            break
        elif found:
            found[list(found)[-1]].append(line[8:])
    return {name: "\n".join(text).strip().replace("``", "`") for name, text in found.items()}


def key_rows(name: str) -> Iterator[tuple[str, str, str, str]]:
    """Return one row per key of a section: key, type with limits, default, description, as Markdown."""
    section = sections()[name]
    schema, texts = section.model_json_schema(), descriptions(section)
    for key, content in schema["properties"].items():
        if key not in texts:
            LOG.warning("recipe-keys: the key %s of section %r has no description in its docstring", key, name or "recipe")
        inner = not name and key in sections()
        required = key in schema.get("required", []) and (name, key) != ("", "task")  # A validator fills in the task.
        kind = f"[section](#section-{key})" if inner else _kind(content)
        default = "required" if required else "optional" if inner or "default" not in content else _default(content["default"])
        text = texts.get(key, "")
        yield key, kind, default, text.replace("Default: ", "Null: ").replace("None, ", "") if _is_null(content) else text


def _kind(schema: Mapping[str, Any], many: bool = False) -> str:
    """Return type and limits of a value in words."""
    if "anyOf" in schema:
        return ", or ".join("null" if part.get("type") == "null" else _kind(part) for part in schema["anyOf"])
    if "enum" in schema:
        *first, last = (f"`{value}`" for value in schema["enum"])
        return f"{', '.join(first)} or {last}"
    if schema["type"] == "array":
        least, most = schema.get("minItems"), schema.get("maxItems")
        count = f" of {least}" if least is not None and least == most else " of"
        return f"list{count} {_kind(schema['items'], many=True)}" + ", not empty" * (least == 1)
    if schema["type"] == "boolean":
        return "true or false"
    if schema["type"] == "object":
        return "mapping"
    low, high = ([f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema] for signs in (LOW, HIGH))
    high = [text.replace(f"{2**32:g}", "2³²") for text in high]
    return " ".join([TYPES[schema["type"]][many], " and ".join([*low, *high])]).strip()


def _is_null(schema: Mapping[str, Any]) -> bool:
    """Return whether the default is null. Docstrings then describe it as "Default: None", which a recipe cannot say."""
    return "default" in schema and schema["default"] is None


def _default(value: Any) -> str:
    """Return the default in words, as it is written in a recipe."""
    if value is None or value == "":
        return "default null" if value is None else "default empty"
    if isinstance(value, bool):
        return f"default `{str(value).lower()}`"
    if isinstance(value, list):
        return f"default `[{', '.join(f'{v:g}' for v in value)}]`"
    return f"default `{value:g}`" if isinstance(value, float) else f"default `{value}`"


class RecipeKeys(Directive):
    """Definition list of the keys of a section of recipes."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0] if self.arguments else ""
        if name not in sections():
            raise self.error(f"recipe-keys: the section must be one of {', '.join(sections())}, got {name!r}.")
        SHOWN.add(name)
        for file in (__file__, inspect.getfile(Recipe)):  # Changes of these files rebuild the page.
            self.state.document.settings.env.note_dependency(file)
        items = nodes.definition_list(classes=["recipe-keys"])
        for key, kind, default, meaning in key_rows(name):
            path = f"{name}.{key}" if name else key
            term = nodes.term("", "", nodes.literal(text=path), ids=[f"key-{path}"])
            definition = nodes.definition()
            content = f"*{kind}; {default}.* {meaning}".splitlines()
            self.state.nested_parse(StringList(content, source=f"schema of {path}"), self.content_offset, definition)
            items += nodes.definition_list_item("", term, definition)
        return [items]


def _warn_of_missing(app: Any, exception: Exception | None) -> None:
    """Warn about sections that no page lists. An incremental build does not read all pages, so it is not checked."""
    if exception is None and SHOWN:
        for name in sections().keys() - SHOWN:
            LOG.warning("recipe-keys: no page lists the section %r of recipes", name or "recipe")


def setup(app: Any) -> dict[str, Any]:
    """Register the directive with Sphinx."""
    app.add_directive("recipe-keys", RecipeKeys)
    app.connect("build-finished", _warn_of_missing)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
