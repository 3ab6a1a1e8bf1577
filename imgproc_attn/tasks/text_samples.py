"""Windows of a text as samples of an evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..data import PreprocessingLike
from ..evaluation.samples import Batch, SampleSet, names_hash
from ..language import TextSplit, WordSwap
from ..language.output_layers import NOT_COUNTED
from ..language.word_swap import SwappedText
from ..utils.markdown import markdown_text

__all__ = ["WindowSamples", "swap_notes", "word_swaps"]


class WindowSamples(SampleSet):
    """Overlapping windows of a text. Each token but the first is predicted in one window.

    The first window predicts its ``context`` tokens, each later one the last ``stride``. So a token is predicted with at least
    ``context - stride`` tokens before it, except at the start of the text. With a stride of ``context``, windows are segments
    that do not overlap.

    Args:
        split: The text.
        context: Number of tokens per window.
        stride: Distance between windows, at most ``context``.
        ids: Numbers of the windows. Default: all.
        corruption: Word swap that the text went through. Default: none.
        swapped: Its result. Default: none.

    Example:
        >>> from imgproc_attn.language import ByteTokenizer
        >>> samples = WindowSamples(TextSplit("test", "abcdefgh", ByteTokenizer()), context=4, stride=2)
        >>> len(samples), samples.name(1)
        (3, 'test, tokens 5 to 6')
    """

    def __init__(
        self,
        split: TextSplit,
        context: int,
        stride: int,
        ids: Tensor | None = None,
        corruption: WordSwap | None = None,
        swapped: SwappedText | None = None,
    ) -> None:
        self.split, self.context, self.stride, self.corruption, self.swapped = split, context, stride, corruption, swapped
        self._count = 1 + max(0, -(-(len(split) - 1 - context) // stride))
        self.ids = torch.arange(self._count) if ids is None else ids[ids < self._count]

    def _predicted(self, window: int) -> tuple[int, int]:
        """Return the first and the last token that a window predicts."""
        start = window * self.stride
        first = 1 if window == 0 else start + self.context - self.stride + 1
        return first, min(start + self.context, len(self.split) - 1)

    def name(self, sample_id: int) -> str:
        first, last = self._predicted(sample_id)
        return f"{self.split.name}, tokens {first} to {last}"

    @cached_property
    def identity(self) -> dict[str, Any]:
        names = names_hash([self.name(i) for i in self.ids.tolist()])
        swap = {} if self.swapped is None else {"words": self.swapped.words, "swapped_words": self.swapped.swapped}
        return {"n": len(self), "names_sha256": names, "content_sha256": self.split.sha256, **swap}

    def entries(self) -> Iterator[tuple[str, int, str]]:
        """Yield what tells this text from others, for `imgproc_attn.data.fingerprint`."""
        return self.split.entries()

    @property
    def class_names(self) -> dict[int, str]:
        return {}

    def _at(self, ids: Tensor) -> "WindowSamples":
        return WindowSamples(self.split, self.context, self.stride, ids, self.corruption, self.swapped)

    def without(self, ids: Tensor) -> "WindowSamples":
        return self._at(self.ids[~torch.isin(self.ids, ids)])

    def share(self, rank: int, size: int) -> "WindowSamples":
        return self._at(self.ids[rank::size])

    def corrupted(self, corruption: WordSwap) -> "WindowSamples":
        """Return the same windows of the contaminated text, whose number of tokens may be another one."""
        swapped, ids = corruption(self.split.text), None if len(self) == self._count else self.ids
        split = TextSplit(self.split.name, swapped.text, self.split.tokenizer)
        return WindowSamples(split, self.context, self.stride, ids, corruption, swapped)

    def batches(self, preprocessing: PreprocessingLike, batch_size: int, workers: int, device: torch.device) -> Iterator[Batch]:
        """Yield token indices ``[B, N]``, the tokens that follow them, or ``NOT_COUNTED``, and ids."""
        for ids in self.ids.split(batch_size) if len(self) else ():
            windows = [self._window(window) for window in ids.tolist()]
            tokens, targets = (torch.stack(parts).to(device) for parts in zip(*windows))
            yield tokens, targets, ids

    def _window(self, window: int) -> tuple[Tensor, Tensor]:
        """Return tokens and targets of a window. The last one is padded at its end, which earlier tokens do not see."""
        start, (first, last) = window * self.stride, self._predicted(window)
        length = min(self.context, len(self.split) - 1)
        tokens, targets = torch.zeros(length, dtype=torch.int64), torch.full((length,), NOT_COUNTED)
        tokens[: last - start] = self.split.tokens[start:last]
        targets[first - start - 1 : last - start] = self.split.tokens[first : last + 1]
        return tokens, targets


def word_swaps(names: Sequence[str] | None, rates: Sequence[float] | None, seed: int, data: str) -> list[WordSwap]:
    """Return the word swaps of a command.

    Args:
        names: Names of corruptions. Default: word swap.
        rates: Shares of the words to replace. Default: that of `WordSwap`.
        seed: Seed of the draws.
        data: What is corrupted, for the message.

    Raises:
        ValueError: A name is that of another corruption.
    """
    wrong = [name for name in names or () if name != WordSwap.name]
    if wrong:
        raise ValueError(f"--corruptions must be word_swap for {data}, got {wrong[0]}. Images have others.")
    return [WordSwap(rate, seed) for rate in rates or (WordSwap.rate,)]


def swap_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on how many words were replaced in the conditions with swapped words."""
    notes = []
    for row in (row for row in rows if "words" in row["images"]):
        words, swapped, token = row["images"]["words"], row["images"]["swapped_words"], row["corruption"]["token"]
        share = 100 * swapped / max(words, 1)
        notes.append(f"{markdown_text(row['name'])}: {swapped} of {words} words ({share:.2f} %) are replaced by `{token}`.")
    return notes
