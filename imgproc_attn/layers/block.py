"""The pre-norm block around the filter."""

from collections.abc import Callable

from timm.layers import DropPath, LayerScale
from torch import Tensor, nn

from ..geometry import Geometry


class FilterBlock(nn.Module):
    """Pre-norm transformer block, ``x + attn(norm1(x))`` then ``x + mlp(norm2(x))``, named as timm's ``Block``.

    Args:
        dim: Width of the tokens.
        attn: The filter layer, ``(x, geometry, attn_mask, is_causal) -> x``.
        mlp: The pointwise layer.
        norm_layer: Constructor of the two norms.
        init_values: Initial layer scale; None for none.
        drop_path: Rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp: nn.Module,
        norm_layer: Callable[..., nn.Module],
        init_values: float | None = None,
        drop_path: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(dim, **dd)
        self.attn = attn
        self.ls1 = LayerScale(dim, init_values=init_values, **dd) if init_values else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = mlp
        self.ls2 = LayerScale(dim, init_values=init_values, **dd) if init_values else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, geometry: Geometry, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), geometry, attn_mask, is_causal)))
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x
