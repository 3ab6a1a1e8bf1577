"""Attention layers without their projections, compared with torch's attention."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.attention import FilterAttention
from ..core.bandwidths import at_least_float32
from ..core.filters import SoftmaxFilter
from ..core.geometry import Geometry, grid_geometry
from ..core.kernels import DotProduct, Elliptical, GaussianRange
from ..core.layer_state import LayerState, next_state
from ..core.positions import Alibi, RelativeTable, SpatialGaussian
from ..core.residuals import PID, SOS, NeuTRENO, Plain, Residual, Twicing
from ..utils.progress import progress_bar
from .timing import WARM_UP_ROUNDS, Case, Step, baseline_of, build_cases, measure, summarize, synchronizer

__all__ = ["HEADS", "HEAD_DIM", "OPERATORS", "LayerWork", "OperatorWork", "benchmark_operators", "time_operators"]

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


class LayerWork:
    """Attention layers without their projections, ``(q, k, v) -> [B, N, H d]``.

    Args:
        geometry: Positions of the tokens.
        is_causal: Whether tokens see earlier tokens only.
        device: Device of the parameters.
    """

    def __init__(self, geometry: Geometry, is_causal: bool, device: str) -> None:
        self.geometry, self.is_causal = geometry, is_causal
        self.gaussian = GaussianRange(HEADS, HEAD_DIM, device=device)
        self.spatial = SpatialGaussian(HEADS, geometry.grid_size, device=device)
        self.alibi = Alibi(HEADS, device=device)

    def layer(
        self, kernel: nn.Module | None = None, positions: Sequence[nn.Module] = (), residual: Residual | None = None
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return the layer of these components. Default: dot product, no positions and no boosting."""
        parts = (kernel or DotProduct(HEAD_DIM), positions, SoftmaxFilter(), residual or Plain())
        attn = FilterAttention(nn.Identity(), *parts, nn.Identity()).eval()

        def filtered(q, k, v):
            state = next_state(LayerState(), k) if attn.needs_state else None  # any values can stand for the previous layer
            return attn((q, k, v), self.geometry, is_causal=self.is_causal, state=state)[0]

        return filtered

    def plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return torch's softmax attention."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal).transpose(1, 2).flatten(2)


class OperatorWork(LayerWork):
    """Layers on a grid.

    Args:
        grid: (height, width) of the grid of patches.
        device: Device of the parameters.
    """

    def __init__(self, grid: tuple[int, int], device: str) -> None:
        super().__init__(grid_geometry(*grid, 0, torch.empty(0, device=device)), False, device)
        self.relative_table = RelativeTable(HEADS, grid, device=device)

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


def time_operators(
    cases: Sequence[Case], make_work: Callable[[], LayerWork], shape: tuple[int, int], runs: int, like: Tensor, bar: Any
) -> list[dict[str, Any]]:
    """Time the cases on random tokens, in inference and training.

    Args:
        cases: Cases to compare.
        make_work: Function that returns layers with new parameters.
        shape: (batch size, number of tokens).
        runs: Number of timed rounds.
        like: A tensor of the device and dtype of the tokens.
        bar: Progress bar, which counts rounds.
    """
    batch, n = shape
    qkv = torch.randn(batch, n, 3 * HEADS * HEAD_DIM, device=like.device, dtype=like.dtype)
    rows = []
    for mode in ("inference", "training"):
        bar.set_postfix_str(f"{n} tokens, {mode}")
        operators = build_cases(cases, make_work())
        steps = {name: _operator_step(operator, qkv, mode == "training") for name, operator in operators.items()}
        summary = summarize(measure(steps, runs, synchronizer(str(like.device)), bar), baseline_of(cases))
        rows += [{"tokens": n, "batch": batch, "mode": mode, **row} for row in summary]
    return rows


def benchmark_operators(
    tokens: Sequence[int], runs: int, device: str = "cpu", dtype: torch.dtype = torch.float32, batch_tokens: int = 3136
) -> list[dict[str, Any]]:
    """Time the operators and plain attention, in inference and training, with ``batch_tokens`` tokens per batch."""
    rows, like = [], torch.empty(0, device=device, dtype=dtype)
    with progress_bar(2 * len(tokens) * (runs + WARM_UP_ROUNDS), "rounds", "operators") as bar:
        for n in tokens:
            make_work = partial(OperatorWork, (math.isqrt(n), math.isqrt(n)), device)
            rows += time_operators(OPERATORS, make_work, (max(1, batch_tokens // n), n), runs, like, bar)
    return rows
