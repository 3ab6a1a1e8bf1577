"""Text data: files and their splits, and random windows of tokens for training."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data import find_root
from .tokenizers import TOKENIZERS, Tokenizer, VocabularyLimits

__all__ = ["TextSplit", "TrainingWindows", "open_training_text", "read_text"]

FILE_SPLITS = ("train", "valid", "test")
FILE_CUTS = (0.0, 0.9, 0.95, 1.0)  # parts of a single file
VALIDATION_NAMES = ("valid", "validation", "val")
FILE_PATTERNS = ("{}.txt", "{}.tokens", "wiki.{}.tokens")


@dataclass(frozen=True)
class TextSplit:
    """One split of a text.

    Args:
        name: Name of the split.
        text: Its text.
        tokenizer: Tokenizer of the model.

    Raises:
        ValueError: The split has fewer than two tokens, or a token is not in the vocabulary.

    Example:
        >>> from imgproc_attn.language.tokenizers import ByteTokenizer
        >>> TextSplit("test", "to be", ByteTokenizer()).tokens.tolist()
        [116, 111, 32, 98, 101]
    """

    name: str
    text: str
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        if len(self.tokens) < 2:
            raise ValueError(
                f"The split {self.name} must have at least 2 tokens, one to predict from another, got {len(self.tokens)}. Give "
                "more text."
            )

    @cached_property
    def tokens(self) -> Tensor:
        """Token indices ``[n]``, int32."""
        return self.tokenizer.encode(self.text)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sha256(self) -> str:
        """Hash of the tokens."""
        return hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()

    def entries(self) -> Iterator[tuple[str, int, str]]:
        """Yield what tells this split from others, for `imgproc_attn.data.fingerprint`."""
        yield self.name, len(self.tokenizer), self.sha256


def read_text(root: str, split: str) -> str:
    """Read a split of a text.

    Args:
        root: Folder with one file per split, as ``train.txt`` or ``wiki.train.tokens``. Or one file: its first 90 % are
            ``train``, the next 5 % ``valid`` and the last 5 % ``test``, cut at the next end of a line.
        split: Name of the split.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: The file is empty, or is not UTF-8; or a single file has no such split.

    Example:
        >>> import textwrap
        >>> len(read_text(textwrap.__file__, "valid")) < len(read_text(textwrap.__file__, "train"))
        True
    """
    path = find_root(root)
    if path.is_dir():
        return _decoded(_file_of(path, split))
    if split not in FILE_SPLITS:
        raise ValueError(
            f"The split of a single file must be one of {', '.join(FILE_SPLITS)}, got {split!r}. Name one of them."
        )
    text, part = _decoded(path), FILE_SPLITS.index(split)
    start, stop = (_line_end(text, round(cut * len(text))) for cut in FILE_CUTS[part : part + 2])
    return text[start:stop]


def _file_of(folder: Path, split: str) -> Path:
    """Return the file of a split."""
    names = VALIDATION_NAMES if split in VALIDATION_NAMES else (split,)
    files = [folder / pattern.format(name) for name in names for pattern in FILE_PATTERNS]
    found = next((file for file in [folder / split, *files] if file.is_file()), None)
    if found is None:
        there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(
            f"{folder} must hold the split {split!r} as {files[0].name} or {files[-1].name}, got {there}. Rename the file, or "
            "name another split."
        )
    return found


def _decoded(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} must be UTF-8 text, got the byte 0x{error.object[error.start]:02x} at position {error.start}. Convert it, "
            "as with iconv -f LATIN1 -t UTF-8."
        ) from error
    if not text.strip():
        raise ValueError(f"{file} must hold text, got an empty file. Give another file.")
    return text


def _line_end(text: str, position: int) -> int:
    """Return the first end of a line at or after a position, or the position if there is none."""
    if position in (0, len(text)):
        return position
    return text.find("\n", position - 1) + 1 or position


def open_training_text(root: str, split: str, tokens: str, limits: VocabularyLimits) -> TextSplit:
    """Open a training text with the tokenizer that is made from it.

    Args:
        root: Folder or file, as in `read_text`.
        split: Name of the training split.
        tokens: Kind of tokens, a key of ``TOKENIZERS``.
        limits: Limits of the vocabulary.

    Raises:
        FileNotFoundError: As in `read_text`.
        ValueError: As in `read_text` and `TextSplit`.
    """
    path = find_root(root)
    file = _file_of(path, split) if path.is_dir() else path
    state = file.stat()
    return _opened(root, split, tokens, limits, (state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=1)  # The size of the vocabulary is needed before the data, and reading takes minutes for long texts.
def _opened(root: str, split: str, tokens: str, limits: VocabularyLimits, state: tuple[int, int]) -> TextSplit:
    text = read_text(root, split)
    return TextSplit(split, text, TOKENIZERS[tokens].fit(text, limits))


class TrainingWindows(Dataset):
    """Windows of a training text: an epoch is one pass over the text, cut at a random place.

    Args:
        split: Training text.
        context: Number of tokens per window.

    Raises:
        ValueError: The text is shorter than two windows.

    Example:
        >>> from imgproc_attn.language.tokenizers import ByteTokenizer
        >>> windows = TrainingWindows(TextSplit("train", "to be or not to be", ByteTokenizer()), context=4)
        >>> inputs, targets = windows[0]
        >>> len(windows), bytes(inputs.tolist()), bytes(targets.tolist())
        (3, b'to b', b'o be')
    """

    def __init__(self, split: TextSplit, context: int) -> None:
        if len(split) < 2 * context:
            raise ValueError(
                f"The split {split.name} must have at least {2 * context} tokens, two windows, got {len(split)}. Give more "
                "text, or lower language.context."
            )
        self.split, self.context, self.offset = split, context, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the place of the first cut."""
        generator = torch.Generator().manual_seed(epoch)
        self.offset = int(torch.randint(self.context, (), generator=generator))

    def __len__(self) -> int:
        return (len(self.split) - self.context) // self.context

    def entries(self) -> Iterator[tuple[str, int, str]]:
        """Yield what tells this text from others, for `imgproc_attn.data.fingerprint`."""
        return self.split.entries()

    def _start(self, index: int) -> int:
        return self.offset + index * self.context

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the input ``[context]`` and the target, which is the token that follows each token."""
        tokens = self.split.tokens[self._start(index) : self._start(index) + self.context + 1].long()
        return tokens[:-1], tokens[1:]

    def name(self, index: int) -> str:
        """Return the place of a window in the text."""
        return f"{self.split.name}, tokens {self._start(index)} to {self._start(index) + self.context}"
