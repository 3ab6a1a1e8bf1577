"""Cache of a causal language model: what later tokens need from earlier ones.

Under causality, all results of earlier tokens are final. So a layer needs the keys of the earlier tokens, and the input of each
application of its filter at these tokens: the values, then one tensor per boosting step. The state that layers pass on
(`imgproc_attn.core.LayerState`) concerns one token at a time, so it is that of the new tokens.
"""

from collections.abc import Iterable

import torch

from ..core.block import FilterBlock
from ..core.geometry import Geometry
from ..core.layer_cache import LayerCache

__all__ = ["Cache"]


class Cache:
    """Keys and values of the tokens that a language model has seen. `FilterLanguageModel.new_cache` makes an empty one.

    Pass it to each call of the model, with new tokens only. The first call sets the batch size.

    Args:
        blocks: Blocks of the model.

    Attributes:
        length: Number of tokens seen.

    Raises:
        ValueError: A layer cannot be cached.

    Example:
        >>> from imgproc_attn.language import create_model
        >>> model = create_model("test_gpt2_lm").eval()
        >>> ids, cache = torch.randint(256, (2, 8)), model.new_cache()
        >>> with torch.no_grad():
        ...     first, second = model(ids[:, :5], cache), model(ids[:, 5:], cache)
        ...     torch.allclose(torch.cat([first, second], dim=1), model(ids), atol=1e-5)
        True
    """

    def __init__(self, blocks: Iterable[FilterBlock]) -> None:
        self.length = 0
        self.batch_size: int | None = None
        self.layers: list[list[LayerCache]] = []
        for i, block in enumerate(blocks):
            _check_block(i, block)
            self.layers.append([LayerCache() for _ in range(block.block_residual.steps + 1)])

    def extend(self, batch_size: int, geometry: Geometry) -> None:
        """Prepare the cache for new tokens.

        Args:
            batch_size: Number of sequences.
            geometry: Positions of all tokens, with the new ones.

        Raises:
            ValueError: The batch size has changed.
            RuntimeError: Gradients are on. The cache overwrites its tensors, so it has none.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("Gradients must be off with a cache, which keeps none, got them on. Use torch.no_grad().")
        if self.batch_size not in (None, batch_size):
            raise ValueError(
                f"ids must have the batch size of the cache, {self.batch_size}, got {batch_size}. Make a new cache for other "
                "sequences."
            )
        self.batch_size = batch_size
        self.length = geometry.coordinates.shape[1]
        for layer in self.layers:
            for part in layer:
                part.geometry = geometry


def _check_block(index: int, block: FilterBlock) -> None:
    """Fail for a block whose filter cannot go on from keys and values of earlier tokens."""
    if block.attn.sees_all:
        name = type(block.attn.kernel).__name__
        raise ValueError(
            f"Kernels must compare two tokens at a time for a cache, got {name} in block {index}, whose metric is computed "
            "from all tokens. Generate with use_cache=False."
        )
    if not getattr(block.attn.filter, "can_be_cached", True):
        raise ValueError(
            f"filter must work on keys and values for a cache, got {type(block.attn.filter).__name__} in block {index}, which "
            "works on sums over all tokens. Generate with use_cache=False."
        )
    if block.training:
        raise ValueError(
            f"Blocks must be in evaluation mode for a cache, which dropout does not allow, got training mode in block {index}. "
            "Call model.eval()."
        )
