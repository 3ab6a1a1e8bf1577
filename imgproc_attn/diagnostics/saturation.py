"""Saturation: the share of filter rows that copy a single token."""

import torch
from torch import Tensor

from ..core.block import FilterBlock
from ..models import FilterVisionTransformer

__all__ = ["SATURATED_SHARE", "saturation"]

SATURATED_SHARE = 0.01  # A larger share of saturated filter rows causes a warning.


def saturable_layers(model: FilterVisionTransformer) -> list[int]:
    """Return the block indices of filters whose rows sum to 1. Saturation is defined for these filters only."""
    filters = ((i, block.attn.filter) for i, block in enumerate(model.blocks) if isinstance(block, FilterBlock))
    return [i for i, filter in filters if getattr(filter, "rows_sum_to_one", True)]


@torch.no_grad()
def saturation(model: FilterVisionTransformer, images: Tensor, threshold: float = 1 - 1e-4) -> float:
    """Return the share of saturated filter rows over layers, heads and tokens.

    A saturated row has one weight above ``threshold``, so it copies one token. It passes almost no gradient to its bandwidth,
    query and keys. A model with many saturated rows looks robust to gradient attacks, but is not.

    Layers whose filter has ``rows_sum_to_one = False``, such as ``relu`` and ``token_statistics``, are left out: a large
    weight of such a filter does not copy a token, or the filter has no weights. The training callback and the sanity checks
    skip this check for a model that has such layers only.

    Args:
        model: Model in eval mode.
        images: Images ``[B, C, H, W]``, normalized as the model expects.
        threshold: Smallest weight, exclusive, of a saturated row.

    Returns:
        Share in 0 to 1.

    Raises:
        ValueError: No layer has a filter whose rows sum to 1.

    Example:
        >>> import timm
        >>> model = timm.create_model("nlm_vit_tiny", depth=1, img_size=32, patch_size=8).eval()
        >>> 0 <= saturation(model, torch.rand(2, 3, 32, 32)) <= 1
        True
    """
    layers = saturable_layers(model)
    if not layers:
        raise ValueError(
            "model must have a filter whose rows sum to 1, such as filter='softmax', to be checked for saturation, got none. "
            "Skip this check."
        )
    shares = []
    for layer in layers:  # One layer at a time, because its dense filter rows may need much memory.
        weights = model.attention_weights(images, [layer])[layer]
        shares.append((weights.amax(dim=-1) > threshold).double().mean().item())
    return sum(shares) / len(shares)
