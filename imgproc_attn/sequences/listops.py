"""ListOps of the Long Range Arena (arXiv 2011.04006): nested operations on lists of digits, and their values.

An expression is a digit, or an operator with arguments in brackets, as ``[MAX 2 [MIN 8 5 ] 0 ]``. Files hold it with one pair
of parentheses per step of its binary tree, as published. Parentheses are no tokens.
"""

import csv
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..utils.checks import check_whole
from ..utils.io import check_output_folder, write_atomically

__all__ = ["OPERATORS", "TOKENS", "Expression", "ListOps", "write_listops"]


def _median(values: Sequence[int]) -> int:
    """Return the median. Of an even number of values, it is the mean of the middle two, rounded down."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) // 2


OPERATORS: dict[str, Callable[[Sequence[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": _median,
    "[SM": lambda values: sum(values) % 10,
}
CLOSE = "]"
DIGITS = 10
TOKENS = (*map(str, range(DIGITS)), *OPERATORS, CLOSE)  # in the order of their indices, after that of padding
NESTED = 0.25  # probability that an argument is an operation, ``VALUE_P`` of the published generator
COLUMNS = ("Source", "Target")
SPLITS = ("train", "val", "test")
DRAWS = 1_000_000  # draws without a new expression after which there are taken to be no more


class Expression(NamedTuple):
    """Expression and its value.

    Attributes:
        source: Text of the expression, with parentheses.
        target: Its value, 0 to 9.
        length: Number of tokens, without parentheses.
    """

    source: str
    target: int
    length: int


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


class _TooLongError(Exception):
    """The tree has too many tokens."""


@dataclass(frozen=True)
class ListOps:
    """Generator of random expressions, to the published definition.

    A tree is drawn from its root. Above ``max_depth``, a node is an operation with probability 0.25, else a digit. An operation
    has a random operator and 2 to ``max_args`` arguments. Trees that are too short or too long are drawn again.

    Args:
        max_depth: Largest depth of a tree. Digits at the lowest level count.
        max_args: Largest number of arguments of an operator.
        min_length: Expressions have more tokens.
        max_length: Expressions have fewer tokens.

    Raises:
        TypeError: A setting is not a whole number.
        ValueError: A setting is too small, or no expression has such a length.

    Example:
        >>> first = next(ListOps(max_depth=3, max_args=3, min_length=6, max_length=12).expressions(seed=0))
        >>> 6 < first.length < 12, first.target in range(10)
        (True, True)
    """

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000

    def __post_init__(self) -> None:
        for name, low in (("max_depth", 2), ("max_args", 2), ("min_length", 3), ("max_length", 5)):
            if check_whole(name, getattr(self, name)) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}. Give a larger number.")
        if self.max_length < self.min_length + 2:
            raise ValueError(
                f"max_length must be at least min_length + 2, {self.min_length + 2}, because both are excluded, got "
                f"{self.max_length}. Raise it."
            )
        if self.min_length >= self.longest:
            raise ValueError(
                f"min_length must be below {self.longest}, the longest expression of depth {self.max_depth} with "
                f"{self.max_args} arguments, got {self.min_length}. Lower it, or raise max_depth or max_args."
            )

    @property
    def longest(self) -> int:
        """Number of tokens of the longest tree."""
        length = 1
        for _ in range(self.max_depth - 1):
            length = 2 + self.max_args * length
        return length

    def expressions(self, seed: int) -> Iterator[Expression]:
        """Yield distinct expressions without end. Equal seeds give equal expressions.

        Args:
            seed: Seed of all draws.

        Raises:
            ValueError: No new expression was found in a million draws.
        """
        uniform = random.Random(seed).random
        seen: set[bytes] = set()
        while True:
            for _ in range(DRAWS):
                expression = self._try(uniform)
                if expression is not None and (key := _digest(expression.source)) not in seen:
                    break
            else:
                raise ValueError(
                    f"There must be enough distinct expressions of {self.min_length + 1} to {self.max_length - 1} tokens, got "
                    f"{len(seen)} and no other one in {DRAWS} draws. Write fewer expressions, or allow more lengths."
                )
            seen.add(key)
            yield expression

    def _try(self, uniform: Callable[[], float]) -> Expression | None:
        """Draw a tree. Return None if it is too short or too long."""
        words: list[str] = []
        try:
            value, length = self._draw(uniform, words, 1, 0)
        except _TooLongError:
            return None
        return Expression(" ".join(words), value, length) if length > self.min_length else None

    def _draw(self, uniform: Callable[[], float], words: list[str], depth: int, before: int) -> tuple[int, int]:
        """Draw a tree and append its words.

        Args:
            uniform: Source of numbers in [0, 1).
            words: Words of the expression so far.
            depth: Depth of the node, from 1.
            before: Number of tokens so far.

        Returns:
            The value of the tree, and its number of tokens.
        """
        if before + 1 >= self.max_length:
            raise _TooLongError
        if depth >= self.max_depth or uniform() > NESTED:
            value = int(DIGITS * uniform())
            words.append(str(value))
            return value, 1
        count = 2 + int((self.max_args - 1) * uniform())
        operator = list(OPERATORS)[int(len(OPERATORS) * uniform())]
        words += ["("] * (count + 1)  # one pair per argument and one for the bracket that closes the list
        words.append(operator)
        values, length = [], 2
        for _ in range(count):
            value, tokens = self._draw(uniform, words, depth + 1, before + length)
            words.append(")")
            values.append(value)
            length += tokens
        words += [CLOSE, ")"]
        if before + length >= self.max_length:
            raise _TooLongError
        return OPERATORS[operator](values), length


def write_listops(
    folder: Path,
    counts: Sequence[int] = (96_000, 2_000, 2_000),
    generator: ListOps | None = None,
    seed: int = 0,
    progress: Callable[[int], object] = lambda count: None,
) -> list[Path]:
    """Write ``basic_train.tsv``, ``basic_val.tsv`` and ``basic_test.tsv``, the files of the Long Range Arena.

    No expression is in two of them. A file is complete or not there.

    Args:
        folder: Folder of the files. It is created if it does not exist.
        counts: Number of expressions of the training, validation and test split.
        generator: Generator of the expressions. Default: that of the Long Range Arena.
        seed: Seed of all draws.
        progress: Function that is called with the number of new expressions.

    Returns:
        The files.

    Raises:
        FileExistsError: A file exists.
        ValueError: A count is below 1.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_listops(Path(folder), (4, 1, 1), ListOps(min_length=5, max_length=20))
        ...     files[0].name, len(files[0].read_text().splitlines())
        ('basic_train.tsv', 5)
    """
    files = [folder / f"basic_{split}.tsv" for split in SPLITS]
    for file, count in zip(files, counts, strict=True):
        if check_whole("The number of expressions", count) < 1:
            raise ValueError(f"The number of expressions must be at least 1 per split, got {count}. Give a larger number.")
        if file.exists():
            raise FileExistsError(f"The output must be new files, got {file}, which exists. Give another folder, or remove it.")
    check_output_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    expressions = (generator or ListOps()).expressions(seed)
    for file, count in zip(files, counts):
        chosen = islice(expressions, count)
        write_atomically(file, lambda path, chosen=chosen: _write(path, chosen, progress))  # type: ignore[misc]
    return files


def _write(path: Path, expressions: Iterator[Expression], progress: Callable[[int], object]) -> None:
    with path.open("w", encoding="ascii", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(COLUMNS)
        for expression in expressions:
            rows.writerow((expression.source, expression.target))
            progress(1)
