"""Brute force: what a filter is, written down without any of the library's algebra."""

import torch
from torch import Tensor

from imgproc_attn.core.geometry import Geometry


def squared_distances(q: Tensor, k: Tensor) -> Tensor:
    """``|q_i - k_j|^2`` from explicit differences, in the type of q: ``[B, H, N, N]``."""
    return torch.stack([(q[:, :, i, None] - k).square().sum(-1) for i in range(q.shape[2])], dim=2)


def spatial_log_weights(geometry: Geometry, bandwidths: Tensor, dtype: torch.dtype) -> Tensor:
    """``-sum_axis (p_i - p_j)^2 / h_axis^2``, 0 with a prefix token; ``bandwidths`` ``[H, 1 or 2]``: ``[1 or B, H, N, N]``."""
    p = geometry.coordinates.to(dtype)
    h = bandwidths.to(dtype).expand(-1, 2)
    difference = (p[:, None, :, None] - p[:, None, None, :]) / h[None, :, None, None]
    both = geometry.is_patch.to(dtype)
    return -difference.square().sum(-1) * both[:, None] * both[None, :]


def filter_values(log_weights: Tensor, v: Tensor) -> Tensor:
    """``softmax(log_weights) v``, weights in the type of v for the product, as attention does it."""
    return log_weights.softmax(-1).to(v.dtype) @ v


def recurrence(residual, apply, v: Tensor, state=None) -> Tensor:
    """Boosting written down: ``u = A v``, then step by step; ``apply`` is A."""
    u, last = apply(v), v
    for _ in range(residual.steps):
        last = residual.operand(u, v, last)
        u = residual.update(u, apply(last))
    return residual.feedback(u, v, state)


def errors(result: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest and root-mean-square error."""
    difference = result.double() - exact
    return difference.abs().max().item(), difference.square().mean().sqrt().item()


def sharpened(model):
    """A fresh model attends to everything alike, and little of it reaches the logits: here filters choose, and matter."""
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[: 2 * model.embed_dim].mul_(15)
            block.attn.qkv.weight[2 * model.embed_dim :].mul_(5)
            block.attn.proj.weight.mul_(5)
            if hasattr(block.attn.filter, "temperature"):
                block.attn.filter.temperature.mul_(100)
    return model.eval()
