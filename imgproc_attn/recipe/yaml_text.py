"""YAML reader and writer of recipes, with the types of YAML 1.2 and a limited size.

By default, PyYAML reads YAML 1.1, which takes ``010`` for 8, ``1:30`` for 90, ``no`` for false and ``1e-3`` for text.
"""

import re
import reprlib
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_NODES",
    "SHORT",
    "Unquoted",
    "check_size",
    "free_value",
    "number_of",
    "read_yaml",
    "read_yaml_file",
    "write_section",
    "write_yaml",
]

MAX_BYTES = 2**18  # Limit of the size of a file. The recipes of the package have less than 4 KiB.
MAX_NODES = 20_000  # Limit of the number of values and keys, with all aliases expanded.
MAX_DEPTH = 40  # Limit of the levels of nesting.

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 120  # A message shows at most this many characters of a value.

_MERGE = "tag:yaml.org,2002:merge"
_TYPES = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}
_SCIENTIFIC = r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"
_FRACTION = r"([-+]?[0-9]+(?:\.[0-9]+)?)\s*/\s*([0-9]+(?:\.[0-9]+)?)"
# YAML 1.1 reads these as booleans, numbers or dates. YAML 1.2 reads them as text.
_AMBIGUOUS = (
    r"[yY]|[nN]|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])*(\.[0-9_]*)?|[-+]?0[box][0-9a-fA-F_]+"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?"
)


class Unquoted(str):
    """Text without quotes in the file, which may be meant as a number, a boolean or a date."""


def number_of(value: Any) -> Any:
    """Convert text such as ``1e-3`` and ``4/255`` to a number, and return other values unchanged.

    Example:
        >>> number_of("1e-3"), number_of("1/4"), number_of("cosine")
        (0.001, 0.25, 'cosine')
    """
    if isinstance(value, str) and re.fullmatch(_SCIENTIFIC, value):
        return float(value)
    if isinstance(value, str) and (fraction := re.fullmatch(_FRACTION, value)) and float(fraction[2]):
        return float(fraction[1]) / float(fraction[2])
    return value


def free_value(value: Any, name: str) -> Any:
    """Convert a value without a schema, such as a keyword argument of a model. Text that looks like a number becomes one.

    Args:
        value: Result of `read_yaml`.
        name: Name of the value, for messages.

    Raises:
        ValueError: Text without quotes may be meant as a number, a boolean or a date.
    """
    if isinstance(value, dict):
        return {key: free_value(part, f"{name}.{key}") for key, part in value.items()}
    if isinstance(value, list):
        return [free_value(part, name) for part in value]
    if not isinstance(value, Unquoted):
        return value
    number = number_of(value)
    if isinstance(number, Unquoted):
        raise ValueError(
            f"{name} must be unambiguous, got {number} without quotes. Write true, false or a decimal number, or quote it."
        )
    return number


class _Loader(yaml.SafeLoader):
    """Loader for the types of YAML 1.2. It refuses duplicate keys, tags and characters that cannot be written."""

    yaml_implicit_resolvers: dict[str | None, list[Any]] = {}  # noqa: RUF012 - PyYAML declares it without ClassVar.
    _depth = _count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            raise _error(f"a recipe must not have tags, got {event.tag}. Remove it", event)
        if re.search("[\0\ud800-\udfff]", getattr(event, "value", "")):
            raise _error(f"text must not hold NUL or surrogate characters, got {event.value!r}. Remove them", event)
        self._depth, self._count = self._depth + 1, self._count + 1
        if self._count > MAX_NODES:
            raise _error(f"a recipe must hold at most {MAX_NODES} values, got more. Is it another file?", event)
        if self._depth > MAX_DEPTH:
            raise _error(f"values must be nested at most {MAX_DEPTH} deep, got more. Remove brackets or indentation", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        texts = [key.value for key in keys]
        twice = next((text for text in texts if texts.count(text) > 1), None)
        if twice is not None:
            raise _error(f"a key must be given once, got {twice!r} twice. Remove one", node)
        for key in keys:
            if key.tag != _MERGE:
                key.tag = "tag:yaml.org,2002:str"  # A variant may be named 1 or on.
        return node


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes all text that YAML 1.1 or `_Loader` would not read as text."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if "\x85" in text else None  # PyYAML escapes this line break only in double quotes.
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


class _SectionDumper(_Dumper):
    """Dumper that writes a list on one line, and a number as in the original file, such as 4/255."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, _pattern in _TYPES.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})\\Z"), None)
for _pattern in (_SCIENTIFIC, _FRACTION, _AMBIGUOUS):
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver("!unquoted", re.compile(f"(?:{_pattern})\\Z"), None)
_Loader.add_constructor("!unquoted", lambda loader, node: Unquoted(node.value))
for _add in (_Dumper.add_representer, _Dumper.add_multi_representer):
    _add(str, _Dumper.represent_text)
_SectionDumper.add_representer(Unquoted, lambda dumper, text: dumper.represent_scalar("!unquoted", text))


def read_yaml(text: str, origin: str) -> Any:
    """Parse a YAML document.

    Args:
        text: YAML text of one document.
        origin: Name of the text, for messages.

    Raises:
        ValueError: The text is not YAML, or is too large with all aliases expanded. The message names line and column.

    Example:
        >>> read_yaml("{epochs: 10, name: cosine}", "example")
        {'epochs': 10, 'name': 'cosine'}
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{origin}: {_message(error)}") from None


def read_yaml_file(path: Path) -> Any:
    """Read and parse a YAML file.

    Args:
        path: Path of the file.

    Raises:
        ValueError: As in `read_yaml`, or the file is too large or not UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: a recipe must have at most {MAX_BYTES // 1024} KiB, got more. Is it another file?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a YAML file: byte {error.start} is not UTF-8. Store it in UTF-8.") from None
    return read_yaml(text, f"{path}: not a YAML file")


def write_yaml(content: Any) -> str:
    """Return YAML text that `read_yaml` parses to the same content."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def write_section(key: str, value: Any) -> str:
    """Return readable YAML text of one section, with lists on one line. `read_yaml` parses it to ``{key: value}``."""
    return yaml.dump({key: value}, Dumper=_SectionDumper, sort_keys=False, allow_unicode=True, width=120)


def check_size(content: Any, origin: str) -> None:
    """Check the number of values of a recipe that was merged from several files.

    Args:
        content: Merged content.
        origin: Name of the recipe, for messages.

    Raises:
        ValueError: There are more than `MAX_NODES` values and keys.
    """
    left: list[Any] = [content]
    for _ in range(MAX_NODES):
        if not left:
            return
        value = left.pop()
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
    raise ValueError(
        f"{origin}: a recipe and the files it extends must hold at most {MAX_NODES} values, got more. Extend a smaller file."
    )


def _check_size(node: yaml.Node) -> None:
    """Count the values of a document with all aliases expanded, but no further than the limit."""
    left: list[Any] = [node]
    for _ in range(MAX_NODES):
        if not left:
            return
        value = left.pop().value
        if not isinstance(value, str):
            left += [part for pair in value for part in (pair if isinstance(pair, tuple) else (pair,))]
    raise _error(f"aliases must expand to at most {MAX_NODES} values, got more. Write out the values", node)


def _error(problem: str, node: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _message(error: Exception) -> str:
    """Return one line with the problem, its line and its column."""
    mark = getattr(error, "problem_mark", None)
    parts = [getattr(error, name, None) for name in ("context", "problem", "reason")]
    problem = ", ".join(part for part in parts if part) or str(error)
    return problem if mark is None else f"{problem} (line {mark.line + 1}, column {mark.column + 1})"
