"""Vision transformer whose attention is a filter: timm's model, with the components of this library as keywords."""

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
from ..utils.named_tuples import changed
from .checkpoints import adapt_vit_checkpoint

__all__ = ["FilterVisionTransformer"]

# Names of bandwidths, gates and tables of log-weights.
_PER_HEAD_PARAMETERS = r"^blocks\.\d+\.(?:attn|block_residual)\..*\.(?:log_excess|strength|table)$"


class FilterVisionTransformer(VisionTransformer):
    """Vision transformer with filters as attention: timm's `VisionTransformer` plus components.

    A component is a name, a dictionary with options and ``layers``, or your own factory (see
    `imgproc_attn.core.components`).

    Args:
        kernel: Kernel on features: ``"dot_product"``, ``"gaussian_range"`` or ``"elliptical"`` (layer 0 stays dot product).
        positions: One or several of ``"absolute"`` (learned, added to the tokens), ``"sincos"`` (fixed, added),
            ``"spatial_gaussian"``, ``"alibi"``, ``"relative_table"``, ``"rotary"``, ``"untied"``; or ``"none"``.
        filter: Module that builds the operator. ``"softmax"`` uses fused attention, unless timm's `set_fused_attn` or
            ``TIMM_FUSED_ATTN`` turns it off. ``"dense"`` computes a tensor of weights and is faster on a few dozen tokens.
            ``"random_features"``, ``"nystroem"`` and ``"linformer"`` approximate it in linear time. ``"sliding_window"`` cuts
            it off. ``"elu_features"``, ``"relu"``, ``"threshold"``, ``"token_statistics"`` and ``"representatives"`` are other
            operators.
        residual: Boosting of the filter with frozen weights: ``"plain"``, ``"twicing"``, ``"bregman"``, ``"sos"``,
            ``"neutreno"`` or ``"pid"``.
        block_residual: Boosting of the attention branch of a block. Each step computes the filter again: ``"plain"``,
            ``"twicing"``, ``"bregman"``, ``"sos"`` or ``"l2_boosting"``.
        projection: Input and output projection of attention: ``"qkv"``, or ``{"name": "qkv", "qk_dim": 56}`` for narrower
            queries and keys; or ``"subspaces"``, one projection for queries, keys and values.
        mlp: Pointwise half of a block: ``"mlp"`` (timm's), ``"ista"`` or ``"none"``.
        norm_layer: As in timm, or ``"none"`` for blocks without norms. The norm after the last block stays.
        depth: Number of blocks.
        img_size: Side, or (height, width), of the images in pixels.
        patch_size: Side, or (height, width), of a patch in pixels.
        patch_drop_rate: Share of patches that training drops.
        **kwargs: timm's arguments, except ``pos_embed``, ``block_fn`` and ``attn_layer``, which the components set.

    Raises:
        ValueError: A name or option is unknown, two members exclude each other, an argument is set by the components, or a
            rate is not in [0, 1).
        TypeError: A component, its ``layers`` or an argument of timm has another type.

    Example:
        >>> residual = {"name": "twicing", "layers": [10, 11]}
        >>> model = FilterVisionTransformer(kernel="gaussian_range", residual=residual, embed_dim=64, num_heads=2)
        >>> model(torch.rand(1, 3, 224, 224)).shape
        torch.Size([1, 1000])
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
        norm_layer: str | Callable[..., nn.Module] | None = None,
        depth: int = 12,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        patch_drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        for name, remedy in (("pos_embed", "positions="), ("block_fn", "kernel="), ("attn_layer", "kernel=")):
            if name in kwargs:
                raise ValueError(f"{name} must be left out of a filter model, got {kwargs[name]!r}. Use {remedy}.")
        without_norms = norm_layer == "none"
        norm_layer = None if without_norms else norm_layer
        _check_arguments({"depth": depth, "patch_drop_rate": patch_drop_rate, "norm_layer": norm_layer, **kwargs})
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
        resolved = components.positions
        grid_size = _grid_size(img_size, patch_size)
        block_fn = partial(build_block, components=components, grid_size=grid_size, without_norms=without_norms)
        if resolved.table and not resolved.added:
            if kwargs.get("no_embed_class") is False:
                raise ValueError("no_embed_class must be True for untied positions, got False. Leave it out.")
            kwargs["no_embed_class"] = True
        super().__init__(
            depth=depth,
            img_size=img_size,
            patch_size=patch_size,
            patch_drop_rate=patch_drop_rate,
            norm_layer=norm_layer,
            pos_embed="learn" if resolved.table else "none",
            block_fn=block_fn,  # type: ignore[arg-type]  # timm only calls it, so any function works
            **kwargs,
        )
        embedded = [member(self.embed_dim) for member in resolved.embedded]
        self._take_over(list(self.blocks), resolved.table and not resolved.added, embedded, patch_drop_rate)

    def _take_over(
        self, blocks: list[nn.Module], carry_positions: bool, token_positions: list[nn.Module], patch_drop_rate: float
    ) -> None:
        """Replace timm's parts by those of a filter model."""
        # Blocks take more than one argument, which a Sequential cannot pass.
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.token_positions = nn.ModuleList(token_positions)
        self.carry_positions = carry_positions
        self.needs_state = any(block.needs_state for block in blocks)
        self.patch_drop: PatchDropoutWithIndices = PatchDropoutWithIndices(  # type: ignore[assignment]
            patch_drop_rate, num_prefix_tokens=self.num_prefix_tokens
        )
        self.register_load_state_dict_pre_hook(adapt_vit_checkpoint)

    def _embed(self, x: Tensor) -> tuple[Tensor, Geometry]:
        """Return the input tokens of the first block, and their geometry, for images ``[B, C, H, W]``."""
        patch_embed = self.patch_embed
        x = _check_images(x, self.in_chans, patch_embed.img_size, patch_embed.patch_size, self._size_rule)
        x = patch_embed(x)
        height, width = patch_embed.grid_size
        if self.dynamic_img_size:
            height, width = x.shape[1], x.shape[2]
        geometry = grid_geometry(height, width, self.num_prefix_tokens, x)
        if self.carry_positions:
            geometry = changed(geometry, position_embeddings=self._position_embeddings(height, width))
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
        """Return class and register tokens followed by the patches ``x``."""
        tokens = [x]
        if self.reg_token is not None:
            tokens.insert(0, self.reg_token.expand(x.shape[0], -1, -1))
        if self.cls_token is not None:
            tokens.insert(0, self.cls_token.expand(x.shape[0], -1, -1))
        return torch.cat(tokens, dim=1)

    def _position_embeddings(self, height: int, width: int) -> Tensor:
        """Return the table of untied positions for a grid, with zeros for prefix tokens."""
        table = self.pos_embed
        assert table is not None  # models that carry positions have a table
        if self.dynamic_img_size:
            table = resample_abs_pos_embed(table, (height, width), self.patch_embed.grid_size, num_prefix_tokens=0)
        return F.pad(table, (0, 0, self.num_prefix_tokens, 0))

    def _initial_state(self) -> LayerState | None:
        """Return the state before the first block, or None if no layer needs a state."""
        if self.needs_state:
            return LayerState()
        return None

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x, geometry = self._embed(x)
        state = self._initial_state()
        for block in self.blocks:
            if self.grad_checkpointing:
                # Geometry and state may need gradients, which re-entrant checkpointing does not support.
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
        """Return features of some blocks and the final features. Arguments and results are those of timm's model.

        Raises:
            ValueError: ``output_fmt`` is unknown, or it is ``NCHW`` while patch dropout removes patches.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}. Give one of them.")
        take, last = feature_take_indices(len(self.blocks), indices)
        height, width = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
        x, geometry = self._embed(x)
        if output_fmt == "NCHW" and x.shape[1] != self.num_prefix_tokens + height * width:
            raise ValueError(
                f"Patches must be all {height * width} for output_fmt='NCHW', got {x.shape[1] - self.num_prefix_tokens} after "
                "patch dropout. Use output_fmt='NLC', or set patch_drop_rate=0."
            )
        state = self._initial_state()
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
        """Return the dense filters A of some layers for images ``x``, also if the model uses fused attention.

        Args:
            x: Images ``[B, C, H, W]``, normalized as the model expects.
            layers: Block indices. Negative ones count from the end. Default: all blocks.

        Returns:
            ``{layer: A}`` with A ``[B, num_heads, N, N]``, the filter before boosting. Its rows sum to 1, except those of
            filters with ``rows_sum_to_one = False``.

        Raises:
            ValueError: The model does not have a given layer, or its filter has no dense weights, such as ``token_statistics``.

        Example:
            >>> import timm
            >>> weights = timm.create_model("test_nlm_vit").attention_weights(torch.rand(1, 3, 160, 160), layers=[-1])
            >>> {layer: tuple(a.shape) for layer, a in weights.items()}
            {5: (1, 2, 101, 101)}
        """
        depth = len(self.blocks)
        wanted = range(depth) if layers is None else layer_indices("layers", layers, depth)
        x, geometry = self._embed(x)
        state = self._initial_state()
        maps = {}
        block: Any
        for i, block in enumerate(self.blocks):
            if i in wanted:
                maps[i] = block.attn.operator(block.norm1(block.block_residual.entry(x, state)), geometry, state=state).dense()
            x, state = block(x, geometry, state=state)
        return maps

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's parameter groups for layer decay. Bandwidths, gates and tables learn at the rate of the last block.

        Gates of a converted model start at 0. With a decayed learning rate, those of the first blocks would stay there.
        """
        matcher: dict[str, Any] = super().group_matcher(coarse)
        if not coarse:
            matcher["blocks"] = [(_PER_HEAD_PARAMETERS, MATCH_PREV_GROUP), *matcher["blocks"]]
        return matcher

    def no_weight_decay(self) -> set[str]:
        """Return the names without weight decay: timm's, and the tables of log-weights."""
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
    without_norms: bool = False,
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
    is_causal: bool = False,
    attn_layer: Any = None,
    device=None,
    dtype=None,
) -> FilterBlock:
    """Return a block, built from the components and from the arguments that timm passes to ``block_fn``."""
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
    layer = LayerSpec(
        depth, dim, num_heads, dim // num_heads, grid_size, attn_drop, qkv_bias, proj_bias, is_causal, make_mlp, **dd
    )
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
        nn.Identity() if without_norms else norm_layer(dim, **dd),
        nn.Identity() if without_norms else norm_layer(dim, **dd),
        LayerScale(dim, init_values, **dd) if init_values else None,
        LayerScale(dim, init_values, **dd) if init_values else None,
        DropPath(drop_path) if drop_path > 0 else None,
        DropPath(drop_path) if drop_path > 0 else None,
        block_residual=components.block_residual_of(layer),
    )


def create_filter_vit(variant: str, pretrained: bool = False, **kwargs: Any) -> "FilterVisionTransformer":
    """Create a model of this class with timm's builder. The registered names call it."""
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
    """Return the type hints of timm's arguments."""
    return get_type_hints(VisionTransformer.__init__)


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """Fail for arguments that timm would misread, as text for a flag, and for rates out of range."""
    types = _types_of_arguments()
    for name, value in arguments.items():
        kind = types.get(name)
        if kind is bool or (kind == bool | None and value is not None):
            check_flag(name, value)
        elif kind is int:
            least = 0 if name in ("num_classes", "reg_tokens") else 1
            if check_whole(name, value) < least:
                raise ValueError(f"{name} must be at least {least}, got {value}. Give a larger number.")
        elif name.endswith("_rate"):
            if not 0 <= check_number(name, value) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value}. Give a probability; 0 switches it off.")
        elif (kind is float or (kind == float | None and value is not None)) and not math.isfinite(check_number(name, value)):
            raise ValueError(f"{name} must be finite, got {value}. Give a finite number.")


def _grid_size(img_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> tuple[int, int]:
    (height, width), (patch_y, patch_x) = to_2tuple(img_size), to_2tuple(patch_size)
    if height % patch_y or width % patch_x:
        raise ValueError(
            f"img_size must be divisible by patch_size {patch_y} x {patch_x}, got {height} x {width}. "
            f"Use {max(height // patch_y, 1) * patch_y} x {max(width // patch_x, 1) * patch_x}, or another patch_size."
        )
    return height // patch_y, width // patch_x


def _check_images(
    x: Tensor, in_chans: int, img_size: tuple[int, int] | None, patch_size: tuple[int, int], size_rule: str
) -> Tensor:
    """Return ``x`` if the model accepts images of its shape."""
    if x.dim() != 4 or x.shape[1] != in_chans:
        raise ValueError(
            f"Images must have the shape [batch, {in_chans}, height, width], got {list(x.shape)}. For another number of "
            "channels, create the model with in_chans=."
        )
    height, width = x.shape[2], x.shape[3]
    if size_rule == "fixed" and img_size is not None and (height != img_size[0] or width != img_size[1]):
        raise ValueError(
            f"Images must be {img_size[0]} x {img_size[1]}, the size that the model was built for, got {height} x {width}. "
            "Resize them, call set_input_size(), or create the model with dynamic_img_size=True."
        )
    if size_rule == "divisible" and (height % patch_size[0] != 0 or width % patch_size[1] != 0):
        raise ValueError(
            f"Sides of images must be divisible by the patch, {patch_size[0]} x {patch_size[1]}, got {height} x {width}. "
            "Resize them, or create the model with dynamic_img_pad=True."
        )
    return x


torch.fx.wrap("_check_images")
torch.fx.wrap("changed")
torch.fx.wrap("grid_geometry")
torch.fx.wrap("keep_patches")
