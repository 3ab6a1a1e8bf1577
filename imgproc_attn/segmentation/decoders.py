"""Decoders: from features of an encoder to logits of classes, on the encoder's grid (Segmenter, arXiv 2105.05633)."""

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


class LinearDecoder(nn.Module):
    """A linear map of each token: ``Seg-*/16`` without a mask transformer.

    Args:
        in_channels: Of the features.
        num_classes: Logits a token.
        grid_size: Not looked at: it works on any grid.
    """

    def __init__(self, in_channels: int, num_classes: int, grid_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels, num_classes)
        trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def no_weight_decay(self) -> set[str]:
        """Nothing but what is 1-D anyway."""
        return set()

    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, classes, h, w]``."""
        return self.head(features.movedim(1, -1)).movedim(-1, 1)


class MaskDecoder(nn.Module):
    """The mask transformer: class tokens beside the patches, whose products with them are the logits (section 3.2 there).

    Both sides of the product are scaled to length 1, and the logits of a pixel are normalized over classes, of which this takes
    3 or more.

    Args:
        in_channels: Of the features.
        num_classes: Class tokens.
        blocks: Run over class tokens, for prefix, and patches; their filters may be any of this library.
        width: Of the blocks' tokens.
    """

    def __init__(self, in_channels: int, num_classes: int, blocks: Sequence[FilterBlock], width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embed = nn.Linear(in_channels, width)
        self.class_tokens = nn.Parameter(torch.empty(1, num_classes, width))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.patch_projection = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.class_projection = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.mask_norm = nn.LayerNorm(num_classes)
        trunc_normal_(self.class_tokens, std=0.02)
        trunc_normal_(self.embed.weight, std=0.02)
        nn.init.zeros_(self.embed.bias)
        self.needs_state = any(block.needs_state for block in blocks)

    def no_weight_decay(self) -> set[str]:
        """The class tokens, as timm has it for its class token; and tables of log-weights."""
        return {"class_tokens"} | {name for name, _ in self.named_parameters() if name.endswith(".table")}

    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, classes, h, w]``."""
        count, _, height, width = features.shape
        patches = self.embed(features.flatten(2).transpose(1, 2))
        x = torch.cat([self.class_tokens.expand(count, -1, -1), patches], dim=1)
        geometry = grid_geometry(height, width, self.num_classes, x)
        state = LayerState() if self.needs_state else None
        for block in self.blocks:
            x, state = block(x, geometry, state=state)
        x = self.norm(x)
        classes, patches = x[:, : self.num_classes] @ self.class_projection, x[:, self.num_classes :] @ self.patch_projection
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
) -> MaskDecoder:
    """A `MaskDecoder` whose blocks are made of the components' members.

    Args:
        in_channels: Of the features.
        num_classes: Class tokens.
        grid_size: (height, width) of the grid in training, which tables of positions are made for.
        depth: Blocks; 2 as published.
        width: Of their tokens. Default: ``in_channels``.
        num_heads: Default: one for each 64 of the width.
        drop_path: Rate of stochastic depth of the last block, to which those before it grow linearly.
        dropout: Of filter weights, projections and pointwise layers; 0.1 as published.
        kernel: As in `FilterVisionTransformer`.
        positions: Likewise, but none that belong to the model's input (absolute, sincos, untied).
        filter: As in `FilterVisionTransformer`.
        residual: Likewise.
        block_residual: Likewise.

    Raises:
        ValueError: Unknown members, positions of the input, a width that heads do not divide, or fewer than 3 classes.
    """
    if num_classes < 3:
        raise ValueError(
            f"decoder: the mask decoder normalizes logits over the classes of a pixel, but there are {num_classes}: of one "
            "nothing is left, of two hardly more than a sign, whose gradient vanishes. Use decoder='linear'."
        )
    if check_whole("decoder: depth", depth) < 1:
        raise ValueError(f"decoder: depth must be at least 1, got {depth}. Use decoder='linear' for none.")
    if not 0 <= check_number("decoder: drop_path", drop_path) < 1:
        raise ValueError(f"decoder: drop_path must lie in [0, 1), got {drop_path}. 0 switches it off.")
    width = width or in_channels
    num_heads = num_heads or max(1, width // 64)
    if width % num_heads:
        raise ValueError(f"decoder: width {width} is not divisible by num_heads {num_heads}; give another of the two.")
    components = Components.resolve(
        depth, kernel=kernel, positions=positions, filter=filter, residual=residual, block_residual=block_residual
    )
    if components.positions.table or components.positions.embedded:
        raise ValueError(f"decoder: positions={positions!r} belong to the tokens of an image, which the encoder has.")
    rates = [drop_path * (i + 1) / depth for i in range(depth)]
    blocks = [
        build_block(
            width,
            num_heads,
            i,
            components=components,
            grid_size=grid_size,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            act_layer=nn.GELU,
            proj_drop=dropout,
            attn_drop=dropout,
            drop_path=rate,
        )
        for i, rate in enumerate(rates)
    ]
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return MaskDecoder(in_channels, num_classes, blocks, width)
