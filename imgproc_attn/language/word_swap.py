"""Word swap: contamination of a text by a fixed word in place of others."""

import re
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, NamedTuple

import torch

from ..utils.checks import check_number, check_whole

__all__ = ["SwappedText", "WordSwap"]

# Words have letters only, with apostrophes and hyphens inside. Marks such as <unk> are no words.
WORD = re.compile(r"(?<![\w<])[^\W\d_]+(?:['’-][^\W\d_]+)*(?![\w>])")


class SwappedText(NamedTuple):
    """Contaminated text.

    Attributes:
        text: The text.
        swapped: Number of words that were replaced.
        words: Number of words of the text.
    """

    text: str
    swapped: int
    words: int

    @property
    def share(self) -> float:
        """Share of the words that were replaced."""
        return self.swapped / self.words if self.words else 0.0


@dataclass(frozen=True)
class WordSwap:
    """Replace random words of a text by a fixed one. Stop words, such as "the", are kept (scikit-learn's list).

    This is the "word swap attack" of the twicing and elliptical papers, after TextAttack's augmentation. Their code replaces
    words per line, at least one in each. Here words are drawn from the whole text, so the share does not depend on the length
    of lines. Texts of a higher rate contain the replacements of a lower one.

    Args:
        rate: Share of all words to replace. The share that is reached is lower if too few words are no stop words.
        seed: Seed of the draw.
        token: The fixed word.

    Raises:
        TypeError: A setting has another type.
        ValueError: ``rate`` is not in (0, 1].

    Example:
        >>> WordSwap(0.5)("to be or not to be, that is the question")
        SwappedText(text='to be or not to be, that is the AAA', swapped=1, words=10)
    """

    name: ClassVar = "word_swap"

    rate: float = 0.015
    seed: int = 0
    token: str = "AAA"

    def __post_init__(self) -> None:
        check_whole("WordSwap: seed", self.seed)
        if not 0 < check_number("WordSwap: rate", self.rate) <= 1:
            raise ValueError(f"WordSwap: rate must be above 0 and at most 1, got {self.rate}. 0.015 is a common value.")

    @property
    def severity(self) -> float:
        """The rate, which reports show as strength."""
        return self.rate

    def __call__(self, text: str) -> SwappedText:
        """Return the contaminated text and the number of words that were replaced."""
        words = list(WORD.finditer(text))
        content = [word for word in words if word.group().lower() not in _stop_words()]
        order = torch.randperm(len(content), generator=torch.Generator().manual_seed(self.seed))
        chosen = sorted(order[: round(self.rate * len(words))].tolist())
        parts, end = [], 0
        for word in (content[i] for i in chosen):
            parts += [text[end : word.start()], self.token]
            end = word.end()
        return SwappedText("".join([*parts, text[end:]]), len(chosen), len(words))


@cache
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # The import takes a second.

    return ENGLISH_STOP_WORDS
