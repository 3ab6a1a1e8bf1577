"""Output layers of a language model: from features to scores of all tokens, or to the log-losses of given ones.

Their weights are those of the token embedding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.bandwidths import at_least_float32
from ..utils.checks import check_whole

__all__ = ["NOT_COUNTED", "AdaptiveSoftmax", "TiedLogits"]

NOT_COUNTED = -100  # target of tokens that do not count; torch's default ``ignore_index``


class TiedLogits(nn.Module):
    """Logits of all tokens, ``features @ embedding^T``.

    Args:
        embedding: Token embedding ``[V, C]``. It stays a part of the model, and is no parameter of this layer.

    Example:
        >>> TiedLogits(nn.Embedding(100, 8))(torch.rand(2, 5, 8)).shape
        torch.Size([2, 5, 100])
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # a tuple, so that the weight has one name in checkpoints

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[..., V]`` for features ``[..., C]``."""
        return F.linear(features, self._embedding[0].weight)

    def losses(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return the log-losses of targets ``[...]`` in nats. They are 0 where the target is -100."""
        logits = at_least_float32(self(features)).flatten(0, -2)
        return F.cross_entropy(logits, targets.flatten(), ignore_index=NOT_COUNTED, reduction="none").view(targets.shape)


class AdaptiveSoftmax(nn.Module):
    """Softmax in two steps (arXiv 1609.04309), computed by torch's `AdaptiveLogSoftmaxWithLoss`.

    Tokens are in the order of their frequency, as in `WordTokenizer`. The first softmax is over the frequent ones, up to the
    first cutoff, and over clusters of the others. Each cluster has a softmax of its own, which only the losses of its own
    tokens need. All tokens keep the width of the embedding, as in the code of the WikiText-103 models of the papers, where
    scores also have biases (Transformer-XL's ``--adaptive --div_val 1``).

    The losses select tokens by their targets, so `torch.compile` breaks the graph there.

    Args:
        embedding: Token embedding ``[V, C]``. It stays a part of the model, and is no parameter of this layer.
        cutoffs: First token of each cluster.

    Raises:
        TypeError: A cutoff is not a whole number.
        ValueError: Cutoffs do not increase from 1 to V - 1.

    Example:
        >>> layer = AdaptiveSoftmax(nn.Embedding(100, 8), cutoffs=[10, 40])
        >>> layer(torch.rand(2, 5, 8)).exp().sum(dim=-1).allclose(torch.ones(2, 5))
        True
    """

    def __init__(self, embedding: nn.Embedding, cutoffs: Sequence[int], device=None, dtype=None) -> None:
        super().__init__()
        vocab_size, width = embedding.weight.shape
        cutoffs = [check_whole("cutoffs", cutoff) for cutoff in cutoffs]
        if not cutoffs or sorted({0, *cutoffs, vocab_size}) != [0, *cutoffs, vocab_size]:
            raise ValueError(
                f"cutoffs must increase from 1 to {vocab_size - 1}, the last token of the vocabulary, got {cutoffs}. Give "
                "others, or cutoffs=[] for one softmax over all tokens."
            )
        self.clusters = nn.Linear(width, len(cutoffs), bias=False, device=device, dtype=dtype)
        nn.init.normal_(self.clusters.weight, std=0.02)  # as the embedding
        ends = [*cutoffs, vocab_size]
        parts = nn.AdaptiveLogSoftmaxWithLoss(width, vocab_size, cutoffs, 1.0, device="meta")  # its weights are replaced
        parts.head = _Scores(embedding, 0, cutoffs[0], self.clusters)  # type: ignore[assignment]
        parts.tail = nn.ModuleList(_Scores(embedding, start, stop) for start, stop in zip(cutoffs, ends[1:]))
        self.parts = parts

    def forward(self, features: Tensor) -> Tensor:
        """Return log-probabilities ``[..., V]`` for features ``[..., C]``."""
        flat = at_least_float32(features).flatten(0, -2)
        return self.parts.log_prob(flat).view(*features.shape[:-1], -1)

    def losses(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return the log-losses of targets ``[...]`` in nats. They are 0 where the target is -100."""
        flat, wanted = at_least_float32(features).flatten(0, -2), targets.flatten()
        counted = wanted != NOT_COUNTED
        losses = flat.new_zeros(len(wanted))
        losses[counted] = -self.parts(flat[counted], wanted[counted]).output
        return losses.view(targets.shape)

    def extra_repr(self) -> str:
        return f"cutoffs={self.parts.cutoffs[:-1]}"


class _Scores(nn.Module):
    """Scores of some tokens, and of clusters, in float32 or float64.

    Args:
        embedding: Token embedding.
        start: First token.
        stop: Token after the last one.
        clusters: Scores of clusters, which follow. Default: none.
    """

    def __init__(self, embedding: nn.Embedding, start: int, stop: int, clusters: nn.Linear | None = None) -> None:
        super().__init__()
        self._weights = (embedding, clusters)  # a tuple: both are parts of other modules
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        embedding, clusters = self._weights
        weight = embedding.weight[self.start : self.stop]
        if clusters is not None:
            weight = torch.cat([weight, clusters.weight])
        return at_least_float32(F.linear(x.to(weight.dtype), weight))
