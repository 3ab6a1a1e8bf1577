"""Changed copies of named tuples."""

from typing import Any, TypeVar

__all__ = ["changed"]

T = TypeVar("T", bound=tuple)


def changed(value: T, **fields: Any) -> T:
    """Return a named tuple with some fields replaced.

    torch.compile and torch.export of torch 2.7 trace this function, but not the method ``_replace``.

    Example:
        >>> from collections import namedtuple
        >>> changed(namedtuple("Size", ["height", "width"])(2, 3), width=4)
        Size(height=2, width=4)
    """
    kind: Any = type(value)
    return kind(*[fields.get(name, getattr(value, name)) for name in kind._fields])
