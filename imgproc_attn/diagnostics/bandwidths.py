"""Bandwidths of a model, and the share of filter rows that they saturate."""

import re
from collections import Counter

import torch
from torch import Tensor, nn

from ..core.bandwidths import Bandwidth
from ..core.block import FilterBlock
from ..models import FilterVisionTransformer

__all__ = ["SATURATED_SHARE", "bandwidths", "saturation"]

SATURATED_SHARE = 0.01  # A larger share of saturated filter rows causes a warning.


def bandwidths(model: nn.Module) -> dict[str, dict[str, list[float]]]:
    """Return all bandwidths of a model.

    Args:
        model: Any model. Wrappers, such as one that normalizes images, are allowed.

    Returns:
        ``{name: {layer: [value per head]}}``, with names such as ``range_bandwidth``. Those of a segmenter's decoder begin
        with ``decoder``. If a layer has several bandwidths of one name, the second is ``spatial_bandwidth 2``. The widening
        of a kernel by a gate is not included.

    Example:
        >>> import timm
        >>> model = timm.create_model("bilateral_vit_tiny", depth=1, img_size=32, patch_size=8)
        >>> list(bandwidths(model))
        ['range_bandwidth', 'spatial_bandwidth']
    """
    result: dict[str, dict[str, list[float]]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for path, module in model.named_modules():
        if isinstance(module, Bandwidth):
            block = re.search(r"blocks\.(\d+)\.", path)
            layer = block[1] if block else "0"
            name = "decoder " * ("decoder." in path) + path.rsplit(".", 1)[-1]
            counts[name, layer] += 1
            name += f" {counts[name, layer]}" * (counts[name, layer] > 1)
            result.setdefault(name, {})[layer] = module().detach().double().cpu().tolist()
    return result


def saturable_layers(model: FilterVisionTransformer) -> list[int]:
    """Return the block indices of filters whose rows sum to 1. Saturation is defined for these filters only."""
    filters = ((i, block.attn.filter) for i, block in enumerate(model.blocks) if isinstance(block, FilterBlock))
    return [i for i, filter in filters if getattr(filter, "rows_sum_to_one", True)]


@torch.no_grad()
def saturation(model: FilterVisionTransformer, images: Tensor, threshold: float = 1 - 1e-4) -> float:
    """Return the share of saturated filter rows over layers, heads and tokens.

    A saturated row has one weight above ``threshold``, so it copies one token. It passes almost no gradient to its bandwidth,
    query and keys. A model with many saturated rows looks robust to gradient attacks, but is not.

    Layers whose filter has ``rows_sum_to_one = False``, as ``relu`` and ``token_statistics``, are left out: a large weight of
    theirs copies no token, or there are no weights. The training callback and the sanity checks skip this check for a model
    that has such layers only.

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
            "model must have a filter whose rows sum to 1, as filter='softmax', to be checked for saturation, got none. Skip "
            "this check."
        )
    shares = []
    for layer in layers:  # One layer at a time, because its dense filter rows may need much memory.
        weights = model.attention_weights(images, [layer])[layer]
        shares.append((weights.amax(dim=-1) > threshold).double().mean().item())
    return sum(shares) / len(shares)
