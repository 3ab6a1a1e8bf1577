"""Decoders: map features of an encoder to logits of classes on the encoder's grid (Segmenter, arXiv 2105.05633)."""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..core.block import FilterBlock
from ..core.components import Components, Spec
from ..core.geometry import grid_geometry
from ..core.layer_state import LayerState
from ..models.filter_vit import build_block
from ..utils.checks import check_number, check_whole

__all__ = ["LinearDecoder", "MaskDecoder", "depict_decoder", "mask_decoder"]


class LinearDecoder(nn.Module):
    """Linear map of each token: ``Seg-*/16`` without a mask transformer.

    Args:
        in_channels: Number of channels of the features.
        num_classes: Number of logits per token.
        grid_size: Ignored, because this decoder works on any grid.

    Example:
        >>> LinearDecoder(32, 5)(torch.rand(1, 32, 4, 6)).shape
        torch.Size([1, 5, 4, 6])
    """

    def __init__(self, in_channels: int, num_classes: int, grid_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels, num_classes)
        trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def no_weight_decay(self) -> set[str]:
        """Return no name, because 1-D parameters are excluded from weight decay anyway."""
        return set()

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits ``[B, classes, h, w]`` of features ``[B, C, h, w]``."""
        return self.head(features.movedim(1, -1)).movedim(-1, 1)


class MaskDecoder(nn.Module):
    """Mask transformer: its logits are products of class tokens and patch tokens (arXiv 2105.05633, section 3.2).

    Both factors are scaled to length 1. The logits of a pixel are normalized over the classes, so there must be 3 or more.

    Args:
        in_channels: Number of channels of the features.
        num_classes: Number of class tokens.
        blocks: Blocks that run over the class tokens, as prefix, and the patches. Their filters may be any of this library.
        width: Width of the blocks' tokens.
        projections: Whether features are projected to tokens, and class and patch tokens to the factors. Without projections,
            the width must be ``in_channels``.
    """

    def __init__(
        self, in_channels: int, num_classes: int, blocks: Sequence[FilterBlock], width: int, projections: bool = True
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embed = nn.Linear(in_channels, width) if projections else nn.Identity()
        self.class_tokens = nn.Parameter(torch.empty(1, num_classes, width))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.patch_projection = nn.Parameter(torch.randn(width, width) * width**-0.5) if projections else None
        self.class_projection = nn.Parameter(torch.randn(width, width) * width**-0.5) if projections else None
        self.mask_norm = nn.LayerNorm(num_classes)
        trunc_normal_(self.class_tokens, std=0.02)
        _initialize(self.embed)
        self.needs_state = any(block.needs_state for block in blocks)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the class tokens, as timm does for its class token, and of tables of log-weights."""
        return {"class_tokens"} | {name for name, _ in self.named_parameters() if name.endswith(".table")}

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits ``[B, classes, h, w]`` of features ``[B, C, h, w]``."""
        count, _, height, width = features.shape
        patches = self.embed(features.flatten(2).transpose(1, 2))
        x = torch.cat([self.class_tokens.expand(count, -1, -1), patches], dim=1)
        geometry = grid_geometry(height, width, self.num_classes, x)
        state = LayerState() if self.needs_state else None
        for block in self.blocks:
            x, state = block(x, geometry, state=state)
        x = self.norm(x)
        classes, patches = x[:, : self.num_classes], x[:, self.num_classes :]
        if self.class_projection is not None and self.patch_projection is not None:
            classes, patches = classes @ self.class_projection, patches @ self.patch_projection
        masks = F.normalize(patches, dim=-1) @ F.normalize(classes, dim=-1).transpose(1, 2)
        return self.mask_norm(masks).transpose(1, 2).unflatten(2, (height, width))


def mask_decoder(
    in_channels: int,
    num_classes: int,
    grid_size: tuple[int, int],
    depth: int = 2,
    width: int | None = None,
    num_heads: int | None = None,
    drop_path: float = 0.0,
    dropout: float = 0.1,
    kernel: Spec = "dot_product",
    positions: Spec | Iterable[Spec] | None = "none",
    filter: Spec = "softmax",
    residual: Spec = "plain",
    block_residual: Spec = "plain",
    projection: Spec = "qkv",
    mlp: Spec = "mlp",
) -> MaskDecoder:
    """Build a `MaskDecoder` from names of components.

    Args:
        in_channels: Number of channels of the features.
        num_classes: Number of class tokens.
        grid_size: (height, width) of the grid in training. Tables of positions are made for this grid.
        depth: Number of blocks; 2 in the paper.
        width: Width of the blocks' tokens. Default: ``in_channels``.
        num_heads: Number of heads. Default: one per 64 channels of the width.
        drop_path: Rate of stochastic depth of the last block. The rates of earlier blocks grow linearly up to it.
        dropout: Dropout rate of filter weights, projections and pointwise layers; 0.1 in the paper.
        kernel: As in `FilterVisionTransformer`.
        positions: As in `FilterVisionTransformer`, but none that belong to the model's input (absolute, sincos, untied).
        filter: As in `FilterVisionTransformer`.
        residual: As in `FilterVisionTransformer`.
        block_residual: As in `FilterVisionTransformer`.
        projection: As in `FilterVisionTransformer`.
        mlp: As in `FilterVisionTransformer`.

    Raises:
        ValueError: A component is unknown, or positions belong to the input. ``num_heads`` does not divide the width. There
            are fewer than 3 classes. Another option is out of its range.

    Example:
        >>> mask_decoder(32, 5, grid_size=(4, 6), kernel="elliptical")(torch.rand(1, 32, 4, 6)).shape
        torch.Size([1, 5, 4, 6])
    """
    components = Components.resolve(
        _checked_depth(depth, num_classes),
        kernel=kernel,
        positions=positions,
        filter=filter,
        residual=residual,
        block_residual=block_residual,
        projection=projection,
        mlp=mlp,
    )
    if components.positions.table or components.positions.embedded:
        raise ValueError(
            f"decoder: positions must not be of the input tokens (absolute, sincos, untied), got {positions!r}. Set these "
            "positions in the backbone."
        )
    width = width or in_channels
    blocks = _blocks(components, depth, width, num_heads, grid_size, drop_path, dropout)
    return MaskDecoder(in_channels, num_classes, blocks, width)


def depict_decoder(
    in_channels: int,
    num_classes: int,
    grid_size: tuple[int, int],
    depth: int = 3,
    num_heads: int | None = None,
    subspace_dim: int | None = None,
    drop_path: float = 0.0,
    dropout: float = 0.0,
) -> MaskDecoder:
    """Build a `MaskDecoder` of attention-only layers of shared subspaces (DEPICT, arXiv 2411.03033, the form "SA").

    Its blocks are ``z <- z + s [U_1, ..., U_H] MSSA(norm(z))`` with a learned step s and the subspaces of the input as output
    projection. There are no MLPs, and features and class tokens are compared without further projections. With the
    defaults of both, it has about a ninth of the parameters of `mask_decoder`.

    Args:
        in_channels: Number of channels of the features, the width of the blocks.
        num_classes: Number of class tokens.
        grid_size: (height, width) of the grid in training. It does not restrict other grids.
        depth: Number of blocks. The authors' number is not known.
        num_heads: Number of subspaces. Default: one per 64 channels.
        subspace_dim: Width of a subspace. Default: ``in_channels / num_heads``. The authors use 100 for every width.
        drop_path: Rate of stochastic depth of the last block. The rates of earlier blocks grow linearly up to it.
        dropout: Dropout rate of filter weights and outputs.

    Raises:
        ValueError: ``num_heads`` does not divide the width, or there are fewer than 3 classes. Another option is out of its
            range.

    Example:
        >>> depict_decoder(32, 5, grid_size=(4, 6))(torch.rand(1, 32, 4, 6)).shape
        torch.Size([1, 5, 4, 6])
    """
    subspaces = {"name": "subspaces", "tied": True, "learned_step": True, "subspace_dim": subspace_dim}
    components = Components.resolve(
        _checked_depth(depth, num_classes),
        kernel="dot_product",
        positions=None,
        filter="softmax",
        residual="plain",
        block_residual="plain",
        projection=subspaces,
        mlp="none",
    )
    blocks = _blocks(components, depth, in_channels, num_heads, grid_size, drop_path, dropout)
    return MaskDecoder(in_channels, num_classes, blocks, in_channels, projections=False)


def _checked_depth(depth: int, num_classes: int) -> int:
    """Return ``depth`` after a check of the numbers of blocks and classes of a mask decoder."""
    if num_classes < 3:
        raise ValueError(
            f"decoder: num_classes of the mask decoder must be at least 3, got {num_classes}: it normalizes the logits over "
            "classes, which leaves hardly any gradient for fewer. Use decoder='linear'."
        )
    if check_whole("decoder: depth", depth) < 1:
        raise ValueError(f"decoder: depth must be at least 1, got {depth}. Use decoder='linear' for none.")
    return depth


def _blocks(
    components: Components,
    depth: int,
    width: int,
    num_heads: int | None,
    grid_size: tuple[int, int],
    drop_path: float,
    dropout: float,
) -> list[FilterBlock]:
    """Return the initialized blocks of a mask decoder."""
    if not 0 <= check_number("decoder: drop_path", drop_path) < 1:
        raise ValueError(f"decoder: drop_path must lie in [0, 1), got {drop_path}. 0 switches it off.")
    num_heads = num_heads or max(1, width // 64)
    if width % num_heads:
        raise ValueError(f"decoder: width must be a multiple of num_heads, {num_heads}, got {width}. Change one of the two.")
    build = partial(
        build_block,
        width,
        num_heads,
        components=components,
        grid_size=grid_size,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        act_layer=nn.GELU,
        proj_drop=dropout,
        attn_drop=dropout,
    )
    blocks = [build(i, drop_path=drop_path * (i + 1) / depth) for i in range(depth)]
    for block in blocks:
        for module in block.modules():
            _initialize(module)
    return blocks


def _initialize(module: nn.Module) -> None:
    """Draw the weight of a linear layer from a narrow normal distribution, and set its bias to zero."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
