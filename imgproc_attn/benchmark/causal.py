"""Causal attention layers on a line of tokens, compared with torch's causal attention."""

from typing import Any

import torch

from ..core.geometry import line_geometry
from ..core.positions import UntiedPositions
from ..core.relative_buckets import RelativeBuckets
from ..core.residuals import Twicing
from ..utils.progress import progress_bar
from .operators import HEAD_DIM, HEADS, LayerWork, time_operators
from .timing import WARM_UP_ROUNDS, Case

__all__ = ["CAUSAL_OPERATORS", "CausalWork", "benchmark_causal"]

# To add a case, add a line.
CAUSAL_OPERATORS = (
    Case("scaled_dot_product_attention, causal", lambda work: work.plain, baseline=True),
    Case("non-local means", lambda work: work.layer(work.gaussian)),
    Case("bilateral", lambda work: work.layer(work.gaussian, [work.spatial])),
    Case("dot product, alibi", lambda work: work.layer(positions=[work.alibi])),
    Case("twicing", lambda work: work.layer(residual=Twicing(HEADS))),
    Case("dot product, untied positions", lambda work: work.layer(positions=[work.untied])),
    Case("dot product, relative buckets (dense)", lambda work: work.layer(positions=[work.relative_buckets])),
)


class CausalWork(LayerWork):
    """Causal layers on a line of tokens, with learned position vectors for untied positions.

    Args:
        tokens: Number of tokens.
        device: Device of the parameters.
    """

    def __init__(self, tokens: int, device: str) -> None:
        width = HEADS * HEAD_DIM
        vectors = torch.randn(1, tokens, width, device=device).requires_grad_()
        geometry = line_geometry(tokens, vectors, longest=tokens)._replace(position_embeddings=vectors)
        super().__init__(geometry, True, device)
        self.untied = UntiedPositions(width, HEADS, HEAD_DIM, device=device)
        self.relative_buckets = RelativeBuckets(HEADS, geometry.grid_size, is_causal=True, device=device)


def benchmark_causal(
    runs: int, device: str = "cpu", dtype: torch.dtype = torch.float32, tokens: int = 1024, batch: int = 2
) -> list[dict[str, Any]]:
    """Time causal operators and plain causal attention, in inference and training (forward and backward)."""
    like = torch.empty(0, device=device, dtype=dtype)
    with progress_bar(2 * (runs + WARM_UP_ROUNDS), "rounds", "causal operators") as bar:
        return time_operators(CAUSAL_OPERATORS, lambda: CausalWork(tokens, device), (batch, tokens), runs, like, bar)
