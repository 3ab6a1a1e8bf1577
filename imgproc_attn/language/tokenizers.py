"""Tokenizers: characters, bytes, words and byte pairs. A vocabulary comes from the training text only."""

import re
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

__all__ = [
    "TOKENIZERS",
    "BytePairTokenizer",
    "ByteTokenizer",
    "CharacterTokenizer",
    "Tokenizer",
    "VocabularyLimits",
    "WordTokenizer",
    "tokenizer_of",
]

UNKNOWN, END_OF_LINE = "<unk>", "<eos>"
BATCH = 10_000  # lines that byte-pair encoding gets at once


@dataclass(frozen=True)
class VocabularyLimits:
    """Limits of a vocabulary that is made from a text.

    Attributes:
        max_vocabulary: Largest number of tokens of words and byte pairs. Default: no limit.
        min_count: Smallest number of occurrences of a word or byte pair in the training text.
        file: ``tokenizer.json`` of byte pairs, which is used instead of a vocabulary from the text.
    """

    max_vocabulary: int | None = None
    min_count: int = 1
    file: str = ""


@dataclass(frozen=True)
class Tokenizer(ABC):
    """Maps text to token indices and back.

    Args:
        vocabulary: Vocabulary, as JSON can hold it.

    Attributes:
        name: Name of the kind of tokens in recipes.
        unit: Unit of text that a token stands for, or an empty text if tokens have different lengths.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""

    vocabulary: Any

    @classmethod
    @abstractmethod
    def fit(cls, text: str, limits: VocabularyLimits) -> Self:
        """Make the vocabulary of a training text."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of tokens in the vocabulary."""

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """Return the token indices ``[n]`` of a text, int32."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token indices."""

    @property
    def record(self) -> dict[str, Any]:
        """Kind and vocabulary as JSON can hold them, for `tokenizer_of`."""
        return {"tokens": self.name, "vocabulary": self.vocabulary}


@dataclass(frozen=True)
class CharacterTokenizer(Tokenizer):
    """One token per Unicode character.

    Args:
        vocabulary: Characters, in the order of their indices.

    Example:
        >>> tokenizer = CharacterTokenizer.fit("to be", VocabularyLimits())
        >>> tokenizer.encode("be").tolist(), tokenizer.decode([4, 3])
        ([1, 2], 'to')
    """

    name: ClassVar = "characters"
    unit: ClassVar = "character"

    @classmethod
    def fit(cls, text: str, limits: VocabularyLimits) -> Self:
        return cls(sorted(set(text)))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {character: i for i, character in enumerate(self.vocabulary)}

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> Tensor:
        """Return the token indices ``[n]`` of a text, int32.

        Raises:
            ValueError: A character is not in the vocabulary.
        """
        try:
            return _tensor(array("i", map(self._index.__getitem__, text)))
        except KeyError as error:
            character = error.args[0]
            line = text[: text.index(character)].count("\n") + 1
            raise ValueError(
                f"Characters must be among the {len(self)} of the training text, got {character!r} in line {line}. Remove it, "
                "or train with language.tokens=bytes, which takes any text."
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.vocabulary[i] for i in ids)


@dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """One token per byte of UTF-8.

    Example:
        >>> ByteTokenizer().encode("é").tolist()
        [195, 169]
    """

    name: ClassVar = "bytes"
    unit: ClassVar = "byte"

    vocabulary: None = None

    @classmethod
    def fit(cls, text: str, limits: VocabularyLimits) -> Self:
        return cls()

    def __len__(self) -> int:
        return 256

    def encode(self, text: str) -> Tensor:
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).int()

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(ids).decode(errors="replace")


@dataclass(frozen=True)
class WordTokenizer(Tokenizer):
    """One token per word between white space, and ``<eos>`` at the end of each line, as WikiText is read.

    Words outside the vocabulary are ``<unk>``.

    Args:
        vocabulary: ``<unk>``, ``<eos>``, then words, the most frequent ones first.

    Example:
        >>> tokenizer = WordTokenizer.fit("to be or not to be", VocabularyLimits(min_count=2))
        >>> tokenizer.vocabulary, tokenizer.encode("to see").tolist()
        (['<unk>', '<eos>', 'to', 'be'], [2, 0, 1])
    """

    name: ClassVar = "words"

    @classmethod
    def fit(cls, text: str, limits: VocabularyLimits) -> Self:
        counts = Counter(chain.from_iterable(_words(text)))
        special = (UNKNOWN, END_OF_LINE)
        words = [word for word, count in counts.most_common() if count >= limits.min_count and word not in special]
        return cls([*special, *words][: limits.max_vocabulary])

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.vocabulary)}

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> Tensor:
        ids, index = array("i"), self._index
        for line in _words(text):
            ids.extend(index.get(word, 0) for word in line)
        return _tensor(ids)

    def decode(self, ids: Iterable[int]) -> str:
        words = (self.vocabulary[i] for i in ids)
        return re.sub(" ?\n ?", "\n", " ".join("\n" if word == END_OF_LINE else word for word in words))


def _tensor(ids: "array[int]") -> Tensor:
    """Return indices as int32, in the same memory."""
    return torch.frombuffer(ids, dtype=torch.int32) if ids else torch.empty(0, dtype=torch.int32)


def _words(text: str) -> Iterator[list[str]]:
    """Yield the tokens of each line."""
    for line in text.removesuffix("\n").split("\n"):
        yield [*line.split(), END_OF_LINE]


@dataclass(frozen=True)
class BytePairTokenizer(Tokenizer):
    """Byte-pair encoding of bytes (Sennrich et al. 2016, as in GPT-2), by the package ``tokenizers``. It takes any text.

    Text is encoded line by line.

    Args:
        vocabulary: Content of ``tokenizer.json``, as text.

    Raises:
        ValueError: The package ``tokenizers`` is missing, or the content is not that of a ``tokenizer.json``.
    """

    name: ClassVar = "bpe"

    def __post_init__(self) -> None:
        len(self)  # Bad content is found here.

    @cached_property
    def _tokenizer(self) -> Any:
        package = _package()
        try:
            return package.Tokenizer.from_str(self.vocabulary)
        except Exception as error:  # The package raises bare exceptions.
            raise ValueError(
                f"language.tokenizer must be a tokenizer.json of the package tokenizers, got other content ({error}). Give "
                "another file."
            ) from error

    @classmethod
    def fit(cls, text: str, limits: VocabularyLimits) -> Self:
        """Load the file that the limits name, or learn the pairs of the text."""
        if limits.file:
            return cls(Path(limits.file).read_text(encoding="utf-8"))
        package = _package()
        tokenizer = package.Tokenizer(package.models.BPE())
        tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = package.decoders.ByteLevel()
        trainer = package.trainers.BpeTrainer(
            vocab_size=limits.max_vocabulary or 30_000,
            min_frequency=limits.min_count,
            initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
        return cls(tokenizer.to_str())

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> Tensor:
        ids = array("i")
        lines = iter(text.splitlines(keepends=True))
        while batch := list(islice(lines, BATCH)):
            for encoding in self._tokenizer.encode_batch(batch, add_special_tokens=False):
                ids.extend(encoding.ids)
        return _tensor(ids)

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))


def _package() -> Any:
    """Import the package ``tokenizers``.

    Raises:
        ValueError: It is missing.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            "The package tokenizers must be installed for language.tokens=bpe, got no such package. Run pip install "
            "'imgproc-attn[text]', or use characters, bytes or words."
        ) from error
    return tokenizers


TOKENIZERS: Mapping[str, type[Tokenizer]] = {
    kind.name: kind for kind in (CharacterTokenizer, ByteTokenizer, WordTokenizer, BytePairTokenizer)
}


def tokenizer_of(record: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of a `Tokenizer.record`.

    Example:
        >>> tokenizer_of({"tokens": "characters", "vocabulary": ["a", "b"]}).encode("ba").tolist()
        [1, 0]
    """
    return TOKENIZERS[record["tokens"]](record["vocabulary"])
