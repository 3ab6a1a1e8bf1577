"""Parameter groups: weight decay and learning rates."""

import timm
import timm.layers
import timm.optim
import torch
from backbones import small

import imgproc_attn
from imgproc_attn.recipe.sections import Optimizer
from imgproc_attn.training.loop import build_optimizer


def test_optimizer_groups():
    model = timm.create_model("test_bilateral_vit")
    decayed, *_ = [
        {id(p) for p in group["params"]}
        for group in timm.optim.param_groups_weight_decay(model, 0.1, model.no_weight_decay())
        if group["weight_decay"] > 0
    ]
    for name, parameter in model.named_parameters():
        if "bandwidth" in name:
            assert parameter.ndim == 1
            assert id(parameter) not in decayed
    layered = timm.optim.param_groups_layer_decay(model, 0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in layered for p in group["params"]}
    first, last = (model.blocks[i].attn for i in (0, 5))
    assert scale[id(first.qkv.weight)] == 0.5**5 * scale[id(last.qkv.weight)]
    for attn in (first, last):
        assert scale[id(attn.kernel.range_bandwidth.log_excess)] == scale[id(last.qkv.weight)]
    converted = imgproc_attn.from_timm(timm.create_model("test_vit"), positions="spatial_gaussian", residual="twicing")
    layered = timm.optim.param_groups_layer_decay(converted, 0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in layered for p in group["params"]}
    gates = [p for name, p in converted.named_parameters() if "gate" in name]
    assert len(gates) == 12
    assert {scale[id(p)] for p in gates} == {scale[id(converted.blocks[5].attn.qkv.weight)]}


def test_muon_leaves_tables_alone():
    model = small(positions=["absolute", "relative_table"], num_heads=4)
    optimizer = build_optimizer(model, Optimizer(name="muon", lr=1e-3))
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    muon = {name for name, parameter in model.named_parameters() if optimizer.state[parameter]["use_muon"]}
    assert "blocks.0.attn.qkv.weight" in muon
    assert not [name for name in muon if name.endswith(".table") or name in ("pos_embed", "cls_token")]
