"""Type checks of settings. Without them, a text such as "false" would count as true."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

__all__ = ["check_flag", "check_number", "check_sizes", "check_statistics", "check_whole"]


def check_flag(name: str, value: Any) -> bool:
    """Return ``value`` if it is a bool.

    Args:
        name: Name of the setting, for the message.
        value: Value to check.

    Raises:
        TypeError: The value is not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}. Give a bool.")
    return value


def check_whole(name: str, value: Any) -> int:
    """Return ``value`` as an int if it is an integer.

    Args:
        name: Name of the setting, for the message.
        value: Value to check. NumPy integers are accepted.

    Raises:
        TypeError: The value is not an integer, or is a bool.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}. Give an int.")
    return int(value)


def check_sizes(sizes: Mapping[str, Any]) -> None:
    """Check sizes, ``{name: value}``, which must be whole numbers of at least 1.

    Raises:
        TypeError: A value is not an integer, or is a bool.
        ValueError: A value is below 1.
    """
    for name, value in sizes.items():
        if check_whole(name, value) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}. Give a larger number.")


def check_number(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is one real number.

    Args:
        name: Name of the setting, for the message.
        value: Value to check. NumPy scalars are accepted.

    Raises:
        TypeError: The value is not one real number, as a bool, a text or an array.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be one number, got {value!r}. Give a float.")
    return float(value)


def check_statistics(what: str, values: Sequence[float]) -> None:
    """Check a mean or standard deviation, which must be in units of images in [0, 1].

    Args:
        what: Beginning of the message, with a space at the end if it is not empty.
        values: One value per channel.

    Raises:
        ValueError: A value is outside [0, 1] or not finite.
    """
    if not all(0 <= value <= 1 for value in values):  # A NaN fails both comparisons.
        shown = [round(float(value), 6) for value in values]
        raise ValueError(f"{what}must be in [0, 1], as the images are, got {shown}. Divide values in gray levels by 255.")
