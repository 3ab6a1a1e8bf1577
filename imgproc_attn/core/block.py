"""The pre-norm transformer block around the attention layer."""

from collections.abc import Sequence

from torch import Tensor, nn

from .attention import FilterAttention
from .geometry import Geometry
from .layer_cache import LayerCache
from .layer_state import LayerState, remember_tokens
from .residuals import Plain, Residual

__all__ = ["FilterBlock"]


class FilterBlock(nn.Module):
    """Pre-norm transformer block: ``x + f(x)`` with ``f(x) = attn(norm1(x))``, then ``x + mlp(norm2(x))``.

    A *block residual* boosts f as a residual boosts the filter, but it computes f again on each operand. The block is then
    ``x + u``. u follows the recurrence of `imgproc_attn.core.residuals`, with f in place of A and x in place of v. Each step
    costs one more attention. This is one reading of the "boosting residual scheme" of arXiv 2506.10371. Its exact update is
    not public, so each rule is named by its formula.

    You build the parts and pass them in. Parts that are left out do nothing. Parameter names follow timm's ``Block``.

    Args:
        attn: Attention layer.
        mlp: Pointwise layer, or None for a block of attention only. A layer with ``has_skip = True`` has its own skip
            connection, ``x = mlp(norm2(x))``.
        norm1: Norm before the attention layer.
        norm2: Norm before the pointwise layer.
        ls1: Layer scale of the attention layer.
        ls2: Layer scale of the pointwise layer.
        drop_path1: Stochastic depth of the attention layer.
        drop_path2: Stochastic depth of the pointwise layer.
        block_residual: Boosting rule around the attention branch. Default: plain, ``x + f(x)``.

    Raises:
        ValueError: ``block_residual`` is a rule for filters only.

    Attributes:
        needs_state: Whether the block needs the `LayerState` of earlier blocks.
    """

    def __init__(
        self,
        attn: FilterAttention,
        mlp: nn.Module | None,
        norm1: nn.Module,
        norm2: nn.Module,
        ls1: nn.Module | None = None,
        ls2: nn.Module | None = None,
        drop_path1: nn.Module | None = None,
        drop_path2: nn.Module | None = None,
        block_residual: Residual | None = None,
    ) -> None:
        super().__init__()
        if block_residual is not None and type(block_residual).feedback is not Residual.feedback:
            name = type(block_residual).__name__
            raise ValueError(f"block_residual must be a rule for blocks, got {name}, a rule for filters. Give residual=.")
        self.norm1 = norm1
        self.attn = attn
        self.ls1 = ls1 or nn.Identity()
        self.drop_path1 = drop_path1 or nn.Identity()
        self.has_skip = bool(getattr(mlp, "has_skip", False))
        if mlp is not None:
            self.norm2 = norm2  # registered in timm's order, because gradient norms are summed in this order
        self.mlp = mlp
        if mlp is not None and not self.has_skip:
            self.ls2 = ls2 or nn.Identity()
            self.drop_path2 = drop_path2 or nn.Identity()
        self.block_residual = block_residual or Plain()
        self.needs_state = attn.needs_state or self.block_residual.needs_state

    def forward(
        self,
        x: Tensor,
        geometry: Geometry,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        state: LayerState | None = None,
        caches: Sequence[LayerCache] | None = None,
    ) -> tuple[Tensor, LayerState | None]:
        """Return the new tokens ``[B, N, C]`` and the state for the next block.

        Each step of a block residual evaluates the attention branch again, with the state of earlier blocks. The returned
        state holds the values of the first of these evaluations. Arguments are those of `FilterAttention`, except ``caches``:
        one cache for the first evaluation of the branch, and one more per step of the block residual.
        """
        last = self.block_residual.entry(x, state)
        u, handed_on = self.branch(last, geometry, attn_mask, is_causal, state, _entry(caches, 0))
        for step in range(1, self.block_residual.steps + 1):
            last = self.block_residual.operand(u, x, last)
            smoothed, _ = self.branch(last, geometry, attn_mask, is_causal, state, _entry(caches, step))
            u = self.block_residual.update(u, smoothed)
        handed_on = remember_tokens(handed_on, x)
        x = x + self.drop_path1(u)
        return self.pointwise(x), handed_on

    def pointwise(self, x: Tensor) -> Tensor:
        """Apply the pointwise half of the block."""
        if self.mlp is None:
            return x
        y: Tensor = self.mlp(self.norm2(x))
        return y if self.has_skip else x + self.drop_path2(self.ls2(y))

    def added_names(self) -> list[str]:
        """Return the names of parameters and buffers that timm's block does not have."""
        parts = ("kernel", "positions", "rotations", "filter", "residual")
        added = [*(f"attn.{part}." for part in parts), "block_residual."]
        return [name for name in self.state_dict() if name.startswith(tuple(added))]

    def branch(
        self,
        x: Tensor,
        geometry: Geometry,
        attn_mask: Tensor | None,
        is_causal: bool,
        state: LayerState | None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, LayerState | None]:
        """Return ``f(x)``, that is norm, attention and layer scale, and the state for the next block."""
        y, state = self.attn(self.norm1(x), geometry, attn_mask, is_causal, state, cache=cache)
        return self.ls1(y), state


def _entry(caches: Sequence[LayerCache] | None, index: int) -> LayerCache | None:
    return None if caches is None else caches[index]
