"""Attention layers without their projections, compared with torch's attention."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.attention import FilterAttention
from ..core.bandwidths import at_least_float32
from ..core.filters import SoftmaxFilter
from ..core.geometry import grid_geometry
from ..core.kernels import DotProduct, Elliptical, GaussianRange
from ..core.layer_state import LayerState, next_state
from ..core.positions import Alibi, RelativeTable, SpatialGaussian
from ..core.residuals import PID, SOS, NeuTRENO, Plain, Residual, Twicing
from ..utils.progress import progress_bar
from .timing import Case, Step, baseline_of, build_cases, measure, summarize, synchronizer

__all__ = ["OPERATORS", "OperatorWork", "benchmark_operators"]

HEADS, HEAD_DIM = 6, 64

# To add a case, add a line.
OPERATORS = (
    Case("scaled_dot_product_attention", lambda work: work.plain, baseline=True),
    Case("non-local means", lambda work: work.layer(work.gaussian)),
    Case("bilateral", lambda work: work.layer(work.gaussian, [work.spatial])),
    Case("elliptical", lambda work: work.layer(Elliptical(HEAD_DIM))),
    Case("twicing", lambda work: work.layer(residual=Twicing(HEADS))),
    Case("bilateral + twicing", lambda work: work.layer(work.gaussian, [work.spatial], Twicing(HEADS))),
    Case("sos", lambda work: work.layer(residual=SOS(HEADS))),
    Case("neutreno", lambda work: work.layer(residual=NeuTRENO(HEADS))),
    Case("pid", lambda work: work.layer(residual=PID(HEADS))),
    Case("dot product, alibi (dense)", lambda work: work.layer(positions=[work.alibi])),
    Case("dot product, relative table (dense)", lambda work: work.layer(positions=[work.relative_table])),
    Case("explicit distances + softmax", lambda work: work.explicit),
)


class OperatorWork:
    """Attention layers without their projections, ``(q, k, v) -> [B, N, H d]``.

    Args:
        grid: (height, width) of the grid of patches.
        device: Device of the parameters.
    """

    def __init__(self, grid: tuple[int, int], device: str) -> None:
        self.geometry = grid_geometry(*grid, 0, torch.empty(0, device=device))
        self.gaussian = GaussianRange(HEADS, HEAD_DIM, device=device)
        self.spatial = SpatialGaussian(HEADS, grid, device=device)
        self.alibi = Alibi(HEADS, device=device)
        self.relative_table = RelativeTable(HEADS, grid, device=device)

    def layer(
        self, kernel: nn.Module | None = None, positions: Sequence[nn.Module] = (), residual: Residual | None = None
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return the layer of these components. Default: dot product, no positions and no boosting."""
        parts = (kernel or DotProduct(HEAD_DIM), positions, SoftmaxFilter(), residual or Plain())
        attn = FilterAttention(nn.Identity(), *parts, nn.Identity()).eval()

        def filtered(q, k, v):
            state = next_state(LayerState(), k) if attn.needs_state else None  # any values can stand for the previous layer
            return attn((q, k, v), self.geometry, state=state)[0]

        return filtered

    @staticmethod
    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return torch's softmax attention."""
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def explicit(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return non-local means, computed with a matrix of distances."""
        left, right = (at_least_float32(x).contiguous() for x in (q, k))  # cdist does not support half precision
        distances = torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist")
        log_weights = -(distances / self.gaussian.range_bandwidth()[:, None, None]).square()
        return (log_weights.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def _operator_step(operator: Callable[..., Tensor], qkv: Tensor, train: bool) -> Step:
    """Return a step from the output of the projection to that of the layer, with the backward pass if ``train``."""

    def step():
        x = qkv.detach().requires_grad_(train)
        q, k, v = x.unflatten(-1, (3, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4).unbind(0)
        with torch.set_grad_enabled(train):
            result = operator(q, k, v)
            if train:
                result.backward(qkv[..., : HEADS * HEAD_DIM])

    return step


def benchmark_operators(
    tokens: Sequence[int], runs: int, device: str = "cpu", dtype: torch.dtype = torch.float32, batch_tokens: int = 3136
) -> list[dict[str, Any]]:
    """Time the operators and plain attention, in inference and training, with ``batch_tokens`` tokens per batch."""
    rows = []
    synchronize = synchronizer(device)
    with progress_bar(2 * len(tokens) * (runs + 2), "rounds", "operators") as bar:
        for n in tokens:
            grid, batch = (math.isqrt(n), math.isqrt(n)), max(1, batch_tokens // n)
            qkv = torch.randn(batch, n, 3 * HEADS * HEAD_DIM, device=device, dtype=dtype)
            for train in (False, True):
                bar.set_postfix_str(f"{n} tokens, {'training' if train else 'inference'}")
                operators = build_cases(OPERATORS, OperatorWork(grid, device))
                steps = {name: _operator_step(operator, qkv, train) for name, operator in operators.items()}
                summary = summarize(measure(steps, runs, synchronize, bar), baseline_of(OPERATORS))
                rows += [{"tokens": n, "batch": batch, "mode": "training" if train else "inference", **row} for row in summary]
    return rows
