"""The bandwidths of a model, and whether they saturate its filters."""

import re
from collections import Counter

import torch
from torch import Tensor, nn

from ..core.bandwidths import Bandwidth
from ..models import FilterVisionTransformer

SATURATED_SHARE = 0.01  # of filter rows, above which a model is warned of


def bandwidths(model: nn.Module) -> dict[str, dict[str, list[float]]]:
    """All bandwidths of a model, ``{name: {layer: [value of each head]}}``, names as ``range_bandwidth``.

    Those of a segmenter's decoder are ``decoder range_bandwidth``; where a layer has several of one name, the second is
    ``spatial_bandwidth 2``. A gate widens the kernel behind it, which these numbers leave out.
    """
    found: dict[str, dict[str, list[float]]] = {}
    times: Counter[tuple[str, str]] = Counter()
    for path, module in model.named_modules():
        if isinstance(module, Bandwidth):
            block = re.search(r"blocks\.(\d+)\.", path)
            layer = block[1] if block else "0"
            name = "decoder " * ("decoder." in path) + path.rsplit(".", 1)[-1]
            times[name, layer] += 1
            name += f" {times[name, layer]}" * (times[name, layer] > 1)
            found.setdefault(name, {})[layer] = module().detach().double().cpu().tolist()
    return found


@torch.no_grad()
def saturation(model: FilterVisionTransformer, images: Tensor, threshold: float = 1 - 1e-4) -> float:
    """Share of filter rows, over layers, heads and tokens, with one weight above ``threshold``.

    Such a row is a copy of one token. It passes hardly any gradient to its bandwidth, query and keys, so a model full of them
    looks robust to gradient attacks without being it.

    Args:
        model: In eval mode.
        images: ``[B, C, H, W]``, normalized as the model expects.
        threshold: What counts as saturated.
    """
    shares = []
    for layer in range(len(model.blocks)):  # one at a time: a layer's dense rows may be large
        weights = model.attention_weights(images, [layer])[layer]
        shares.append((weights.amax(dim=-1) > threshold).double().mean().item())
    return sum(shares) / len(shares)
