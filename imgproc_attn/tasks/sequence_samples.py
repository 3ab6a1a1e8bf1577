"""Labeled token sequences as samples of an evaluation, and their batches."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import PreprocessingLike
from ..evaluation.per_sample_rng import mix_seeds
from ..evaluation.samples import Batch, Samples
from ..language import WordSwap
from ..sequences import LabeledSequences
from ..sequences.sources import PADDING

__all__ = ["SequenceSamples", "pad_batch"]


def pad_batch(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Return the tokens of samples, padded at the end to the longest one, and their labels.

    Args:
        samples: Tokens ``[n]`` or ``[2, n]``, and label.

    Example:
        >>> pad_batch([(torch.tensor([3, 4]), 1), (torch.tensor([5]), 0)])
        (tensor([[3, 4],
                [5, 0]]), tensor([1, 0]))
    """
    length = max(tokens.shape[-1] for tokens, _ in samples)
    padded = [F.pad(tokens, (0, length - tokens.shape[-1]), value=PADDING) for tokens, _ in samples]
    return torch.stack(padded), torch.tensor([label for _, label in samples])


class SequenceSamples(Samples):
    """Token sequences with ids. A corruption changes contents before they become tokens.

    Args:
        images: The sequences.
        corruption: Word swap of texts, or corruption of 8-bit images. Default: none.
        positions: Positions of the samples in ``images``. Default: all.

    Example:
        >>> from imgproc_attn.sequences import Reviews
        >>> sequences = LabeledSequences(Reviews(["a.txt", "b.txt"], [b"a fine film", b"boring"], [1, 0]), context=100)
        >>> tokens, labels, ids = next(SequenceSamples(sequences).batches(None, 8, 0, torch.device("cpu")))
        >>> tokens.shape, labels, ids
        (torch.Size([2, 11]), tensor([1, 0]), tensor([0, 1]))
    """

    images: LabeledSequences

    def corrupted(self, corruption: Any) -> "SequenceSamples":
        samples = super().corrupted(corruption)
        if isinstance(corruption, WordSwap):
            swapped = [samples._swapped(i) for i in range(len(samples))]
            words = {"words": sum(s.words for s in swapped), "swapped_words": sum(s.swapped for s in swapped)}
            samples.__dict__["identity"] = {**self.identity, **words}
        return samples

    def _swapped(self, index: int) -> Any:
        """Return the swapped text of a sample. Each sample has its own draw."""
        text, _ = self.images.read(self._positions[index])
        own = replace(self.corruption, seed=mix_seeds(self.corruption.seed, int(self.ids[index])))
        return own(text)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        content, label = self.images.read(self._positions[index])
        if isinstance(self.corruption, WordSwap):
            content = self._swapped(index).text
        elif self.corruption is not None:
            content = self.corruption.corrupt(content, int(self.ids[index]))
        return self.images.encode(content), label

    def batches(
        self, preprocessing: PreprocessingLike | None, batch_size: int, workers: int, device: torch.device
    ) -> Iterator[Batch]:
        """Yield token indices ``[B, N]``, padded to the longest sequence of the batch, labels and ids."""
        if len(self) == 0:
            return
        loader: Any = DataLoader(self, batch_size, num_workers=min(workers, len(self)), collate_fn=pad_batch)
        for (tokens, labels), ids in zip(loader, self.ids.split(batch_size)):
            yield tokens.to(device), labels.to(device), ids.to(device)
