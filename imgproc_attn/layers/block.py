"""The pre-norm block around the filter."""

from typing import Final

from torch import Tensor, nn

from ..carried import Carried, remember_tokens
from ..geometry import Geometry
from ..residuals import Plain, Residual
from .attention import FilterAttention


class FilterBlock(nn.Module):
    """Pre-norm transformer block, ``x + f(x)`` with ``f(x) = attn(norm1(x))``, then ``x + mlp(norm2(x))``; named as timm's.

    A *stream* boosts f as a residual boosts the filter, but estimates f anew on each operand: ``x + u`` with u from the
    recurrence of `imgproc_attn.residuals`, f for A and x for v. A step costs one more attention. One reading of the "boosting
    residual scheme" of arXiv 2506.10371, whose exact update is not public: each rule is named by its formula.

    The parts are ready modules; those left out do nothing.

    Args:
        attn: The filter layer.
        mlp: The pointwise layer.
        norm1: Norm in front of the filter.
        norm2: Norm in front of the pointwise layer.
        ls1: Layer scale of the filter.
        ls2: Layer scale of the pointwise layer.
        drop_path1: Stochastic depth of the filter.
        drop_path2: Stochastic depth of the pointwise layer.
        stream: Boosting rule around the attention branch; default plain, ``x + f(x)``.

    Raises:
        ValueError: ``stream`` is a rule for filters alone.

    Attributes:
        carries: Whether the block needs what earlier blocks hand on.
    """

    carries: Final[bool]

    def __init__(
        self,
        attn: FilterAttention,
        mlp: nn.Module,
        norm1: nn.Module,
        norm2: nn.Module,
        ls1: nn.Module | None = None,
        ls2: nn.Module | None = None,
        drop_path1: nn.Module | None = None,
        drop_path2: nn.Module | None = None,
        stream: Residual | None = None,
    ) -> None:
        super().__init__()
        if stream is not None and type(stream).feedback is not Residual.feedback:
            raise ValueError(f"stream: {type(stream).__name__} feeds earlier values back into a filter; give residual=.")
        self.norm1 = norm1
        self.attn = attn
        self.ls1 = ls1 or nn.Identity()
        self.drop_path1 = drop_path1 or nn.Identity()
        self.norm2 = norm2
        self.mlp = mlp
        self.ls2 = ls2 or nn.Identity()
        self.drop_path2 = drop_path2 or nn.Identity()
        self.stream = stream or Plain()
        self.carries = attn.carries or self.stream.carries

    def forward(
        self,
        x: Tensor,
        geometry: Geometry,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        carried: Carried | None = None,
    ) -> tuple[Tensor, Carried | None]:
        """Tokens ``[B, N, C]`` to tokens, and what to hand on; arguments as `FilterAttention`'s.

        A stream's steps see what earlier blocks handed on; the values handed on are those of the first evaluation.
        """
        last = self.stream.entry(x, carried)
        u, handed_on = self.branch(last, geometry, attn_mask, is_causal, carried)
        for _ in range(self.stream.steps):
            last = self.stream.operand(u, x, last)
            smoothed, _ = self.branch(last, geometry, attn_mask, is_causal, carried)
            u = self.stream.update(u, smoothed)
        handed_on = remember_tokens(handed_on, x)
        x = x + self.drop_path1(u)
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x, handed_on

    def branch(
        self, x: Tensor, geometry: Geometry, attn_mask: Tensor | None, is_causal: bool, carried: Carried | None
    ) -> tuple[Tensor, Carried | None]:
        """f: norm, attention and layer scale."""
        y, carried = self.attn(self.norm1(x), geometry, attn_mask, is_causal, carried)
        return self.ls1(y), carried
