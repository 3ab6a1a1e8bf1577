"""From a trained timm vision transformer to a filter backbone with its weights."""

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


class FilterVisionTransformerDistilled(FilterVisionTransformer, VisionTransformerDistilled):
    """The filter form of timm's distilled DeiT, with its distillation token and second head. Made by `from_timm` alone."""


_CLASSES = {VisionTransformer: FilterVisionTransformer, VisionTransformerDistilled: FilterVisionTransformerDistilled}


def from_timm(
    model: nn.Module,
    kernel: Spec = "dot_product",
    positions: Spec | Iterable[Spec] | None = None,
    filter: Spec = "softmax",
    residual: Spec = "plain",
    block_residual: Spec = "plain",
) -> FilterVisionTransformer:
    """A filter backbone with the weights and names of a timm vision transformer.

    With the dot product, and every gate at zero, it is the source model. Boosting and spatial kernels get a learned gate that
    starts there, unless ``gate`` is given, or the gate's ``learned=False`` for the published constant; a relative table starts
    from zeros. Another kernel, rotary positions and members of your own change the function at once (train them; a factory may
    look at ``layer.depth``). What is new: `imgproc_attn.models.component_names`. Hooks on the source's attention are not taken
    along. Its ``pretrained_cfg`` is the source's but for the name, `converted_vit`, under which timm's ``save_for_hf`` keeps
    it.

    Args:
        model: timm's ``VisionTransformer``: AugReg, DeiT (distilled too), DeiT-3, DINO and DINOv2, MAE, CLIP and SigLIP towers
            of that class. Left as it is.
        kernel: Kernel on features, as in `FilterVisionTransformer`.
        positions: Kernels on positions beside the model's own absolute positions, which stay.
        filter: What makes the operator, as in `FilterVisionTransformer`.
        residual: Boosting of the filter with its weights frozen.
        block_residual: Boosting of the attention branch, the filter estimated again in each step.

    Returns:
        The new model, in the mode (training or evaluation), type and device of the source.

    Raises:
        TypeError: The source is of another class, or holds blocks or attention of another class.
        ValueError: Unknown members or options, or positions that act on the tokens.
    """
    _check_source(model)
    source: Any = copy.deepcopy(model)
    members = position_specs(positions)
    for name, _ in members:
        if name in MODEL_POSITIONS:
            raise ValueError(
                f"positions={name!r} acts on the tokens, and the source brings its own; give kernels on positions."
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
        if module not in kept:  # those of the source may have modes of their own, a frozen norm for one
            module.training = model.training
    _rename(
        source,
        {"kernel": kernel, "positions": positions, "filter": filter, "residual": residual, "block_residual": block_residual},
    )
    return source


def _rename(model: Any, components: Mapping[str, Any]) -> None:
    """What timm writes beside exported weights says how to make this model of its source."""
    cfg = getattr(model, "pretrained_cfg", None)
    if cfg and "architecture" in cfg:  # timm's factory leaves both; a class that was called itself has none
        told = {name: spec for name, spec in components.items() if spec is not None}
        model._model_args = {**getattr(model, "_model_args", {}), "source": cfg["architecture"], **told}
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
    """`from_timm` by name, so that recipes and checkpoints can say it.

    ``timm.create_model("converted_vit", pretrained=True, source="vit_small_patch16_224.augreg_in1k", residual="twicing")`` is
    ``from_timm(timm.create_model("vit_small_patch16_224.augreg_in1k", pretrained=True), residual="twicing")``.

    Args:
        pretrained: With the trained weights of ``source``; or, from a folder (``local-dir:``) or the hub (``hf-hub:``), with
            those there.
        source: timm's name of the model to convert.
        kernel: As in `from_timm`.
        positions: As in `from_timm`.
        filter: As in `from_timm`.
        residual: As in `from_timm`.
        block_residual: As in `from_timm`.
        pretrained_cfg: timm's, of a folder or the hub.
        **kwargs: Of the source, as ``num_classes`` and ``img_size``.
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
    """``spec`` with a learned gate at zero, if the member has a gate and ``spec`` does not set it."""
    if callable(spec):
        return spec
    options: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    factory = table.get(options.get("name", ""))
    if factory is None or "gate" not in options_of(factory) or "gate" in options or options.get(learned) is False:
        return spec
    return {"gate": 0.0, learned: True, **options}


def _convert(block: Any, depth: int, grid_size: tuple[int, int], components: Components) -> FilterBlock:
    """The block with a filter for attention; all else is the source's."""
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
    """Refuse, with the reason, what is not the class these filters replace."""
    if isinstance(model, FilterVisionTransformer):
        raise TypeError(
            "from_timm: the source is a filter model already. Create one with other components, and load its weights into it."
        )
    if type(model) not in _CLASSES:
        raise TypeError(
            f"from_timm converts timm's VisionTransformer and VisionTransformerDistilled, but got {type(model).__name__}: "
            "another forward pass, in which these filters have no defined place. For features_only models convert first."
        )
    for i, block in enumerate(model.blocks):  # type: ignore[arg-type]
        if type(block) is not Block:
            raise TypeError(f"from_timm: block {i} is {type(block).__name__}, but only the pre-norm Block can be converted.")
        attn = block.attn
        if type(attn) is not Attention:
            raise TypeError(f"from_timm: attention {i} is {type(attn).__name__}, but only timm's plain Attention is a filter.")
        if type(attn.qkv) is not nn.Linear or not isinstance(attn.qkv.weight, nn.Parameter):
            raise TypeError(
                f"from_timm: queries, keys and values of attention {i} come from a {type(attn.qkv).__name__}, of more than a "
                "weight and a bias (an adapter, a parametrization, a quantized layer); merge it into a plain Linear first."
            )
        if getattr(attn, "gate", None) is not None:
            raise TypeError(f"from_timm: attention {i} gates its output (gated=True), which a filter has no place for.")
        if not math.isclose(attn.scale, attn.head_dim**-0.5):
            raise TypeError(
                f"from_timm: attention {i} scales its scores by {attn.scale:g}, not by {attn.head_dim**-0.5:g}, the root of "
                f"1 / {attn.head_dim}; multiply the queries' weights instead."
            )
        if attn.num_heads * attn.head_dim != attn.qkv.in_features:
            raise TypeError(
                f"from_timm: attention {i} has {attn.num_heads} heads of {attn.head_dim} in a width of "
                f"{attn.qkv.in_features}; only heads that share the width evenly can be converted."
            )
