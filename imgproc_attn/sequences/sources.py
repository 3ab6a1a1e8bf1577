"""Data sets of labeled token sequences: the tasks of the Long Range Arena (arXiv 2011.04006)."""

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..data import Images, find_root
from .listops import COLUMNS, TOKENS

__all__ = [
    "SOURCES",
    "LabeledSequences",
    "ListOpsFile",
    "PixelSequences",
    "RetrievalFile",
    "Reviews",
    "SequenceSource",
    "luminance",
]

PADDING = 0  # token that fills short sequences; the tokens of a vocabulary follow
BYTES = 257  # padding and the 256 bytes
VALIDATION_NAMES = ("val", "valid", "validation", "eval")
GRAY = np.array([0.2989, 0.5870, 0.1140], dtype=np.float32)  # weights of tf.image.rgb_to_grayscale


class SequenceSource(ABC):
    """One split of labeled sequences.

    Attributes:
        vocab_size: Number of tokens, padding included.
        padding: Token that fills short sequences; None if all sequences have one length.
        num_classes: Number of classes; None if the recipe gives it.
        classes: ``{name of the class: label}``; None if names are unknown.
        indices: Numbers of the sequences in the data set.
        pairs: Whether a sample is two sequences.
        changed_by: Kind of corruption that contents can go through, ``word_swap``, ``images`` or nothing.
    """

    vocab_size: ClassVar[int]
    padding: ClassVar[int | None] = PADDING
    num_classes: ClassVar[int | None] = None
    pairs: ClassVar[bool] = False
    changed_by: ClassVar[str] = ""

    classes: Mapping[str, int] | None = None
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    @abstractmethod
    def read(self, index: int) -> tuple[Any, int]:
        """Return the content of a sequence, before it is encoded, and its label."""

    @abstractmethod
    def encode(self, content: Any) -> np.ndarray:
        """Return the tokens of a content, ``[n]``, or ``[2, n]`` for pairs."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of a sequence."""

    def entries(self, positions: Iterable[int]) -> Iterator[tuple[Any, ...]]:
        """Yield name, label and a checksum of the content per sequence."""
        for position in positions:
            content, label = self.read(position)
            yield self.name(position), label, zlib.crc32(repr(content).encode("ascii", "backslashreplace"))


class SequenceFiles(SequenceSource):
    """Base class of sources that are files of their own format."""

    @classmethod
    @abstractmethod
    def open(cls, root: str, split: str, seed: int) -> Self:
        """Open a split of the files under ``root``.

        Args:
            root: Folder or file, also relative to ``$IMGPROC_ATTN_DATA``.
            split: Name of the split.
            seed: Seed of random splits.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: There is no such split, or a file has another format.
        """


class ListOpsFile(SequenceFiles):
    """Expressions of ListOps in a tab-separated file with the columns Source and Target.

    Parentheses are dropped, as in the published pipeline. Tokens are the digits, the four operators and the closing bracket.

    Args:
        file: File of the split, ``basic_train.tsv`` for example (see `imgproc_attn.sequences.write_listops`).

    Raises:
        ValueError: The file has no such columns, or a line holds another token or label, or no expression.
    """

    vocab_size: ClassVar = 1 + len(TOKENS)
    num_classes: ClassVar = 10

    def __init__(self, file: Path) -> None:
        index = {token: i for i, token in enumerate(TOKENS, PADDING + 1)}
        self.file, self._rows = file, []
        with file.open(encoding="utf-8", errors="replace", newline="") as lines:
            header = tuple(next(lines, "").rstrip("\r\n").split("\t"))
            if header != COLUMNS:
                raise ValueError(
                    f"{file} must have the columns {' and '.join(COLUMNS)}, separated by tabs, got {header[0][:40]!r} in its "
                    "first line. Write the file with imgproc-attn listops."
                )
            for number, line in enumerate(lines, 2):
                source, _, target = line.rstrip("\r\n").partition("\t")
                words = source.replace("(", "").replace(")", "").split()
                try:
                    self._rows.append((bytes(map(index.__getitem__, words)), _digit(file, number, target, 9)))
                except KeyError as error:
                    raise ValueError(
                        f"{file}, line {number}: tokens must be {' '.join(TOKENS)}, got {error.args[0]!r}. Correct the line."
                    ) from error
                if not words:
                    raise ValueError(f"{file}, line {number}: Source must be an expression, got nothing. Remove the line.")
        self.indices = range(len(_some(file, self._rows)))

    @classmethod
    def open(cls, root: str, split: str, seed: int = 0) -> Self:
        return cls(_file_of(find_root(root), split, ("*_{}.tsv", "{}.tsv")))

    def read(self, index: int) -> tuple[bytes, int]:
        return self._rows[index]

    def encode(self, content: bytes) -> np.ndarray:
        return np.frombuffer(content, dtype=np.uint8)

    def name(self, index: int) -> str:
        return f"{self.file.name}, line {index + 2}"


class Reviews(SequenceFiles):
    """Film reviews as bytes: text files in the folders ``pos`` and ``neg``, in a folder or a zip file.

    With folders ``train`` and ``test`` around them, as in IMDB's published layout, these are the splits. Without, the files of
    each class are divided at random: 70 % ``train``, 10 % ``val``, 20 % ``test``.

    Args:
        names: Names of the files.
        texts: Their texts.
        labels: 0 for negative, 1 for positive.

    Raises:
        ValueError: A text is empty.
    """

    vocab_size: ClassVar = BYTES
    num_classes: ClassVar = 2
    changed_by: ClassVar = "word_swap"
    kinds: ClassVar = {"neg": 0, "pos": 1}
    shares: ClassVar = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}

    def __init__(self, names: Sequence[str], texts: Sequence[bytes], labels: Sequence[int]) -> None:
        empty = next((name for name, text in zip(names, texts) if not text.strip()), None)
        if empty is not None:
            raise ValueError(f"{empty} must hold text, got an empty file. Remove it.")
        self._names, self._texts, self._labels, self.indices = names, texts, labels, range(len(names))
        self.classes = self.kinds

    @classmethod
    def open(cls, root: str, split: str, seed: int = 0) -> Self:
        path = find_root(root)
        if path.is_dir():
            files = {file.relative_to(path).as_posix(): file.read_bytes for file in sorted(path.rglob("*.txt"))}
            return cls._of_split(path, files, split, seed)
        try:
            with zipfile.ZipFile(path) as archive:
                members = {name: _member(archive, name) for name in sorted(archive.namelist()) if name.endswith(".txt")}
                return cls._of_split(path, members, split, seed)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(
                f"{path} must be a folder or a complete zip file of reviews, got an unreadable file ({error}). Copy it again."
            ) from error

    @classmethod
    def _of_split(cls, path: Path, files: Mapping[str, Callable[[], bytes]], split: str, seed: int) -> Self:
        folders = {name: ("", *name.split("/"))[-3:-1] for name in files}  # of a file: the split, or any other, and the class
        known = [name for name, (_, kind) in folders.items() if kind in cls.kinds]
        if not known:
            raise ValueError(
                f"{path} must hold text files in the folders pos and neg, got {len(files)} text files elsewhere. Check the "
                "path."
            )
        if any(folders[name][0] in ("train", "test") for name in known):
            chosen = [name for name in known if folders[name][0] == split]
            there = sorted({folders[name][0] for name in known})
        else:
            chosen = [name for kind in cls.kinds for name in _part(known, folders, kind, cls.shares.get(split), seed)]
            there = list(cls.shares)
        if not chosen:
            raise ValueError(f"The split must be one of {path} ({', '.join(there)}), got {split!r}. Name one of them.")
        labels = [cls.kinds[folders[name][1]] for name in chosen]
        return cls(chosen, [files[name]() for name in chosen], labels)

    def read(self, index: int) -> tuple[str, int]:
        return self._texts[index].decode("utf-8", "surrogateescape"), self._labels[index]

    def encode(self, content: str) -> np.ndarray:
        return _tokens_of(content.encode("utf-8", "surrogateescape"))

    def name(self, index: int) -> str:
        return self._names[index]


class RetrievalFile(SequenceFiles):
    """Pairs of documents in a tab-separated file without a header: label, two identifiers, two texts.

    This is the format of the Long Range Arena's retrieval task (ACL Anthology Network), ``<name>.train.tsv`` and so on. The
    file is read into memory.

    Args:
        file: File of the split.

    Raises:
        ValueError: A line has other columns, another label, or an empty text.
    """

    vocab_size: ClassVar = BYTES
    num_classes: ClassVar = 2
    pairs: ClassVar = True

    def __init__(self, file: Path) -> None:
        self.file, self._rows = file, []
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            columns = line.split(b"\t")
            if len(columns) != 5:
                raise ValueError(
                    f"{file}, line {number}: there must be 5 columns, separated by tabs (label, two identifiers, two texts), "
                    f"got {len(columns)}. Correct the line."
                )
            label = columns[0].decode("ascii", "replace").removesuffix(".0")
            if not all(text.strip() for text in columns[3:]):
                raise ValueError(f"{file}, line {number}: both texts must hold text, got an empty one. Remove the line.")
            self._rows.append((columns[3], columns[4], _digit(file, number, label, 1)))
        self.indices = range(len(_some(file, self._rows)))

    @classmethod
    def open(cls, root: str, split: str, seed: int = 0) -> Self:
        return cls(_file_of(find_root(root), split, ("*.{}.tsv", "{}.tsv")))

    def read(self, index: int) -> tuple[tuple[bytes, bytes], int]:
        first, second, label = self._rows[index]
        return (first, second), label

    def encode(self, content: tuple[bytes, bytes]) -> np.ndarray:
        length = max(map(len, content))
        padded = [np.pad(_tokens_of(text), (0, length - len(text)), constant_values=PADDING) for text in content]
        return np.stack(padded)

    def name(self, index: int) -> str:
        return f"{self.file.name}, line {index + 1}"


class PixelSequences(SequenceSource):
    """Images as sequences of gray values, row by row. A token is a gray value from 0 to 255.

    Args:
        images: Images, gray or in color. Colors become gray as in the published pipeline (see `luminance`).
        size: (height, width) in pixels. Images of another size are resized, by the mean over areas.
    """

    vocab_size: ClassVar = 256
    padding: ClassVar = None
    changed_by: ClassVar = "images"

    def __init__(self, images: Images, size: tuple[int, int]) -> None:
        self.images, self.size, self.indices, self.classes = images, size, images.indices, images.classes

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Return the pixels, ``[1 or 3, H, W]`` uint8, and the label."""
        image, label = self.images[index]
        return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1), label

    def encode(self, content: np.ndarray) -> np.ndarray:
        if content.shape[1:] != self.size:
            height, width = self.size
            resized = [Image.fromarray(channel).resize((width, height), Image.Resampling.BOX) for channel in content]
            content = np.stack([np.asarray(channel) for channel in resized])
        return (content[0] if len(content) == 1 else luminance(content.transpose(1, 2, 0))).reshape(-1)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def entries(self, positions: Iterable[int]) -> Iterator[tuple[Any, ...]]:
        return self.images.entries()  # These do not decode the images, which are used as a whole.


SOURCES: Mapping[str, type[SequenceFiles]] = {"listops": ListOpsFile, "reviews": Reviews, "retrieval": RetrievalFile}


class LabeledSequences(Dataset):
    """Token sequences of a source, cut to a context.

    Args:
        source: Source of the sequences.
        context: Number of tokens that are kept. Later ones are dropped, as in the published pipelines.
        positions: Positions of the sequences in the source. Default: all.

    Attributes:
        indices: Numbers of the sequences in the data set.

    Example:
        >>> reviews = Reviews(["a.txt"], [b"a fine film"], [1])
        >>> LabeledSequences(reviews, context=4)[0]
        (tensor([ 98,  33, 103, 106]), 1)
    """

    transform: Any = None  # evaluations ask for it; sequences have none

    def __init__(self, source: SequenceSource, context: int, positions: Sequence[int] | None = None) -> None:
        self.source, self.context = source, context
        self._positions = range(len(source)) if positions is None else positions
        self.indices = [source.indices[position] for position in self._positions]

    @property
    def classes(self) -> Mapping[str, int] | None:
        """``{name: label}``; None if names are unknown."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, index: int) -> tuple[Any, int]:
        """Return the content of a sequence, before it is encoded, and its label."""
        return self.source.read(self._positions[index])

    def encode(self, content: Any) -> Tensor:
        """Return the tokens of a content, ``[n]`` or ``[2, n]``, at most ``context`` of them."""
        return torch.from_numpy(self.source.encode(content)[..., : self.context].astype(np.int64))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        content, label = self.read(index)
        return self.encode(content), label

    def name(self, index: int) -> str:
        """Return the name of a sequence."""
        return self.source.name(self._positions[index])

    def content(self, index: int) -> bytes:
        """Return bytes that are equal for equal sequences with equal labels."""
        tokens, label = self[index]
        return repr((label, tuple(tokens.shape))).encode() + tokens.numpy().tobytes()

    def entries(self) -> Iterator[tuple[Any, ...]]:
        """Yield what tells these sequences from others, for `imgproc_attn.data.fingerprint`."""
        return self.source.entries(self._positions)


def luminance(image: np.ndarray) -> np.ndarray:
    """Return the gray values of an RGB image by the formula of ``tf.image.rgb_to_grayscale``.

    Args:
        image: ``[H, W, 3]``, uint8.

    Returns:
        ``[H, W]``, uint8: the float32 sum ``0.2989 R + 0.5870 G + 0.1140 B``, times 255.5 / 255, rounded down.

    Example:
        >>> luminance(np.array([[[255, 255, 255], [255, 0, 0]]], dtype=np.uint8)).tolist()
        [[255, 76]]
    """
    gray = (image.astype(np.float32) / np.float32(255)) @ GRAY
    return np.minimum(gray * np.float32(255.5), 255).astype(np.uint8)


def _tokens_of(text: bytes) -> np.ndarray:
    """Return the tokens of bytes: their values, after padding."""
    return np.frombuffer(text, dtype=np.uint8).astype(np.int64) + PADDING + 1


def _member(archive: zipfile.ZipFile, name: str) -> Callable[[], bytes]:
    return lambda: archive.read(name)


def _part(
    names: Sequence[str], folders: Mapping[str, Sequence[str]], kind: str, share: tuple[float, float] | None, seed: int
) -> list[str]:
    """Return the random files of a class that belong to a split, in the order of their names."""
    files = [name for name in names if folders[name][1] == kind]
    start, stop = (round(part * len(files)) for part in share or (0, 0))
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
    return [files[i] for i in sorted(order[start:stop])]


def _file_of(folder: Path, split: str, patterns: Sequence[str]) -> Path:
    """Return the file of a split.

    Raises:
        FileNotFoundError: There is none, or several.
    """
    names = VALIDATION_NAMES if split in VALIDATION_NAMES else (split,)
    found = sorted(file for name in names for pattern in patterns for file in folder.glob(pattern.format(name)))
    if len(found) != 1:
        there = ", ".join(sorted(file.name for file in found or folder.glob("*"))[:8]) or "nothing"
        raise FileNotFoundError(
            f"{folder} must hold one file {patterns[0].format(split)} for the split {split!r}, got {there}. Name the folder of "
            "the files, or another split."
        )
    return found[0]


def _digit(file: Path, number: int, text: str, largest: int) -> int:
    """Return the label of a line.

    Raises:
        ValueError: It is no whole number from 0 to ``largest``.
    """
    if not (text.isdecimal() and int(text) <= largest):
        raise ValueError(
            f"{file}, line {number}: the label must be a whole number from 0 to {largest}, got {text[:40]!r}. Correct the line."
        )
    return int(text)


def _some(file: Path, rows: list[Any]) -> list[Any]:
    if not rows:
        raise ValueError(f"{file} must hold at least one sequence, got none. Give another file.")
    return rows
