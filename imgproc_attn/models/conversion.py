"""Conversion of a trained timm vision transformer to a filter backbone with its weights."""

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import timm
from timm.layers import Attention
from timm.models import VisionTransformer, load_pretrained, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, checkpoint_filter_fn
from torch import nn

from ..core.attention import FilterAttention
from ..core.block import FilterBlock
from ..core.components import (
    BLOCK_RESIDUALS,
    LAYER_POSITIONS,
    MODEL_POSITIONS,
    RESIDUALS,
    Components,
    Factory,
    LayerSpec,
    Spec,
    options_of,
    position_specs,
)
from ..core.projections import QueryKeyValue
from .checkpoints import own_config
from .filter_vit import FilterVisionTransformer

__all__ = ["FilterVisionTransformerDistilled", "converted_vit", "from_timm"]


class FilterVisionTransformerDistilled(FilterVisionTransformer, VisionTransformerDistilled):
    """Filter form of timm's distilled DeiT, with a distillation token and a second head. Only `from_timm` creates it."""


_CLASSES = {VisionTransformer: FilterVisionTransformer, VisionTransformerDistilled: FilterVisionTransformerDistilled}


def from_timm(
    model: nn.Module,
    kernel: Spec = "dot_product",
    positions: Spec | Iterable[Spec] | None = None,
    filter: Spec = "softmax",
    residual: Spec = "plain",
    block_residual: Spec = "plain",
) -> FilterVisionTransformer:
    """Return a filter backbone with the weights and parameter names of a timm vision transformer.

    With the dot-product kernel and all gates at zero, it computes the same function as the source model.

    - Boosting and spatial kernels get a learned gate that starts at zero. To change this, give ``gate``, or give
      ``learned=False`` (``learned_gate=False`` for positions) for the published constant.
    - A relative table starts at zero.
    - Another kernel, rotary positions and your own modules change the function at once, so train the model afterwards. Your
      factory may look at ``layer.depth``.

    `imgproc_attn.models.component_names` lists the new parameters. Hooks on the attention of the source are not copied. The
    ``pretrained_cfg`` is that of the source, but its architecture is `converted_vit`. timm's ``save_for_hf`` stores this name.

    Args:
        model: timm's ``VisionTransformer``: AugReg, DeiT (also distilled), DeiT-3, DINO and DINOv2, MAE, and CLIP and SigLIP
            towers of that class. It is not changed.
        kernel: Kernel on features, as in `FilterVisionTransformer`.
        positions: Kernels on positions, in addition to the absolute positions of the model, which stay.
        filter: Module that builds the operator, as in `FilterVisionTransformer`.
        residual: Boosting of the filter with frozen weights.
        block_residual: Boosting of the attention branch. Each step computes the filter again.

    Returns:
        The new model, in the mode (training or evaluation), dtype and device of the source.

    Raises:
        TypeError: The source is of another class, or has blocks or attention of another class.
        ValueError: A member or option is unknown, or positions act on the tokens.

    Example:
        >>> import torch
        >>> source = timm.create_model("test_vit").eval()
        >>> model = from_timm(source, residual="twicing", positions="spatial_gaussian")
        >>> image = torch.rand(1, 3, 160, 160)
        >>> torch.allclose(model(image), source(image), atol=1e-5)  # all gates start at zero
        True
    """
    _check_source(model)
    source: Any = copy.deepcopy(model)
    members = position_specs(positions)
    for name, _ in members:
        if name in MODEL_POSITIONS:
            raise ValueError(
                f"positions must be kernels on positions, got {name!r}, which acts on the tokens. Leave it out: the source has "
                "its own positions of tokens."
            )
    depth = len(source.blocks)
    components = Components.resolve(
        depth,
        kernel=kernel,
        positions=[_start_closed(spec, LAYER_POSITIONS, "learned_gate") for _, spec in members],
        filter=filter,
        residual=_start_closed(residual, RESIDUALS, "learned"),
        block_residual=_start_closed(block_residual, BLOCK_RESIDUALS, "learned"),
    )
    blocks = [_convert(block, i, source.patch_embed.grid_size, components) for i, block in enumerate(source.blocks)]
    kept = set(source.modules())
    drop_rate = getattr(source.patch_drop, "prob", 0.0)
    source.__class__ = _CLASSES[type(source)]
    source._take_over(blocks, False, [], drop_rate)
    for module in source.modules():
        if module not in kept:  # Modules of the source may have their own mode, such as a frozen norm.
            module.training = model.training
    _rename(
        source,
        {"kernel": kernel, "positions": positions, "filter": filter, "residual": residual, "block_residual": block_residual},
    )
    return source


def _rename(model: Any, components: Mapping[str, Any]) -> None:
    """Record in timm's configuration how to build this model from its source. timm saves it next to exported weights."""
    cfg = getattr(model, "pretrained_cfg", None)
    if cfg and "architecture" in cfg:  # timm's factory sets both. A model made by calling its class has none.
        given = {name: spec for name, spec in components.items() if spec is not None}
        model._model_args = {**getattr(model, "_model_args", {}), "source": cfg["architecture"], **given}
        model.pretrained_cfg = {**cfg, "architecture": "converted_vit"}


@register_model
def converted_vit(
    pretrained: bool = False,
    source: str = "vit_tiny_patch16_224",
    kernel: Spec = "dot_product",
    positions: Spec | Iterable[Spec] | None = None,
    filter: Spec = "softmax",
    residual: Spec = "plain",
    block_residual: Spec = "plain",
    pretrained_cfg: Any = None,
    **kwargs: Any,
) -> FilterVisionTransformer:
    """Create a source model and convert it with `from_timm`. Recipes and checkpoints refer to this function by its name.

    ``timm.create_model("converted_vit", pretrained=True, source="vit_small_patch16_224.augreg_in1k", residual="twicing")``
    builds the same model as
    ``from_timm(timm.create_model("vit_small_patch16_224.augreg_in1k", pretrained=True), residual="twicing")``.

    Args:
        pretrained: Load the trained weights of ``source``. If the model comes from a folder (``local-dir:``) or the hub
            (``hf-hub:``), load the weights stored there instead.
        source: Name in timm of the model to convert.
        kernel: As in `from_timm`.
        positions: As in `from_timm`.
        filter: As in `from_timm`.
        residual: As in `from_timm`.
        block_residual: As in `from_timm`.
        pretrained_cfg: Configuration that timm passes for a model from a folder or the hub.
        **kwargs: Keyword arguments of the source model, such as ``num_classes`` and ``img_size``.

    Example:
        >>> model = timm.create_model("converted_vit", source="test_vit", kernel="gaussian_range", num_classes=5)
        >>> type(model).__name__, model.num_classes
        ('FilterVisionTransformer', 5)
    """
    own = own_config(pretrained_cfg, kwargs)
    plain = timm.create_model(source, pretrained=pretrained and own is None, **kwargs)
    model: Any = from_timm(plain, kernel, positions, filter, residual, block_residual)
    model._model_args["source"] = source
    if own is not None:
        model.pretrained_cfg = {**own, "architecture": "converted_vit"}
        if pretrained:
            load_pretrained(model, own, model.num_classes, model.patch_embed.proj.in_channels, checkpoint_filter_fn)
    return model


def _start_closed(spec: Spec, table: Mapping[str, Factory], learned: str) -> Spec:
    """Return ``spec`` with a learned gate at zero, if the member has a gate and ``spec`` does not set it."""
    if callable(spec):
        return spec
    options: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    factory = table.get(options.get("name", ""))
    if factory is None or "gate" not in options_of(factory) or "gate" in options or options.get(learned) is False:
        return spec
    return {"gate": 0.0, learned: True, **options}


def _convert(block: Any, depth: int, grid_size: tuple[int, int], components: Components) -> FilterBlock:
    """Return the block with a filter as attention. All other modules are those of the source."""
    attn, weight = block.attn, block.attn.qkv.weight
    dd = {"device": weight.device, "dtype": weight.dtype}
    qkv = QueryKeyValue(weight.shape[1], attn.num_heads, attn.qkv.bias is not None, **dd)
    qkv.weight, qkv.bias = attn.qkv.weight, attn.qkv.bias
    layer = LayerSpec(depth, weight.shape[1], attn.num_heads, attn.head_dim, grid_size, attn.attn_drop.p, **dd)
    converted = FilterAttention(
        qkv,
        components.kernel(layer),
        components.positions_of(layer),
        components.filter(layer),
        components.residual(layer),
        attn.proj,
        attn.q_norm,
        attn.k_norm,
        attn.norm,
        attn.proj_drop.p,
    )
    parts = (block.norm1, block.norm2, block.ls1, block.ls2, block.drop_path1, block.drop_path2)
    return FilterBlock(converted, block.mlp, *parts, block_residual=components.block_residual_of(layer))


def _check_source(model: nn.Module) -> None:
    """Fail for models, blocks and attention layers that these filters cannot replace, and give the reason."""
    if isinstance(model, FilterVisionTransformer):
        raise TypeError(
            f"from_timm: the source must be a model of timm, got {type(model).__name__}, a filter model. Create one with other "
            "components, and load the weights into it."
        )
    if type(model) not in _CLASSES:
        raise TypeError(
            "from_timm: the source must be timm's VisionTransformer or VisionTransformerDistilled, got "
            f"{type(model).__name__}, which has another forward pass. Convert before you ask timm for features_only."
        )
    for i, block in enumerate(model.blocks):  # type: ignore[arg-type]
        if type(block) is not Block:
            raise TypeError(f"from_timm: block {i} must be timm's Block, got {type(block).__name__}. Use another model.")
        attn = block.attn
        if type(attn) is not Attention:
            raise TypeError(f"from_timm: attention {i} must be timm's Attention, got {type(attn).__name__}. Use another model.")
        if type(attn.qkv) is not nn.Linear or not isinstance(attn.qkv.weight, nn.Parameter):
            raise TypeError(
                f"from_timm: qkv of attention {i} must be a Linear of one weight and one bias, got {type(attn.qkv).__name__} "
                "with more (an adapter, a parametrization or a quantized layer). Merge it into a plain Linear first."
            )
        if getattr(attn, "gate", None) is not None:
            raise TypeError(f"from_timm: attention {i} must have no output gate, got gated=True. Use another model.")
        if not math.isclose(attn.scale, attn.head_dim**-0.5):
            raise TypeError(
                f"from_timm: attention {i} must scale its scores by 1 / sqrt({attn.head_dim}) = {attn.head_dim**-0.5:g}, got "
                f"{attn.scale:g}. Multiply the weights of the queries instead."
            )
        if attn.num_heads * attn.head_dim != attn.qkv.in_features:
            raise TypeError(
                f"from_timm: attention {i} must have heads that fill its width of {attn.qkv.in_features}, got {attn.num_heads} "
                f"heads of {attn.head_dim}. Use another model."
            )
