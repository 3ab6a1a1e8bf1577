"""The vision transformer whose attention is a filter: timm's, with the components of this library open by keyword."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, get_type_hints

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp, PatchDropoutWithIndices, resample_abs_pos_embed, to_2tuple
from timm.models import VisionTransformer, build_model_with_cfg
from timm.models._manipulate import MATCH_PREV_GROUP
from timm.models.vision_transformer import checkpoint_filter_fn, feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.attention import FilterAttention
from ..core.block import FilterBlock
from ..core.components import Components, LayerSpec, Spec, layer_indices
from ..core.geometry import Geometry, grid_geometry, keep_patches
from ..core.layer_state import LayerState
from ..utils.checks import check_flag, check_number, check_whole
from .checkpoints import adapt_vit_checkpoint

# Bandwidths, gates and tables of log-weights.
_OF_HEADS = r"^blocks\.\d+\.(?:attn|block_residual)\..*\.(?:log_excess|strength|table)$"


class FilterVisionTransformer(VisionTransformer):
    """Vision transformer with filters for attention: all of timm's `VisionTransformer`, and the components.

    Args:
        kernel: Kernel on features: ``"dot_product"``, ``"gaussian_range"`` or ``"elliptical"`` (layer 0 stays dot product).
        positions: One or several of ``"absolute"`` (learned, added to the tokens), ``"sincos"`` (fixed, added),
            ``"spatial_gaussian"``, ``"alibi"``, ``"relative_table"``, ``"rotary"``, ``"untied"``; or ``"none"``.
        filter: What makes the operator: ``"softmax"`` (through fused attention, unless timm's `set_fused_attn` or
            ``TIMM_FUSED_ATTN`` switches it off) or ``"dense"`` (a tensor of weights; faster on a few dozen tokens).
        residual: Boosting of the filter with its weights frozen: ``"plain"``, ``"twicing"``, ``"bregman"``, ``"sos"``,
            ``"neutreno"`` or ``"pid"``.
        block_residual: Boosting of the block's attention branch, the filter estimated again in each step: ``"plain"``,
            ``"twicing"``, ``"bregman"``, ``"sos"`` or ``"l2_boosting"``.
        projection: Maps between tokens and heads: ``"qkv"``, with ``{"name": "qkv", "qk_dim": 59}`` for narrower queries
            and keys.
        mlp: Pointwise half of a block: ``"mlp"`` (timm's) or ``"none"``.
        **kwargs: As timm's, except ``pos_embed``, ``block_fn`` and ``attn_layer``, which the components decide.

    A component is a name, a dictionary with options and ``layers``, or a factory of your own (see
    `imgproc_attn.core.components`).

    Raises:
        ValueError: Unknown names or options, members that exclude each other, an argument that the components
            decide, or a rate that is not in [0, 1).
        TypeError: A component, or its layers, of a type that is none of these; or an argument of timm's of another type.
    """

    carry_positions: bool
    needs_state: bool

    def __init__(
        self,
        *,
        kernel: Spec = "dot_product",
        positions: Spec | Iterable[Spec] | None = "absolute",
        filter: Spec = "softmax",
        residual: Spec = "plain",
        block_residual: Spec = "plain",
        projection: Spec = "qkv",
        mlp: Spec = "mlp",
        depth: int = 12,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        patch_drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        for name, remedy in (("pos_embed", "positions="), ("block_fn", "kernel="), ("attn_layer", "kernel=")):
            if name in kwargs:
                raise ValueError(f"{name}={kwargs[name]!r} is decided by the components of a filter model; use {remedy}.")
        _check_arguments({"depth": depth, "patch_drop_rate": patch_drop_rate, **kwargs})
        components = Components.resolve(
            depth,
            projection=projection,
            kernel=kernel,
            positions=positions,
            filter=filter,
            residual=residual,
            block_residual=block_residual,
            mlp=mlp,
        )
        where = components.positions
        block_fn = partial(build_block, components=components, grid_size=_grid_size(img_size, patch_size))
        if where.table and not where.added:
            if kwargs.get("no_embed_class") is False:
                raise ValueError("no_embed_class=False: untied positions have a table of patches only; leave it out.")
            kwargs["no_embed_class"] = True
        super().__init__(
            depth=depth,
            img_size=img_size,
            patch_size=patch_size,
            patch_drop_rate=patch_drop_rate,
            pos_embed="learn" if where.table else "none",
            block_fn=block_fn,  # type: ignore[arg-type]  # timm calls it; any callable does
            **kwargs,
        )
        embedded = [member(self.embed_dim) for member in where.embedded]
        self._take_over(list(self.blocks), where.table and not where.added, embedded, patch_drop_rate)

    def _take_over(
        self, blocks: list[nn.Module], carry_positions: bool, token_positions: list[nn.Module], patch_drop_rate: float
    ) -> None:
        """What a filter model has in place of timm's."""
        # blocks take more than one argument, which a Sequential cannot hand on
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.token_positions = nn.ModuleList(token_positions)
        self.carry_positions = carry_positions
        self.needs_state = any(block.needs_state for block in blocks)
        self.patch_drop: PatchDropoutWithIndices = PatchDropoutWithIndices(  # type: ignore[assignment]
            patch_drop_rate, num_prefix_tokens=self.num_prefix_tokens
        )
        self.register_load_state_dict_pre_hook(adapt_vit_checkpoint)

    def _embed(self, x: Tensor) -> tuple[Tensor, Geometry]:
        """Images ``[B, C, H, W]`` to the tokens of the first block and their geometry."""
        patch_embed = self.patch_embed
        x = _check_images(x, self.in_chans, patch_embed.img_size, patch_embed.patch_size, self._size_rule)
        x = patch_embed(x)
        height, width = patch_embed.grid_size
        if self.dynamic_img_size:
            height, width = x.shape[1], x.shape[2]
        geometry = grid_geometry(height, width, self.num_prefix_tokens, x)
        if self.carry_positions:
            geometry = geometry._replace(position_embeddings=self._position_embeddings(height, width))
            x = self.pos_drop(self._prepend_prefix(x.flatten(1, -2)))
        else:
            x = self._pos_embed(x)
        for positions in self.token_positions:
            x = self.pos_drop(positions.embed(x, geometry))  # type: ignore[operator]
        x, keep = self.patch_drop(x)
        if keep is not None:
            geometry = keep_patches(geometry, keep)
        return self.norm_pre(x), geometry

    def _prepend_prefix(self, x: Tensor) -> Tensor:
        """Class and register tokens in front of the patches."""
        tokens = [x]
        if self.reg_token is not None:
            tokens.insert(0, self.reg_token.expand(x.shape[0], -1, -1))
        if self.cls_token is not None:
            tokens.insert(0, self.cls_token.expand(x.shape[0], -1, -1))
        return torch.cat(tokens, dim=1)

    def _position_embeddings(self, height: int, width: int) -> Tensor:
        """The table of untied positions at this grid, zero for prefix tokens."""
        table = self.pos_embed
        assert table is not None  # carried positions have a table
        if self.dynamic_img_size:
            table = resample_abs_pos_embed(table, (height, width), self.patch_embed.grid_size, num_prefix_tokens=0)
        return F.pad(table, (0, 0, self.num_prefix_tokens, 0))

    def _nothing_yet(self) -> LayerState | None:
        """The state before the first block; None where no layer needs any."""
        if self.needs_state:
            return LayerState()
        return None

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x, geometry = self._embed(x)
        state = self._nothing_yet()
        for block in self.blocks:
            if self.grad_checkpointing:
                # never the re-entrant kind: geometry and carried values may need gradients
                x, state = checkpoint(block, x, geometry, attn_mask, is_causal, state, use_reentrant=False)
            else:
                x, state = block(x, geometry, attn_mask, is_causal, state)
        return self.norm(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Features of some blocks, and the final ones. Arguments and results are those of timm's `VisionTransformer`.

        Raises:
            ValueError: Unknown ``output_fmt``, or ``NCHW`` asked for while patch dropout removes patches.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}, but must be 'NCHW' or 'NLC'.")
        take, last = feature_take_indices(len(self.blocks), indices)
        height, width = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
        x, geometry = self._embed(x)
        if output_fmt == "NCHW" and x.shape[1] != self.num_prefix_tokens + height * width:
            raise ValueError(
                f"output_fmt='NCHW' needs all {height * width} patches, but patch dropout kept "
                f"{x.shape[1] - self.num_prefix_tokens}; use output_fmt='NLC', or set patch_drop_rate=0."
            )
        state = self._nothing_yet()
        features = []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            if self.grad_checkpointing:
                x, state = checkpoint(block, x, geometry, attn_mask, is_causal, state, use_reentrant=False)
            else:
                x, state = block(x, geometry, attn_mask, is_causal, state)
            if i in take:
                features.append(self.norm(x) if norm else x)
        prefix = [y[:, : self.num_prefix_tokens] for y in features] if self.num_prefix_tokens else None
        features = [y[:, self.num_prefix_tokens :] for y in features]
        if output_fmt == "NCHW":
            features = [y.transpose(1, 2).reshape(y.shape[0], -1, height, width).contiguous() for y in features]
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": features}
            if prefix is not None and return_prefix_tokens:
                result["image_intermediates_prefix"] = prefix
            if not intermediates_only:
                result["image_features"] = self.norm(x)
            return result
        if prefix is not None and return_prefix_tokens:
            features = list(zip(features, prefix))
        return features if intermediates_only else (self.norm(x), features)

    def attention_weights(self, x: Tensor, layers: Sequence[int] | None = None) -> dict[int, Tensor]:
        """The dense filters A of some layers for images ``x``, whether or not the model is fused.

        Args:
            x: Images ``[B, C, H, W]``, normalized as the model expects.
            layers: Block indices, negative ones from the end; all by default.

        Returns:
            ``{layer: [B, num_heads, N, N]}``; rows sum to 1. A is the filter before boosting.

        Raises:
            ValueError: A layer the model does not have.
        """
        depth = len(self.blocks)
        wanted = range(depth) if layers is None else layer_indices("layers", layers, depth)
        x, geometry = self._embed(x)
        state = self._nothing_yet()
        maps = {}
        block: Any
        for i, block in enumerate(self.blocks):
            if i in wanted:
                maps[i] = block.attn.operator(block.norm1(block.block_residual.entry(x, state)), geometry, state=state).dense()
            x, state = block(x, geometry, state=state)
        return maps

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's, for layer decay; bandwidths, gates and tables of log-weights learn as those of the last block do.

        There are a few a head, and gates of a converted model start at 0: decayed, they would stay there in the first blocks.
        """
        matcher: dict[str, Any] = super().group_matcher(coarse)
        if not coarse:
            matcher["blocks"] = [(_OF_HEADS, MATCH_PREV_GROUP), *matcher["blocks"]]
        return matcher

    def no_weight_decay(self) -> set[str]:
        """Names that get no weight decay: timm's, and the tables of log-weights."""
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if name.endswith(".table")}

    @property
    def _size_rule(self) -> str:
        if not self.dynamic_img_size:
            return "fixed"
        return "padded" if self.patch_embed.dynamic_img_pad else "divisible"


def build_block(
    dim: int,
    num_heads: int,
    depth: int,
    *,
    components: Components,
    grid_size: tuple[int, int],
    norm_layer: Callable[..., nn.Module],
    act_layer: Callable[..., nn.Module],
    mlp_layer: Callable[..., nn.Module] = Mlp,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    qk_norm: bool = False,
    scale_attn_norm: bool = False,
    scale_mlp_norm: bool = False,
    proj_bias: bool = True,
    proj_drop: float = 0.0,
    attn_drop: float = 0.0,
    init_values: float | None = None,
    drop_path: float = 0.0,
    attn_layer: Any = None,
    device=None,
    dtype=None,
) -> FilterBlock:
    """A block from timm's arguments (as its `VisionTransformer` gives them to ``block_fn``) and the components' factories."""
    dd = {"device": device, "dtype": dtype}
    make_mlp = partial(
        mlp_layer,
        in_features=dim,
        hidden_features=int(dim * mlp_ratio),
        act_layer=act_layer,
        norm_layer=norm_layer if scale_mlp_norm else None,
        bias=proj_bias,
        drop=proj_drop,
        **dd,
    )
    layer = LayerSpec(depth, dim, num_heads, dim // num_heads, grid_size, attn_drop, qkv_bias, proj_bias, make_mlp, **dd)
    qkv, proj = components.projection(layer)
    layer = replace(layer, head_dim=qkv.head_dim)
    attn = FilterAttention(
        qkv,
        components.kernel(layer),
        components.positions_of(layer),
        components.filter(layer),
        components.residual(layer),
        proj,
        q_norm=norm_layer(qkv.head_dim, **dd) if qk_norm else None,
        k_norm=norm_layer(qkv.head_dim, **dd) if qk_norm else None,
        norm=norm_layer(dim, **dd) if scale_attn_norm else None,
        proj_drop=proj_drop,
    )
    return FilterBlock(
        attn,
        components.mlp(layer),
        norm_layer(dim, **dd),
        norm_layer(dim, **dd),
        LayerScale(dim, init_values, **dd) if init_values else None,
        LayerScale(dim, init_values, **dd) if init_values else None,
        DropPath(drop_path) if drop_path > 0 else None,
        DropPath(drop_path) if drop_path > 0 else None,
        block_residual=components.block_residual_of(layer),
    )


def create_filter_vit(variant: str, pretrained: bool = False, **kwargs: Any) -> "FilterVisionTransformer":
    """What the registered names call: timm's builder with this model class."""
    check_flag("pretrained", pretrained)
    out_indices = kwargs.pop("out_indices", 3)
    model: Any = build_model_with_cfg(
        FilterVisionTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        pretrained_strict=True,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )
    return model  # or timm's feature wrapper around it, for features_only=True


@cache
def _types_of_arguments() -> dict[str, Any]:
    """What timm says its arguments are."""
    return get_type_hints(VisionTransformer.__init__)


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse values of timm's arguments that it would take for others: texts for flags, rates out of range."""
    types = _types_of_arguments()
    for name, value in arguments.items():
        kind = types.get(name)
        if kind is bool or (kind == bool | None and value is not None):
            check_flag(name, value)
        elif kind is int:
            least = 0 if name in ("num_classes", "reg_tokens") else 1
            if check_whole(name, value) < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        elif name.endswith("_rate"):
            if not 0 <= check_number(name, value) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value}. Give a probability; 0 switches it off.")
        elif (kind is float or (kind == float | None and value is not None)) and not math.isfinite(check_number(name, value)):
            raise ValueError(f"{name} must be finite, got {value}.")


def _grid_size(img_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> tuple[int, int]:
    (height, width), (patch_y, patch_x) = to_2tuple(img_size), to_2tuple(patch_size)
    if height % patch_y or width % patch_x:
        raise ValueError(
            f"img_size {height} x {width} is not divisible by patch_size {patch_y} x {patch_x}; "
            f"use {max(height // patch_y, 1) * patch_y} x {max(width // patch_x, 1) * patch_x}, or another patch_size."
        )
    return height // patch_y, width // patch_x


def _check_images(
    x: Tensor, in_chans: int, img_size: tuple[int, int] | None, patch_size: tuple[int, int], size_rule: str
) -> Tensor:
    """``x`` if the model can take it."""
    if x.dim() != 4 or x.shape[1] != in_chans:
        raise ValueError(
            f"Images of shape {list(x.shape)} given, but the model takes [batch, {in_chans}, height, width]; "
            f"create it with in_chans= for another number of channels."
        )
    height, width = x.shape[2], x.shape[3]
    if size_rule == "fixed" and img_size is not None and (height != img_size[0] or width != img_size[1]):
        raise ValueError(
            f"Images of {height} x {width} given, but the model was built for {img_size[0]} x {img_size[1]}; resize them, "
            f"call set_input_size(), or create the model with dynamic_img_size=True."
        )
    if size_rule == "divisible" and (height % patch_size[0] != 0 or width % patch_size[1] != 0):
        raise ValueError(
            f"Images of {height} x {width} given, but both must be divisible by the patch, {patch_size[0]} x "
            f"{patch_size[1]}; resize them, or create the model with dynamic_img_pad=True."
        )
    return x


torch.fx.wrap("_check_images")
torch.fx.wrap("grid_geometry")
torch.fx.wrap("keep_patches")
