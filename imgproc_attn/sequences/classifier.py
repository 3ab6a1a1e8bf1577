"""Classifier of token sequences whose attention is a filter: the Transformer of the Long Range Arena."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.block import FilterBlock
from ..language.transformer import TokenTransformer, check_ids
from ..utils.checks import check_flag, check_sizes, check_whole

__all__ = ["SequenceClassifier"]


class SequenceClassifier(TokenTransformer):
    """Bidirectional Transformer that classifies token sequences (Long Range Arena, arXiv 2011.04006).

    Tokens pass through filter blocks. Their mean over all tokens but padding goes through a layer of the width of the MLPs,
    with ReLU, to the logits. The default shape is that of the Transformer in the PyTorch code of later papers on this
    benchmark: two layers of width 64, MLPs of width 128 and two heads.

    Args:
        vocab_size: Number of tokens in the vocabulary.
        context: Largest number of tokens per sequence. Models without a table of positions take longer sequences too.
        embed_dim: Width of the tokens.
        depth: Number of blocks.
        num_heads: Number of heads.
        num_classes: Number of classes.
        padding: Token that fills short sequences of a batch. No token sees it, and it is not pooled. Default: none, all tokens
            count.
        pairs: Classify pairs of sequences. The same blocks summarize them as a and b, and the layer before the logits gets
            ``[a, b, a * b, a - b]``, as in the retrieval task of the benchmark.
        mlp_ratio: Width of the MLPs and of the layer before the logits, in units of ``embed_dim``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        **components: Components and further keywords of `imgproc_attn.language.TokenTransformer`.

    Raises:
        TypeError: As `imgproc_attn.language.TokenTransformer`.
        ValueError: As `imgproc_attn.language.TokenTransformer`; or ``padding`` is not in the vocabulary, or is given for a
            filter or kernel that takes no mask.

    Example:
        >>> model = SequenceClassifier(vocab_size=17, context=32, num_classes=10, padding=0, residual="twicing").eval()
        >>> ids = torch.tensor([[3, 4, 5, 0, 0]])
        >>> model(ids).shape, torch.allclose(model(ids), model(ids[:, :3]), atol=1e-6)
        (torch.Size([1, 10]), True)
    """

    is_causal: ClassVar = False

    def __init__(
        self,
        vocab_size: int = 256,
        context: int = 1024,
        embed_dim: int = 64,
        depth: int = 2,
        num_heads: int = 2,
        *,
        num_classes: int = 10,
        padding: int | None = None,
        pairs: bool = False,
        mlp_ratio: float = 2.0,
        device: Any = None,
        dtype: Any = None,
        **components: Any,
    ) -> None:
        check_sizes({"vocab_size": vocab_size, "embed_dim": embed_dim, "num_classes": num_classes})
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        embed = nn.Embedding(vocab_size, embed_dim, **dd)
        super().__init__(embed, context, embed_dim, depth, num_heads, mlp_ratio=mlp_ratio, **dd, **components)
        if padding is not None:
            if not 0 <= check_whole("padding", padding) < vocab_size:
                raise ValueError(
                    f"padding must be a token of the vocabulary, 0 to {vocab_size - 1}, got {padding}. Give one, or None."
                )
            for i, block in enumerate(self._blocks()):
                _check_takes_mask(i, block)
        self.vocab_size, self.num_classes, self.padding = vocab_size, num_classes, padding
        self.pairs = check_flag("pairs", pairs)
        width, summaries = int(embed_dim * mlp_ratio), 4 if pairs else 1
        self.head = nn.Sequential(nn.Linear(summaries * embed_dim, width, **dd), nn.ReLU(), nn.Linear(width, num_classes, **dd))

    def summarize(self, ids: Tensor) -> Tensor:
        """Return the mean token of each sequence, without padding.

        Args:
            ids: Token indices ``[B, N]``.

        Returns:
            ``[B, C]``.
        """
        check_ids(ids)
        if self.padding is None:
            return self.forward_features(ids).mean(dim=1)
        there = ids != self.padding
        x = self.forward_features(ids, attn_mask=there[:, None, None])
        kept = there[..., None].to(x.dtype)
        return (x * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of sequences.

        Args:
            ids: Token indices ``[B, N]``, each from 0 to ``vocab_size - 1``; ``[B, 2, N]`` for pairs. Every sequence has a
                token that is not padding.

        Returns:
            Logits ``[B, num_classes]``.

        Raises:
            TypeError: ``ids`` are not integers.
            ValueError: ``ids`` have another shape, are empty or longer than the context.
        """
        logits: Tensor = self.head(self._compared(ids) if self.pairs else self.summarize(ids))
        return logits

    def _compared(self, ids: Tensor) -> Tensor:
        """Return ``[a, b, a * b, a - b]`` of the summaries a and b of pairs, ``[B, 4 C]``."""
        if ids.dim() != 3 or ids.shape[1] != 2:
            raise ValueError(f"ids must have the shape [batch, 2, tokens], got {list(ids.shape)}. Give pairs of sequences.")
        a, b = self.summarize(ids.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(dim=1)
        return torch.cat([a, b, a * b, a - b], dim=1)


def _check_takes_mask(index: int, block: FilterBlock) -> None:
    """Fail for a layer that could not hide padding."""
    if block.attn.sees_all or not getattr(block.attn.filter, "can_be_masked", True):
        part = block.attn.kernel if block.attn.sees_all else block.attn.filter
        raise ValueError(
            f"A model with padding must have filters and kernels that take a mask, got {type(part).__name__} in block {index}, "
            "which cannot hide padding. Use filter='softmax' and another kernel, or padding=None for sequences of one length."
        )
