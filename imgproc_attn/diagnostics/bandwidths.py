"""Learned bandwidths of a model."""

import re
from collections import Counter

from torch import nn

from ..core.bandwidths import Bandwidth

__all__ = ["bandwidths"]


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
