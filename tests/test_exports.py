"""Every registered family as ONNX and as an exported program, on photographs."""

import copy
import logging
import warnings

import onnxruntime
import pytest
import seeding
import skimage.data
import timm
import torch
from reference import sharpened
from timm.data import create_transform, resolve_model_data_config
from torchvision.transforms.functional import to_pil_image

import imgproc_attn
from imgproc_attn.models import FAMILIES


@torch.no_grad()
def assert_as_exact(result, model, x):
    """At most ten times as far from the model in float64 as the model is: both round, each in an order of its own."""
    exact = copy.deepcopy(model).double()(x.double())
    own = (model(x) - exact).abs().max()
    assert (result - exact).abs().max() <= 10 * own


def photographs(model):
    """An astronaut and a cat, as the model's own configuration prepares them."""
    transform = create_transform(**resolve_model_data_config(model))
    pictures = (skimage.data.astronaut(), skimage.data.chelsea())
    return torch.stack([transform(to_pil_image(picture)) for picture in pictures])


def memberships(model, x):
    """Return the largest membership of a token in a head, per block."""
    found = []
    hooks = [
        block.attn.filter.register_forward_hook(lambda module, inputs, operator: found.append(operator.membership.amax()))
        for block in model.blocks
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_and_exported_program(family, tmp_path):
    seeding.seed()
    model = sharpened(timm.create_model(f"test_{family}"))
    x = photographs(model)
    if family == "tost_vit":  # It has no weights. Its memberships are between heads.
        assert max(memberships(model, x)) > 0.75
    else:
        assert max(w.amax() for w in model.attention_weights(x).values()) > 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        program = torch.export.export(model, (x,))
        file = str(tmp_path / "model.onnx")
        torch.onnx.export(program, dynamo=True, verbose=False).save(file)
        logging.disable(logging.NOTSET)
    assert_as_exact(program.module()(x), model, x)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_as_exact(torch.from_numpy(result), model, x)


def test_a_converted_model_exports_too():
    model = imgproc_attn.from_timm(
        timm.create_model("test_vit"), positions=["rotary", "alibi"], residual="pid", block_residual="sos"
    ).eval()
    x = torch.randn(2, 3, *model.patch_embed.img_size)
    batch = torch.export.Dim("batch", max=4096)  # without a limit, torch 2.7 does not export timm's ViTs either
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    y = torch.randn(5, 3, *model.patch_embed.img_size)
    assert_as_exact(program.module()(y), model, y)
