"""Checks of settings: what is meant as a flag, a count or a number must be one. A text such as "false" would count as true."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def check_flag(name: str, value: Any) -> bool:
    """``value``, if it is True or False.

    Raises:
        TypeError: It is anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}. Give a bool: any other value would count as a choice.")
    return value


def check_whole(name: str, value: Any) -> int:
    """``value``, if it is a whole number.

    Raises:
        TypeError: It is anything else, a bool included.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}. Give an int.")
    return int(value)


def check_number(name: str, value: Any) -> float:
    """``value``, if it is one real number.

    Raises:
        TypeError: It is anything else: a bool, a text, an array.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be one number, got {value!r}. Give a float.")
    return float(value)


def check_statistics(what: str, values: Sequence[float]) -> None:
    """Refuse a mean or standard deviation per channel that is not in the units of images in [0, 1].

    Args:
        what: Stands before the values in the message.
        values: One per channel.

    Raises:
        ValueError: A value outside [0, 1], or not finite.
    """
    if not all(0 <= value <= 1 for value in values):  # NaN fails both
        shown = [round(float(value), 6) for value in values]
        raise ValueError(f"{what}{shown}, but images are in [0, 1]: divide mean and std in gray levels by 255.")
